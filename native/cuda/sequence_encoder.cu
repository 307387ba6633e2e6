#include <algorithm>

#include "core/error.h"
#include "cuda/launch.h"
#include "cuda/packs.h"
#include "cuda/reduce.h"
#include "cuda/sequence_encoder.h"

// All of a sequence's activations lie in the shared memory of one block; the weights come from the second-level cache,
// into which everything is fetched at the start. Products run on tensor cores: rows come in tiles of 16, columns in
// tiles of 8. Each product starts its first loads of weights when the one before it ends.
//
// The terms of a product may be summed in any order, as long as both factors go by the same: of 32 of them, lane t of a
// group of four takes the 8 from 8t on, which one load brings, for two steps of 16.
//
// No loop is unrolled without need, and all products, and all norms, are the same code: a request runs each instruction
// once or twice.

namespace limbeck::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kRowTiles = 2;    // that share the loads of their weights
constexpr int kTermPacks = 4;   // of 32 terms, that are loaded at a time
constexpr int kMaxWidth = 128;  // d and H·hd
constexpr int kMaxIntermediate = 512;
constexpr int kMaxFetchingBlocks = 96;
constexpr float kLog2E = 1.4426950408889634f;

__host__ __device__ constexpr int round_up(int value, int multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/// Elements from row to row, such that the accesses of a warp meet no bank twice: of what products read (64 bytes of
/// each row at a time), of what ldmatrix reads (16), and of the stream (32).
__host__ __device__ constexpr int factor_stride(int width) { return round_up(width, 64) + 32; }
__host__ __device__ constexpr int matrix_stride(int width) { return round_up(width, 64) + 8; }
__host__ __device__ constexpr int stream_stride(int width) { return width + 8; }

/// Where things lie in shared memory, in bytes.
struct Layout {
  int stream, normed, attended, qkv, activated, size;
};
constexpr Layout layout_of(int rows, int width, int attention_size, int intermediate_size) {
  Layout layout{};
  layout.stream = 0;
  layout.normed = rows * stream_stride(width) * 4;
  layout.attended = layout.normed + rows * factor_stride(width) * 2;
  layout.qkv = layout.attended + rows * factor_stride(attention_size) * 2;
  layout.activated = layout.attended;  // attention is over by then
  layout.size = std::max(layout.qkv + rows * matrix_stride(3 * attention_size) * 2,
                         layout.activated + rows * factor_stride(intermediate_size) * 2);
  layout.size = std::max(layout.size, kThreads * 16);  // of fetch()
  return layout;
}

/// Two neighbours, the first at an even place.
__device__ __forceinline__ void store_pair(bf16* to, float first, float second) {
#ifdef LIMBECK_CUDA_EMULATED
  to[0] = from_float<bf16>(first);
  to[1] = from_float<bf16>(second);
#else
  *reinterpret_cast<uint32_t*>(to) = pack_bf16(first, second);
#endif
}

/// Starts to fetch `count` elements into the second-level cache.
template <typename T>
__device__ __forceinline__ void prefetch(const T* from, int count) {
  if (from == nullptr) return;
  const char* const bytes = reinterpret_cast<const char*>(from);
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x) * 128; i < count * static_cast<int>(sizeof(T)); i += kThreads * 128) {
    prefetch_l2(bytes + i);
  }
}

/// Weights of 8 outputs [out, in] and their biases for one lane: output lane/4, terms from 8·(lane % 4) on.
struct Weights {
  const bf16 *weight, *bias;
  int num_terms;

