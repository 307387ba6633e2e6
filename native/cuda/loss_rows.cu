#include <algorithm>
#include <type_traits>

#include "cuda/launch.h"
#include "cuda/loss_rows.h"

namespace limbeck::cuda {
namespace {

// Of a block for what a row's second reading needs: two blocks fit a multiprocessor of the H100, and one any other.
constexpr int64_t kCacheBytes = 96 << 10;

constexpr int kSumThreads = 512;

/// kCount elements as they lie in memory.
template <typename T, int kCount>
struct Raw {
  static constexpr int kParts = kCount * static_cast<int>(sizeof(T)) / 16;
  uint4 parts[kParts];

  __device__ __forceinline__ void unpack_to(float (&x)[kCount]) const {
#pragma unroll
    for (int p = 0; p < kParts; ++p) unpack<T>(parts[p], x + p * kPack<T>);
  }
};

template <int kCount, bool kIsStreaming = false, typename T>
__device__ __forceinline__ Raw<T, kCount> load_raw(const T* p) {
  Raw<T, kCount> raw;
#pragma unroll
  for (int i = 0; i < raw.kParts; ++i) raw.parts[i] = load_16<kIsStreaming>(p + i * kPack<T>);
  return raw;
}

/// The same from a row of any alignment that ends after `count` elements.
template <int kCount, typename T>
__device__ Raw<T, kCount> load_raw_unaligned(const T* p, int count) {
  Raw<T, kCount> raw;
#pragma unroll
  for (int i = 0; i < raw.kParts; ++i) {
    float x[kPack<T>];
#pragma unroll
    for (int j = 0; j < kPack<T>; ++j) {
      const int at = i * kPack<T> + j;
      x[j] = at < count ? to_float(p[at]) : 0;
    }
    raw.parts[i] = pack<T>(x);
  }
  return raw;
}

/// Columns that take no part become −∞.
template <bool kMayBeSampled, int kCount>
__device__ __forceinline__ void mask_columns(const LossRows& a, int first, int32_t label, float (&z)[kCount]) {
  if (first + kCount > a.vocab_size) {
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      if (first + j >= a.vocab_size) z[j] = kMinusInfinity;
    }
  }
  if (kMayBeSampled && a.allowed) {
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      if (first + j < a.vocab_size && first + j != label && !a.allowed[first + j]) z[j] = kMinusInfinity;
    }
  }
}

/// Zero gradients of the packs that hold pad columns only.
template <int kThreads, typename T>
__device__ __forceinline__ void zero_pad_packs(const LossRows& a, int num_packs, int lane, T* row) {
  for (int v = num_packs + lane; v < a.stride / kPack<T>; v += kThreads) {
    const float zeros[kPack<T>] = {};
    store<kStreaming>(row + v * kPack<T>, zeros);
  }
}

/// A block of several warps, each with a row of its own, or of the threads of one row.
template <int kThreads>
constexpr int kBlockThreads = kThreads < 128 ? 128 : kThreads;

/// Packs of a step, in flight together.
template <typename T, typename Teacher>
constexpr int kUnrollOf = std::is_same_v<Teacher, NoTeacher> ? 4
                          : sizeof(Teacher) > sizeof(T)      ? 1
                                                             : 2;

