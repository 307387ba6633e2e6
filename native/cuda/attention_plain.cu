// Attention in plain float arithmetic: the algorithm of attention_forward.cu and attention_backward.cu, of any head
// dimension up to 256 and any alignment.

#include <string>

#include "core/error.h"
#include "cuda/attention_products.h"
#include "cuda/launch.h"

namespace limbeck::cuda {

namespace {

constexpr int64_t kLargestDim = 256;
constexpr size_t kSharedBytes = 2 * kTileFloats * sizeof(float);  // lines of rows, lines of probabilities

/// Dropout factor of a map element.
__device__ __forceinline__ float keep_factor(const AttentionTask& task, uint64_t seed, int64_t element) {
  uint32_t words[4];
  const uint64_t index = task.first_map_element + static_cast<uint64_t>(element);
  philox_block(seed, task.stream, index / 4, words);
  const int i = static_cast<int>(index % 4);
  const uint32_t word = i == 0 ? words[0] : i == 1 ? words[1] : i == 2 ? words[2] : words[3];
  return word >> 8 >= task.drop_threshold ? task.keep_scale : 0.0f;
}

/// Sum or maximum over the 16 threads that share rows.
__device__ __forceinline__ float row_max(float x) {
#pragma unroll
  for (int offset = 8; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, offset));
  return x;
}

template <int kColumnTiles, typename T>
__global__ void __launch_bounds__(kTileThreads, kColumnTiles == 1 ? 2 : 1)
    plain_forward_kernel(AttentionTask task, const T* qkv, T* y, float* lse) {
  LIMBECK_SHARED_MEMORY(float, lines);
  float* const probability_lines = lines + kTileFloats;
  const AttentionPart part = attention_part(task, task.num_heads, block_from_last());
  const int block_row = part.block * kTileSize;
  if (block_row >= part.length) return;
  const int dim = task.head_dim, length = part.length;
  const int64_t stride = task.row_stride();
  const T* const rows = qkv + part.first * stride;
  const T* const queries = rows + block_row * stride + part.head * dim;
  const int kv_head = part.head / (task.num_heads / task.num_kv_heads);
  const T* const keys = rows + static_cast<int64_t>(task.num_heads + kv_head) * dim;
  const T* const values = keys + static_cast<int64_t>(task.num_kv_heads) * dim;
  const uint64_t seed = task.seed ? *task.seed : 0;
  const int64_t map = task.seed ? head_map(task, part, part.head) : 0;

  float out[kColumnTiles][4][4], largest[4], sums[4];
#pragma unroll
  for (int c = 0; c < kColumnTiles; ++c) clear(out[c]);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    largest[i] = -1e30f;
    sums[i] = 0;
  }
  const int end = task.keys_end(block_row, kTileSize, length);
  for (int key = task.keys_begin(block_row) / kTileSize * kTileSize; key < end; key += kTileSize) {
    float scores[4][4];
    multiply_rows(scores, lines, queries, stride, length - block_row, keys + key * stride, stride, length - key, dim);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = block_row + tile_row() + i;
      float x = -1e30f;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (!sees(task, row, key + tile_column() + j, length)) scores[i][j] = -INFINITY;
        scores[i][j] *= task.scale;
        x = fmaxf(x, scores[i][j]);
      }
      const float larger = fmaxf(largest[i], row_max(x));
      const float factor = expf(largest[i] - larger);
      largest[i] = larger;
      sums[i] *= factor;
#pragma unroll
      for (int c = 0; c < kColumnTiles; ++c) {
#pragma unroll
        for (int j = 0; j < 4; ++j) out[c][i][j] *= factor;
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        scores[i][j] = expf(scores[i][j] - larger);
        sums[i] += scores[i][j];
        if (task.seed) {
          scores[i][j] *= keep_factor(task, seed, map + static_cast<int64_t>(row) * length + key + tile_column() + j);
        }
      }
    }
    store_lines_of_columns(probability_lines, scores);
    multiply_columns(out, probability_lines, lines, values + key * stride, stride, length - key, dim);
  }
  float factor[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float sum = lanes_sum<16>(sums[i]);
    factor[i] = sum > 0 ? 1.0f / sum : 0.0f;
    const int row = block_row + tile_row() + i;
    if (threadIdx.x % 16 == 0 && row < length) {
      lse[part.head * task.num_tokens + part.first + row] = largest[i] + logf(sum);
    }
  }
  const int64_t y_stride = task.y_stride();
  store_rows(y + (part.first + block_row) * y_stride + part.head * dim, y_stride, length - block_row, dim, out, factor);
}

