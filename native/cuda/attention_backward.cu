// Attention on the tensor cores, backward: the same bits on every run, hence two passes instead of atomic additions.
// The first goes over query rows, for their gradients, the second over keys, for theirs and those of the values; each
// makes the probabilities anew. Tiles are as in attention_forward.cu: a warp owns rows, all else comes in tiles that
// its fragments multiply, and what it makes stays in its registers.

#include "cuda/attention_tiles.h"
#include "cuda/launch.h"

namespace limbeck::cuda {

namespace {

/// Short sequences take blocks of two warps. kHasExtras: dropout, a teacher's maps, or both.
template <int kDim_, int kWarps_, bool kHasExtras_>
struct Backward {
  static constexpr int kDim = kDim_;
  static constexpr bool kHasExtras = kHasExtras_;
  static constexpr int kWarps = kWarps_, kThreads = 32 * kWarps, kBlocksAtOnce = 8 / kWarps;
  // 32 rows of 128 columns, twice, would not fit in the registers.
  static constexpr int kRowTiles = kDim <= 64 ? 2 : 1, kWarpRows = 16 * kRowTiles, kRows = kWarps * kWarpRows;
  static constexpr int kColumns = kRows / 2;  // rows of a stage: keys in the first pass, queries in the second
  static constexpr int kStep = 32;            // of which so many are multiplied at a time
  static constexpr int kTile = kColumns * kDim, kStage = 2 * kTile, kRowTile = kRows * kDim;
  static_assert(kRowTile == kStage && kColumns % kStep == 0 && 2 * kColumns <= kThreads, "see the layouts below");
};

/// Kept elements of kStep columns of the warp's row that this lane has in row tile m, half `half`.
__device__ __forceinline__ uint32_t row_bits(uint32_t keep, int m, int half) {
  return __shfl_sync(kAllLanes, keep, 16 * m + 8 * half + static_cast<int>(threadIdx.x) % 32 / 4);
}

// d_q = Σ over keys of d_scores·k, and the shifts, which the second pass reads.
//   teacher_shifts null, or [H, N] −map_loss_scale·Σ teacher;   shifts [H, N] = Σ d_y·y + teacher_shifts
template <typename B>
__global__ void __launch_bounds__(B::kThreads, B::kBlocksAtOnce)
    attention_d_queries_kernel(AttentionTask task, const bf16* qkv, const bf16* y, const float* lse, const bf16* d_y,
                               const float* teacher_shifts, bf16* d_qkv, float* shifts) {
  constexpr int M = B::kRowTiles, N = B::kStep / 8, kDim = B::kDim;
  LIMBECK_SHARED_MEMORY(bf16, shared);
  const AttentionPart part = attention_part(task, task.num_heads, block_from_last());
  const int block_row = part.block * B::kRows;  // most keys first
  if (block_row >= part.length) return;
  const int dim = task.head_dim, length = part.length;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int tile_row = warp * B::kWarpRows, warp_row = block_row + tile_row;
  const int64_t stride = task.row_stride(), y_stride = task.y_stride();
  const int kv_head = part.head / (task.num_heads / task.num_kv_heads);
  const bf16* const keys = qkv + part.first * stride + static_cast<int64_t>(task.num_heads + kv_head) * dim;
  const bf16* const values = keys + static_cast<int64_t>(task.num_kv_heads) * dim;

  const int first_tile = task.keys_begin(block_row) / B::kColumns;
  const int end_tile = (task.keys_end(block_row, B::kRows, length) + B::kColumns - 1) / B::kColumns;
  const int warp_begin = task.keys_begin(warp_row);
  const int warp_end = warp_row < length ? task.keys_end(warp_row, B::kWarpRows, length) : 0;

  // [first stage][queries, then second stage][d_y][y]
  bf16* const queries = shared + B::kStage;
  bf16* const d_outs = queries + B::kRowTile;
  bf16* const outs = d_outs + B::kRowTile;
  const int64_t query_offset = (part.first + block_row) * stride + part.head * dim;
  const int64_t y_offset = (part.first + block_row) * y_stride + part.head * dim;
  const int num_rows = length - block_row;
  load_tile_async<B::kRows, kDim, B::kThreads>(queries, qkv + query_offset, stride, num_rows, dim);
  load_tile_async<B::kRows, kDim, B::kThreads>(d_outs, d_y + y_offset, y_stride, num_rows, dim);
  load_tile_async<B::kRows, kDim, B::kThreads>(outs, y + y_offset, y_stride, num_rows, dim);
  const auto load_stage = [&](int tile) {
    bf16* const stage = shared + ((tile - first_tile) & 1) * B::kStage;
    const int64_t key = static_cast<int64_t>(tile) * B::kColumns;
    const int num_keys = length - tile * B::kColumns;
    load_tile_async<B::kColumns, kDim, B::kThreads>(stage, keys + key * stride, stride, num_keys, dim);
    load_tile_async<B::kColumns, kDim, B::kThreads>(stage + B::kTile, values + key * stride, stride, num_keys, dim);
    cp_async_commit();
  };
  load_stage(first_tile);
  cp_async_wait<0>();
  __syncthreads();

  // This lane's rows are lane/4 + 8·i: d_y and y as fragments have them, too.
  uint32_t query[kDim / 16][M][4], d_out[kDim / 16][M][4];
  float row_lse[2 * M], shift[2 * M];
#pragma unroll
  for (int i = 0; i < 2 * M; ++i) shift[i] = 0;
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) {
    load_left<M, kDim>(query[k], lane_rows<kDim>(queries, tile_row), k);
    load_left<M, kDim>(d_out[k], lane_rows<kDim>(d_outs, tile_row), k);
    uint32_t out[M][4];
    load_left<M, kDim>(out, lane_rows<kDim>(outs, tile_row), k);
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 a = unpack_bf16(d_out[k][m][i]), b = unpack_bf16(out[m][i]);
        shift[2 * m + i % 2] = fmaf(a.x, b.x, fmaf(a.y, b.y, shift[2 * m + i % 2]));
      }
    }
  }
  uint64_t seed = 0;
  int64_t map = 0;
  if constexpr (B::kHasExtras) {
    if (task.seed) seed = *task.seed;
    map = head_map(task, part, part.head);
  }
