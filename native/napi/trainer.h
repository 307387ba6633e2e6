#pragma once

#include <napi.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "napi/object.h"
#include "napi/step_request.h"
#include "napi/transformer.h"
#include "train/trainer.h"

namespace limbeck {

/// A trainer shared by its JS object and queued tasks, on the processor or, on an engine with a GPU, there.
class SharedTrainer : public Shareable {
 public:
  SharedTrainer(std::shared_ptr<SharedModel> trained, const OptimizerOptions& options);

  const std::shared_ptr<SharedModel>& model() const { return model_; }
  StepResult compute_gradients(Context& context, Arena& arena, const StepRequest& request);
  /// On the processor.
  StepResult step(Context& context, Arena& arena, const StepRequest& request);
  /// On a GPU, in two: see CudaTrainer::begin_step().
  void begin_step(const StepRequest& request);
  StepResult finish_step() { return on_gpu().finish_step(); }

  int64_t step_count();
  void set_step_count(int64_t step_count);
  /// Those that exist, by index.
  std::vector<ProjectionShape> projections();
  /// Makes the projection. Throws Error("ERR_SHAPE_MISMATCH") when it exists in another shape.
  void ensure_projection(int64_t index, int64_t rows, int64_t columns);
  /// Floats of an array; the model's second moments are none with SGD.
  int64_t count(cuda::ApiArray array, const ProjectionShape& projection);
  // `out` and `in` hold as many; the projection's index is not read for the moments of the model.
  void read(cuda::ApiArray array, const ProjectionShape& projection, float* out);
  void write(cuda::ApiArray array, const ProjectionShape& projection, const float* in);

 private:
  /// Made at the first call: then its memory is taken.
  CudaTrainer& on_gpu();
  float* on_host(cuda::ApiArray array, int64_t index);

  std::shared_ptr<SharedModel> model_;
  OptimizerOptions options_;
  std::optional<Trainer> on_host_;  // without a GPU
  std::unique_ptr<CudaTrainer> on_gpu_;
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
  StepRequest read_request(const Napi::Value& request, std::vector<Hold>& holds);
  Napi::Value set_projection(const Napi::CallbackInfo& info);
  Napi::Value get_projection(const Napi::CallbackInfo& info);
  Napi::Value get_projection_gradient(const Napi::CallbackInfo& info);
  Napi::Value compute_gradients(const Napi::CallbackInfo& info);
  Napi::Value step(const Napi::CallbackInfo& info);
  Napi::Value get_state(const Napi::CallbackInfo& info);
  Napi::Value set_state(const Napi::CallbackInfo& info);
};

}  // namespace limbeck
