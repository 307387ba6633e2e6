#include <algorithm>

#include "cuda/launch.h"
#include "cuda/pca_products.h"

namespace limbeck::cuda {
namespace {

constexpr int64_t kMaxGridY = 65535;

// Means.

constexpr int kMeanColumns = 32, kMeanGroups = 8;
constexpr int64_t kMeanBlocks = 2048;

/// One block: 32 columns of one chunk of rows.   partials [gridDim.y, num_columns] =
__global__ void __launch_bounds__(kMeanColumns* kMeanGroups)
    sum_columns(const float* x, int64_t num_rows, int64_t num_columns, int64_t chunk_rows, double* partials) {
  __shared__ double shared[kMeanGroups][kMeanColumns];
  const int lane = static_cast<int>(threadIdx.x) % kMeanColumns, group = static_cast<int>(threadIdx.x) / kMeanColumns;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kMeanColumns + lane;
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * chunk_rows;
  const int64_t end = begin + chunk_rows < num_rows ? begin + chunk_rows : num_rows;
  double sum = 0;
  if (column < num_columns) {
    for (int64_t first = begin + group; first < end; first += 8 * kMeanGroups) {
      float values[8];
#pragma unroll
      for (int u = 0; u < 8; ++u) {
        const int64_t row = first + u * kMeanGroups;
        values[u] = row < end ? x[row * num_columns + column] : 0.0f;
      }
#pragma unroll
      for (int u = 0; u < 8; ++u) sum += static_cast<double>(values[u]);
    }
  }
  shared[group][lane] = sum;
  __syncthreads();
  if (group == 0 && column < num_columns) {
    for (int g = 1; g < kMeanGroups; ++g) sum += shared[g][lane];
    partials[static_cast<int64_t>(blockIdx.y) * num_columns + column] = sum;
  }
}

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    finish_means(const double* partials, int64_t num_partials, int64_t num_rows, int64_t num_columns, float* mean) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (column >= num_columns) return;
  double sum = 0;
  for (int64_t i = 0; i < num_partials; ++i) sum += partials[i * num_columns + column];
  mean[column] = static_cast<float>(sum / static_cast<double>(num_rows));
}

__global__ void __launch_bounds__(kThreads)
    subtract_means(const float* mean, float* x, int64_t num_rows, int64_t num_columns) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (column >= num_columns) return;
  const float shift = mean[column];
  const int64_t stride = gridDim.y;
  for (int64_t first = blockIdx.y; first < num_rows; first += 4 * stride) {
    float values[4];
#pragma unroll
    for (int u = 0; u < 4; ++u) {
      const int64_t row = first + u * stride;
      if (row < num_rows) values[u] = x[row * num_columns + column];
    }
#pragma unroll
    for (int u = 0; u < 4; ++u) {
      const int64_t row = first + u * stride;
      if (row < num_rows) x[row * num_columns + column] = values[u] - shift;
    }
  }
}

template <typename From, typename To>
__global__ void __launch_bounds__(kThreads) convert_each(const From* from, To* to, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) to[i] = static_cast<To>(from[i]);
}

// Products in fp64. They are small beside those of x, and there is no library for them here.

constexpr int kTile = 64, kDepth = 16;

/// out [m, n] = Σ over p < k of a(i, p)·b(j, p); a(i, p) is a[i·a_row + p·a_depth], one of the strides 1, b likewise.
struct ProductShape {
  int64_t m, n, k;
  int64_t a_row, a_depth, b_row, b_depth;
  bool is_symmetric;   // a is b: only tiles that touch the lower triangle
  int64_t slab_depth;  // p of one slab of the sum, a multiple of kDepth
};

/// Rows first_row … first_row + 63, depths first_depth … first_depth + 15, zeros outside.
template <typename T>
__device__ __forceinline__ void load_tile(double (&tile)[kDepth][kTile + 1], const T* x, int64_t first_row,
                                          int64_t num_rows, int64_t first_depth, int64_t end_depth, int64_t row_stride,
                                          int64_t depth_stride) {
#pragma unroll
  for (int u = 0; u < kTile * kDepth / kThreads; ++u) {
    const int i = static_cast<int>(threadIdx.x) + u * kThreads;
    // Neighbouring threads read neighbouring numbers.
    const int row = depth_stride == 1 ? i / kDepth : i % kTile, depth = depth_stride == 1 ? i % kDepth : i / kTile;
    const int64_t r = first_row + row, p = first_depth + depth;
    const bool is_inside = r < num_rows && p < end_depth;
    tile[depth][row] = is_inside ? static_cast<double>(x[r * row_stride + p * depth_stride]) : 0.0;
  }
}

/// Block (j, i, s): one tile of slab s, 4×4 numbers for each thread.   out [gridDim.z, m, n] =
template <typename T>
__global__ void __launch_bounds__(kThreads) multiply_tiles(ProductShape shape, const T* a, const T* b, double* out) {
  if (shape.is_symmetric && blockIdx.x > blockIdx.y) return;
  __shared__ double a_tile[kDepth][kTile + 1], b_tile[kDepth][kTile + 1];
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * kTile;
  const int64_t first_column = static_cast<int64_t>(blockIdx.x) * kTile;
  const int64_t begin = static_cast<int64_t>(blockIdx.z) * shape.slab_depth;
  const int64_t end = begin + shape.slab_depth < shape.k ? begin + shape.slab_depth : shape.k;
  const int row = static_cast<int>(threadIdx.x) / 16, column = static_cast<int>(threadIdx.x) % 16;
  double sums[4][4] = {};
  for (int64_t depth = begin; depth < end; depth += kDepth) {
    load_tile(a_tile, a, first_row, shape.m, depth, end, shape.a_row, shape.a_depth);
    load_tile(b_tile, b, first_column, shape.n, depth, end, shape.b_row, shape.b_depth);
    __syncthreads();
#pragma unroll
    for (int p = 0; p < kDepth; ++p) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][j] += a_tile[p][row + 16 * i] * b_tile[p][column + 16 * j];
      }
    }
    __syncthreads();
  }
  double* slab = out + static_cast<int64_t>(blockIdx.z) * shape.m * shape.n;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t r = first_row + row + 16 * i, c = first_column + column + 16 * j;
      if (r < shape.m && c < shape.n) slab[r * shape.n + c] = sums[i][j];
    }
  }
}

