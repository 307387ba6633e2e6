// Attention on the tensor cores, backward, in one pass: a block takes a whole head of a sequence, so that it can add to
// the gradients of its query rows in an order of its own, without atomic additions. Scores and their gradients are made
// once, by warps that own keys (as in the second pass of attention_backward.cu); what the queries need of them crosses
// shared memory. Five products instead of seven, and rows are read once: for short sequences, whose keys a block holds.

#include "cuda/attention_tiles.h"
#include "cuda/launch.h"

namespace limbeck::cuda {

namespace {

/// A block's keys and the queries of a tile. kIsOneVisit: one tile is all that a block has, and no registers go to what
/// comes next.
template <int kWarps_, int kRowTiles_, int kBlocksAtOnce_, bool kIsOneVisit_>
struct Once {
  static constexpr int kDim = 64;
  static constexpr int kWarps = kWarps_, kThreads = 32 * kWarps, kBlocksAtOnce = kBlocksAtOnce_;
  static constexpr bool kIsOneVisit = kIsOneVisit_;
  // 16 rows of keys leave registers for four blocks, 32 for the fragments of the keys.
  static constexpr bool kKeepsKeys = kRowTiles_ == 2;
  static constexpr int kRowTiles = kRowTiles_, kWarpKeys = 16 * kRowTiles, kKeys = kWarps * kWarpKeys;
  static constexpr int kQueries = 16 * kWarps;  // of a stage: 32 rows × 32 columns of their gradients a warp
  static constexpr int kStep = 32;              // of which so many are multiplied at a time
  static constexpr int kKeyTile = kKeys * kDim, kQueryTile = kQueries * kDim, kStage = 3 * kQueryTile;
  static constexpr int kScorePanel = kKeys * 64;  // gradients of scores come in panels of 64 queries
  static_assert(kQueries % 64 == 0 && 2 * kQueries == kThreads, "see the layouts below");

