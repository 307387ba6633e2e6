#include <algorithm>

#include "cuda/elementwise.h"
#include "cuda/norm.h"
#include "cuda/packs.h"
#include "cuda/reduce.h"
#include "cuda/rows.h"

namespace limbeck::cuda {
namespace {

// Rows are normalised by groups of kThreads threads, each of which holds kPacks packs of 16 bytes of the row in
// registers, so that memory is read once. Rows whose width or address does not suit, and wider ones, take plain kernels
// that read a row several times.

constexpr int kBlockThreads = 256;

/// Matrices of rows, or of heads within rows: row r of [num_rows·num_heads, width].
struct RowsOfHeads {
  int64_t count;  // num_rows · num_heads
  uint32_t num_heads;

  __device__ __forceinline__ int64_t offset(int64_t row, int64_t stride, int64_t width) const {
    if (num_heads == 1) return row * stride;
    const int64_t outer = row / num_heads;
    return outer * stride + (row - outer * num_heads) * width;
  }
};

template <int threads, int packs>
struct RowShape {
  static constexpr int kThreads = threads;
  static constexpr int kPacks = packs;
};

/// Calls body(RowShape) with the smallest shape that holds rows of `width`; false where there is none: the sums of the
/// backward pass leave no room for more.
template <typename T, typename Body>
bool with_row_shape(int64_t width, const Body& body) {
  const int64_t packs = width / kPack<T>;
  if (packs <= 8) {
    body(RowShape<8, 1>());
  } else if (packs <= 16) {
    body(RowShape<16, 1>());
  } else if (packs <= 32) {
    body(RowShape<32, 1>());
  } else if (packs <= 64) {
    body(RowShape<32, 2>());
  } else if (packs <= 96) {
    body(RowShape<32, 3>());
  } else if (packs <= 128) {
    body(RowShape<128, 1>());
  } else if (packs <= 256) {
    body(RowShape<128, 2>());
  } else if (packs <= 512) {
    body(RowShape<256, 2>());
  } else if (packs <= 1024) {
    body(RowShape<256, 4>());
  } else {
    return false;
  }
  return true;
}

/// Sum over the group of this thread, in each of its threads. Memory of a wider group's sum is free again after the
/// next but one barrier.
template <int kThreads>
__device__ __forceinline__ float group_sum(float x, float* shared) {
  if constexpr (kThreads <= 32) {
    return lanes_sum<kThreads>(x);
  } else {
    constexpr int kWarps = kThreads / 32;
    x = lanes_sum<32>(x);
    const int warp = static_cast<int>(threadIdx.x) / 32;
    if (threadIdx.x % 32 == 0) shared[warp] = x;
    __syncthreads();
    const int first = warp / kWarps * kWarps;
    float sum = shared[first];
#pragma unroll
    for (int i = 1; i < kWarps; ++i) sum += shared[first + i];
    return sum;
  }
}

/// Rows of a group in the forward pass: gains are loaded once for them, and more loads are in flight. Wider groups have
/// barriers enough with one.
template <int kThreads>
constexpr int kForwardRows = kThreads <= 32 ? 2 : 1;

/// Layer norm where kCentred, else RMS norm (then mean and beta are null).
template <typename T, bool kCentred, int kThreads, int kPacks>
__global__ void __launch_bounds__(kBlockThreads)
    norm_forward(RowsOfHeads rows, const T* x, int64_t x_stride, const float* gamma, const float* beta, T* y,
                 int64_t y_stride, float* mean, float* rstd, int width, float eps) {
  __shared__ float shared[2][kBlockThreads / 32];
  constexpr int kGroups = kBlockThreads / kThreads, kCount = kPack<T>, kRows = kForwardRows<kThreads>;
  const int lane = static_cast<int>(threadIdx.x) % kThreads;
  const int64_t first_row = static_cast<int64_t>(block_from_last()) * (kGroups * kRows) + threadIdx.x / kThreads;

  uint4 words[kRows][kPacks];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = first_row + r * kGroups;
    const bool is_row = row < rows.count;
    const T* x_row = x + (is_row ? rows.offset(row, x_stride, width) : 0);
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      const int column = (lane + k * kThreads) * kCount;
      words[r][k] = is_row && column < width ? load_16(x_row + column) : make_uint4(0, 0, 0, 0);
    }
  }
  const float scale = 1.0f / static_cast<float>(width);
  float centres[kRows], factors[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    centres[r] = 0;
    if constexpr (kCentred) {
      float sum = 0;
#pragma unroll
      for (int k = 0; k < kPacks; ++k) {
        float values[kCount];
        unpack<T>(words[r][k], values);
#pragma unroll
        for (int i = 0; i < kCount; ++i) sum += values[i];
      }
      centres[r] = group_sum<kThreads>(sum, shared[0]) * scale;
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    float squares = 0;
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      if ((lane + k * kThreads) * kCount >= width) continue;
      float values[kCount];
      unpack<T>(words[r][k], values);
#pragma unroll
      for (int i = 0; i < kCount; ++i) squares = fmaf(values[i] - centres[r], values[i] - centres[r], squares);
    }
    factors[r] = 1.0f / sqrtf(group_sum<kThreads>(squares, shared[1]) * scale + eps);
  }
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    const int column = (lane + k * kThreads) * kCount;
    if (column >= width) break;
    float gains[kCount], shifts[kCentred ? kCount : 1];
    load(gamma + column, gains);
    if constexpr (kCentred) load(beta + column, shifts);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t row = first_row + r * kGroups;
      if (row >= rows.count) break;
      float out[kCount];
      unpack<T>(words[r][k], out);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const float normed = (out[i] - centres[r]) * factors[r];
        if constexpr (kCentred) {
          out[i] = fmaf(normed, gains[i], shifts[i]);
        } else {
          out[i] = normed * gains[i];
        }
      }
      store(y + rows.offset(row, y_stride, width) + column, out);
    }
  }
  if (lane != 0) return;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = first_row + r * kGroups;
    if (row >= rows.count) break;
    if (mean != nullptr) mean[row] = centres[r];
    if (rstd != nullptr) rstd[row] = factors[r];
  }
}

