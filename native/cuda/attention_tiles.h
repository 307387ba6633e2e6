#pragma once

#include <initializer_list>

#include "cuda/attention.h"
#include "cuda/random.h"
#include "cuda/reduce.h"

// What the attention kernels share: which rows see which keys, tiles of bf16 rows in shared memory, and products of
// such tiles on the tensor cores.

namespace limbeck::cuda {

inline constexpr float kLog2OfE = 1.4426950408889634f;
inline constexpr float kLogOf2 = 0.6931471805599453f;
/// A softmax's sum may grow by this power of 2 before it is scaled back: rarely, then, does a larger score touch the
/// sums.
inline constexpr float kSlack = 8;

/// What kernels know of a call, in the types that they compute with.
struct AttentionTask {
  int64_t num_tokens;
  const int32_t* sequence_offsets;
  const int64_t* map_offsets;
  int num_heads, num_kv_heads, head_dim;
  // Row i sees keys i − window + 1 … i + ahead of its sequence: ahead is 0 when causal, else as large as no length is.
  int window, ahead;
  float scale;
  // Dropout: an element is kept when its 24 random bits reach the threshold.
  const uint64_t* seed;  // null without dropout
  uint64_t stream;
  uint64_t first_map_element;
  uint32_t drop_threshold;
  float keep_scale;           // 1/(1 − probability)
  const float* teacher_maps;  // null without a map loss
  float map_loss_scale;
  int blocks_per_head;

  __device__ __forceinline__ int64_t row_stride() const {
    return static_cast<int64_t>(num_heads + 2 * num_kv_heads) * head_dim;
  }
  __device__ __forceinline__ int64_t y_stride() const { return static_cast<int64_t>(num_heads) * head_dim; }
  /// First and last key that query row i of a sequence sees; the first may be before the sequence. Rows past the end
  /// have a last key, too.
  __device__ __forceinline__ int first_key(int i) const { return i - window + 1; }
  __device__ __forceinline__ int last_key(int i, int length) const { return min(i + ahead, length - 1); }
  /// Bounds of the keys that any of `rows` query rows from row i on sees.
  __device__ __forceinline__ int keys_begin(int i) const { return max(first_key(i), 0); }
  __device__ __forceinline__ int keys_end(int i, int rows, int length) const {
    return last_key(i + rows - 1, length) + 1;
  }
  /// First and last query row that sees key j.
  __device__ __forceinline__ int first_query(int j) const { return max(j - ahead, 0); }
  __device__ __forceinline__ int last_query(int j, int length) const { return min(j + window - 1, length - 1); }
};

/// Block `block` of blocks_per_head of one head of one sequence.
struct AttentionPart {
  int block, head, length;
  int64_t sequence, first;  // first: row of the packed batch
};

/// The part of this block of the grid, or of the one that is to be in its place.
__device__ __forceinline__ AttentionPart attention_part(const AttentionTask& task, int num_heads,
                                                        unsigned block = blockIdx.x) {
  AttentionPart part;
  const unsigned index = block / static_cast<unsigned>(task.blocks_per_head);
  part.block = static_cast<int>(block % static_cast<unsigned>(task.blocks_per_head));
  part.head = static_cast<int>(index % static_cast<unsigned>(num_heads));
  part.sequence = index / static_cast<unsigned>(num_heads);
  part.first = task.sequence_offsets[part.sequence];
  part.length = static_cast<int>(task.sequence_offsets[part.sequence + 1] - part.first);
  return part;
}

/// First element of a head's map.
__device__ __forceinline__ int64_t head_map(const AttentionTask& task, const AttentionPart& part, int head) {
  return task.num_heads * task.map_offsets[part.sequence] + static_cast<int64_t>(head) * part.length * part.length;
}

// ---- Dropout: the mask of the CPU.

/// Bit i says whether map element first + i is kept; 32 elements, for which nine blocks of the generator are made.
__device__ __forceinline__ uint32_t attention_keep_bits(const AttentionTask& task, uint64_t seed, uint64_t first) {
  uint64_t bits = 0;
  first += task.first_map_element;
#pragma unroll 3
  for (int b = 0; b < 9; ++b) {
    uint32_t words[4];
    philox_block(seed, task.stream, first / 4 + static_cast<uint64_t>(b), words);
    uint32_t kept = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) kept |= static_cast<uint32_t>(words[i] >> 8 >= task.drop_threshold) << i;
    bits |= static_cast<uint64_t>(kept) << (4 * b);
  }
  return static_cast<uint32_t>(bits >> (first % 4));
}

