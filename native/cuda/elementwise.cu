#include <algorithm>

#include "cuda/elementwise.h"
#include "cuda/packs.h"
#include "cuda/random.h"
#include "cuda/reduce.h"
#include "cuda/rows.h"

namespace limbeck::cuda {
namespace {

constexpr float kGeluScale = 0.7978845608028654f;  // √(2/π)
constexpr float kGeluCubic = 0.044715f;
constexpr float kRootHalf = 0.7071067811865475f;
constexpr float kDensityScale = 0.3989422804014327f;  // 1/√(2π)

/// bf16 keeps 8 bits, so that the fast functions do; there are twice as many elements to a byte, too.
template <typename T>
__device__ __forceinline__ float sigmoid(float x) {
  if constexpr (sizeof(T) == 4) {
    return 1.0f / (1.0f + expf(-x));
  } else {
    return __fdividef(1.0f, 1.0f + __expf(-x));
  }
}

template <typename T>
struct GeluTanh {
  // 0.5·(1 + tanh(u)) = sigmoid(2u), which loses nothing for large negative u.
  __device__ __forceinline__ static float forward(float x) {
    return x * sigmoid<T>(2 * kGeluScale * (x + kGeluCubic * x * x * x));
  }
  __device__ __forceinline__ static float derivative(float x) {
    const float s = sigmoid<T>(2 * kGeluScale * (x + kGeluCubic * x * x * x));
    return s + x * s * (1.0f - s) * (2 * kGeluScale) * (1.0f + 3 * kGeluCubic * x * x);
  }
};

template <typename T>
struct GeluErf {
  __device__ __forceinline__ static float forward(float x) { return x * fmaf(0.5f, erff(x * kRootHalf), 0.5f); }
  __device__ __forceinline__ static float derivative(float x) {
    const float density = kDensityScale * (sizeof(T) == 4 ? expf(-0.5f * x * x) : __expf(-0.5f * x * x));
    return fmaf(0.5f, erff(x * kRootHalf), 0.5f) + x * density;
  }
};

template <typename T, typename Function>
struct GeluForward {
  const T* x;
  T* y;

  template <int kCount>
  struct Loaded {
    float x[kCount];
  };
  template <int kCount>
  __device__ Loaded<kCount> load(int64_t, int64_t i) const {
    Loaded<kCount> loaded;
    cuda::load(x + i, loaded.x);
    return loaded;
  }
  template <int kCount>
  __device__ void store(int64_t, int64_t i, Loaded<kCount>& loaded) const {
#pragma unroll
    for (int j = 0; j < kCount; ++j) loaded.x[j] = Function::forward(loaded.x[j]);
    cuda::store(y + i, loaded.x);
  }
};

/// With or without sums over rows of the result. Elements in one long row go by with width 0.
template <typename T, typename Function>
struct GeluBackward {
  static constexpr int kSets = 1;
  const T *x, *d_y;
  T* d_x;
  int64_t width;

  template <int kCount>
  struct Loaded {
    float x[kCount], d_y[kCount];
  };
  template <int kCount>
  __device__ Loaded<kCount> load(int64_t row, int64_t column) const {
    Loaded<kCount> loaded;
    cuda::load(x + row * width + column, loaded.x);
    cuda::load(d_y + row * width + column, loaded.d_y);
    return loaded;
  }
  template <int kCount>
  __device__ void store(int64_t row, int64_t column, Loaded<kCount>& loaded, float (&out)[kSets][kCount]) const {
#pragma unroll
    for (int j = 0; j < kCount; ++j) out[0][j] = loaded.d_y[j] * Function::derivative(loaded.x[j]);
    cuda::store(d_x + row * width + column, out[0]);
  }
  template <int kCount>
  __device__ void store(int64_t row, int64_t column, Loaded<kCount>& loaded) const {
    float out[kSets][kCount];
    store<kCount>(row, column, loaded, out);
  }
};

template <typename T>
struct SwigluForward {
  const T* x;
  T* y;
  int64_t width;

