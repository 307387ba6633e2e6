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
#include "train/micro_batches.h"
#include "train/sampled_table.h"

namespace limbeck {

namespace {

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

/// The attention and relation losses have one target a student layer and teacher.
void check_single_targets(const TeacherSignal& teacher, int64_t num_layers, const char* loss) {
  std::vector<uint8_t> has_target(static_cast<size_t>(num_layers), 0);
  for (const auto& pair : teacher.layer_map) {
    uint8_t& seen = has_target[static_cast<size_t>(pair.first - 1)];
    if (seen != 0) invalid("The " + std::string(loss) + " loss takes one teacher layer a student layer.");
    seen = 1;
  }
}

bool has_logits(const TeacherSignal& teacher) {
  return teacher.model != nullptr || teacher.dense_logits != nullptr || teacher.logits_hidden != nullptr ||
         teacher.top_k > 0;
}

/// Whether a teacher has a part in a term of layers. @param arrays its field of that term
bool has_layers(const TeacherSignal& teacher, const std::vector<const float*>& arrays) {
  return !teacher.layer_map.empty() && (teacher.model != nullptr || !arrays.empty());
}

void check_layer_map(const TransformerConfig& student, const TeacherSignal& teacher) {
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
}

/// What one teacher says fits the batch and the student.
void check_teacher(const Transformer& model, const StepInputs& inputs, const TeacherSignal& teacher) {
  const TransformerConfig& student = model.config();
  const LossWeights& weights = inputs.weights;
  if (!(teacher.weight > 0) || !std::isfinite(teacher.weight)) {
    invalid("The weight of a teacher must be greater than 0 and finite, got " + std::to_string(teacher.weight) + ".");
  }
  check_layer_map(student, teacher);
  const size_t pairs = teacher.layer_map.size();
  if (teacher.model != nullptr) {
    check_batch(teacher.model->config(), inputs.batch);
    if (weights.kd != 0 && teacher.model->config().vocab_size != student.vocab_size) {
      throw Error("ERR_SHAPE_MISMATCH", "The kd loss needs one vocabulary: the teacher has " +
                                            std::to_string(teacher.model->config().vocab_size) +
                                            " entries, the student " + std::to_string(student.vocab_size) + ".");
    }
    if (pairs > 0 && weights.attention != 0 &&
        teacher.model->config().num_attention_heads != student.num_attention_heads) {
      throw Error("ERR_SHAPE_MISMATCH", "The attention loss needs equal head counts: the teacher has " +
                                            std::to_string(teacher.model->config().num_attention_heads) +
                                            ", the student " + std::to_string(student.num_attention_heads) +
                                            "; the relation loss does not.");
    }
  } else {
    const auto check_arrays = [pairs](const std::vector<const float*>& arrays, const char* name) {
      if (!arrays.empty() && arrays.size() != pairs) invalid(std::string(name) + " needs one array a pair.");
    };
    check_arrays(teacher.hidden, "teacher.hidden");
    check_arrays(teacher.attentions, "teacher.attentions");
    check_arrays(teacher.relations, "teacher.relations");
  }
  if (teacher.head != nullptr && teacher.head->config().vocab_size != student.vocab_size) {
    throw Error("ERR_SHAPE_MISMATCH", "The teacher's head scores " + std::to_string(teacher.head->config().vocab_size) +
                                          " entries and the student " + std::to_string(student.vocab_size) + ".");
  }
  if (weights.attention != 0 && has_layers(teacher, teacher.attentions)) {
    check_single_targets(teacher, student.num_hidden_layers, "attention");
  }
  if (weights.relation != 0 && has_layers(teacher, teacher.relations)) {
    check_single_targets(teacher, student.num_hidden_layers, "relation");
    model.relation_shape(inputs.batch, teacher.relation_heads);
    if (teacher.model != nullptr) teacher.model->relation_shape(inputs.batch, teacher.relation_heads);
  }
}

/// Every teacher is sound, and each term has one that says what it needs.
void check_teachers(const Transformer& model, const StepInputs& inputs) {
  const LossWeights& weights = inputs.weights;
  const std::vector<TeacherSignal>& teachers = inputs.teachers;
  const bool wants_layers = weights.hidden != 0 || weights.attention != 0 || weights.relation != 0;
  if (weights.kd == 0 && !wants_layers) return;
  if (teachers.empty()) invalid("The kd, hidden, attention and relation losses need a teacher.");
  const auto any = [&](auto has) { return std::any_of(teachers.begin(), teachers.end(), has); };
  if (wants_layers && !any([](const TeacherSignal& t) { return !t.layer_map.empty(); })) {
    invalid("The hidden, attention and relation losses need a layerMap.");
  }
  for (const TeacherSignal& teacher : teachers) check_teacher(model, inputs, teacher);
  const auto require = [&](float weight, const char* name, std::vector<const float*> TeacherSignal::*arrays) {
    if (weight != 0 && !any([&](const TeacherSignal& t) { return has_layers(t, t.*arrays); })) {
      invalid(std::string(name) + " needs one array a pair.");
    }
  };
  require(weights.hidden, "teacher.hidden", &TeacherSignal::hidden);
  require(weights.attention, "teacher.attentions", &TeacherSignal::attentions);
  require(weights.relation, "teacher.relations", &TeacherSignal::relations);
  if (weights.kd != 0 && !any(has_logits)) invalid("The kd loss needs teacher.logits or teacher.model.");
  if (weights.kd != 0 && inputs.sampled_negatives > 0) {
    invalid("The kd loss is over the whole vocabulary, and sampledNegatives asks for a part of it. Drop one of them.");
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
    logits.classes = signal.classes;
    logits.num_classes = signal.num_classes;
    logits.top_k_indices = gather(arena, signal.top_k_indices, rows, signal.top_k);
    logits.top_k_values = gather(arena, signal.top_k_values, rows, signal.top_k);
    logits.log_sum_exp = gather(arena, signal.log_sum_exp, rows, 1);
  }
  return logits;
}

/// Where the gradient of this parameter of the model is added up; null with an adapter, under which it is frozen.
float* gradient_of(Transformer& model, const char* name) {
  if (model.adapter() != nullptr) return nullptr;
  return model.parameters().gradients() + model.parameters().find(name).offset;
}

float* zeros(Arena& arena, int64_t count) {
  float* data = arena.allocate<float>(count);
  std::memset(data, 0, static_cast<size_t>(count) * sizeof(float));
  return data;
}

/// sum += addend [count]; the first addend becomes the sum.
void add_to(const float*& sum, float* addend, int64_t count) {
  if (sum != nullptr) {
    for (int64_t j = 0; j < count; ++j) addend[j] += sum[j];
  }
  sum = addend;
}

}  // namespace

void check_step(const Transformer& model, const StepInputs& inputs) {
  check_batch(model.config(), inputs.batch);
  check_teachers(model, inputs);
  check_labels(inputs, model.config().vocab_size);
}

Trainer::Trainer(std::shared_ptr<Transformer> model, const OptimizerOptions& options)
    : model_(std::move(model)),
      options_(options),
      flat_count_(model_->trainable().flat_count()),
      adapter_version_(model_->adapter_version()) {
  first_ = allocate_floats(options.kind == OptimizerKind::kNone ? 0 : flat_count_);
  second_ = allocate_floats(options.kind == OptimizerKind::kAdamW ? flat_count_ : 0);
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

std::vector<Trainer::Taught> Trainer::run_teachers(Context& context, Arena& arena, const StepInputs& inputs) const {
  const LossWeights& weights = inputs.weights;
  const bool is_heard = weights.kd != 0 || weights.hidden != 0 || weights.attention != 0 || weights.relation != 0;
  std::vector<Taught> teachers;
  size_t first_projection = 0;
  for (const TeacherSignal& signal : inputs.teachers) {
    teachers.push_back({&signal, {}, signal.model != nullptr && is_heard, first_projection});
    first_projection += signal.layer_map.size();
    if (!teachers.back().has_run) continue;
    // Maps and values are kept only where a loss reads them.
    std::vector<uint8_t> keep_maps(static_cast<size_t>(signal.model->config().num_hidden_layers), 0);
    std::vector<uint8_t> keep_values = keep_maps;
    for (const auto& pair : signal.layer_map) {
      keep_maps[static_cast<size_t>(pair.second - 1)] |= weights.attention != 0;
      keep_values[static_cast<size_t>(pair.second - 1)] |= weights.relation != 0;
    }
    teachers.back().activations =
        signal.model->forward(context, arena, inputs.batch, {false, false, -1, keep_maps.data(), keep_values.data()});
  }
  return teachers;
}

// The student's rows meet one teacher after the other: cross-entropy with the first, distillation with each.
void Trainer::head_loss(Context& context, Arena& arena, const StepInputs& inputs, const std::vector<Taught>& teachers,
                        float* d_final, float* d_word_table, StepResult& result) {
  const TransformerConfig& config = model_->config();
  const LossWeights& weights = inputs.weights;
  const std::vector<int64_t> rows = labelled_rows(inputs);
  const int64_t d = config.hidden_size, V = config.vocab_size, R = static_cast<int64_t>(rows.size());
  if (R == 0) return;
  const double label_scale = 1.0 / static_cast<double>(inputs.step_labels);
  float* d_output_table = config.tie_word_embeddings ? d_word_table : gradient_of(*model_, "head.output.weight");
  float* d_output_bias = config.masked_lm_head ? gradient_of(*model_, "head.bias") : nullptr;

  const float* hidden = gather(arena, activations_.hidden[config.num_hidden_layers], rows, d);
  int32_t* labels = arena.allocate<int32_t>(R);
  for (int64_t r = 0; r < R; ++r) labels[r] = inputs.labels[rows[static_cast<size_t>(r)]];
  const HeadActivations head = model_->head_forward(context, arena, hidden, R);
  const OutputTable table = model_->output_table(activations_.word_table);
  std::vector<const Taught*> heard;
  for (const Taught& teacher : teachers) {
    if (weights.kd != 0 && has_logits(*teacher.signal)) heard.push_back(&teacher);
  }
  const auto logits_of = [&](const Taught& teacher) {
    return teacher_logits(context, arena, *teacher.signal, teacher.has_run ? &teacher.activations : nullptr, rows);
  };

  float* d_rows = arena.allocate<float>(R * d);  // [R, d]
  LossHeadOptions options{weights.ce, 0, weights.temperature, weights.fusion, weights.gate};
  const TeacherLogits first = heard.empty() ? TeacherLogits{} : logits_of(*heard[0]);
  const float first_weight = heard.empty() ? 1 : heard[0]->signal->weight;
  options.kd_weight = weights.kd * first_weight;
  LossHeadResult sums;
  if (inputs.sampled_negatives > 0) {
    const SampledIndices sampled = sample_indices(labels, R, inputs.sampled_negatives, V,
                                                  static_cast<uint64_t>(std::max<int64_t>(inputs.dropout_seed, 0)));
    const SampledTable part = sample_table(arena, table, sampled, d);
    const int64_t count = static_cast<int64_t>(sampled.indices.size());
    float* d_sampled = d_output_table != nullptr ? zeros(arena, count * d) : nullptr;
    float* d_sampled_bias = d_output_bias != nullptr ? zeros(arena, count) : nullptr;
    sums = loss_head(context, head.output, part.weight, part.bias, sampled.labels.data(), first, options, label_scale,
                     sampled.allowed.data(), d_rows, d_sampled, d_sampled_bias, R, d, count);
    if (d_sampled != nullptr) {
      scatter_table_gradient(sampled, d_sampled, d_sampled_bias, d_output_table, d_output_bias, d);
    }
  } else {
    sums = loss_head(context, head.output, table.weight, table.bias, labels, first, options, label_scale, nullptr,
                     d_rows, d_output_table, d_output_bias, R, d, V);
  }
  result.ce += label_scale * sums.ce_sum;
  result.kd += label_scale * first_weight * sums.kd_sum;

  float* d_more = heard.size() > 1 ? arena.allocate<float>(R * d) : nullptr;  // [R, d]
  options.ce_weight = 0;
  for (size_t i = 1; i < heard.size(); ++i) {
    const float weight = heard[i]->signal->weight;
    options.kd_weight = weights.kd * weight;
    sums = loss_head(context, head.output, table.weight, table.bias, labels, logits_of(*heard[i]), options, label_scale,
                     nullptr, d_more, d_output_table, d_output_bias, R, d, V);
    result.kd += label_scale * weight * sums.kd_sum;
    for (int64_t j = 0; j < R * d; ++j) d_rows[j] += d_more[j];
  }

  model_->head_backward(context, arena, head, d_rows, d_rows, R);
  for (int64_t r = 0; r < R; ++r) {
    float* target = d_final + rows[static_cast<size_t>(r)] * d;
    for (int64_t j = 0; j < d; ++j) target[j] += d_rows[r * d + j];
  }
}

// Mean over the mapped layers of the mean squared error of h_student·Wᵀ against h_teacher. Its gradient is added to the
// entries of d_hidden, fresh where there is none yet, and the last layer's to d_final.
double Trainer::hidden_loss(Context& context, Arena& arena, const StepInputs& inputs, const Taught& teacher,
                            const float** d_hidden, float* d_final) {
  const TeacherSignal& signal = *teacher.signal;
  const int64_t N = inputs.batch.num_tokens, d = model_->config().hidden_size;
  const int64_t d_teacher = teacher.has_run ? signal.model->config().hidden_size : signal.teacher_hidden_size;
  const double pairs = static_cast<double>(signal.layer_map.size());
  double total = 0;
  for (size_t i = 0; i < signal.layer_map.size(); ++i) {
    const auto [student_layer, teacher_layer] = signal.layer_map[i];
    Projection& map = projection(teacher.first_projection + i, d_teacher, d);
    const float* target = teacher.has_run ? teacher.activations.hidden[teacher_layer] : signal.hidden[i];
    const float* hidden = activations_.hidden[student_layer];
    float* difference = arena.allocate<float>(N * d_teacher);  // [N, d_teacher]
    linear_forward(context, hidden, map.weight.get(), nullptr, difference, N, d, d_teacher);
    const double count = static_cast<double>(inputs.step_tokens) * static_cast<double>(d_teacher);
    total += squared_error(context, difference, target, N * d_teacher) / count / pairs;
    // d/d(projected) of w·Σ difference²/(count·pairs); the scale goes onto `difference` itself.
    const double weight = static_cast<double>(inputs.weights.hidden) * signal.weight;
    const float scale = static_cast<float>(2.0 * weight / (count * pairs));
    for (int64_t j = 0; j < N * d_teacher; ++j) difference[j] *= scale;
    float* d_student = arena.allocate<float>(N * d);  // [N, d]
    linear_backward(context, hidden, map.weight.get(), difference, d_student, map.gradient.get(), nullptr, N, d,
                    d_teacher);
    if (student_layer == model_->config().num_hidden_layers) {
      for (int64_t j = 0; j < N * d; ++j) d_final[j] += d_student[j];
    } else {
      add_to(d_hidden[student_layer], d_student, N * d);
    }
  }
  return signal.weight * total;
}

// Mean over mapped layers, heads and tokens of KL(teacher ‖ student) of attention maps. The gradient of a block's maps
// is linear in its target: that of several teachers is one target, their sum in proportion to `scale`.
double Trainer::attention_loss(Context& context, Arena& arena, const StepInputs& inputs,
                               const std::vector<Taught>& teachers, const float** targets, float* scale) {
  const TransformerConfig& config = model_->config();
  const AttentionShape shape = model_->attention_shape(inputs.batch);
  const int64_t count = attention_map_floats(shape);
  std::vector<float*> sums(static_cast<size_t>(config.num_hidden_layers), nullptr);  // [count] where there are several
  double first_scale = 0, total = 0;
  for (const Taught& teacher : teachers) {
    const TeacherSignal& signal = *teacher.signal;
    if (!has_layers(signal, signal.attentions)) continue;
    const double teacher_scale =
        signal.weight / (static_cast<double>(inputs.step_tokens) * static_cast<double>(config.num_attention_heads) *
                         static_cast<double>(signal.layer_map.size()));
    if (first_scale == 0) first_scale = teacher_scale;
    const float share = static_cast<float>(teacher_scale / first_scale);
    for (size_t i = 0; i < signal.layer_map.size(); ++i) {
      const size_t block = static_cast<size_t>(signal.layer_map[i].first - 1);
      const float* maps =
          teacher.has_run ? teacher.activations.blocks[signal.layer_map[i].second - 1].maps : signal.attentions[i];
      total += teacher_scale * attention_map_divergence(context, shape, maps, activations_.blocks[block].maps);
      if (targets[block] == nullptr && share == 1.0f) {
        targets[block] = maps;  // read in place
        continue;
      }
      if (sums[block] == nullptr) {
        sums[block] = zeros(arena, count);
        if (targets[block] != nullptr) {
          std::memcpy(sums[block], targets[block], static_cast<size_t>(count) * sizeof(float));
        }
        targets[block] = sums[block];
      }
      for (int64_t j = 0; j < count; ++j) sums[block][j] += share * maps[j];
    }
  }
  *scale = static_cast<float>(inputs.weights.attention * first_scale);
  return total;
}

// Mean over mapped layers, relation heads and tokens of KL(teacher ‖ student) of value relations; its gradient is added
// to the entries of d_values [N, KV·hd], fresh where there is none yet.
double Trainer::relation_loss(Context& context, Arena& arena, const StepInputs& inputs, const Taught& teacher,
                              const float** d_values) {
  const TeacherSignal& signal = *teacher.signal;
  const TransformerConfig& config = model_->config();
  const int64_t N = inputs.batch.num_tokens, width = config.num_key_value_heads * config.head_dim;
  const AttentionShape shape = model_->relation_shape(inputs.batch, signal.relation_heads);
  const double scale =
      signal.weight / (static_cast<double>(inputs.step_tokens) * static_cast<double>(signal.relation_heads) *
                       static_cast<double>(signal.layer_map.size()));
  const int64_t map_floats = attention_map_floats(shape);
  float* maps = arena.allocate<float>(map_floats);
  double total = 0;
  for (size_t i = 0; i < signal.layer_map.size(); ++i) {
    const size_t block = static_cast<size_t>(signal.layer_map[i].first - 1);
    const float* target;  // Σ relation_heads·t²
    if (teacher.has_run) {
      float* teacher_maps = arena.allocate<float>(map_floats);
      value_relation_forward(context, signal.model->relation_shape(inputs.batch, signal.relation_heads),
                             teacher.activations.blocks[signal.layer_map[i].second - 1].values, teacher_maps);
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
    add_to(d_values[block], d_block, N * width);
  }
  return total;
}

StepResult Trainer::compute_gradients(Context& context, Arena& arena, const StepInputs& inputs) {
  if (model_->adapter_version() != adapter_version_) {
    invalid("The model got or lost an adapter since this trainer was made: make another one.");
  }
  check_step(*model_, inputs);
  Parameters& parameters = model_->trainable();
  std::memset(parameters.gradients(), 0, static_cast<size_t>(parameters.flat_count()) * sizeof(float));
  for (Projection& projection : projections_) {
    if (projection.gradient != nullptr) {
      std::memset(projection.gradient.get(), 0, static_cast<size_t>(projection.count()) * sizeof(float));
    }
  }
  StepResult result;
  for (const MicroBatch& part : split_step(inputs, model_->config())) {
    arena.reset();
    add_gradients(context, arena, part.inputs(), result);
  }
  const LossWeights& weights = inputs.weights;
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

void Trainer::add_gradients(Context& context, Arena& arena, const StepInputs& inputs, StepResult& result) {
  const TransformerConfig& config = model_->config();
  const LossWeights& weights = inputs.weights;
  const int64_t N = inputs.batch.num_tokens, d = config.hidden_size, V = config.vocab_size;
  const int64_t L = config.num_hidden_layers;

  // Forward passes; attention maps are kept only where the loss reads them.
  std::vector<uint8_t> keep_maps(static_cast<size_t>(L), 0);
  std::vector<uint8_t> keep_values(static_cast<size_t>(L), 0);
  for (const TeacherSignal& signal : inputs.teachers) {
    for (const auto& pair : signal.layer_map) {
      const size_t block = static_cast<size_t>(pair.first - 1);
      keep_maps[block] |= weights.attention != 0;
      keep_values[block] |= weights.relation != 0;
    }
  }
  activations_ = model_->forward(
      context, arena, inputs.batch,
      {true, inputs.activation_checkpointing, inputs.dropout_seed, keep_maps.data(), keep_values.data()});
  const std::vector<Taught> teachers = run_teachers(context, arena, inputs);

  result.num_labels += static_cast<int64_t>(labelled_rows(inputs).size());
  float* d_final = zeros(arena, N * d);  // [N, d]
  // The gradient of the word table goes straight to embeddings.word unless the table is v + A·u.
  float* d_word_table = config.item_feature_size > 0 ? zeros(arena, V * d) : gradient_of(*model_, "embeddings.word");
  if (weights.ce != 0 || weights.kd != 0) head_loss(context, arena, inputs, teachers, d_final, d_word_table, result);

  std::vector<const float*> d_hidden(static_cast<size_t>(L + 1), nullptr);
  std::vector<const float*> d_values(static_cast<size_t>(L), nullptr);
  for (const Taught& teacher : teachers) {
    if (weights.hidden != 0 && has_layers(*teacher.signal, teacher.signal->hidden)) {
      result.hidden += hidden_loss(context, arena, inputs, teacher, d_hidden.data(), d_final);
    }
    if (weights.relation != 0 && has_layers(*teacher.signal, teacher.signal->relations)) {
      result.relation += relation_loss(context, arena, inputs, teacher, d_values.data());
    }
  }
  std::vector<const float*> teacher_maps(static_cast<size_t>(L), nullptr);
  float map_loss_scale = 0;
  if (weights.attention != 0) {
    result.attention += attention_loss(context, arena, inputs, teachers, teacher_maps.data(), &map_loss_scale);
  }

  model_->backward(context, arena, activations_,
                   {d_final, d_hidden.data(), teacher_maps.data(), map_loss_scale, d_word_table, d_values.data()});
  model_->backward_word_table(context, d_word_table);
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
  Parameters& parameters = model_->trainable();
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