/// What a tile of the backward pass is made of.
struct TileGradient {
  int row, key;  // of the tile's first element, in the sequence
  int64_t map;   // first element of the head's map
  uint64_t seed;
};

/// In: products q·k and d_y·v of a tile of query rows × keys. Out: dropped probabilities and gradients of the scores.
__device__ __forceinline__ void tile_gradient(const AttentionTask& task, const AttentionPart& part,
                                              const TileGradient& tile, const float* lse, const float* shifts,
                                              float (&scores)[4][4], float (&d_scores)[4][4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = tile.row + tile_row() + i;
    const bool is_row = row < part.length;
    const float row_lse = is_row ? lse[row] : 0.0f, shift = is_row ? shifts[row] : 0.0f;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int key = tile.key + tile_column() + j;
      if (!sees(task, row, key, part.length)) {
        scores[i][j] = d_scores[i][j] = 0;
        continue;
      }
      const int64_t element = tile.map + static_cast<int64_t>(row) * part.length + key;
      const float probability = expf(scores[i][j] * task.scale - row_lse);
      const float keep = task.seed ? keep_factor(task, tile.seed, element) : 1.0f;
      scores[i][j] = probability * keep;
      d_scores[i][j] = probability * (d_scores[i][j] * keep - shift);
      if (task.teacher_maps) d_scores[i][j] -= task.map_loss_scale * task.teacher_maps[element];
    }
  }
}

template <int kColumnTiles, typename T>
__global__ void __launch_bounds__(kTileThreads, kColumnTiles == 1 ? 2 : 1)
    plain_d_queries_kernel(AttentionTask task, const T* qkv, const float* lse, const T* d_y, const float* shifts,
                           T* d_qkv) {
  LIMBECK_SHARED_MEMORY(float, lines);
  float* const gradient_lines = lines + kTileFloats;
  const AttentionPart part = attention_part(task, task.num_heads, block_from_last());
  const int block_row = part.block * kTileSize;
  if (block_row >= part.length) return;
  const int dim = task.head_dim, length = part.length;
  const int64_t stride = task.row_stride(), y_stride = task.y_stride();
  const T* const rows = qkv + part.first * stride;
  const T* const queries = rows + block_row * stride + part.head * dim;
  const T* const d_outs = d_y + (part.first + block_row) * y_stride + part.head * dim;
  const int kv_head = part.head / (task.num_heads / task.num_kv_heads);
  const T* const keys = rows + static_cast<int64_t>(task.num_heads + kv_head) * dim;
  const T* const values = keys + static_cast<int64_t>(task.num_kv_heads) * dim;
  const int64_t numbers = part.head * task.num_tokens + part.first;
  TileGradient tile{};
  tile.row = block_row;
  tile.seed = task.seed ? *task.seed : 0;
  tile.map = task.seed || task.teacher_maps ? head_map(task, part, part.head) : 0;

  float d_query[kColumnTiles][4][4];
#pragma unroll
  for (int c = 0; c < kColumnTiles; ++c) clear(d_query[c]);
  const int end = task.keys_end(block_row, kTileSize, length);
  for (int key = task.keys_begin(block_row) / kTileSize * kTileSize; key < end; key += kTileSize) {
    float scores[4][4], d_scores[4][4];
    multiply_rows(scores, lines, queries, stride, length - block_row, keys + key * stride, stride, length - key, dim);
    multiply_rows(d_scores, lines, d_outs, y_stride, length - block_row, values + key * stride, stride, length - key,
                  dim);
    tile.key = key;
    tile_gradient(task, part, tile, lse + numbers, shifts + numbers, scores, d_scores);
    store_lines_of_columns(gradient_lines, d_scores);
    multiply_columns(d_query, gradient_lines, lines, keys + key * stride, stride, length - key, dim);
  }
  const float factor[4] = {task.scale, task.scale, task.scale, task.scale};
  store_rows(d_qkv + (part.first + block_row) * stride + part.head * dim, stride, length - block_row, dim, d_query,
             factor);
}

