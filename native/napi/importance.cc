#include "napi/importance.h"

#include <vector>

#include "napi/convert.h"

namespace limbeck {

namespace {

Napi::Value new_numbers(Napi::Env env, const std::vector<double>& values) {
  Napi::Float64Array array = Napi::Float64Array::New(env, values.size());
  for (size_t i = 0; i < values.size(); ++i) array[i] = values[i];
  return array;
}

Napi::Value new_rows(Napi::Env env, const std::vector<std::vector<double>>& rows) {
  Napi::Array array = Napi::Array::New(env, rows.size());
  for (uint32_t i = 0; i < rows.size(); ++i) array.Set(i, new_numbers(env, rows[i]));
  return array;
}

Napi::Value new_axis_sums(Napi::Env env, const AxisSums& sums) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("residual", new_numbers(env, sums.residual));
  object.Set("intermediate", new_rows(env, sums.intermediate));
  object.Set("keyValueHeads", new_rows(env, sums.key_value_heads));
  object.Set("layers", new_numbers(env, sums.layers));
  return object;
}

}  // namespace

void ImportanceObject::define(Napi::Env env) {
  JsClass::define(env, "Importance",
                  {
                      getter<&ImportanceObject::num_examples>("numExamples"),
                      promise_method<&ImportanceObject::add>("add"),
                      method<&ImportanceObject::squared_gradient>("squaredGradient"),
                      promise_method<&ImportanceObject::fisher>("fisher"),
                      promise_method<&ImportanceObject::saliency>("saliency"),
                      method<&ImportanceObject::activation>("activation"),
                      dispose_method(),
                  });
}

Napi::Object ImportanceObject::create(Napi::Env env, std::shared_ptr<TaskQueue> queue, const Napi::Value& model) {
  auto shared = std::make_shared<SharedImportance>(TransformerObject::unwrap_of(*queue, model, "model").state());
  // Squares, and the gradients that the first example adds to the model.
  const int64_t size_bytes =
      2 * shared->model->layout().parameters().flat_count() * static_cast<int64_t>(sizeof(float));
  return wrap(env, std::move(queue), std::move(shared), size_bytes);
}

Napi::Value ImportanceObject::num_examples(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(idle().importance.num_examples()));
}

Napi::Value ImportanceObject::add(const Napi::CallbackInfo& info) {
  const std::shared_ptr<SharedImportance> shared = state();
  const Fields fields(info[0], "");
  BatchInput batch = read_batch(fields);
  std::vector<int32_t> labels = fields.int32s("labels");
  check_count("labels", static_cast<int64_t>(labels.size()), batch.num_tokens());
  return queue().submit(
      {Hold(shared), Hold(shared->model)},
      [shared, batch = std::move(batch), labels = std::move(labels)](Context& context, Arena& arena) {
        shared->model->host();  // brought up to date
        shared->importance.add(context, arena, batch.view(), labels.data());
        return true;
      },
      [](Napi::Env env, bool) { return env.Undefined(); });
}

Napi::Value ImportanceObject::squared_gradient(const Napi::CallbackInfo& info) {
  const Importance& importance = idle().importance;
  const Parameter& parameter = importance.model().parameters().find(to_string(info[0], "name"));
  check_memory(parameter.count * static_cast<int64_t>(sizeof(float)));
  Napi::Float32Array array = Napi::Float32Array::New(info.Env(), static_cast<size_t>(parameter.count));
  importance.squared_gradients(parameter, array.Data());
  return array;
}

Napi::Value ImportanceObject::fisher(const Napi::CallbackInfo&) {
  const std::shared_ptr<SharedImportance> shared = state();
  return queue().submit(
      {Hold(shared), Hold(shared->model)}, [shared](Context&, Arena&) { return shared->importance.fisher_by_axis(); },
      new_axis_sums);
}

Napi::Value ImportanceObject::saliency(const Napi::CallbackInfo&) {
  const std::shared_ptr<SharedImportance> shared = state();
  return queue().submit(
      {Hold(shared), Hold(shared->model)},
      [shared](Context&, Arena&) {
        shared->model->host();  // brought up to date
        return shared->importance.saliency_by_axis();
      },
      new_axis_sums);
}

Napi::Value ImportanceObject::activation(const Napi::CallbackInfo& info) {
  return new_axis_sums(info.Env(), idle().importance.activation_by_axis());
}

}  // namespace limbeck