#pragma unroll
  for (int i = 0; i < 2 * M; ++i) {
    const int row = warp_row + 8 * i + lane / 4;
    shift[i] = lanes_sum<4>(shift[i]);
    row_lse[i] = INFINITY;  // rows past the end: probabilities 0
    if (row < length) {
      const int64_t index = part.head * task.num_tokens + part.first + row;
      row_lse[i] = lse[index] * kLog2OfE;
      if constexpr (B::kHasExtras) {
        if (teacher_shifts) shift[i] += teacher_shifts[index];
      }
      if (lane % 4 == 0) shifts[index] = shift[i];
    }
  }

  const float scale = task.scale * kLog2OfE;
  float d_query[M][kDim / 8][4];
  clear(d_query);
#pragma unroll 1
  for (int tile = first_tile; tile < end_tile; ++tile) {
    cp_async_wait<0>();
    __syncthreads();  // this tile is there, and nobody reads the one before
    if (tile + 1 < end_tile) load_stage(tile + 1);
    const bf16* const key_tile = shared + ((tile - first_tile) & 1) * B::kStage;
    const bf16* const value_tile = key_tile + B::kTile;
#pragma unroll 1
    for (int step = 0; step < B::kColumns; step += B::kStep) {
      const int key = tile * B::kColumns + step;
      if (key >= warp_end || key + B::kStep <= warp_begin) continue;
      const SharedAddress lane_keys = lane_columns<kDim>(key_tile, step);
      const SharedAddress lane_values = lane_columns<kDim>(value_tile, step);
      float scores[M][N][4], d_scores[M][N][4];
      clear(scores);
      clear(d_scores);
#pragma unroll
      for (int k = 0; k < kDim / 16; ++k) multiply_rows<M, N, kDim>(scores, query[k], lane_keys, k);
#pragma unroll
      for (int k = 0; k < kDim / 16; ++k) multiply_rows<M, N, kDim>(d_scores, d_out[k], lane_values, k);

        // Scores to probabilities.
#pragma unroll
      for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            scores[m][n][i] = exp2_approx(fmaf(scores[m][n][i], scale, -row_lse[2 * m + i / 2]));
          }
        }
      }
      mask_unseen(task, scores, warp_row, key, length, 0);
      if constexpr (B::kHasExtras) {
        if (task.seed) {
          const uint32_t keep = attention_keep_bits(
              task, seed, static_cast<uint64_t>(map + static_cast<int64_t>(warp_row + lane) * length + key));
#pragma unroll
          for (int i = 0; i < 2 * M; ++i) {
            const uint32_t bits = row_bits(keep, i / 2, i % 2) >> (lane % 4 * 2);
#pragma unroll
            for (int n = 0; n < N; ++n) {
#pragma unroll
              for (int j = 0; j < 2; ++j) {
                d_scores[i / 2][n][i % 2 * 2 + j] *= (bits >> (8 * n + j) & 1) != 0 ? task.keep_scale : 0.0f;
              }
            }
          }
        }
      }