/// Loss of a row, with a teacher over the whole vocabulary or none, and its gradient over the logits. The row is read
/// twice: the second time from shared memory as far as that goes, then from the second-level cache.
///   logits [num_rows, stride]; kIsPlain: no column is left out, no gate, no fusion
/// With e(x, m, τ) = exp((x − m)/τ), z the logits, u the soft labels' logits and m each one's largest (up to rounding,
/// see shift_of()):
///   gradient = Σ-normalised  ce·e(z, m, 1) + kd·(e(z, m, τ) − e(u, m, τ))  − ce at the label
///   KL = Σ e(u)·(u − z)/τ / Σ e(u) − (log Σ e(u) + m_u/τ) + (log Σ e(z) + m_z/τ)
template <typename T, typename Teacher, bool kIsPlain, int kThreads>
__device__ __forceinline__ void loss_row(const LossRows& a, const TeacherRows<Teacher>& teacher, T* logits, int64_t r,
                                         uint4* cache, const ThreadGroup<kThreads>& group) {
  constexpr bool kHasTeacher = !std::is_same_v<Teacher, NoTeacher>;
  using TeacherElement = std::conditional_t<kHasTeacher, Teacher, T>;
  constexpr int W = kPack<T>;
  constexpr int kUnroll = kUnrollOf<T, Teacher>;
  using Logits = Raw<T, W>;
  using TeacherLogits = Raw<TeacherElement, W>;
  const int lane = static_cast<int>(threadIdx.x) % kThreads;
  T* row = logits + r * a.stride;
  const int32_t label = a.labels[r];
  const bool has_own_class = !kHasTeacher && label < 0;
  const float label_logit = has_own_class ? a.own_logits[r] : to_float(row[label]);
  const int num_packs = (a.vocab_size + W - 1) / W;
  uint4* teacher_cache = cache + a.cached_logits;

  [[maybe_unused]] const TeacherElement* teacher_row = nullptr;
  [[maybe_unused]] float teacher_label_logit = 0;
  if constexpr (kHasTeacher) {
    teacher_row = teacher.row(r);
    teacher_label_logit = to_float(teacher_row[label]);
  }
  const bool is_tempered = kHasTeacher && a.temperature != 1.0f;
  const bool is_gated = kHasTeacher && !kIsPlain && a.gate != 1.0f;
  const float scale_tau = kLog2E / a.temperature;

  const auto read_teacher = [&](int v) {
    if constexpr (kHasTeacher) {
      // Only dense teachers lie as they come.
      if (sizeof(Teacher) < sizeof(float) || (teacher.is_aligned && (v + 1) * W <= teacher.width)) {
        return load_raw<W>(teacher_row + v * W);
      }
      return load_raw_unaligned<W>(teacher_row + v * W, teacher.width - v * W);
    } else {
      return TeacherLogits{};
    }
  };
  /// z and u of one pack, masked; u may be the student's in part.
  const auto fuse = [&](int first, const float(&z)[W], float(&u)[W]) {
    if (!kIsPlain && a.fusion != 1.0f) {
#pragma unroll
      for (int j = 0; j < W; ++j) {
        // 0·∞ must not become NaN.
        u[j] = u[j] == kMinusInfinity ? u[j] : (1.0f - a.fusion) * z[j] + a.fusion * u[j];
      }
    }
    if (first + W > a.vocab_size) {
#pragma unroll
      for (int j = 0; j < W; ++j) {
        if (first + j >= a.vocab_size) u[j] = kMinusInfinity;
      }
    }
  };

  // First reading: largest and sums of the student (at 1 and at τ) and of the soft labels. At τ = 2 the exponentials at
  // 1 are the squares of those at τ.
  const bool is_squared = is_tempered && a.temperature == 2.0f;
  const auto hard_shift_of = [&](float largest) {
    return is_squared ? 2 * shift_of(largest, scale_tau) : shift_of(largest, kLog2E);
  };
  float largest = kLowest, hard_shift = kLowestShift, hard_sum = 0, tempered_shift = kLowestShift, tempered_sum = 0;
  float soft_largest = kLowest, soft_shift = kLowestShift, soft_sum = 0, cross = 0;
  float student_rank = 0, teacher_rank = 0;
  for (int v0 = lane; v0 < num_packs; v0 += kUnroll * kThreads) {
    Logits raw[kUnroll];
    [[maybe_unused]] TeacherLogits teacher_raw[kUnroll];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int v = v0 + i * kThreads;
      if (v >= num_packs) break;
      // What will be read again comes from shared memory, or the second-level cache, which has no room for the rest.
      raw[i] = kThreads > 32 && v < a.cached_logits ? load_raw<W, kStreaming>(row + v * W) : load_raw<W>(row + v * W);
      if constexpr (kHasTeacher) teacher_raw[i] = read_teacher(v);
    }
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int v = v0 + i * kThreads;
      if (v >= num_packs) break;
      if constexpr (kThreads > 32) {
        if (v < a.cached_logits) cache[v] = raw[i].parts[0];
      }
      float z[W];
      raw[i].unpack_to(z);
      mask_columns<!kIsPlain>(a, v * W, label, z);
      float candidate = largest;
#pragma unroll
      for (int j = 0; j < W; ++j) candidate = fmaxf(candidate, z[j]);
      if (candidate > largest) {
        largest = candidate;
        const float new_shift = hard_shift_of(largest), new_tempered_shift = shift_of(largest, scale_tau);
        hard_sum *= exp2_approx(hard_shift - new_shift);
        tempered_sum *= exp2_approx(tempered_shift - new_tempered_shift);
        hard_shift = new_shift;
        tempered_shift = new_tempered_shift;
      }
      if (is_squared) {
#pragma unroll
        for (int j = 0; j < W; ++j) {
          const float e = exp2_approx(fmaf(z[j], scale_tau, -tempered_shift));
          tempered_sum += e;
          hard_sum = fmaf(e, e, hard_sum);
        }
      } else {
#pragma unroll
        for (int j = 0; j < W; ++j) hard_sum += exp2_approx(fmaf(z[j], kLog2E, -hard_shift));
        if (is_tempered) {
#pragma unroll
          for (int j = 0; j < W; ++j) tempered_sum += exp2_approx(fmaf(z[j], scale_tau, -tempered_shift));
        }
      }
      if constexpr (kHasTeacher) {
        if constexpr (kThreads > 32) {
#pragma unroll
          for (int p = 0; p < TeacherLogits::kParts; ++p) {
            if (v < a.cached_teacher) teacher_cache[v * TeacherLogits::kParts + p] = teacher_raw[i].parts[p];
          }
        }
        float u[W];
        teacher_raw[i].unpack_to(u);
        if (is_gated) {
#pragma unroll
          for (int j = 0; j < W; ++j) {
            student_rank += z[j] > label_logit ? 1.0f : 0.0f;
            teacher_rank += v * W + j < a.vocab_size && u[j] > teacher_label_logit ? 1.0f : 0.0f;
          }
        }
        fuse(v * W, z, u);
        float soft_candidate = soft_largest;
#pragma unroll
        for (int j = 0; j < W; ++j) soft_candidate = fmaxf(soft_candidate, u[j]);
        if (soft_candidate > soft_largest) {
          soft_largest = soft_candidate;
          const float new_shift = shift_of(soft_largest, scale_tau);
          const float factor = exp2_approx(soft_shift - new_shift);
          soft_sum *= factor;
          cross *= factor;
          soft_shift = new_shift;
        }
#pragma unroll
        for (int j = 0; j < W; ++j) {
          const float e = exp2_approx(fmaf(u[j], scale_tau, -soft_shift));
          soft_sum += e;
          // An entry u of −∞ has no mass, and 0·∞ must not become NaN, nor −∞ − −∞. (A NaN shows in the other sums.)
          cross = fmaf(e, fmaxf(u[j] - z[j], kLowest), cross);
        }
      }
    }
  }

  if (has_own_class) largest = fmaxf(largest, label_logit);
  if constexpr (kHasTeacher) {
    float all_largest[2] = {largest, soft_largest};
    group.largest(all_largest);
    const float all_hard_shift = hard_shift_of(all_largest[0]);
    const float all_tempered_shift = shift_of(all_largest[0], scale_tau);
    const float all_soft_shift = shift_of(all_largest[1], scale_tau);
    const float soft_factor = exp2_approx(soft_shift - all_soft_shift);
    float sums[4] = {hard_sum * exp2_approx(hard_shift - all_hard_shift),
                     tempered_sum * exp2_approx(tempered_shift - all_tempered_shift), soft_sum * soft_factor,
                     cross * soft_factor};
    group.sum(sums);
    hard_shift = all_hard_shift;
    tempered_shift = all_tempered_shift;
    soft_shift = all_soft_shift;
    hard_sum = sums[0];
    tempered_sum = is_tempered ? sums[1] : sums[0];
    soft_sum = sums[2];
    cross = sums[3];
  } else {
    float all_largest[1] = {largest};
    group.largest(all_largest);
    const float all_shift = shift_of(all_largest[0], kLog2E);
    float sums[1] = {hard_sum * exp2_approx(hard_shift - all_shift)};
    if (has_own_class && lane == 0) sums[0] += exp2_approx(fmaf(label_logit, kLog2E, -all_shift));
    group.sum(sums);
    hard_shift = all_shift;
    hard_sum = sums[0];
  }
  float gate = 1;
  if (is_gated) {
    float ranks[2] = {student_rank, teacher_rank};
    group.sum(ranks);
    gate = ranks[1] > ranks[0] ? a.gate : 1.0f;
  }
  if (lane == 0) {
    // The differences of large numbers are exact.
    const float cross_entropy =
        logf(hard_sum) + static_cast<float>(static_cast<double>(hard_shift) * kLn2 - static_cast<double>(label_logit));
    float distillation = 0;
    if constexpr (kHasTeacher) {
      const double shift = (static_cast<double>(tempered_shift) - static_cast<double>(soft_shift)) * kLn2 +
                           static_cast<double>(cross / soft_sum) / static_cast<double>(a.temperature);
      const float divergence = static_cast<float>(shift) + (logf(tempered_sum) - logf(soft_sum));
      distillation = gate * a.temperature * a.temperature * divergence;
    }
    a.losses[r] = make_float2(cross_entropy, distillation);
  }
  if (!a.wants_gradient) return;

  // Second reading: each thread's own packs.
  const float ce_scale = a.row_scale * a.ce_weight;
  float hard_scale = ce_scale / hard_sum;
  if (a.own_gradients && lane == 0) {
    a.own_gradients[r] =
        has_own_class ? hard_scale * exp2_approx(fmaf(label_logit, kLog2E, -hard_shift)) - ce_scale : 0.0f;
  }
  [[maybe_unused]] float tempered_scale = 0, soft_scale = 0;
  if constexpr (kHasTeacher) {
    const float kd_scale = a.row_scale * a.kd_weight * gate * a.temperature;
    tempered_scale = kd_scale / tempered_sum;
    soft_scale = kd_scale / soft_sum;
    if (!is_tempered) hard_scale += tempered_scale;
  }
  if constexpr (kThreads == 32) __syncwarp();  // the label's logit was read by all
  for (int v0 = lane; v0 < num_packs; v0 += kUnroll * kThreads) {
    Logits raw[kUnroll];
    [[maybe_unused]] TeacherLogits teacher_raw[kUnroll];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int v = v0 + i * kThreads;
      if (v >= num_packs) break;
      if (kThreads > 32 && v < a.cached_logits) {
        raw[i].parts[0] = cache[v];
      } else {
        raw[i] = load_raw<W>(row + v * W);
      }
      if constexpr (kHasTeacher) {
        if (kThreads > 32 && v < a.cached_teacher) {
#pragma unroll
          for (int p = 0; p < TeacherLogits::kParts; ++p) {
            teacher_raw[i].parts[p] = teacher_cache[v * TeacherLogits::kParts + p];
          }
        } else {
          teacher_raw[i] = read_teacher(v);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int v = v0 + i * kThreads;
      if (v >= num_packs) break;
      float z[W], g[W];
      raw[i].unpack_to(z);
      mask_columns<!kIsPlain>(a, v * W, label, z);
      if (!is_tempered) {
#pragma unroll
        for (int j = 0; j < W; ++j) g[j] = hard_scale * exp2_approx(fmaf(z[j], kLog2E, -hard_shift));
      } else if (is_squared) {
#pragma unroll
        for (int j = 0; j < W; ++j) {
          const float e = exp2_approx(fmaf(z[j], scale_tau, -tempered_shift));
          g[j] = e * fmaf(hard_scale, e, tempered_scale);
        }
      } else {
#pragma unroll
        for (int j = 0; j < W; ++j) {
          g[j] = fmaf(hard_scale, exp2_approx(fmaf(z[j], kLog2E, -hard_shift)),
                      tempered_scale * exp2_approx(fmaf(z[j], scale_tau, -tempered_shift)));
        }
      }
      if constexpr (kHasTeacher) {
        float u[W];
        teacher_raw[i].unpack_to(u);
        fuse(v * W, z, u);
#pragma unroll
        for (int j = 0; j < W; ++j) g[j] = fmaf(-soft_scale, exp2_approx(fmaf(u[j], scale_tau, -soft_shift)), g[j]);
      }
      const int label_at = label - v * W;
      if (label_at >= 0 && label_at < W) {
#pragma unroll
        for (int j = 0; j < W; ++j) g[j] -= j == label_at ? ce_scale : 0.0f;
      }
      store<kStreaming>(row + v * W, g);
    }
  }
  zero_pad_packs<kThreads>(a, num_packs, lane, row);
}