  __device__ __forceinline__ void load(int output, int first_term, uint4 (&packs)[kTermPacks]) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const bf16* const row = weight + static_cast<int64_t>(output + lane / 4) * num_terms;
#pragma unroll
    for (int c = 0; c < kTermPacks; ++c) {
      const int term = first_term + c * 32 + lane % 4 * 8;
      packs[c] = term < num_terms ? load_16(row + term) : make_uint4(0, 0, 0, 0);
    }
  }
  /// Of outputs `output` + 2·(lane % 4) and the next.
  __device__ __forceinline__ float2 load_bias(int output) const {
    if (bias == nullptr) return make_float2(0, 0);
    const bf16* const own = bias + output + static_cast<int>(threadIdx.x) % 4 * 2;
    return make_float2(to_float(own[0]), to_float(own[1]));
  }
};

/// y = x·weightᵀ + bias, all outputs [0, num_outputs) of the row tiles [first_tile, end_tile); but of the first
/// num_narrow outputs only those of [narrow_first_tile, end_tile).
///   x [rows, stride] bf16 in shared memory
struct Product {
  const bf16* x;
  int stride;
  Weights weights;
  int num_outputs, first_tile, num_narrow, narrow_first_tile, end_tile;
};

/// A tile of outputs for kRowTiles tiles of rows.
struct Unit {
  int output, tile;
};

/// The units of a product by warps, and what a warp has loaded for its next one: a product starts its first loads when
/// the one before it ends.
struct Units {
  int num_groups, num_narrow_groups, num_narrow, count;
  Unit unit;
  uint4 packs[kTermPacks];
  float2 bias;

  __device__ __forceinline__ void start(const Product& product) {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    num_groups = (product.end_tile - product.first_tile + kRowTiles - 1) / kRowTiles;
    num_narrow_groups = (product.end_tile - product.narrow_first_tile + kRowTiles - 1) / kRowTiles;
    num_narrow = product.num_narrow / 8 * num_narrow_groups;
    count = num_narrow + (product.num_outputs - product.num_narrow) / 8 * num_groups;
    if (warp >= count) return;
    locate(product, warp);
    product.weights.load(unit.output, 0, packs);
  }
  __device__ __forceinline__ void locate(const Product& product, int i) {
    const bool is_narrow = i < num_narrow;
    const int groups = is_narrow ? num_narrow_groups : num_groups;
    if (!is_narrow) i -= num_narrow;
    const int column = i / groups;
    unit.output = (is_narrow ? 0 : product.num_narrow) + column * 8;
    unit.tile = (is_narrow ? product.narrow_first_tile : product.first_tile) + (i - column * groups) * kRowTiles;
    bias = product.weights.load_bias(unit.output);
  }
};

/// write(row, output, y[output], y[output + 1]) of units that were started. Begins with a barrier.
template <typename Write>
__device__ __forceinline__ void multiply(const Product& product, Units& units, Write write) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const Weights& weights = product.weights;
  const int end_tile = product.end_tile, stride = product.stride, num_units = units.count;
  uint4(&next)[kTermPacks] = units.packs;
  Unit& unit = units.unit;
  float2& bias = units.bias;
  __syncthreads();
#pragma unroll 1
  for (int u = warp; u < num_units; u += kWarps) {
    const int output = unit.output, tile = unit.tile;
    const int num_tiles = end_tile - tile < kRowTiles ? end_tile - tile : kRowTiles;
    float sums[kRowTiles][4];
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      sums[m][0] = sums[m][2] = bias.x;
      sums[m][1] = sums[m][3] = bias.y;
    }
