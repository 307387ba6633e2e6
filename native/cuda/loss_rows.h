#pragma once

#include <algorithm>
#include <cfloat>

#include "cuda/gemm.h"
#include "cuda/launch.h"
#include "cuda/loss_head.h"
#include "cuda/packs.h"
#include "cuda/thread_group.h"

namespace limbeck::cuda {

inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr double kLn2 = 0.6931471805599453;
inline constexpr float kMinusInfinity = -__builtin_inff();
/// The maximum of nothing: unlike −∞, it can be subtracted from −∞.
inline constexpr float kLowest = -FLT_MAX;

/// An exponential is exp2(x·scale − shift), one multiplication and addition: `shift` is that of the largest x so far,
/// rounded, which is the same for all elements. That of no element can be doubled, and be subtracted from −∞.
inline constexpr float kLowestShift = kLowest / 4;
__device__ __forceinline__ float shift_of(float largest, float scale) { return fmaxf(largest * scale, kLowestShift); }

/// Σ exp(x) of the elements so far, relative to their largest.
struct RunningSum {
  float largest = kLowest;
  float sum = 0;

  /// Takes count elements at once; those of −∞ add nothing.
  template <int kCount>
  __device__ __forceinline__ void add(const float (&x)[kCount]) {
    float candidate = largest;
#pragma unroll
    for (int j = 0; j < kCount; ++j) candidate = fmaxf(candidate, x[j]);
    if (candidate > largest) {
      sum *= exp2_approx((largest - candidate) * kLog2E);
      largest = candidate;
    }
#pragma unroll
    for (int j = 0; j < kCount; ++j) sum += exp2_approx((x[j] - largest) * kLog2E);
  }

  /// Joins those of all threads of the group.
  template <int kThreads>
  __device__ void join(const ThreadGroup<kThreads>& group) {
    float all[1] = {largest};
    group.largest(all);
    float sums[1] = {sum * exp2_approx((largest - all[0]) * kLog2E)};
    group.sum(sums);
    largest = all[0];
    sum = sums[0];
  }
};

// Chunks of logits: each is one more pass over the table and its gradient, and its product with the table has only as
// many tiles as rows, so few are made. A teacher's logits are as large again.
inline constexpr int64_t kChunkBytes = int64_t{2700} << 20;
inline constexpr int64_t kMinChunkRows = 2048;

/// Rows of a chunk, as even as they go.
inline int64_t chunk_row_count(int64_t num_rows, int64_t row_bytes, int64_t wanted) {
  const int64_t rows = wanted > 0 ? wanted : std::max(kMinChunkRows, kChunkBytes / row_bytes / 128 * 128);
  if (wanted > 0 || rows >= num_rows) return std::min(rows, num_rows);
  return even_rows(num_rows, rows);
}

/// Rows of a product with the output table.
template <typename T>
GemmShape logits_shape(const OutputTable<T>& table, int64_t num_rows, int64_t hidden_size) {
  return {num_rows,    table.padded_vocab_size, hidden_size, false, true, hidden_size,
          hidden_size, table.padded_vocab_size};
}

/// What the rows of a chunk have in common. Pointers are to the first row of the chunk.
struct LossRows {
  const int32_t* labels;    // [num_rows] column of the label; −1 = it is none of the columns, see own_logits
  const uint8_t* allowed;   // null, or [vocab_size]
  const float* own_logits;  // null, or [num_rows] the label's logit, one more class of a row whose label is −1
  float* own_gradients;     // null, or [num_rows] the gradient over it = , 0 where the label is a column
  float2* losses;           // [num_rows] cross-entropy and gate·τ²·KL =
  int64_t num_rows;
  int vocab_size, stride;
  float ce_weight, kd_weight, temperature, fusion, gate, row_scale;
  bool wants_gradient;
  int cached_logits, cached_teacher;  // packs of a row that are kept in shared memory
};

/// Logits of a teacher over the whole vocabulary.
template <typename Teacher>
struct TeacherRows {
  const Teacher* logits;  // the first row of the chunk, or with `rows` of all
  const int32_t* rows;    // null, or [num_rows]
  int64_t stride;
  int width;  // elements of a row that may be read
  bool is_aligned;

  __device__ const Teacher* row(int64_t r) const { return logits + (rows ? rows[r] : r) * stride; }
};

struct NoTeacher {};

/// A teacher's k best columns, which lie in any order. Pointers are to the first row of the chunk.
struct TopKRows {
  const int32_t* indices;    // [num_rows, k]
  const float* values;       // [num_rows, k]
  const float* log_sum_exp;  // [num_rows]
  float* listed;             // [num_rows, k] scratch: the student's logits at those columns
  int k;
};

/// Loss of each row, with a teacher over the whole vocabulary or none, or with its k best columns; and the gradient
/// over the logits in their place, if wanted.
///   logits [num_rows, stride]; Teacher: NoTeacher, float or T
template <typename T, typename Teacher>
void launch_loss_rows(Context& context, LossRows rows, const TeacherRows<Teacher>& teacher, T* logits);
template <typename T>
void launch_loss_rows(Context& context, const LossRows& rows, const TopKRows& teacher, T* logits);

/// The same of long rows, of which no column is left out, without gate and fusion; false, and nothing done, where it is
/// something else that is wanted, or rows do not fit into shared memory.   Teacher: NoTeacher or bf16
template <typename Teacher>
bool launch_kept_loss_rows(Context& context, LossRows rows, const TeacherRows<Teacher>& teacher, bf16* logits);

/// sums [2] += Σ losses, in an order that their number decides.
void sum_losses(Context& context, const float2* losses, int64_t num_rows, double* sums);

}  // namespace limbeck::cuda