template <typename T, typename Teacher, bool kIsPlain, int kThreads>
__global__ void __launch_bounds__(kBlockThreads<kThreads>, kThreads <= 128 ? 8 : 2)
    loss_rows_kernel(LossRows a, TeacherRows<Teacher> teacher, T* logits) {
  __shared__ float reduction[ThreadGroup<kThreads>::kSharedFloats];
  LIMBECK_SHARED_MEMORY(uint4, cache);
  const ThreadGroup<kThreads> group{reduction};
  const int64_t r = static_cast<int64_t>(blockIdx.x) * (kBlockThreads<kThreads> / kThreads) + threadIdx.x / kThreads;
  if (r >= a.num_rows) return;  // only where a warp is alone with its row
  loss_row<T, Teacher, kIsPlain, kThreads>(a, teacher, logits, r, cache, group);
}

/// The same with top-k logits: KL over the k columns and, at temperature 1, the rest as one class. With the k columns
/// taken out of the row, the rest class is the log-sum-exp of what is left: no 1 − Σ, which would cancel.
template <typename T, int kThreads>
__global__ void __launch_bounds__(kThreads, kThreads <= 128 ? 8 : 2)
    top_k_loss_rows_kernel(LossRows a, TopKRows teacher, T* logits) {
  constexpr int W = kPack<T>;
  __shared__ float reduction[ThreadGroup<kThreads>::kSharedFloats];
  __shared__ double doubles[ThreadGroup<kThreads>::kWarps];
  const ThreadGroup<kThreads> group{reduction};
  const int lane = static_cast<int>(threadIdx.x);
  const int64_t r = blockIdx.x;
  const int k = teacher.k;
  T* row = logits + r * a.stride;
  const int32_t* indices = teacher.indices + r * k;
  const float* values = teacher.values + r * k;
  float* listed = teacher.listed + r * k;
  const int32_t label = a.labels[r];
  const float label_logit = to_float(row[label]);
  const float teacher_lse = teacher.log_sum_exp[r], tau = a.temperature;
  const bool has_rest = tau == 1.0f && k < a.vocab_size;
  const int num_packs = (a.vocab_size + W - 1) / W;

  for (int i = lane; i < k; i += kThreads) listed[i] = to_float(row[indices[i]]);
  group.sync();  // the label's logit, too, has been read
  for (int i = lane; i < k; i += kThreads) row[indices[i]] = from_float<T>(kMinusInfinity);
  group.sync();

  // The student: the rest, then the listed columns.
  RunningSum rest;
  float ranks[2] = {0, 0};  // of the student and the teacher
  for (int v = lane; v < num_packs; v += kThreads) {
    float z[W];
    load(row + v * W, z);
    mask_columns<false>(a, v * W, label, z);
    rest.add(z);
#pragma unroll
    for (int j = 0; j < W; ++j) ranks[0] += z[j] > label_logit ? 1.0f : 0.0f;
  }
  rest.join(group);
  float largest[2] = {kLowest, kMinusInfinity};  // listed logit; the teacher's logit of the label
  for (int i = lane; i < k; i += kThreads) {
    largest[0] = fmaxf(largest[0], listed[i]);
    if (indices[i] == label) largest[1] = values[i];
  }
  group.largest(largest);
  const float listed_largest = largest[0], teacher_label = largest[1];
  const float shift = fmaxf(listed_largest, rest.largest);
  float sums[2] = {0, 0};  // of the listed: student, student at τ
  double mass = 0;         // the teacher's; what is left of 1 may be little
  for (int i = lane; i < k; i += kThreads) {
    sums[0] += exp2_approx((listed[i] - shift) * kLog2E);
    sums[1] += exp2_approx((listed[i] - listed_largest) * (kLog2E / tau));
    if (has_rest) mass += exp(static_cast<double>(values[i]) - static_cast<double>(teacher_lse));
    ranks[0] += listed[i] > label_logit ? 1.0f : 0.0f;
    ranks[1] += values[i] > teacher_label ? 1.0f : 0.0f;  // all k where the label is not listed: its best rank
  }
  group.sum(sums);
  if (has_rest) mass = group.sum(mass, doubles);
  float gate = 1;
  if (a.gate != 1.0f) {
    group.sum(ranks);
    gate = ranks[1] > ranks[0] ? a.gate : 1.0f;
  }
  const float log_sum = logf(sums[0] + rest.sum * exp2_approx((rest.largest - shift) * kLog2E));
  const float listed_log_sum = logf(sums[1]);
  const bool rest_is_empty = rest.sum == 0.0f;
  const float log_rest = rest_is_empty ? kMinusInfinity : (rest.largest - shift) + logf(rest.sum) - log_sum;
  const float teacher_log_rest = mass < 1 ? logf(static_cast<float>(1 - mass)) : kMinusInfinity;

  const auto student_class = [&](int i) {
    return has_rest ? (listed[i] - shift) - log_sum : (listed[i] - listed_largest) / tau - listed_log_sum;
  };
  const auto fused = [&](float student, float of_teacher) {
    return a.fusion == 1.0f ? of_teacher : (1.0f - a.fusion) * student + a.fusion * of_teacher;
  };
  const auto soft_class = [&](int i) { return fused(student_class(i), (values[i] - teacher_lse) / tau); };
  const float soft_rest = fused(log_rest, teacher_log_rest);

  float soft_largest[1] = {has_rest ? fmaxf(soft_rest, kLowest) : kLowest};
  for (int i = lane; i < k; i += kThreads) soft_largest[0] = fmaxf(soft_largest[0], soft_class(i));
  group.largest(soft_largest);
  float soft_sums[2] = {0, 0};  // Σ e(soft), Σ e(soft)·(soft − student)
  const auto add_class = [&](float soft, float student) {
    const float e = exp2_approx((soft - soft_largest[0]) * kLog2E);
    soft_sums[0] += e;
    if (soft != kMinusInfinity) soft_sums[1] = fmaf(e, soft - student, soft_sums[1]);
  };
  for (int i = lane; i < k; i += kThreads) add_class(soft_class(i), student_class(i));
  if (has_rest && lane == 0) add_class(soft_rest, log_rest);
  group.sum(soft_sums);
  if (lane == 0) {
    const float divergence = soft_sums[1] / soft_sums[0] - (logf(soft_sums[0]) + soft_largest[0]);
    a.losses[r] = make_float2(log_sum - (label_logit - shift), gate * tau * tau * divergence);
  }
  if (!a.wants_gradient) return;

  // softmax − soft on the k columns; on the others, both in proportion to the student.
  const float ce_scale = a.row_scale * a.ce_weight;
  const float kd_scale = a.row_scale * a.kd_weight * gate * tau;
  const float soft_scale = 1.0f / soft_sums[0];
  const float rest_probability = exp2_approx(log_rest * kLog2E);
  float rest_scale = ce_scale * rest_probability;
  if (has_rest) {
    rest_scale += kd_scale * (rest_probability - soft_scale * exp2_approx((soft_rest - soft_largest[0]) * kLog2E));
  }
  rest_scale = rest_is_empty ? 0.0f : rest_scale / rest.sum;
  for (int v = lane; v < num_packs; v += kThreads) {
    float z[W];
    load(row + v * W, z);
    mask_columns<false>(a, v * W, label, z);
#pragma unroll
    for (int j = 0; j < W; ++j) {
      z[j] = rest_scale * exp2_approx((z[j] - rest.largest) * kLog2E);
      if (v * W + j == label) z[j] -= ce_scale;
    }
    store(row + v * W, z);
  }
  zero_pad_packs<kThreads>(a, num_packs, lane, row);
  group.sync();
  for (int i = lane; i < k; i += kThreads) {
    const float probability = exp2_approx(((listed[i] - shift) - log_sum) * kLog2E);
    const float soft = soft_scale * exp2_approx((soft_class(i) - soft_largest[0]) * kLog2E);
    float gradient = ce_scale * probability + kd_scale * (exp2_approx(student_class(i) * kLog2E) - soft);
    if (indices[i] == label) gradient -= ce_scale;
    row[indices[i]] = from_float<T>(gradient);
  }
}

