// Attention on the tensor cores of compute capability 9.0, forward (Shah et al. 2024, FlashAttention-3,
// arXiv:2407.08608, alg. 2).
//
// Four warps multiply together, keys and values where they are in shared memory, in the background: while the softmax
// of a tile of keys is computed, the probabilities of the tile before are multiplied with its values. A warpgroup has
// 64 query rows of a head.

#include "cuda/attention_tiles.h"
#include "cuda/driver.h"
#include "cuda/launch.h"

namespace limbeck::cuda {

namespace {

/// kStages: tiles of keys, and of values, that are in shared memory or on their way there.
template <int kDim_, int kWarpgroups_, int kKeys_, int kStages_, int kBlocksAtOnce_>
struct WarpgroupForward {
  static constexpr int kDim = kDim_, kWarpgroups = kWarpgroups_, kKeys = kKeys_, kStages = kStages_;
  static constexpr int kThreads = 128 * kWarpgroups, kRows = 64 * kWarpgroups, kBlocksAtOnce = kBlocksAtOnce_;
  static constexpr bool kQueriesStayInRegisters = kDim <= 64;
  static constexpr int kQueryFragments = kQueriesStayInRegisters ? kDim / 16 : 1;
  static_assert(kQueryFragments <= 4, "16 registers of the queries");
  static constexpr int kTile = kKeys * kDim;
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
    float tile_largest[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float x = fmaxf(scores[0][0][2 * i], scores[0][0][2 * i + 1]);
#pragma unroll
      for (int n = 1; n < N; ++n) x = fmaxf(x, fmaxf(scores[0][n][2 * i], scores[0][n][2 * i + 1]));
      x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
      tile_largest[i] = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
    }
    const bool is_larger = fmaxf(tile_largest[0] - largest[0], tile_largest[1] - largest[1]) * scale > kSlack;
    const bool rescales = __any_sync(kAllLanes, is_larger);
    if (rescales) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float larger = fmaxf(largest[i], tile_largest[i]);
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
__device__ __forceinline__ void multiply_keys(float (&scores)[1][F::kKeys / 8][4],
                                              const uint32_t (&queries)[F::kQueryFragments][1][4],
                                              uint64_t query_matrix, uint64_t keys) {
#pragma unroll
  for (int k = 0; k < F::kDim / 16; ++k) {
    const uint64_t b = later_matrix(keys, k / 4 * F::panel_bytes(F::kKeys) + k % 4 * 32);
    if constexpr (F::kQueriesStayInRegisters) {
      wgmma<false>(scores[0], queries[k][0], b, k > 0);
    } else {
      wgmma<false>(scores[0], later_matrix(query_matrix, k / 4 * F::panel_bytes(F::kRows) + k % 4 * 32), b, k > 0);
    }
  }
  wgmma_commit();
}

/// out += probabilities · values, in the background.
template <typename F>
__device__ __forceinline__ void multiply_values(float (&out)[1][F::kDim / 8][4],
                                                const uint32_t (&probabilities)[F::kKeys / 16][1][4], uint64_t values) {
#pragma unroll
  for (int k = 0; k < F::kKeys / 16; ++k) {
    wgmma<true>(out[0], probabilities[k][0], later_matrix(values, k * 2048), true);
  }
  wgmma_commit();
}

template <typename F>
__global__ void __launch_bounds__(F::kThreads, F::kBlocksAtOnce)
    attention_forward_sm90_kernel(AttentionTask task, const bf16* qkv, bf16* y, float* lse) {
#ifdef LIMBECK_HAS_WGMMA
  constexpr int kDim = F::kDim, kKeys = F::kKeys, kStages = F::kStages;
  LIMBECK_MATRIX_MEMORY(bf16, shared);
  const AttentionPart part = attention_part(task, task.num_heads);
  // The blocks with most keys come first.
  const int block_row = (task.blocks_per_head - 1 - part.block) * F::kRows;
  if (block_row >= part.length) return;
  const int dim = task.head_dim, length = part.length;
  // Read from a lane, so that the compiler knows it to be the same in a warp.
  const int warp = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / 32, 0);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int group_row = block_row + warp / 4 * 64, warp_row = block_row + warp * 16;
  const int64_t stride = task.row_stride();
  const bf16* const rows = qkv + part.first * stride;
  const int kv_head = part.head / (task.num_heads / task.num_kv_heads);

  const int first_tile = task.keys_begin(block_row) / kKeys;
  const int end_tile = (task.keys_end(block_row, F::kRows, length) + kKeys - 1) / kKeys;
  // Of the warpgroup; it computes the tiles before its window, too, which add nothing.
  const int group_end = group_row < length ? (task.keys_end(group_row, 64, length) + kKeys - 1) / kKeys : first_tile;