  template <int kCount>
  struct Loaded {
    float gate[kCount], up[kCount];
  };
  template <int kCount>
  __device__ Loaded<kCount> load(int64_t row, int64_t column) const {
    Loaded<kCount> loaded;
    const T* gate = x + 2 * row * width + column;
    cuda::load(gate, loaded.gate);
    cuda::load(gate + width, loaded.up);
    return loaded;
  }
  template <int kCount>
  __device__ void store(int64_t row, int64_t column, Loaded<kCount>& loaded) const {
    float out[kCount];
#pragma unroll
    for (int j = 0; j < kCount; ++j) out[j] = loaded.gate[j] * sigmoid<T>(loaded.gate[j]) * loaded.up[j];
    cuda::store(y + row * width + column, out);
  }
};

template <typename T>
struct SwigluBackward {
  static constexpr int kSets = 2;  // gate, up
  const T *x, *d_y;
  T* d_x;
  int64_t width;

  template <int kCount>
  struct Loaded {
    float gate[kCount], up[kCount], d_y[kCount];
  };
  template <int kCount>
  __device__ Loaded<kCount> load(int64_t row, int64_t column) const {
    Loaded<kCount> loaded;
    const T* gate = x + 2 * row * width + column;
    cuda::load(gate, loaded.gate);
    cuda::load(gate + width, loaded.up);
    cuda::load(d_y + row * width + column, loaded.d_y);
    return loaded;
  }
  template <int kCount>
  __device__ void store(int64_t row, int64_t column, Loaded<kCount>& loaded, float (&out)[kSets][kCount]) const {
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      const float gate = loaded.gate[j], gradient = loaded.d_y[j], s = sigmoid<T>(gate);
      out[0][j] = gradient * loaded.up[j] * s * (1.0f + gate * (1.0f - s));
      out[1][j] = gradient * gate * s;
    }
    T* d_gate = d_x + 2 * row * width + column;
    cuda::store(d_gate, out[0]);
    cuda::store(d_gate + width, out[1]);
  }
  template <int kCount>
  __device__ void store(int64_t row, int64_t column, Loaded<kCount>& loaded) const {
    float out[kSets][kCount];
    store<kCount>(row, column, loaded, out);
  }
};

template <typename T, typename Function>
void gelu_backward(Context& context, const T* x, const T* d_y, T* d_x, float* d_bias, int64_t num_rows, int64_t width,
                   PendingSums* pending) {
  const bool is_packed = is_aligned(x) && is_aligned(d_y) && is_aligned(d_x);
  const GeluBackward<T, Function> body{x, d_y, d_x, width};
  if (d_bias == nullptr) {
    for_each<kPack<T>>(context, body, num_rows * width, is_packed);
  } else {
    for_each_of_rows_summing<kPack<T>>(context, body, num_rows, width, is_packed, {{0, width, d_bias}}, pending);
  }
}

// ---- Sums over rows.

template <typename T>
struct RowSums {
  static constexpr int kSets = 1;
  const T* x;
  int64_t row_stride;
  int64_t gap_begin, gap;  // columns from gap_begin on lie so much further to the right

