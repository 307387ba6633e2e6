#include <algorithm>

#include "core/error.h"
#include "cuda/launch.h"
#include "cuda/packs.h"
#include "cuda/reduce.h"
#include "cuda/sequence_encoder.h"

// A cluster of blocks encodes a sequence, each 16 of its rows; of what they compute, only keys and values cross, into
// the shared memory of the blocks with later rows. A warp computes 8 of each 64 outputs of a product, for the 16 rows:
// so it needs each of its weights once, and nobody else needs them. They were packed in the order in which it does, and
// come to it, and to it alone, through shared memory, many of them ahead. The residual stream is kept where products
// end: in registers, 8 of each 64 columns a warp. What all warps read goes through shared memory, with one barrier:
// each warp then normalizes the rows for itself.
//
// The terms of a product may be summed in any order, as long as both factors go by the same: of 32 of them, lane t of a
// group of four takes the 8 from 8t on, which one load brings, for two steps of 16.
//
// All widths are filled up with zeros to multiples of 64. Little is unrolled: a request runs each instruction once or
// twice.

namespace limbeck::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
constexpr int kRows = 16;          // of a block
constexpr int kTerms = 64;         // of a group of weights: 8 outputs of one warp
constexpr int kGroupBytes = 1024;  // [2 halves of the terms, lanes, 8]
constexpr int kMaxWidth = 128;     // d and H·hd
constexpr int kMaxIntermediate = 512;
constexpr int kShortLength = 64, kMaxLength = 128;
constexpr int kMaxFetchingBlocks = 96;
constexpr int kFetchGroups = 7;  // of loads that a thread has under way
constexpr float kLog2E = 1.4426950408889634f;

