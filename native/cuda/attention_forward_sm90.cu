// Attention on the tensor cores of compute capability 9.0, forward (Shah et al. 2024, FlashAttention-3,
// arXiv:2407.08608, alg. 2).
//
// A block is one warpgroup, four warps with 64 query rows of a head, which multiply together, keys and values where
// they are in shared memory, in the background: while the softmax of a tile of keys is computed, the probabilities of
// the tile before are multiplied with its values. Several blocks a multiprocessor, none of which waits for another,
// compute exponentials while others multiply.

#include <type_traits>

#include "cuda/attention_tiles.h"
#include "cuda/driver.h"
#include "cuda/launch.h"

namespace limbeck::cuda {

namespace {

constexpr int kThreads = 128, kRows = 64, kKeys = 64;
constexpr int kStages = 2;  // one tile of keys, and one of values, is on its way

template <int kDim_, int kBlocksAtOnce_>
struct WarpgroupForward {
  static constexpr int kDim = kDim_, kBlocksAtOnce = kBlocksAtOnce_;
  static constexpr bool kQueriesStayInRegisters = kDim <= 64;
  static constexpr int kQueryFragments = kQueriesStayInRegisters ? kDim / 16 : 1;
  static constexpr int kTile = kKeys * kDim, kTileBytes = kTile * static_cast<int>(sizeof(bf16));
  static constexpr int kKeysAt = kRows * kDim, kValuesAt = kKeysAt + kStages * kTile;
  /// Of so many rows of 64 columns.
  static __device__ __forceinline__ constexpr int panel_bytes(int rows) { return rows * 128; }
  static constexpr size_t kSharedBytes = (kValuesAt + kStages * kTile) * sizeof(bf16);
};

/// Softmax of a warp's 16 rows as it goes on over tiles of keys: row lane/4 + 8·i.
struct RunningSoftmax {
  float largest[2] = {-1e30f, -1e30f};  // of scores before scaling; finite: a difference of two is never NaN
  float sums[2] = {0, 0};               // of this lane's columns

  /// scores ← their exponentials. What was summed before must be multiplied with `factors`, where this returns true.
  template <int N>
  __device__ __forceinline__ bool add(float (&scores)[1][N][4], float scale, float (&factors)[2]) {
    float tile_largest[2];  // of this lane's columns
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float even = fmaxf(scores[0][0][2 * i], scores[0][0][2 * i + 1]);  // two chains of half the length
      float odd = fmaxf(scores[0][1][2 * i], scores[0][1][2 * i + 1]);
#pragma unroll
      for (int n = 2; n < N; n += 2) {
        even = fmaxf(even, fmaxf(scores[0][n][2 * i], scores[0][n][2 * i + 1]));
        odd = fmaxf(odd, fmaxf(scores[0][n + 1][2 * i], scores[0][n + 1][2 * i + 1]));
      }
      tile_largest[i] = fmaxf(even, odd);
    }
    const bool is_larger = fmaxf(tile_largest[0] - largest[0], tile_largest[1] - largest[1]) * scale > kSlack;
    const bool rescales = __any_sync(kAllLanes, is_larger);
    if (rescales) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float larger = fmaxf(tile_largest[i], __shfl_xor_sync(kAllLanes, tile_largest[i], 1));
        larger = fmaxf(largest[i], fmaxf(larger, __shfl_xor_sync(kAllLanes, larger, 2)));
        factors[i] = exp2_approx((largest[i] - larger) * scale);
        largest[i] = larger;
        sums[i] *= factors[i];
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float shift = largest[i] * scale;
#pragma unroll
      for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          float& x = scores[0][n][2 * i + j];
          x = exp2_approx(fmaf(x, scale, -shift));
          sums[i] += x;
        }
      }
    }
    return rescales;
  }
};

/// scores = queries · keysᵀ, in the background; `queries`: as registers or as a matrix.
template <typename F>
__device__ __forceinline__ void multiply_keys(float (&scores)[1][kKeys / 8][4],
                                              const uint32_t (&queries)[F::kQueryFragments][1][4],
                                              uint64_t query_matrix, uint64_t keys) {
#pragma unroll
  for (int k = 0; k < F::kDim / 16; ++k) {
    const uint64_t b = later_matrix(keys, k / 4 * F::panel_bytes(kKeys) + k % 4 * 32);
    if constexpr (F::kQueriesStayInRegisters) {
      wgmma<false>(scores[0], queries[k][0], b, k > 0);
    } else {
      wgmma<false>(scores[0], later_matrix(query_matrix, k / 4 * F::panel_bytes(kRows) + k % 4 * 32), b, k > 0);
    }
  }
  wgmma_commit();
}