  /// [keys][values][gradients of scores][numbers of either stage][stages of queries, d_y and y]
  static constexpr size_t kSharedBytes =
      (2 * kKeyTile + kKeys * kQueries + (kIsOneVisit ? 1 : 2) * kStage) * sizeof(bf16) + 4 * kQueries * sizeof(float);
};

/// One tile of queries: what a block does at a time.
struct Visit {
  int head, query;
};

template <typename B>
__global__ void __launch_bounds__(B::kThreads, B::kBlocksAtOnce)
    attention_backward_kernel(AttentionTask task, const bf16* qkv, const bf16* y, const float* lse, const bf16* d_y,
                              bf16* d_qkv) {
  constexpr int M = B::kRowTiles, N = B::kStep / 8, kDim = B::kDim, kQueries = B::kQueries;
  LIMBECK_SHARED_MEMORY(bf16, shared);
  const AttentionPart part = attention_part(task, task.num_kv_heads, block_from_last());
  if (part.length == 0) return;
  const int dim = task.head_dim, length = part.length, group = task.num_heads / task.num_kv_heads;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int tile_row = warp * B::kWarpKeys;
  const int64_t stride = task.row_stride(), y_stride = task.y_stride();

  bf16* const key_tile = shared;
  bf16* const value_tile = key_tile + B::kKeyTile;
  bf16* const score_tile = value_tile + B::kKeyTile;
  float* const row_numbers = reinterpret_cast<float*>(score_tile + B::kKeys * kQueries);  // [2][2][kQueries]
  bf16* const stages = reinterpret_cast<bf16*>(row_numbers + 4 * kQueries);

  const int end_head = (part.head + 1) * group;
  /// The next one, whose head is another block's after the last.
  const auto visit_after = [&](Visit visit) {
    visit.query += kQueries;
    if (visit.query >= length) {
      visit.query = 0;
      ++visit.head;
    }
    return visit;
  };
  const int64_t key_offset = part.first * stride + static_cast<int64_t>(task.num_heads + part.head) * dim;
  const int64_t value_offset = key_offset + static_cast<int64_t>(task.num_kv_heads) * dim;
  load_tile_async<B::kKeys, kDim, B::kThreads>(key_tile, qkv + key_offset, stride, length, dim);
  load_tile_async<B::kKeys, kDim, B::kThreads>(value_tile, qkv + value_offset, stride, length, dim);
  const auto load_stage = [&](int parity, const Visit& visit) {
    bf16* const stage = stages + parity * B::kStage;
    const int64_t row = part.first + visit.query, column = static_cast<int64_t>(visit.head) * dim;
    const int num_rows = length - visit.query;
    load_tile_async<kQueries, kDim, B::kThreads>(stage, qkv + row * stride + column, stride, num_rows, dim);
    load_tile_async<kQueries, kDim, B::kThreads>(stage + B::kQueryTile, d_y + row * y_stride + column, y_stride,
                                                 num_rows, dim);
    load_tile_async<kQueries, kDim, B::kThreads>(stage + 2 * B::kQueryTile, y + row * y_stride + column, y_stride,
                                                 num_rows, dim);
    cp_async_commit();
  };
  // The log-sum-exp of a query row that this thread fetches. Rows past the end get probabilities 0.
  const auto row_number = [&](const Visit& visit) {
    const int row = visit.query + thread;
    if (thread >= kQueries || row >= length) return INFINITY;
    return lse[visit.head * task.num_tokens + part.first + row] * kLog2OfE;
  };

  Visit visit{part.head * group, 0};
  load_stage(0, visit);
  if (thread < kQueries) row_numbers[thread] = row_number(visit);

  const float scale = task.scale * kLog2OfE;
  const SharedAddress lane_values = lane_rows<kDim>(value_tile, tile_row);
  cp_async_wait<0>();
  __syncthreads();
  const int warp_key = tile_row, warp_last_key = warp_key + B::kWarpKeys - 1;
  const int warp_begin = task.first_query(warp_key);
  const int warp_end = warp_key < length ? task.last_query(warp_last_key, length) + 1 : 0;
  const SharedAddress lane_keys = lane_rows<kDim>(key_tile, tile_row);
  uint32_t key_rows[B::kKeepsKeys ? kDim / 16 : 1][M][4];
  if constexpr (B::kKeepsKeys) {
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) load_left<M, kDim>(key_rows[k], lane_keys, k);
  }
  float d_key[M][kDim / 8][4], d_value[M][kDim / 8][4];
  clear(d_key);
  clear(d_value);

#pragma unroll 1
  for (int parity = 0; visit.head < end_head; parity ^= 1) {
    Visit next = visit;
    float number = 0;
    if constexpr (!B::kIsOneVisit) {
      cp_async_wait<0>();
      __syncthreads();  // this stage is there; nobody reads the one before, or the gradients of its scores
      next = visit_after(visit);
      if (next.head < end_head) {
        load_stage(parity ^ 1, next);
        number = row_number(next);
      }
    }
    const bf16* const query_tile = stages + parity * B::kStage;
    const bf16* const d_out_tile = query_tile + B::kQueryTile;
    float* const row_lse = row_numbers + parity * 2 * kQueries;
    float* const row_shift = row_lse + kQueries;
    {  // Two threads a row.
      const int row = thread / 2, half = thread % 2 * (kDim / 16);
      float shift = 0;
#pragma unroll
      for (int c = 0; c < kDim / 16; ++c) {
        bf16* const d_outs = stages + parity * B::kStage + B::kQueryTile;
        const uint4 a = *reinterpret_cast<const uint4*>(tile_chunk<kDim>(d_outs, row, half + c));
        const uint4 b = *reinterpret_cast<const uint4*>(tile_chunk<kDim>(d_outs + B::kQueryTile, row, half + c));
        const uint32_t a_words[4] = {a.x, a.y, a.z, a.w}, b_words[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float2 p = unpack_bf16(a_words[i]), q = unpack_bf16(b_words[i]);
          shift = fmaf(p.x, q.x, fmaf(p.y, q.y, shift));
        }
      }
      shift += __shfl_xor_sync(kAllLanes, shift, 1);
      if (thread % 2 == 0) row_shift[row] = shift;  // rows past the end have zeros in d_y
      __syncthreads();
    }

#pragma unroll 1
    for (int step = 0; step < kQueries; step += B::kStep) {
      const int query = visit.query + step;
      if (query >= warp_end || query + B::kStep <= warp_begin) continue;
      float scores[M][N][4];
      clear(scores);
#pragma unroll
      for (int k = 0; k < kDim / 16; ++k) {
        if constexpr (!B::kKeepsKeys) load_left<M, kDim>(key_rows[0], lane_keys, k);
        multiply_rows<M, N, kDim>(scores, key_rows[B::kKeepsKeys ? k : 0], lane_columns<kDim>(query_tile, step), k);
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
      // Keys past the end: their rows are zeros, by which what is infinite must not be multiplied.
      if (query + task.ahead < warp_last_key || warp_last_key >= length) {
#pragma unroll
        for (int i = 0; i < 2 * M; ++i) {
          const int row = warp_key + 8 * i + lane / 4;
          bounds[i] = row < length ? task.first_query(row) - query - lane % 4 * 2 : B::kStep;
        }
        mask_before(scores, bounds, 0);
      }
      if (query + B::kStep > warp_key + task.window) {
#pragma unroll
        for (int i = 0; i < 2 * M; ++i) {
          bounds[i] = warp_key + 8 * i + lane / 4 + task.window - 1 - query - lane % 4 * 2;
        }
        mask_after(scores, bounds, 0);
      }
#pragma unroll
      for (int k = 0; k < N / 2; ++k) {
        uint32_t a[M][4];
        left_of_sums(a, scores, k);
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
        const float2 shift = *reinterpret_cast<const float2*>(row_shift + step + 8 * n + lane % 4 * 2);
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            d_scores[m][n][i] = scores[m][n][i] * (d_scores[m][n][i] - (i % 2 == 0 ? shift.x : shift.y));
          }
        }
      }
      // Row = key, column = query of its panel.
      bf16* const panel = score_tile + step / 64 * B::kScorePanel;
#pragma unroll
      for (int k = 0; k < N / 2; ++k) {
        uint32_t a[M][4];
        left_of_sums(a, d_scores, k);
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int row = tile_row + 16 * m + i % 2 * 8 + lane / 4, chunk = step % 64 / 8 + 2 * k + i / 2;
            reinterpret_cast<uint32_t*>(tile_chunk<64>(panel, row, chunk))[lane % 4] = a[m][i];
          }
        }
        multiply_columns<M, kDim>(d_key, a, lane_rows<kDim>(query_tile, step), k);
      }
    }

    // d_q of 32 rows and 32 columns = d_scores·k.
    const int part_row = warp / 2 * 32, part_column = warp % 2 * 32, part_query = visit.query + part_row;
    float d_query[2][4][4];
    clear(d_query);
    __syncthreads();  // gradients of scores are there
    // The keys whose warps did not pass over these rows.
    const int first_key = max(task.first_key(part_query), 0);
    const int end_key = part_query < length ? min(part_query + 32 + task.ahead, length) : 0;
    const int chunk_bit = 64;  // bytes of four chunks of a row of 128
    const SharedAddress lane_scores =
        lane_columns<64>(score_tile + part_row / 64 * B::kScorePanel, 0) ^ (part_row % 64 / 32 * chunk_bit);
    const SharedAddress lane_key_columns = lane_rows<kDim>(key_tile, 0) ^ (warp % 2 * chunk_bit);
