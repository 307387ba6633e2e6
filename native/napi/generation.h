#pragma once

#include <napi.h>

#include <memory>
#include <utility>
#include <vector>

#include "model/generate.h"
#include "napi/object.h"
#include "napi/transformer.h"

namespace limbeck {

/// A text on its way, shared by its JS object and queued tasks.
struct SharedGeneration : Shareable {
  SharedGeneration(std::shared_ptr<SharedModel> read, std::vector<int32_t> input_ids, const GenerateOptions& options)
      : model(std::move(read)), generation(model->layout(), std::move(input_ids), options) {}
  std::shared_ptr<SharedModel> model;
  Generation generation;
};

/// NativeGeneration of src/binding.ts.
class GenerationObject : public EngineObject<GenerationObject, SharedGeneration> {
 public:
  static constexpr napi_type_tag kTypeTag = {0x4c1d2f0e6b7a4931, 0xa1c5e2d98f304b06};
  static constexpr const char* kName = "generation";
  static constexpr Napi::FunctionReference AddonData::*kConstructor = &AddonData::generation;

  using EngineObject::EngineObject;
  static void define(Napi::Env env);
  static Napi::Object create(Napi::Env env, std::shared_ptr<TaskQueue> queue, std::shared_ptr<SharedModel> model,
                             const Napi::Value& request);

 private:
  friend class JsClass<GenerationObject>;
  Napi::Value next(const Napi::CallbackInfo& info);
};

}  // namespace limbeck
