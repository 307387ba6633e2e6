// Losses of rows that stay in shared memory: a row comes once from memory, and its gradient goes there once.
//
// What limits them otherwise is instructions, two readings' worth of exponentials above all. So the largest logit is
// found first, two to an instruction; then each exponential is made once, and takes its logit's place, rounded to bf16
// as the gradient will be (the sums have it as it was made). A block has half a multiprocessor: while its threads wait
// for each other, or for a row, those of the other compute. Each thread has packs of its own, the same in every row, so
// that those of the next row come as it is done with one; until there is room for them they come as far as the L2
// cache, so that memory is not idle while exponentials are made.

#include <algorithm>
#include <type_traits>

#include "cuda/driver.h"
#include "cuda/loss_rows.h"
#include "cuda/reduce.h"

namespace limbeck::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kBlocksAtOnce = 2;
constexpr int64_t kReservedBytes = 1 << 10;  // of a block, that the system takes
constexpr int kShortRow = 8192;              // and below: loss_rows.cu has several of them on a multiprocessor, whole
constexpr int W = kPack<bf16>;

/// A row without a teacher is a block's; with one, half of its packs, and of the teacher's, are.
template <bool kHasTeacher>
struct RowBlocks {
  static constexpr int kBlocks = kHasTeacher ? 2 : 1, kAll = kBlocks * kThreads, kWarps = kAll / 32;
  static constexpr int kMaxValues = 4;  // that are reduced at a time
  /// Largest logits; sums.
  static constexpr int64_t kPartialBytes = 2 * kMaxValues * kWarps * static_cast<int64_t>(sizeof(float));

  __device__ static int thread() {
    const int thread = static_cast<int>(threadIdx.x);
    return kHasTeacher ? cluster_rank() * kThreads + thread : thread;
  }
  /// Packs of a block.
  static int64_t num_slots(int64_t num_packs) {
    return num_packs / kAll * kThreads + std::min<int64_t>(num_packs % kAll, kThreads);
  }

  /// x[n] = what reduce_lanes() makes of the x[n] of all threads of the row, the same bits in each of them.
  ///   partials [kMaxValues, kWarps] shared memory, which nobody reads: there was another barrier since
  template <int kValues, typename ReduceLanes>
  __device__ __forceinline__ static void reduce(float (&x)[kValues], float* partials, float neutral,
                                                ReduceLanes reduce_lanes) {
    static_assert(kValues <= kMaxValues && kWarps <= 32);
    const int warp = thread() / 32, lane = static_cast<int>(threadIdx.x) % 32;
    float mine = 0;  // lane n writes value n
#pragma unroll
    for (int n = 0; n < kValues; ++n) {
      x[n] = reduce_lanes(x[n]);
      mine = lane == n ? x[n] : mine;
    }
    if constexpr (kBlocks > 1) {
      if (lane < kValues) {
        for (int rank = 0; rank < kBlocks; ++rank) {
          cluster_store(partials + lane * kWarps + warp, rank, __float_as_uint(mine));
        }
      }
      cluster_arrive();
      cluster_wait();
    } else {
      if (lane < kValues) partials[lane * kWarps + warp] = mine;
      __syncthreads();
    }
#pragma unroll
    for (int n = 0; n < kValues; ++n) x[n] = reduce_lanes(lane < kWarps ? partials[n * kWarps + lane] : neutral);
  }
};

__device__ __forceinline__ uint32_t largest_of(uint32_t two, const uint4& pack) {
  return largest_bf16(largest_bf16(two, largest_bf16(pack.x, pack.y)), largest_bf16(pack.z, pack.w));
}
__device__ __forceinline__ float largest_of(uint32_t two) {
  const float2 x = unpack_bf16(two);
  return fmaxf(x.x, x.y);
}

constexpr uint32_t kLowestPair = 0xFF7FFF7Fu;  // the most negative numbers of bf16

