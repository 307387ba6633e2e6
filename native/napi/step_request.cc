#include "napi/step_request.h"

#include <algorithm>
#include <string>

#include "ops/packed_logits.h"

namespace limbeck {

namespace {

constexpr int64_t kMaxTeacherHiddenSize = 1 << 20;

std::vector<FloatInput> read_arrays(const Napi::Value& value, const std::string& what, size_t count) {
  const Napi::Array array = to_array(value, what);
  check_count(what, array.Length(), static_cast<int64_t>(count));
  std::vector<FloatInput> inputs;
  for (uint32_t i = 0; i < count; ++i) inputs.emplace_back(array.Get(i), what + "[" + std::to_string(i) + "]");
  return inputs;
}

void read_layer_map(const Napi::Value& value, const Transformer& student, TeacherInput& teacher) {
  const Napi::Array pairs = to_array(value, "teacher.layerMap");
  const int64_t student_layers = student.config().num_hidden_layers;
  const int64_t teacher_layers = teacher.model != nullptr ? teacher.model->config().num_hidden_layers : kMaxInt32;
  for (uint32_t i = 0; i < pairs.Length(); ++i) {
    const std::string what = "teacher.layerMap[" + std::to_string(i) + "]";
    const Napi::Array pair = to_array(pairs.Get(i), what);
    check_count(what, pair.Length(), 2);
    const int64_t student_layer = to_integer(pair.Get(0u), what + "[0]", 1, student_layers);
    const int64_t teacher_layer = to_integer(pair.Get(1u), what + "[1]", 1, teacher_layers);
    teacher.layer_map.emplace_back(student_layer, teacher_layer);
  }
}

void read_hidden(const Napi::Value& value, int64_t num_tokens, TeacherInput& teacher) {
  teacher.hidden = read_arrays(value, "teacher.hidden", teacher.layer_map.size());
  for (const FloatInput& array : teacher.hidden) {
    if (teacher.hidden_size == 0) {
      teacher.hidden_size = array.count() / num_tokens;
      if (teacher.hidden_size < 1 || teacher.hidden_size > kMaxTeacherHiddenSize) {
        throw Error("ERR_SHAPE_MISMATCH", "Expected teacher.hidden[0] to be [" + std::to_string(num_tokens) +
                                              ", hidden size], got " + std::to_string(array.count()) + " elements.");
      }
    }
    check_count("each entry of teacher.hidden", array.count(), num_tokens * teacher.hidden_size);
  }
}

void read_logits(const Napi::Value& value, const Transformer& student, const TaskQueue& queue, int64_t num_tokens,
                 TeacherInput& teacher) {
  const Fields logits(value, "teacher.logits");
  const int64_t vocab_size = student.config().vocab_size;
  const auto floats = [&](const char* key, const Napi::Value& array, int64_t count) {
    return FloatInput(array, logits.name(key), count);
  };
  const Napi::Value dense = logits.get("dense"), hidden = logits.get("hidden"), top_k = logits.get("topK"),
                    packed = logits.get("packed");
  if (!dense.IsUndefined() + !hidden.IsUndefined() + !top_k.IsUndefined() != 1) {
    invalid(
        "Expected teacher.logits to hold one of dense, topK (with packed, or indices, values, logSumExp), hidden (with "
        "head).");
  }
  if (!dense.IsUndefined()) {
    teacher.dense_logits = floats("dense", dense, num_tokens * vocab_size);
  } else if (!hidden.IsUndefined()) {
    teacher.head = TransformerObject::unwrap_of(queue, logits.get("head"), logits.name("head")).state();
    const TransformerConfig& head = teacher.head->config();
    check_count("the vocabulary of teacher.logits.head", head.vocab_size, vocab_size);
    teacher.logits_hidden = floats("hidden", hidden, num_tokens * head.hidden_size);
  } else {
    teacher.top_k = to_integer(top_k, logits.name("topK"), 1, vocab_size);
    if (!packed.IsUndefined()) {
      const ArrayView<uint8_t> bytes = uint8_view(packed, logits.name("packed"));
      check_count(logits.name("packed"), bytes.count, num_tokens * packed_row_bytes(teacher.top_k, vocab_size));
      teacher.packed_logits.assign(bytes.data, bytes.data + bytes.count);
      return;
    }
    teacher.top_k_indices = logits.int32s("indices");
    check_count(logits.name("indices"), static_cast<int64_t>(teacher.top_k_indices.size()), num_tokens * teacher.top_k);
    teacher.top_k_values = floats("values", logits.get("values"), num_tokens * teacher.top_k);
    teacher.log_sum_exp = floats("logSumExp", logits.get("logSumExp"), num_tokens);
    if (!logits.get("classes").IsUndefined()) {
      teacher.classes = logits.int32s("classes");
      check_count(logits.name("classes"), static_cast<int64_t>(teacher.classes.size()), vocab_size);
      teacher.num_classes = to_integer(logits.get("numClasses"), logits.name("numClasses"), 1, vocab_size);
    }
  }
}

TeacherInput read_teacher(const Napi::Value& value, const Transformer& student, const TaskQueue& queue,
                          const Batch& batch) {
  const Fields fields(value, "teacher");
  TeacherInput teacher;
  if (!fields.get("weight").IsUndefined()) teacher.weight = fields.number("weight", 0.0f);
  const Napi::Value model = fields.get("model"), hidden = fields.get("hidden"), attentions = fields.get("attentions"),
                    relations = fields.get("relations"), logits = fields.get("logits");
  if (!model.IsUndefined()) {
    teacher.model = TransformerObject::unwrap_of(queue, model, "teacher.model").state();
    if (!hidden.IsUndefined() || !attentions.IsUndefined() || !relations.IsUndefined() || !logits.IsUndefined()) {
      invalid("Expected teacher to hold either a model or arrays (hidden, attentions, relations, logits), got both.");
    }
  }
  read_layer_map(fields.get("layerMap"), student, teacher);
  if (!hidden.IsUndefined()) read_hidden(hidden, batch.num_tokens, teacher);
  if (!attentions.IsUndefined()) {
    teacher.attentions = read_arrays(attentions, "teacher.attentions", teacher.layer_map.size());
    const int64_t count = attention_map_floats(student.attention_shape(batch));
    for (const FloatInput& array : teacher.attentions) {
      check_count("each entry of teacher.attentions", array.count(), count);
    }
  }
  const Napi::Value relation_heads = fields.get("relationHeads");
  if (!relation_heads.IsUndefined()) {
    teacher.relation_heads = to_integer(relation_heads, "teacher.relationHeads", 1, kMaxInt32);
  }
  if (!relations.IsUndefined()) {
    const int64_t relation_floats =
        relation_heads.IsUndefined() ? 0 : attention_map_floats(student.relation_shape(batch, teacher.relation_heads));
    teacher.relations = read_arrays(relations, "teacher.relations", teacher.layer_map.size());
    for (const FloatInput& array : teacher.relations) {
      check_count("each entry of teacher.relations", array.count(), relation_floats);
    }
  }
  if (!logits.IsUndefined()) read_logits(logits, student, queue, batch.num_tokens, teacher);
  return teacher;
}

/// One teacher, or a list of them.
std::vector<TeacherInput> read_teachers(const Napi::Value& value, const Transformer& student, const TaskQueue& queue,
                                        const Batch& batch) {
  std::vector<TeacherInput> teachers;
  if (value.IsUndefined()) return teachers;
  if (!value.IsArray()) {
    teachers.push_back(read_teacher(value, student, queue, batch));
    return teachers;
  }
  const Napi::Array list = to_array(value, "teacher");
  for (uint32_t i = 0; i < list.Length(); ++i) {
    teachers.push_back(read_teacher(list.Get(i), student, queue, batch));
  }
  return teachers;
}

LossWeights read_losses(const Napi::Value& value) {
  const Fields fields(value, "losses");
  LossWeights weights;
  weights.ce = fields.number("ce", 0.0f);
  weights.kd = fields.number("kd", 0.0f);
  weights.hidden = fields.number("hidden", 0.0f);
  weights.attention = fields.number("attention", 0.0f);
  if (!fields.get("relation").IsUndefined()) weights.relation = fields.number("relation", 0.0f);
  weights.temperature = fields.number("temperature", FLT_MIN);
  weights.fusion = fields.number("fusion", 0.0f, 1.0f);
  weights.gate = fields.number("gate", 0.0f);
  return weights;
}

}  // namespace

void TeacherInput::unpack(Context& context, int64_t num_tokens, int64_t vocab_size) {
  if (packed_logits.empty()) return;
  top_k_indices.resize(static_cast<size_t>(num_tokens * top_k));
  unpacked_values.resize(top_k_indices.size());
  unpacked_log_sum_exp.resize(static_cast<size_t>(num_tokens));
  unpack_top_k(context, packed_logits.data(), num_tokens, top_k, vocab_size, top_k_indices.data(),
               unpacked_values.data(), unpacked_log_sum_exp.data());
}

TeacherSignal TeacherInput::view() const {
  TeacherSignal signal;
  signal.weight = weight;
  signal.model = model != nullptr ? &model->layout() : nullptr;
  signal.layer_map = layer_map;
  for (const FloatInput& array : hidden) signal.hidden.push_back(array.data());
  for (const FloatInput& array : attentions) signal.attentions.push_back(array.data());
  for (const FloatInput& array : relations) signal.relations.push_back(array.data());
  signal.relation_heads = relation_heads;
  signal.teacher_hidden_size = hidden_size;
  if (!dense_logits.empty()) signal.dense_logits = dense_logits.data();
  if (head != nullptr) {
    signal.head = &head->layout();
    signal.logits_hidden = logits_hidden.data();
  }
  signal.top_k_indices = top_k_indices.data();
  signal.top_k_values = packed_logits.empty() ? top_k_values.data() : unpacked_values.data();
  signal.log_sum_exp = packed_logits.empty() ? log_sum_exp.data() : unpacked_log_sum_exp.data();
  signal.top_k = top_k;
  if (!classes.empty()) signal.classes = classes.data();
  signal.num_classes = num_classes;
  return signal;
}

CudaTeacher TeacherInput::on_gpu() const {
  return {model != nullptr ? &model->on_gpu() : nullptr, head != nullptr ? &head->on_gpu() : nullptr};
}

void StepRequest::unpack(Context& context, const SharedModel& student) {
  for (TeacherInput& teacher : teachers) teacher.unpack(context, batch.num_tokens(), student.config().vocab_size);
}

StepInputs StepRequest::view() const {
  StepInputs view = inputs;
  view.batch = batch.view();
  view.labels = labels.data();
  for (const TeacherInput& teacher : teachers) view.teachers.push_back(teacher.view());
  return view;
}

CudaTeacher StepRequest::on_gpu() const {
  if (teachers.empty()) return {};
  const TeacherInput& teacher = teachers[0];
  const bool has_short_lists =
      std::find(teacher.top_k_indices.begin(), teacher.top_k_indices.end(), -1) != teacher.top_k_indices.end();
  if (teachers.size() > 1 || teacher.weight != 1 || has_short_lists || !teacher.classes.empty()) {
    invalid(
        "A GPU takes one teacher of weight 1 over the student's vocabulary. Create the engine with device 'cpu' for "
        "several teachers or one of another vocabulary.");
  }
  return teacher.on_gpu();
}

std::vector<Hold> StepRequest::holds() const {
  std::vector<Hold> holds;
  for (const TeacherInput& teacher : teachers) {
    if (teacher.model != nullptr) holds.emplace_back(teacher.model);
    if (teacher.head != nullptr) holds.emplace_back(teacher.head);
  }
  return holds;
}

StepRequest read_step_request(const Napi::Value& value, const Transformer& student, const TaskQueue& queue) {
  const Fields fields(value, "");
  StepRequest request;
  request.batch = read_batch(fields);
  const Batch batch = request.batch.view();
  check_batch(student.config(), batch);
  request.labels = fields.int32s("labels");
  check_count("labels", static_cast<int64_t>(request.labels.size()), batch.num_tokens);
  request.inputs.learning_rate = fields.number("learningRate", 0.0f);
  request.inputs.dropout_seed = fields.integer("dropoutSeed", -kMaxSafeInteger, kMaxSafeInteger);
  request.inputs.weights = read_losses(fields.get("losses"));
  request.inputs.sampled_negatives = fields.integer("sampledNegatives", 0, kMaxInt32);
  if (!fields.get("microBatchTokens").IsUndefined()) {
    request.inputs.micro_batch_tokens = fields.integer("microBatchTokens", 1, kMaxInt32);
  }
  if (!fields.get("activationCheckpointing").IsUndefined()) {
    request.inputs.activation_checkpointing = fields.boolean("activationCheckpointing");
  }
  request.teachers = read_teachers(fields.get("teacher"), student, queue, batch);
  return request;
}

}  // namespace limbeck