#pragma unroll 1
    for (int first_term = 0; first_term < weights.num_terms; first_term += kTermPacks * 32) {
      uint4 packs[kTermPacks];
#pragma unroll
      for (int c = 0; c < kTermPacks; ++c) packs[c] = next[c];
      const bool is_last = first_term + kTermPacks * 32 >= weights.num_terms;
      if (is_last && u + kWarps < num_units) {
        units.locate(product, u + kWarps);
      }
      if (!is_last || u + kWarps < num_units) {
        weights.load(unit.output, is_last ? 0 : first_term + kTermPacks * 32, next);
      }
#pragma unroll
      for (int c = 0; c < kTermPacks; ++c) {
        const int term = first_term + c * 32 + lane % 4 * 8;
        if (first_term + c * 32 >= weights.num_terms) break;
        const uint32_t b0[2] = {packs[c].x, packs[c].y}, b1[2] = {packs[c].z, packs[c].w};
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          if (m >= num_tiles) break;
          const bf16* const row = product.x + ((tile + m) * 16 + lane / 4) * stride + term;
          uint4 upper = make_uint4(0, 0, 0, 0), lower = upper;
          if (term < weights.num_terms) {
            upper = load_16(row);
            lower = load_16(row + 8 * stride);
          }
          const uint32_t a0[4] = {upper.x, lower.x, upper.y, lower.y}, a1[4] = {upper.z, lower.z, upper.w, lower.w};
          mma_m16n8k16(sums[m], a0, b0);
          mma_m16n8k16(sums[m], a1, b1);
        }
      }
    }
    const int column = output + lane % 4 * 2;
#pragma unroll 1
    for (int i = 0; i < num_tiles * 2; ++i) {
      const int row = tile * 16 + lane / 4 + i * 8;
      const bool is_second = i / 2 != 0, is_lower = i % 2 != 0;
      const float y0 = is_second ? (is_lower ? sums[1][2] : sums[1][0]) : (is_lower ? sums[0][2] : sums[0][0]);
      const float y1 = is_second ? (is_lower ? sums[1][3] : sums[1][1]) : (is_lower ? sums[0][3] : sums[0][1]);
      write(row, column, y0, y1);
    }
  }
}

/// Layer norm of the rows [first, end), eight lanes a row, to factors and, where keeps_stream, in place. Begins with a
/// barrier.   stream [rows, stride] fp32, factors [rows, factor_stride]
__device__ __forceinline__ void normalize(float* stream, int stride, int first, int end, int width, float eps,
                                          const float* weight, const float* bias, bool keeps_stream, bf16* factors,
                                          int factor_stride) {
  constexpr int kColumns = kMaxWidth / 8;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int first_column = lane % 8;
  float gains[kColumns], shifts[kColumns];
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
    const int column = first_column + j * 8;
    gains[j] = column < width ? weight[column] : 0.0f;
    shifts[j] = column < width ? bias[column] : 0.0f;
  }
  const float scale = 1.0f / static_cast<float>(width);
  __syncthreads();
#pragma unroll 1
  for (int group = first + warp * 4; group < end; group += kWarps * 4) {
    const int row = group + lane / 8;
    const int num_columns = row < end ? width : 0;
    float x[kColumns];
    float sum = 0;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const int column = first_column + j * 8;
      x[j] = column < num_columns ? stream[row * stride + column] : 0.0f;
      sum += x[j];
    }
    const float mean = lanes_sum<8>(sum) * scale;
    float squares = 0;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const float difference = first_column + j * 8 < num_columns ? x[j] - mean : 0.0f;
      squares += difference * difference;
    }
    const float rstd = rsqrtf(lanes_sum<8>(squares) * scale + eps);
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const int column = first_column + j * 8;
      if (column >= num_columns) break;
      const float y = fmaf((x[j] - mean) * rstd, gains[j], shifts[j]);
      if (keeps_stream) stream[row * stride + column] = y;
      factors[row * factor_stride + column] = from_float<bf16>(y);
    }
  }
}

/// Causal attention of the row tiles [first_tile, end_tile), a warp a tile and head. Begins with a barrier.
///   qkv [rows, qkv_stride]: queries, keys, values [H·hd] each; attended [rows, attended_stride] =
template <int kKeyTiles>
__device__ __forceinline__ void attend(const bf16* qkv, int qkv_stride, int first_tile, int end_tile, int num_heads,
                                       int head_dim, bf16* attended, int attended_stride) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int size = num_heads * head_dim, num_tiles = end_tile - first_tile;
  const float scale = rsqrtf(static_cast<float>(head_dim)) * kLog2E;
  __syncthreads();
