// Value relations: attention maps of the values with themselves.

#include "cuda/attention_products.h"
#include "cuda/launch.h"

namespace limbeck::cuda {

namespace {

constexpr int kRowWarps = 8;

// Rows of scaled scores become their softmax, a warp a row; what a row does not see stays as it is.
__global__ void __launch_bounds__(32 * kRowWarps) softmax_rows_kernel(AttentionTask task, float* maps) {
  const AttentionPart part = attention_part(task, task.num_heads);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int row = part.block * kRowWarps + static_cast<int>(threadIdx.x) / 32;
  if (row >= part.length) return;
  float* const map = maps + head_map(task, part, part.head) + static_cast<int64_t>(row) * part.length;
  const int first = task.keys_begin(row) + lane, last = task.last_key(row, part.length);
  float largest = -INFINITY, sum = 0;
  for (int j = first; j <= last; j += 32) largest = fmaxf(largest, map[j]);
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, offset));
  for (int j = first; j <= last; j += 32) sum += expf(map[j] - largest);
  const float inverse = 1.0f / lanes_sum<32>(sum);
  for (int j = first; j <= last; j += 32) map[j] = expf(map[j] - largest) * inverse;
}

// 64 rows and columns of d_values: Σ over j of (d_scores[i][j] + d_scores[j][i])·values[j], since a value is a query
// and a key.   shifts [A, N] = −scale·Σ teacher
template <typename T>
__global__ void __launch_bounds__(kTileThreads)
    value_relation_backward_kernel(AttentionTask task, int column_tiles, const T* values, const float* maps,
                                   const float* shifts, T* d_values) {
  LIMBECK_SHARED_MEMORY(float, lines);
  float* const gradient_lines = lines + kTileFloats;  // [j, i]
  const AttentionPart part = attention_part(task, task.num_heads);
  const int block_row = part.block / column_tiles * kTileSize, column = part.block % column_tiles * kTileSize;
  if (block_row >= part.length) return;
  const int length = part.length, dim = task.head_dim;
  const int64_t stride = task.y_stride();
  const T* const own_values = values + part.first * stride + part.head * dim + column;
  const int64_t map = head_map(task, part, part.head);
  const float* const row_shifts = shifts + part.head * task.num_tokens + part.first;
  const auto d_score = [&](int i, int j) {
    if (!sees(task, i, j, length)) return 0.0f;
    const int64_t element = map + static_cast<int64_t>(i) * length + j;
    return -maps[element] * row_shifts[i] - task.map_loss_scale * task.teacher_maps[element];
  };

  float sums[1][4][4];
  clear(sums[0]);
  for (int block = 0; block < length; block += kTileSize) {
    __syncthreads();  // the gradients before are read
    // Either part is read along its rows.
    for (int index = static_cast<int>(threadIdx.x); index < kTileSize * kTileSize; index += kTileThreads) {
      const int i = index / kTileSize, j = index % kTileSize;
      gradient_lines[j * kTileStride + i] = block + j < length ? d_score(block_row + i, block + j) : 0.0f;
    }
    __syncthreads();
    for (int index = static_cast<int>(threadIdx.x); index < kTileSize * kTileSize; index += kTileThreads) {
      const int j = index / kTileSize, i = index % kTileSize;
      if (block_row + i < length) gradient_lines[j * kTileStride + i] += d_score(block + j, block_row + i);
    }
    multiply_columns(sums, gradient_lines, lines, own_values + block * stride, stride, length - block, dim - column);
  }
  const float factor[4] = {task.scale, task.scale, task.scale, task.scale};
  store_rows(d_values + (part.first + block_row) * stride + part.head * dim + column, stride, length - block_row,
             dim - column, sums, factor);
}

}  // namespace

template <typename T>
void value_relation_forward(Context& context, const AttentionShape& shape, const T* values, float* maps) {
  AttentionTask task = attention_task(shape, {});
  attention_scores(context, task, shape, values, values, task.num_heads * shape.head_dim, nullptr, maps);
  const unsigned blocks = attention_blocks(task, shape, shape.num_attention_heads, kRowWarps);
  launch(context, softmax_rows_kernel, dim3(blocks), dim3(32 * kRowWarps), 0, task, maps);
}

template <typename T>
void value_relation_backward(Context& context, const AttentionShape& shape, const T* values, const float* maps,
                             const float* teacher_maps, float scale, T* d_values) {
  AttentionTask task = attention_task(shape, {});
  task.teacher_maps = teacher_maps;
  task.map_loss_scale = scale;
  const DeviceArena::Scope scope(context.arena);
  float* shifts = context.arena.allocate<float>(shape.num_attention_heads * shape.num_tokens);
  attention_row_shifts<T>(context, task, shape, nullptr, nullptr, shifts);
  const int64_t column_tiles = divide_up(shape.head_dim, kTileSize);
  const unsigned blocks = attention_blocks(task, shape, shape.num_attention_heads * column_tiles, kTileSize);
  task.blocks_per_head *= static_cast<int>(column_tiles);
  launch(context, value_relation_backward_kernel<T>, dim3(blocks), dim3(kTileThreads), 2 * kTileFloats * sizeof(float),
         task, static_cast<int>(column_tiles), values, maps, static_cast<const float*>(shifts), d_values);
}

template void value_relation_forward(Context&, const AttentionShape&, const float*, float*);
template void value_relation_forward(Context&, const AttentionShape&, const bf16*, float*);
template void value_relation_backward(Context&, const AttentionShape&, const float*, const float*, const float*, float,
                                      float*);
template void value_relation_backward(Context&, const AttentionShape&, const bf16*, const float*, const float*, float,
                                      bf16*);

}  // namespace limbeck::cuda