__host__ __device__ constexpr int round_up(int value, int multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/// How many groups of weights are under way to a warp.
__host__ __device__ constexpr int stages_of(int max_length) { return max_length <= kShortLength ? 16 : 12; }

/// Elements from row to row, such that the accesses of a warp meet no bank twice: of what products read (64 bytes of
/// each row at a time), of what ldmatrix reads (16), and of the stream (32).
__host__ __device__ constexpr int factor_stride(int width) { return width + 32; }
__host__ __device__ constexpr int matrix_stride(int width) { return width + 8; }
__host__ __device__ constexpr int stream_stride(int width) { return width + 4; }

/// A model's sizes, and how its parameters are packed:
///   norms, in the order in which they are applied [2L + 1, gain and shift, width] fp32
///   biases [L: of queries, keys and values 3·size, of the attention's output width, of the MLP's intermediate, width]
///   weights [L, groups, warps, kGroupBytes]
struct Shape {
  int num_layers, hidden_size, num_heads, head_dim, intermediate_size;
  int width, size, intermediate;  // d, H·hd and I, filled up

  __host__ __device__ int norms() const { return (2 * num_layers + 1) * 2 * width; }
  __host__ __device__ int layer_biases() const { return 3 * size + intermediate + 2 * width; }
  __host__ __device__ int bias_offset() const { return norms() * 4; }  // in bytes
  __host__ __device__ int weight_offset() const { return bias_offset() + num_layers * layer_biases() * 2; }
  /// Of each of a layer's four products, for one warp; of the first and the third the terms of one tile of outputs
  /// follow each other, of the others the tiles, to one part of the terms.
  __host__ __device__ int groups(int product) const {
    return (product == 0   ? 3 * size
            : product == 2 ? intermediate
                           : width) /
           64 *
           ((product == 1   ? size
             : product == 3 ? intermediate
                            : width) /
            kTerms);
  }
  __host__ __device__ int layer_groups() const { return groups(0) + groups(1) + groups(2) + groups(3); }
  __host__ __device__ int packed_bytes() const {
    return weight_offset() + num_layers * layer_groups() * kWarps * kGroupBytes;
  }
};

Shape shape_of(int num_layers, int hidden_size, int num_heads, int head_dim, int intermediate_size) {
  return {num_layers,
          hidden_size,
          num_heads,
          head_dim,
          intermediate_size,
          round_up(hidden_size, 64),
          round_up(num_heads * head_dim, 64),
          round_up(intermediate_size, 128)};
}
Shape shape_of(const SequenceEncoder& encoder) {
  return shape_of(encoder.num_layers, encoder.hidden_size, encoder.num_heads, encoder.head_dim,
                  encoder.intermediate_size);
}

/// Where things lie in shared memory, in bytes: see encode().
struct Layout {
  int queries, keys, attended, activated, parameters, weights, size;
};
Layout layout_of(const Shape& shape, int max_length) {
  Layout layout{};
  layout.queries = kRows * stream_stride(shape.width) * 4;
  layout.keys = layout.queries + kRows * matrix_stride(shape.size) * 2;
  layout.attended = layout.keys + round_up(max_length, kRows) * matrix_stride(2 * shape.size) * 2;
  layout.activated = layout.attended + kRows * factor_stride(shape.size) * 2;
  layout.parameters = layout.activated + kRows * factor_stride(shape.intermediate) * 2;
  layout.weights = layout.parameters + shape.weight_offset();
  layout.size = layout.weights + kWarps * stages_of(max_length) * kGroupBytes;
  return layout;
}

// ---- Packing.

/// Element [row, column] of a matrix with num_columns of them, zero beyond.
__device__ __forceinline__ bf16 element(const bf16* matrix, int row, int num_rows, int column, int num_columns) {
  if (matrix == nullptr || row >= num_rows || column >= num_columns) return from_float<bf16>(0);
  return matrix[static_cast<int64_t>(row) * num_columns + column];
}

/// packed: see Shape
__global__ void __launch_bounds__(256)
    pack_encoder_kernel(const __grid_constant__ SequenceEncoder encoder, Shape shape, char* packed) {
  const int first = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int step = static_cast<int>(gridDim.x * blockDim.x);
  const int d = shape.hidden_size, size = shape.num_heads * shape.head_dim, I = shape.intermediate_size;

  float* const norms = reinterpret_cast<float*>(packed);
  for (int i = first; i < shape.norms(); i += step) {
    const int column = i % shape.width, norm = i / shape.width / 2;
    const bool is_shift = i / shape.width % 2 != 0;
    // Norms after follow the embeddings, and what they are named by; norms before precede it, and the last the end.
    const int inner = encoder.norm_after ? norm - 1 : norm;
    const float *gain = encoder.outer_norm_weight, *shift = encoder.outer_norm_bias;
    if (inner >= 0 && inner < 2 * shape.num_layers) {
      const SequenceEncoder::Layer& layer = encoder.layers[inner / 2];
      gain = inner % 2 == 0 ? layer.attention_norm_weight : layer.mlp_norm_weight;
      shift = inner % 2 == 0 ? layer.attention_norm_bias : layer.mlp_norm_bias;
    }
    norms[i] = column < d ? (is_shift ? shift : gain)[column] : 0.0f;
  }

  bf16* const biases = reinterpret_cast<bf16*>(packed + shape.bias_offset());
  for (int i = first; i < shape.num_layers * shape.layer_biases(); i += step) {
    const SequenceEncoder::Layer& layer = encoder.layers[i / shape.layer_biases()];
    int j = i % shape.layer_biases();
    bf16 value;
    if (j < 3 * shape.size) {
      const int column = j % shape.size, part = j / shape.size;
      value = element(layer.qkv_bias, part, column < size ? 3 : 0, column, size);
    } else if ((j -= 3 * shape.size) < shape.width) {
      value = element(layer.attention_output_bias, 0, 1, j, d);
    } else if ((j -= shape.width) < shape.intermediate) {
      value = element(layer.mlp_input_bias, 0, 1, j, I);
    } else {
      value = element(layer.mlp_output_bias, 0, 1, j - shape.intermediate, d);
    }
    biases[i] = value;
  }

  bf16* const weights = reinterpret_cast<bf16*>(packed + shape.weight_offset());
  const int packs = kGroupBytes / 16;
  for (int i = first; i < shape.num_layers * shape.layer_groups() * kWarps * packs; i += step) {
    const int lane = i % 32, half = i / 32 % 2, warp = i / packs % kWarps;
    const SequenceEncoder::Layer& layer = encoder.layers[i / packs / kWarps / shape.layer_groups()];
    int group = i / packs / kWarps % shape.layer_groups(), product = 0;
    while (group >= shape.groups(product)) group -= shape.groups(product++);
    const int width_chunks = shape.width / kTerms;
    const bool terms_are_inner = product % 2 == 0;
    const int tile = terms_are_inner ? group / width_chunks : group % width_chunks;
    const int chunk = terms_are_inner ? group % width_chunks : group / width_chunks;
    const int part = product == 0 ? tile % 3 : 0;  // of queries, keys and values
    const int output = (warp + (product == 0 ? tile / 3 : tile) * kWarps) * 8 + lane / 4;
    for (int j = 0; j < 8; ++j) {
      const int term = chunk * kTerms + half * 32 + lane % 4 * 8 + j;
      bf16 value;
      if (product == 0) {
        value = element(layer.qkv_weight, part * size + output, output < size ? 3 * size : 0, term, d);
      } else if (product == 1) {
        value = element(layer.attention_output_weight, output, d, term, size);
      } else if (product == 2) {
        value = element(layer.mlp_input_weight, output, I, term, d);
      } else {
        value = element(layer.mlp_output_weight, output, d, term, I);
      }
      weights[static_cast<int64_t>(i) * 8 + j] = value;
    }
  }
}

// ---- Encoding.

/// Two neighbours, the first at an even place.
__device__ __forceinline__ void store_pair(bf16* to, float first, float second) {
#ifdef LIMBECK_CUDA_EMULATED
  to[0] = from_float<bf16>(first);
  to[1] = from_float<bf16>(second);
#else
  *reinterpret_cast<uint32_t*>(to) = pack_bf16(first, second);
#endif
}
__device__ __forceinline__ float2 load_pair(const bf16* from) {
#ifdef LIMBECK_CUDA_EMULATED
  return make_float2(to_float(from[0]), to_float(from[1]));
#else
  return unpack_bf16(*reinterpret_cast<const uint32_t*>(from));
#endif
}
__device__ __forceinline__ float2 load_pair(const float* from) {
  const uint2 words = load_8(from);
  return make_float2(__uint_as_float(words.x), __uint_as_float(words.y));
}
__device__ __forceinline__ void store_pair(float* to, float first, float second) {
  store_8(to, make_uint2(__float_as_uint(first), __float_as_uint(second)));
}

__device__ __forceinline__ int own_lane() { return static_cast<int>(threadIdx.x) % 32; }
__device__ __forceinline__ int own_warp() { return static_cast<int>(threadIdx.x) / 32; }
/// The first of the two columns, of 8·kWarps, that a lane has of each result.
__device__ __forceinline__ int own_column() { return own_warp() * 8 + own_lane() % 4 * 2; }

/// The weights of one warp on their way: each lane reads what it copied itself.
template <int kStages>
struct Weights {
  const char* from;
  char* slots;
  int num_left, stage;

  __device__ __forceinline__ void start(const char* weights, char* shared, int num_groups) {
    from = weights + own_warp() * kGroupBytes + own_lane() * 16;
    slots = shared + own_warp() * kStages * kGroupBytes + own_lane() * 16;
    num_left = num_groups;
    stage = 0;
#pragma unroll 1
    for (int s = 0; s < kStages; ++s) start_next();
  }
  __device__ __forceinline__ void start_next() {
    if (num_left > 0) {
      char* const slot = slots + stage * kGroupBytes;
      cp_async_16(slot, from, true);
      cp_async_16(slot + kGroupBytes / 2, from + kGroupBytes / 2, true);
      from += kWarps * kGroupBytes;
      --num_left;
    }
    cp_async_commit();
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }
  /// y += x·weightᵀ of the next group.   a: kTerms of x, as mma_m16n8k16 takes them
  __device__ __forceinline__ void multiply(const uint32_t (&a)[4][4], float (&y)[4], float (&other_y)[4]) {
    cp_async_wait<kStages - 1>();
    const uint4 b0 = load_16(slots + stage * kGroupBytes);
    const uint4 b1 = load_16(slots + stage * kGroupBytes + kGroupBytes / 2);
    start_next();
    const uint32_t b[4][2] = {{b0.x, b0.y}, {b0.z, b0.w}, {b1.x, b1.y}, {b1.z, b1.w}};
    mma_m16n8k16(y, a[0], b[0]);
    mma_m16n8k16(other_y, a[1], b[1]);
    mma_m16n8k16(y, a[2], b[2]);
    mma_m16n8k16(other_y, a[3], b[3]);
  }
};

/// a[c] = kTerms/2 terms of rows lane/4 (`upper`: 8 of them) and lane/4 + 8.
__device__ __forceinline__ void set_factor(const uint4& upper, const uint4& lower, uint32_t (&a0)[4],
                                           uint32_t (&a1)[4]) {
  a0[0] = upper.x;
  a0[1] = lower.x;
  a0[2] = upper.y;
  a0[3] = lower.y;
  a1[0] = upper.z;
  a1[1] = lower.z;
  a1[2] = upper.w;
  a1[3] = lower.w;
}

/// y = (column of a bias) for the rows lane/4 and lane/4 + 8.
__device__ __forceinline__ void set_bias(const bf16* bias, float (&y)[4]) {
  const float2 pair = load_pair(bias + own_column());
  y[0] = y[2] = pair.x;
  y[1] = y[3] = pair.y;
}

/// Layer norm of 16 rows by each warp: a = as factors of a product, and own = of this lane's columns where keeps_own.
///   stream [16, stream_stride] fp32; norm: gain, shift [kWidth]
template <int kWidth>
__device__ __forceinline__ void normalize(const float* stream, const float* norm, int hidden_size, float eps,
                                          bool keeps_own, float (&own)[kWidth / 64][4],
                                          uint32_t (&a)[kWidth / 64][4][4]) {
  constexpr int kPacks = kWidth / 32;
  const int row = own_lane() / 4, column = own_lane() % 4 * 8;
  const float scale = 1.0f / static_cast<float>(hidden_size);
  float x[2][kPacks][8], mean[2], rstd[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float sum = 0;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      float(&pack)[8] = x[i][p];
      load(stream + (row + i * 8) * stream_stride(kWidth) + p * 32 + column, pack);
      sum += ((pack[0] + pack[1]) + (pack[2] + pack[3])) + ((pack[4] + pack[5]) + (pack[6] + pack[7]));
    }
    mean[i] = lanes_sum<4>(sum) * scale;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float squares = 0;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const float center = p * 32 + column < hidden_size ? mean[i] : 0.0f;
      float square[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        x[i][p][j] -= center;
        square[j] = x[i][p][j] * x[i][p][j];
      }
      squares +=
          ((square[0] + square[1]) + (square[2] + square[3])) + ((square[4] + square[5]) + (square[6] + square[7]));
    }
    rstd[i] = rsqrtf(lanes_sum<4>(squares) * scale + eps);
  }
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    float gain[8], shift[8];
    load(norm + p * 32 + column, gain);
    load(norm + kWidth + p * 32 + column, shift);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 8; ++j) x[i][p][j] = fmaf(x[i][p][j] * rstd[i], gain[j], shift[j]);
    }
    set_factor(pack<bf16>(x[0][p]), pack<bf16>(x[1][p]), a[p / 2][p % 2 * 2], a[p / 2][p % 2 * 2 + 1]);
  }
  if (!keeps_own) return;
