// Attention on the tensor cores of compute capability 9.0, backward. Two kernels, as in attention_backward.cu: one for
// the gradients of queries, one for those of keys and values; each makes the probabilities anew, and nothing is added
// by atomic additions.
//
// A block is one warpgroup, which owns 64 rows; its products read what comes in tiles where it is in shared memory, in
// the background. Three blocks a multiprocessor compute exponentials while others multiply.

#include "cuda/attention_tiles.h"
#include "cuda/launch.h"

namespace limbeck::cuda {

namespace {

constexpr int kDim = 64, kRows = 64, kWarpgroup = 128, kBlocksAtOnce = 3;
constexpr int kTile = kRows * kDim;
constexpr int kTileBytes = kTile * static_cast<int>(sizeof(bf16)), kStageBytes = 2 * kTileBytes;
/// Of keys and values: one on its way, one for the last product of a tile, and one for the first products of the next,
/// which are under way together.
constexpr int kKeyStages = 3;
/// Of queries and gradients: there are no registers for products of two tiles.
constexpr int kQueryStages = 2;
constexpr size_t kDQueriesBytes = 2 * kTileBytes + kKeyStages * kStageBytes;
constexpr size_t kDKeysBytes = 2 * kTileBytes + kQueryStages * (kStageBytes + 2 * kRows * sizeof(float));

#ifdef LIMBECK_HAS_WGMMA

constexpr int kStage = 2 * kTile;

using Sums = float[1][kRows / 8][4];            // of a warp: 16 rows, 64 columns
using LeftOperand = uint32_t[kDim / 16][1][4];  // the same, rounded

__device__ __forceinline__ int later_slot(int slot) { return slot + 1 == kKeyStages ? 0 : slot + 1; }
__device__ __forceinline__ int earlier_slot(int slot) { return slot == 0 ? kKeyStages - 1 : slot - 1; }

__device__ __forceinline__ void load_rows_async(bf16* tile, const bf16* rows, int64_t stride, int num_rows, int dim) {
  load_tile_async<kRows, kDim, kWarpgroup>(tile, rows, stride, num_rows, dim);
}

/// sums = left · (the rows of a tile)ᵀ, in the background.
__device__ __forceinline__ void begin_rows(Sums& sums, uint64_t left, uint64_t rows) {
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k)
    wgmma<false>(sums[0], later_matrix(left, 32 * k), later_matrix(rows, 32 * k), k > 0);
  wgmma_commit();
}
__device__ __forceinline__ void begin_rows(Sums& sums, const LeftOperand& left, uint64_t rows) {
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) wgmma<false>(sums[0], left[k][0], later_matrix(rows, 32 * k), k > 0);
  wgmma_commit();
}
/// sums += left · the rows of a tile, in the background.
__device__ __forceinline__ void begin_columns(Sums& sums, const LeftOperand& left, uint64_t rows) {
#pragma unroll
  for (int k = 0; k < kRows / 16; ++k) wgmma<true>(sums[0], left[k][0], later_matrix(rows, 2048 * k), true);
  wgmma_commit();
}
__device__ __forceinline__ void round_sums(LeftOperand& left, const Sums& sums) {
#pragma unroll
  for (int k = 0; k < kRows / 16; ++k) left_of_sums(left[k], sums, k);
}

/// Matrices as begin_rows() and begin_columns() want them.
__device__ __forceinline__ uint64_t describe_rows(const bf16* tile) { return describe_matrix(tile, 16); }
__device__ __forceinline__ uint64_t describe_columns(const bf16* tile) { return describe_matrix(tile, kTileBytes); }

/// Writes this warp's rows of the sums to global memory, through a tile that nobody reads any more.
__device__ __forceinline__ void store_rows(bf16* tile, const Sums& sums, float factor, bf16* rows, int64_t stride,
                                           int num_rows, int dim) {
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * 16;
  const float factors[2] = {factor, factor};
  __syncwarp();  // this warp's own loads of the tile are done
  store_sums<1, kDim>(tile, warp_row, sums, factors);
  __syncwarp();
  store_tile_rows<16, kDim>(tile, warp_row, rows, stride, num_rows, dim);
}