  template <int kCount>
  struct Loaded {
    float x[kCount];
  };
  template <int kCount>
  __device__ Loaded<kCount> load(int64_t row, int64_t column) const {
    Loaded<kCount> loaded;
    cuda::load(x + row * row_stride + column + (column < gap_begin ? 0 : gap), loaded.x);
    return loaded;
  }
  template <int kCount>
  __device__ void store(int64_t, int64_t, Loaded<kCount>& loaded, float (&out)[kSets][kCount]) const {
#pragma unroll
    for (int j = 0; j < kCount; ++j) out[0][j] = loaded.x[j];
  }
};

constexpr int kFinishColumns = 32;
constexpr int kFinishGroups = 16;

/// Few rows in one go: group g of a block adds up rows g, g + kFinishGroups, …, then the groups are added in order.
template <typename T>
__global__ void __launch_bounds__(kFinishColumns* kFinishGroups)
    add_few_rows(const __grid_constant__ FewRowsSums<T> sums) {
  __shared__ float shared[kFinishGroups][kFinishColumns];
  const int block = static_cast<int>(blockIdx.x);
  int index = 0;
  while (index + 1 < sums.count && block >= sums.first_blocks[index + 1]) ++index;
  const FewRowsSum<T>& few = sums.sums[index];
  const T* x = few.x;
  const int64_t row_stride = few.row_stride;
  const int num_rows = static_cast<int>(few.num_rows);
  const int lane = static_cast<int>(threadIdx.x) % kFinishColumns;
  const int group = static_cast<int>(threadIdx.x) / kFinishColumns;
  const int64_t column = static_cast<int64_t>(block - sums.first_blocks[index]) * kFinishColumns + lane;
  const bool is_inside = column < few.num_columns;
  float sum = 0;
  if (is_inside) {
#pragma unroll 8
    for (int row = group; row < num_rows; row += kFinishGroups) sum += to_float(x[row * row_stride + column]);
  }
  shared[group][lane] = sum;
  __syncthreads();
  if (group > 0 || !is_inside) return;
#pragma unroll
  for (int g = 1; g < kFinishGroups; ++g) sum += shared[g][lane];
  few.out[column] += sum;
}

template <typename T>
void add_sum(FewRowsSums<T>& sums, int& num_blocks, const FewRowsSum<T>& sum) {
  sums.first_blocks[sums.count] = num_blocks;
  sums.sums[sums.count++] = sum;
  num_blocks += static_cast<int>(divide_up(sum.num_columns, kFinishColumns));
}

template <typename T>
void launch_few_rows(Context& context, const FewRowsSums<T>& sums, int num_blocks) {
  launch(context, add_few_rows<T>, dim3(static_cast<unsigned>(num_blocks)), dim3(kFinishColumns * kFinishGroups), 0,
         sums);
}

// ---- Dropout, sums and copies.

template <typename T>
struct Dropout {
  T* x;
  DropoutRule rule;
  const uint64_t* seed;
  uint64_t stream;
  int64_t first;  // packs need a multiple of 4

  template <int kCount>
  struct Loaded {
    float x[kCount];
    uint64_t seed;
  };
  template <int kCount>
  __device__ Loaded<kCount> load(int64_t, int64_t i) const {
    Loaded<kCount> loaded;
    cuda::load(x + i, loaded.x);
    loaded.seed = *seed;
    return loaded;
  }
  template <int kCount>
  __device__ void store(int64_t, int64_t i, Loaded<kCount>& loaded) const {
    uint32_t words[4];
    const int64_t element = first + i;
    if constexpr (kCount == 1) {
      philox_block(loaded.seed, stream, static_cast<uint64_t>(element) / 4, words);
      const uint32_t j = static_cast<uint32_t>(element % 4);
      loaded.x[0] *= rule.factor(j == 0 ? words[0] : j == 1 ? words[1] : j == 2 ? words[2] : words[3]);
    } else {
#pragma unroll
      for (int block = 0; block < kCount; block += 4) {
        philox_block(loaded.seed, stream, static_cast<uint64_t>(element + block) / 4, words);
#pragma unroll
        for (int j = 0; j < 4; ++j) loaded.x[block + j] *= rule.factor(words[j]);
      }
    }
    cuda::store(x + i, loaded.x);
  }
};

/// y [row, y_first + column] (+)= x [row, x_first + column]; rows of x or of y may be named by a list.
template <typename From, typename To, bool kAdd>
struct CopyRows {
  const From* x;
  To* y;
  int64_t x_stride, y_stride;
  const int32_t *x_rows, *y_rows;  // or null