/// The same for any width, one block a row.
template <typename T, bool kCentred>
__global__ void __launch_bounds__(kBlockThreads)
    norm_forward_plain(RowsOfHeads rows, const T* x, int64_t x_stride, const float* gamma, const float* beta, T* y,
                       int64_t y_stride, float* mean, float* rstd, int width, float eps) {
  __shared__ float shared[2][kBlockThreads / 32];
  const int64_t row = block_from_last();
  x += rows.offset(row, x_stride, width);
  y += rows.offset(row, y_stride, width);
  const float scale = 1.0f / static_cast<float>(width);
  const int first = static_cast<int>(threadIdx.x);
  float centre = 0;
  if constexpr (kCentred) {
    float sum = 0;
    for (int j = first; j < width; j += kBlockThreads) sum += to_float(x[j]);
    centre = block_sum<kBlockThreads>(sum, shared[0]) * scale;
  }
  float squares = 0;
  for (int j = first; j < width; j += kBlockThreads) {
    const float difference = to_float(x[j]) - centre;
    squares = fmaf(difference, difference, squares);
  }
  const float factor = 1.0f / sqrtf(block_sum<kBlockThreads>(squares, shared[1]) * scale + eps);
  for (int j = first; j < width; j += kBlockThreads) {
    const float normed = (to_float(x[j]) - centre) * factor;
    y[j] = from_float<T>(kCentred ? fmaf(normed, gamma[j], beta[j]) : normed * gamma[j]);
  }
  if (threadIdx.x == 0) {
    if (mean != nullptr) mean[row] = centre;
    if (rstd != nullptr) rstd[row] = factor;
  }
}

template <typename T, bool kCentred>
void forward(Context& context, const RowsOfHeads& rows, const T* x, int64_t x_stride, const float* gamma,
             const float* beta, T* y, int64_t y_stride, float* mean, float* rstd, int64_t width, float eps) {
  if (rows.count == 0 || width == 0) return;
  const bool is_packed = is_aligned(x) && is_aligned(y) && is_aligned(gamma) && is_aligned(beta) &&
                         width % kPack<T> == 0 && x_stride % kPack<T> == 0 && y_stride % kPack<T> == 0;
  const auto launch_packed = [&](auto shape) {
    constexpr int kThreads = decltype(shape)::kThreads, kGroups = kBlockThreads / kThreads;
    launch(context, norm_forward<T, kCentred, kThreads, decltype(shape)::kPacks>,
           dim3(static_cast<unsigned>(divide_up(rows.count, kGroups * kForwardRows<kThreads>))), dim3(kBlockThreads), 0,
           rows, x, x_stride, gamma, beta, y, y_stride, mean, rstd, static_cast<int>(width), eps);
  };
  if (is_packed && with_row_shape<T>(width, launch_packed)) return;
  launch(context, norm_forward_plain<T, kCentred>, dim3(static_cast<unsigned>(rows.count)), dim3(kBlockThreads), 0,
         rows, x, x_stride, gamma, beta, y, y_stride, mean, rstd, static_cast<int>(width), eps);
}