#pragma unroll
      for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            d_scores[m][n][i] = scores[m][n][i] * (d_scores[m][n][i] - shift[2 * m + i / 2]);
          }
        }
      }
      if constexpr (B::kHasExtras) {
        if (task.teacher_maps) {
#pragma unroll
          for (int i = 0; i < 2 * M; ++i) {
            const int row = warp_row + 8 * i + lane / 4, column = key + lane % 4 * 2;
            if (row >= length) continue;
            const float* const teacher = task.teacher_maps + map + static_cast<int64_t>(row) * length + column;
            const int first = task.first_key(row) - column, last = task.last_key(row, length) - column;
#pragma unroll
            for (int n = 0; n < N; ++n) {
#pragma unroll
              for (int j = 0; j < 2; ++j) {
                if (8 * n + j >= first && 8 * n + j <= last) {
                  d_scores[i / 2][n][i % 2 * 2 + j] -= task.map_loss_scale * teacher[8 * n + j];
                }
              }
            }
          }
        }
      }
#pragma unroll
      for (int k = 0; k < N / 2; ++k) {
        uint32_t a[M][4];
        left_of_sums(a, d_scores, k);
        multiply_columns<M, kDim>(d_query, a, lane_rows<kDim>(key_tile, step), k);
      }
    }
  }

  cp_async_wait<0>();
  __syncthreads();  // the stages are free
  float factors[2 * M];
#pragma unroll
  for (int i = 0; i < 2 * M; ++i) factors[i] = task.scale;
  store_sums<M, kDim>(shared, tile_row, d_query, factors);
  __syncwarp();
  store_tile_rows<B::kWarpRows, kDim>(shared, tile_row, d_qkv + query_offset, stride, num_rows, dim);
}