  template <int kCount>
  struct Loaded {
    float x[kCount], y[kAdd ? kCount : 1] = {};
    int64_t y_row;
  };
  template <int kCount>
  __device__ Loaded<kCount> load(int64_t row, int64_t column) const {
    Loaded<kCount> loaded;
    const int64_t x_row = x_rows == nullptr ? row : x_rows[row];
    loaded.y_row = y_rows == nullptr ? row : y_rows[row];
    cuda::load(x + x_row * x_stride + column, loaded.x);
    if constexpr (kAdd) cuda::load(y + loaded.y_row * y_stride + column, loaded.y);
    return loaded;
  }
  template <int kCount>
  __device__ void store(int64_t, int64_t column, Loaded<kCount>& loaded) const {
    if constexpr (kAdd) {
#pragma unroll
      for (int j = 0; j < kCount; ++j) loaded.x[j] += loaded.y[j];
    }
    cuda::store(y + loaded.y_row * y_stride + column, loaded.x);
  }
};

template <typename T, bool kAdd>
void copy_rows(Context& context, const CopyRows<T, T, kAdd>& body, int64_t num_rows, int64_t width) {
  const bool is_packed =
      is_aligned(body.x) && is_aligned(body.y) && body.x_stride % kPack<T> == 0 && body.y_stride % kPack<T> == 0;
  for_each_of_rows<kPack<T>>(context, body, num_rows, width, is_packed);
}

}  // namespace

void PendingSums::add(Context& context, const FewRowsSum<float>& sum) {
  if (sum.num_rows == 0 || sum.num_columns == 0) return;
  if (sums_.count == sums_.kMost) finish(context);
  add_sum(sums_, num_blocks_, sum);
}

void PendingSums::finish(Context& context) {
  if (sums_.count > 0) launch_few_rows(context, sums_, num_blocks_);
  sums_.count = num_blocks_ = 0;
}

template <typename T>
void activation_forward(Context& context, Activation activation, const T* x, T* y, int64_t num_rows,
                        int64_t intermediate_size) {
  const bool is_packed = is_aligned(x) && is_aligned(y);
  const int64_t count = num_rows * intermediate_size;
  switch (activation) {
    case Activation::kGeluTanh:
      for_each<kPack<T>>(context, GeluForward<T, GeluTanh<T>>{x, y}, count, is_packed);
      break;
    case Activation::kGeluErf:
      for_each<kPack<T>>(context, GeluForward<T, GeluErf<T>>{x, y}, count, is_packed);
      break;
    case Activation::kSwiglu:
      for_each_of_rows<kPack<T>>(context, SwigluForward<T>{x, y, intermediate_size}, num_rows, intermediate_size,
                                 is_packed);
      break;
  }
}

template <typename T>
void activation_backward(Context& context, Activation activation, const T* x, const T* d_y, T* d_x, float* d_bias,
                         int64_t num_rows, int64_t intermediate_size, PendingSums* pending) {
  const int64_t width = intermediate_size;
  switch (activation) {
    case Activation::kGeluTanh:
      gelu_backward<T, GeluTanh<T>>(context, x, d_y, d_x, d_bias, num_rows, width, pending);
      break;
    case Activation::kGeluErf:
      gelu_backward<T, GeluErf<T>>(context, x, d_y, d_x, d_bias, num_rows, width, pending);
      break;
    case Activation::kSwiglu: {
      const bool is_packed = is_aligned(x) && is_aligned(d_y) && is_aligned(d_x);
      const SwigluBackward<T> body{x, d_y, d_x, width};
      if (d_bias == nullptr) {
        for_each_of_rows<kPack<T>>(context, body, num_rows, width, is_packed);
      } else {
        for_each_of_rows_summing<kPack<T>>(context, body, num_rows, width, is_packed, {{0, 2 * width, d_bias}},
                                           pending);
      }
      break;
    }
  }
}

template <typename T>
void add_row_sums(Context& context, const T* x, int64_t row_stride, int64_t num_rows, int64_t num_columns, float* out,
                  PendingSums* pending, const ColumnGap& gap) {
  const int64_t gap_size = gap.end - gap.begin, before = gap_size > 0 ? gap.begin : num_columns;
  const int64_t after = num_columns - before - gap_size;
  constexpr int64_t kFewRows = 64;
  if (num_rows <= kFewRows) {
    FewRowsSums<T> sums;
    int num_blocks = 0;
    add_sum(sums, num_blocks, {x, row_stride, num_rows, before, out});
    if (after > 0) add_sum(sums, num_blocks, {x + gap.end, row_stride, num_rows, after, out + gap.end});
    if (num_rows > 0) launch_few_rows(context, sums, num_blocks);
    return;
  }
  const bool is_packed =
      is_aligned(x) && row_stride % kPack<T> == 0 && gap.begin % kPack<T> == 0 && gap.end % kPack<T> == 0;
  const RowSums<T> body{x, row_stride, before, gap_size};
  for_each_of_rows_summing<kPack<T>>(context, body, num_rows, before + after, is_packed,
                                     {{0, before, out}, {before, after, out + gap.end}}, pending);
}