/// d_x = (d_y·gamma − mean(d_y·gamma) − normed·mean(d_y·gamma·normed))·rstd, normed = (x − mean)·rstd; without the
/// first mean for RMS norm. Each block takes every gridDim.x-th group of rows, from the last on as block_from_last()
/// says, and adds up the gradients of the gains.
///   partials [gridDim.x, sets, width] = d_gamma, d_beta (where kCentred) and, with sums_d_x, Σ d_x of the block's rows
template <typename T, bool kCentred, int kThreads, int kPacks>
__global__ void __launch_bounds__(kBlockThreads, 2)
    norm_backward(RowsOfHeads rows, const T* x, int64_t x_stride, const float* gamma, const float* mean,
                  const float* rstd, const T* d_y, T* d_x, int64_t d_stride, float* partials, int width,
                  bool accumulate, bool sums_d_x) {
  constexpr int kCount = kPack<T>, kGroups = kBlockThreads / kThreads, kGainSets = kCentred ? 2 : 1;
  // Where registers allow, what d_x holds is on its way together with the rest.
  constexpr bool kEarly = kPacks * kCount <= 24;
  __shared__ float shared[2][kBlockThreads / 32];  // in turns: a barrier lies between two uses of either
  __shared__ float sums[kBlockThreads * kCount];
  // Sums of d_x, each thread's own: there are no registers left for them.
  constexpr int kQuads = kPacks * kCount / 4;
  __shared__ float4 d_x_sums[kQuads * kBlockThreads];
  const int lane = static_cast<int>(threadIdx.x) % kThreads, group = static_cast<int>(threadIdx.x) / kThreads;
  const float scale = 1.0f / static_cast<float>(width);
  float gamma_sums[kPacks][kCount] = {}, beta_sums[kPacks][kCount] = {};
#pragma unroll
  for (int q = 0; q < kQuads; ++q) d_x_sums[q * kBlockThreads + threadIdx.x] = make_float4(0, 0, 0, 0);
  const int64_t num_groups = (rows.count + kGroups - 1) / kGroups;
  for (int64_t g = num_groups - 1 - blockIdx.x; g >= 0; g -= gridDim.x) {
    const int64_t row = g * kGroups + group;
    const bool is_row = row < rows.count;
    const int64_t x_offset = is_row ? rows.offset(row, x_stride, width) : 0;
    const int64_t d_offset = is_row ? rows.offset(row, d_stride, width) : 0;
    uint4 x_words[kPacks], d_y_words[kPacks], d_x_words[kPacks];
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      const int column = (lane + k * kThreads) * kCount;
      const bool is_inside = is_row && column < width;
      x_words[k] = d_y_words[k] = d_x_words[k] = make_uint4(0, 0, 0, 0);
      if (is_inside) {
        x_words[k] = load_16(x + x_offset + column);
        d_y_words[k] = load_16(d_y + d_offset + column);
        if (kEarly && accumulate) d_x_words[k] = load_16(d_x + d_offset + column);
      }
    }
    const float centre = kCentred && is_row ? mean[row] : 0.0f, factor = is_row ? rstd[row] : 0.0f;
    float gradients = 0, products = 0;
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      const int column = (lane + k * kThreads) * kCount;
      if (column >= width) break;
      float values[kCount], outputs[kCount], gains[kCount];
      unpack<T>(x_words[k], values);
      unpack<T>(d_y_words[k], outputs);
      load(gamma + column, gains);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const float normed = (values[i] - centre) * factor, weighted = outputs[i] * gains[i];
        gradients += weighted;
        products = fmaf(weighted, normed, products);
        gamma_sums[k][i] = fmaf(outputs[i], normed, gamma_sums[k][i]);
        if constexpr (kCentred) beta_sums[k][i] += outputs[i];
      }
    }
    if constexpr (kCentred) gradients = group_sum<kThreads>(gradients, shared[0]) * scale;
    products = group_sum<kThreads>(products, shared[1]) * scale;
    if constexpr (!kCentred && kThreads > 32) __syncthreads();
    if (!is_row) continue;
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      const int column = (lane + k * kThreads) * kCount;
      if (column >= width) break;
      float values[kCount], outputs[kCount], gains[kCount], out[kCount];
      if (!kEarly && accumulate) d_x_words[k] = load_16(d_x + d_offset + column);
      unpack<T>(x_words[k], values);
      unpack<T>(d_y_words[k], outputs);
      unpack<T>(d_x_words[k], out);
      load(gamma + column, gains);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const float normed = (values[i] - centre) * factor;
        float inner = fmaf(outputs[i], gains[i], -normed * products);
        if constexpr (kCentred) inner -= gradients;
        out[i] = fmaf(inner, factor, out[i]);
      }
      store(d_x + d_offset + column, out);
      if (sums_d_x) {
#pragma unroll
        for (int q = 0; q < kCount / 4; ++q) {
          float4& sum = d_x_sums[(k * (kCount / 4) + q) * kBlockThreads + threadIdx.x];
          sum = make_float4(sum.x + out[4 * q], sum.y + out[4 * q + 1], sum.z + out[4 * q + 2], sum.w + out[4 * q + 3]);
        }
      }
    }
  }
  // The groups of the block, in order.
  const int num_sets = kGainSets + (sums_d_x ? 1 : 0);