/// out += probabilities · values, in the background.
template <typename F>
__device__ __forceinline__ void multiply_values(float (&out)[1][F::kDim / 8][4],
                                                const uint32_t (&probabilities)[kKeys / 16][1][4], uint64_t values) {
#pragma unroll
  for (int k = 0; k < kKeys / 16; ++k) {
    wgmma<true>(out[0], probabilities[k][0], later_matrix(values, k * 2048), true);
  }
  wgmma_commit();
}

template <typename F>
__global__ void __launch_bounds__(kThreads, F::kBlocksAtOnce)
    attention_forward_sm90_kernel(AttentionTask task, const bf16* qkv, bf16* y, float* lse) {
#ifdef LIMBECK_HAS_WGMMA
  constexpr int kDim = F::kDim;
  LIMBECK_MATRIX_MEMORY(bf16, shared);
  const AttentionPart part = attention_part(task, task.num_heads, block_from_last());
  const int block_row = part.block * kRows;  // the blocks with most keys come first
  if (block_row >= part.length) return;
  const int dim = task.head_dim, length = part.length;
  // Read from a lane, so that the compiler knows it to be the same in a warp.
  const int warp = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / 32, 0);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp_row = block_row + warp * 16;
  const int64_t stride = task.row_stride();
  const bf16* const rows = qkv + part.first * stride;
  const int kv_head = part.head / (task.num_heads / task.num_kv_heads);

  const int first_tile = task.keys_begin(block_row) / kKeys;
  const int end_tile = (task.keys_end(block_row, kRows, length) + kKeys - 1) / kKeys;
  // Tiles all of whose keys all rows see.
  const int first_plain = (task.keys_begin(block_row + kRows - 1) + kKeys - 1) / kKeys;
  const int end_plain = (task.last_key(block_row, length) + 1) / kKeys;

  // Tile t is in slot (t − first_tile) % 2, of keys and of values. This thread copies the same chunk of every kStep-th
  // row.
  constexpr int kStep = kThreads / 8;
  const int row = static_cast<int>(threadIdx.x) / 8, chunk = static_cast<int>(threadIdx.x) % 8;
  const bool has_chunk = kDim - 64 + chunk * 8 < dim;  // of the last panel; those before are full
  bf16* const place = tile_chunk<64>(shared, row, chunk);
  const int next_rows = kStep * static_cast<int>(stride), next_tile = kKeys * static_cast<int>(stride);
  const auto load = [&](bf16* to, const bf16* from, int tile) {
    const int num_rows = length - tile * kKeys - row;
    const auto copy = [&](auto is_valid) {
#pragma unroll
      for (int column = 0; column < kDim; column += 64) {
        const bf16* next = from + column;
#pragma unroll
        for (int r = 0; r < kKeys; r += kStep) {
          cp_async_16(to + column * kKeys + r * 64, next, is_valid(r) && (column + 64 < kDim || has_chunk));
          next += next_rows;
        }
      }
    };
    if ((tile + 1) * kKeys <= length) {
      copy([](int) { return true; });
    } else {
      copy([&](int r) { return r < num_rows; });
    }
  };
  // Of the next tile to load; its values, and those of the tile before, are so many elements further.
  const bf16* keys =
      rows + (first_tile * kKeys + row) * stride + static_cast<int64_t>(task.num_heads + kv_head) * dim + chunk * 8;
  const int to_values = task.num_kv_heads * dim;
  const auto load_keys = [&](int tile, int slot) {
    if (tile < end_tile) load(place + F::kKeysAt + slot * F::kTile, keys, tile);
    keys += next_tile;
  };
  const auto load_values = [&](int tile, int slot, int offset) {
    load(place + F::kValuesAt + slot * F::kTile, keys + offset, tile);
  };
  load_panels_async<kRows, kDim, kThreads>(shared, rows + block_row * stride + part.head * dim, stride,
                                           length - block_row, dim);
  load_keys(first_tile, 0);
  cp_async_commit();
  load_values(first_tile, 0, to_values - next_tile);
  load_keys(first_tile + 1, 1);
  cp_async_commit();
  const uint64_t query_matrix = describe_matrix(shared, 16);
  const uint64_t key_matrix = describe_matrix(shared + F::kKeysAt, 16);
  const uint64_t value_matrix = describe_matrix(shared + F::kValuesAt, F::panel_bytes(kKeys));
  cp_async_wait<1>();  // queries and the first keys
  fence_async_proxy();
  __syncthreads();

  uint32_t queries[F::kQueryFragments][1][4];
  if constexpr (F::kQueriesStayInRegisters) {
    const SharedAddress lane_queries = lane_rows<64>(shared, warp * 16);
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) load_left<1, 64>(queries[k], lane_queries, k);
  }
  const float scale = task.scale * kLog2OfE;  // scores in powers of 2
  RunningSoftmax softmax;
  float scores[1][kKeys / 8][4], out[1][kDim / 8][4], factors[2];
  uint32_t probabilities[kKeys / 16][1][4];
  clear(out);
  const auto mask = [&](int tile) {
    if (tile >= first_plain && tile < end_plain) return;
    mask_unseen(task, scores, warp_row, tile * kKeys, length, -INFINITY);
  };
  const auto round_probabilities = [&] {
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) left_of_sums(probabilities[k], scores, k);
  };
  wgmma_fence();
  multiply_keys<F>(scores, queries, query_matrix, key_matrix);
  wgmma_wait<0>(scores[0]);
  mask(first_tile);
  softmax.add(scores, scale, factors);
  round_probabilities();

  int tile = first_tile;
  /// Takes this tile's values, in slot kSlot, and the next one's keys.
  const auto step = [&](auto slot) {
    constexpr int kSlot = decltype(slot)::value, kNextSlot = 1 - kSlot;
    cp_async_wait<0>();  // this tile's values, and the next keys …
    fence_async_proxy();
    __syncthreads();  // … of all threads; and nobody reads this tile's keys, or the values before
    load_values(tile + 1, kNextSlot, to_values - next_tile);
    load_keys(tile + 2, kSlot);
    cp_async_commit();
    ++tile;
    wgmma_fence();
    multiply_keys<F>(scores, queries, query_matrix, later_matrix(key_matrix, kNextSlot * F::kTileBytes));
    multiply_values<F>(out, probabilities, later_matrix(value_matrix, kSlot * F::kTileBytes));
    wgmma_wait<1>(scores[0]);
    mask(tile);
    const bool rescales = softmax.add(scores, scale, factors);
    compute_first(softmax.sums[0] + softmax.sums[1]);
    wgmma_wait<0>(out[0]);
    if (rescales) {
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) out[0][n][i] *= factors[i / 2];
      }
    }
    round_probabilities();
  };
