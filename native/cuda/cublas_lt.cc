#include "cuda/cublas_lt.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "core/error.h"
#include "cuda/check.h"
#include "cuda/driver.h"
#include "cuda/product_tiles.h"

#if !defined(LIMBECK_CUDA_EMULATED) && __has_include(<cublasLt.h>)
#include <cublasLt.h>
#define LIMBECK_SAME(ours, theirs) static_assert(static_cast<int>(limbeck::cuda::lt::ours) == static_cast<int>(theirs))
LIMBECK_SAME(kSuccess, CUBLAS_STATUS_SUCCESS);
LIMBECK_SAME(kInvalidValue, CUBLAS_STATUS_INVALID_VALUE);
LIMBECK_SAME(kExecutionFailed, CUBLAS_STATUS_EXECUTION_FAILED);
LIMBECK_SAME(kNotSupported, CUBLAS_STATUS_NOT_SUPPORTED);
LIMBECK_SAME(kFloat32, CUDA_R_32F);
LIMBECK_SAME(kBFloat16, CUDA_R_16BF);
LIMBECK_SAME(kCompute32F, CUBLAS_COMPUTE_32F);
LIMBECK_SAME(kNone, CUBLAS_OP_N);
LIMBECK_SAME(kTranspose, CUBLAS_OP_T);
LIMBECK_SAME(kTransposeA, CUBLASLT_MATMUL_DESC_TRANSA);
LIMBECK_SAME(kTransposeB, CUBLASLT_MATMUL_DESC_TRANSB);
LIMBECK_SAME(kEpilogue, CUBLASLT_MATMUL_DESC_EPILOGUE);
LIMBECK_SAME(kBiasPointer, CUBLASLT_MATMUL_DESC_BIAS_POINTER);
LIMBECK_SAME(kAuxPointer, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER);
LIMBECK_SAME(kAuxLeadingDimension, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD);
LIMBECK_SAME(kBiasDataType, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE);
LIMBECK_SAME(kMaxWorkspaceBytes, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES);
LIMBECK_SAME(kReductionSchemeMask, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK);
LIMBECK_SAME(kMinAlignmentA, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES);
LIMBECK_SAME(kMinAlignmentB, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES);
LIMBECK_SAME(kMinAlignmentC, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES);
LIMBECK_SAME(kMinAlignmentD, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES);
LIMBECK_SAME(kEpilogueDefault, CUBLASLT_EPILOGUE_DEFAULT);
LIMBECK_SAME(kEpilogueBias, CUBLASLT_EPILOGUE_BIAS);
LIMBECK_SAME(kEpilogueGelu, CUBLASLT_EPILOGUE_GELU);
LIMBECK_SAME(kEpilogueGeluBias, CUBLASLT_EPILOGUE_GELU_BIAS);
LIMBECK_SAME(kEpilogueGeluAux, CUBLASLT_EPILOGUE_GELU_AUX);
LIMBECK_SAME(kEpilogueGeluAuxBias, CUBLASLT_EPILOGUE_GELU_AUX_BIAS);
LIMBECK_SAME(kEpilogueDGelu, CUBLASLT_EPILOGUE_DGELU);
LIMBECK_SAME(kReductionInPlace, CUBLASLT_REDUCTION_SCHEME_INPLACE);
LIMBECK_SAME(kReductionComputeType, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);
LIMBECK_SAME(kAlgorithmId, CUBLASLT_ALGO_CONFIG_ID);
LIMBECK_SAME(kTileId, CUBLASLT_ALGO_CONFIG_TILE_ID);
LIMBECK_SAME(kSplitKNumber, CUBLASLT_ALGO_CONFIG_SPLITK_NUM);
LIMBECK_SAME(kReductionScheme, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME);
LIMBECK_SAME(kCustomOption, CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION);
LIMBECK_SAME(kClusterShapeId, CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID);
LIMBECK_SAME(kTile128x128, CUBLASLT_MATMUL_TILE_128x128);
LIMBECK_SAME(kTile256x128, CUBLASLT_MATMUL_TILE_256x128);
LIMBECK_SAME(kTile96x128, CUBLASLT_MATMUL_TILE_96x128);
LIMBECK_SAME(kTile128x160, CUBLASLT_MATMUL_TILE_128x160);
LIMBECK_SAME(kTile176x128, CUBLASLT_MATMUL_TILE_176x128);
LIMBECK_SAME(kCluster2x1, CUBLASLT_CLUSTER_SHAPE_2x1x1);
LIMBECK_SAME(kCluster1x2, CUBLASLT_CLUSTER_SHAPE_1x2x1);
LIMBECK_SAME(kCluster4x2, CUBLASLT_CLUSTER_SHAPE_4x2x1);
static_assert(sizeof(limbeck::cuda::lt::HeuristicResult) == sizeof(cublasLtMatmulHeuristicResult_t));
#undef LIMBECK_SAME
#endif