#pragma unroll
  for (int set = 0; set <= kGainSets; ++set) {
    if (set == num_sets) break;
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const float4& quad = d_x_sums[(k * kCount + i) / 4 * kBlockThreads + threadIdx.x];
        const float output = i % 4 == 0 ? quad.x : i % 4 == 1 ? quad.y : i % 4 == 2 ? quad.z : quad.w;
        sums[i * kBlockThreads + threadIdx.x] = set == kGainSets ? output
                                                : set == 0       ? gamma_sums[k][i]
                                                                 : beta_sums[k][i];
      }
      __syncthreads();
      for (int index = static_cast<int>(threadIdx.x); index < kThreads * kCount; index += kBlockThreads) {
        const int i = index / kThreads, column_lane = index % kThreads;
        const int column = (column_lane + k * kThreads) * kCount + i;
        float sum = 0;
#pragma unroll
        for (int g = 0; g < kGroups; ++g) sum += sums[i * kBlockThreads + g * kThreads + column_lane];
        if (column < width) partials[(static_cast<int64_t>(blockIdx.x) * num_sets + set) * width + column] = sum;
      }
    }
  }
}

/// d_x alone, for any width, one block a row.
template <typename T, bool kCentred>
__global__ void __launch_bounds__(kBlockThreads)
    norm_backward_plain(RowsOfHeads rows, const T* x, int64_t x_stride, const float* gamma, const float* mean,
                        const float* rstd, const T* d_y, T* d_x, int64_t d_stride, int width, bool accumulate) {
  __shared__ float shared[2][kBlockThreads / 32];
  const int64_t row = block_from_last();
  x += rows.offset(row, x_stride, width);
  d_y += rows.offset(row, d_stride, width);
  d_x += rows.offset(row, d_stride, width);
  const float centre = kCentred ? mean[row] : 0.0f, factor = rstd[row];
  const float scale = 1.0f / static_cast<float>(width);
  float gradients = 0, products = 0;
  for (int j = static_cast<int>(threadIdx.x); j < width; j += kBlockThreads) {
    const float weighted = to_float(d_y[j]) * gamma[j];
    gradients += weighted;
    products = fmaf(weighted, (to_float(x[j]) - centre) * factor, products);
  }
  gradients = kCentred ? block_sum<kBlockThreads>(gradients, shared[0]) * scale : 0.0f;
  products = block_sum<kBlockThreads>(products, shared[1]) * scale;
  for (int j = static_cast<int>(threadIdx.x); j < width; j += kBlockThreads) {
    const float normed = (to_float(x[j]) - centre) * factor;
    const float before = accumulate ? to_float(d_x[j]) : 0.0f;
    d_x[j] = from_float<T>(fmaf(fmaf(to_float(d_y[j]), gamma[j], -normed * products) - gradients, factor, before));
  }
}