#pragma unroll
  for (int c = 0; c < kWidth / 64; ++c) {
    const float2 gain = load_pair(norm + c * 64 + own_column()),
                 shift = load_pair(norm + kWidth + c * 64 + own_column());
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      own[c][i] =
          fmaf((own[c][i] - mean[i / 2]) * rstd[i / 2], i % 2 == 0 ? gain.x : gain.y, i % 2 == 0 ? shift.x : shift.y);
    }
  }
}

/// own += x·weightᵀ + bias, and stream = own.   x [16, stride] bf16 in shared memory, num_chunks·kTerms columns
template <int kWidth, int kStages>
__device__ __forceinline__ void add_product(const bf16* x, int stride, int num_chunks, const bf16* bias,
                                            Weights<kStages>& weights, float (&own)[kWidth / 64][4], float* stream) {
  constexpr int kTiles = kWidth / 64;
  float sums[kTiles][2][4];
#pragma unroll
  for (int c = 0; c < kTiles; ++c) {
    set_bias(bias + c * 64, sums[c][0]);
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[c][1][i] = own[c][i];
  }
  const bf16* rows = x + own_lane() / 4 * stride + own_lane() % 4 * 8;
#pragma unroll 1
  for (int k = 0; k < num_chunks; ++k) {
    uint32_t a[4][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const bf16* const from = rows + k * kTerms + half * 32;
      set_factor(load_16(from), load_16(from + 8 * stride), a[half * 2], a[half * 2 + 1]);
    }
#pragma unroll
    for (int c = 0; c < kTiles; ++c) weights.multiply(a, sums[c][0], sums[c][1]);
  }
  float* const to = stream + own_lane() / 4 * stream_stride(kWidth) + own_column();
#pragma unroll
  for (int c = 0; c < kTiles; ++c) {
#pragma unroll
    for (int i = 0; i < 4; ++i) own[c][i] = sums[c][0][i] + sums[c][1][i];
    store_pair(to + c * 64, own[c][0], own[c][1]);
    store_pair(to + 8 * stream_stride(kWidth) + c * 64, own[c][2], own[c][3]);
  }
}