#pragma unroll 1
  for (int unit = warp; unit < num_tiles * num_heads; unit += kWarps) {
    const int head = unit / num_tiles, tile = first_tile + unit % num_tiles;
    const int num_keys = (tile + 1) * 2;  // tiles of 8
    const bf16* const queries = qkv + tile * 16 * qkv_stride + head * head_dim;
    const bf16* const keys = qkv + size + head * head_dim;
    const bf16* const values = keys + size;
    float scores[kKeyTiles][4];
#pragma unroll
    for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) scores[n][j] = 0;
    }
#pragma unroll 1
    for (int k = 0; k < head_dim; k += 16) {
      uint32_t a[4];
      ldmatrix_x4(a, queries + (lane % 16) * qkv_stride + k + lane / 16 * 8);
#pragma unroll
      for (int n = 0; n < kKeyTiles; ++n) {
        if (n >= num_keys) break;
        uint32_t b[2];
        ldmatrix_x2(b, keys + (n * 8 + lane % 8) * qkv_stride + k + lane / 8 % 2 * 8);
        mma_m16n8k16(scores[n], a, b);
      }
    }
    // Of rows lane/4 and lane/4 + 8: the greatest score, then the weights and their sum.
    const int row = tile * 16 + lane / 4;
    float greatest[2] = {-1e30f, -1e30f}, sums[2] = {0, 0};
#pragma unroll
    for (int n = 0; n < kKeyTiles; ++n) {
      if (n >= num_keys) break;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int key = n * 8 + lane % 4 * 2 + j % 2;
        scores[n][j] = key <= row + j / 2 * 8 ? scores[n][j] * scale : -1e30f;
        greatest[j / 2] = fmaxf(greatest[j / 2], scores[n][j]);
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      greatest[i] = fmaxf(greatest[i], __shfl_xor_sync(kAllLanes, greatest[i], 1));
      greatest[i] = fmaxf(greatest[i], __shfl_xor_sync(kAllLanes, greatest[i], 2));
    }
#pragma unroll
    for (int n = 0; n < kKeyTiles; ++n) {
      if (n >= num_keys) break;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        scores[n][j] = exp2_approx(scores[n][j] - greatest[j / 2]);
        sums[j / 2] += scores[n][j];
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      sums[i] += __shfl_xor_sync(kAllLanes, sums[i], 1);
      sums[i] += __shfl_xor_sync(kAllLanes, sums[i], 2);
      sums[i] = 1.0f / sums[i];
    }
    uint32_t weights[kKeyTiles / 2][4];
#pragma unroll
    for (int n = 0; n < kKeyTiles / 2; ++n) {
      weights[n][0] = pack_bf16(scores[2 * n][0], scores[2 * n][1]);
      weights[n][1] = pack_bf16(scores[2 * n][2], scores[2 * n][3]);
      weights[n][2] = pack_bf16(scores[2 * n + 1][0], scores[2 * n + 1][1]);
      weights[n][3] = pack_bf16(scores[2 * n + 1][2], scores[2 * n + 1][3]);
    }
#pragma unroll 1
    for (int c = 0; c < head_dim; c += 16) {
      float out[2][4] = {};
#pragma unroll
      for (int n = 0; n < kKeyTiles / 2; ++n) {
        if (n > tile) break;
        uint32_t b[4];  // of two tiles of 8 columns
        ldmatrix_x4_trans(b, values + (n * 16 + lane % 16) * qkv_stride + c + lane / 16 * 8);
        const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
        mma_m16n8k16(out[0], weights[n], b0);
        mma_m16n8k16(out[1], weights[n], b1);
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        bf16* const to = attended + row * attended_stride + head * head_dim + c + h * 8 + lane % 4 * 2;
        store_pair(to, out[h][0] * sums[0], out[h][1] * sums[0]);
        store_pair(to + 8 * attended_stride, out[h][2] * sums[1], out[h][3] * sums[1]);
      }
    }
  }
}

