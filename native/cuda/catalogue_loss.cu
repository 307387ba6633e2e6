// The gradient of cross-entropy over a row's logits z is scale·(exp(z − c)/s − [label]), s = Σ exp(z − c), for any c.
// One kernel computes logits tile by tile on the tensor cores, sums exp(z − c), and writes exp(z − c) as it is; the
// factor scale/s of a row, which is known only after its last tile, is applied to what the exponentials are multiplied
// with (d_table) or to the product (d_hidden). So the large matrix is written once and read twice, by the two products.
//
// bf16 and fp32 hold exp(±87): c need not be the largest logit, but near it. As |z| ≤ ‖h‖·max ‖t‖ + max |b|, 0 will do
// for all but extreme models; for the rows where no c is known to, a first reading finds their largest logit.

#include "cuda/attention_tiles.h"
#include "cuda/catalogue_loss.h"
#include "cuda/gemm.h"
#include "cuda/loss_rows.h"
#include "cuda/reduce.h"
#include "cuda/rows.h"

namespace limbeck::cuda {
namespace {

constexpr float kLn2 = 0.6931471805599453f;
/// exp(±kSafe), a sum of 2³¹ of them, and their products with factors scale/s are far from where fp32 ends.
constexpr float kSafe = 60;
constexpr float kUnknown = __builtin_inff();  // of a shift

constexpr int64_t kWidest = 128;
constexpr int64_t kLeastCatalogue = 4096;             // below, a few microseconds are all that there is to gain
constexpr int64_t kLeastWarpgroupRows = 128;          // fewer would be less than half of a block's
constexpr int kRowLanes = 16;                         // threads of a row of ≤ kWidest elements
constexpr int kRowsAtOnce = kRowThreads / kRowLanes;  // of a block
constexpr int kTableRows = 8;                         // of a group of threads, loads in flight

/// Float bits that compare as unsigned integers do.
__device__ __forceinline__ uint32_t ordered_bits(float x) {
  const uint32_t bits = __float_as_uint(x);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float float_of_ordered(uint32_t bits) {
  return __uint_as_float(bits >> 31 ? bits & 0x7FFFFFFFu : ~bits);
}

/// A chunk of rows; pointers are to its first row.
struct CatalogueRows {
  const bf16 *hidden, *weight, *bias;  // bias may be null
  const int32_t* labels;
  int num_rows, hidden_size, vocab_size;
  int row_blocks, num_tiles;  // blocks of rows × tiles of columns, as the kernel has them
  int64_t stride;             // of exps: the padded vocabulary
  float scale;

  const uint32_t* bounds;  // [2] bits of max ‖t‖² and max |b|
  float* label_logits;     // [num_rows]
  float* shifts;           // [num_rows] c·log₂e, or kUnknown: then it is that of the largest logit
  uint32_t* largest;       // [num_rows] ordered bits
  float* partial_sums;     // [segments, num_rows]
  float* factors;          // [num_rows] scale/s
  bf16* exps;              // [num_rows, stride]
  bf16* scaled_hidden;     // [num_rows, hidden_size] = factors·hidden
  float2* losses;

  __device__ __forceinline__ float shift(int r) const {
    const float shift = shifts[r];
    return shift < kUnknown ? shift : float_of_ordered(largest[r]) * kLog2E;
  }
};

/// bounds = the largest ‖t‖² and |b|, as bits: of a NaN they are the largest of all.
__global__ void __launch_bounds__(kRowThreads)
    table_bounds_kernel(const bf16* weight, const bf16* bias, int vocab_size, int hidden_size, uint32_t* bounds) {
  const int lane = static_cast<int>(threadIdx.x) % kRowLanes, group = static_cast<int>(threadIdx.x) / kRowLanes;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (kRowsAtOnce * kTableRows) + group;
  uint4 words[kTableRows];
#pragma unroll
  for (int i = 0; i < kTableRows; ++i) {
    const int64_t row = first + i * kRowsAtOnce;
    const bool is_inside = row < vocab_size && lane * 8 < hidden_size;
    words[i] = is_inside ? load_16(weight + row * hidden_size + lane * 8) : make_uint4(0, 0, 0, 0);
  }
  uint32_t largest = 0, largest_bias = 0;
#pragma unroll
  for (int i = 0; i < kTableRows; ++i) {
    float x[8], sum = 0;
    unpack<bf16>(words[i], x);
#pragma unroll
    for (int j = 0; j < 8; ++j) sum = fmaf(x[j], x[j], sum);
    largest = max(largest, __float_as_uint(lanes_sum<kRowLanes>(sum)));
    const int64_t row = first + i * kRowsAtOnce;
    if (bias && row < vocab_size) largest_bias = max(largest_bias, __float_as_uint(to_float(bias[row])) & 0x7FFFFFFFu);
  }
  // Lanes 0 and 16 have the two rows of a warp.
  largest = max(largest, __shfl_xor_sync(kAllLanes, largest, kRowLanes));
  largest_bias = max(largest_bias, __shfl_xor_sync(kAllLanes, largest_bias, kRowLanes));
  if (threadIdx.x % 32 == 0) {
    atomicMax(bounds, largest);
    if (bias) atomicMax(bounds + 1, largest_bias);
  }
}

/// label_logits and shifts of the rows.
__global__ void __launch_bounds__(kRowThreads) row_shifts_kernel(CatalogueRows a) {
  const int lane = static_cast<int>(threadIdx.x) % kRowLanes;
  const int64_t r = static_cast<int64_t>(blockIdx.x) * kRowsAtOnce + threadIdx.x / kRowLanes;
  const bool is_row = r < a.num_rows;
  const int64_t label = is_row ? a.labels[r] : 0;
  float squares = 0, logit = 0;
  if (is_row && lane * 8 < a.hidden_size) {
    float x[8], t[8];
    load(a.hidden + r * a.hidden_size + lane * 8, x);
    load(a.weight + label * a.hidden_size + lane * 8, t);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      squares = fmaf(x[j], x[j], squares);
      logit = fmaf(x[j], t[j], logit);
    }
  }
  squares = lanes_sum<kRowLanes>(squares);
  logit = lanes_sum<kRowLanes>(logit);
  if (!is_row || lane != 0) return;
  if (a.bias) logit += to_float(a.bias[label]);
  // A little more, as the numbers are rounded.
  const float bound =
      sqrtf(squares) * sqrtf(__uint_as_float(a.bounds[0])) * 1.001f + __uint_as_float(a.bounds[1]) * 1.001f;
  const float shift = fmaxf(bound - kSafe, 0.0f);
  // No logit is larger than shift + kSafe; is the largest no smaller than shift − kSafe? False with NaN, too.
  const bool is_safe = fmaxf(logit, -bound) >= shift - kSafe;
  a.label_logits[r] = logit;
  a.shifts[r] = is_safe ? shift * kLog2E : kUnknown;
  a.largest[r] = 0;
}

/// What a reading of the catalogue is for.
enum class Reading { kLargest, kSums, kSumsAndExps };

/// Two blocks of four warps: while one multiplies, the other exponentiates.
template <int kDim_, Reading kReading_>
struct Catalogue {
  static constexpr int kDim = kDim_;
  static constexpr Reading kReading = kReading_;
  static constexpr int kWarps = 4, kThreads = 32 * kWarps, kBlocksAtOnce = 2;
  static constexpr int kRowTiles = 2, kWarpRows = 16 * kRowTiles, kRows = kWarps * kWarpRows;
  static constexpr int kColumns = 64, kStages = 3;
  // Tiles of a block. The first reading has few blocks: mostly there is nothing for them to do.
  static constexpr int kSegmentTiles = kReading == Reading::kLargest ? 64 : 16;
  static constexpr int kStage = kColumns * kDim;
  static constexpr int kOutput = kReading == Reading::kSumsAndExps ? kRows * kColumns : 0;
  static constexpr size_t kSharedBytes = (kStages * kStage + kOutput) * sizeof(bf16);
  static_assert(kRows * kDim <= (kStages - 1) * kStage, "rows pass through the stages after the first");
};

template <typename C>
__global__ void __launch_bounds__(C::kThreads, C::kBlocksAtOnce) catalogue_kernel(CatalogueRows a) {
  constexpr int M = C::kRowTiles, N = C::kColumns / 8, kDim = C::kDim;
  constexpr bool kWantsLargest = C::kReading == Reading::kLargest;
  constexpr bool kWritesExps = C::kReading == Reading::kSumsAndExps;
  LIMBECK_SHARED_MEMORY(bf16, shared);
  // Blocks next to each other have the same columns, which stay in the second-level cache.
  const int row_block = static_cast<int>(blockIdx.x) % a.row_blocks;
  const int segment = static_cast<int>(blockIdx.x) / a.row_blocks;
  const int block_row = row_block * C::kRows;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_row = block_row + warp * C::kWarpRows;
  const int first_tile = segment * C::kSegmentTiles, end_tile = min(first_tile + C::kSegmentTiles, a.num_tiles);
  if constexpr (kWantsLargest) {
    static_assert(C::kRows == C::kThreads);
    const int r = block_row + static_cast<int>(threadIdx.x);
    if (!__syncthreads_or(r < a.num_rows && !(a.shifts[r] < kUnknown))) return;
  }

  const auto load_stage = [&](int tile) {
    if (tile < end_tile) {
      load_tile_async<C::kColumns, kDim, C::kThreads>(
          shared + (tile - first_tile) % C::kStages * C::kStage,
          a.weight + static_cast<int64_t>(tile) * C::kColumns * a.hidden_size, a.hidden_size, C::kColumns,
          a.hidden_size);
    }
    cp_async_commit();  // also of nothing: groups are counted
  };
  bf16* const rows = shared + C::kStage;
  load_tile_async<C::kRows, kDim, C::kThreads>(rows, a.hidden + static_cast<int64_t>(block_row) * a.hidden_size,
                                               a.hidden_size, a.num_rows - block_row, a.hidden_size);
  cp_async_commit();
  load_stage(first_tile);
  cp_async_wait<1>();
  __syncthreads();
  uint32_t left[kDim / 16][M][4];
  const SharedAddress lane_left = lane_rows<kDim>(rows, warp * C::kWarpRows);
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) load_left<M, kDim>(left[k], lane_left, k);
  __syncthreads();
  load_stage(first_tile + 1);

