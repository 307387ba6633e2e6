#include "accelerator/cuda_library.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <type_traits>
#include <utility>

#include "core/error.h"
#include "train/micro_batches.h"

#if defined(__linux__)
#include <dlfcn.h>
#endif

namespace limbeck {

namespace {

constexpr const char* kCodes[] = {
    "ERR_INVALID_ARGUMENT",  "ERR_SHAPE_MISMATCH",   "ERR_OUT_OF_MEMORY", "ERR_NOT_FINITE",
    "ERR_UNSUPPORTED_MODEL", "ERR_CUDA_UNAVAILABLE", "ERR_CUDA",          "ERR_DEVICE_LOST"};

[[noreturn]] void unavailable(const std::string& message) { throw Error("ERR_CUDA_UNAVAILABLE", message); }

/// Up to the end of the array, where the library left no zero.
template <size_t size>
std::string text_of(const char (&text)[size]) {
  return std::string(text, std::find(text, text + size, '\0'));
}

[[noreturn]] void rethrow(const cuda::ApiError& error) {
  const std::string code = text_of(error.code);
  for (const char* known : kCodes) {
    if (code == known) throw Error(known, text_of(error.message));
  }
  throw Error("ERR_INTERNAL", "The CUDA library failed with '" + code + "': " + text_of(error.message));
}

bool succeeded(int32_t result) { return result == 0; }
template <typename T>
bool succeeded(T* result) {
  return result != nullptr;
}

template <typename Call>
auto checked(Call&& call) {
  cuda::ApiError error{};
  const auto result = call(&error);
  if (!succeeded(result)) rethrow(error);
  return result;
}

#if defined(__linux__)

// Kept until the process ends: a library that holds a GPU cannot be closed safely.
const cuda::Api& open_library(const std::string& path) {
  static std::mutex mutex;
  static std::map<std::string, const cuda::Api*> opened;
  const std::lock_guard<std::mutex> lock(mutex);
  const cuda::Api*& api = opened[path];
  if (api != nullptr) return *api;
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* reason = dlerror();
    unavailable("The CUDA library cannot be loaded: " + std::string(reason != nullptr ? reason : path) +
                ". Build it again: npm run build:cuda.");
  }
  const auto get_api = reinterpret_cast<decltype(&limbeck_cuda_api)>(dlsym(library, "limbeck_cuda_api"));
  if (get_api == nullptr) {
    dlclose(library);
    unavailable(path + " is not Limbeck's CUDA library: it has no limbeck_cuda_api. Build it: npm run build:cuda.");
  }
  const cuda::Api* found = get_api(cuda::kApiVersion);
  if (found == nullptr || found->version != cuda::kApiVersion || found->size_bytes != sizeof(cuda::Api)) {
    dlclose(library);
    unavailable(path + " was built from another version of Limbeck. Build it again: npm run build:cuda.");
  }
  api = found;
  return *api;
}

#else

const cuda::Api& open_library(const std::string&) { unavailable("The CUDA engine needs Linux. Use device 'cpu'."); }

#endif

CudaDevice describe_device(const cuda::Api& api, int index) {
  cuda::ApiDevice described{};
  CudaDevice device;
  try {
    checked([&](cuda::ApiError* error) { return api.describe_device(index, &described, error); });
  } catch (const Error& error) {
    device.problem = error.what();
    return device;
  }
  device.name = text_of(described.name);
  device.major = described.major;
  device.minor = described.minor;
  device.num_multiprocessors = described.num_multiprocessors;
  device.total_bytes = described.total_bytes;
  device.free_bytes = described.free_bytes;
  device.problem = text_of(described.problem);
  return device;
}

cuda::ApiBatch api_batch(const Batch& batch) {
  return {batch.input_ids,     batch.sequence_offsets, batch.token_type_ids, batch.num_tokens,
          batch.num_sequences, batch.tokens_before,    batch.squares_before};
}

cuda::ApiPooling api_pooling(Pooling pooling) {
  switch (pooling) {
    case Pooling::kNone:
      return cuda::ApiPooling::kNone;
    case Pooling::kMean:
      return cuda::ApiPooling::kMean;
    case Pooling::kLast:
      return cuda::ApiPooling::kLast;
    case Pooling::kCls:
      return cuda::ApiPooling::kCls;
    case Pooling::kAttention:
      break;
  }
  return cuda::ApiPooling::kAttention;
}

cuda::ApiOptimizerKind api_kind(OptimizerKind kind) {
  switch (kind) {
    case OptimizerKind::kAdamW:
      return cuda::ApiOptimizerKind::kAdamW;
    case OptimizerKind::kSgd:
      return cuda::ApiOptimizerKind::kSgd;
    case OptimizerKind::kNone:
      break;
  }
  return cuda::ApiOptimizerKind::kNone;
}

std::vector<float*> pointers(const std::vector<FloatBuffer>& buffers) {
  std::vector<float*> result;
  for (const FloatBuffer& buffer : buffers) result.push_back(buffer.data());
  return result;
}

/// Null for an empty list: the library tells "none" by it.
template <typename T>
const T* data_or_null(const std::vector<T>& list) {
  return list.empty() ? nullptr : list.data();
}

/// Without its teacher.
cuda::ApiStep api_step(const StepInputs& inputs) {
  const LossWeights& weights = inputs.weights;
  cuda::ApiStep step{};
  step.batch = api_batch(inputs.batch);
  step.labels = inputs.labels;
  step.step_tokens = inputs.step_tokens;
  step.step_labels = inputs.step_labels;
  step.learning_rate = inputs.learning_rate;
  step.dropout_seed = inputs.dropout_seed;
  step.ce = weights.ce;
  step.kd = weights.kd;
  step.hidden = weights.hidden;
  step.attention = weights.attention;
  step.relation = weights.relation;
  step.temperature = weights.temperature;
  step.fusion = weights.fusion;
  step.gate = weights.gate;
  step.sampled_negatives = inputs.sampled_negatives;
  step.activation_checkpointing = inputs.activation_checkpointing ? 1 : 0;
  return step;
}

/// Without its models.   layer_map [pairs, 2]
cuda::ApiTeacher api_teacher(const TeacherSignal& signal, const std::vector<int64_t>& layer_map) {
  cuda::ApiTeacher teacher{};
  teacher.layer_map = data_or_null(layer_map);
  teacher.num_pairs = static_cast<int64_t>(signal.layer_map.size());
  teacher.hidden = data_or_null(signal.hidden);
  teacher.attentions = data_or_null(signal.attentions);
  teacher.relations = data_or_null(signal.relations);
  teacher.relation_heads = signal.relation_heads;
  teacher.teacher_hidden_size = signal.teacher_hidden_size;
  teacher.dense_logits = signal.dense_logits;
  teacher.logits_hidden = signal.logits_hidden;
  teacher.top_k = signal.top_k;
  if (signal.top_k > 0) {
    teacher.top_k_indices = signal.top_k_indices;
    teacher.top_k_values = signal.top_k_values;
    teacher.log_sum_exp = signal.log_sum_exp;
  }
  return teacher;
}

StepResult step_result(const cuda::ApiStepResult& result) {
  return {result.loss,      result.ce,       result.kd,        result.hidden,
          result.attention, result.relation, result.grad_norm, result.num_labels};
}

}  // namespace

