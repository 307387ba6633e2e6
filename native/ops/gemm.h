#pragma once

#include <cstdint>

#include "core/memory.h"
#include "ops/activation.h"
#include "ops/context.h"

namespace limbeck {

/// A row-major or transposed matrix: element (i, j) is data[i * row_stride + j * column_stride]; one stride is 1.
struct MatrixView {
  const float* data;
  int64_t row_stride;
  int64_t column_stride;
};

/// What else is done with a C that is complete, block by block while it lies in the cache.
struct Epilogue {
  const float* residual = nullptr;  // [m, ldc], C += ; not with SwiGLU
  float* activated = nullptr;       // [m, n], of SwiGLU [m, n/2], = activation(C); may be C itself where ldc is n
  Activation activation = Activation::kGeluTanh;
};

/// C = A·B (or C += A·B), A [m, k], B [k, n], C [m, n] row-major with leading dimension ldc. fp32 accumulation; the
/// order of every sum depends on the shapes alone, never on the number of threads. bias [n] may be null; it is not
/// added when C is accumulated to. C must not overlap A or B. m, n or k may be 0 (k = 0 gives zeros plus bias).
/// With context.precision kBFloat16, A and B are rounded to bfloat16 as they are packed.
void gemm(Context& context, int64_t m, int64_t n, int64_t k, MatrixView a, MatrixView b, const float* bias, float* c,
          int64_t ldc, bool accumulate, const Epilogue& epilogue = {});

/// A packed matrix may be read from every multiple of this column on.
constexpr int64_t kPackedColumns = 64;

/// A right operand B [k, n] packed once, in the precision of the context, for weights that many products read. Belongs
/// to the instruction set in use when it was made.
class PackedMatrix {
 public:
  PackedMatrix(Context& context, MatrixView b, int64_t k, int64_t n);
  /// Lies in `arena`, for as long as what is allocated there now does.
  PackedMatrix(Context& context, Arena& arena, MatrixView b, int64_t k, int64_t n);

 private:
  friend void gemm_packed(Context&, int64_t, int64_t, int64_t, MatrixView, const PackedMatrix&, const float*, float*,
                          int64_t, const Epilogue&);
  void pack(Context& context, MatrixView b);

  int64_t k_, n_;
  Precision precision_;
  AlignedFloats own_;
  float* data_;
};

/// C = A·B[:, first_column … first_column + n − 1] + bias, A [m, k], B packed, bias [n] or null; else as gemm(), in the
/// precision in which B was packed. An element of C has the same bits whatever the other rows and columns are, and
/// however many. first_column must be a multiple of kPackedColumns.
void gemm_packed(Context& context, int64_t m, int64_t first_column, int64_t n, MatrixView a, const PackedMatrix& b,
                 const float* bias, float* c, int64_t ldc, const Epilogue& epilogue = {});

/// The precision in which this processor multiplies faster; measured at the first call, in a few milliseconds.
Precision fastest_precision();

}  // namespace limbeck