  float shifts[2 * M], results[2 * M];  // of row lane/4 + 8·i: sums, or the largest, of this lane's columns
#pragma unroll
  for (int i = 0; i < 2 * M; ++i) {
    const int r = warp_row + 8 * i + lane / 4;
    shifts[i] = !kWantsLargest && r < a.num_rows ? a.shift(r) : 0.0f;
    results[i] = kWantsLargest ? kLowest : 0.0f;
  }

#pragma unroll 1
  for (int tile = first_tile; tile < end_tile; ++tile) {
    cp_async_wait<1>();
    __syncthreads();  // this tile is there, and nobody reads the one before
    load_stage(tile + 2);
    const int column = tile * C::kColumns;

    float logits[M][N][4];
    clear(logits);
    if (a.bias) {
#pragma unroll
      for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const float bias = to_float(a.bias[column + 8 * n + lane % 4 * 2 + j]);
#pragma unroll
          for (int i = 0; i < 2 * M; ++i) logits[i / 2][n][i % 2 * 2 + j] = bias;
        }
      }
    }
    const SharedAddress lane_right = lane_columns<kDim>(shared + (tile - first_tile) % C::kStages * C::kStage, 0);
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) multiply_rows<M, N, kDim>(logits, left[k], lane_right, k);
    if (column + C::kColumns > a.vocab_size) {
      int last[2 * M];
#pragma unroll
      for (int i = 0; i < 2 * M; ++i) last[i] = a.vocab_size - 1 - column - lane % 4 * 2;
      mask_after(logits, last, kMinusInfinity);
    }

    if constexpr (kWantsLargest) {
#pragma unroll
      for (int i = 0; i < 2 * M; ++i) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
          results[i] = fmaxf(results[i], fmaxf(logits[i / 2][n][i % 2 * 2], logits[i / 2][n][i % 2 * 2 + 1]));
        }
      }
    } else {
      [[maybe_unused]] bf16* const output = shared + C::kStages * C::kStage;
      if constexpr (kWritesExps) __syncwarp();  // the tile before has been read
#pragma unroll
      for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int i = 0; i < 2 * M; ++i) {
          const float x = exp2_approx(fmaf(logits[i / 2][n][i % 2 * 2], kLog2E, -shifts[i]));
          const float y = exp2_approx(fmaf(logits[i / 2][n][i % 2 * 2 + 1], kLog2E, -shifts[i]));
          results[i] += x + y;
          if constexpr (kWritesExps) {
            const int r = warp * C::kWarpRows + 8 * i + lane / 4;
            reinterpret_cast<uint32_t*>(tile_chunk<C::kColumns>(output, r, n))[lane % 4] = pack_bf16(x, y);
          }
        }
      }
      if constexpr (kWritesExps) {
        __syncwarp();
        constexpr int kChunks = C::kColumns / 8;
#pragma unroll
        for (int index = 0; index < C::kWarpRows * kChunks; index += 32) {
          const int r = (index + lane) / kChunks, chunk = lane % kChunks;
          if (warp_row + r < a.num_rows) {
            store_16<kStreaming>(a.exps + (warp_row + r) * a.stride + column + chunk * 8,
                                 load_16(tile_chunk<C::kColumns>(output, warp * C::kWarpRows + r, chunk)));
          }
        }
      }
    }
  }
  cp_async_wait<0>();