/// Causal attention of row tile `tile` of 16, 16 columns of a head by a warp.
///   queries [16, matrix_stride], keys and values [16·(tile + 1), matrix_stride]: `size` columns each
///   attended [16, factor_stride] =
template <int kKeyTiles>
__device__ __forceinline__ void attend(const bf16* queries, const bf16* keys, int size, int num_heads, int head_dim,
                                       int tile, bf16* attended) {
  const int lane = own_lane(), parts = head_dim / 16, head = own_warp() / parts, first_column = own_warp() * 16;
  bf16* const to = attended + lane / 4 * factor_stride(size) + first_column + lane % 4 * 2;
  if (head >= num_heads) {
#pragma unroll
    for (int i = 0; i < 4 && first_column < size; ++i) {  // what fills up the width
      store_pair(to + i / 2 * 8 + i % 2 * 8 * factor_stride(size), 0, 0);
    }
    return;
  }
  const int key_stride = matrix_stride(2 * size);
  const float scale = rsqrtf(static_cast<float>(head_dim)) * kLog2E;
  const bf16* const query = queries + (lane % 16) * matrix_stride(size) + head * head_dim + lane / 16 * 8;
  const bf16* const key = keys + (lane / 16 * 8 + lane % 8) * key_stride + head * head_dim + lane / 8 % 2 * 8;
  float scores[kKeyTiles][2][4];
#pragma unroll
  for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
    for (int j = 0; j < 4; ++j) scores[n][0][j] = scores[n][1][j] = 0;
  }
