#include "cuda/trainer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <type_traits>

#include "core/error.h"
#include "core/rng.h"
#include "cuda/elementwise.h"
#include "cuda/gemm.h"
#include "cuda/launch.h"
#include "cuda/sampled_loss.h"
#include "train/sampled_indices.h"

namespace limbeck::cuda {

namespace {

constexpr int32_t kIgnoredLabel = -100;
// Streams of the initial projections, as in train/trainer.cc.
constexpr uint64_t kProjectionStream = uint64_t{1} << 40;

constexpr int64_t kMaxGraphTokens = 8192;
constexpr size_t kMaxMeasured = 64;  // shapes of steps whose memory is known

enum Term { kCe, kKd, kHidden, kAttention, kRelation };
static_assert(kRelation + 1 == kNumTerms);

/// A device copy of what the host has.
template <typename T>
T* to_device(Context& context, const T* host, int64_t count) {
  T* device = context.arena.allocate<T>(count);
  copy_to_device(context, device, host, count);
  return device;
}

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

template <typename T>
struct TransformerTrainer<T>::Step {
  Step(const ApiStep& request, bool is_first, bool is_last)
      : request(request), teacher(request.teacher), is_first(is_first), is_last(is_last) {}

  const ApiStep& request;
  const ApiTeacher* teacher;
  const bool is_first, is_last;       // of the parts of the step
  std::vector<int32_t> rows, labels;  // [R] tokens with a label, and the labels
  StepScalars scalars{};
  std::vector<int32_t> drawn;          // [C] negatives of sampled softmax, ascending
  std::vector<int32_t> drawn_columns;  // [R] which of them is the label, −1 = none
  std::vector<int32_t> top_k_indices;
  std::vector<float> top_k_values, log_sum_exp;
  std::unique_ptr<DeviceBatch> batch, taught_batch;  // taught_batch: of a teacher that runs beside the student

  // On the device, made by each pass.
  StepScalars* device_scalars = nullptr;
  const int32_t* device_rows = nullptr;           // [R]
  const int32_t* device_labels = nullptr;         // [R]
  const int32_t* device_drawn = nullptr;          // [C]
  const int32_t* device_drawn_columns = nullptr;  // [R]
  std::unique_ptr<PendingOrder> label_order;      // of sampled softmax
  Activations<T> student{}, taught{};
  BackwardInputs<T> backward{};
  float* d_output_table = nullptr;  // [V, d]
  float* d_output_bias = nullptr;   // [V] or null
  StepTerms terms{};
  double means[kNumTerms] = {};  // what turns a sum into its term

  Batch host_batch() const {
    const ApiBatch& all = request.batch;
    return {all.input_ids, all.sequence_offsets, all.token_type_ids, all.num_tokens, all.num_sequences,
            nullptr,       all.tokens_before,    all.squares_before};
  }
  bool is_whole() const { return is_first && is_last; }
  bool has_head_loss() const { return !rows.empty() && (request.ce != 0 || request.kd != 0); }
  bool has_teacher_model() const { return teacher != nullptr && teacher->model != nullptr; }
  bool reads_layers() const { return request.hidden != 0 || request.attention != 0 || request.relation != 0; }
  bool reads_teacher_model() const { return has_teacher_model() && (request.kd != 0 || reads_layers()); }
  const Transformer<T>& teacher_model() const { return static_cast<const Transformer<T>&>(*teacher->model); }
  int64_t teacher_hidden_size() const {
    return has_teacher_model() ? teacher->model->config.hidden_size : teacher->teacher_hidden_size;
  }
  /// Not where the host has work while the GPU runs: arrays to copy in the midst, orders of many rows to make. Small
  /// steps are those that a graph makes faster.
  bool is_graphable() const {
    return is_whole() && drawn.empty() && request.batch.num_tokens <= kMaxGraphTokens &&
           (teacher == nullptr || teacher->model != nullptr);
  }
  /// Graphs are of the main lane alone.
  bool can_be_taught_beside() const { return reads_teacher_model() && !is_graphable(); }
  /// Whether the gradient of embeddings.word is zero in all rows but those of inputs, labels and negatives.
  bool touches_few(const TransformerConfig& config) const {
    return is_whole() && !drawn.empty() && config.item_feature_size == 0 && config.hidden_size % 4 == 0;
  }
  /// Whether a product of the loss head gives the gradient of the output table, which then need not be zeros before.
  /// The table v + A·u of items with features has a gradient of its own in each part.
  bool sets_output_table(const TransformerConfig& config) const {
    const bool is_fresh = is_first || (config.tie_word_embeddings && config.item_feature_size > 0);
    return is_fresh && has_head_loss() && drawn.empty();
  }
  int64_t num_rows() const { return static_cast<int64_t>(rows.size()); }
};

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

  const bool is_beside = teach_beside(step);
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
                           (is_beside || !step.can_be_taught_beside());
  if (!is_measured) {
    const int64_t generation = engine.side.arena_generation;
    engine.reserve_for(body);
    if (is_beside && engine.side.arena_generation != generation) {  // its memory was needed here
      step.taught_batch.reset();
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
  const bool is_beside = step.taught_batch != nullptr;
  if (is_beside) {
    if (!context.is_dry) engine.follow(engine.main, engine.side);
  } else if (step.reads_teacher_model()) {
    teach(context, step, *step.batch);
  }
  if (step.has_head_loss()) head_loss(context, step);
  if (request.hidden != 0) hidden_loss(context, step);
  if (request.attention != 0) attention_loss(context, step);
  if (request.relation != 0) relation_loss(context, step);
  if (!step.is_graphable()) step.batch->upload_orders(context);
  // The backward pass reads the teacher's attention maps, the losses all else: then its next pass may begin.
  const auto release_teacher = [&] {
    if (is_beside && !context.is_dry) engine.follow(engine.side, engine.main);
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
  const bool is_beside = engine.enqueue_beside([&](Context& context) {
    step.taught_batch = std::make_unique<DeviceBatch>(context, model_.config, step.host_batch(), false);
    teach(context, step, *step.taught_batch);
  });
  if (!is_beside) step.taught_batch.reset();
  return is_beside;
}

template <typename T>
void TransformerTrainer<T>::teach(Context& context, Step& step, const DeviceBatch& batch) {
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
  step.taught = step.teacher_model().forward(context, batch, options);
}

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
