#include "napi/trainer.h"

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "napi/step_request.h"

namespace limbeck {

namespace {

constexpr int64_t kMaxProjectionSize = 1 << 20;
constexpr size_t kMaxStepsAtOnce = cuda::kMaxStepsInFlight;

OptimizerOptions read_options(const Napi::Value& value) {
  const Fields fields(value, "options");
  OptimizerOptions options;
  options.kind =
      fields.choice<OptimizerKind>("optimizer", {{"adamw", OptimizerKind::kAdamW}, {"sgd", OptimizerKind::kSgd}});
  options.beta1 = fields.number("beta1", 0.0f, 1.0f);
  options.beta2 = fields.number("beta2", 0.0f, 1.0f);
  options.epsilon = fields.number("epsilon", 0.0f);
  options.weight_decay = fields.number("weightDecay", 0.0f);
  options.momentum = fields.number("momentum", 0.0f);
  options.max_grad_norm = fields.number("maxGradNorm", 0.0f);
  return options;
}

ProjectionShape find_projection(SharedTrainer& trainer, const Napi::Value& value) {
  const int64_t index = to_integer(value, "index", 0, kMaxProjections - 1);
  for (const ProjectionShape& shape : trainer.projections()) {
    if (shape.index == index) return shape;
  }
  invalid("There is no projection " + std::to_string(index) + " yet: call setProjection() or step() first.");
}

Napi::Value read_projection(Napi::Env env, SharedTrainer& trainer, cuda::ApiArray array, const Napi::Value& index) {
  const ProjectionShape shape = find_projection(trainer, index);
  check_memory(shape.count() * static_cast<int64_t>(sizeof(float)));
  Napi::Float32Array values = Napi::Float32Array::New(env, static_cast<size_t>(shape.count()));
  trainer.read(array, shape, values.Data());
  return values;
}

/// One moment, in the order of the state: the model's part, then each projection's.
struct Part {
  cuda::ApiArray array;
  ProjectionShape projection;
  int64_t count;
};

std::vector<Part> parts_of(SharedTrainer& trainer, cuda::ApiArray model, cuda::ApiArray projection) {
  std::vector<Part> parts{{model, {}, trainer.count(model, {})}};
  for (const ProjectionShape& shape : trainer.projections()) parts.push_back({projection, shape, shape.count()});
  return parts;
}

std::vector<Part> first_parts(SharedTrainer& trainer) {
  return parts_of(trainer, cuda::ApiArray::kFirst, cuda::ApiArray::kProjectionFirst);
}

std::vector<Part> second_parts(SharedTrainer& trainer) {
  return parts_of(trainer, cuda::ApiArray::kSecond, cuda::ApiArray::kProjectionSecond);
}

int64_t total_of(const std::vector<Part>& parts) {
  int64_t total = 0;
  for (const Part& part : parts) total += part.count;
  return total;
}

Napi::Value read_parts(Napi::Env env, SharedTrainer& trainer, const std::vector<Part>& parts) {
  const int64_t total = total_of(parts);
  check_memory(total * static_cast<int64_t>(sizeof(float)));
  Napi::Float32Array array = Napi::Float32Array::New(env, static_cast<size_t>(total));
  float* out = array.Data();
  for (const Part& part : parts) {
    if (part.count > 0) trainer.read(part.array, part.projection, out);
    out += part.count;
  }
  return array;
}

void write_parts(SharedTrainer& trainer, const std::vector<Part>& parts, const float* in) {
  for (const Part& part : parts) {
    if (part.count > 0) trainer.write(part.array, part.projection, in);
    in += part.count;
  }
}

Napi::Value step_result(Napi::Env env, const StepResult& step) {
  Napi::Object result = Napi::Object::New(env);
  result.Set("loss", step.loss);
  result.Set("ce", step.ce);
  result.Set("kd", step.kd);
  result.Set("hidden", step.hidden);
  result.Set("attention", step.attention);
  result.Set("relation", step.relation);
  result.Set("gradNorm", step.grad_norm);
  result.Set("numLabels", static_cast<double>(step.num_labels));
  return result;
}

}  // namespace

SharedTrainer::SharedTrainer(std::shared_ptr<SharedModel> trained, const OptimizerOptions& options)
    : model_(std::move(trained)), options_(options) {
  if (!model_->has_gpu()) on_host_.emplace(SharedModel::keep(model_), options);
}

CudaTrainer& SharedTrainer::on_gpu() {
  if (on_gpu_ == nullptr) on_gpu_ = std::make_unique<CudaTrainer>(model_->gpu(), model_->on_gpu(), options_);
  return *on_gpu_;
}

StepResult SharedTrainer::compute_gradients(Context& context, Arena& arena, const StepRequest& request) {
  const StepInputs inputs = request.view();
  if (on_host_) return on_host_->compute_gradients(context, arena, inputs);
  check_step(model_->layout(), inputs);
  model_->on_gpu();  // brought up to date
  const CudaTeacher teacher = request.on_gpu();
  CudaTrainer& trainer = on_gpu();
  model_->gradients_changed_on_gpu();
  return trainer.compute_gradients(inputs, teacher);
}

StepResult SharedTrainer::step(Context& context, Arena& arena, const StepRequest& request) {
  return on_host_->step(context, arena, request.view());
}

void SharedTrainer::begin_step(const StepRequest& request) {
  const StepInputs inputs = request.view();
  check_step(model_->layout(), inputs);
  model_->on_gpu();  // brought up to date
  const CudaTeacher teacher = request.on_gpu();
  CudaTrainer& trainer = on_gpu();
  // Whatever comes of it: a step may fail half-way.
  model_->gradients_changed_on_gpu();
  model_->parameters_changed_on_gpu();
  trainer.begin_step(inputs, teacher);
}

int64_t SharedTrainer::step_count() { return on_host_ ? on_host_->step_count() : on_gpu().step_count(); }

void SharedTrainer::set_step_count(int64_t step_count) {
  if (on_host_) {
    on_host_->set_step_count(step_count);
  } else {
    on_gpu().set_step_count(step_count);
  }
}

std::vector<ProjectionShape> SharedTrainer::projections() {
  if (!on_host_) return on_gpu().projections();
  std::vector<ProjectionShape> shapes;
  const std::vector<Projection>& projections = on_host_->projections();
  for (size_t i = 0; i < projections.size(); ++i) {
    if (projections[i].weight == nullptr) continue;
    shapes.push_back({static_cast<int64_t>(i), projections[i].rows, projections[i].columns});
  }
  return shapes;
}

void SharedTrainer::ensure_projection(int64_t index, int64_t rows, int64_t columns) {
  if (on_host_) {
    on_host_->projection(static_cast<size_t>(index), rows, columns);
  } else {
    on_gpu().ensure_projection(index, rows, columns);
  }
}

int64_t SharedTrainer::count(cuda::ApiArray array, const ProjectionShape& projection) {
  const int64_t flat_count = on_host_ ? on_host_->flat_count() : model_->layout().parameters().flat_count();
  switch (array) {
    case cuda::ApiArray::kFirst:
      return options_.kind == OptimizerKind::kNone ? 0 : flat_count;
    case cuda::ApiArray::kSecond:
      return options_.kind == OptimizerKind::kAdamW ? flat_count : 0;
    default:
      return projection.count();
  }
}

float* SharedTrainer::on_host(cuda::ApiArray array, int64_t index) {
  const auto projection = [&]() -> Projection& { return on_host_->projections()[static_cast<size_t>(index)]; };
  switch (array) {
    case cuda::ApiArray::kFirst:
      return on_host_->first();
    case cuda::ApiArray::kSecond:
      return on_host_->second();
    case cuda::ApiArray::kProjection:
      return projection().weight.get();
    case cuda::ApiArray::kProjectionGradient:
      return projection().gradient.get();
    case cuda::ApiArray::kProjectionFirst:
      return projection().first.get();
    case cuda::ApiArray::kProjectionSecond:
      break;
  }
  return projection().second.get();
}

void SharedTrainer::read(cuda::ApiArray array, const ProjectionShape& projection, float* out) {
  if (!on_host_) return on_gpu().read(array, projection.index, out);
  std::memcpy(out, on_host(array, projection.index), static_cast<size_t>(count(array, projection)) * sizeof(float));
}

void SharedTrainer::write(cuda::ApiArray array, const ProjectionShape& projection, const float* in) {
  if (!on_host_) return on_gpu().write(array, projection.index, in);
  std::memcpy(on_host(array, projection.index), in, static_cast<size_t>(count(array, projection)) * sizeof(float));
}

void TrainerObject::define(Napi::Env env) {
  JsClass::define(env, "Trainer",
                  {
                      method<&TrainerObject::set_projection>("setProjection"),
                      method<&TrainerObject::get_projection>("getProjection"),
                      method<&TrainerObject::get_projection_gradient>("getProjectionGradient"),
                      promise_method<&TrainerObject::compute_gradients>("computeGradients"),
                      promise_method<&TrainerObject::step>("step"),
                      method<&TrainerObject::get_state>("getState"),
                      method<&TrainerObject::set_state>("setState"),
                      dispose_method(),
                  });
}

Napi::Object TrainerObject::create(Napi::Env env, std::shared_ptr<TaskQueue> queue, const Napi::Value& model,
                                   const Napi::Value& options) {
  std::shared_ptr<SharedModel> shared = TransformerObject::unwrap_of(*queue, model, "model").state();
  auto trainer = std::make_shared<SharedTrainer>(std::move(shared), read_options(options));
  // Two moments, and the gradients that the first step adds to the model.
  const int64_t size_bytes =
      3 * trainer->model()->layout().trainable().flat_count() * static_cast<int64_t>(sizeof(float));
  return wrap(env, std::move(queue), std::move(trainer), size_bytes);
}

StepRequest TrainerObject::read_request(const Napi::Value& request, std::vector<Hold>& holds) {
  const std::shared_ptr<SharedTrainer> trainer = state();  // a getter of the request may dispose of this object
  StepRequest inputs = read_step_request(request, trainer->model()->layout(), queue());
  holds = inputs.holds();
  holds.emplace_back(trainer);
  holds.emplace_back(trainer->model());
  return inputs;
}

Napi::Value TrainerObject::compute_gradients(const Napi::CallbackInfo& info) {
  std::vector<Hold> holds;
  StepRequest request = read_request(info[0], holds);
  return queue().submit(
      std::move(holds),
      [trainer = state(), request = std::move(request)](Context& context, Arena& arena) mutable {
        request.unpack(context, *trainer->model());
        return trainer->compute_gradients(context, arena, request);
      },
      step_result);
}

Napi::Value TrainerObject::step(const Napi::CallbackInfo& info) {
  std::vector<Hold> holds;
  StepRequest request = read_request(info[0], holds);
  if (!state()->model()->has_gpu()) {
    return queue().submit(
        std::move(holds),
        [trainer = state(), request = std::move(request)](Context& context, Arena& arena) mutable {
          request.unpack(context, *trainer->model());
          return trainer->step(context, arena, request);
        },
        step_result);
  }
  return queue().submit_overlapping(
      kMaxStepsAtOnce, std::move(holds),
      [trainer = state(), request = std::move(request)](Context& context) mutable {
        request.unpack(context, *trainer->model());
        trainer->begin_step(request);
        return trainer;
      },
      [](const std::shared_ptr<SharedTrainer>& trainer) { return trainer->finish_step(); }, step_result);
}

Napi::Value TrainerObject::set_projection(const Napi::CallbackInfo& info) {
  SharedTrainer& trainer = idle();
  const int64_t index = to_integer(info[0], "index", 0, kMaxProjections - 1);
  const int64_t rows = to_integer(info[1], "rows", 1, kMaxProjectionSize);
  const int64_t columns = to_integer(info[2], "columns", 1, kMaxProjectionSize);
  check_count("columns of the projection", columns, trainer.model()->config().hidden_size);
  const ArrayView<float> values = float32_view(info[3], "values");
  check_count("values", values.count, rows * columns);
  trainer.ensure_projection(index, rows, columns);
  trainer.write(cuda::ApiArray::kProjection, {index, rows, columns}, values.data);
  return info.Env().Undefined();
}

Napi::Value TrainerObject::get_projection(const Napi::CallbackInfo& info) {
  return read_projection(info.Env(), idle(), cuda::ApiArray::kProjection, info[0]);
}

Napi::Value TrainerObject::get_projection_gradient(const Napi::CallbackInfo& info) {
  return read_projection(info.Env(), idle(), cuda::ApiArray::kProjectionGradient, info[0]);
}

Napi::Value TrainerObject::get_state(const Napi::CallbackInfo& info) {
  SharedTrainer& trainer = idle();
  Napi::Object state = Napi::Object::New(info.Env());
  state.Set("stepCount", static_cast<double>(trainer.step_count()));
  state.Set("first", read_parts(info.Env(), trainer, first_parts(trainer)));
  state.Set("second", read_parts(info.Env(), trainer, second_parts(trainer)));
  return state;
}

Napi::Value TrainerObject::set_state(const Napi::CallbackInfo& info) {
  const Fields fields(info[0], "state");
  const int64_t step_count = fields.integer("stepCount", 0, kMaxSafeInteger);
  const Napi::Value first_value = fields.get("first"), second_value = fields.get("second");
  SharedTrainer& trainer = idle();
  const ArrayView<float> first = float32_view(first_value, "state.first");
  const ArrayView<float> second = float32_view(second_value, "state.second");
  const std::string hint = " (set the projections of the hidden loss before the state)";
  const std::vector<Part> firsts = first_parts(trainer), seconds = second_parts(trainer);
  check_count("state.first" + hint, first.count, total_of(firsts));
  check_count("state.second" + hint, second.count, total_of(seconds));
  write_parts(trainer, firsts, first.data);
  write_parts(trainer, seconds, second.data);
  trainer.set_step_count(step_count);
  return info.Env().Undefined();
}

}  // namespace limbeck
