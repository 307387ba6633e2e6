#include "napi/trainer.h"

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "napi/step_request.h"

namespace limbeck {

namespace {

constexpr int64_t kMaxProjections = 1024;  // one a layer-map entry
constexpr int64_t kMaxProjectionSize = 1 << 20;

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

const Projection& find_projection(Trainer& trainer, const Napi::Value& index) {
  const size_t i = static_cast<size_t>(to_integer(index, "index", 0, kMaxProjections - 1));
  if (i >= trainer.projections().size() || trainer.projections()[i].weight == nullptr) {
    invalid("There is no projection " + std::to_string(i) + " yet: call setProjection() or step() first.");
  }
  return trainer.projections()[i];
}

/// Calls visit(data, count) for the model's part of a moment and then for each projection's.
template <typename Visit>
void for_each_part(Trainer& trainer, float* model, int64_t model_count, AlignedFloats Projection::*moment,
                   Visit&& visit) {
  visit(model, model_count);
  for (Projection& projection : trainer.projections()) visit((projection.*moment).get(), projection.count());
}

int64_t projection_floats(Trainer& trainer) {
  int64_t count = 0;
  for (const Projection& projection : trainer.projections()) count += projection.count();
  return count;
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
      3 * trainer->model->transformer.parameters().flat_count() * static_cast<int64_t>(sizeof(float));
  return wrap(env, std::move(queue), std::move(trainer), size_bytes);
}

Napi::Value TrainerObject::run(const Napi::Value& request, Step step) {
  const std::shared_ptr<SharedTrainer> trainer = state();
  StepRequest inputs = read_step_request(request, trainer->model->transformer, queue());
  std::vector<Hold> holds = inputs.holds();
  holds.emplace_back(trainer);
  holds.emplace_back(trainer->model);
  return queue().submit(
      std::move(holds),
      [trainer, step, inputs = std::move(inputs)](Context& context, Arena& arena) {
        TeacherSignal signal;
        return (trainer->trainer.*step)(context, arena, inputs.view(signal));
      },
      step_result);
}

Napi::Value TrainerObject::compute_gradients(const Napi::CallbackInfo& info) {
  return run(info[0], &Trainer::compute_gradients);
}

Napi::Value TrainerObject::step(const Napi::CallbackInfo& info) { return run(info[0], &Trainer::step); }

Napi::Value TrainerObject::set_projection(const Napi::CallbackInfo& info) {
  SharedTrainer& shared = idle();
  const int64_t index = to_integer(info[0], "index", 0, kMaxProjections - 1);
  const int64_t rows = to_integer(info[1], "rows", 1, kMaxProjectionSize);
  const int64_t columns = to_integer(info[2], "columns", 1, kMaxProjectionSize);
  check_count("columns of the projection", columns, shared.model->transformer.config().hidden_size);
  const ArrayView<float> values = float32_view(info[3], "values");
  check_count("values", values.count, rows * columns);
  Projection& projection = shared.trainer.projection(static_cast<size_t>(index), rows, columns);
  std::memcpy(projection.weight.get(), values.data, static_cast<size_t>(values.count) * sizeof(float));
  return info.Env().Undefined();
}

Napi::Value TrainerObject::get_projection(const Napi::CallbackInfo& info) {
  const Projection& projection = find_projection(idle().trainer, info[0]);
  return new_float32_array(info.Env(), projection.weight.get(), projection.count());
}

Napi::Value TrainerObject::get_projection_gradient(const Napi::CallbackInfo& info) {
  const Projection& projection = find_projection(idle().trainer, info[0]);
  return new_float32_array(info.Env(), projection.gradient.get(), projection.count());
}

Napi::Value TrainerObject::get_state(const Napi::CallbackInfo& info) {
  SharedTrainer& shared = idle();
  Trainer& trainer = shared.trainer;
  const auto moments = [&](float* model, int64_t model_count, AlignedFloats Projection::*moment) {
    const int64_t total = model_count + projection_floats(trainer);
    check_memory(total * static_cast<int64_t>(sizeof(float)));
    Napi::Float32Array array = Napi::Float32Array::New(info.Env(), static_cast<size_t>(total));
    float* out = array.Data();
    for_each_part(trainer, model, model_count, moment, [&](const float* data, int64_t count) {
      if (count > 0) std::memcpy(out, data, static_cast<size_t>(count) * sizeof(float));
      out += count;
    });
    return array;
  };
  Napi::Object state = Napi::Object::New(info.Env());
  state.Set("stepCount", static_cast<double>(trainer.step_count()));
  state.Set("first", moments(trainer.first(), shared.model->transformer.parameters().flat_count(), &Projection::first));
  state.Set("second", moments(trainer.second(), shared.second_count, &Projection::second));
  return state;
}

Napi::Value TrainerObject::set_state(const Napi::CallbackInfo& info) {
  const Fields fields(info[0], "state");
  const int64_t step_count = fields.integer("stepCount", 0, kMaxSafeInteger);
  const Napi::Value first_value = fields.get("first"), second_value = fields.get("second");
  SharedTrainer& shared = idle();
  Trainer& trainer = shared.trainer;
  const int64_t first_count = shared.model->transformer.parameters().flat_count();
  const ArrayView<float> first = float32_view(first_value, "state.first");
  const ArrayView<float> second = float32_view(second_value, "state.second");
  const std::string hint = " (set the projections of the hidden loss before the state)";
  check_count("state.first" + hint, first.count, first_count + projection_floats(trainer));
  check_count("state.second" + hint, second.count, shared.second_count + projection_floats(trainer));
  const auto restore = [&](const float* in, float* model, int64_t model_count, AlignedFloats Projection::*moment) {
    for_each_part(trainer, model, model_count, moment, [&](float* data, int64_t count) {
      if (count > 0) std::memcpy(data, in, static_cast<size_t>(count) * sizeof(float));
      in += count;
    });
  };
  restore(first.data, trainer.first(), first_count, &Projection::first);
  restore(second.data, trainer.second(), shared.second_count, &Projection::second);
  trainer.set_step_count(step_count);
  return info.Env().Undefined();
}

}  // namespace limbeck