#pragma unroll 1
  for (int k = 0; k < head_dim; k += 16) {
    uint32_t a[4];
    ldmatrix_x4(a, query + k);
#pragma unroll
    for (int n = 0; n < kKeyTiles; ++n) {
      if (n > tile) break;
      uint32_t b[4];  // of two tiles of 8 keys
      ldmatrix_x4(b, key + n * 16 * key_stride + k);
      const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
      mma_m16n8k16(scores[n][0], a, b0);
      mma_m16n8k16(scores[n][1], a, b1);
    }
  }
  // Of rows lane/4 and lane/4 + 8: the greatest score, then the weights and their sum.
  float greatest[2] = {-1e30f, -1e30f}, sums[2] = {0, 0};
#pragma unroll
  for (int n = 0; n < kKeyTiles; ++n) {
    if (n > tile) break;
    if (n == tile) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const bool is_seen = j / 4 * 8 + lane % 4 * 2 + j % 2 <= lane / 4 + j % 4 / 2 * 8;
        if (!is_seen) scores[n][j / 4][j % 4] = -1e30f;
      }
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) greatest[j % 4 / 2] = fmaxf(greatest[j % 4 / 2], scores[n][j / 4][j % 4]);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    greatest[i] = fmaxf(greatest[i], __shfl_xor_sync(kAllLanes, greatest[i], 1));
    greatest[i] = scale * fmaxf(greatest[i], __shfl_xor_sync(kAllLanes, greatest[i], 2));
  }
  const bf16* const value = keys + size + (lane % 16) * key_stride + first_column + lane / 16 * 8;
  float out[2][4] = {};
#pragma unroll
  for (int n = 0; n < kKeyTiles; ++n) {
    if (n > tile) break;
    float(&x)[2][4] = scores[n];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int i = j % 4 / 2;
      x[j / 4][j % 4] = exp2_approx(fmaf(x[j / 4][j % 4], scale, -greatest[i]));
      sums[i] += x[j / 4][j % 4];
    }
    const uint32_t a[4] = {pack_bf16(x[0][0], x[0][1]), pack_bf16(x[0][2], x[0][3]), pack_bf16(x[1][0], x[1][1]),
                           pack_bf16(x[1][2], x[1][3])};
    uint32_t b[4];  // of two tiles of 8 columns
    ldmatrix_x4_trans(b, value + n * 16 * key_stride);
    const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
    mma_m16n8k16(out[0], a, b0);
    mma_m16n8k16(out[1], a, b1);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    sums[i] += __shfl_xor_sync(kAllLanes, sums[i], 1);
    sums[i] += __shfl_xor_sync(kAllLanes, sums[i], 2);
    sums[i] = 1.0f / sums[i];
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    store_pair(to + h * 8, out[h][0] * sums[0], out[h][1] * sums[0]);
    store_pair(to + 8 * factor_stride(size) + h * 8, out[h][2] * sums[1], out[h][3] * sums[1]);
  }
}

