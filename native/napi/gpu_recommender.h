#pragma once

#include <napi.h>

#include <cstdint>
#include <memory>
#include <utility>

#include "napi/object.h"
#include "napi/transformer.h"

namespace limbeck {

struct SharedGpuRecommender : Shareable {
  explicit SharedGpuRecommender(std::shared_ptr<SharedModel> read)
      : model(std::move(read)),
        recommender(model->gpu(), model->on_gpu()),
        parameter_version(model->layout().parameters().version()) {}
  std::shared_ptr<SharedModel> model;
  CudaRecommender recommender;
  uint64_t parameter_version;
};

/// NativeGpuRecommender of src/binding.ts.
class GpuRecommenderObject : public EngineObject<GpuRecommenderObject, SharedGpuRecommender> {
 public:
  static constexpr napi_type_tag kTypeTag = {0x4c1d2f0e6b7a4931, 0xa1c5e2d98f304b08};
  static constexpr const char* kName = "recommender";
  static constexpr Napi::FunctionReference AddonData::*kConstructor = &AddonData::gpu_recommender;

  using EngineObject::EngineObject;
  static void define(Napi::Env env);
  static Napi::Object create(Napi::Env env, std::shared_ptr<TaskQueue> queue, const Napi::Value& model);

 private:
  friend class JsClass<GpuRecommenderObject>;
  Napi::Value recommend(const Napi::CallbackInfo& info);
};

}  // namespace limbeck