CudaInfo cuda_info(const std::string& path) {
  const cuda::Api& api = open_library(path);
  cuda::ApiRuntime runtime{};
  api.describe_runtime(&runtime);
  CudaInfo info;
  info.runtime_version = runtime.runtime_version;
  info.driver_version = runtime.driver_version;
  info.cublas = text_of(runtime.cublas);
  info.problem = text_of(runtime.problem);
  for (int32_t i = 0; i < runtime.num_devices; ++i) info.devices.push_back(describe_device(api, i));
  return info;
}

std::shared_ptr<CudaEngine> CudaEngine::create(const std::string& path, int device, Precision precision,
                                               bool tunes_products) {
  return std::shared_ptr<CudaEngine>(new CudaEngine(open_library(path), device, precision, tunes_products));
}

CudaEngine::CudaEngine(const cuda::Api& api, int device, Precision precision, bool tunes_products)
    : api_(api), precision_(precision) {
  const cuda::ApiPrecision rounding =
      precision == Precision::kBFloat16 ? cuda::ApiPrecision::kBFloat16 : cuda::ApiPrecision::kFloat32;
  engine_ = checked([&](cuda::ApiError* error) { return api_.create_engine(device, rounding, error); });
  api_.set_tuning(engine_, tunes_products ? 1 : 0);
  device_ = describe_device(api_, device);
}