/// partials [dim] = Σ over the first num_rows rows of a tile that all warps have written, and that nobody writes.
///   warp_sums [4, 64] shared memory; a barrier within
__device__ __forceinline__ void sum_rows_of_tile(bf16* tile, int num_rows, int dim, float* warp_sums, float* partials) {
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  float2 sum = make_float2(0, 0);  // of columns 2·lane and 2·lane + 1, over this warp's rows
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const int row = warp * 16 + i;
    if (row >= num_rows) continue;
    const float2 x = unpack_bf16(reinterpret_cast<const uint32_t*>(tile_chunk<kDim>(tile, row, lane / 4))[lane % 4]);
    sum.x += x.x;
    sum.y += x.y;
  }
  *reinterpret_cast<float2*>(warp_sums + warp * kDim + 2 * lane) = sum;
  __syncthreads();
  if (thread >= dim) return;
  float all = warp_sums[thread];
#pragma unroll
  for (int w = 1; w < 4; ++w) all += warp_sums[w * kDim + thread];
  partials[thread] = all;
}

#endif

// Both kernels give, where partials is not null, what their block adds to the gradients of biases:
//   partials [sequences · blocks_per_head, (H + KV)·head_dim] = columns of queries, and of values

// d_q = Σ over keys of d_scores·k, and the shifts [H, N] = Σ d_y·y, which the second kernel reads.
__global__ void __launch_bounds__(kWarpgroup, kBlocksAtOnce)
    attention_d_queries_sm90_kernel(AttentionTask task, const bf16* qkv, const bf16* y, const float* lse,
                                    const bf16* d_y, bf16* d_qkv, float* shifts, float* partials) {
#ifdef LIMBECK_HAS_WGMMA
  LIMBECK_MATRIX_MEMORY(bf16, shared);
  const AttentionPart part = attention_part(task, task.num_heads, block_from_last());
  const int block_row = part.block * kRows;  // most keys first
  const int dim = task.head_dim, length = part.length;
  if (partials != nullptr) {
    partials += (part.sequence * task.blocks_per_head + part.block) * (task.num_heads + task.num_kv_heads) * dim +
                part.head * dim;
  }
  if (block_row >= length) {
    if (partials != nullptr && static_cast<int>(threadIdx.x) < dim) partials[threadIdx.x] = 0;
    return;
  }
  const int warp = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / 32, 0);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp_row = block_row + warp * 16;
  const int64_t stride = task.row_stride(), y_stride = task.y_stride();
  const int kv_head = part.head / (task.num_heads / task.num_kv_heads);
  const int first_tile = task.keys_begin(block_row) / kRows;
  const int end_tile = (task.keys_end(block_row, kRows, length) + kRows - 1) / kRows;

  // [queries][d_y][stages of keys and values], y where the last stage will be.
  bf16* const queries = shared;
  bf16* const d_outs = queries + kTile;
  bf16* const stages = d_outs + kTile;
  bf16* const outs = stages + (kKeyStages - 1) * kStage;
  const int64_t query_offset = (part.first + block_row) * stride + part.head * dim;
  const int64_t y_offset = (part.first + block_row) * y_stride + part.head * dim;
  load_rows_async(queries, qkv + query_offset, stride, length - block_row, dim);
  load_rows_async(d_outs, d_y + y_offset, y_stride, length - block_row, dim);
  load_rows_async(outs, y + y_offset, y_stride, length - block_row, dim);
  cp_async_commit();
  // Of the next keys to load, and how many there are from there on.
  const bf16* source =
      qkv + (part.first + first_tile * kRows) * stride + static_cast<int64_t>(task.num_heads + kv_head) * dim;
  int num_keys = length - first_tile * kRows;
  const int to_values = task.num_kv_heads * dim;
  const auto load_stage = [&](int slot) {
    bf16* const stage = stages + slot * kStage;
    load_rows_async(stage, source, stride, num_keys, dim);
    load_rows_async(stage + kTile, source + to_values, stride, num_keys, dim);
    cp_async_commit();
    source += kRows * stride;
    num_keys -= kRows;
  };
  load_stage(0);
  cp_async_wait<0>();
  fence_async_proxy();
  __syncthreads();
  if (first_tile + 1 < end_tile) load_stage(1);

  // This lane's rows are lane/4 + 8·i.
  LeftOperand query;
  float row_lse[2], shift[2] = {0, 0};
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) {
    uint32_t d_out[1][4], out[1][4];
    load_left<1, kDim>(query[k], lane_rows<kDim>(queries, warp * 16), k);
    load_left<1, kDim>(d_out, lane_rows<kDim>(d_outs, warp * 16), k);
    load_left<1, kDim>(out, lane_rows<kDim>(outs, warp * 16), k);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 a = unpack_bf16(d_out[0][i]), b = unpack_bf16(out[0][i]);
      shift[i % 2] = fmaf(a.x, b.x, fmaf(a.y, b.y, shift[i % 2]));
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = warp_row + 8 * i + lane / 4;
    shift[i] = lanes_sum<4>(shift[i]);
    row_lse[i] = INFINITY;  // rows past the end: probabilities 0
    if (row < length) {
      const int64_t index = part.head * task.num_tokens + part.first + row;
      row_lse[i] = lse[index] * kLog2OfE;
      if (lane % 4 == 0) shifts[index] = shift[i];
    }
  }

  const uint64_t d_out_matrix = describe_rows(d_outs);
  const uint64_t key_matrix = describe_rows(stages), key_columns = describe_columns(stages);
  const float scale = task.scale * kLog2OfE;
  Sums scores, d_scores, d_query;
  LeftOperand rounded;
  clear(d_query);
  const auto begin_scores = [&](int slot) {
    begin_rows(scores, query, later_matrix(key_matrix, slot * kStageBytes));
    begin_rows(d_scores, d_out_matrix, later_matrix(key_matrix, slot * kStageBytes + kTileBytes));
  };
  const auto make_probabilities = [&](int tile) {
#pragma unroll
    for (int n = 0; n < kRows / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        scores[0][n][i] = exp2_approx(fmaf(scores[0][n][i], scale, -row_lse[i / 2]));
      }
    }
    mask_unseen(task, scores, warp_row, tile * kRows, length, 0);
  };
  const auto round_d_scores = [&] {
#pragma unroll
    for (int n = 0; n < kRows / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) d_scores[0][n][i] = scores[0][n][i] * (d_scores[0][n][i] - shift[i / 2]);
    }
    round_sums(rounded, d_scores);
  };
  wgmma_fence();
  begin_scores(0);
  wgmma_wait<1>(scores[0]);
  make_probabilities(first_tile);
  wgmma_wait<0>(d_scores[0]);
  round_d_scores();
  int slot = 0;
