#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <tuple>
#include <vector>

#include "cuda/device_code.h"

namespace limbeck::cuda {

/// What we call of NVIDIA's cuBLASLt, as its documentation has it. The library is opened when an engine starts, so that
/// nothing but a driver is needed to build, and so that its many hundred megabytes stay out of the package.
namespace lt {

enum Status : int { kSuccess = 0, kInvalidValue = 7, kExecutionFailed = 13, kNotSupported = 15 };
enum DataType : int { kFloat32 = 0, kBFloat16 = 14 };  // cudaDataType_t
enum ComputeType : int { kCompute32F = 68 };           // full fp32: TF32 is another one
enum Operation : int { kNone = 0, kTranspose = 1 };
enum DescAttribute : int {
  kTransposeA = 3,
  kTransposeB = 4,
  kEpilogue = 7,
  kBiasPointer = 8,
  kAuxPointer = 11,
  kAuxLeadingDimension = 12,
  kBiasDataType = 26,
};
enum PreferenceAttribute : int {
  kMaxWorkspaceBytes = 1,
  kReductionSchemeMask = 3,
  kMinAlignmentA = 5,
  kMinAlignmentB = 6,
  kMinAlignmentC = 7,
  kMinAlignmentD = 8,
};
/// GELU is its tanh form. With an auxiliary matrix of D's type and shape, that is where GELU's input, the bias in it,
/// is written to, and where its derivative (DGelu) reads it.
enum Epilogue : int {
  kEpilogueDefault = 1,
  kEpilogueBias = 4,
  kEpilogueGelu = 32,
  kEpilogueGeluBias = 36,
  kEpilogueGeluAux = 160,
  kEpilogueGeluAuxBias = 164,
  kEpilogueDGelu = 192,
};
enum ReductionScheme : int { kReductionInPlace = 1, kReductionComputeType = 2 };
/// What an algorithm is made of.
enum AlgorithmAttribute : int {
  kAlgorithmId = 0,
  kTileId = 1,
  kSplitKNumber = 2,
  kReductionScheme = 3,
  kCustomOption = 5,
  kClusterShapeId = 8,
};
/// Of D, as the library names them: columns of our row-major C × its rows.
enum Tile : int { kTile128x128 = 20, kTile256x128 = 24, kTile96x128 = 28, kTile128x160 = 29, kTile176x128 = 201 };
enum ClusterShape : int { kCluster2x1 = 3, kCluster1x2 = 5, kCluster4x2 = 7 };

struct Algorithm {
  uint64_t data[8];
};
struct HeuristicResult {
  Algorithm algorithm;
  size_t workspace_bytes;
  Status state;
  float waves_count;
  int reserved[4];
};

using Handle = struct HandleOpaque*;
using Desc = struct DescOpaque*;
using Layout = struct LayoutOpaque*;
using Preference = struct PreferenceOpaque*;

/// The functions by their names without "cublasLt".
struct Functions {
  size_t (*GetVersion)();
  Status (*Create)(Handle*);
  Status (*Destroy)(Handle);
  Status (*MatmulDescCreate)(Desc*, ComputeType, DataType scale_type);
  Status (*MatmulDescDestroy)(Desc);
  Status (*MatmulDescSetAttribute)(Desc, DescAttribute, const void* value, size_t size_bytes);
  Status (*MatrixLayoutCreate)(Layout*, DataType, uint64_t num_rows, uint64_t num_columns, int64_t leading_dimension);
  Status (*MatrixLayoutDestroy)(Layout);
  Status (*MatmulPreferenceCreate)(Preference*);
  Status (*MatmulPreferenceDestroy)(Preference);
  Status (*MatmulPreferenceSetAttribute)(Preference, PreferenceAttribute, const void* value, size_t size_bytes);
  Status (*MatmulAlgoGetHeuristic)(Handle, Desc, Layout a, Layout b, Layout c, Layout d, Preference, int num_requested,
                                   HeuristicResult* results, int* num_results);
  Status (*MatmulAlgoConfigGetAttribute)(const Algorithm*, AlgorithmAttribute, void* value, size_t size_bytes,
                                         size_t* written_bytes);
  Status (*MatmulAlgoConfigSetAttribute)(Algorithm*, AlgorithmAttribute, const void* value, size_t size_bytes);
  /// Whether it can do the product; fills in all of the result but the algorithm.
  Status (*MatmulAlgoCheck)(Handle, Desc, Layout a, Layout b, Layout c, Layout d, const Algorithm*, HeuristicResult*);
  /// D = alpha·op(A)·op(B) + beta·C, column-major, then the epilogue.
  Status (*Matmul)(Handle, Desc, const void* alpha, const void* a, Layout, const void* b, Layout, const void* beta,
                   const void* c, Layout, void* d, Layout, const Algorithm*, void* workspace, size_t workspace_bytes,
                   cudaStream_t);
};

}  // namespace lt

/// What becomes of a product before it is rounded to C, see linear_gelu_forward() and _backward() of gemm.h.
enum class Gelu : int { kNone, kForward, kBackward };

/// A product as gemm() of gemm.h has it, without its types.
struct Product {
  int64_t m, n, k;
  bool transpose_a, transpose_b;
  int64_t lda, ldb, ldc;
  lt::DataType in, out;
  const void *a, *b, *bias, *residual;  // bias and residual may be null
  void* c;
  Gelu gelu = Gelu::kNone;
  void* gelu_input = nullptr;  // [m, n] with ldc: forward out, or null; backward in; not C
};

/// Products by cuBLASLt on one stream, or on several (see separate()). The algorithm of a kind of product (shapes,
/// strides, types, alignments) is chosen at the first and kept, so that the same product always gives the same bits.
/// Not thread-safe.
class CublasLt {
 public:
  /// Opens the library, see open_cublas_lt() of driver.h, and takes the workspace. Throws ERR_CUDA_UNAVAILABLE,
  /// ERR_OUT_OF_MEMORY.
  CublasLt();
  ~CublasLt();
  CublasLt(const CublasLt&) = delete;
  CublasLt& operator=(const CublasLt&) = delete;