CudaEngine::~CudaEngine() { close(); }

template <typename T>
void CudaEngine::Handles<T>::free_released(void (*destroy)(T*)) {
  for (T* handle : released) {
    if (alive.erase(handle) > 0) destroy(handle);  // unless close() did it
  }
  released.clear();
}

template <typename T>
void CudaEngine::Handles<T>::free_all(void (*destroy)(T*)) {
  for (T* handle : alive) destroy(handle);
  alive.clear();
}

void CudaEngine::close() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (engine_ == nullptr) return;
  // What uses a model goes before it.
  passes_.free_all(api_.destroy_forward);
  recommenders_.free_all(api_.destroy_recommender);
  trainers_.free_all(api_.destroy_trainer);
  models_.free_all(api_.destroy_model);
  api_.destroy_engine(engine_);
  engine_ = nullptr;
}

// With mutex_ held.
void CudaEngine::free_released() {
  const std::lock_guard<std::mutex> lock(released_mutex_);
  recommenders_.free_released(api_.destroy_recommender);
  trainers_.free_released(api_.destroy_trainer);
  models_.free_released(api_.destroy_model);
}

template <typename Call>
auto CudaEngine::run(Call&& call) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (engine_ == nullptr) throw Error("ERR_DISPOSED", "The engine was disposed of. Create another one.");
  free_released();
  return checked(call);
}

template <typename T, typename Call>
T* CudaEngine::make(Handles<T>& handles, Call&& call) {
  return run([&](cuda::ApiError* error) {
    T* handle = call(error);
    if (handle != nullptr) handles.alive.insert(handle);
    return handle;
  });
}

template <typename T>
void CudaEngine::release(Handles<T>& handles, T* handle) {
  {
    const std::lock_guard<std::mutex> lock(released_mutex_);
    handles.released.push_back(handle);
  }
  const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
  if (lock.owns_lock()) free_released();
}

bool CudaEngine::is_idle() {
  const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
  return lock.owns_lock() && engine_ != nullptr && passes_.alive.empty() && num_steps_ == 0;
}

void CudaEngine::pca(const float* x, int64_t num_rows, int64_t num_columns, int64_t num_components, uint64_t seed,
                     float* mean, float* components, float* explained_variance) {
  const cuda::ApiPca request{x, num_rows, num_columns, num_components, seed, mean, components, explained_variance};
  run([&](cuda::ApiError* error) { return api_.pca(engine_, &request, error); });
}

void CudaEngine::pca_transform(const float* x, const float* mean, const float* components, float* y, int64_t num_rows,
                               int64_t num_columns, int64_t num_components) {
  const cuda::ApiPcaTransform request{x, mean, components, num_rows, num_columns, num_components, y};
  run([&](cuda::ApiError* error) { return api_.pca_transform(engine_, &request, error); });
}

CudaModel::CudaModel(std::shared_ptr<CudaEngine> engine, const TransformerConfig& config)
    : engine_(std::move(engine)), config_(config) {
  model_ = engine_->make(engine_->models_, [&](cuda::ApiError* error) {
    return engine_->api_.create_model(engine_->engine_, &config, sizeof(config), error);
  });
}

CudaModel::~CudaModel() { engine_->release(engine_->models_, model_); }

void CudaModel::set_parameters(const float* flat) {
  engine_->run([&](cuda::ApiError* error) { return engine_->api_.set_parameters(model_, flat, error); });
}

void CudaModel::get_parameters(float* flat) {
  engine_->run([&](cuda::ApiError* error) { return engine_->api_.get_parameters(model_, flat, error); });
}

void CudaModel::get_gradients(float* flat) {
  engine_->run([&](cuda::ApiError* error) { return engine_->api_.get_gradients(model_, flat, error); });
}

void CudaModel::set_item_features(const float* features) {
  engine_->run([&](cuda::ApiError* error) { return engine_->api_.set_item_features(model_, features, error); });
}

void CudaModel::interpolate(const CudaModel& source, float alpha) {
  engine_->run([&](cuda::ApiError* error) { return engine_->api_.interpolate(model_, source.model_, alpha, error); });
}

