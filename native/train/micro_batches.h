#pragma once

#include <cstdint>
#include <vector>

#include "model/config.h"
#include "train/trainer.h"

namespace limbeck {

/// Some sequences of a step, with their part of what its teachers said, seen in place. Its gradients, added to those of
/// the other parts, are the step's: losses are averaged over the whole step, and dropout keeps what it keeps there.
class MicroBatch {
 public:
  /// Sequences first … end − 1 of `step`, which must live as long as this. `student` is what is trained.
  MicroBatch(const StepInputs& step, const TransformerConfig& student, int64_t first, int64_t end);

  /// Valid as long as this.
  StepInputs inputs() const;

 private:
  StepInputs inputs_;             // without offsets
  std::vector<int32_t> offsets_;  // [end − first + 1]
};

/// Whole sequences of at most step.micro_batch_tokens tokens together (0 = all of them), in their order. A longer
/// sequence is a part of its own.
std::vector<MicroBatch> split_step(const StepInputs& step, const TransformerConfig& student);

}  // namespace limbeck