#pragma unroll
  for (int i = 0; i < 2 * M; ++i) {
    const int r = warp_row + 8 * i + lane / 4;
    float result = results[i];
    if constexpr (kWantsLargest) {
      result = fmaxf(result, __shfl_xor_sync(kAllLanes, result, 1));
      result = fmaxf(result, __shfl_xor_sync(kAllLanes, result, 2));
    } else {
      result = lanes_sum<4>(result);
    }
    if (lane % 4 != 0 || r >= a.num_rows) continue;
    if constexpr (kWantsLargest) {
      atomicMax(a.largest + r, ordered_bits(result));
    } else {
      a.partial_sums[static_cast<int64_t>(segment) * a.num_rows + r] = result;
    }
  }
}

/// The second reading on the tensor cores of compute capability 9.0. A warpgroup has 64 rows, in registers, and
/// multiplies half a tile in the background while it exponentiates the half before. A block takes one part after the
/// other, of 64·kWarpgroups rows × a segment of columns, and the next part's rows and columns are on their way then.
template <int kDim_, bool kWritesExps_>
struct WarpgroupCatalogue {
  static constexpr int kDim = kDim_;
  static constexpr bool kWritesExps = kWritesExps_;
  static constexpr int kWarpgroups = 4, kThreads = 128 * kWarpgroups, kRows = 64 * kWarpgroups;
  static constexpr int kHalf = 64, kColumns = 2 * kHalf, kStages = 3, kSegmentTiles = 16;
  static constexpr int kStage = kColumns * kDim;
  static constexpr int kStagesAt = kRows * kDim, kOutputAt = kStagesAt + kStages * kStage;
  static constexpr int kOutputRow = kHalf + 8;  // eight rows' chunks lie in different banks
  static constexpr int kOutput = kWritesExps ? kRows * kOutputRow : 0;
  static constexpr size_t kSharedBytes = (kOutputAt + kOutput) * sizeof(bf16);
};

