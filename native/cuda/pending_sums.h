#pragma once

#include <cstdint>
#include <optional>

#include "cuda/context.h"

namespace limbeck::cuda {

/// out[c] += Σ over rows of x[row·row_stride + c], c < num_columns, in an order that num_rows decides.
template <typename T>
struct FewRowsSum {
  const T* x;
  int64_t row_stride, num_rows, num_columns;
  float* out;
};

/// Sums of one launch.
template <typename T>
struct FewRowsSums {
  static constexpr int kMost = 16;
  FewRowsSum<T> sums[kMost];
  int first_blocks[kMost];  // of each, in ascending order
  int count = 0;
};

/// The second stages of sums over rows, which wait for each other: one launch instead of one for each few microseconds
/// of work. What is added to is not right before finish(), and partial sums must live until then.
class PendingSums {
 public:
  void add(Context& context, const FewRowsSum<float>& sum);
  void finish(Context& context);

 private:
  FewRowsSums<float> sums_;
  int num_blocks_ = 0;
};

/// Those of one op: with those of others in `pending`, or without (null) at once, and then partial sums are scratch
/// memory. The memory of those that wait is the caller's to give back.
class OpSums {
 public:
  OpSums(Context& context, PendingSums* pending) : context_(context), pending_(pending == nullptr ? &own_ : pending) {
    if (pending == nullptr) scope_.emplace(context.arena);
  }
  /// out null: not wanted
  void add(const float* partials, int64_t row_stride, int64_t num_partials, int64_t num_columns, float* out) {
    if (out != nullptr) pending_->add(context_, {partials, row_stride, num_partials, num_columns, out});
  }
  void finish() {
    if (pending_ == &own_) own_.finish(context_);
  }

 private:
  Context& context_;
  PendingSums own_;
  PendingSums* pending_;
  std::optional<DeviceArena::Scope> scope_;
};

}  // namespace limbeck::cuda