// d_k = Σ over query rows of d_scoresᵀ·q, d_v = Σ probabilitiesᵀ·d_y, over the query heads of the group in their order.
// Scores are transposed here: a warp's rows are keys.
template <typename B>
__global__ void __launch_bounds__(B::kThreads, B::kBlocksAtOnce)
    attention_d_keys_kernel(AttentionTask task, const bf16* qkv, const float* lse, const bf16* d_y, const float* shifts,
                            bf16* d_qkv) {
  constexpr int M = B::kRowTiles, N = B::kStep / 8, kDim = B::kDim;
  LIMBECK_SHARED_MEMORY(bf16, shared);
  const AttentionPart part = attention_part(task, task.num_kv_heads);
  const int block_key = part.block * B::kRows;  // the blocks that most rows see come first
  if (block_key >= part.length) return;
  const int dim = task.head_dim, length = part.length;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int tile_row = warp * B::kWarpRows, warp_key = block_key + tile_row;
  const int64_t stride = task.row_stride(), y_stride = task.y_stride();
  const int64_t key_offset = (part.first + block_key) * stride + static_cast<int64_t>(task.num_heads + part.head) * dim;
  const int64_t value_offset = key_offset + static_cast<int64_t>(task.num_kv_heads) * dim;
  const int num_keys = length - block_key;
  const int group = task.num_heads / task.num_kv_heads;

  const int last_key = min(block_key + B::kRows, length) - 1;
  const int begin_query = task.first_query(block_key) / B::kColumns * B::kColumns;
  const int end_query = task.last_query(last_key, length) + 1;
  // What the warp needs of them.
  const int warp_last_key = warp_key + B::kWarpRows - 1;
  const int warp_begin = task.first_query(warp_key);
  const int warp_end = warp_key < length ? task.last_query(warp_last_key, length) + 1 : 0;

  // [keys][values][first stage][second stage][log-sum-exps and shifts of either stage]
  bf16* const key_tile = shared;
  bf16* const value_tile = key_tile + B::kRowTile;
  bf16* const stages = value_tile + B::kRowTile;
  float* const row_numbers = reinterpret_cast<float*>(stages + 2 * B::kStage);  // [2][2][kColumns]

  load_tile_async<B::kRows, kDim, B::kThreads>(key_tile, qkv + key_offset, stride, num_keys, dim);
  load_tile_async<B::kRows, kDim, B::kThreads>(value_tile, qkv + value_offset, stride, num_keys, dim);
  const auto load_stage = [&](int parity, int head, int query) {
    bf16* const stage = stages + parity * B::kStage;
    load_tile_async<B::kColumns, kDim, B::kThreads>(stage, qkv + (part.first + query) * stride + head * dim, stride,
                                                    length - query, dim);
    load_tile_async<B::kColumns, kDim, B::kThreads>(
        stage + B::kTile, d_y + (part.first + query) * y_stride + head * dim, y_stride, length - query, dim);
    cp_async_commit();
  };
  // The number of a query row that this thread fetches; rows past the end get probabilities 0.
  const auto row_number = [&](int head, int tile_query) {
    if (thread >= 2 * B::kColumns) return 0.0f;
    const int query = tile_query + thread % B::kColumns;
    const bool is_lse = thread < B::kColumns;
    if (query >= length) return is_lse ? INFINITY : 0.0f;
    const int64_t at = head * task.num_tokens + part.first + query;
    return is_lse ? lse[at] * kLog2OfE : shifts[at];
  };
  int head = part.head * group, tile_query = begin_query;
  const int end_head = head + group;
  load_stage(0, head, tile_query);
  float number = row_number(head, tile_query);
  if (thread < 2 * B::kColumns) row_numbers[thread] = number;

  uint64_t seed = 0;
  if constexpr (B::kHasExtras) {
    if (task.seed) seed = *task.seed;
  }
  const float scale = task.scale * kLog2OfE;
  const SharedAddress lane_keys = lane_rows<kDim>(key_tile, tile_row);
  const SharedAddress lane_values = lane_rows<kDim>(value_tile, tile_row);
  float d_key[M][kDim / 8][4], d_value[M][kDim / 8][4];
  clear(d_key);
  clear(d_value);
#pragma unroll 1
  for (int parity = 0; head < end_head; parity ^= 1) {
    cp_async_wait<0>();
    __syncthreads();  // this tile is there, and nobody reads the one before
    int next_head = head, next_query = tile_query + B::kColumns;
    if (next_query >= end_query) {
      next_query = begin_query;
      ++next_head;
    }
    if (next_head < end_head) {
      load_stage(parity ^ 1, next_head, next_query);
      number = row_number(next_head, next_query);
    }
    const bf16* const query_tile = stages + parity * B::kStage;
    const bf16* const d_out_tile = query_tile + B::kTile;
    const float* const row_lse = row_numbers + parity * 2 * B::kColumns;
#pragma unroll 1
    for (int step = 0; step < B::kColumns; step += B::kStep) {
      const int query = tile_query + step;
      if (query >= warp_end || query + B::kStep <= warp_begin) continue;
      float scores[M][N][4];
      clear(scores);
#pragma unroll
      for (int k = 0; k < kDim / 16; ++k) {
        uint32_t a[M][4];
        load_left<M, kDim>(a, lane_keys, k);
        multiply_rows<M, N, kDim>(scores, a, lane_columns<kDim>(query_tile, step), k);
      }
      // Scores to probabilities; the columns are query rows.
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const float2 shift = *reinterpret_cast<const float2*>(row_lse + step + 8 * n + lane % 4 * 2);
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            scores[m][n][i] = exp2_approx(fmaf(scores[m][n][i], scale, i % 2 == 0 ? -shift.x : -shift.y));
          }
        }
      }
      int bounds[2 * M];
      if (query + task.ahead < warp_last_key) {
#pragma unroll
        for (int i = 0; i < 2 * M; ++i) {
          bounds[i] = task.first_query(warp_key + 8 * i + lane / 4) - query - lane % 4 * 2;
        }
        mask_before(scores, bounds, 0);
      }
      if (query + B::kStep > warp_key + task.window) {
#pragma unroll
        for (int i = 0; i < 2 * M; ++i)
          bounds[i] = warp_key + 8 * i + lane / 4 + task.window - 1 - query - lane % 4 * 2;
        mask_after(scores, bounds, 0);
      }

      // kept[j][n]: bits of the keys from lane/4 on, of column 8·n + 2·(lane % 4) + j.
      uint32_t kept[2][N] = {};
      int64_t map = 0;
      if constexpr (B::kHasExtras) {
        map = head_map(task, part, head);
        if (task.seed) {
          const uint32_t keep = attention_keep_bits(
              task, seed, static_cast<uint64_t>(map + static_cast<int64_t>(query + lane) * length + warp_key));
#pragma unroll
          for (int n = 0; n < N; ++n) {
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              kept[j][n] = __shfl_sync(kAllLanes, keep, 8 * n + lane % 4 * 2 + j) >> (lane / 4);
            }
          }
        }
      }
