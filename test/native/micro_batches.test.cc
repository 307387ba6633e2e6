#include "train/micro_batches.h"

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "model_configs.h"
#include "test.h"

using namespace limbeck;

namespace {

TransformerConfig gpt2_like() { return gpt2_config({64, 128, 6, 4, 512, 32}); }

/// Sequences of these lengths, every token labelled with its own id.
struct Sequences {
  explicit Sequences(const std::vector<int32_t>& lengths) : offsets{0} {
    for (int32_t length : lengths) {
      offsets.push_back(offsets.back() + length);
      for (int32_t i = 0; i < length; ++i) ids.push_back((7 * i + length) % 64);
    }
  }
  StepInputs step(int64_t micro_batch_tokens) const {
    StepInputs inputs{};
    inputs.batch = {ids.data(), offsets.data(), nullptr, static_cast<int64_t>(ids.size()),
                    static_cast<int64_t>(offsets.size()) - 1};
    inputs.labels = ids.data();
    inputs.micro_batch_tokens = micro_batch_tokens;
    return inputs;
  }
  std::vector<int32_t> ids, offsets;
};

/// Bytes that the arena of a step has grown to.
size_t step_bytes(const StepInputs& inputs) {
  ThreadPool pool(1);
  Arena scratch, arena;
  Context context{pool, scratch};
  auto model = std::make_shared<Transformer>(gpt2_like());
  model->initialize(1, 0.02f);
  Trainer trainer(model, {});
  for (int i = 0; i < 2; ++i) trainer.step(context, arena, inputs);
  return arena.capacity_bytes();
}

}  // namespace

TEST("a step is cut into whole sequences, as many as fit, and a longer one alone") {
  const Sequences sequences({12, 1, 5, 2, 30, 3});
  const std::vector<std::pair<int64_t, std::vector<int64_t>>> expected = {
      {0, {53}},
      {1, {12, 1, 5, 2, 30, 3}},
      {6, {12, 6, 2, 30, 3}},
      {13, {13, 7, 30, 3}},
      {33, {20, 33}},
      {52, {50, 3}},
      {53, {53}},
  };
  for (const auto& [micro_batch_tokens, lengths] : expected) {
    const StepInputs step = sequences.step(micro_batch_tokens);
    const std::vector<MicroBatch> parts = split_step(step, gpt2_like());
    CHECK(parts.size() == lengths.size());
    int64_t tokens = 0, sequence = 0, squares = 0;
    for (size_t i = 0; i < parts.size(); ++i) {
      const StepInputs part = parts[i].inputs();
      const Batch& batch = part.batch;
      CHECK(batch.num_tokens == lengths[i]);
      CHECK(batch.tokens_before == tokens);
      CHECK(batch.squares_before == squares);
      CHECK(batch.input_ids == sequences.ids.data() + tokens);
      CHECK(part.labels == sequences.ids.data() + tokens);
      CHECK(part.step_tokens == 53);
      CHECK(part.step_labels == 53);
      for (int64_t s = 0; s < batch.num_sequences; ++s, ++sequence) {
        CHECK(batch.sequence_offsets[s] + tokens == sequences.offsets[static_cast<size_t>(sequence)]);
        const int64_t length = batch.sequence_offsets[s + 1] - batch.sequence_offsets[s];
        squares += length * length;
      }
      CHECK(batch.sequence_offsets[batch.num_sequences] == batch.num_tokens);
      tokens += batch.num_tokens;
    }
    CHECK(sequence == step.batch.num_sequences);
  }
}

TEST("a step in micro batches takes the memory of one of them") {
  const Sequences sequences(std::vector<int32_t>(32, 32));
  const size_t whole = step_bytes(sequences.step(0)), eighth = step_bytes(sequences.step(128));
  CHECK(whole > (size_t{40} << 20));
  CHECK(eighth < whole / 6);
  CHECK(eighth > whole / 16);
}

TEST("activation checkpointing keeps a fraction of a step: the inputs of the blocks, and what one block needs") {
  const Sequences sequences(std::vector<int32_t>(32, 32));
  StepInputs inputs = sequences.step(0);
  const size_t all = step_bytes(inputs);
  inputs.activation_checkpointing = true;
  const size_t checkpointed = step_bytes(inputs);
  CHECK(2 * all > 5 * checkpointed);
  CHECK(checkpointed > all / 12);
}