/// sums [2] += Σ losses, in an order that their number decides.
__global__ void __launch_bounds__(kSumThreads) sum_losses_kernel(const float2* losses, int64_t num_rows, double* sums) {
  __shared__ double partial[2][kSumThreads];
  double ce = 0, kd = 0;
#pragma unroll 4
  for (int64_t r = threadIdx.x; r < num_rows; r += kSumThreads) {
    const float2 loss = losses[r];
    ce += static_cast<double>(loss.x);
    kd += static_cast<double>(loss.y);
  }
  const int thread = static_cast<int>(threadIdx.x);
  partial[0][thread] = ce;
  partial[1][thread] = kd;
  for (int half = kSumThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) {
      partial[0][thread] += partial[0][thread + half];
      partial[1][thread] += partial[1][thread + half];
    }
  }
  if (thread == 0) {
    sums[0] += partial[0][0];
    sums[1] += partial[1][0];
  }
}

/// Threads of a row: a warp for short ones.
template <typename Function>
void with_row_threads(int64_t vocab_size, Function&& function) {
  if (vocab_size <= 1024) {
    function(std::integral_constant<int, 32>());
  } else if (vocab_size <= 8192) {
    function(std::integral_constant<int, 128>());
  } else {
    function(std::integral_constant<int, 512>());
  }
}

}  // namespace