template <typename T>
void dropout(Context& context, T* x, int64_t count, float probability, const uint64_t* seed, uint64_t stream,
             int64_t first) {
  if (probability <= 0) return;
  for_each<kPack<T>>(context, Dropout<T>{x, DropoutRule(probability), seed, stream, first}, count,
                     is_aligned(x) && first % 4 == 0);
}

template <typename T>
void add_in_place(Context& context, const T* x, T* y, int64_t count) {
  const CopyRows<T, T, true> body{x, y, 0, 0, nullptr, nullptr};
  for_each<kPack<T>>(context, body, count, is_aligned(x) && is_aligned(y));
}

template <typename From, typename To>
void convert(Context& context, const From* x, To* y, int64_t count) {
  const CopyRows<From, To, false> body{x, y, 0, 0, nullptr, nullptr};
  // Of neighbouring threads, the wider accesses touch.
  for_each<std::min(kPack<From>, kPack<To>)>(context, body, count, is_aligned(x) && is_aligned(y));
}

template <typename T>
void gather_rows(Context& context, const T* x, const int32_t* rows, T* y, int64_t num_rows, int64_t width) {
  copy_rows<T, false>(context, {x, y, width, width, rows, nullptr}, num_rows, width);
}

template <typename T>
void scatter_rows_add(Context& context, const T* x, const int32_t* rows, T* y, int64_t num_rows, int64_t width) {
  copy_rows<T, true>(context, {x, y, width, width, nullptr, rows}, num_rows, width);
}

template <typename T>
void copy_columns(Context& context, const T* x, int64_t x_stride, int64_t first, T* y, int64_t num_rows,
                  int64_t width) {
  copy_rows<T, false>(context, {x + first, y, x_stride, width, nullptr, nullptr}, num_rows, width);
}

template <typename T>
void add_columns(Context& context, const T* x, T* y, int64_t y_stride, int64_t first, int64_t num_rows, int64_t width) {
  copy_rows<T, true>(context, {x, y + first, width, y_stride, nullptr, nullptr}, num_rows, width);
}

#define LIMBECK_INSTANTIATE(T)                                                                                       \
  template void activation_forward(Context&, Activation, const T*, T*, int64_t, int64_t);                            \
  template void activation_backward(Context&, Activation, const T*, const T*, T*, float*, int64_t, int64_t,          \
                                    PendingSums*);                                                                   \
  template void add_row_sums(Context&, const T*, int64_t, int64_t, int64_t, float*, PendingSums*, const ColumnGap&); \
  template void dropout(Context&, T*, int64_t, float, const uint64_t*, uint64_t, int64_t);                           \
  template void add_in_place(Context&, const T*, T*, int64_t);                                                       \
  template void gather_rows(Context&, const T*, const int32_t*, T*, int64_t, int64_t);                               \
  template void scatter_rows_add(Context&, const T*, const int32_t*, T*, int64_t, int64_t);                          \
  template void copy_columns(Context&, const T*, int64_t, int64_t, T*, int64_t, int64_t);                            \
  template void add_columns(Context&, const T*, T*, int64_t, int64_t, int64_t, int64_t);
LIMBECK_INSTANTIATE(float)
LIMBECK_INSTANTIATE(bf16)
#undef LIMBECK_INSTANTIATE

template void convert(Context&, const float*, float*, int64_t);
template void convert(Context&, const float*, bf16*, int64_t);
template void convert(Context&, const bf16*, float*, int64_t);
template void convert(Context&, const bf16*, bf16*, int64_t);

}  // namespace limbeck::cuda