std::unique_ptr<CudaPass> CudaModel::begin_forward(const Transformer& layout, const ForwardInputs& inputs) {
  check_forward(layout, inputs);
  std::unique_ptr<CudaPass> pass(new CudaPass(engine_, allocate_outputs(layout, inputs)));
  ForwardOutputs& outputs = pass->outputs_;
  std::vector<void*> hidden;
  for (const FloatBuffer& states : outputs.hidden_states) hidden.push_back(states.data());
  const std::vector<float*> attentions = pointers(outputs.attentions), relations = pointers(outputs.value_relations);
  cuda::ApiForward request{};
  request.batch = api_batch(inputs.batch);
  request.hidden_states = data_or_null(inputs.hidden_states);
  request.num_hidden_states = static_cast<int64_t>(inputs.hidden_states.size());
  request.pooling = api_pooling(inputs.pooling);
  request.hidden_type = cuda::ApiPrecision::kFloat32;
  request.hidden_out = data_or_null(hidden);
  request.attentions = data_or_null(inputs.attentions);
  request.num_attentions = static_cast<int64_t>(inputs.attentions.size());
  request.attentions_out = data_or_null(attentions);
  request.value_relations = data_or_null(inputs.value_relations);
  request.num_value_relations = static_cast<int64_t>(inputs.value_relations.size());
  request.relation_heads = inputs.relation_heads;
  request.value_relations_out = data_or_null(relations);
  request.logit_rows = inputs.logit_rows;
  request.num_logit_rows = num_logit_rows(inputs);
  if (inputs.logits == LogitsForm::kDense) request.logits_out = outputs.logits.data();
  if (inputs.logits == LogitsForm::kTopK) {
    request.top_k = inputs.top_k;
    request.top_k_indices = outputs.top_k_indices.data();
    request.top_k_values = outputs.top_k_values.data();
    request.log_sum_exp = outputs.log_sum_exp.data();
  }
  // Without a label there is no loss.
  if (outputs.num_labels > 0) {
    request.labels = inputs.labels;
    request.loss_sum = &outputs.loss_sum;
  }
  pass->pass_ = engine_->make(
      engine_->passes_, [&](cuda::ApiError* error) { return engine_->api_.begin_forward(model_, &request, error); });
  return pass;
}

CudaPass::~CudaPass() { destroy(); }

ForwardOutputs CudaPass::finish() {
  engine_->run([&](cuda::ApiError* error) { return engine_->api_.finish_forward(pass_, error); });
  destroy();
  return std::move(outputs_);
}

// After a call at work, which may be writing its results.
void CudaPass::destroy() {
  const std::lock_guard<std::mutex> lock(engine_->mutex_);
  if (engine_->passes_.alive.erase(pass_) > 0) engine_->api_.destroy_forward(pass_);
  pass_ = nullptr;
}

CudaRecommender::CudaRecommender(std::shared_ptr<CudaEngine> engine, CudaModel& model) : engine_(std::move(engine)) {
  recommender_ = engine_->make(engine_->recommenders_, [&](cuda::ApiError* error) {
    return engine_->api_.create_recommender(model.model_, error);
  });
}

CudaRecommender::~CudaRecommender() { engine_->release(engine_->recommenders_, recommender_); }

int64_t CudaRecommender::recommend(const int32_t* history, int64_t length, const int32_t* exclude, int64_t num_excluded,
                                   int64_t k, int32_t* item_ids, float* scores) {
  int64_t count = 0;
  const cuda::ApiRecommend request{history, length, exclude, num_excluded, k, item_ids, scores, &count};
  engine_->run([&](cuda::ApiError* error) { return engine_->api_.recommend(recommender_, &request, error); });
  return count;
}

void CudaRecommender::rank(const Batch& histories, const float* states, const int32_t* targets, const int32_t* exclude,
                           const int32_t* exclude_offsets, int64_t k, int32_t* ranks, int32_t* item_ids,
                           float* scores) {
  const cuda::ApiRank request{
      api_batch(histories), states, targets, exclude, exclude_offsets, k, ranks, item_ids, scores};
  engine_->run([&](cuda::ApiError* error) { return engine_->api_.rank(recommender_, &request, error); });
}

CudaTrainer::CudaTrainer(std::shared_ptr<CudaEngine> engine, CudaModel& model, const OptimizerOptions& options)
    : engine_(std::move(engine)), config_(model.config_) {
  const cuda::ApiOptimizer optimizer{api_kind(options.kind), options.beta1,    options.beta2,        options.epsilon,
                                     options.weight_decay,   options.momentum, options.max_grad_norm};
  trainer_ = engine_->make(engine_->trainers_, [&](cuda::ApiError* error) {
    return engine_->api_.create_trainer(model.model_, &optimizer, error);
  });
}