#pragma unroll 1
  for (int tile = first_tile + 1; tile < end_tile; ++tile) {
    cp_async_wait<0>();
    fence_async_proxy();
    __syncthreads();  // this tile is there, and nobody reads the one two before
    if (tile + 1 < end_tile) load_stage(earlier_slot(slot));
    wgmma_fence();
    begin_scores(later_slot(slot));
    begin_columns(d_query, rounded, later_matrix(key_columns, slot * kStageBytes));
    wgmma_wait<2>(scores[0]);
    make_probabilities(tile);
    wgmma_wait<1>(d_scores[0]);
    wgmma_wait<0>(d_query[0]);
    round_d_scores();
    slot = later_slot(slot);
  }
  wgmma_fence();
  begin_columns(d_query, rounded, later_matrix(key_columns, slot * kStageBytes));
  wgmma_wait<0>(d_query[0]);
  store_rows(queries, d_query, task.scale, d_qkv + query_offset, stride, length - block_row, dim);
  if (partials != nullptr) {
    __syncthreads();  // nobody multiplies any more
    sum_rows_of_tile(queries, length - block_row, dim, reinterpret_cast<float*>(d_outs), partials);
  }
#endif
}

// d_k = Σ over query rows of d_scoresᵀ·q, d_v = Σ probabilitiesᵀ·d_y, over the query heads of the group in their order.
// Scores are transposed here: the rows are keys. The first sequences come first: the kernel before read them last.
__global__ void __launch_bounds__(kWarpgroup, kBlocksAtOnce)
    attention_d_keys_sm90_kernel(AttentionTask task, const bf16* qkv, const float* lse, const bf16* d_y,
                                 const float* shifts, bf16* d_qkv, float* partials) {
#ifdef LIMBECK_HAS_WGMMA
  LIMBECK_MATRIX_MEMORY(bf16, shared);
  const AttentionPart part = attention_part(task, task.num_kv_heads);
  const int block_key = part.block * kRows;  // the blocks that most rows see come first
  const int dim = task.head_dim, length = part.length;
  if (partials != nullptr) {
    partials += (part.sequence * task.blocks_per_head + part.block) * (task.num_heads + task.num_kv_heads) * dim +
                static_cast<int64_t>(task.num_heads + part.head) * dim;
  }
  if (block_key >= length) {
    if (partials != nullptr && static_cast<int>(threadIdx.x) < dim) partials[threadIdx.x] = 0;
    return;
  }
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = __shfl_sync(kAllLanes, thread / 32, 0), lane = thread % 32, warp_key = block_key + warp * 16;
  const int64_t stride = task.row_stride(), y_stride = task.y_stride();
  const int64_t key_offset = (part.first + block_key) * stride + static_cast<int64_t>(task.num_heads + part.head) * dim;
  const int to_values = task.num_kv_heads * dim;
  const int group = task.num_heads / task.num_kv_heads;
  const int begin_query = task.first_query(block_key) / kRows * kRows;
  const int end_query = task.last_query(min(block_key + kRows, length) - 1, length) + 1;

  // [keys][values][stages of queries and d_y][log-sum-exps and shifts of each stage]
  bf16* const key_tile = shared;
  bf16* const value_tile = key_tile + kTile;
  bf16* const stages = value_tile + kTile;
  float* const row_numbers = reinterpret_cast<float*>(stages + kQueryStages * kStage);  // [kQueryStages][2][kRows]
  load_rows_async(key_tile, qkv + key_offset, stride, length - block_key, dim);
  load_rows_async(value_tile, qkv + key_offset + to_values, stride, length - block_key, dim);
  // This thread copies the same chunk of every kStep-th row. Of the next queries to load: where, and how many rows
  // there are from there on; and the number that this thread fetches, a log-sum-exp or a shift.
  constexpr int kStep = kWarpgroup / 8;
  const int row = thread / 8, chunk = thread % 8, row_step = static_cast<int>(stride), y_step = task.num_heads * dim;
  const bool has_chunk = chunk * 8 < dim, is_lse = thread < kRows;
  bf16* const place = tile_chunk<64>(stages, row, chunk);
  const int num_tiles = (end_query - begin_query + kRows - 1) / kRows;
  const int64_t first_row = part.first + begin_query + row;
  const int first_head = part.head * group;
  const bf16* queries = qkv + first_row * stride + first_head * dim + chunk * 8;
  const bf16* d_outs = d_y + first_row * y_stride + first_head * dim + chunk * 8;
  const float* numbers =
      (is_lse ? lse : shifts) + first_head * task.num_tokens + part.first + begin_query + thread % kRows;
  int num_rows = length - begin_query, tiles_left = num_tiles;
  /// Begins to load them, and returns the number.
  const auto load_stage = [&](int slot) {
    bf16* const to = place + slot * kStage;
#pragma unroll
    for (int r = 0; r < kRows; r += kStep) {
      const bool is_valid = row + r < num_rows && has_chunk;
      cp_async_16(to + r * kDim, queries + r * row_step, is_valid);
      cp_async_16(to + kTile + r * kDim, d_outs + r * y_step, is_valid);
    }
    cp_async_commit();
    float number = is_lse ? INFINITY : 0.0f;  // rows past the end: probabilities 0
    if (thread % kRows < num_rows) number = *numbers;
    queries += kRows * stride;
    d_outs += kRows * y_stride;
    numbers += kRows;
    num_rows -= kRows;
    if (--tiles_left == 0) {  // on to the next head
      queries += dim - num_tiles * kRows * stride;
      d_outs += dim - num_tiles * kRows * y_stride;
      numbers += task.num_tokens - num_tiles * kRows;
      num_rows = length - begin_query;
      tiles_left = num_tiles;
    }
    return number;
  };
  // Not at once: the number is on its way.
  const auto write_number = [&](int slot, float number) {
    row_numbers[slot * 2 * kRows + thread] = is_lse ? number * kLog2OfE : number;
  };
  write_number(0, load_stage(0));

  const uint64_t key_matrix = describe_rows(key_tile), value_matrix = describe_rows(value_tile);
  const uint64_t query_matrix = describe_rows(stages), query_columns = describe_columns(stages);
  const float scale = task.scale * kLog2OfE;
  Sums scores, d_scores, d_key, d_value;
  clear(d_key);
  clear(d_value);
  const auto begin_scores = [&](int slot) {
    begin_rows(scores, key_matrix, later_matrix(query_matrix, slot * kStageBytes));
    begin_rows(d_scores, value_matrix, later_matrix(query_matrix, slot * kStageBytes + kTileBytes));
  };
  int query = begin_query;
  const int num_visits = group * num_tiles;
#pragma unroll 1
  for (int visit = 0; visit < num_visits; ++visit) {
    const int slot = visit % 2;
    cp_async_wait<0>();
    fence_async_proxy();
    __syncthreads();  // this tile is there, and nobody reads the one before
    wgmma_fence();
    begin_scores(slot);
    const bool has_more = visit + 1 < num_visits;
    float number = 0;
    if (has_more) number = load_stage(slot ^ 1);

    wgmma_wait<1>(scores[0]);
    // Scores to probabilities; the columns are query rows.
    const float* const row_lse = row_numbers + slot * 2 * kRows + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < kRows / 8; ++n) {
      const float2 shift = *reinterpret_cast<const float2*>(row_lse + 8 * n);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        scores[0][n][i] = exp2_approx(fmaf(scores[0][n][i], scale, i % 2 == 0 ? -shift.x : -shift.y));
      }
    }
    int bounds[2];
    if (query + task.ahead < warp_key + 15) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        bounds[i] = task.first_query(warp_key + 8 * i + lane / 4) - query - lane % 4 * 2;
      }
      mask_before(scores, bounds, 0);
    }
    if (query + kRows > warp_key + task.window) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        bounds[i] = warp_key + 8 * i + lane / 4 + task.window - 1 - query - lane % 4 * 2;
      }
      mask_after(scores, bounds, 0);
    }
    wgmma_wait<0>(d_scores[0]);
