#include "cuda/trainer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <type_traits>

#include "core/error.h"
#include "core/rng.h"
#include "cuda/elementwise.h"
#include "cuda/launch.h"
#include "cuda/training_step.h"
#include "train/sampled_indices.h"

namespace limbeck::cuda {

namespace {

constexpr int32_t kIgnoredLabel = -100;
// Streams of the initial projections, as in train/trainer.cc.
constexpr uint64_t kProjectionStream = uint64_t{1} << 40;

constexpr size_t kMaxMeasured = 64;  // shapes of steps whose memory is known

}  // namespace

template <typename T>
TransformerTrainer<T>::TransformerTrainer(Transformer<T>& model, const ApiOptimizer& options)
    : model_(model), options_(options) {
  const int64_t count = model.device_count();
  model.engine.reserve(memory_, [&](DeviceArena& memory) {
    if (options.kind != ApiOptimizerKind::kNone) first_ = memory.allocate<float>(count);
    if (options.kind == ApiOptimizerKind::kAdamW) second_ = memory.allocate<float>(count);
    sums_ = memory.allocate<double>(kNumSums);
  });
  squares_ = sums_ + kNumTerms;
  loss_ = squares_ + 1;
  failed_ = loss_ + 1;
  model.require_gradients();
  Context context = model.engine.context();
  if (first_ != nullptr) set_zero(context, first_, count);
  if (second_ != nullptr) set_zero(context, second_, count);
  set_zero(context, sums_, kNumSums);
  model.engine.synchronize();
  check_cuda(cudaHostAlloc(&host_sums_, kMaxStepsInFlight * kNumSums * sizeof(double), cudaHostAllocDefault),
             "cudaHostAlloc");
  for (cudaEvent_t& done : done_) {
    check_cuda(cudaEventCreateWithFlags(&done, cudaEventDisableTiming), "cudaEventCreate");
  }
}

template <typename T>
TransformerTrainer<T>::~TransformerTrainer() {
  cudaStreamSynchronize(model_.engine.main.stream);  // steps that no one finished
  model_.num_steps_begun -= static_cast<int64_t>(begun_.size());
  for (cudaEvent_t done : done_) {
    if (done != nullptr) cudaEventDestroy(done);
  }
  if (host_sums_ != nullptr) cudaFreeHost(host_sums_);
}

template <typename T>
void TransformerTrainer<T>::gather_labels(Step& step) {
  const TransformerConfig& config = model_.config;
  const ApiStep& request = step.request;
  const int64_t N = request.batch.num_tokens;
  for (int64_t i = 0; i < N; ++i) {
    if (request.labels[i] == kIgnoredLabel) continue;
    step.rows.push_back(static_cast<int32_t>(i));
    step.labels.push_back(request.labels[i]);
  }
  if (request.sampled_negatives > 0 && !step.rows.empty()) {
    step.drawn = draw_negatives(request.sampled_negatives, config.vocab_size,
                                static_cast<uint64_t>(std::max<int64_t>(request.dropout_seed, 0)));
    std::vector<bool> is_drawn(static_cast<size_t>(config.vocab_size), false);
    for (int32_t row : step.drawn) is_drawn[static_cast<size_t>(row)] = true;
    for (int32_t label : step.labels) {
      const auto found = is_drawn[static_cast<size_t>(label)]
                             ? std::lower_bound(step.drawn.begin(), step.drawn.end(), label) - step.drawn.begin()
                             : -1;
      step.drawn_columns.push_back(static_cast<int32_t>(found));
    }
    const int64_t num_ids = N + step.num_rows() + static_cast<int64_t>(step.drawn.size());
    if (step.touches_few(config) && !touched_words_.is_reserved(num_ids)) {
      touched_words_.reserve(model_.engine, config.vocab_size, num_ids);
      is_planned_ = false;
    }
  }
}

template <typename T>
ApiStepResult TransformerTrainer<T>::run(const ApiStep* parts, int64_t num_parts, bool updates) {
  if (!begun_.empty()) throw Error("ERR_INVALID_ARGUMENT", "Finish the steps that were begun before.");
  begin(parts, num_parts, updates);
  return finish_step();
}

template <typename T>
void TransformerTrainer<T>::begin(const ApiStep* parts, int64_t num_parts, bool updates) {
  if (parts[0].step_labels < 1) {
    throw Error("ERR_INVALID_ARGUMENT", "Every label of the batch is -100: there is nothing to learn from.");
  }
  if (begun_.size() == kMaxStepsInFlight) {
    throw Error("ERR_INVALID_ARGUMENT", "At most " + std::to_string(kMaxStepsInFlight) +
                                            " steps may be on their way: finish one of those that were begun.");
  }
  BegunStep begun{next_slot_, updates, false, 0, {}};
  for (int64_t i = 0; i < num_parts; ++i) {
    Step step(parts[i], i == 0, i + 1 == num_parts);
    run_part(step, updates);
    begun.num_labels += step.num_rows();
    std::copy(std::begin(step.means), std::end(step.means), begun.means);
  }
  Context context = model_.engine.context();
  copy_to_host(context, host_sums_ + next_slot_ * kNumSums, sums_, kNumSums);
  check_cuda(cudaEventRecord(done_[next_slot_], context.stream), "cudaEventRecord");
  next_slot_ = (next_slot_ + 1) % kMaxStepsInFlight;
  begun_.push_back(begun);
  ++model_.num_steps_begun;
}

template <typename T>
ApiStepResult TransformerTrainer<T>::finish_step() {
  if (begun_.empty()) throw Error("ERR_INVALID_ARGUMENT", "No step was begun.");
  const BegunStep begun = begun_.front();
  begun_.pop_front();
  --model_.num_steps_begun;
  if (begun.is_void) {
    throw Error("ERR_NOT_FINITE", "A step before was not finite; this one, begun after it, changed nothing.");
  }
  model_.engine.make_current();
  check_cuda(cudaEventSynchronize(done_[begun.slot]), "the work of the GPU");
  const double* sums = host_sums_ + begun.slot * kNumSums;
  ApiStepResult result{};
  result.num_labels = begun.num_labels;
  result.ce = sums[kCe] * begun.means[kCe];
  result.kd = sums[kKd] * begun.means[kKd];
  result.hidden = sums[kHidden] * begun.means[kHidden];
  result.attention = sums[kAttention] * begun.means[kAttention];
  result.relation = sums[kRelation] * begun.means[kRelation];
  result.grad_norm = std::sqrt(sums[squares_ - sums_]);
  result.loss = sums[loss_ - sums_];
  if (!begun.updates) return result;
  if (sums[failed_ - sums_] != 0) {
    // The steps after it changed nothing, and what their losses are is not known.
    for (BegunStep& later : begun_) later.is_void = true;
    Context context = model_.engine.context();
    set_zero(context, failed_, 1);
    throw Error("ERR_NOT_FINITE", "Step " + std::to_string(step_count + 1) + " gave loss " +
                                      std::to_string(result.loss) + " and gradient norm " +
                                      std::to_string(result.grad_norm) +
                                      "; the parameters were left as they were. Use a lower learning rate.");
  }
  ++step_count;
  return result;
}

template <typename T>
void TransformerTrainer<T>::run_part(Step& step, bool updates) {
  const TransformerConfig& config = model_.config;
  const ApiStep& request = step.request;
  gather_labels(step);
  if (request.hidden != 0) {
    for (int64_t i = 0; i < step.teacher->num_pairs; ++i) {
      ensure_projection(i, step.teacher_hidden_size(), config.hidden_size);
    }
  }
  if (!is_planned_) plan();
  const auto num_begun = std::count_if(begun_.begin(), begun_.end(), [](const auto& begun) { return !begun.is_void; });
  const double next = static_cast<double>(step_count + num_begun + 1);
  step.scalars.learning_rate = request.learning_rate;
  step.scalars.max_grad_norm = options_.max_grad_norm;
  step.scalars.first_correction = static_cast<float>(1 - std::pow(static_cast<double>(options_.beta1), next));
  step.scalars.second_correction = static_cast<float>(1 - std::pow(static_cast<double>(options_.beta2), next));
  step.scalars.dropout_seed = static_cast<uint64_t>(std::max<int64_t>(request.dropout_seed, 0));

  set_terms(step);

  step.is_taught_beside = teach_beside(step);
  // Steps of one shape put the same work on the stream: from the third on it is run as one graph.
  const std::vector<int64_t> key = graph_key(step, updates);
  Engine& engine = model_.engine;
  const bool is_repeated = step.is_whole() && key == last_key_ && last_generation_ == engine.main.arena_generation;
  last_key_.clear();
  const auto body = [&](Context& context) {
    upload(context, step);
    if (step.is_graphable()) step.batch->upload_orders(context);
    if (is_repeated && graph_.is_captured()) {
      graph_.run(context);
    } else if (is_repeated && step.is_graphable()) {
      graph_.capture(context, [&] { compute(context, step, updates); });
      graph_.run(context);
    } else {
      graph_.clear();
      compute(context, step, updates);
    }
  };
  const auto measured = measured_.find(key);
  // What was enough with the teacher beside is not where there is no memory for that.
  const bool is_measured = measured != measured_.end() && measured->second <= engine.main.arena.capacity_bytes() &&
                           (step.is_taught_beside || !step.can_be_taught_beside());
  if (!is_measured) {
    const int64_t generation = engine.side.arena_generation;
    engine.reserve_for(body);
    if (step.is_taught_beside && engine.side.arena_generation != generation) {  // its memory was needed here
      step.is_taught_beside = false;
      engine.reserve_for(body);
    }
  }
  engine.enqueue(body, true);
  if (measured == measured_.end()) {
    if (measured_.size() == kMaxMeasured) measured_.clear();
    measured_[key] = engine.main.arena.capacity_bytes();
  }
  if (step.is_whole()) last_key_ = key;
  const int64_t num_ids = request.batch.num_tokens + step.num_rows() + static_cast<int64_t>(step.drawn.size());
  touched_words_.set_touched(step.touches_few(config) ? num_ids : -1);
  last_generation_ = engine.main.arena_generation;
}

// What the loss is made of: the sums of the device over what they are averaged over, and their weights.
template <typename T>
void TransformerTrainer<T>::set_terms(Step& step) const {
  const TransformerConfig& config = model_.config;
  const ApiStep& request = step.request;
  const double N = static_cast<double>(request.step_tokens), R = static_cast<double>(request.step_labels);
  const double pairs = step.teacher == nullptr ? 1 : static_cast<double>(step.teacher->num_pairs);
  const auto set = [&](Term term, float weight, double count) {
    if (weight == 0) return;
    step.means[term] = 1.0 / count;
    step.terms.scale[term] = static_cast<double>(weight) / count;
  };
  set(kCe, request.ce, R);
  set(kKd, request.kd, R);
  if (request.kd != 0) step.means[kCe] = 1.0 / R;  // told without a weight, too
  if (step.teacher == nullptr) return;
  set(kHidden, request.hidden, N * static_cast<double>(step.teacher_hidden_size()) * pairs);
  set(kAttention, request.attention, N * static_cast<double>(config.num_attention_heads) * pairs);
  set(kRelation, request.relation, N * static_cast<double>(step.teacher->relation_heads) * pairs);
}

/// Everything that decides what work a step puts on the stream, but for the memory that it finds.
template <typename T>
std::vector<int64_t> TransformerTrainer<T>::graph_key(const Step& step, bool updates) const {
  const ApiStep& request = step.request;
  const int32_t* offsets = request.batch.sequence_offsets;
  int64_t max_length = 0, map_elements = 0;
  for (int64_t s = 0; s < request.batch.num_sequences; ++s) {
    const int64_t length = int64_t{offsets[s + 1]} - offsets[s];
    max_length = std::max(max_length, length);
    map_elements += length * length;
  }
  std::vector<int64_t> key = {updates,
                              step.is_first,
                              step.is_last,
                              request.batch.num_tokens,
                              request.batch.num_sequences,
                              max_length,
                              map_elements,
                              step.num_rows(),
                              static_cast<int64_t>(step.drawn.size()),
                              touched_words_.num_touched(),
                              request.dropout_seed >= 0,
                              request.activation_checkpointing,
                              reinterpret_cast<int64_t>(plan_.tensors)};
  for (float weight : {request.ce, request.kd, request.hidden, request.attention, request.relation, request.temperature,
                       request.fusion, request.gate}) {
    int32_t bits = 0;
    std::memcpy(&bits, &weight, sizeof(bits));
    key.push_back(bits);
  }
  if (step.teacher == nullptr) return key;
  key.push_back(reinterpret_cast<int64_t>(step.teacher->model));
  key.push_back(reinterpret_cast<int64_t>(step.teacher->head));
  const ApiTeacher& teacher = *step.teacher;
  const int64_t form[] = {teacher.relation_heads,          teacher.teacher_hidden_size, teacher.top_k,
                          teacher.dense_logits != nullptr, teacher.hidden != nullptr,   teacher.attentions != nullptr,
                          teacher.relations != nullptr};
  key.insert(key.end(), std::begin(form), std::end(form));
  key.insert(key.end(), step.teacher->layer_map, step.teacher->layer_map + 2 * step.teacher->num_pairs);
  return key;
}

template <typename T>
void TransformerTrainer<T>::upload(Context& context, Step& step) {
  const int64_t R = step.num_rows();
  step.batch = std::make_unique<DeviceBatch>(context, model_.config, step.host_batch(), true);
  if (step.reads_teacher_model() && !step.is_taught_beside) {
    step.taught_batch = std::make_unique<DeviceBatch>(context, step.teacher_model().config, step.host_batch(), false);
  }
  step.device_scalars = to_device(context, &step.scalars, 1);
  step.device_rows = to_device(context, step.rows.data(), R);
  step.device_labels = to_device(context, step.labels.data(), R);
  if (!step.drawn.empty()) {
    step.device_drawn = to_device(context, step.drawn.data(), static_cast<int64_t>(step.drawn.size()));
    step.device_drawn_columns = to_device(context, step.drawn_columns.data(), R);
    step.label_order = std::make_unique<PendingOrder>(context, step.labels.data(), R, model_.config.vocab_size);
  }
}

template <typename T>
void TransformerTrainer<T>::compute(Context& context, Step& step, bool updates) {
  const ApiStep& request = step.request;
  if (step.is_first) clear(context, step);
  forward(context, step);
  Engine& engine = model_.engine;
  if (step.is_taught_beside) {
    if (!context.is_dry) engine.follow(engine.main, engine.side);
  } else if (step.reads_teacher_model()) {
    teach(context, step);
  }
  if (step.has_head_loss()) head_loss(context, step);
  if (request.hidden != 0) hidden_loss(context, step);
  if (request.attention != 0) attention_loss(context, step);
  if (request.relation != 0) relation_loss(context, step);
  if (!step.is_graphable()) step.batch->upload_orders(context);
  // The backward pass reads the teacher's attention maps, the losses all else: then its next pass may begin.
  const auto release_teacher = [&] {
    if (step.is_taught_beside && !context.is_dry) engine.follow(engine.side, engine.main);
  };
  if (request.attention == 0) release_teacher();
  model_.backward(context, step.student, step.backward);
  if (request.attention != 0) release_teacher();
  model_.backward_word_table(context, step.backward.d_word_table);
  if (!step.is_last) return;
  squared_norm(context, plan_, squares_);
  sum_terms(context, sums_, step.terms, loss_, squares_, updates ? failed_ : nullptr);
  if (updates) update(context, step);
}

// What the parts of a step add to. The first part sets the gradients that one product gives.
template <typename T>
void TransformerTrainer<T>::clear(Context& context, Step& step) {
  const TransformerConfig& config = model_.config;
  const int64_t N = step.request.batch.num_tokens, d = config.hidden_size;
  set_zero(context, sums_, kNumTerms + 2);
  model_.zero_added_gradients(context);
  const bool sets_table = step.sets_output_table(config);
  if (!sets_table) model_.zero_table_gradient(context, "head.output.weight");
  if (touched_words_.exists()) {
    float* d_words = model_.gradient("embeddings.word");
    if (step.touches_few(config)) {
      const TouchedRows::Ids inputs{step.batch->input_ids, N}, labels{step.device_labels, step.num_rows()};
      const TouchedRows::Ids drawn{step.device_drawn, static_cast<int64_t>(step.drawn.size())};
      touched_words_.begin(context, d_words, d, {inputs, labels, drawn});
    } else {
      touched_words_.begin_all(context, d_words, d);
    }
  } else if (!sets_table || !config.tie_word_embeddings || config.item_feature_size > 0) {
    model_.zero_table_gradient(context, "embeddings.word");
  }
  for (const auto& projection : projections_) set_zero(context, projection->gradient, projection->count());
}

// Attention maps and values are kept only where a loss reads them.
template <typename T>
void TransformerTrainer<T>::forward(Context& context, Step& step) {
  const TransformerConfig& config = model_.config;
  const ApiStep& request = step.request;
  const int64_t N = request.batch.num_tokens, d = config.hidden_size, L = config.num_hidden_layers;
  ForwardOptions<T> options;
  options.for_backward = true;
  options.recomputes_blocks = request.activation_checkpointing != 0;
  if (request.dropout_seed >= 0) options.dropout_seed = &step.device_scalars->dropout_seed;
  options.keep_maps.assign(static_cast<size_t>(L), false);
  options.keep_values.assign(static_cast<size_t>(L), false);
  const int64_t pairs = step.teacher == nullptr ? 0 : step.teacher->num_pairs;
  for (int64_t i = 0; i < pairs; ++i) {
    const auto block = static_cast<size_t>(step.teacher->layer_map[2 * i] - 1);
    if (request.attention != 0) options.keep_maps[block] = true;
    if (request.relation != 0) options.keep_values[block] = true;
  }
  step.student = model_.forward(context, *step.batch, options);

  step.backward = {};
  step.backward.adds_to_weights = !step.is_first;
  step.backward.d_final = context.arena.template allocate<T>(N * d);
  step.backward.d_hidden.assign(static_cast<size_t>(L + 1), nullptr);
  step.backward.teacher_maps.assign(static_cast<size_t>(L), nullptr);
  step.backward.d_values.assign(static_cast<size_t>(L), nullptr);
  if (!step.has_head_loss()) set_zero(context, step.backward.d_final, N * d);
  // The gradient of the word table goes straight to embeddings.word unless the table is v + A·u.
  step.backward.d_word_table = model_.gradient("embeddings.word");
  if (config.item_feature_size > 0) {
    const int64_t count = model_.padded_vocab_size() * d;
    step.backward.d_word_table = context.arena.template allocate<float>(count);
    if (!config.tie_word_embeddings || !step.sets_output_table(config)) {
      set_zero(context, step.backward.d_word_table, count);
    }
  }
  step.d_output_table = config.tie_word_embeddings ? step.backward.d_word_table : model_.gradient("head.output.weight");
  step.d_output_bias = model_.gradient("head.bias");
}

// The teacher does not depend on the student: on the side lane, its pass runs while the main lane still has the step
// before, and while the student's pass runs.
template <typename T>
bool TransformerTrainer<T>::teach_beside(Step& step) {
  if (!step.can_be_taught_beside()) return false;
  Engine& engine = model_.engine;
  if (step.teacher->model->num_steps_begun > 0) engine.follow(engine.side, engine.main);  // they change its parameters
  return engine.enqueue_beside([&](Context& context) {
    step.taught_batch = std::make_unique<DeviceBatch>(context, step.teacher_model().config, step.host_batch(), false);
    teach(context, step);
  });
}

template <typename T>
void TransformerTrainer<T>::teach(Context& context, Step& step) {
  const ApiStep& request = step.request;
  const auto L = static_cast<size_t>(step.teacher_model().config.num_hidden_layers);
  ForwardOptions<T> options;
  options.keep_maps.assign(L, false);
  options.keep_values.assign(L, false);
  options.keep_hidden.assign(L + 1, false);
  for (int64_t i = 0; i < step.teacher->num_pairs; ++i) {
    const auto layer = static_cast<size_t>(step.teacher->layer_map[2 * i + 1]);
    if (request.attention != 0) options.keep_maps[layer - 1] = true;
    if (request.relation != 0) options.keep_values[layer - 1] = true;
    if (request.hidden != 0) options.keep_hidden[layer] = true;
  }
  step.taught = step.teacher_model().forward(context, *step.taught_batch, options);
}

template <typename T>
void TransformerTrainer<T>::update(Context& context, Step& step) {
  if (options_.kind == ApiOptimizerKind::kAdamW) {
    adamw(context, plan_, {options_.beta1, options_.beta2, options_.epsilon}, step.device_scalars, squares_, loss_);
  } else if (options_.kind == ApiOptimizerKind::kSgd) {
    sgd(context, plan_, options_.momentum, step.device_scalars, squares_, loss_);
  }
}

template <typename T>
void TransformerTrainer<T>::plan() {
  std::vector<OptimizerTensor> tensors =
      model_.optimizer_tensors(first_, second_, options_.weight_decay, touched_words_.flags());
  for (const auto& map : projections_) {
    bf16* rounded = nullptr;
    if constexpr (std::is_same_v<T, bf16>) rounded = map->compute;
    tensors.push_back({map->weight, map->gradient, map->first, map->second, rounded, map->count(),
                       options_.weight_decay, nullptr, 0});
  }
  Engine& engine = model_.engine;
  engine.reserve(plan_memory_, [&](DeviceArena& memory) {
    Context context = engine.context(memory, memory.is_dry());
    plan_ = plan_update(context, tensors);
    if (!context.is_dry) engine.synchronize();
  });
  is_planned_ = true;
}

template <typename T>
bool TransformerTrainer<T>::projection_shape(int64_t index, int64_t* rows, int64_t* columns) const {
  if (index < 0 || index >= static_cast<int64_t>(projections_.size())) return false;
  *rows = projections_[static_cast<size_t>(index)]->rows;
  *columns = projections_[static_cast<size_t>(index)]->columns;
  return true;
}

template <typename T>
void TransformerTrainer<T>::ensure_projection(int64_t index, int64_t rows, int64_t columns) {
  const auto shape = [](int64_t r, int64_t c) { return "[" + std::to_string(r) + ", " + std::to_string(c) + "]"; };
  if (index < static_cast<int64_t>(projections_.size())) {
    const Projection& found = *projections_[static_cast<size_t>(index)];
    if (found.rows == rows && found.columns == columns) return;
    throw Error("ERR_SHAPE_MISMATCH", "Projection " + std::to_string(index) + " is " +
                                          shape(found.rows, found.columns) + ", expected " + shape(rows, columns) +
                                          ".");
  }
  if (index != static_cast<int64_t>(projections_.size())) {
    throw Error("ERR_INVALID_ARGUMENT", "Projection " + std::to_string(index) + " was set before projection " +
                                            std::to_string(projections_.size()) + ".");
  }
  auto map = std::make_unique<Projection>();
  map->rows = rows;
  map->columns = columns;
  Engine& engine = model_.engine;
  engine.reserve(map->memory, [&](DeviceArena& memory) {
    map->weight = memory.allocate<float>(map->count());
    map->gradient = memory.allocate<float>(map->count());
    map->first = memory.allocate<float>(map->count());
    map->second = memory.allocate<float>(map->count());
    if constexpr (std::is_same_v<T, float>) {
      map->compute = map->weight;
    } else {
      map->compute = memory.allocate<T>(map->count());
    }
  });
  Context context = engine.context();
  set_zero(context, map->gradient, map->count());
  set_zero(context, map->first, map->count());
  set_zero(context, map->second, map->count());
  const Philox random{0, kProjectionStream + static_cast<uint64_t>(index)};
  const float range = 1.0f / std::sqrt(static_cast<float>(columns));
  std::vector<float> weight(static_cast<size_t>(map->count()));
  for (size_t i = 0; i < weight.size(); ++i) weight[i] = range * random.normal(i);
  projections_.push_back(std::move(map));
  is_planned_ = false;
  write_array(ApiArray::kProjection, index, weight.data());
}

template <typename T>
typename TransformerTrainer<T>::Projection& TransformerTrainer<T>::find_projection(int64_t index) {
  if (index < 0 || index >= static_cast<int64_t>(projections_.size())) {
    throw Error("ERR_INVALID_ARGUMENT", "There is no projection " + std::to_string(index) + ".");
  }
  return *projections_[static_cast<size_t>(index)];
}

template <typename T>
void TransformerTrainer<T>::read_array(ApiArray array, int64_t index, float* out) {
  if (array == ApiArray::kFirst || array == ApiArray::kSecond) {
    const float* moments = array == ApiArray::kFirst ? first_ : second_;
    if (moments == nullptr) throw Error("ERR_INVALID_ARGUMENT", "This optimiser keeps no such moments.");
    return model_.download(moments, out);
  }
  const Projection& map = find_projection(index);
  const float* from = array == ApiArray::kProjection           ? map.weight
                      : array == ApiArray::kProjectionGradient ? map.gradient
                      : array == ApiArray::kProjectionFirst    ? map.first
                                                               : map.second;
  model_.engine.make_current();
  Context context = model_.engine.context();
  copy_to_host(context, out, from, map.count());
  model_.engine.synchronize();
}

template <typename T>
void TransformerTrainer<T>::write_array(ApiArray array, int64_t index, const float* in) {
  if (array == ApiArray::kFirst || array == ApiArray::kSecond) {
    float* moments = array == ApiArray::kFirst ? first_ : second_;
    if (moments == nullptr) throw Error("ERR_INVALID_ARGUMENT", "This optimiser keeps no such moments.");
    return model_.upload(in, moments);
  }
  Projection& map = find_projection(index);
  float* to = array == ApiArray::kProjection           ? map.weight
              : array == ApiArray::kProjectionGradient ? map.gradient
              : array == ApiArray::kProjectionFirst    ? map.first
                                                       : map.second;
  model_.engine.make_current();
  Context context = model_.engine.context();
  copy_to_device(context, to, in, map.count());
  if constexpr (std::is_same_v<T, bf16>) {
    if (array == ApiArray::kProjection) convert<float, T>(context, map.weight, map.compute, map.count());
  }
  model_.engine.synchronize();
}

template class TransformerTrainer<float>;
template class TransformerTrainer<bf16>;

}  // namespace limbeck::cuda
