#pragma once

#include "cuda/attention_tiles.h"

// Products of 64 × 64 tiles in plain float arithmetic, of rows of any width and alignment: for fp32, for head
// dimensions that the tensor cores do not take, and for maps.

namespace limbeck::cuda {

inline constexpr int kTileSize = 64;      // rows and columns of a tile
inline constexpr int kTileThreads = 256;  // 16 × 16, of 4 × 4 elements each
inline constexpr int kTileStride = 68;    // floats of a line of 64 in shared memory: aligned, and in other banks
inline constexpr int kTileDepth = 32;     // columns of a product of rows at a time
inline constexpr int kTileFloats = kTileSize * kTileStride;

/// This thread's place: elements row + 0 … 3, column + 0 … 3 of a tile.
__device__ __forceinline__ int tile_row() { return static_cast<int>(threadIdx.x) / 16 * 4; }
__device__ __forceinline__ int tile_column() { return static_cast<int>(threadIdx.x) % 16 * 4; }

__device__ __forceinline__ void clear(float (&sums)[4][4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) sums[i][j] = 0;
  }
}

/// lines [depth, 64] = columns column … of 64 rows, transposed; zeros past num_rows and num_columns.
template <typename T>
__device__ __forceinline__ void load_lines_of_columns(float* lines, const T* rows, int64_t stride, int num_rows,
                                                      int column, int num_columns) {
  for (int index = static_cast<int>(threadIdx.x); index < kTileSize * kTileDepth; index += kTileThreads) {
    const int row = index / kTileDepth, c = index % kTileDepth;
    lines[c * kTileStride + row] =
        row < num_rows && column + c < num_columns ? to_float(rows[row * stride + column + c]) : 0.0f;
  }
}

/// lines [64, 64] = columns column … column + 63 of 64 rows; zeros past num_rows and num_columns.
template <typename T>
__device__ __forceinline__ void load_lines_of_rows(float* lines, const T* rows, int64_t stride, int num_rows,
                                                   int column, int num_columns) {
  for (int index = static_cast<int>(threadIdx.x); index < kTileSize * kTileSize; index += kTileThreads) {
    const int row = index / kTileSize, c = index % kTileSize;
    lines[row * kTileStride + c] =
        row < num_rows && column + c < num_columns ? to_float(rows[row * stride + column + c]) : 0.0f;
  }
}

/// sums[i][j] += Σ over kDepth lines of left[row + i]·right[column + j].
template <int kDepth>
__device__ __forceinline__ void multiply_lines(float (&sums)[4][4], const float* left, const float* right) {
#pragma unroll 8
  for (int k = 0; k < kDepth; ++k) {
    const float4 a = *reinterpret_cast<const float4*>(left + k * kTileStride + tile_row());
    const float4 b = *reinterpret_cast<const float4*>(right + k * kTileStride + tile_column());
    const float x[4] = {a.x, a.y, a.z, a.w}, y[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[i][j] = fmaf(x[i], y[j], sums[i][j]);
    }
  }
}

/// products = left rows · right rowsᵀ over `dim` columns. `lines` [64, kTileStride] is overwritten; begins with a
/// barrier.
template <typename T>
__device__ __forceinline__ void multiply_rows(float (&products)[4][4], float* lines, const T* left, int64_t left_stride,
                                              int num_left, const T* right, int64_t right_stride, int num_right,
                                              int dim) {
  clear(products);
  for (int column = 0; column < dim; column += kTileDepth) {
    __syncthreads();
    load_lines_of_columns(lines, left, left_stride, num_left, column, dim);
    load_lines_of_columns(lines + kTileDepth * kTileStride, right, right_stride, num_right, column, dim);
    __syncthreads();
    multiply_lines<kTileDepth>(products, lines, lines + kTileDepth * kTileStride);
  }
}

/// lines[column][row] = tile.
__device__ __forceinline__ void store_lines_of_columns(float* lines, const float (&tile)[4][4]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    *reinterpret_cast<float4*>(lines + (tile_column() + j) * kTileStride + tile_row()) =
        make_float4(tile[0][j], tile[1][j], tile[2][j], tile[3][j]);
  }
}

/// lines[row][column] = tile.
__device__ __forceinline__ void store_lines_of_rows(float* lines, const float (&tile)[4][4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    *reinterpret_cast<float4*>(lines + (tile_row() + i) * kTileStride + tile_column()) =
        make_float4(tile[i][0], tile[i][1], tile[i][2], tile[i][3]);
  }
}

/// sums[c] += leftᵀ (64 lines) · columns 64·c … of 64 rows. `lines` is overwritten; begins with a barrier.
template <int kColumnTiles, typename T>
__device__ __forceinline__ void multiply_columns(float (&sums)[kColumnTiles][4][4], const float* left, float* lines,
                                                 const T* rows, int64_t stride, int num_rows, int num_columns) {
#pragma unroll
  for (int c = 0; c < kColumnTiles; ++c) {
    __syncthreads();
    load_lines_of_rows(lines, rows, stride, num_rows, c * kTileSize, num_columns);
    __syncthreads();
    multiply_lines<kTileSize>(sums[c], left, lines);
  }
}

/// rows = sums · factor[i], as far as they are within num_rows and num_columns.
template <int kColumnTiles, typename T>
__device__ __forceinline__ void store_rows(T* rows, int64_t stride, int num_rows, int num_columns,
                                           const float (&sums)[kColumnTiles][4][4], const float (&factor)[4]) {
#pragma unroll
  for (int c = 0; c < kColumnTiles; ++c) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int row = tile_row() + i, column = c * kTileSize + tile_column() + j;
        if (row < num_rows && column < num_columns)
          rows[row * stride + column] = from_float<T>(sums[c][i][j] * factor[i]);
      }
    }
  }
}

/// Does query row i see key j? Both within the sequence.
__device__ __forceinline__ bool sees(const AttentionTask& task, int i, int j, int length) {
  return i < length && j >= task.first_key(i) && j <= task.last_key(i, length);
}

}  // namespace limbeck::cuda