__device__ __forceinline__ float gelu(float x, bool is_erf) {
  if (is_erf) return x * fmaf(0.5f, erff(x * 0.7071067811865475f), 0.5f);
  // 0.5·(1 + tanh(u)) = sigmoid(2u)
  return x * __fdividef(1.0f, 1.0f + __expf(-2 * 0.7978845608028654f * (x + 0.044715f * x * x * x)));
}

/// What the second block does meanwhile: the copies, and all weights set out for the second-level cache.
__device__ __forceinline__ void bring(const SequenceEncoder& encoder, const CopiedWords& copied) {
  const int thread = static_cast<int>(threadIdx.x);
  const int d = encoder.hidden_size, size = encoder.num_heads * encoder.head_dim, I = encoder.intermediate_size;
  int words[kMaxCopiedWords / kThreads] = {};
#pragma unroll
  for (int j = 0; j < kMaxCopiedWords / kThreads; ++j) {
    if (thread + j * kThreads < copied.count) words[j] = copied.from[thread + j * kThreads];
  }
#pragma unroll 1
  for (int l = 0; l < encoder.num_layers; ++l) {
    const SequenceEncoder::Layer& layer = encoder.layers[l];
    prefetch(layer.attention_norm_weight, d);
    prefetch(layer.attention_norm_bias, d);
    prefetch(layer.qkv_weight, 3 * size * d);
    prefetch(layer.qkv_bias, 3 * size);
    prefetch(layer.attention_output_weight, d * size);
    prefetch(layer.attention_output_bias, d);
    prefetch(layer.mlp_norm_weight, d);
    prefetch(layer.mlp_norm_bias, d);
    prefetch(layer.mlp_input_weight, I * d);
    prefetch(layer.mlp_input_bias, I);
    prefetch(layer.mlp_output_weight, d * I);
    prefetch(layer.mlp_output_bias, d);
  }
  prefetch(encoder.outer_norm_weight, d);
  prefetch(encoder.outer_norm_bias, d);
#pragma unroll
  for (int j = 0; j < kMaxCopiedWords / kThreads; ++j) {
    if (thread + j * kThreads < copied.count) copied.to[thread + j * kThreads] = words[j];
  }
}

/// What the other blocks do: they read the bytes, for the second-level cache alone.   slot [kThreads·16] scratch
__device__ __forceinline__ void fetch(const FetchedBytes& fetched, char* slot) {
  constexpr int64_t kPiece = kThreads * 16;
  const int64_t stride = (static_cast<int64_t>(gridDim.x) - 2) * kPiece;
  const char* const from = static_cast<const char*>(fetched.from);
  const int64_t own = static_cast<int64_t>(threadIdx.x) * 16;
#pragma unroll 1
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) - 2) * kPiece + own; i + 16 <= fetched.count; i += stride) {
    cp_async_16(slot + own, from + i, true);
    cp_async_commit();
    cp_async_wait<2>();
  }
  cp_async_wait<0>();
}