__device__ __forceinline__ float gelu(float x, bool is_erf) {
  if (is_erf) return x * fmaf(0.5f, erff(x * 0.7071067811865475f), 0.5f);
  // 0.5·(1 + tanh(u)) = sigmoid(2u)
  return x * __fdividef(1.0f, 1.0f + __expf(-2 * 0.7978845608028654f * (x + 0.044715f * x * x * x)));
}

/// What one block does meanwhile: the copies, and all weights set out for the second-level cache.
__device__ __forceinline__ void bring(const char* packed, int packed_bytes, const CopiedWords& copied) {
  const int thread = static_cast<int>(threadIdx.x);
  int words[kMaxCopiedWords / kThreads] = {};
#pragma unroll
  for (int j = 0; j < kMaxCopiedWords / kThreads; ++j) {
    if (thread + j * kThreads < copied.count) words[j] = copied.from[thread + j * kThreads];
  }
#pragma unroll 1
  for (int i = thread * 128; i < packed_bytes; i += kThreads * 128) prefetch_l2(packed + i);
#pragma unroll
  for (int j = 0; j < kMaxCopiedWords / kThreads; ++j) {
    if (thread + j * kThreads < copied.count) copied.to[thread + j * kThreads] = words[j];
  }
}

/// What the other blocks do: they read the bytes, for the second-level cache alone.   slot [kThreads·16] scratch
__device__ __forceinline__ void fetch(const FetchedBytes& fetched, int block, int num_blocks, char* slot) {
  constexpr int64_t kPiece = kThreads * 16;
  const char* const from = static_cast<const char*>(fetched.from);
  const int64_t own = static_cast<int64_t>(threadIdx.x) * 16;
#pragma unroll 1
  for (int64_t i = block * kPiece + own; i + 16 <= fetched.count; i += num_blocks * kPiece) {
    cp_async_16(slot + own, from + i, true);
    cp_async_commit();
    cp_async_wait<kFetchGroups>();
  }
  cp_async_wait<0>();
}

