#pragma once

#include <cstdint>
#include <initializer_list>

#include "cuda/context.h"

namespace limbeck::cuda {

struct Engine;

/// Which rows of a large table have a gradient. Sampled softmax sets it in few of a million rows; the rest are zeros,
/// which are then not written, and neither the norm nor the update reads them.
class TouchedRows {
 public:
  struct Ids {
    const int32_t* ids;  // [count] in any order, repeated or not
    int64_t count;
  };

  /// Flags for a table of num_rows rows, and room for the ids of one step. All rows count as touched at first.
  void reserve(Engine& engine, int64_t num_rows, int64_t max_ids);
  bool is_reserved(int64_t max_ids) const { return flags_ != nullptr && max_ids <= max_ids_; }
  bool exists() const { return flags_ != nullptr; }
  /// [num_rows] 1 = the row may have a gradient
  const uint8_t* flags() const { return flags_; }
  /// Ids of the last step; −1: every row.
  int64_t num_touched() const { return num_touched_; }

  /// Zeros what the last step touched in gradients [num_rows, width], and marks the rows of this one.
  void begin(Context& context, float* gradients, int64_t width, std::initializer_list<Ids> lists) const;
  /// Zeros everything, and marks every row.
  void begin_all(Context& context, float* gradients, int64_t width) const;
  /// What the step that ran has touched; −1 = every row.
  void set_touched(int64_t num_ids) { num_touched_ = num_ids; }

 private:
  uint8_t* flags_ = nullptr;  // [num_rows]
  int32_t* ids_ = nullptr;    // [max_ids]
  int64_t num_rows_ = 0, max_ids_ = 0, num_touched_ = -1;
  DeviceArena memory_;
};

}  // namespace limbeck::cuda