#pragma unroll
    for (int n = 0; n < kRows / 8; ++n) {
      const float2 shift = *reinterpret_cast<const float2*>(row_lse + kRows + 8 * n);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        d_scores[0][n][i] = scores[0][n][i] * (d_scores[0][n][i] - (i % 2 == 0 ? shift.x : shift.y));
      }
    }
    LeftOperand rounded, d_rounded;
    round_sums(rounded, scores);
    round_sums(d_rounded, d_scores);
    wgmma_fence();
    begin_columns(d_value, rounded, later_matrix(query_columns, slot * kStageBytes + kTileBytes));
    begin_columns(d_key, d_rounded, later_matrix(query_columns, slot * kStageBytes));
    if (has_more) write_number(slot ^ 1, number);
    query += kRows;
    if (query >= end_query) query = begin_query;
    wgmma_wait<0>(d_key[0]);
    wgmma_wait<0>(d_value[0]);
  }
  __syncthreads();  // nobody reads the keys and values, whose tiles take the results
  store_rows(key_tile, d_key, task.scale, d_qkv + key_offset, stride, length - block_key, dim);
  store_rows(value_tile, d_value, 1, d_qkv + key_offset + to_values, stride, length - block_key, dim);
  if (partials != nullptr) {
    sum_rows_of_tile(value_tile, length - block_key, dim, reinterpret_cast<float*>(stages), partials);
  }
