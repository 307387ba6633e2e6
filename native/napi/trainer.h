#pragma once

#include <napi.h>

#include <memory>

#include "napi/object.h"
#include "napi/transformer.h"
#include "train/trainer.h"

namespace limbeck {

/// A trainer shared by its JS object and queued tasks.
struct SharedTrainer : Shareable {
  SharedTrainer(std::shared_ptr<SharedModel> trained, const OptimizerOptions& options)
      : model(std::move(trained)),
        trainer(std::shared_ptr<Transformer>(model, &model->transformer), options),
        second_count(options.kind == OptimizerKind::kAdamW ? model->transformer.parameters().flat_count() : 0) {}
  std::shared_ptr<SharedModel> model;
  Trainer trainer;
  int64_t second_count;  // floats of trainer.second(): SGD keeps none
};

/// NativeTrainer of src/binding.ts.
class TrainerObject : public EngineObject<TrainerObject, SharedTrainer> {
 public:
  static constexpr napi_type_tag kTypeTag = {0x4c1d2f0e6b7a4931, 0xa1c5e2d98f304b02};
  static constexpr const char* kName = "trainer";
  static constexpr Napi::FunctionReference AddonData::*kConstructor = &AddonData::trainer;

  using EngineObject::EngineObject;
  static void define(Napi::Env env);
  static Napi::Object create(Napi::Env env, std::shared_ptr<TaskQueue> queue, const Napi::Value& model,
                             const Napi::Value& options);

 private:
  friend class JsClass<TrainerObject>;
  using Step = StepResult (Trainer::*)(Context&, Arena&, const StepInputs&);
  Napi::Value run(const Napi::Value& request, Step step);
  Napi::Value set_projection(const Napi::CallbackInfo& info);
  Napi::Value get_projection(const Napi::CallbackInfo& info);
  Napi::Value get_projection_gradient(const Napi::CallbackInfo& info);
  Napi::Value compute_gradients(const Napi::CallbackInfo& info);
  Napi::Value step(const Napi::CallbackInfo& info);
  Napi::Value get_state(const Napi::CallbackInfo& info);
  Napi::Value set_state(const Napi::CallbackInfo& info);
};

}  // namespace limbeck