/// The gradients of the gains, for sums over rows.
template <typename T, bool kCentred>
struct GainGradients {
  static constexpr int kSets = kCentred ? 2 : 1;
  RowsOfHeads rows;
  const T *x, *d_y;
  int64_t x_stride, d_stride;
  int64_t width;
  const float *mean, *rstd;

  template <int kCount>
  struct Loaded {
    float x[kCount], d_y[kCount];
  };
  template <int kCount>
  __device__ Loaded<kCount> load(int64_t row, int64_t column) const {
    Loaded<kCount> loaded;
    cuda::load(x + rows.offset(row, x_stride, width) + column, loaded.x);
    cuda::load(d_y + rows.offset(row, d_stride, width) + column, loaded.d_y);
    return loaded;
  }
  template <int kCount>
  __device__ void store(int64_t row, int64_t, Loaded<kCount>& loaded, float (&out)[kSets][kCount]) const {
    const float centre = kCentred ? mean[row] : 0.0f, factor = rstd[row];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      out[0][i] = loaded.d_y[i] * ((loaded.x[i] - centre) * factor);
      if constexpr (kCentred) out[1][i] = loaded.d_y[i];
    }
  }
};

template <typename T, bool kCentred>
void backward(Context& context, const RowsOfHeads& rows, const T* x, int64_t x_stride, const float* gamma,
              const float* mean, const float* rstd, const T* d_y, T* d_x, int64_t d_stride, float* d_gamma,
              float* d_beta, int64_t width, bool accumulate, float* d_x_sums, PendingSums* pending) {
  if (rows.count == 0 || width == 0) return;
  constexpr int kGainSets = kCentred ? 2 : 1;
  const bool is_packed = is_aligned(x) && is_aligned(d_y) && is_aligned(d_x) && is_aligned(gamma) &&
                         width % kPack<T> == 0 && x_stride % kPack<T> == 0 && d_stride % kPack<T> == 0;
  const auto launch_packed = [&](auto shape) {
    constexpr int kThreads = decltype(shape)::kThreads, kPacks = decltype(shape)::kPacks;
    constexpr int64_t kGroups = kBlockThreads / kThreads;
    // Blocks that keep few sums fit a multiprocessor in greater number.
    constexpr int64_t kMostBlocks = kPacks * kPack<T> <= 8 ? 1024 : kPacks * kPack<T> <= 16 ? 512 : 256;
    const int64_t blocks = std::min(kMostBlocks, divide_up(rows.count, 2 * kGroups));
    const int64_t row_size = (kGainSets + (d_x_sums != nullptr ? 1 : 0)) * width;
    OpSums sums(context, pending);
    float* partials = context.arena.allocate<float>(blocks * row_size);
    launch(context, norm_backward<T, kCentred, kThreads, kPacks>, dim3(static_cast<unsigned>(blocks)),
           dim3(kBlockThreads), 0, rows, x, x_stride, gamma, mean, rstd, d_y, d_x, d_stride, partials,
           static_cast<int>(width), accumulate, d_x_sums != nullptr);
    sums.add(partials, row_size, blocks, width, d_gamma);
    if constexpr (kCentred) sums.add(partials + width, row_size, blocks, width, d_beta);
    sums.add(partials + kGainSets * width, row_size, blocks, width, d_x_sums);
    sums.finish();
  };
  if (is_packed && with_row_shape<T>(width, launch_packed)) return;
  // The sums come first: d_x may take the place of d_y.
  const GainGradients<T, kCentred> gains{rows, x, d_y, x_stride, d_stride, width, mean, rstd};
  for_each_of_rows_summing<kPack<T>>(context, gains, rows.count, width, is_packed,
                                     {{0, width, d_gamma}, {width, kCentred ? width : 0, d_beta}}, pending);
  launch(context, norm_backward_plain<T, kCentred>, dim3(static_cast<unsigned>(rows.count)), dim3(kBlockThreads), 0,
         rows, x, x_stride, gamma, mean, rstd, d_y, d_x, d_stride, static_cast<int>(width), accumulate);
  if (d_x_sums != nullptr) add_row_sums<T>(context, d_x, d_stride, rows.count, width, d_x_sums, pending);
}

}  // namespace

