#include "train/trainer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "core/error.h"
#include "core/rng.h"
#include "ops/linear.h"
#include "ops/loss_head.h"
#include "ops/optimizer.h"
#include "ops/value_relation.h"
#include "train/sampled_table.h"

namespace limbeck {

namespace {

constexpr int32_t kIgnoredLabel = -100;
// Streams of the initial projections, away from those of Transformer::initialize.
constexpr uint64_t kProjectionStream = uint64_t{1} << 40;

[[noreturn]] void invalid(const std::string& message) { throw Error("ERR_INVALID_ARGUMENT", message); }

/// Rows of x [N, width] named by `rows` [R], packed.
template <typename T>
T* gather(Arena& arena, const T* x, const std::vector<int64_t>& rows, int64_t width) {
  T* packed = arena.allocate<T>(static_cast<int64_t>(rows.size()) * width);
  for (size_t r = 0; r < rows.size(); ++r) {
    std::memcpy(packed + static_cast<int64_t>(r) * width, x + rows[r] * width, static_cast<size_t>(width) * sizeof(T));
  }
  return packed;
}

void check_labels(const StepInputs& inputs, int64_t vocab_size) {
  bool has_label = false;
  for (int64_t i = 0; i < inputs.batch.num_tokens; ++i) {
    const int32_t label = inputs.labels[i];
    if (label == kIgnoredLabel) continue;
    if (label < 0 || label >= vocab_size) {
      invalid("labels[" + std::to_string(i) + "] = " + std::to_string(label) + " is neither -100 nor inside the " +
              "vocabulary of " + std::to_string(vocab_size) + ".");
    }
    has_label = true;
  }
  if (!has_label) invalid("Every label of the batch is -100: there is nothing to learn from.");
}

std::vector<int64_t> labelled_rows(const StepInputs& inputs) {
  std::vector<int64_t> rows;
  for (int64_t i = 0; i < inputs.batch.num_tokens; ++i) {
    if (inputs.labels[i] != kIgnoredLabel) rows.push_back(i);
  }
  return rows;
}

/// The attention and relation losses have one target a student layer.
void check_single_targets(const TeacherSignal& teacher, int64_t num_layers, const char* loss) {
  std::vector<uint8_t> has_target(static_cast<size_t>(num_layers), 0);
  for (const auto& pair : teacher.layer_map) {
    uint8_t& seen = has_target[static_cast<size_t>(pair.first - 1)];
    if (seen != 0) invalid("The " + std::string(loss) + " loss takes one teacher layer a student layer.");
    seen = 1;
  }
}

void check_teacher(const Transformer& model, const StepInputs& inputs) {
  const TransformerConfig& student = model.config();
  const LossWeights& weights = inputs.weights;
  const bool wants_layers = weights.hidden != 0 || weights.attention != 0 || weights.relation != 0;
  if (weights.kd == 0 && !wants_layers) return;
  if (inputs.teacher == nullptr) invalid("The kd, hidden, attention and relation losses need a teacher.");
  const TeacherSignal& teacher = *inputs.teacher;
  const size_t pairs = teacher.layer_map.size();
  if (wants_layers && pairs == 0) invalid("The hidden, attention and relation losses need a layerMap.");
  for (const auto& [student_layer, teacher_layer] : teacher.layer_map) {
    if (student_layer < 1 || student_layer > student.num_hidden_layers) {
      invalid("layerMap names student layer " + std::to_string(student_layer) + " of " +
              std::to_string(student.num_hidden_layers) + ".");
    }
    if (teacher.model != nullptr && (teacher_layer < 1 || teacher_layer > teacher.model->config().num_hidden_layers)) {
      invalid("layerMap names teacher layer " + std::to_string(teacher_layer) + " of " +
              std::to_string(teacher.model->config().num_hidden_layers) + ".");
    }
  }
  if (teacher.model != nullptr) {
    check_batch(teacher.model->config(), inputs.batch);
    if (weights.kd != 0 && teacher.model->config().vocab_size != student.vocab_size) {
      throw Error("ERR_SHAPE_MISMATCH", "The kd loss needs one vocabulary: the teacher has " +
                                            std::to_string(teacher.model->config().vocab_size) +
                                            " entries, the student " + std::to_string(student.vocab_size) + ".");
    }
    if (weights.attention != 0 && teacher.model->config().num_attention_heads != student.num_attention_heads) {
      throw Error("ERR_SHAPE_MISMATCH", "The attention loss needs equal head counts: the teacher has " +
                                            std::to_string(teacher.model->config().num_attention_heads) +
                                            ", the student " + std::to_string(student.num_attention_heads) +
                                            "; the relation loss does not.");
    }
  } else {
    if (weights.hidden != 0 && teacher.hidden.size() != pairs) invalid("teacher.hidden needs one array a pair.");
    if (weights.attention != 0 && teacher.attentions.size() != pairs) {
      invalid("teacher.attentions needs one array a pair.");
    }
    if (weights.relation != 0 && teacher.relations.size() != pairs) {
      invalid("teacher.relations needs one array a pair.");
    }
    const bool has_logits = teacher.dense_logits != nullptr || teacher.logits_hidden != nullptr || teacher.top_k > 0;
    if (weights.kd != 0 && !has_logits) invalid("The kd loss needs teacher.logits or teacher.model.");
  }
  if (teacher.head != nullptr && teacher.head->config().vocab_size != student.vocab_size) {
    throw Error("ERR_SHAPE_MISMATCH", "The teacher's head scores " + std::to_string(teacher.head->config().vocab_size) +
                                          " entries and the student " + std::to_string(student.vocab_size) + ".");
  }
  if (weights.attention != 0) check_single_targets(teacher, student.num_hidden_layers, "attention");
  if (weights.relation != 0) {
    check_single_targets(teacher, student.num_hidden_layers, "relation");
    model.relation_shape(inputs.batch, teacher.relation_heads);
    if (teacher.model != nullptr) teacher.model->relation_shape(inputs.batch, teacher.relation_heads);
  }
}

/// The teacher's logits for the labelled rows, in the form in which they came.
TeacherLogits teacher_logits(Context& context, Arena& arena, const TeacherSignal& signal,
                             const Activations* activations, const std::vector<int64_t>& rows) {
  TeacherLogits logits;
  const Transformer* head = signal.model != nullptr ? signal.model : signal.head;
  if (head != nullptr) {
    const int64_t width = head->config().hidden_size;
    const float* hidden =
        activations != nullptr ? activations->hidden[head->config().num_hidden_layers] : signal.logits_hidden;
    const float* packed = gather(arena, hidden, rows, width);
    const float* word_table = activations != nullptr ? activations->word_table : head->word_table(context, arena);
    const OutputTable table = head->output_table(word_table);
    logits.hidden = head->head_forward(context, arena, packed, static_cast<int64_t>(rows.size())).output;
    logits.table = table.weight;
    logits.bias = table.bias;
    logits.teacher_hidden_size = width;
  } else if (signal.dense_logits != nullptr) {
    logits.dense = signal.dense_logits;  // read in place: they are the largest input of a step
    logits.dense_rows = rows.data();
  } else if (signal.top_k > 0) {
    logits.top_k = signal.top_k;
    logits.top_k_indices = gather(arena, signal.top_k_indices, rows, signal.top_k);
    logits.top_k_values = gather(arena, signal.top_k_values, rows, signal.top_k);
    logits.log_sum_exp = gather(arena, signal.log_sum_exp, rows, 1);
  }
  return logits;
}

float* zeros(Arena& arena, int64_t count) {
  float* data = arena.allocate<float>(count);
  std::memset(data, 0, static_cast<size_t>(count) * sizeof(float));
  return data;
}

}  // namespace

void check_step(const Transformer& model, const StepInputs& inputs) {
  check_batch(model.config(), inputs.batch);
  check_teacher(model, inputs);
  check_labels(inputs, model.config().vocab_size);
}

Trainer::Trainer(std::shared_ptr<Transformer> model, const OptimizerOptions& options)
    : model_(std::move(model)), options_(options) {
  const int64_t count = model_->parameters().flat_count();
  first_ = allocate_floats(options.kind == OptimizerKind::kNone ? 0 : count);
  second_ = allocate_floats(options.kind == OptimizerKind::kAdamW ? count : 0);
}

Projection& Trainer::projection(size_t index, int64_t rows, int64_t columns) {
  if (projections_.size() <= index) projections_.resize(index + 1);
  Projection& projection = projections_[index];
  if (projection.weight == nullptr) {
    projection.rows = rows;
    projection.columns = columns;
    projection.weight = allocate_floats(projection.count());
    projection.gradient = allocate_floats(projection.count());
    projection.first = allocate_floats(projection.count());
    projection.second = allocate_floats(projection.count());
    const Philox random{0, kProjectionStream + index};
    const float range = 1.0f / std::sqrt(static_cast<float>(columns));
    for (int64_t i = 0; i < projection.count(); ++i) {
      projection.weight[static_cast<size_t>(i)] = range * random.normal(static_cast<uint64_t>(i));
    }
  } else if (projection.rows != rows || projection.columns != columns) {
    throw Error("ERR_SHAPE_MISMATCH", "Projection " + std::to_string(index) + " is [" +
                                          std::to_string(projection.rows) + ", " + std::to_string(projection.columns) +
                                          "], expected [" + std::to_string(rows) + ", " + std::to_string(columns) +
                                          "].");
  }
  return projection;
}

// Mean over the mapped layers of the mean squared error of h_student·Wᵀ against h_teacher. Entries of d_hidden are set
// to a fresh gradient, and the last layer's is added to d_final.
double Trainer::hidden_loss(Context& context, Arena& arena, const StepInputs& inputs, const Activations& student,
                            const Activations* teacher, const float** d_hidden, float* d_final) {
  const TeacherSignal& signal = *inputs.teacher;
  const int64_t N = inputs.batch.num_tokens, d = model_->config().hidden_size;
  const int64_t d_teacher = teacher != nullptr ? signal.model->config().hidden_size : signal.teacher_hidden_size;
  const double pairs = static_cast<double>(signal.layer_map.size());
  double total = 0;
  for (size_t i = 0; i < signal.layer_map.size(); ++i) {
    const auto [student_layer, teacher_layer] = signal.layer_map[i];
    Projection& map = projection(i, d_teacher, d);
    const float* target = teacher != nullptr ? teacher->hidden[teacher_layer] : signal.hidden[i];
    const float* hidden = student.hidden[student_layer];
    float* difference = arena.allocate<float>(N * d_teacher);  // [N, d_teacher]
    linear_forward(context, hidden, map.weight.get(), nullptr, difference, N, d, d_teacher);
    const double count = static_cast<double>(N) * static_cast<double>(d_teacher);
    total += squared_error(context, difference, target, N * d_teacher) / count / pairs;
    // d/d(projected) of w·Σ difference²/(count·pairs); the scale goes onto `difference` itself.
    const float scale = static_cast<float>(2.0 * inputs.weights.hidden / (count * pairs));
    for (int64_t j = 0; j < N * d_teacher; ++j) difference[j] *= scale;
    float* d_student = arena.allocate<float>(N * d);  // [N, d]
    linear_backward(context, hidden, map.weight.get(), difference, d_student, map.gradient.get(), nullptr, N, d,
                    d_teacher);
    if (student_layer == model_->config().num_hidden_layers) {
      for (int64_t j = 0; j < N * d; ++j) d_final[j] += d_student[j];
    } else if (d_hidden[student_layer] == nullptr) {
      d_hidden[student_layer] = d_student;
    } else {  // two pairs share a student layer
      float* sum = const_cast<float*>(d_hidden[student_layer]);
      for (int64_t j = 0; j < N * d; ++j) sum[j] += d_student[j];
    }
  }
  return total;
}

// Mean over mapped layers, relation heads and tokens of KL(teacher ‖ student) of value relations; entries of d_values
// [N, KV·hd] are set to its gradient.
double Trainer::relation_loss(Context& context, Arena& arena, const StepInputs& inputs, const Activations* teacher,
                              const float** d_values) {
  const TeacherSignal& signal = *inputs.teacher;
  const TransformerConfig& config = model_->config();
  const int64_t N = inputs.batch.num_tokens, width = config.num_key_value_heads * config.head_dim;
  const AttentionShape shape = model_->relation_shape(inputs.batch, signal.relation_heads);
  const double scale = 1.0 / (static_cast<double>(N) * static_cast<double>(signal.relation_heads) *
                              static_cast<double>(signal.layer_map.size()));
  const int64_t map_floats = attention_map_floats(shape);
  float* maps = arena.allocate<float>(map_floats);
  double total = 0;
  for (size_t i = 0; i < signal.layer_map.size(); ++i) {
    const size_t block = static_cast<size_t>(signal.layer_map[i].first - 1);
    const float* target;  // Σ relation_heads·t²
    if (teacher != nullptr) {
      float* teacher_maps = arena.allocate<float>(map_floats);
      value_relation_forward(context, signal.model->relation_shape(inputs.batch, signal.relation_heads),
                             teacher->blocks[signal.layer_map[i].second - 1].values, teacher_maps);
      target = teacher_maps;
    } else {
      target = signal.relations[i];
    }
    const float* values = activations_.blocks[block].values;  // [N, width]
    value_relation_forward(context, shape, values, maps);
    total += scale * attention_map_divergence(context, shape, target, maps);
    float* d_block = arena.allocate<float>(N * width);
    value_relation_backward(context, shape, values, target, static_cast<float>(inputs.weights.relation * scale),
                            d_block);
    d_values[block] = d_block;
  }
  return total;
}

StepResult Trainer::compute_gradients(Context& context, Arena& arena, const StepInputs& inputs) {
  const TransformerConfig& config = model_->config();
  check_step(*model_, inputs);
  const std::vector<int64_t> rows = labelled_rows(inputs);
  const LossWeights& weights = inputs.weights;
  const int64_t N = inputs.batch.num_tokens, d = config.hidden_size, V = config.vocab_size;
  const int64_t L = config.num_hidden_layers, R = static_cast<int64_t>(rows.size());
  const TeacherSignal* signal = inputs.teacher;

  arena.reset();
  Parameters& parameters = model_->parameters();
  std::memset(parameters.gradients(), 0, static_cast<size_t>(parameters.flat_count()) * sizeof(float));
  for (Projection& projection : projections_) {
    if (projection.gradient != nullptr) {
      std::memset(projection.gradient.get(), 0, static_cast<size_t>(projection.count()) * sizeof(float));
    }
  }

  // Forward passes; attention maps are kept only where the loss reads them.
  std::vector<uint8_t> keep_maps(static_cast<size_t>(L), 0);
  std::vector<uint8_t> keep_values(static_cast<size_t>(L), 0);
  std::vector<uint8_t> keep_teacher_maps, keep_teacher_values;
  for (size_t i = 0; signal != nullptr && i < signal->layer_map.size(); ++i) {
    const size_t block = static_cast<size_t>(signal->layer_map[i].first - 1);
    keep_maps[block] |= weights.attention != 0;
    keep_values[block] |= weights.relation != 0;
  }
  activations_ =
      model_->forward(context, arena, inputs.batch, {true, inputs.dropout_seed, keep_maps.data(), keep_values.data()});
  const Activations& student = activations_;
  Activations teacher_activations{};
  const Activations* teacher = nullptr;
  if (signal != nullptr && signal->model != nullptr &&
      (weights.kd != 0 || weights.hidden != 0 || weights.attention != 0 || weights.relation != 0)) {
    const size_t teacher_layers = static_cast<size_t>(signal->model->config().num_hidden_layers);
    keep_teacher_maps.assign(teacher_layers, 0);
    keep_teacher_values.assign(teacher_layers, 0);
    for (const auto& pair : signal->layer_map) {
      keep_teacher_maps[static_cast<size_t>(pair.second - 1)] |= weights.attention != 0;
      keep_teacher_values[static_cast<size_t>(pair.second - 1)] |= weights.relation != 0;
    }
    teacher_activations = signal->model->forward(context, arena, inputs.batch,
                                                 {false, -1, keep_teacher_maps.data(), keep_teacher_values.data()});
    teacher = &teacher_activations;
  }

  StepResult result;
  result.num_labels = R;
  float* d_final = zeros(arena, N * d);  // [N, d]
  // The gradient of the word table goes straight to embeddings.word unless the table is v + A·u.
  float* d_word_table = config.item_feature_size > 0
                            ? zeros(arena, V * d)
                            : parameters.gradients() + parameters.find("embeddings.word").offset;
  float* d_output_table =
      config.tie_word_embeddings ? d_word_table : parameters.gradients() + parameters.find("head.output.weight").offset;
  float* d_output_bias = config.masked_lm_head ? parameters.gradients() + parameters.find("head.bias").offset : nullptr;

  if (weights.ce != 0 || weights.kd != 0) {
    const float* hidden = gather(arena, student.hidden[L], rows, d);
    int32_t* labels = arena.allocate<int32_t>(R);
    for (int64_t r = 0; r < R; ++r) labels[r] = inputs.labels[rows[static_cast<size_t>(r)]];
    const HeadActivations head = model_->head_forward(context, arena, hidden, R);
    TeacherLogits logits;
    if (weights.kd != 0) logits = teacher_logits(context, arena, *signal, teacher, rows);
    const OutputTable table = model_->output_table(student.word_table);
    const LossHeadOptions options{weights.ce, weights.kd, weights.temperature, weights.fusion, weights.gate};
    float* d_rows = arena.allocate<float>(R * d);  // [R, d]
    LossHeadResult sums;
    if (inputs.sampled_negatives > 0) {
      const SampledIndices sampled = sample_indices(labels, R, inputs.sampled_negatives, V,
                                                    static_cast<uint64_t>(std::max<int64_t>(inputs.dropout_seed, 0)));
      const SampledTable part = sample_table(arena, table, sampled, d);
      const int64_t count = static_cast<int64_t>(sampled.indices.size());
      float* d_sampled = zeros(arena, count * d);
      float* d_sampled_bias = d_output_bias != nullptr ? zeros(arena, count) : nullptr;
      sums = loss_head(context, head.output, part.weight, part.bias, sampled.labels.data(), logits, options, 1.0 / R,
                       sampled.allowed.data(), d_rows, d_sampled, d_sampled_bias, R, d, count);
      scatter_table_gradient(sampled, d_sampled, d_sampled_bias, d_output_table, d_output_bias, d);
    } else {
      sums = loss_head(context, head.output, table.weight, table.bias, labels, logits, options, 1.0 / R, nullptr,
                       d_rows, d_output_table, d_output_bias, R, d, V);
    }
    result.ce = sums.ce_sum / static_cast<double>(R);
    result.kd = sums.kd_sum / static_cast<double>(R);
    model_->head_backward(context, arena, head, d_rows, d_rows, R);
    for (int64_t r = 0; r < R; ++r) {
      float* target = d_final + rows[static_cast<size_t>(r)] * d;
      for (int64_t j = 0; j < d; ++j) target[j] += d_rows[r * d + j];
    }
  }

  std::vector<const float*> d_hidden(static_cast<size_t>(L + 1), nullptr);
  if (weights.hidden != 0) {
    result.hidden = hidden_loss(context, arena, inputs, student, teacher, d_hidden.data(), d_final);
  }
  std::vector<const float*> teacher_maps(static_cast<size_t>(L), nullptr);
  float map_loss_scale = 0;
  if (weights.attention != 0) {
    const double scale = 1.0 / (static_cast<double>(N) * static_cast<double>(config.num_attention_heads) *
                                static_cast<double>(signal->layer_map.size()));
    map_loss_scale = static_cast<float>(weights.attention * scale);
    for (size_t i = 0; i < signal->layer_map.size(); ++i) {
      const size_t block = static_cast<size_t>(signal->layer_map[i].first - 1);
      teacher_maps[block] =
          teacher != nullptr ? teacher->blocks[signal->layer_map[i].second - 1].maps : signal->attentions[i];
      result.attention += scale * attention_map_divergence(context, model_->attention_shape(inputs.batch),
                                                           teacher_maps[block], student.blocks[block].maps);
    }
  }

  std::vector<const float*> d_values(static_cast<size_t>(L), nullptr);
  if (weights.relation != 0) result.relation = relation_loss(context, arena, inputs, teacher, d_values.data());

  model_->backward(context, arena, student,
                   {d_final, d_hidden.data(), teacher_maps.data(), map_loss_scale, d_word_table, d_values.data()});
  model_->backward_word_table(context, d_word_table);
  result.loss = weights.ce * result.ce + weights.kd * result.kd + weights.hidden * result.hidden +
                weights.attention * result.attention + weights.relation * result.relation;

  double square = std::pow(global_norm(context, parameters.gradients(), parameters.flat_count()), 2);
  for (const Projection& projection : projections_) {
    if (projection.gradient != nullptr) {
      square += std::pow(global_norm(context, projection.gradient.get(), projection.count()), 2);
    }
  }
  result.grad_norm = std::sqrt(square);
  return result;
}

StepResult Trainer::step(Context& context, Arena& arena, const StepInputs& inputs) {
  const StepResult result = compute_gradients(context, arena, inputs);
  if (!std::isfinite(result.loss) || !std::isfinite(result.grad_norm)) {
    throw Error("ERR_NOT_FINITE", "Step " + std::to_string(step_count_ + 1) + " gave loss " +
                                      std::to_string(result.loss) + " and gradient norm " +
                                      std::to_string(result.grad_norm) +
                                      "; the parameters were left as they were. Use a lower learning rate.");
  }
  update(context, inputs, result.grad_norm);
  return result;
}

void Trainer::update(Context& context, const StepInputs& inputs, double grad_norm) {
  ++step_count_;
  float grad_scale = 1.0f;
  if (options_.max_grad_norm > 0 && grad_norm > options_.max_grad_norm) {
    grad_scale = static_cast<float>(options_.max_grad_norm / grad_norm);
  }
  auto apply = [&](float* values, const float* gradients, float* first, float* second, int64_t count, size_t rank) {
    const float decay = rank >= 2 ? options_.weight_decay : 0.0f;
    if (options_.kind == OptimizerKind::kAdamW) {
      adamw(context, values, gradients, first, second, count,
            {inputs.learning_rate, options_.beta1, options_.beta2, options_.epsilon, decay, step_count_, grad_scale});
    } else if (options_.kind == OptimizerKind::kSgd) {
      sgd(context, values, gradients, first, count, {inputs.learning_rate, options_.momentum, decay, grad_scale});
    }
  };
  Parameters& parameters = model_->parameters();
  for (const Parameter& parameter : parameters.list()) {
    apply(parameters.values() + parameter.offset, parameters.gradients() + parameter.offset,
          first_.get() + parameter.offset, second_.get() + parameter.offset, parameter.count, parameter.shape.size());
  }
  for (Projection& projection : projections_) {
    if (projection.weight == nullptr) continue;
    apply(projection.weight.get(), projection.gradient.get(), projection.first.get(), projection.second.get(),
          projection.count(), 2);
  }
}

}  // namespace limbeck