template <int kColumnTiles, typename T>
__global__ void __launch_bounds__(kTileThreads, kColumnTiles == 1 ? 2 : 1)
    plain_d_keys_kernel(AttentionTask task, const T* qkv, const float* lse, const T* d_y, const float* shifts,
                        T* d_qkv) {
  LIMBECK_SHARED_MEMORY(float, lines);
  float* const left_lines = lines + kTileFloats;
  const AttentionPart part = attention_part(task, task.num_kv_heads);
  const int block_key = part.block * kTileSize;
  if (block_key >= part.length) return;
  const int dim = task.head_dim, length = part.length, group = task.num_heads / task.num_kv_heads;
  const int64_t stride = task.row_stride(), y_stride = task.y_stride();
  const int64_t key_offset = (part.first + block_key) * stride + static_cast<int64_t>(task.num_heads + part.head) * dim;
  const int64_t value_offset = key_offset + static_cast<int64_t>(task.num_kv_heads) * dim;
  const int num_keys = length - block_key;
  TileGradient tile{};
  tile.key = block_key;
  tile.seed = task.seed ? *task.seed : 0;

  float d_key[kColumnTiles][4][4], d_value[kColumnTiles][4][4];
#pragma unroll
  for (int c = 0; c < kColumnTiles; ++c) {
    clear(d_key[c]);
    clear(d_value[c]);
  }
  const int end = task.last_query(block_key + min(kTileSize, num_keys) - 1, length) + 1;
  for (int head = part.head * group; head < (part.head + 1) * group; ++head) {
    tile.map = task.seed || task.teacher_maps ? head_map(task, part, head) : 0;
    const int64_t numbers = head * task.num_tokens + part.first;
    for (int row = task.first_query(block_key) / kTileSize * kTileSize; row < end; row += kTileSize) {
      const T* const queries = qkv + (part.first + row) * stride + head * dim;
      const T* const d_outs = d_y + (part.first + row) * y_stride + head * dim;
      float scores[4][4], d_scores[4][4];
      multiply_rows(scores, lines, queries, stride, length - row, qkv + key_offset, stride, num_keys, dim);
      multiply_rows(d_scores, lines, d_outs, y_stride, length - row, qkv + value_offset, stride, num_keys, dim);
      tile.row = row;
      tile_gradient(task, part, tile, lse + numbers, shifts + numbers, scores, d_scores);
      store_lines_of_rows(left_lines, scores);
      multiply_columns(d_value, left_lines, lines, d_outs, y_stride, length - row, dim);
      __syncthreads();  // the probabilities are read
      store_lines_of_rows(left_lines, d_scores);
      multiply_columns(d_key, left_lines, lines, queries, stride, length - row, dim);
    }
  }
  const float scale[4] = {task.scale, task.scale, task.scale, task.scale}, one[4] = {1, 1, 1, 1};
  store_rows(d_qkv + key_offset, stride, num_keys, dim, d_key, scale);
  store_rows(d_qkv + value_offset, stride, num_keys, dim, d_value, one);
}

constexpr int kShiftWarps = 8;

// A warp a row.
template <typename T>
__global__ void __launch_bounds__(32 * kShiftWarps)
    row_shifts_kernel(AttentionTask task, const T* y, const T* d_y, float* shifts) {
  const AttentionPart part = attention_part(task, task.num_heads);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int row = part.block * kShiftWarps + static_cast<int>(threadIdx.x) / 32;
  if (row >= part.length) return;
  float sum = 0;
  if (y) {
    const int64_t at = (part.first + row) * task.y_stride() + static_cast<int64_t>(part.head) * task.head_dim;
    for (int c = lane; c < task.head_dim; c += 32) sum = fmaf(to_float(y[at + c]), to_float(d_y[at + c]), sum);
  }
  float teacher_sum = 0;
  if (task.teacher_maps) {
    const float* teacher =
        task.teacher_maps + head_map(task, part, part.head) + static_cast<int64_t>(row) * part.length;
    const int last = task.last_key(row, part.length);
#pragma unroll 4
    for (int j = task.keys_begin(row) + lane; j <= last; j += 32) teacher_sum += teacher[j];
  }
  sum = lanes_sum<32>(sum);
  teacher_sum = lanes_sum<32>(teacher_sum);
  if (lane == 0) {
    shifts[part.head * task.num_tokens + part.first + row] = sum - task.map_loss_scale * teacher_sum;
  }
}