// ---- Tiles of bf16 rows in shared memory.
//
// A tile has rows of kDim elements: 16-byte chunks, whose places within a row are exclusive-ored with the row's number,
// so that the eight rows that a matrix load reads at once lie in different banks.

template <int kDim>
__device__ __forceinline__ int row_swizzle(int row) {
  return kDim >= 64 ? row & 7 : row >> 1 & 3;
}

template <int kDim>
__device__ __forceinline__ bf16* tile_chunk(bf16* tile, int row, int chunk) {
  return tile + row * kDim + (chunk ^ row_swizzle<kDim>(row)) * 8;
}

/// Begins to copy kRows rows of `dim` ≤ kDim elements to a tile; zeros after num_rows rows and after dim elements.
template <int kRows, int kDim, int kThreads>
__device__ __forceinline__ void load_tile_async(bf16* tile, const bf16* rows, int64_t stride, int num_rows, int dim) {
  constexpr int kChunks = kDim / 8, kStep = kThreads / kChunks;
  static_assert(kThreads % kChunks == 0 && kStep % 8 == 0 && kRows % kStep == 0, "whole passes of the block");
  const int chunk = static_cast<int>(threadIdx.x) % kChunks, row = static_cast<int>(threadIdx.x) / kChunks;
  bf16* out = tile_chunk<kDim>(tile, row, chunk);
  const bf16* source = rows + row * stride + chunk * 8;
#pragma unroll
  for (int r = 0; r < kRows; r += kStep) {
    const bool is_valid = row + r < num_rows && chunk * 8 < dim;
    cp_async_16(out + r * kDim, source + r * stride, is_valid);
  }
}

/// Begins to copy kRows rows of `dim` ≤ kDim elements to panels of 64 columns; zeros beyond num_rows and dim.
template <int kRows, int kDim, int kThreads>
__device__ __forceinline__ void load_panels_async(bf16* panels, const bf16* rows, int64_t stride, int num_rows,
                                                  int dim) {
#pragma unroll
  for (int column = 0; column < kDim; column += 64) {
    load_tile_async<kRows, 64, kThreads>(panels + column * kRows, rows + column, stride, num_rows, dim - column);
  }
}

/// Writes a warp's rows of a tile, kRows from `row` on, to global memory: what lies within num_rows and dim.
template <int kRows, int kDim>
__device__ __forceinline__ void store_tile_rows(bf16* tile, int row, bf16* rows, int64_t stride, int num_rows,
                                                int dim) {
  constexpr int kChunks = kDim / 8;
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int index = lane; index < kRows * kChunks; index += 32) {
    const int r = row + index / kChunks, chunk = index % kChunks;
    if (r < num_rows && chunk * 8 < dim) {
      *reinterpret_cast<uint4*>(rows + r * stride + chunk * 8) =
          *reinterpret_cast<const uint4*>(tile_chunk<kDim>(tile, r, chunk));
    }
  }
}

// ---- Products on the tensor cores.
//
// A warp holds a matrix of 16·M rows as fragments: sums[m][n][i] is row 16·m + lane/4 (+ 8 for i ≥ 2), column
// 8·n + 2·(lane % 4) + i % 2. Left operands are fragments of 16 × 16: a[m][4].

// Where this lane reads matrices of 8 × 8: chunks are exclusive-ored within 128 bytes, to which tiles are aligned, so
// that one instruction finds the chunk `chunk` (even) after the one of an address.
__device__ __forceinline__ SharedAddress later_chunk(SharedAddress address, int chunk) {
  const int bytes = chunk * 16;
  return (address ^ static_cast<SharedAddress>(bytes & 127)) + static_cast<SharedAddress>(bytes & ~127);
}
template <int kDim>
__device__ __forceinline__ SharedAddress later_rows(SharedAddress address, int rows) {
  return address + static_cast<SharedAddress>(rows * kDim) * static_cast<SharedAddress>(sizeof(bf16));
}

/// Rows row … of a tile that are those of a left operand, or, transposed, of a right one …
template <int kDim>
__device__ __forceinline__ SharedAddress lane_rows(const bf16* tile, int row) {
  const int lane = static_cast<int>(threadIdx.x) % 32, r = row + lane % 16;
  return shared_address(tile + r * kDim + (lane / 16 ^ row_swizzle<kDim>(r)) * 8);
}
/// … and those that are the columns of a right operand.
template <int kDim>
__device__ __forceinline__ SharedAddress lane_columns(const bf16* tile, int row) {
  const int lane = static_cast<int>(threadIdx.x) % 32, r = row + lane % 8 + lane / 16 * 8;
  return shared_address(tile + r * kDim + (lane / 8 % 2 ^ row_swizzle<kDim>(r)) * 8);
}