namespace limbeck::cuda {
namespace {

#ifdef LIMBECK_CUDA_EMULATED
constexpr size_t kWorkspaceBytes = size_t{1} << 20;
#else
constexpr size_t kWorkspaceBytes = size_t{32} << 20;  // what NVIDIA advises for Hopper
#endif

constexpr int kMaxChoices = 8, kTimedRounds = 5, kTimedRuns = 3;

// The library's kernels that preferred_tile() knows, and the bytes that they want their matrices aligned to.
constexpr int32_t kHopperKernels = 66;
constexpr uint32_t kHopperAlignment = 16;

void check_lt(lt::Status status, const char* what) {
  if (status == lt::kSuccess) return;
  const cudaError_t error = cudaGetLastError();
  check_cuda(error, what);  // the better reason, where there is one
  throw Error("ERR_CUDA", std::string("cuBLASLt: ") + what + " failed with status " + std::to_string(status));
}

/// The largest power of two ≤ 256 that divides the address: what cuBLASLt's choice depends on.
uint32_t alignment_of(const void* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer) | 256;
  return static_cast<uint32_t>(address & -address);
}

/// Of the result and what is added to it.
uint32_t alignment_of_c(const Product& p) {
  return p.residual == nullptr ? alignment_of(p.c) : std::min(alignment_of(p.c), alignment_of(p.residual));
}

lt::Epilogue epilogue_of(const Product& p) {
  const bool has_bias = p.bias != nullptr;
  switch (p.gelu) {
    case Gelu::kNone:
      return has_bias ? lt::kEpilogueBias : lt::kEpilogueDefault;
    case Gelu::kForward:
      if (p.gelu_input == nullptr) return has_bias ? lt::kEpilogueGeluBias : lt::kEpilogueGelu;
      return has_bias ? lt::kEpilogueGeluAuxBias : lt::kEpilogueGeluAux;
    case Gelu::kBackward:
      break;
  }
  return lt::kEpilogueDGelu;
}

bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status;
  check_cuda(cudaStreamIsCapturing(stream, &status), "cudaStreamIsCapturing");
  return status != cudaStreamCaptureStatusNone;
}

}  // namespace

/// Descriptors of one kind of product. Row-major C = A·B is column-major Cᵀ = Bᵀ·Aᵀ, and a row-major matrix read as
/// column-major is its transpose: cuBLASLt's A is our B, its B is our A, and neither changes its transposition.
struct CublasLt::Plan {
  const lt::Functions* functions;
  lt::Desc desc = nullptr;
  lt::Layout a = nullptr, b = nullptr, c = nullptr;
  std::vector<lt::HeuristicResult> choices;  // the first is taken, until the library refuses it; none: not supported

  explicit Plan(const lt::Functions& functions) : functions(&functions) {}
  Plan(Plan&& other) noexcept { *this = std::move(other); }
  Plan& operator=(Plan&& other) noexcept {
    std::swap(functions, other.functions);
    std::swap(desc, other.desc);
    std::swap(a, other.a);
    std::swap(b, other.b);
    std::swap(c, other.c);
    std::swap(choices, other.choices);
    return *this;
  }
  ~Plan() {
    if (desc != nullptr) functions->MatmulDescDestroy(desc);
    for (lt::Layout layout : {a, b, c}) {
      if (layout != nullptr) functions->MatrixLayoutDestroy(layout);
    }
  }
};

CublasLt::CublasLt()
    : functions_(open_cublas_lt()),
      workspace_bytes_(kWorkspaceBytes),
      hopper_multiprocessors_(hopper_multiprocessors()) {
  check_cuda(cudaMalloc(&workspace_, workspace_bytes_), "the workspace of cuBLASLt");
  const lt::Status status = functions_.Create(&handle_);
  if (status != lt::kSuccess) cudaFree(workspace_);
  check_lt(status, "cublasLtCreate");
}