/// The first cluster encodes; the next block copies, the others fetch.   See encode_sequence().
template <int kWidth, int kMaxKeys>
__global__ void __launch_bounds__(kThreads, 1)
    encode_sequence_kernel(Shape shape, Layout layout, const char* packed, const bf16* words, const bf16* positions,
                           float norm_eps, bool norm_after, bool is_erf, int cluster_size, int max_length,
                           const int32_t* length, const int32_t* ids, bf16* query, CopiedWords copied,
                           FetchedBytes fetched) {
  constexpr int kStages = stages_of(kMaxKeys), kTiles = kWidth / 64;
  LIMBECK_SHARED_MEMORY(char, shared);
  const int helper = static_cast<int>(blockIdx.x) - cluster_size;
  if (helper == 0) return bring(packed, shape.packed_bytes(), copied);
  if (helper > 0) return fetch(fetched, helper - 1, static_cast<int>(gridDim.x) - cluster_size - 1, shared);
  const int tile = cluster_rank(), thread = static_cast<int>(threadIdx.x);
  cluster_arrive();  // says that this block runs

  // The request may come from far away: all of it at once, and the parameters meanwhile.
  constexpr int kPacks = kWidth / 8;  // of a row
  const int d = shape.hidden_size, row = tile * kRows + thread / kPacks, column = thread % kPacks * 8;
  const bool may_be_used = thread < kRows * kPacks && row < max_length && column < d;
  int id = 0;
  if (may_be_used) id = ids[row];
  const int N = *length;
  const float* const norms = reinterpret_cast<const float*>(shared + layout.parameters);
  const bf16* biases = reinterpret_cast<const bf16*>(shared + layout.parameters + shape.bias_offset());
#pragma unroll 1
  for (int i = thread * 16; i < shape.weight_offset(); i += kThreads * 16) {
    cp_async_16(shared + layout.parameters + i, packed + i, true);
  }
  cp_async_commit();
  Weights<kStages> weights;
  weights.start(packed + shape.weight_offset(), shared + layout.weights, shape.num_layers * shape.layer_groups());
  float position[8] = {};
  if (may_be_used) load(positions + row * d + column, position);

  const int num_tiles = (N + kRows - 1) / kRows;
  if (tile >= num_tiles) {
    cp_async_wait<0>();
    cluster_wait();
    return;
  }
  float* const stream = reinterpret_cast<float*>(shared);                      // [16, d] fp32
  bf16* const queries = reinterpret_cast<bf16*>(shared + layout.queries);      // [16, H·hd]
  bf16* const keys = reinterpret_cast<bf16*>(shared + layout.keys);            // [max_length, keys and values 2·H·hd]
  bf16* const attended = reinterpret_cast<bf16*>(shared + layout.attended);    // [16, H·hd]
  bf16* const activated = reinterpret_cast<bf16*>(shared + layout.activated);  // [16, I]
  const int own_row = own_lane() / 4, size = shape.size, intermediate = shape.intermediate;

  // The embeddings, zeros beyond the last.
  if (thread < kRows * kPacks) {
    float x[8] = {};
    if (may_be_used && row < N) {
      load(words + static_cast<int64_t>(id) * d + column, x);
#pragma unroll
      for (int j = 0; j < 8; ++j) x[j] += position[j];
    }
    store(stream + thread / kPacks * stream_stride(kWidth) + column, x);
  }
  cp_async_wait<kStages>();  // norms and biases
  __syncthreads();
  float own[kTiles][4];
#pragma unroll
  for (int c = 0; c < kTiles; ++c) {
    const float* const from = stream + own_row * stream_stride(kWidth) + c * 64 + own_column();
    const float2 upper = load_pair(from), lower = load_pair(from + 8 * stream_stride(kWidth));
    own[c][0] = upper.x;
    own[c][1] = upper.y;
    own[c][2] = lower.x;
    own[c][3] = lower.y;
  }

  // Attention, then the MLP, of each layer: a norm, a product that the warps share, and one that adds to the stream.
  uint32_t a[kTiles][4][4];
  const int num_steps = 2 * shape.num_layers, last_tile = num_tiles - 1;
#pragma unroll 1
  for (int step = 0;; ++step) {
    normalize<kWidth>(stream, norms + step * 2 * kWidth, d, norm_eps, norm_after, own, a);
    if (step == num_steps) break;
    const bf16* factor = attended;
    int factor_size = size;
    if (step % 2 == 0) {
      // After the last layer only the last row is read: all that leads to others alone is left out.
      const bool is_last = step + 2 == num_steps;
      const int first_reader = is_last ? last_tile : tile + 1;
      if (step == 0 || num_tiles > 1) cluster_wait();  // nobody reads the keys of the layer before
#pragma unroll 1
      for (int c = 0; c < size; c += 64) {
        float y[3][4], other_y[3][4] = {};
#pragma unroll
        for (int part = 0; part < 3; ++part) {
          set_bias(biases + part * size + c, y[part]);
#pragma unroll
          for (int k = 0; k < kTiles; ++k) weights.multiply(a[k], y[part], other_y[part]);
        }
#pragma unroll
        for (int part = 0; part < 3; ++part) {
#pragma unroll
          for (int i = 0; i < 4; ++i) y[part][i] += other_y[part][i];
        }
        const int to = c + own_column();
        store_pair(queries + own_row * matrix_stride(size) + to, y[0][0], y[0][1]);
        store_pair(queries + (own_row + 8) * matrix_stride(size) + to, y[0][2], y[0][3]);
        bf16* const upper = keys + (tile * kRows + own_row) * matrix_stride(2 * size) + to;
        bf16* const lower = upper + 8 * matrix_stride(2 * size);
#pragma unroll
        for (int part = 1; part < 3; ++part) {
          store_pair(upper + (part - 1) * size, y[part][0], y[part][1]);
          store_pair(lower + (part - 1) * size, y[part][2], y[part][3]);
        }
#pragma unroll 1
        for (int reader = first_reader; reader < num_tiles && reader != tile; ++reader) {
#pragma unroll
          for (int part = 1; part < 3; ++part) {
            cluster_store(upper + (part - 1) * size, reader, pack_bf16(y[part][0], y[part][1]));
            cluster_store(lower + (part - 1) * size, reader, pack_bf16(y[part][2], y[part][3]));
          }
        }
      }
      if (num_tiles > 1) {
        cluster_arrive();
        cluster_wait();
      } else {
        __syncthreads();
      }
      if (is_last && tile != last_tile) {
        cp_async_wait<0>();
        return;
      }
      attend<kMaxKeys / 16>(queries, keys, size, shape.num_heads, shape.head_dim, tile, attended);
      if (num_tiles > 1 && !is_last) cluster_arrive();
      biases += 3 * size;
    } else {
#pragma unroll 1
      for (int c = 0; c < intermediate; c += 128) {
        float y[2][4], other_y[2][4] = {};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          set_bias(biases + c + i * 64, y[i]);
#pragma unroll
          for (int k = 0; k < kTiles; ++k) weights.multiply(a[k], y[i], other_y[i]);
        }
        bf16* const to = activated + own_row * factor_stride(intermediate) + c + own_column();
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float z[4];
#pragma unroll
          for (int j = 0; j < 4; ++j) z[j] = gelu(y[i][j] + other_y[i][j], is_erf);
          store_pair(to + i * 64, z[0], z[1]);
          store_pair(to + 8 * factor_stride(intermediate) + i * 64, z[2], z[3]);
        }
      }
      biases += intermediate;
      factor = activated;
      factor_size = intermediate;
    }
    __syncthreads();
    add_product<kWidth>(factor, factor_stride(factor_size), factor_size / kTerms, biases, weights, own, stream);
    __syncthreads();
    biases += kWidth;
  }

  if (own_warp() > 0) return;
  const int last_row = (N - 1) % kRows;
  if (own_row != last_row % 8) return;