/// a ← columns 16·k … 16·k + 15 of the 16·M rows that lane_rows() found.
template <int M, int kDim>
__device__ __forceinline__ void load_left(uint32_t (&a)[M][4], SharedAddress rows, int k) {
#pragma unroll
  for (int m = 0; m < M; ++m) ldmatrix_x4(a[m], later_chunk(later_rows<kDim>(rows, 16 * m), 2 * k));
}

/// sums += left · (8·N rows that lane_columns() found)ᵀ over columns 16·k … 16·k + 15.
template <int M, int N, int kDim>
__device__ __forceinline__ void multiply_rows(float (&sums)[M][N][4], const uint32_t (&a)[M][4], SharedAddress rows,
                                              int k) {
#pragma unroll
  for (int n = 0; n < N; n += 2) {
    uint32_t b[4];
    ldmatrix_x4(b, later_chunk(later_rows<kDim>(rows, 8 * n), 2 * k));
    const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
#pragma unroll
    for (int m = 0; m < M; ++m) {
      mma_m16n8k16(sums[m][n], a[m], b0);
      mma_m16n8k16(sums[m][n + 1], a[m], b1);
    }
  }
}

/// sums [16·M, kDim] += left [16·M, 16] · rows 16·k … 16·k + 15 of those that lane_rows() found.
template <int M, int kDim>
__device__ __forceinline__ void multiply_columns(float (&sums)[M][kDim / 8][4], const uint32_t (&a)[M][4],
                                                 SharedAddress rows, int k) {
#pragma unroll
  for (int n = 0; n < kDim / 8; n += 2) {
    uint32_t b[4];
    ldmatrix_x4_trans(b, later_chunk(later_rows<kDim>(rows, 16 * k), n));
    const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
#pragma unroll
    for (int m = 0; m < M; ++m) {
      mma_m16n8k16(sums[m][n], a[m], b0);
      mma_m16n8k16(sums[m][n + 1], a[m], b1);
    }
  }
}

/// Columns 16·k … 16·k + 15 of a matrix of sums, rounded, as a left operand: no other lane's values are needed.
template <int M, int N>
__device__ __forceinline__ void left_of_sums(uint32_t (&a)[M][4], const float (&sums)[M][N][4], int k) {
#pragma unroll
  for (int m = 0; m < M; ++m) {
    a[m][0] = pack_bf16(sums[m][2 * k][0], sums[m][2 * k][1]);
    a[m][1] = pack_bf16(sums[m][2 * k][2], sums[m][2 * k][3]);
    a[m][2] = pack_bf16(sums[m][2 * k + 1][0], sums[m][2 * k + 1][1]);
    a[m][3] = pack_bf16(sums[m][2 * k + 1][2], sums[m][2 * k + 1][3]);
  }
}

/// Elements of a matrix of sums become `value` where their column is before first[i], or after last[i], of row
/// lane/4 + 8·i; columns count from this lane's first, 2·(lane % 4). Two steps: most calls need one.
template <int M, int N>
__device__ __forceinline__ void mask_before(float (&sums)[M][N][4], const int (&first)[2 * M], float value) {
#pragma unroll
  for (int i = 0; i < 2 * M; ++i) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      if (8 * n < first[i]) sums[i / 2][n][i % 2 * 2] = value;
      if (8 * n + 1 < first[i]) sums[i / 2][n][i % 2 * 2 + 1] = value;
    }
  }
}
template <int M, int N>
__device__ __forceinline__ void mask_after(float (&sums)[M][N][4], const int (&last)[2 * M], float value) {
#pragma unroll
  for (int i = 0; i < 2 * M; ++i) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      if (8 * n > last[i]) sums[i / 2][n][i % 2 * 2] = value;
      if (8 * n + 1 > last[i]) sums[i / 2][n][i % 2 * 2 + 1] = value;
    }
  }
}

/// mask_before and mask_after of query rows × keys from row `row` and key `key` on.
template <int M, int N>
__device__ __forceinline__ void mask_unseen(const AttentionTask& task, float (&scores)[M][N][4], int row, int key,
                                            int length, float value) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int bounds[2 * M];
  if (key + 8 * N - 1 > task.last_key(row, length)) {
#pragma unroll
    for (int i = 0; i < 2 * M; ++i) {
      bounds[i] = task.last_key(row + 8 * i + lane / 4, length) - key - lane % 4 * 2;
    }
    mask_after(scores, bounds, value);
  }
  if (key < task.first_key(row + 16 * M - 1)) {
#pragma unroll
    for (int i = 0; i < 2 * M; ++i) bounds[i] = task.first_key(row + 8 * i + lane / 4) - key - lane % 4 * 2;
    mask_before(scores, bounds, value);
  }
}

