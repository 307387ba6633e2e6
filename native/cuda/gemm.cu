#include <type_traits>

#include "cuda/cublas_lt.h"
#include "cuda/elementwise.h"
#include "cuda/gemm.h"
#include "cuda/launch.h"

namespace limbeck::cuda {
namespace {

constexpr int kTile = 64, kDepth = 16, kThreads = 256;

/// For what cuBLASLt does not take (k = 0, and bf16 rows at odd addresses on some devices): a tile of C for each block,
/// 4×4 numbers for each thread.
template <typename T, typename Out, bool kTransposeA, bool kTransposeB>
__global__ void __launch_bounds__(kThreads)
    multiply_tiles(GemmShape shape, const T* a, const T* b, const Out* bias, const Out* residual, Out* c) {
  __shared__ float a_tile[kDepth][kTile + 1], b_tile[kDepth][kTile + 1];
  const int64_t tiles_across = (shape.n + kTile - 1) / kTile;
  const int64_t first_row = blockIdx.x / tiles_across * kTile, first_column = blockIdx.x % tiles_across * kTile;
  const int thread = static_cast<int>(threadIdx.x), row = thread / 16, column = thread % 16;
  float sums[4][4] = {};
  for (int64_t depth = 0; depth < shape.k; depth += kDepth) {
    for (int i = thread; i < kTile * kDepth; i += kThreads) {
      // Neighbouring threads read neighbouring numbers.
      const int a_row = kTransposeA ? i % kTile : i / kDepth, a_depth = kTransposeA ? i / kTile : i % kDepth;
      const int64_t r = first_row + a_row, p = depth + a_depth;
      const bool a_inside = r < shape.m && p < shape.k;
      a_tile[a_depth][a_row] = a_inside ? to_float(a[kTransposeA ? p * shape.lda + r : r * shape.lda + p]) : 0.0f;
      const int b_column = kTransposeB ? i / kDepth : i % kTile, b_depth = kTransposeB ? i % kDepth : i / kTile;
      const int64_t s = first_column + b_column, q = depth + b_depth;
      const bool b_inside = s < shape.n && q < shape.k;
      b_tile[b_depth][b_column] = b_inside ? to_float(b[kTransposeB ? s * shape.ldb + q : q * shape.ldb + s]) : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int p = 0; p < kDepth; ++p) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          sums[i][j] = fmaf(a_tile[p][row + 16 * i], b_tile[p][column + 16 * j], sums[i][j]);
        }
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t r = first_row + row + 16 * i, s = first_column + column + 16 * j;
      if (r >= shape.m || s >= shape.n) continue;
      float sum = sums[i][j];
      if (bias != nullptr) sum += to_float(bias[s]);
      if (residual != nullptr) sum += to_float(residual[r * shape.ldc + s]);
      c[r * shape.ldc + s] = from_float<Out>(sum);
    }
  }
}

template <typename T, typename Out>
void multiply_without_library(Context& context, const GemmShape& shape, const T* a, const T* b, const Out* bias,
                              const Out* residual, Out* c) {
  const int64_t num_tiles = divide_up(shape.m, kTile) * divide_up(shape.n, kTile);
  const auto run = [&](auto transpose_a, auto transpose_b) {
    launch(context, multiply_tiles<T, Out, transpose_a.value, transpose_b.value>,
           dim3(static_cast<unsigned>(num_tiles)), kThreads, 0, shape, a, b, bias, residual, c);
  };
  const auto choose = [&](auto transpose_a) {
    shape.transpose_b ? run(transpose_a, std::true_type()) : run(transpose_a, std::false_type());
  };
  shape.transpose_a ? choose(std::true_type()) : choose(std::false_type());
}

template <typename T>
constexpr lt::DataType data_type() {
  return sizeof(T) == sizeof(float) ? lt::kFloat32 : lt::kBFloat16;
}

template <typename T, typename Out>
Product make_product(const GemmShape& shape, const T* a, const T* b, const Out* bias, const Out* residual, Out* c) {
  return {shape.m,   shape.n,   shape.k,   shape.transpose_a, shape.transpose_b,
          shape.lda, shape.ldb, shape.ldc, data_type<T>(),    data_type<Out>(),
          a,         b,         bias,      residual,          c};
}

/// False, and nothing done, where GELU is not to be had with the product.
template <typename T>
bool multiply_with_gelu(Context& context, const GemmShape& shape, const T* a, const T* b, const T* bias, T* c,
                        Gelu gelu, T* gelu_input) {
  if (sizeof(T) == sizeof(float)) return false;  // fp32 is as exact as the kernel
  if (context.is_dry || shape.m == 0 || shape.n == 0 || shape.k == 0) return false;
  Product product = make_product<T, T>(shape, a, b, bias, nullptr, c);
  product.gelu = gelu;
  product.gelu_input = gelu_input;
  return context.blas.multiply(context.stream, product);
}

}  // namespace