/// out [m, n] = (or +=) the sum of slabs [num_slabs, m, n], in their order.
__global__ void __launch_bounds__(kThreads) add_slabs(const double* slabs, int64_t num_slabs, int64_t m, int64_t n,
                                                      bool is_symmetric, bool accumulate, double* out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= m * n || (is_symmetric && i % n > i / n)) return;
  double sum = accumulate ? out[i] : 0.0;
  for (int64_t s = 0; s < num_slabs; ++s) sum += slabs[s * m * n + i];
  out[i] = sum;
}

// Sums are cut so that about so many blocks are made, and none is shorter than kLeastDepth.
constexpr int64_t kProductBlocks = 512, kLeastDepth = 256;

template <typename T>
void multiply(Context& context, ProductShape shape, const T* a, const T* b, double* out, bool accumulate) {
  const int64_t down = divide_up(shape.m, kTile), across = divide_up(shape.n, kTile);
  const int64_t tiles = shape.is_symmetric ? down * (down + 1) / 2 : down * across;
  const int64_t wanted = std::clamp<int64_t>(kProductBlocks / tiles, 1, divide_up(shape.k, kLeastDepth));
  shape.slab_depth = divide_up(divide_up(shape.k, wanted), kDepth) * kDepth;
  const int64_t num_slabs = divide_up(shape.k, shape.slab_depth);
  const dim3 grid(static_cast<unsigned>(across), static_cast<unsigned>(down), static_cast<unsigned>(num_slabs));
  if (num_slabs == 1 && !accumulate) {
    launch(context, multiply_tiles<T>, grid, dim3(kThreads), 0, shape, a, b, out);
    return;
  }
  const DeviceArena::Scope scope(context.arena);
  double* slabs = context.arena.allocate<double>(num_slabs * shape.m * shape.n);
  launch(context, multiply_tiles<T>, grid, dim3(kThreads), 0, shape, a, b, slabs);
  launch(context, add_slabs, dim3(static_cast<unsigned>(divide_up(shape.m * shape.n, kThreads))), dim3(kThreads), 0,
         slabs, num_slabs, shape.m, shape.n, shape.is_symmetric, accumulate, out);
}

}  // namespace

void column_means(Context& context, const float* x, float* mean, int64_t num_rows, int64_t num_columns) {
  const int64_t tiles = divide_up(num_columns, kMeanColumns);
  const int64_t most_chunks = std::clamp<int64_t>(kMeanBlocks / tiles, 1, divide_up(num_rows, 8 * kMeanGroups));
  const int64_t chunk_rows = divide_up(num_rows, most_chunks);
  const int64_t chunks = divide_up(num_rows, chunk_rows);
  const DeviceArena::Scope scope(context.arena);
  double* partials = context.arena.allocate<double>(chunks * num_columns);
  launch(context, sum_columns, dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(chunks)),
         dim3(kMeanColumns * kMeanGroups), 0, x, num_rows, num_columns, chunk_rows, partials);
  launch(context, finish_means, dim3(static_cast<unsigned>(divide_up(num_columns, kThreads))), dim3(kThreads), 0,
         partials, chunks, num_rows, num_columns, mean);
}

void centre_rows(Context& context, const float* mean, float* x, int64_t num_rows, int64_t num_columns) {
  const dim3 grid(static_cast<unsigned>(divide_up(num_columns, kThreads)),
                  static_cast<unsigned>(std::min(divide_up(num_rows, 4), kMaxGridY)));
  launch(context, subtract_means, grid, dim3(kThreads), 0, mean, x, num_rows, num_columns);
}

template <typename From, typename To>
void convert_numbers(Context& context, const From* from, To* to, int64_t count) {
  launch(context, convert_each<From, To>, dim3(static_cast<unsigned>(divide_up(count, kThreads))), dim3(kThreads), 0,
         from, to, count);
}
template void convert_numbers<float, double>(Context&, const float*, double*, int64_t);
template void convert_numbers<double, float>(Context&, const double*, float*, int64_t);

void gram_of_rows(Context& context, const double* x, double* gram, int64_t num_rows, int64_t num_columns) {
  const ProductShape shape{num_rows, num_rows, num_columns, num_columns, 1, num_columns, 1, true, 0};
  multiply(context, shape, x, x, gram, false);
}

void gram_of_columns(Context& context, const float* x, double* gram, int64_t num_rows, int64_t num_columns,
                     bool accumulate) {
  const ProductShape shape{num_columns, num_columns, num_rows, 1, num_columns, 1, num_columns, true, 0};
  multiply(context, shape, x, x, gram, accumulate);
}

void transform_rows(Context& context, const double* transform, const double* x, double* y, int64_t m, int64_t num_rows,
                    int64_t num_columns) {
  const ProductShape shape{m, num_columns, num_rows, num_rows, 1, 1, num_columns, false, 0};
  multiply(context, shape, transform, x, y, false);
}

}  // namespace limbeck::cuda