  // Tile t is in slot (t − first_tile) % kStages, of keys and of values. This thread copies the same chunk of every
  // kStep-th row.
  constexpr int kStep = F::kThreads / 8;
  const int row = static_cast<int>(threadIdx.x) / 8, chunk = static_cast<int>(threadIdx.x) % 8;
  const bool has_chunk = kDim - 64 + chunk * 8 < dim;  // of the last panel; those before are full
  bf16* const place = tile_chunk<64>(shared, row, chunk);
  const int row_step = static_cast<int>(stride), to_values = task.num_kv_heads * dim;
  const auto load = [&](bf16* to, const bf16* from, int num_rows) {
#pragma unroll
    for (int column = 0; column < kDim; column += 64) {
#pragma unroll
      for (int r = 0; r < kKeys; r += kStep) {
        cp_async_16(to + column * kKeys + r * 64, from + column + r * row_step,
                    r < num_rows && (column + 64 < kDim || has_chunk));
      }
    }
  };
  // Of the next keys to load.
  int load_rows = length - first_tile * kKeys - row;
  const bf16* source =
      rows + (first_tile * kKeys + row) * stride + static_cast<int64_t>(task.num_heads + kv_head) * dim + chunk * 8;
  const auto load_keys = [&](int slot) { load(place + F::kKeysAt + slot * F::kTile, source, load_rows); };
  const auto advance = [&] {
    source += kKeys * row_step;
    load_rows -= kKeys;
  };
  load_panels_async<F::kRows, kDim, F::kThreads>(shared, rows + block_row * stride + part.head * dim, stride,
                                                 length - block_row, dim);
  load_keys(0);
  cp_async_commit();
#pragma unroll
  for (int i = 0; i < kStages; ++i) {
    if (first_tile + i < end_tile) load(place + F::kValuesAt + i * F::kTile, source + to_values, load_rows);
    advance();
    if (i + 1 < kStages && first_tile + i + 1 < end_tile) load_keys(i + 1);
    cp_async_commit();
  }
  const uint64_t query_matrix = describe_matrix(shared + warp / 4 * 64 * 64, 16);
  const uint64_t key_matrix = describe_matrix(shared + F::kKeysAt, 16);
  const uint64_t value_matrix = describe_matrix(shared + F::kValuesAt, F::panel_bytes(kKeys));
  constexpr int kTileBytes = F::kTile * static_cast<int>(sizeof(bf16));
  cp_async_wait<kStages>();  // queries and the first keys
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
  const auto round_probabilities = [&] {
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) left_of_sums(probabilities[k], scores, k);
  };
  if (first_tile < group_end) {
    wgmma_fence();
    multiply_keys<F>(scores, queries, query_matrix, key_matrix);
    wgmma_wait<0>(scores[0]);
    mask_unseen(task, scores, warp_row, first_tile * kKeys, length, -INFINITY);
    softmax.add(scores, scale, factors);
    round_probabilities();
  }

  int slot = 0;
#pragma unroll 1
  for (int tile = first_tile; tile < end_tile; ++tile) {
    const int next_slot = slot + 1 == kStages ? 0 : slot + 1, last_slot = slot == 0 ? kStages - 1 : slot - 1;
    cp_async_wait<kStages - 2>();  // this tile's values, and the next keys …
    fence_async_proxy();
    __syncthreads();  // … of all threads; and nobody reads this tile's keys, or the values before
    if (tile > first_tile && tile + kStages - 1 < end_tile) {
      load(place + F::kValuesAt + last_slot * F::kTile, source - kKeys * row_step + to_values, load_rows + kKeys);
    }
    if (tile + kStages < end_tile) load_keys(slot);
    cp_async_commit();
    advance();
    if (tile + 1 < group_end) {
      wgmma_fence();
      multiply_keys<F>(scores, queries, query_matrix, later_matrix(key_matrix, next_slot * kTileBytes));
      multiply_values<F>(out, probabilities, later_matrix(value_matrix, slot * kTileBytes));
      wgmma_wait<1>(scores[0]);
      mask_unseen(task, scores, warp_row, (tile + 1) * kKeys, length, -INFINITY);
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
    } else if (tile < group_end) {
      wgmma_fence();
      multiply_values<F>(out, probabilities, later_matrix(value_matrix, slot * kTileBytes));
      wgmma_wait<0>(out[0]);
    }
    slot = next_slot;
  }

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
  const unsigned blocks = attention_blocks(task, shape, shape.num_attention_heads, F::kRows);
  launch(context, attention_forward_sm90_kernel<F>, dim3(blocks), dim3(F::kThreads), F::kSharedBytes, task, qkv, y,
         lse);
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
  // Of short sequences, more blocks at once: they wait for memory, not for each other.
  const bool is_short = shape.max_length <= 128;
  if (shape.head_dim > 64) {
    is_short ? launch_forward<WarpgroupForward<128, 1, 64, 2, 3>>(context, task, shape, qkv, y, lse)
             : launch_forward<WarpgroupForward<128, 2, 128, 2, 1>>(context, task, shape, qkv, y, lse);
  } else {
    is_short ? launch_forward<WarpgroupForward<64, 1, 64, 2, 4>>(context, task, shape, qkv, y, lse)
             : launch_forward<WarpgroupForward<64, 2, 64, 3, 2>>(context, task, shape, qkv, y, lse);
  }
}

}  // namespace limbeck::cuda