CublasLt::~CublasLt() {
  plans_.clear();
  functions_.Destroy(handle_);
  for (const auto& [stream, workspace] : separate_workspaces_) cudaFree(workspace);
  cudaFree(workspace_);
}

void CublasLt::separate(cudaStream_t stream) {
  if (separate_workspaces_.count(stream) > 0) return;
  void* workspace = nullptr;
  check_cuda(cudaMalloc(&workspace, workspace_bytes_), "the workspace of cuBLASLt");
  separate_workspaces_.emplace(stream, workspace);
}

bool CublasLt::multiply(cudaStream_t stream, const Product& p) {
  // Whether what is added lies in C or elsewhere is all one, so that tuning gives both the same bits.
  const Key key(p.m, p.n, p.k, p.lda, p.ldb, p.ldc, p.transpose_a + 2 * p.transpose_b, p.in, p.out,
                p.residual != nullptr, p.bias == nullptr ? 0 : alignment_of(p.bias), alignment_of(p.a),
                alignment_of(p.b), alignment_of_c(p), epilogue_of(p),
                p.gelu_input == nullptr ? 0 : alignment_of(p.gelu_input));
  auto found = plans_.find(key);
  if (found == plans_.end()) found = plans_.emplace(key, make_plan(stream, p)).first;
  Plan& plan = found->second;
  while (!plan.choices.empty()) {
    const lt::Status status = run(stream, plan, plan.choices[0], p, p.c);
    if (!is_refusal(status)) {
      check_lt(status, "cublasLtMatmul");
      return true;
    }
    // In spite of what it offered or checked: there is nothing on the stream.
    plan.choices.erase(plan.choices.begin());
    if (plan.choices.empty()) ++num_unsupported_;
  }
  return false;
}

lt::Status CublasLt::run(cudaStream_t stream, const Plan& plan, const lt::HeuristicResult& choice, const Product& p,
                         void* d) {
  if (p.bias != nullptr) {
    check_lt(functions_.MatmulDescSetAttribute(plan.desc, lt::kBiasPointer, &p.bias, sizeof(p.bias)), "a bias");
  }
  if (p.gelu_input != nullptr) {
    check_lt(functions_.MatmulDescSetAttribute(plan.desc, lt::kAuxPointer, &p.gelu_input, sizeof(p.gelu_input)),
             "GELU's input");
  }
  const float alpha = 1, beta = p.residual == nullptr ? 0 : 1;
  const void* c = p.residual == nullptr ? d : p.residual;
  const auto found = separate_workspaces_.find(stream);
  void* workspace = found == separate_workspaces_.end() ? workspace_ : found->second;
  return functions_.Matmul(handle_, plan.desc, &alpha, p.b, plan.a, p.a, plan.b, &beta, c, plan.c, d, plan.c,
                           &choice.algorithm, workspace, workspace_bytes_, stream);
}