template <typename C>
__global__ void __launch_bounds__(C::kThreads, 1) catalogue_sm90_kernel(CatalogueRows a) {
#ifdef LIMBECK_HAS_WGMMA
  constexpr int N = C::kHalf / 8, kDim = C::kDim;
  LIMBECK_MATRIX_MEMORY(bf16, shared);
  // Read from a lane, so that the compiler knows it to be the same in a warp.
  const int warp = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / 32, 0);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int num_parts = a.row_blocks * ((a.num_tiles + C::kSegmentTiles - 1) / C::kSegmentTiles);
  const int part_step = static_cast<int>(gridDim.x);

  // Parts next to each other have the same columns, which stay in the second-level cache.
  const auto first_tile = [&](int part) { return part / a.row_blocks * C::kSegmentTiles; };
  const auto end_tile = [&](int part) { return min(first_tile(part) + C::kSegmentTiles, a.num_tiles); };
  const auto load_rows = [&](int part) {
    if (part >= num_parts) return;
    const int block_row = part % a.row_blocks * C::kRows;
    load_panels_async<C::kRows, kDim, C::kThreads>(shared, a.hidden + static_cast<int64_t>(block_row) * a.hidden_size,
                                                   a.hidden_size, a.num_rows - block_row, a.hidden_size);
  };
  int load_part = static_cast<int>(blockIdx.x), load_tile = first_tile(load_part), load_slot = 0;
  const auto load_next_tile = [&] {
    if (load_part < num_parts) {
      // This thread copies the same chunk of every kStep-th row.
      constexpr int kStep = C::kThreads / 8;
      const int row = static_cast<int>(threadIdx.x) / 8, chunk = static_cast<int>(threadIdx.x) % 8;
      const int table_row = load_tile * C::kColumns + row;
      bf16* const place = tile_chunk<64>(shared + C::kStagesAt + load_slot * C::kStage, row, chunk);
      const bf16* const source = a.weight + static_cast<int64_t>(table_row) * a.hidden_size + chunk * 8;
#pragma unroll
      for (int k = 0; k < kDim; k += 64) {
#pragma unroll
        for (int r = 0; r < C::kColumns; r += kStep) {
          cp_async_16(place + k * C::kColumns + r * 64, source + k + r * a.hidden_size,
                      table_row + r < a.stride && k + chunk * 8 < a.hidden_size);
        }
      }
      if (++load_tile == end_tile(load_part)) {
        load_part += part_step;
        load_tile = first_tile(load_part);
      }
    }
    load_slot = load_slot + 1 == C::kStages ? 0 : load_slot + 1;
    cp_async_commit();  // also of nothing: groups are counted
  };
  load_rows(load_part);
  load_next_tile();
  load_next_tile();

  const uint64_t first_matrix = describe_matrix(shared + C::kStagesAt, 16);
  uint64_t matrix = first_matrix;
  int slot = 0;