CudaTrainer::~CudaTrainer() { engine_->release(engine_->trainers_, trainer_); }

template <typename Call>
void CudaTrainer::run_step(const StepInputs& inputs, const CudaTeacher& models, Call&& call) {
  std::vector<int64_t> layer_map;  // [pairs, 2]
  if (!inputs.teachers.empty()) {
    for (const auto& [student_layer, teacher_layer] : inputs.teachers[0].layer_map) {
      layer_map.push_back(student_layer);
      layer_map.push_back(teacher_layer);
    }
  }
  const std::vector<MicroBatch> micro_batches = split_step(inputs, config_);
  std::vector<StepInputs> parts;
  for (const MicroBatch& micro_batch : micro_batches) parts.push_back(micro_batch.inputs());
  std::vector<cuda::ApiTeacher> teachers(parts.size());
  std::vector<cuda::ApiStep> steps;
  for (const StepInputs& part : parts) {
    cuda::ApiStep step = api_step(part);
    if (!part.teachers.empty()) {
      cuda::ApiTeacher& teacher = teachers[steps.size()];
      teacher = api_teacher(part.teachers[0], layer_map);
      if (models.model != nullptr) teacher.model = models.model->model_;
      if (models.head != nullptr) teacher.head = models.head->model_;
      step.teacher = &teacher;
    }
    steps.push_back(step);
  }
  engine_->run([&](cuda::ApiError* error) { return call(steps.data(), static_cast<int64_t>(steps.size()), error); });
}

StepResult CudaTrainer::compute_gradients(const StepInputs& inputs, const CudaTeacher& teacher) {
  cuda::ApiStepResult result{};
  run_step(inputs, teacher, [&](const cuda::ApiStep* parts, int64_t num_parts, cuda::ApiError* error) {
    return engine_->api_.compute_gradients(trainer_, parts, num_parts, &result, error);
  });
  return step_result(result);
}

void CudaTrainer::begin_step(const StepInputs& inputs, const CudaTeacher& teacher) {
  run_step(inputs, teacher, [&](const cuda::ApiStep* parts, int64_t num_parts, cuda::ApiError* error) {
    const int32_t status = engine_->api_.begin_step(trainer_, parts, num_parts, error);
    if (status == 0) ++engine_->num_steps_;
    return status;
  });
}

StepResult CudaTrainer::finish_step() {
  cuda::ApiStepResult result{};
  engine_->run([&](cuda::ApiError* error) {
    --engine_->num_steps_;
    return engine_->api_.finish_step(trainer_, &result, error);
  });
  return step_result(result);
}

int64_t CudaTrainer::step_count() const {
  int64_t count = 0;
  engine_->run([&](cuda::ApiError*) {
    count = engine_->api_.get_step_count(trainer_);
    return 0;
  });
  return count;
}

void CudaTrainer::set_step_count(int64_t step_count) {
  engine_->run([&](cuda::ApiError*) {
    engine_->api_.set_step_count(trainer_, step_count);
    return 0;
  });
}

std::vector<ProjectionShape> CudaTrainer::projections() const {
  std::vector<ProjectionShape> shapes;
  engine_->run([&](cuda::ApiError*) {
    for (int64_t index = 0; index < kMaxProjections; ++index) {
      ProjectionShape shape{index, 0, 0};
      if (engine_->api_.projection_shape(trainer_, index, &shape.rows, &shape.columns) == 0) shapes.push_back(shape);
    }
    return 0;
  });
  return shapes;
}

void CudaTrainer::ensure_projection(int64_t index, int64_t rows, int64_t columns) {
  engine_->run(
      [&](cuda::ApiError* error) { return engine_->api_.ensure_projection(trainer_, index, rows, columns, error); });
}

void CudaTrainer::read(cuda::ApiArray array, int64_t index, float* out) {
  engine_->run([&](cuda::ApiError* error) { return engine_->api_.read_array(trainer_, array, index, out, error); });
}

void CudaTrainer::write(cuda::ApiArray array, int64_t index, const float* in) {
  engine_->run([&](cuda::ApiError* error) { return engine_->api_.write_array(trainer_, array, index, in, error); });
}

}  // namespace limbeck