#endif
}

}  // namespace

bool warpgroup_attention_backward(Context& context, AttentionTask task, const AttentionShape& shape, const bf16* qkv,
                                  const bf16* y, const float* lse, const bf16* d_y, bf16* d_qkv, float* d_bias,
                                  PendingSums* pending) {
  const unsigned query_blocks = attention_blocks(task, shape, shape.num_attention_heads, kRows);
  const int64_t query_width = shape.num_attention_heads * shape.head_dim;
  const int64_t value_width = shape.num_key_value_heads * shape.head_dim, width = query_width + value_width;
  const int64_t num_partials = shape.num_sequences * task.blocks_per_head;
  // A block past the end of its sequence has sums, too, of nothing: not worth it where most sequences are much shorter
  // than the longest.
  if (num_partials * kRows > 2 * shape.num_tokens) d_bias = nullptr;
  OpSums sums(context, pending);
  float* partials = d_bias == nullptr ? nullptr : context.arena.allocate<float>(num_partials * width);
  const DeviceArena::Scope scope(context.arena);
  float* shifts = context.arena.allocate<float>(shape.num_attention_heads * shape.num_tokens);
  launch(context, attention_d_queries_sm90_kernel, dim3(query_blocks), dim3(kWarpgroup), kDQueriesBytes, task, qkv, y,
         lse, d_y, d_qkv, shifts, partials);
  const unsigned key_blocks = attention_blocks(task, shape, shape.num_key_value_heads, kRows);
  launch(context, attention_d_keys_sm90_kernel, dim3(key_blocks), dim3(kWarpgroup), kDKeysBytes, task, qkv, lse, d_y,
         static_cast<const float*>(shifts), d_qkv, partials);
  if (d_bias == nullptr) return false;
  sums.add(partials, width, num_partials, query_width, d_bias);
  sums.add(partials + query_width, width, num_partials, value_width, d_bias + query_width + value_width);
  sums.finish();
  return true;
}

}  // namespace limbeck::cuda