#pragma unroll 1
  for (int part = static_cast<int>(blockIdx.x); part < num_parts; part += part_step) {
    const int warp_row = part % a.row_blocks * C::kRows + warp * 16;
    cp_async_wait<0>();
    fence_async_proxy();
    __syncthreads();  // this part's rows are there, and its first tiles
    uint32_t left[kDim / 16][1][4];
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      load_left<1, 64>(left[k], lane_rows<64>(shared + k / 4 * 64 * C::kRows, warp * 16), k % 4);
    }
    float shifts[2], sums[2] = {0, 0};  // of row lane/4 + 8·i, this lane's columns
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int r = warp_row + 8 * i + lane / 4;
      shifts[i] = r < a.num_rows ? a.shift(r) : 0.0f;
    }

    const auto multiply = [&](float(&logits)[1][N][4], int half) {
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < kDim / 16; ++k) {
        constexpr int kPanel = C::kColumns * 128;  // bytes
        wgmma<false>(logits[0], left[k][0], later_matrix(matrix, half * C::kHalf * 128 + k / 4 * kPanel + k % 4 * 32),
                     k > 0);
      }
      wgmma_commit();
    };
    const auto finish = [&](float(&logits)[1][N][4], int column) {
      if (a.bias && column < a.stride) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const float bias = to_float(a.bias[column + 8 * n + lane % 4 * 2 + j]);
#pragma unroll
            for (int i = 0; i < 2; ++i) logits[0][n][2 * i + j] += bias;
          }
        }
      }
      if (column + C::kHalf > a.vocab_size) {
        const int last = a.vocab_size - 1 - column - lane % 4 * 2;
        mask_after(logits, {last, last}, kMinusInfinity);
      }
      [[maybe_unused]] bf16* const output = shared + C::kOutputAt + warp * 16 * C::kOutputRow;
      if constexpr (C::kWritesExps) __syncwarp();  // the half before has been read