#pragma unroll
      for (int k = 0; k < N / 2; ++k) {
        uint32_t a[M][4];
        if constexpr (B::kHasExtras) {
          if (task.seed) {
            float dropped[M][2][4];  // times keep_scale at the end
#pragma unroll
            for (int m = 0; m < M; ++m) {
#pragma unroll
              for (int n = 0; n < 2; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                  const bool is_kept = (kept[i % 2][2 * k + n] >> (16 * m + i / 2 * 8) & 1) != 0;
                  dropped[m][n][i] = is_kept ? scores[m][2 * k + n][i] : 0.0f;
                }
              }
            }
            left_of_sums(a, dropped, 0);
          } else {
            left_of_sums(a, scores, k);
          }
        } else {
          left_of_sums(a, scores, k);
        }
        multiply_columns<M, kDim>(d_value, a, lane_rows<kDim>(d_out_tile, step), k);
      }

      float d_scores[M][N][4];
      clear(d_scores);
#pragma unroll
      for (int k = 0; k < kDim / 16; ++k) {
        uint32_t a[M][4];
        load_left<M, kDim>(a, lane_values, k);
        multiply_rows<M, N, kDim>(d_scores, a, lane_columns<kDim>(d_out_tile, step), k);
      }
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const float2 shift = *reinterpret_cast<const float2*>(row_lse + B::kColumns + step + 8 * n + lane % 4 * 2);
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            float d_probability = d_scores[m][n][i];
            if constexpr (B::kHasExtras) {
              if (task.seed) {
                d_probability *= (kept[i % 2][n] >> (16 * m + i / 2 * 8) & 1) != 0 ? task.keep_scale : 0.0f;
              }
            }
            d_scores[m][n][i] = scores[m][n][i] * (d_probability - (i % 2 == 0 ? shift.x : shift.y));
          }
        }
      }
      if constexpr (B::kHasExtras) {
        if (task.teacher_maps) {
#pragma unroll
          for (int i = 0; i < 2 * M; ++i) {
            const int key = warp_key + 8 * i + lane / 4;
            if (key >= length) continue;
            const int first = task.first_query(key), last = task.last_query(key, length);
#pragma unroll
            for (int n = 0; n < N; ++n) {
#pragma unroll
              for (int j = 0; j < 2; ++j) {
                const int column = query + 8 * n + lane % 4 * 2 + j;
                if (column < first || column > last) continue;
                d_scores[i / 2][n][i % 2 * 2 + j] -=
                    task.map_loss_scale * task.teacher_maps[map + static_cast<int64_t>(column) * length + key];
              }
            }
          }
        }
      }
#pragma unroll
      for (int k = 0; k < N / 2; ++k) {
        uint32_t a[M][4];
        left_of_sums(a, d_scores, k);
        multiply_columns<M, kDim>(d_key, a, lane_rows<kDim>(query_tile, step), k);
      }
    }
    if (thread < 2 * B::kColumns) row_numbers[(parity ^ 1) * 2 * B::kColumns + thread] = number;
    head = next_head;
    tile_query = next_query;
  }

  // A warp reads no other rows of the key and value tiles than its own: they take its results.
  cp_async_wait<0>();
  __syncwarp();
  float factors[2 * M];