template <typename T, typename Out>
void gemm(Context& context, const GemmShape& shape, const T* a, const T* b, const Out* bias, const Out* residual,
          Out* c) {
  if (context.is_dry || shape.m == 0 || shape.n == 0) return;
  const Product product = make_product(shape, a, b, bias, residual, c);
  if (shape.k > 0 && context.blas.multiply(context.stream, product)) return;
  multiply_without_library(context, shape, a, b, bias, residual, c);
}

template <typename T>
void linear_forward(Context& context, const T* x, const T* weight, const T* bias, const T* residual, T* y,
                    int64_t num_rows, int64_t in_features, int64_t out_features) {
  const GemmShape shape{num_rows, out_features, in_features, false, true, in_features, in_features, out_features};
  gemm(context, shape, x, weight, bias, residual, y);
}

template <typename T>
void linear_backward(Context& context, const T* x, const T* weight, const T* d_y, T* d_x, float* d_weight,
                     int64_t num_rows, int64_t in_features, int64_t out_features, bool accumulate) {
  if (d_weight != nullptr) {
    const GemmShape shape{out_features, in_features, num_rows, true, false, out_features, in_features, in_features};
    gemm<T, float>(context, shape, d_y, x, nullptr, accumulate ? d_weight : nullptr, d_weight);
  }
  // Last, so that its end is still in the L2 cache for what reads it, from its end, see block_from_last().
  if (d_x != nullptr) {
    const GemmShape shape{num_rows, in_features, out_features, false, false, out_features, in_features, in_features};
    gemm<T, T>(context, shape, d_y, weight, nullptr, nullptr, d_x);
  }
}

template <typename T>
void linear_gelu_forward(Context& context, const T* x, const T* weight, const T* bias, T* gelu_input, T* y,
                         int64_t num_rows, int64_t in_features, int64_t out_features) {
  const GemmShape shape{num_rows, out_features, in_features, false, true, in_features, in_features, out_features};
  if (multiply_with_gelu(context, shape, x, weight, bias, y, Gelu::kForward, gelu_input)) return;
  T* sum = gelu_input == nullptr ? y : gelu_input;
  gemm<T, T>(context, shape, x, weight, bias, nullptr, sum);
  activation_forward<T>(context, Activation::kGeluTanh, sum, y, num_rows, out_features);
}

/// The library's kernel for a product with GELU' is slower than that for the product alone, which only a long sum over
/// out_features makes up for. On an H200, against product + kernel: of 768, 65,536 × 3,072 numbers: 579 µs against
/// 404 + 363; of 256, 16,384 × 1,024: 59 µs against 17 + 27; of 128, 25,600 × 512: 52 µs against 17 + 20.
constexpr int64_t kShortProduct = 256;

// The library would give the column sums, too, but rounded to bf16, and not added to what is there.
template <typename T>
void linear_gelu_backward(Context& context, const T* d_y, const T* weight, const T* gelu_input, T* d_gelu_input,
                          float* d_bias, int64_t num_rows, int64_t in_features, int64_t out_features,
                          PendingSums* pending) {
  const GemmShape shape{num_rows, in_features, out_features, false, false, out_features, in_features, in_features};
  const bool is_done =
      out_features > kShortProduct && multiply_with_gelu<T>(context, shape, d_y, weight, nullptr, d_gelu_input,
                                                            Gelu::kBackward, const_cast<T*>(gelu_input));
  // Which of the two ways it will be is not known when the memory is measured.
  if ((is_done || context.is_dry) && d_bias != nullptr) {
    add_row_sums<T>(context, d_gelu_input, in_features, num_rows, in_features, d_bias, pending);
  }
  if (is_done) return;
  gemm<T, T>(context, shape, d_y, weight, nullptr, nullptr, d_gelu_input);
  activation_backward<T>(context, Activation::kGeluTanh, gelu_input, d_gelu_input, d_gelu_input, d_bias, num_rows,
                         in_features, pending);
}

template void gemm(Context&, const GemmShape&, const float*, const float*, const float*, const float*, float*);
template void gemm(Context&, const GemmShape&, const bf16*, const bf16*, const bf16*, const bf16*, bf16*);
template void gemm(Context&, const GemmShape&, const bf16*, const bf16*, const float*, const float*, float*);

#define LIMBECK_INSTANTIATE(T)                                                                                        \
  template void linear_forward(Context&, const T*, const T*, const T*, const T*, T*, int64_t, int64_t, int64_t);      \
  template void linear_backward(Context&, const T*, const T*, const T*, T*, float*, int64_t, int64_t, int64_t, bool); \
  template void linear_gelu_forward(Context&, const T*, const T*, const T*, T*, T*, int64_t, int64_t, int64_t);       \
  template void linear_gelu_backward(Context&, const T*, const T*, const T*, T*, float*, int64_t, int64_t, int64_t,   \
                                     PendingSums*);
LIMBECK_INSTANTIATE(float)
LIMBECK_INSTANTIATE(bf16)
#undef LIMBECK_INSTANTIATE

}  // namespace limbeck::cuda