#pragma unroll
      for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float x = exp2_approx(fmaf(logits[0][n][2 * i], kLog2E, -shifts[i]));
          const float y = exp2_approx(fmaf(logits[0][n][2 * i + 1], kLog2E, -shifts[i]));
          sums[i] += x + y;
          if constexpr (C::kWritesExps) {
            bf16* const row = output + (8 * i + lane / 4) * C::kOutputRow;
            *reinterpret_cast<uint32_t*>(row + 8 * n + lane % 4 * 2) = pack_bf16(x, y);
          }
        }
      }
      if constexpr (C::kWritesExps) {
        __syncwarp();
        const int row = lane / N, chunk = lane % N;
        const int num_rows = column < a.stride ? a.num_rows - warp_row - row : 0;
        bf16* const exps = a.exps + (warp_row + row) * a.stride + column + chunk * 8;
#pragma unroll
        for (int r = 0; r < 16; r += 32 / N) {
          if (r < num_rows) {
            store_16<kStreaming>(exps + r * a.stride, load_16(output + (row + r) * C::kOutputRow + chunk * 8));
          }
        }
      } else {
        compute_first(sums[0] + sums[1]);
      }
    };

    float halves[2][1][N][4];
    const int first = first_tile(part), end = end_tile(part);
#pragma unroll 1
    for (int tile = first; tile < end; ++tile) {
      cp_async_wait<1>();
      fence_async_proxy();
      __syncthreads();  // this tile is there, and nobody reads the one before, or this part's rows
      if (tile == first) load_rows(part + part_step);
      load_next_tile();
      const int column = tile * C::kColumns;
      if (tile > first) {
        multiply(halves[0], 0);
        finish(halves[1], column - C::kHalf);
        wgmma_wait<0>(halves[0][0]);
      } else {
        multiply(halves[0], 0);
        wgmma_wait<0>(halves[0][0]);
      }
      multiply(halves[1], 1);
      finish(halves[0], column);
      wgmma_wait<0>(halves[1][0]);
      slot = slot + 1 == C::kStages ? 0 : slot + 1;
      matrix = later_matrix(first_matrix, slot * C::kStage * static_cast<int>(sizeof(bf16)));
    }
    finish(halves[1], end * C::kColumns - C::kHalf);

#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int r = warp_row + 8 * i + lane / 4;
      const float sum = lanes_sum<4>(sums[i]);
      if (lane % 4 == 0 && r < a.num_rows) {
        a.partial_sums[static_cast<int64_t>(part / a.row_blocks) * a.num_rows + r] = sum;
      }
    }
  }
  cp_async_wait<0>();
#endif
}

/// One warp a row: its sum and loss, and with gradients its factor, its hidden row times that, and the label's element.
__global__ void __launch_bounds__(kRowThreads) finish_rows_kernel(CatalogueRows a, int num_segments) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t r = static_cast<int64_t>(blockIdx.x) * (kRowThreads / 32) + threadIdx.x / 32;
  if (r >= a.num_rows) return;
  float sum = 0;
#pragma unroll 4
  for (int s = lane; s < num_segments; s += 32) sum += a.partial_sums[static_cast<int64_t>(s) * a.num_rows + r];
  sum = lanes_sum<32>(sum);
  const float shift = a.shift(static_cast<int>(r)), logit = a.label_logits[r], factor = a.scale / sum;
  if (lane == 0) a.losses[r] = make_float2((log2f(sum) + shift) * kLn2 - logit, 0.0f);
  if (!a.exps) return;
  if (lane == 0) {
    a.factors[r] = factor;
    // The element that was written is rounded, and its difference to the sum may be small.
    a.exps[r * a.stride + a.labels[r]] = from_float<bf16>(exp2_approx(fmaf(logit, kLog2E, -shift)) - sum);
  }
  if (lane * 8 < a.hidden_size) {
    float x[8];
    load(a.hidden + r * a.hidden_size + lane * 8, x);
#pragma unroll
    for (int j = 0; j < 8; ++j) x[j] *= factor;
    store(a.scaled_hidden + r * a.hidden_size + lane * 8, x);
  }
}