#pragma unroll 2
    for (int row = first_key / B::kWarpKeys * B::kWarpKeys; row < end_key; row += 16) {
      uint32_t a[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        ldmatrix_x4_trans(a[m], later_chunk(later_rows<64>(lane_scores, row), 2 * m));
      }
#pragma unroll
      for (int n = 0; n < 4; n += 2) {
        uint32_t b[4];
        ldmatrix_x4_trans(b, later_chunk(later_rows<kDim>(lane_key_columns, row), n));
        const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          mma_m16n8k16(d_query[m][n], a[m], b0);
          mma_m16n8k16(d_query[m][n + 1], a[m], b1);
        }
      }
    }
    bf16* const rows = d_qkv + (part.first + part_query) * stride + static_cast<int64_t>(visit.head) * dim;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = 16 * m + 8 * half + lane / 4;
        if (part_query + row >= length) continue;
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const int column = part_column + 8 * n + lane % 4 * 2;
          if (column >= dim) continue;
          *reinterpret_cast<uint32_t*>(rows + row * stride + column) =
              pack_bf16(d_query[m][n][2 * half] * task.scale, d_query[m][n][2 * half + 1] * task.scale);
        }
      }
    }

    if constexpr (B::kIsOneVisit) break;
    if (thread < kQueries) row_numbers[(parity ^ 1) * 2 * kQueries + thread] = number;
    visit = next;
  }

  __syncthreads();  // nobody reads the keys, whose tile takes the results
  float factors[2 * M];
#pragma unroll
  for (int i = 0; i < 2 * M; ++i) factors[i] = task.scale;
  store_sums<M, kDim>(key_tile, tile_row, d_key, factors);
#pragma unroll
  for (int i = 0; i < 2 * M; ++i) factors[i] = 1.0f;
  store_sums<M, kDim>(value_tile, tile_row, d_value, factors);
  __syncwarp();
  store_tile_rows<B::kWarpKeys, kDim>(key_tile, tile_row, d_qkv + key_offset, stride, length, dim);
  store_tile_rows<B::kWarpKeys, kDim>(value_tile, tile_row, d_qkv + value_offset, stride, length, dim);
}

template <typename B>
void launch_backward(Context& context, AttentionTask task, const AttentionShape& shape, const bf16* qkv, const bf16* y,
                     const float* lse, const bf16* d_y, bf16* d_qkv) {
  task.blocks_per_head = 1;
  const int64_t num_blocks = shape.num_sequences * shape.num_key_value_heads;
  launch(context, attention_backward_kernel<B>, dim3(static_cast<unsigned>(num_blocks)), dim3(B::kThreads),
         B::kSharedBytes, task, qkv, y, lse, d_y, d_qkv);
}

using Short = Once<4, 1, 4, true>;
using Middle = Once<4, 2, 2, false>;

}  // namespace

bool fits_one_pass(const AttentionTask& task, const AttentionShape& shape) {
  return !task.seed && !task.teacher_maps && shape.head_dim <= 64 && shape.head_dim > 32 &&
         shape.max_length <= Middle::kKeys;
}

void flash_attention_backward_once(Context& context, const AttentionTask& task, const AttentionShape& shape,
                                   const bf16* qkv, const bf16* y, const float* lse, const bf16* d_y, bf16* d_qkv) {
  if (shape.max_length <= Short::kKeys && shape.num_attention_heads == shape.num_key_value_heads) {
    launch_backward<Short>(context, task, shape, qkv, y, lse, d_y, d_qkv);
  } else {
    launch_backward<Middle>(context, task, shape, qkv, y, lse, d_y, d_qkv);
  }
}

}  // namespace limbeck::cuda