CublasLt::Plan CublasLt::make_plan(cudaStream_t stream, const Product& p) {
  Plan plan(functions_);
  constexpr int64_t kAuxMultiple = 8;  // of its leading dimension, says the documentation
  if (p.gelu_input != nullptr && p.ldc % kAuxMultiple != 0) {
    ++num_unsupported_;
    return plan;
  }
  const auto size = [](int64_t count) { return static_cast<uint64_t>(count); };
  check_lt(functions_.MatmulDescCreate(&plan.desc, lt::kCompute32F, lt::kFloat32), "cublasLtMatmulDescCreate");
  const auto set = [&](lt::DescAttribute attribute, const auto& value) {
    check_lt(functions_.MatmulDescSetAttribute(plan.desc, attribute, &value, sizeof(value)),
             "cublasLtMatmulDescSetAttribute");
  };
  set(lt::kTransposeA, static_cast<int32_t>(p.transpose_b ? lt::kTranspose : lt::kNone));
  set(lt::kTransposeB, static_cast<int32_t>(p.transpose_a ? lt::kTranspose : lt::kNone));
  set(lt::kEpilogue, static_cast<uint32_t>(epilogue_of(p)));
  if (p.gelu_input != nullptr) {  // the library looks at its alignment
    set(lt::kAuxPointer, p.gelu_input);
    set(lt::kAuxLeadingDimension, p.ldc);
  }
  if (p.bias != nullptr) {
    set(lt::kBiasDataType, static_cast<int32_t>(p.out));
    set(lt::kBiasPointer, p.bias);
  }
  const auto layout = [&](lt::Layout& out, lt::DataType type, int64_t num_rows, int64_t num_columns, int64_t ld) {
    check_lt(functions_.MatrixLayoutCreate(&out, type, size(num_rows), size(num_columns), ld),
             "cublasLtMatrixLayoutCreate");
  };
  layout(plan.a, p.in, p.transpose_b ? p.k : p.n, p.transpose_b ? p.n : p.k, p.ldb);
  layout(plan.b, p.in, p.transpose_a ? p.m : p.k, p.transpose_a ? p.k : p.m, p.lda);
  layout(plan.c, p.out, p.n, p.m, p.ldc);

  lt::Preference preference;
  check_lt(functions_.MatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate");
  const std::unique_ptr<lt::PreferenceOpaque, lt::Status (*)(lt::Preference)> owner(preference,
                                                                                    functions_.MatmulPreferenceDestroy);
  const auto prefer = [&](lt::PreferenceAttribute attribute, const auto& value) {
    check_lt(functions_.MatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)),
             "cublasLtMatmulPreferenceSetAttribute");
  };
  prefer(lt::kMaxWorkspaceBytes, static_cast<uint64_t>(workspace_bytes_));
  // Parts of a sum over k are not rounded to bf16 before they are added.
  const uint32_t schemes = p.out == lt::kFloat32 ? lt::kReductionInPlace | lt::kReductionComputeType
                                                 : static_cast<uint32_t>(lt::kReductionComputeType);
  prefer(lt::kReductionSchemeMask, schemes);
  prefer(lt::kMinAlignmentA, alignment_of(p.b));
  prefer(lt::kMinAlignmentB, alignment_of(p.a));
  prefer(lt::kMinAlignmentC, alignment_of_c(p));
  prefer(lt::kMinAlignmentD, alignment_of_c(p));

  std::vector<lt::HeuristicResult> choices(kMaxChoices);
  int num_choices = 0;
  const lt::Status status = functions_.MatmulAlgoGetHeuristic(handle_, plan.desc, plan.a, plan.b, plan.c, plan.c,
                                                              preference, kMaxChoices, choices.data(), &num_choices);
  if (!is_refusal(status)) check_lt(status, "cublasLtMatmulAlgoGetHeuristic");
  choices.resize(status == lt::kSuccess ? num_choices : 0);
  choices.erase(std::remove_if(choices.begin(), choices.end(),
                               [&](const lt::HeuristicResult& choice) {
                                 return choice.state != lt::kSuccess || choice.workspace_bytes > workspace_bytes_;
                               }),
                choices.end());
  if (choices.empty()) {
    ++num_unsupported_;
    return plan;
  }
  if (hopper_multiprocessors_ > 0) put_preferred_first(plan, choices, p);
  const double products = static_cast<double>(p.m) * static_cast<double>(p.n) * static_cast<double>(p.k);
  const bool tune = tuning_ && choices.size() > 1 && products >= min_tuned_products_ && !is_capturing(stream);
  if (tune) std::swap(choices[0], choices[fastest(stream, plan, choices, p)]);
  plan.choices = std::move(choices);
  return plan;
}