/// d_hidden = factors·products   [num_rows, hidden_size]
struct ScaledRows {
  const float *products, *factors;
  bf16* d_hidden;
  int64_t width;

  template <int kCount>
  struct Loaded {
    float x[kCount];
  };
  template <int kCount>
  __device__ Loaded<kCount> load(int64_t row, int64_t column) const {
    Loaded<kCount> loaded;
    cuda::load(products + row * width + column, loaded.x);
    return loaded;
  }
  template <int kCount>
  __device__ void store(int64_t row, int64_t column, Loaded<kCount>& loaded) const {
    const float factor = factors[row];
#pragma unroll
    for (int i = 0; i < kCount; ++i) loaded.x[i] *= factor;
    cuda::store(d_hidden + row * width + column, loaded.x);
  }
};

/// Sums over rows of factors·exps.
struct WeightedRows {
  const bf16* exps;
  const float* factors;
  int64_t stride;
  static constexpr int kSets = 1;

  template <int kCount>
  struct Loaded {
    float x[kCount];
  };
  template <int kCount>
  __device__ Loaded<kCount> load(int64_t row, int64_t column) const {
    Loaded<kCount> loaded;
    cuda::load(exps + row * stride + column, loaded.x);
    return loaded;
  }
  template <int kCount>
  __device__ void store(int64_t row, int64_t, Loaded<kCount>& loaded, float (&out)[1][kCount]) const {
    const float factor = factors[row];
#pragma unroll
    for (int i = 0; i < kCount; ++i) out[0][i] = loaded.x[i] * factor;
  }
};

template <typename C>
int64_t num_segments(int64_t stride) {
  return divide_up(stride, C::kColumns * C::kSegmentTiles);
}

template <typename C>
void tile(CatalogueRows& rows) {
  rows.row_blocks = static_cast<int>(divide_up(rows.num_rows, C::kRows));
  rows.num_tiles = static_cast<int>(divide_up(rows.stride, C::kColumns));
}

/// Number of segments that partial_sums has then.
template <typename C>
int64_t launch_catalogue(Context& context, CatalogueRows rows) {
  tile<C>(rows);
  const int64_t segments = num_segments<C>(rows.stride);
  launch(context, catalogue_kernel<C>, dim3(static_cast<unsigned>(rows.row_blocks * segments)), dim3(C::kThreads),
         C::kSharedBytes, rows);
  return segments;
}
template <typename C>
int64_t launch_warpgroup_catalogue(Context& context, CatalogueRows rows) {
  tile<C>(rows);
  const int64_t segments = num_segments<C>(rows.stride);
  const int64_t num_blocks = std::min<int64_t>(rows.row_blocks * segments, context.num_multiprocessors);
  launch(context, catalogue_sm90_kernel<C>, dim3(static_cast<unsigned>(num_blocks)), dim3(C::kThreads), C::kSharedBytes,
         rows);
  return segments;
}

template <Reading kReading>
int64_t read_catalogue(Context& context, const CatalogueRows& rows) {
  const bool is_narrow = rows.hidden_size <= 64;
  if constexpr (kReading != Reading::kLargest) {
    constexpr bool kWritesExps = kReading == Reading::kSumsAndExps;
    if (rows.num_rows >= kLeastWarpgroupRows && has_warpgroup_products()) {
      return is_narrow ? launch_warpgroup_catalogue<WarpgroupCatalogue<64, kWritesExps>>(context, rows)
                       : launch_warpgroup_catalogue<WarpgroupCatalogue<128, kWritesExps>>(context, rows);
    }
  }
  return is_narrow ? launch_catalogue<Catalogue<64, kReading>>(context, rows)
                   : launch_catalogue<Catalogue<128, kReading>>(context, rows);
}

}  // namespace

bool fits_catalogue_loss(const bf16* hidden, const OutputTable<bf16>& table, const bf16* d_hidden,
                         int64_t hidden_size) {
  return table.vocab_size >= kLeastCatalogue && hidden_size > 0 && hidden_size <= kWidest && hidden_size % 16 == 0 &&
         is_aligned(hidden) && is_aligned(table.weight) && is_aligned(d_hidden);
}