/// A pack's elements from `count` on become the most negative number: its exponential is 0, and it is finite.
__device__ __forceinline__ uint4 without_pads(const uint4& pack, int count) {
  uint32_t words[4] = {pack.x, pack.y, pack.z, pack.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (count <= 2 * i) {
      words[i] = kLowestPair;
    } else if (count == 2 * i + 1) {
      words[i] = (words[i] & 0xFFFFu) | (kLowestPair & 0xFFFF0000u);
    }
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

/// At temperature 2 the exponentials at 1 are the squares of those at 2. At others both are made, each time anew.
enum class Temperature { kOne, kTwo, kOther };

// logits [num_rows, stride]: in, logits; out, their gradients, as loss_rows.cu has them.
template <typename Teacher, Temperature kTemperature>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce)
    kept_loss_rows_kernel(LossRows a, TeacherRows<Teacher> teacher, bf16* logits) {
  constexpr bool kHasTeacher = !std::is_same_v<Teacher, NoTeacher>;
  using Row = RowBlocks<kHasTeacher>;
  constexpr int kAll = Row::kAll;
  // [partials][logits, then exponentials][those of the teacher]; what a cluster shares is no static memory.
  LIMBECK_SHARED_MEMORY(unsigned char, shared);
  float* const largest_partials = reinterpret_cast<float*>(shared);
  float* const sum_partials = largest_partials + Row::kMaxValues * Row::kWarps;
  uint4* const kept = reinterpret_cast<uint4*>(shared + Row::kPartialBytes) + threadIdx.x;
  uint4* const kept_teacher = kept + a.cached_logits;
  const int thread = Row::thread(), num_packs = (a.vocab_size + W - 1) / W;
  const int last_count = a.vocab_size - (num_packs - 1) * W;  // elements of the last pack
  const float scale_tau = kTemperature == Temperature::kOne ? kLog2E : kLog2E / a.temperature;
  const int64_t first = blockIdx.x / Row::kBlocks, step = gridDim.x / Row::kBlocks;

  const auto copy = [&](const bf16* row, [[maybe_unused]] const bf16* teacher_row, int v, int slot) {
    cp_async_16(kept + slot, row + v * W, true);
    if constexpr (kHasTeacher) cp_async_16(kept_teacher + slot, teacher_row + v * W, true);
  };
  const auto teacher_row = [&](int64_t r) {
    if constexpr (kHasTeacher) return teacher.row(r);
    return static_cast<const bf16*>(nullptr);
  };
  if constexpr (kHasTeacher) {  // the other block runs
    cluster_arrive();
    cluster_wait();
  }
  for (int v = thread, slot = 0; v < num_packs; v += kAll, slot += kThreads) {
    copy(logits + first * a.stride, teacher_row(first), v, slot);
  }
  cp_async_commit();
  for (int64_t r = first; r < a.num_rows; r += step) {
    bf16* const row = logits + r * a.stride;
    const int32_t label = a.labels[r];
    const float label_logit = to_float(row[label]);

    const bool has_next = r + step < a.num_rows;
    const bf16* const next_row = row + step * a.stride;
    const bf16* const next_teacher_row = has_next ? teacher_row(r + step) : nullptr;

    // The largest.
    cp_async_wait<0>();
    if (has_next && threadIdx.x == 0) {  // this block's part of the next row, whichever threads will ask for it
      const int part = (num_packs + Row::kBlocks - 1) / Row::kBlocks, from = thread / kThreads * part;
      const int bytes = min(part, num_packs - from) * 16;
      prefetch_l2(next_row + from * W, bytes);
      if constexpr (kHasTeacher) prefetch_l2(next_teacher_row + from * W, bytes);
    }
    uint32_t two = kLowestPair, soft_two = kLowestPair;
    for (int v = thread, slot = 0; v < num_packs; v += kAll, slot += kThreads) {
      if (v == num_packs - 1 && last_count < W) {
        kept[slot] = without_pads(kept[slot], last_count);
        if constexpr (kHasTeacher) kept_teacher[slot] = without_pads(kept_teacher[slot], last_count);
      }
      two = largest_of(two, kept[slot]);
      if constexpr (kHasTeacher) soft_two = largest_of(soft_two, kept_teacher[slot]);
    }
    float largest[kHasTeacher ? 2 : 1];
    largest[0] = largest_of(two);
    if constexpr (kHasTeacher) largest[1] = largest_of(soft_two);
    Row::reduce(largest, largest_partials, kLowest, lanes_largest);
    const float shift = shift_of(largest[0], scale_tau);
    const float hard_shift = kTemperature == Temperature::kTwo ? 2 * shift : shift_of(largest[0], kLog2E);
    [[maybe_unused]] const float soft_shift = kHasTeacher ? shift_of(largest[kHasTeacher ? 1 : 0], scale_tau) : 0.0f;

    // Exponentials and their sums.
    float sum = 0, hard_sum = 0, soft_sum = 0, cross = 0;  // of the student at τ and at 1; of the teacher; Σ e·(u − z)
    for (int v = thread, slot = 0; v < num_packs; v += kAll, slot += kThreads) {
      float z[W], e[W];
      unpack<bf16>(kept[slot], z);
#pragma unroll
      for (int j = 0; j < W; ++j) {
        e[j] = exp2_approx(fmaf(z[j], scale_tau, -shift));
        sum += e[j];
        if (kTemperature == Temperature::kTwo) hard_sum = fmaf(e[j], e[j], hard_sum);
        if (kTemperature == Temperature::kOther) hard_sum += exp2_approx(fmaf(z[j], kLog2E, -hard_shift));
      }
      if (kTemperature != Temperature::kOther) kept[slot] = pack<bf16>(e);
      if constexpr (kHasTeacher) {
        float u[W];
        unpack<bf16>(kept_teacher[slot], u);
#pragma unroll
        for (int j = 0; j < W; ++j) {
          const float soft = exp2_approx(fmaf(u[j], scale_tau, -soft_shift));
          soft_sum += soft;
          cross = fmaf(soft, fmaxf(u[j] - z[j], kLowest), cross);  // an entry u of −∞ has no mass: 0·∞ is NaN
          u[j] = soft;
        }
        kept_teacher[slot] = pack<bf16>(u);
      }
    }
    if constexpr (kHasTeacher) {
      float sums[4] = {sum, hard_sum, soft_sum, cross};
      Row::reduce(sums, sum_partials, 0, lanes_sum<32, float>);
      sum = sums[0];
      hard_sum = kTemperature == Temperature::kOne ? sums[0] : sums[1];
      soft_sum = sums[2];
      cross = sums[3];
    } else {
      float sums[1] = {sum};
      Row::reduce(sums, sum_partials, 0, lanes_sum<32, float>);
      sum = hard_sum = sums[0];
    }
    if (thread == 0) {
      // The differences of large numbers are exact.
      const float cross_entropy = logf(hard_sum) + static_cast<float>(static_cast<double>(hard_shift) * kLn2 -
                                                                      static_cast<double>(label_logit));
      float distillation = 0;
      if constexpr (kHasTeacher) {
        const double difference = (static_cast<double>(shift) - static_cast<double>(soft_shift)) * kLn2 +
                                  static_cast<double>(cross / soft_sum) / static_cast<double>(a.temperature);
        distillation = a.temperature * a.temperature * (static_cast<float>(difference) + (logf(sum) - logf(soft_sum)));
      }
      a.losses[r] = make_float2(cross_entropy, distillation);
    }

    // Gradients; in the place of each pack, the next row's begins to come.
    const float ce_scale = a.row_scale * a.ce_weight;
    float hard_scale = ce_scale / hard_sum;
    [[maybe_unused]] float tempered_scale = 0, soft_scale = 0;
    if constexpr (kHasTeacher) {
      const float kd_scale = a.row_scale * a.kd_weight * a.temperature;
      tempered_scale = kd_scale / sum;
      soft_scale = kd_scale / soft_sum;
      if (kTemperature == Temperature::kOne) hard_scale += tempered_scale;
    }
    for (int v = thread, slot = 0; v < num_packs; v += kAll, slot += kThreads) {
      float e[W], g[W];
      unpack<bf16>(kept[slot], e);
#pragma unroll
      for (int j = 0; j < W; ++j) {
        if (kTemperature == Temperature::kOne) {
          g[j] = hard_scale * e[j];
        } else if (kTemperature == Temperature::kTwo) {
          g[j] = e[j] * fmaf(hard_scale, e[j], tempered_scale);
        } else {
          g[j] = fmaf(hard_scale, exp2_approx(fmaf(e[j], kLog2E, -hard_shift)),
                      tempered_scale * exp2_approx(fmaf(e[j], scale_tau, -shift)));
        }
      }
      if constexpr (kHasTeacher) {
        float soft[W];
        unpack<bf16>(kept_teacher[slot], soft);
#pragma unroll
        for (int j = 0; j < W; ++j) g[j] = fmaf(-soft_scale, soft[j], g[j]);
      }
      if (v == label / W) {
#pragma unroll
        for (int j = 0; j < W; ++j) g[j] -= j == label % W ? ce_scale : 0.0f;
      }
      store<kStreaming>(row + v * W, g);
      if (has_next) copy(next_row, next_teacher_row, v, slot);
    }
    cp_async_commit();
    for (int v = num_packs + thread; v < a.stride / W; v += kAll) {  // packs of pad columns alone
      const float zeros[W] = {};
      store<kStreaming>(row + v * W, zeros);
    }
  }
}

/// Most dynamic shared memory of a block, of kBlocksAtOnce.
int64_t shared_bytes_of_block() {
  int device, bytes;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  check_cuda(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device),
             "cudaDeviceGetAttribute");
  return bytes / kBlocksAtOnce - kReservedBytes;
}

}  // namespace