template <typename T, typename Teacher>
void launch_loss_rows(Context& context, LossRows rows, const TeacherRows<Teacher>& teacher, T* logits) {
  const bool is_plain = !rows.allowed && rows.gate == 1.0f && rows.fusion == 1.0f;
  if constexpr (std::is_same_v<T, bf16> && !std::is_same_v<Teacher, float>) {
    if (is_plain && launch_kept_loss_rows(context, rows, teacher, logits)) return;
  }
  with_row_threads(rows.vocab_size, [&](auto row_threads) {
    constexpr int kThreads = decltype(row_threads)::value;
    constexpr int64_t kRowsOfBlock = kBlockThreads<kThreads> / kThreads;
    int64_t cached_bytes = 0;
    if (kThreads > 32 && rows.wants_gradient) {
      const int64_t num_packs = divide_up(rows.vocab_size, kPack<T>);
      const int64_t budget = kThreads == 128 ? kCacheBytes / 4 : kCacheBytes;
      rows.cached_logits = static_cast<int>(std::min(num_packs, budget / 16));
      cached_bytes = rows.cached_logits * 16;
      if constexpr (!std::is_same_v<Teacher, NoTeacher>) {
        constexpr int64_t kParts = Raw<Teacher, kPack<T>>::kParts;
        rows.cached_teacher = static_cast<int>(std::min(num_packs, (budget - cached_bytes) / (16 * kParts)));
        cached_bytes += rows.cached_teacher * 16 * kParts;
      }
    }
    launch(context,
           is_plain ? loss_rows_kernel<T, Teacher, true, kThreads> : loss_rows_kernel<T, Teacher, false, kThreads>,
           dim3(static_cast<unsigned>(divide_up(rows.num_rows, kRowsOfBlock))), dim3(kBlockThreads<kThreads>),
           static_cast<size_t>(cached_bytes), rows, teacher, logits);
  });
}