  /// False, and nothing done, where the library has no algorithm for this product.
  bool multiply(cudaStream_t stream, const Product& product);

  /// With tuning, the first of a kind of large product is run with the best few algorithms, and the fastest is kept;
  /// not while a graph is captured. Another process may then choose others, and round otherwise. Off at first, and for
  /// the kinds that were met before.
  ///   min_products  m·n·k from which on the timing is worth its while
  void set_tuning(bool tuning, double min_products = 1e9) {
    tuning_ = tuning;
    min_tuned_products_ = min_products;
  }

  /// Products on this stream get a workspace of their own, so that they may run beside those of other streams, which
  /// share one. Throws ERR_OUT_OF_MEMORY.
  void separate(cudaStream_t stream);

  size_t workspace_bytes() const { return workspace_bytes_; }
  size_t version() const { return functions_.GetVersion(); }
  /// Kinds of products met so far, and those of them that the library cannot do.
  size_t num_plans() const { return plans_.size(); }
  size_t num_unsupported() const { return num_unsupported_; }

 private:
  struct Plan;
  using Key = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int, int, int, int, int, int, int, int,
                         int, int>;

  static bool is_refusal(lt::Status status) { return status == lt::kNotSupported || status == lt::kInvalidValue; }

  Plan make_plan(cudaStream_t stream, const Product& product);
  lt::Status run(cudaStream_t stream, const Plan& plan, const lt::HeuristicResult& choice, const Product& product,
                 void* d);
  void put_preferred_first(const Plan& plan, std::vector<lt::HeuristicResult>& choices, const Product& product) const;
  size_t fastest(cudaStream_t stream, const Plan& plan, const std::vector<lt::HeuristicResult>& choices,
                 const Product& product);

  const lt::Functions functions_;
  lt::Handle handle_ = nullptr;
  void* workspace_ = nullptr;
  std::map<cudaStream_t, void*> separate_workspaces_;
  size_t workspace_bytes_;
  const int hopper_multiprocessors_;  // 0 where the device is another one
  bool tuning_ = false;
  double min_tuned_products_ = 0;
  size_t num_unsupported_ = 0;
  std::map<Key, Plan> plans_;
};

}  // namespace limbeck::cuda