#pragma unroll
  for (int p = 0; p < kWidth / 32; ++p) {
    const int to = p * 32 + own_lane() % 4 * 8, i = last_row / 8;
    const uint32_t(&a0)[4] = a[p / 2][p % 2 * 2], (&a1)[4] = a[p / 2][p % 2 * 2 + 1];
    if (to < d) {
      store_16(query + to, i == 0 ? make_uint4(a0[0], a0[2], a1[0], a1[2]) : make_uint4(a0[1], a0[3], a1[1], a1[3]));
    }
  }
}

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
         max_length <= kMaxLength && max_length <= config.max_position_embeddings &&
         static_cast<size_t>(
             layout_of(shape_of(static_cast<int>(config.num_hidden_layers), static_cast<int>(config.hidden_size),
                                static_cast<int>(config.num_attention_heads), static_cast<int>(config.head_dim),
                                static_cast<int>(config.intermediate_size)),
                       static_cast<int>(max_length))
                 .size) <= max_shared_bytes;
}

size_t encoder_shared_bytes() {
  int device = 0;
  cudaDeviceProp properties;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  check_cuda(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  return properties.major < 9 ? 0 : properties.sharedMemPerBlockOptin;
}

size_t fetchable_bytes() {
  int device = 0;
  cudaDeviceProp properties;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  check_cuda(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  return static_cast<size_t>(properties.l2CacheSize) / 2;
}

int64_t packed_encoder_bytes(const SequenceEncoder& encoder) { return shape_of(encoder).packed_bytes(); }

void pack_encoder(Context& context, const SequenceEncoder& encoder, char* packed) {
  launch(context, pack_encoder_kernel, dim3(64), dim3(256), 0, encoder, shape_of(encoder), packed);
}

void encode_sequence(Context& context, const SequenceEncoder& encoder, const char* packed, int64_t max_length,
                     const int32_t* length, const int32_t* ids, bf16* query, const CopiedWords& copied,
                     const FetchedBytes& fetched) {
  const Shape shape = shape_of(encoder);
  const int most = static_cast<int>(max_length);
  const Layout layout = layout_of(shape, most);
  int cluster_size = 1;
  while (cluster_size * kRows < most) cluster_size *= 2;
  // Not on all multiprocessors: the weights come the same way.
  const int fetching =
      fetched.count > 0 ? std::clamp(context.num_multiprocessors - cluster_size - 1, 0, kMaxFetchingBlocks) : 0;
  const int grid = round_up(cluster_size + 1 + fetching, cluster_size);
  const auto run = [&](auto kernel) {
    launch_clusters(context, kernel, cluster_size, dim3(static_cast<unsigned>(grid)), dim3(kThreads),
                    static_cast<size_t>(layout.size), shape, layout, packed, encoder.words, encoder.positions,
                    encoder.norm_eps, encoder.norm_after, encoder.is_erf, cluster_size, most, length, ids, query,
                    copied, fetched);
  };
  if (most <= kShortLength) {
    run(shape.width == 64 ? encode_sequence_kernel<64, kShortLength> : encode_sequence_kernel<128, kShortLength>);
  } else {
    run(shape.width == 64 ? encode_sequence_kernel<64, kMaxLength> : encode_sequence_kernel<128, kMaxLength>);
  }
}

}  // namespace limbeck::cuda
