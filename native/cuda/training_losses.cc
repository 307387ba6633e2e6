// The losses of a step: sums on the device, and what the backward pass begins with.

#include <type_traits>
#include <vector>

#include "core/error.h"
#include "cuda/elementwise.h"
#include "cuda/gemm.h"
#include "cuda/launch.h"
#include "cuda/sampled_loss.h"
#include "cuda/training_step.h"

namespace limbeck::cuda {

namespace {

/// A copy of fp32 values in the precision of products.
template <typename T>
const T* rounded_to_device(Context& context, const float* host, int64_t count) {
  float* values = to_device(context, host, count);
  if constexpr (std::is_same_v<T, float>) {
    return values;
  } else {
    T* rounded = context.arena.allocate<T>(count);
    convert<float, T>(context, values, rounded, count);
    return rounded;
  }
}

template <typename T>
std::vector<T> gather_host(const T* x, const std::vector<int32_t>& rows, int64_t width) {
  std::vector<T> packed;
  packed.reserve(rows.size() * static_cast<size_t>(width));
  for (int32_t row : rows) packed.insert(packed.end(), x + row * width, x + (row + 1) * width);
  return packed;
}

}  // namespace

// d_final [N, d] = the gradient of cross-entropy and distillation.
template <typename T>
void TransformerTrainer<T>::head_loss(Context& context, Step& step) {
  const DeviceArena::Scope scope(context.arena);
  const TransformerConfig& config = model_.config;
  const ApiStep& request = step.request;
  const int64_t N = request.batch.num_tokens, d = config.hidden_size, R = step.num_rows();
  const T* hidden = step.student.hidden[static_cast<size_t>(config.num_hidden_layers)];
  const bool is_whole = R == N;
  if (!is_whole) {
    T* packed = context.arena.template allocate<T>(R * d);
    gather_rows<T>(context, hidden, step.device_rows, packed, R, d);
    hidden = packed;
  }
  const HeadActivations<T> head = model_.head_forward(context, hidden, R);
  TeacherLogits<T> teacher;
  if (request.kd != 0) teacher = teacher_logits(context, step);
  const LossHeadOptions options{request.ce, request.kd, request.temperature, request.fusion, request.gate};
  const OutputTable<T> table = model_.output_table(step.student.word_table);
  T* d_rows = is_whole ? step.backward.d_final : context.arena.template allocate<T>(R * d);
  const float row_scale = 1.0f / static_cast<float>(request.step_labels);
  if (!step.drawn.empty()) {
    const auto count = static_cast<int64_t>(step.drawn.size()), padded = divide_up(count, 64) * 64;
    const bool has_bias = table.bias != nullptr;
    T* weight = context.arena.template allocate<T>(padded * d);
    T* bias = has_bias ? context.arena.template allocate<T>(padded) : nullptr;
    float* d_weight = context.arena.template allocate<float>(padded * d);
    float* d_bias = has_bias ? context.arena.template allocate<float>(count) : nullptr;
    T* label_weight = context.arena.template allocate<T>(R * d);
    T* label_bias = has_bias ? context.arena.template allocate<T>(R) : nullptr;
    T* d_labels = context.arena.template allocate<T>(R * d);
    float* d_labels_bias = context.arena.template allocate<float>(R);
    set_zero(context, d_weight, padded * d);
    if (has_bias) set_zero(context, d_bias, count);
    sample_table<T>(context, table, step.device_drawn, count, weight, bias, d);
    gather_rows<T>(context, table.weight, step.device_labels, label_weight, R, d);
    if (has_bias) gather_rows<T>(context, table.bias, step.device_labels, label_bias, R, 1);
    sampled_loss_head<T>(context, head.output, {weight, bias, count, padded},
                         {step.device_drawn_columns, label_weight, label_bias}, request.ce, row_scale, d_rows, d_weight,
                         d_bias, d_labels, d_labels_bias, sums_, R, d);
    scatter_table_gradient(context, d_weight, d_bias, step.device_drawn, count, step.d_output_table, step.d_output_bias,
                           d);
    step.label_order->upload(context);
    embedding_backward<T>(context, step.label_order->device(), d_labels, step.d_output_table, d);
    if (has_bias) embedding_backward<float>(context, step.label_order->device(), d_labels_bias, step.d_output_bias, 1);
  } else {
    loss_head<T>(context, head.output, table, step.device_labels, teacher, options, row_scale, nullptr, d_rows,
                 step.d_output_table, !step.sets_output_table(config), step.d_output_bias, sums_, R, d);
  }
  model_.head_backward(context, head, d_rows, d_rows, R);
  if (!is_whole) {
    set_zero(context, step.backward.d_final, N * d);
    scatter_rows_add<T>(context, d_rows, step.device_rows, step.backward.d_final, R, d);
  }
}

/// The teacher's logits for the labelled rows, in the form in which they came.
template <typename T>
TeacherLogits<T> TransformerTrainer<T>::teacher_logits(Context& context, Step& step) {
  const ApiTeacher& signal = *step.teacher;
  const int64_t N = step.request.batch.num_tokens, V = model_.config.vocab_size, R = step.num_rows();
  TeacherLogits<T> logits;
  const Model* head_model = signal.model != nullptr ? signal.model : signal.head;
  if (head_model != nullptr) {
    const auto& head = static_cast<const Transformer<T>&>(*head_model);
    const int64_t width = head.config.hidden_size;
    const T* hidden = signal.model != nullptr ? step.taught.hidden[static_cast<size_t>(head.config.num_hidden_layers)]
                                              : rounded_to_device<T>(context, signal.logits_hidden, N * width);
    if (R != N) {
      T* packed = context.arena.template allocate<T>(R * width);
      gather_rows<T>(context, hidden, step.device_rows, packed, R, width);
      hidden = packed;
    }
    const T* word_table = signal.model != nullptr ? step.taught.word_table : head.word_table(context);
    const OutputTable<T> table = head.output_table(word_table);
    logits.hidden = head.head_forward(context, hidden, R).output;
    logits.table = table.weight;
    logits.bias = table.bias;
    logits.hidden_size = width;
  } else if (signal.dense_logits != nullptr) {
    logits.dense = to_device(context, signal.dense_logits, N * V);
    logits.dense_rows = step.device_rows;
  } else if (signal.top_k > 0) {
    if (step.top_k_indices.empty()) {
      step.top_k_indices = gather_host(signal.top_k_indices, step.rows, signal.top_k);
      step.top_k_values = gather_host(signal.top_k_values, step.rows, signal.top_k);
      step.log_sum_exp = gather_host(signal.log_sum_exp, step.rows, 1);
    }
    logits.top_k = signal.top_k;
    logits.top_k_indices = to_device(context, step.top_k_indices.data(), R * signal.top_k);
    logits.top_k_values = to_device(context, step.top_k_values.data(), R * signal.top_k);
    logits.log_sum_exp = to_device(context, step.log_sum_exp.data(), R);
  }
  return logits;
}

// Mean over the mapped layers of the mean squared error of h_student·Wᵀ against h_teacher. Entries of d_hidden are set
// to a fresh gradient, and the last layer's is added to d_final.
template <typename T>
void TransformerTrainer<T>::hidden_loss(Context& context, Step& step) {
  const ApiTeacher& signal = *step.teacher;
  const int64_t N = step.request.batch.num_tokens, d = model_.config.hidden_size;
  const int64_t d_teacher = step.teacher_hidden_size();
  const float gradient_scale = static_cast<float>(2.0 * step.terms.scale[kHidden]);
  for (int64_t i = 0; i < signal.num_pairs; ++i) {
    const int64_t student_layer = signal.layer_map[2 * i], teacher_layer = signal.layer_map[2 * i + 1];
    const Projection& map = *projections_[static_cast<size_t>(i)];
    T* d_student = context.arena.template allocate<T>(N * d);  // [N, d] outlives the rest
    const DeviceArena::Scope scope(context.arena);
    const T* target = step.has_teacher_model() ? step.taught.hidden[static_cast<size_t>(teacher_layer)]
                                               : rounded_to_device<T>(context, signal.hidden[i], N * d_teacher);
    const T* hidden = step.student.hidden[static_cast<size_t>(student_layer)];
    T* difference = context.arena.template allocate<T>(N * d_teacher);  // [N, d_teacher]
    linear_forward<T>(context, hidden, map.compute, nullptr, nullptr, difference, N, d, d_teacher);
    squared_error<T>(context, difference, target, N * d_teacher, gradient_scale, sums_ + kHidden);
    linear_backward<T>(context, hidden, map.compute, difference, d_student, map.gradient, N, d, d_teacher, true);
    const T*& d_hidden = step.backward.d_hidden[static_cast<size_t>(student_layer)];
    if (student_layer == model_.config.num_hidden_layers) {
      add_in_place<T>(context, d_student, step.backward.d_final, N * d);
    } else if (d_hidden == nullptr) {
      d_hidden = d_student;
    } else {  // two pairs share a student layer
      add_in_place<T>(context, d_hidden, d_student, N * d);
      d_hidden = d_student;
    }
  }
}

template <typename T>
void TransformerTrainer<T>::attention_loss(Context& context, Step& step) {
  const ApiTeacher& signal = *step.teacher;
  const int64_t H = model_.config.num_attention_heads, elements = H * step.batch->map_elements;
  step.backward.map_loss_scale = static_cast<float>(step.terms.scale[kAttention]);
  for (int64_t i = 0; i < signal.num_pairs; ++i) {
    const auto block = static_cast<size_t>(signal.layer_map[2 * i] - 1);
    const float*& maps = step.backward.teacher_maps[block];
    if (maps != nullptr) {
      throw Error("ERR_INVALID_ARGUMENT", "The attention loss takes one teacher layer a student layer.");
    }
    maps = step.has_teacher_model() ? step.taught.blocks[static_cast<size_t>(signal.layer_map[2 * i + 1] - 1)].maps
                                    : to_device(context, signal.attentions[i], elements);
    attention_map_divergence(context, maps, step.student.blocks[block].maps, elements, sums_ + kAttention);
  }
}

// Mean over mapped layers, relation heads and tokens of KL(teacher ‖ student) of value relations; entries of d_values
// [N, KV·hd] are set to its gradient.
template <typename T>
void TransformerTrainer<T>::relation_loss(Context& context, Step& step) {
  const ApiTeacher& signal = *step.teacher;
  const TransformerConfig& config = model_.config;
  const int64_t N = step.request.batch.num_tokens, width = config.num_key_value_heads * config.head_dim;
  const AttentionShape shape = model_.relation_shape(*step.batch, signal.relation_heads);
  const int64_t elements = signal.relation_heads * step.batch->map_elements;
  for (int64_t i = 0; i < signal.num_pairs; ++i) {
    const auto block = static_cast<size_t>(signal.layer_map[2 * i] - 1);
    if (step.backward.d_values[block] != nullptr) {
      throw Error("ERR_INVALID_ARGUMENT", "The relation loss takes one teacher layer a student layer.");
    }
    T* d_values = context.arena.template allocate<T>(N * width);  // outlives the rest
    const DeviceArena::Scope scope(context.arena);
    const float* target = nullptr;  // Σ relation_heads·t²
    if (step.has_teacher_model()) {
      float* maps = context.arena.template allocate<float>(elements);
      const auto teacher_block = static_cast<size_t>(signal.layer_map[2 * i + 1] - 1);
      value_relation_forward<T>(context, step.teacher_model().relation_shape(*step.batch, signal.relation_heads),
                                step.taught.blocks[teacher_block].values, maps);
      target = maps;
    } else {
      target = to_device(context, signal.relations[i], elements);
    }
    const T* values = step.student.blocks[block].values;  // [N, width]
    float* maps = context.arena.template allocate<float>(elements);
    value_relation_forward<T>(context, shape, values, maps);
    attention_map_divergence(context, target, maps, elements, sums_ + kRelation);
    value_relation_backward<T>(context, shape, values, maps, target, static_cast<float>(step.terms.scale[kRelation]),
                               d_values);
    step.backward.d_values[block] = d_values;
  }
}

#define LIMBECK_INSTANTIATE(T)                                          \
  template void TransformerTrainer<T>::head_loss(Context&, Step&);      \
  template void TransformerTrainer<T>::hidden_loss(Context&, Step&);    \
  template void TransformerTrainer<T>::attention_loss(Context&, Step&); \
  template void TransformerTrainer<T>::relation_loss(Context&, Step&);
LIMBECK_INSTANTIATE(float)
LIMBECK_INSTANTIATE(bf16)
#undef LIMBECK_INSTANTIATE

}  // namespace limbeck::cuda