/// Of those that the library offers, or as one more, put together from its first.
void CublasLt::put_preferred_first(const Plan& plan, std::vector<lt::HeuristicResult>& choices,
                                   const Product& p) const {
  const auto get = [&](const lt::Algorithm& algorithm, lt::AlgorithmAttribute which, auto value) {
    size_t written_bytes;
    check_lt(functions_.MatmulAlgoConfigGetAttribute(&algorithm, which, &value, sizeof(value), &written_bytes),
             "cublasLtMatmulAlgoConfigGetAttribute");
    return static_cast<int64_t>(value);
  };
  if (p.gelu == Gelu::kBackward) {
    // All are of one tile, and differ in how many blocks share what they read: two is best. On an H200, 65,536 × 3,072
    // = · 768: 650 → 582 µs.
    const auto best = std::find_if(choices.begin(), choices.end(), [&](const lt::HeuristicResult& choice) {
      const int64_t shape = get(choice.algorithm, lt::kClusterShapeId, uint16_t{0});
      return shape == lt::kCluster2x1 || shape == lt::kCluster1x2;
    });
    if (best != choices.end()) std::rotate(choices.begin(), best, best + 1);
    return;
  }
  const ProductTile* tile = preferred_tile(p, hopper_multiprocessors_);
  if (tile == nullptr || get(choices[0].algorithm, lt::kAlgorithmId, int32_t{0}) != kHopperKernels) return;
  for (const void* matrix :
       {p.a, p.b, static_cast<const void*>(p.c), p.residual, static_cast<const void*>(p.gelu_input)}) {
    if (matrix != nullptr && alignment_of(matrix) < kHopperAlignment) return;
  }
  lt::HeuristicResult preferred = choices[0];
  const auto set = [&](lt::AlgorithmAttribute which, const auto& value) {
    return functions_.MatmulAlgoConfigSetAttribute(&preferred.algorithm, which, &value, sizeof(value)) == lt::kSuccess;
  };
  const bool is_set = set(lt::kTileId, static_cast<uint32_t>(tile->id)) && set(lt::kSplitKNumber, int32_t{1}) &&
                      set(lt::kReductionScheme, uint32_t{0}) && set(lt::kCustomOption, tile->custom_option) &&
                      set(lt::kClusterShapeId, static_cast<uint16_t>(tile->cluster));
  if (!is_set) return;
  const lt::Algorithm algorithm = preferred.algorithm;
  const lt::Status status =
      functions_.MatmulAlgoCheck(handle_, plan.desc, plan.a, plan.b, plan.c, plan.c, &algorithm, &preferred);
  if (status != lt::kSuccess || preferred.state != lt::kSuccess || preferred.workspace_bytes > workspace_bytes_) return;
  preferred.algorithm = algorithm;
  choices.insert(choices.begin(), preferred);
}

size_t CublasLt::fastest(cudaStream_t stream, const Plan& plan, const std::vector<lt::HeuristicResult>& choices,
                         const Product& p) {
  // C that is accumulated to must not change: then the results go elsewhere. Without room for that, no timing. GELU's
  // input in the forward direction is an output that the run to come writes again.
  void* scratch = nullptr;
  if (p.residual == p.c) {
    const size_t item_bytes = p.out == lt::kFloat32 ? 4 : 2;
    if (cudaMalloc(&scratch, static_cast<size_t>(p.m * p.ldc) * item_bytes) != cudaSuccess) {
      cudaGetLastError();
      return 0;
    }
  }
  check_cuda(cudaDeviceSynchronize(), "the work of the GPU");  // of other streams would take part of the time
  cudaEvent_t begin = nullptr, end = nullptr;
  check_cuda(cudaEventCreate(&begin), "cudaEventCreate");
  check_cuda(cudaEventCreate(&end), "cudaEventCreate");
  // In turns: as a GPU warms up, it slows down. The first round loads the kernels.
  std::vector<std::vector<float>> milliseconds(choices.size());
  std::vector<bool> runs(choices.size(), true);
  for (int round = 0; round <= kTimedRounds; ++round) {
    for (size_t i = 0; i < choices.size(); ++i) {
      check_cuda(cudaEventRecord(begin, stream), "cudaEventRecord");
      for (int repeat = 0; repeat < kTimedRuns && runs[i]; ++repeat) {
        runs[i] = run(stream, plan, choices[i], p, scratch == nullptr ? p.c : scratch) == lt::kSuccess;
      }
      check_cuda(cudaEventRecord(end, stream), "cudaEventRecord");
      check_cuda(cudaEventSynchronize(end), "cudaEventSynchronize");
      if (!runs[i] || round == 0) continue;
      float of_round;
      check_cuda(cudaEventElapsedTime(&of_round, begin, end), "cudaEventElapsedTime");
      milliseconds[i].push_back(of_round);
    }
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaFree(scratch);
  size_t best = 0;
  float best_milliseconds = std::numeric_limits<float>::infinity();
  for (size_t i = 0; i < choices.size(); ++i) {
    if (!runs[i]) continue;
    std::nth_element(milliseconds[i].begin(), milliseconds[i].begin() + kTimedRounds / 2, milliseconds[i].end());
    const float median = milliseconds[i][kTimedRounds / 2];
    if (median < best_milliseconds) best = i, best_milliseconds = median;
  }
  return best;
}

}  // namespace limbeck::cuda