/// Calls run(column tiles of a head).
template <typename Run>
void for_column_tiles(int64_t head_dim, Run&& run) {
  if (head_dim > kLargestDim) {
    throw Error("ERR_INVALID_ARGUMENT", "attention on the GPU takes head dimensions up to " +
                                            std::to_string(kLargestDim) + ", got " + std::to_string(head_dim));
  }
  if (head_dim <= 64) {
    run(std::integral_constant<int, 1>());
  } else if (head_dim <= 128) {
    run(std::integral_constant<int, 2>());
  } else {
    run(std::integral_constant<int, 4>());
  }
}

}  // namespace

template <typename T>
void plain_attention_forward(Context& context, AttentionTask task, const AttentionShape& shape, const T* qkv, T* y,
                             float* lse) {
  const unsigned blocks = attention_blocks(task, shape, shape.num_attention_heads, kTileSize);
  for_column_tiles(shape.head_dim, [&](auto tiles) {
    launch(context, plain_forward_kernel<decltype(tiles)::value, T>, dim3(blocks), dim3(kTileThreads), kSharedBytes,
           task, qkv, y, lse);
  });
}

template <typename T>
void plain_attention_backward(Context& context, AttentionTask task, const AttentionShape& shape, const T* qkv,
                              const T* y, const float* lse, const T* d_y, T* d_qkv) {
  const DeviceArena::Scope scope(context.arena);
  float* shifts = context.arena.allocate<float>(shape.num_attention_heads * shape.num_tokens);
  attention_row_shifts(context, task, shape, y, d_y, shifts);
  for_column_tiles(shape.head_dim, [&](auto tiles) {
    const unsigned query_blocks = attention_blocks(task, shape, shape.num_attention_heads, kTileSize);
    launch(context, plain_d_queries_kernel<decltype(tiles)::value, T>, dim3(query_blocks), dim3(kTileThreads),
           kSharedBytes, task, qkv, lse, d_y, static_cast<const float*>(shifts), d_qkv);
    const unsigned key_blocks = attention_blocks(task, shape, shape.num_key_value_heads, kTileSize);
    launch(context, plain_d_keys_kernel<decltype(tiles)::value, T>, dim3(key_blocks), dim3(kTileThreads), kSharedBytes,
           task, qkv, lse, d_y, static_cast<const float*>(shifts), d_qkv);
  });
}

template <typename T>
void attention_row_shifts(Context& context, AttentionTask task, const AttentionShape& shape, const T* y, const T* d_y,
                          float* shifts) {
  const unsigned blocks = attention_blocks(task, shape, shape.num_attention_heads, kShiftWarps);
  launch(context, row_shifts_kernel<T>, dim3(blocks), dim3(32 * kShiftWarps), 0, task, y, d_y, shifts);
}

template void plain_attention_forward(Context&, AttentionTask, const AttentionShape&, const float*, float*, float*);
template void plain_attention_forward(Context&, AttentionTask, const AttentionShape&, const bf16*, bf16*, float*);
template void plain_attention_backward(Context&, AttentionTask, const AttentionShape&, const float*, const float*,
                                       const float*, const float*, float*);
template void plain_attention_backward(Context&, AttentionTask, const AttentionShape&, const bf16*, const bf16*,
                                       const float*, const bf16*, bf16*);
template void attention_row_shifts(Context&, AttentionTask, const AttentionShape&, const float*, const float*, float*);
template void attention_row_shifts(Context&, AttentionTask, const AttentionShape&, const bf16*, const bf16*, float*);

}  // namespace limbeck::cuda