template <typename T>
void layer_norm_forward(Context& context, const T* x, const float* gamma, const float* beta, T* y, float* mean,
                        float* rstd, int64_t num_rows, int64_t hidden_size, float eps) {
  forward<T, true>(context, {num_rows, 1}, x, hidden_size, gamma, beta, y, hidden_size, mean, rstd, hidden_size, eps);
}

template <typename T>
void layer_norm_backward(Context& context, const T* x, const float* gamma, const float* mean, const float* rstd,
                         const T* d_y, T* d_x, float* d_gamma, float* d_beta, int64_t num_rows, int64_t hidden_size,
                         bool accumulate, float* d_x_sums, PendingSums* pending) {
  backward<T, true>(context, {num_rows, 1}, x, hidden_size, gamma, mean, rstd, d_y, d_x, hidden_size, d_gamma, d_beta,
                    hidden_size, accumulate, d_x_sums, pending);
}

template <typename T>
void rms_norm_forward(Context& context, const T* x, const float* gamma, T* y, float* rstd, int64_t num_rows,
                      int64_t hidden_size, float eps) {
  forward<T, false>(context, {num_rows, 1}, x, hidden_size, gamma, nullptr, y, hidden_size, nullptr, rstd, hidden_size,
                    eps);
}

template <typename T>
void rms_norm_backward(Context& context, const T* x, const float* gamma, const float* rstd, const T* d_y, T* d_x,
                       float* d_gamma, int64_t num_rows, int64_t hidden_size, bool accumulate, float* d_x_sums,
                       PendingSums* pending) {
  backward<T, false>(context, {num_rows, 1}, x, hidden_size, gamma, nullptr, rstd, d_y, d_x, hidden_size, d_gamma,
                     nullptr, hidden_size, accumulate, d_x_sums, pending);
}

template <typename T>
void rms_norm_heads_forward(Context& context, const T* x, int64_t x_stride, const float* gamma, T* y, int64_t y_stride,
                            float* rstd, int64_t num_rows, int64_t num_heads, int64_t head_dim, float eps) {
  forward<T, false>(context, {num_rows * num_heads, static_cast<uint32_t>(num_heads)}, x, x_stride, gamma, nullptr, y,
                    y_stride, nullptr, rstd, head_dim, eps);
}

template <typename T>
void rms_norm_heads_backward(Context& context, const T* x, int64_t x_stride, const float* gamma, const float* rstd,
                             T* d_y, int64_t d_stride, float* d_gamma, int64_t num_rows, int64_t num_heads,
                             int64_t head_dim, PendingSums* pending) {
  backward<T, false>(context, {num_rows * num_heads, static_cast<uint32_t>(num_heads)}, x, x_stride, gamma, nullptr,
                     rstd, d_y, d_y, d_stride, d_gamma, nullptr, head_dim, false, nullptr, pending);
}

#define LIMBECK_INSTANTIATE(T)                                                                                        \
  template void layer_norm_forward(Context&, const T*, const float*, const float*, T*, float*, float*, int64_t,       \
                                   int64_t, float);                                                                   \
  template void layer_norm_backward(Context&, const T*, const float*, const float*, const float*, const T*, T*,       \
                                    float*, float*, int64_t, int64_t, bool, float*, PendingSums*);                    \
  template void rms_norm_forward(Context&, const T*, const float*, T*, float*, int64_t, int64_t, float);              \
  template void rms_norm_backward(Context&, const T*, const float*, const float*, const T*, T*, float*, int64_t,      \
                                  int64_t, bool, float*, PendingSums*);                                               \
  template void rms_norm_heads_forward(Context&, const T*, int64_t, const float*, T*, int64_t, float*, int64_t,       \
                                       int64_t, int64_t, float);                                                      \
  template void rms_norm_heads_backward(Context&, const T*, int64_t, const float*, const float*, T*, int64_t, float*, \
                                        int64_t, int64_t, int64_t, PendingSums*);
LIMBECK_INSTANTIATE(float)
LIMBECK_INSTANTIATE(bf16)
#undef LIMBECK_INSTANTIATE

}  // namespace limbeck::cuda