template <typename T>
void launch_loss_rows(Context& context, const LossRows& rows, const TopKRows& teacher, T* logits) {
  const dim3 grid(static_cast<unsigned>(rows.num_rows));
  if (rows.vocab_size <= 8192) {
    launch(context, top_k_loss_rows_kernel<T, 128>, grid, dim3(128), 0, rows, teacher, logits);
  } else {
    launch(context, top_k_loss_rows_kernel<T, 512>, grid, dim3(512), 0, rows, teacher, logits);
  }
}

void sum_losses(Context& context, const float2* losses, int64_t num_rows, double* sums) {
  launch(context, sum_losses_kernel, dim3(1), dim3(kSumThreads), 0, losses, num_rows, sums);
}

#define LIMBECK_INSTANTIATE(T, Teacher) \
  template void launch_loss_rows<T, Teacher>(Context&, LossRows, const TeacherRows<Teacher>&, T*);
LIMBECK_INSTANTIATE(float, NoTeacher)
LIMBECK_INSTANTIATE(float, float)
LIMBECK_INSTANTIATE(bf16, NoTeacher)
LIMBECK_INSTANTIATE(bf16, float)
LIMBECK_INSTANTIATE(bf16, bf16)
#undef LIMBECK_INSTANTIATE
template void launch_loss_rows<float>(Context&, const LossRows&, const TopKRows&, float*);
template void launch_loss_rows<bf16>(Context&, const LossRows&, const TopKRows&, bf16*);

}  // namespace limbeck::cuda