template <typename Teacher>
bool launch_kept_loss_rows(Context& context, LossRows rows, const TeacherRows<Teacher>& teacher, bf16* logits) {
  constexpr bool kHasTeacher = !std::is_same_v<Teacher, NoTeacher>;
  using Row = RowBlocks<kHasTeacher>;
  if (rows.vocab_size <= kShortRow || !rows.wants_gradient || rows.own_logits != nullptr) return false;
  if (kHasTeacher && hopper_multiprocessors() == 0) return false;  // no clusters
  const int64_t num_slots = Row::num_slots(divide_up(rows.vocab_size, W));
  const int64_t shared_bytes = Row::kPartialBytes + (kHasTeacher ? 2 : 1) * num_slots * 16;
  if (shared_bytes > shared_bytes_of_block()) return false;
  rows.cached_logits = static_cast<int>(num_slots);
  const int64_t most_blocks = context.num_multiprocessors * kBlocksAtOnce;
  const int64_t num_blocks = std::min(rows.num_rows, most_blocks / Row::kBlocks) * Row::kBlocks;
  const auto launch_at = [&](auto kernel) {
    launch_clusters(context, kernel, Row::kBlocks, dim3(static_cast<unsigned>(num_blocks)), dim3(kThreads),
                    static_cast<size_t>(shared_bytes), rows, teacher, logits);
  };
  if (!kHasTeacher || rows.temperature == 1.0f) {
    launch_at(kept_loss_rows_kernel<Teacher, Temperature::kOne>);
  } else if constexpr (kHasTeacher) {
    rows.temperature == 2.0f ? launch_at(kept_loss_rows_kernel<Teacher, Temperature::kTwo>)
                             : launch_at(kept_loss_rows_kernel<Teacher, Temperature::kOther>);
  }
  return true;
}

template bool launch_kept_loss_rows(Context&, LossRows, const TeacherRows<NoTeacher>&, bf16*);
template bool launch_kept_loss_rows(Context&, LossRows, const TeacherRows<bf16>&, bf16*);

}  // namespace limbeck::cuda
