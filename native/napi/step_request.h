#pragma once

#include <napi.h>

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "napi/convert.h"
#include "napi/transformer.h"
#include "train/trainer.h"

namespace limbeck {

/// TeacherSignal of src/binding.ts, owned.
struct TeacherInput {
  float weight = 1;
  std::shared_ptr<SharedModel> model, head;
  std::vector<std::pair<int64_t, int64_t>> layer_map;
  std::vector<FloatInput> hidden, attentions, relations;
  int64_t hidden_size = 0;  // of `hidden`
  FloatInput dense_logits, logits_hidden, top_k_values, log_sum_exp;
  std::vector<int32_t> top_k_indices, classes;
  std::vector<uint8_t> packed_logits;                        // [N, packed_row_bytes]
  std::vector<float> unpacked_values, unpacked_log_sum_exp;  // of packed_logits, once unpack() was called
  int64_t top_k = 0, num_classes = 0;
  int64_t relation_heads = 0;

  /// On the engine thread: what packed logits stand for. Throws Error("ERR_INVALID_ARGUMENT") for what is none.
  void unpack(Context& context, int64_t num_tokens, int64_t vocab_size);
  /// With models by their layout: on an engine with a GPU, that of their parameters is on_gpu().
  TeacherSignal view() const;
  CudaTeacher on_gpu() const;
};

/// StepRequest of src/binding.ts, owned. Every length and layer is checked against the student's configuration and the
/// batch; ids and labels are checked by the step itself.
struct StepRequest {
  BatchInput batch;
  std::vector<int32_t> labels;
  StepInputs inputs;  // without its pointers
  std::vector<TeacherInput> teachers;

  /// On the engine thread: TeacherInput::unpack() of all.
  void unpack(Context& context, const SharedModel& student);
  StepInputs view() const;
  /// The models of the teacher. Throws Error("ERR_INVALID_ARGUMENT") for what a GPU does not take: several teachers, a
  /// weight, lists of logits that end early.
  CudaTeacher on_gpu() const;
  std::vector<Hold> holds() const;
};

StepRequest read_step_request(const Napi::Value& value, const Transformer& student, const TaskQueue& queue);

}  // namespace limbeck