template <int M, int N>
__device__ __forceinline__ void clear(float (&sums)[M][N][4]) {
#pragma unroll
  for (int m = 0; m < M; ++m) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[m][n][i] = 0;
    }
  }
}

/// Rows row … row + 16·M − 1 of the tile = sums · factors, rounded; factors[2·m + half] is that of a lane's row.
template <int M, int kDim>
__device__ __forceinline__ void store_sums(bf16* tile, int row, const float (&sums)[M][kDim / 8][4],
                                           const float (&factors)[2 * M]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int m = 0; m < M; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = row + 16 * m + 8 * half + lane / 4;
      const float factor = factors[2 * m + half];
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        reinterpret_cast<uint32_t*>(tile_chunk<kDim>(tile, r, n))[lane % 4] =
            pack_bf16(sums[m][n][2 * half] * factor, sums[m][n][2 * half + 1] * factor);
      }
    }
  }
}

// ---- Launches, called by attention.cu.

/// The tensor cores take head dimensions of whole 16-byte chunks, at addresses of whole chunks.
inline constexpr int64_t kLargestFlashDim = 128;
bool fits_flash(const AttentionShape& shape, std::initializer_list<const void*> pointers);

/// A batch whose sequences are no longer takes smaller blocks.
inline constexpr int64_t kShortSequence = 64;

void flash_attention_forward(Context& context, AttentionTask task, const AttentionShape& shape, const bf16* qkv,
                             bf16* y, float* lse);
/// The forward pass without dropout where has_warpgroup_products(), for head dimensions above 32.
void warpgroup_attention_forward(Context& context, const AttentionTask& task, const AttentionShape& shape,
                                 const bf16* qkv, bf16* y, float* lse);
/// The current device is of compute capability 9.0, and the library built for it (sm_90a).
bool has_warpgroup_products();
/// Whether d_bias, where it is not null, has been added to.
bool flash_attention_backward(Context& context, AttentionTask task, const AttentionShape& shape, const bf16* qkv,
                              const bf16* y, const float* lse, const bf16* d_y, bf16* d_qkv, float* d_bias,
                              PendingSums* pending);
/// The backward pass without dropout and teacher's maps where has_warpgroup_products(), for head dimensions of 33
/// to 64; the same of d_bias.
bool warpgroup_attention_backward(Context& context, AttentionTask task, const AttentionShape& shape, const bf16* qkv,
                                  const bf16* y, const float* lse, const bf16* d_y, bf16* d_qkv, float* d_bias,
                                  PendingSums* pending);
/// The backward pass of a block a head, and whether it is the faster one. No dropout, no teacher's maps.
bool fits_one_pass(const AttentionTask& task, const AttentionShape& shape);
void flash_attention_backward_once(Context& context, const AttentionTask& task, const AttentionShape& shape,
                                   const bf16* qkv, const bf16* y, const float* lse, const bf16* d_y, bf16* d_qkv);

template <typename T>
void plain_attention_forward(Context& context, AttentionTask task, const AttentionShape& shape, const T* qkv, T* y,
                             float* lse);
template <typename T>
void plain_attention_backward(Context& context, AttentionTask task, const AttentionShape& shape, const T* qkv,
                              const T* y, const float* lse, const T* d_y, T* d_qkv);

/// shifts [H, N] = Σ d_y·y of a row and head, or 0 where y is null, − map_loss_scale·Σ teacher: what the backward pass
/// takes off the gradients of a row's probabilities. Nothing is read of a teacher where teacher_maps is null.
template <typename T>
void attention_row_shifts(Context& context, AttentionTask task, const AttentionShape& shape, const T* y, const T* d_y,
                          float* shifts);

/// maps = scaled scores, exp(scores − lse) where lse is not null; zeros where a row does not see.
/// queries, keys: column 0 of head 0; consecutive rows `stride` apart.
template <typename T>
void attention_scores(Context& context, AttentionTask task, const AttentionShape& shape, const T* queries,
                      const T* keys, int64_t stride, const float* lse, float* maps);

/// Refuses what the CPU's op refuses, and gives the task without teacher.
AttentionTask attention_task(const AttentionShape& shape, const AttentionDropout& dropout);

/// Blocks of one launch: blocks of `rows` rows of the longest sequence × heads × sequences; sets task.blocks_per_head.
unsigned attention_blocks(AttentionTask& task, const AttentionShape& shape, int64_t num_heads, int64_t rows);

}  // namespace limbeck::cuda