#pragma unroll
  for (int i = 0; i < 2 * M; ++i) factors[i] = task.scale;
  store_sums<M, kDim>(key_tile, tile_row, d_key, factors);
#pragma unroll
  for (int i = 0; i < 2 * M; ++i) factors[i] = B::kHasExtras ? task.keep_scale : 1.0f;
  store_sums<M, kDim>(value_tile, tile_row, d_value, factors);
  __syncwarp();
  store_tile_rows<B::kWarpRows, kDim>(key_tile, tile_row, d_qkv + key_offset, stride, num_keys, dim);
  store_tile_rows<B::kWarpRows, kDim>(value_tile, tile_row, d_qkv + value_offset, stride, num_keys, dim);
}

template <int kDim, int kWarps, bool kHasExtras>
void launch_backward(Context& context, AttentionTask task, const AttentionShape& shape, const bf16* qkv, const bf16* y,
                     const float* lse, const bf16* d_y, bf16* d_qkv) {
  using B = Backward<kDim, kWarps, kHasExtras>;
  const DeviceArena::Scope scope(context.arena);
  float* shifts = context.arena.allocate<float>(shape.num_attention_heads * shape.num_tokens);
  float* teacher_shifts = nullptr;
  if (task.teacher_maps) {
    teacher_shifts = context.arena.allocate<float>(shape.num_attention_heads * shape.num_tokens);
    attention_row_shifts<bf16>(context, task, shape, nullptr, nullptr, teacher_shifts);
  }
  const unsigned query_blocks = attention_blocks(task, shape, shape.num_attention_heads, B::kRows);
  launch(context, attention_d_queries_kernel<B>, dim3(query_blocks), dim3(B::kThreads),
         (B::kStage + 3 * B::kRowTile) * sizeof(bf16), task, qkv, y, lse, d_y,
         static_cast<const float*>(teacher_shifts), d_qkv, shifts);
  const unsigned key_blocks = attention_blocks(task, shape, shape.num_key_value_heads, B::kRows);
  launch(context, attention_d_keys_kernel<B>, dim3(key_blocks), dim3(B::kThreads),
         (2 * B::kStage + 2 * B::kRowTile) * sizeof(bf16) + 4 * B::kColumns * sizeof(float), task, qkv, lse, d_y,
         static_cast<const float*>(shifts), d_qkv);
}

template <int kDim, int kWarps>
void launch_backward(Context& context, const AttentionTask& task, const AttentionShape& shape, const bf16* qkv,
                     const bf16* y, const float* lse, const bf16* d_y, bf16* d_qkv) {
  if (task.seed || task.teacher_maps) {
    launch_backward<kDim, kWarps, true>(context, task, shape, qkv, y, lse, d_y, d_qkv);
  } else {
    launch_backward<kDim, kWarps, false>(context, task, shape, qkv, y, lse, d_y, d_qkv);
  }
}

}  // namespace

bool flash_attention_backward(Context& context, AttentionTask task, const AttentionShape& shape, const bf16* qkv,
                              const bf16* y, const float* lse, const bf16* d_y, bf16* d_qkv, float* d_bias,
                              PendingSums* pending) {
  if (fits_one_pass(task, shape)) {
    flash_attention_backward_once(context, task, shape, qkv, y, lse, d_y, d_qkv);
    return false;
  }
  if (!task.seed && !task.teacher_maps && shape.head_dim > 32 && shape.head_dim <= 64 && has_warpgroup_products()) {
    return warpgroup_attention_backward(context, task, shape, qkv, y, lse, d_y, d_qkv, d_bias, pending);
  }
  const bool is_short = shape.max_length <= kShortSequence;
  if (shape.head_dim > 64) {
    launch_backward<128, 4>(context, task, shape, qkv, y, lse, d_y, d_qkv);
  } else if (shape.head_dim > 32) {
    is_short ? launch_backward<64, 2>(context, task, shape, qkv, y, lse, d_y, d_qkv)
             : launch_backward<64, 4>(context, task, shape, qkv, y, lse, d_y, d_qkv);
  } else {
    is_short ? launch_backward<32, 2>(context, task, shape, qkv, y, lse, d_y, d_qkv)
             : launch_backward<32, 4>(context, task, shape, qkv, y, lse, d_y, d_qkv);
  }
  return false;
}

}  // namespace limbeck::cuda