void catalogue_loss(Context& context, const bf16* hidden, const OutputTable<bf16>& table, const int32_t* labels,
                    float scale, bf16* d_hidden, float* d_table, bool accumulates_table, float* d_bias, float2* losses,
                    int64_t num_rows, int64_t hidden_size, int64_t chunk_rows) {
  const int64_t vocab_size = table.vocab_size, stride = table.padded_vocab_size;
  const bool wants_gradient = d_hidden != nullptr;

  const DeviceArena::Scope scope(context.arena);
  uint32_t* bounds = context.arena.allocate<uint32_t>(2);
  CatalogueRows chunk{};
  chunk.label_logits = context.arena.allocate<float>(chunk_rows);
  chunk.shifts = context.arena.allocate<float>(chunk_rows);
  chunk.largest = context.arena.allocate<uint32_t>(chunk_rows);
  // The warpgroups' segments are longer.
  chunk.partial_sums = context.arena.allocate<float>(num_segments<Catalogue<128, Reading::kSums>>(stride) * chunk_rows);
  float* products = nullptr;
  if (wants_gradient) {
    chunk.factors = context.arena.allocate<float>(chunk_rows);
    chunk.exps = context.arena.allocate<bf16>(chunk_rows * stride);
    chunk.scaled_hidden = context.arena.allocate<bf16>(chunk_rows * hidden_size);
    products = context.arena.allocate<float>(chunk_rows * hidden_size);
  }
  chunk.weight = table.weight;
  chunk.bias = table.bias;
  chunk.hidden_size = static_cast<int>(hidden_size);
  chunk.vocab_size = static_cast<int>(vocab_size);
  chunk.stride = stride;
  chunk.scale = scale;
  chunk.bounds = bounds;

  set_zero(context, bounds, 2);
  launch(context, table_bounds_kernel, dim3(static_cast<unsigned>(divide_up(vocab_size, kRowsAtOnce * kTableRows))),
         dim3(kRowThreads), 0, table.weight, table.bias, chunk.vocab_size, chunk.hidden_size, bounds);
  for (int64_t begin = 0; begin < num_rows; begin += chunk_rows) {
    const int64_t rows = std::min(chunk_rows, num_rows - begin);
    chunk.hidden = hidden + begin * hidden_size;
    chunk.labels = labels + begin;
    chunk.losses = losses + begin;
    chunk.num_rows = static_cast<int>(rows);
    launch(context, row_shifts_kernel, dim3(static_cast<unsigned>(divide_up(rows, kRowsAtOnce))), dim3(kRowThreads), 0,
           chunk);
    read_catalogue<Reading::kLargest>(context, chunk);
    const int64_t segments = wants_gradient ? read_catalogue<Reading::kSumsAndExps>(context, chunk)
                                            : read_catalogue<Reading::kSums>(context, chunk);
    launch(context, finish_rows_kernel, dim3(static_cast<unsigned>(divide_up(rows, kRowThreads / 32))),
           dim3(kRowThreads), 0, chunk, static_cast<int>(segments));
    if (!wants_gradient) continue;

    // The pad columns' exponentials are zeros.
    gemm<bf16, float>(context, {rows, hidden_size, stride, false, false, stride, hidden_size, hidden_size}, chunk.exps,
                      table.weight, nullptr, nullptr, products);
    for_each_of_rows<8>(context, ScaledRows{products, chunk.factors, d_hidden + begin * hidden_size, hidden_size}, rows,
                        hidden_size, true);
    if (d_table) {
      gemm<bf16, float>(context, {stride, hidden_size, rows, true, false, stride, hidden_size, hidden_size}, chunk.exps,
                        chunk.scaled_hidden, nullptr, begin > 0 || accumulates_table ? d_table : nullptr, d_table);
    }
    if (d_bias) {
      for_each_of_rows_summing<8>(context, WeightedRows{chunk.exps, chunk.factors, stride}, rows, vocab_size, true,
                                  {{0, vocab_size, d_bias}});
    }
  }
}

}  // namespace limbeck::cuda