/// The first block encodes.   length, ids, query: see encode_sequence()
template <int kKeyTiles>
__global__ void __launch_bounds__(kThreads, 1)
    encode_sequence_kernel(const __grid_constant__ SequenceEncoder encoder, Layout layout, int max_length,
                           const int32_t* length, const int32_t* ids, bf16* query, CopiedWords copied,
                           FetchedBytes fetched) {
  LIMBECK_SHARED_MEMORY(char, shared);
  __shared__ int staged_ids[kKeyTiles * 8];
  if (blockIdx.x == 1) return bring(encoder, copied);
  if (blockIdx.x > 1) return fetch(fetched, shared);
  float* const stream = reinterpret_cast<float*>(shared + layout.stream);
  bf16* const normed = reinterpret_cast<bf16*>(shared + layout.normed);
  bf16* const attended = reinterpret_cast<bf16*>(shared + layout.attended);
  bf16* const qkv = reinterpret_cast<bf16*>(shared + layout.qkv);
  bf16* const activated = reinterpret_cast<bf16*>(shared + layout.activated);
  const int thread = static_cast<int>(threadIdx.x);
  const int d = encoder.hidden_size, size = encoder.num_heads * encoder.head_dim, I = encoder.intermediate_size;
  const int stride = stream_stride(d), normed_stride = factor_stride(d), attended_stride = factor_stride(size);
  const int qkv_stride = matrix_stride(3 * size), activated_stride = factor_stride(I);
  const bool norm_after = encoder.norm_after;

  // The request may come from far away: all of it at once.
  int own_id = 0;
  if (thread < max_length) own_id = ids[thread];
  const int N = *length;
  if (thread < max_length) staged_ids[thread] = own_id;
  __syncthreads();

  // The embeddings, zeros beyond the last.
  const int packs = d / 8, num_tiles = (N + 15) / 16;
#pragma unroll 1
  for (int i = thread; i < num_tiles * 16 * packs; i += kThreads) {
    const int row = i / packs, column = i % packs * 8;
    float x[8] = {};
    if (row < N) {
      float position[8];
      load(encoder.positions + row * d + column, position);
      load(encoder.words + static_cast<int64_t>(staged_ids[row]) * d + column, x);
#pragma unroll
      for (int j = 0; j < 8; ++j) x[j] += position[j];
    }
    store(stream + row * stride + column, x);
  }

  // Four products a layer: queries, keys and values; of the attention; into the MLP; out of it. Then the last norm.
  const int num_products = encoder.num_layers * 4;
  Product product{};
  Units units{};
#pragma unroll 1
  for (int p = -1;; ++p) {
    if (p >= 0) {
      const int kind = p % 4;
      const bool is_end = p == num_products;
      const SequenceEncoder::Layer& layer = encoder.layers[is_end ? encoder.num_layers - 1 : p / 4];
      const int first = product.narrow_first_tile;
      if (kind == 0 || kind == 2) {
        const float *weight = layer.attention_norm_weight, *bias = layer.attention_norm_bias;
        if (kind == 0 && (norm_after ? p == 0 : is_end)) {
          weight = encoder.outer_norm_weight;
          bias = encoder.outer_norm_bias;
        } else if (kind == 0 && norm_after) {
          const SequenceEncoder::Layer& before = encoder.layers[p / 4 - 1];
          weight = before.mlp_norm_weight;
          bias = before.mlp_norm_bias;
        } else if (kind == 2 && !norm_after) {
          weight = layer.mlp_norm_weight;
          bias = layer.mlp_norm_bias;
        }
        normalize(stream, stride, is_end ? N - 1 : product.first_tile * 16, is_end ? N : num_tiles * 16, d,
                  encoder.norm_eps, weight, bias, norm_after, is_end ? query : normed, is_end ? 0 : normed_stride);
        if (is_end) break;
      } else if (kind == 1) {
        attend<kKeyTiles>(qkv, qkv_stride, first, num_tiles, encoder.num_heads, encoder.head_dim, attended,
                          attended_stride);
      }
      multiply(product, units, [&](int row, int column, float y0, float y1) {
        if (kind == 0) {
          store_pair(qkv + row * qkv_stride + column, y0, y1);
        } else if (kind == 2) {
          store_pair(activated + row * activated_stride + column, gelu(y0, encoder.is_erf), gelu(y1, encoder.is_erf));
        } else {
          stream[row * stride + column] += y0;
          stream[row * stride + column + 1] += y1;
        }
      });
    }
    if (p + 1 == num_products) continue;
    const int kind = (p + 1) % 4, l = (p + 1) / 4;
    const SequenceEncoder::Layer& layer = encoder.layers[l];
    // After the last block only the last row is read: all that leads to it alone is left out.
    const int first = l == encoder.num_layers - 1 ? num_tiles - 1 : 0;
    const bf16* x = normed;
    int x_stride = normed_stride, num_outputs = 3 * size;
    Weights weights{layer.qkv_weight, layer.qkv_bias, d};
    if (kind == 1) {
      x = attended;
      x_stride = attended_stride;
      num_outputs = d;
      weights = {layer.attention_output_weight, layer.attention_output_bias, size};
    } else if (kind == 2) {
      num_outputs = I;
      weights = {layer.mlp_input_weight, layer.mlp_input_bias, d};
    } else if (kind == 3) {
      x = activated;
      x_stride = activated_stride;
      num_outputs = d;
      weights = {layer.mlp_output_weight, layer.mlp_output_bias, I};
    }
    product = {x, x_stride, weights, num_outputs, kind == 0 ? 0 : first, kind == 0 ? size : 0, first, num_tiles};
    units.start(product);
  }
}