#pragma unroll 1
  while (tile + 2 < end_tile) {
    step(std::integral_constant<int, 0>());
    step(std::integral_constant<int, 1>());
  }
  const bool is_odd = tile + 1 < end_tile;
  if (is_odd) step(std::integral_constant<int, 0>());
  cp_async_wait<0>();  // the last tile's values
  fence_async_proxy();
  __syncthreads();
  wgmma_fence();
  multiply_values<F>(out, probabilities, later_matrix(value_matrix, is_odd ? F::kTileBytes : 0));
  wgmma_wait<0>(out[0]);

#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float sum = lanes_sum<4>(softmax.sums[i]);
    factors[i] = sum > 0 ? 1.0f / sum : 0.0f;
    const int query = warp_row + 8 * i + lane / 4;
    if (lane % 4 == 0 && query < length) {
      lse[part.head * task.num_tokens + part.first + query] = (softmax.largest[i] * scale + log2f(sum)) * kLogOf2;
    }
  }
  // Where the queries were: after the last barrier nobody reads them.
  store_sums<1, kDim>(shared, warp * 16, out, factors);
  __syncwarp();
  const int64_t y_stride = task.y_stride();
  store_tile_rows<16, kDim>(shared, warp * 16, y + (part.first + block_row) * y_stride + part.head * dim, y_stride,
                            length - block_row, dim);
#endif
}

template <typename F>
void launch_forward(Context& context, AttentionTask task, const AttentionShape& shape, const bf16* qkv, bf16* y,
                    float* lse) {
  const unsigned blocks = attention_blocks(task, shape, shape.num_attention_heads, kRows);
  launch(context, attention_forward_sm90_kernel<F>, dim3(blocks), dim3(kThreads), F::kSharedBytes, task, qkv, y, lse);
}

}  // namespace

bool has_warpgroup_products() {
#if defined(LIMBECK_CUDA_EMULATED) || defined(LIMBECK_SM90A)
  return hopper_multiprocessors() > 0;
#else
  return false;
#endif
}

void warpgroup_attention_forward(Context& context, const AttentionTask& task, const AttentionShape& shape,
                                 const bf16* qkv, bf16* y, float* lse) {
  if (shape.head_dim > 64) {
    launch_forward<WarpgroupForward<128, 3>>(context, task, shape, qkv, y, lse);
  } else {
    launch_forward<WarpgroupForward<64, 4>>(context, task, shape, qkv, y, lse);
  }
}

}  // namespace limbeck::cuda