constexpr int64_t kShortLength = 64, kMaxLength = 128;

constexpr size_t kStagedBytes = sizeof(int) * kMaxLength;

int rows_of(int64_t max_length) { return round_up(static_cast<int>(max_length), 16); }

}  // namespace

bool can_encode_sequence(const TransformerConfig& config, int64_t max_length, size_t max_shared_bytes) {
  const int64_t size = config.attention_size();
  return config.causal && config.norm == NormKind::kLayerNorm && config.positions == PositionKind::kLearned &&
         config.hidden_act != Activation::kSwiglu && !config.qk_norm && config.type_vocab_size == 0 &&
         config.position_offset == 0 && config.num_key_value_heads == config.num_attention_heads &&
         (config.sliding_window == 0 || config.sliding_window >= max_length) && config.num_hidden_layers >= 1 &&
         config.num_hidden_layers <= SequenceEncoder::kMaxLayers && config.hidden_size % 16 == 0 &&
         config.hidden_size <= kMaxWidth && config.head_dim % 16 == 0 && size <= kMaxWidth &&
         config.intermediate_size % 16 == 0 && config.intermediate_size <= kMaxIntermediate &&
         max_length <= kMaxLength &&
         layout_of(rows_of(max_length), static_cast<int>(config.hidden_size), static_cast<int>(size),
                   static_cast<int>(config.intermediate_size))
                     .size +
                 kStagedBytes <=
             max_shared_bytes;
}

size_t max_shared_bytes() {
  int device = 0;
  cudaDeviceProp properties;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  check_cuda(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  return properties.sharedMemPerBlockOptin;
}

size_t fetchable_bytes() {
  int device = 0;
  cudaDeviceProp properties;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  check_cuda(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  return static_cast<size_t>(properties.l2CacheSize) / 2;
}

void encode_sequence(Context& context, const SequenceEncoder& encoder, int64_t max_length, const int32_t* length,
                     const int32_t* ids, bf16* query, const CopiedWords& copied, const FetchedBytes& fetched) {
  const Layout layout = layout_of(rows_of(max_length), encoder.hidden_size, encoder.num_heads * encoder.head_dim,
                                  encoder.intermediate_size);
  const auto kernel =
      max_length <= kShortLength ? encode_sequence_kernel<kShortLength / 8> : encode_sequence_kernel<kMaxLength / 8>;
  // Not on all multiprocessors: the weights come the same way.
  const int fetching = fetched.count > 0 ? std::clamp(context.num_multiprocessors - 2, 0, kMaxFetchingBlocks) : 0;
  launch(context, kernel, dim3(static_cast<unsigned>(2 + fetching)), dim3(kThreads), static_cast<size_t>(layout.size),
         encoder, layout, static_cast<int>(max_length), length, ids, query, copied, fetched);
}

}  // namespace limbeck::cuda
