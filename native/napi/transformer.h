#pragma once

#include <napi.h>

#include <memory>

#include "model/transformer.h"
#include "napi/object.h"

namespace limbeck {

/// A model shared by its JS object, its trainers and queued tasks.
struct SharedModel : Shareable {
  explicit SharedModel(const TransformerConfig& config) : transformer(config) {}
  Transformer transformer;
};

/// NativeTransformer of src/binding.ts.
class TransformerObject : public EngineObject<TransformerObject, SharedModel> {
 public:
  static constexpr napi_type_tag kTypeTag = {0x4c1d2f0e6b7a4931, 0xa1c5e2d98f304b01};
  static constexpr const char* kName = "transformer";
  static constexpr Napi::FunctionReference AddonData::*kConstructor = &AddonData::transformer;

  using EngineObject::EngineObject;
  static void define(Napi::Env env);
  static Napi::Object create(Napi::Env env, std::shared_ptr<TaskQueue> queue, const Napi::Value& config);

 private:
  friend class JsClass<TransformerObject>;
  Napi::Value num_parameters(const Napi::CallbackInfo& info);
  Napi::Value parameters(const Napi::CallbackInfo& info);
  Napi::Value get_parameter(const Napi::CallbackInfo& info);
  Napi::Value set_parameter(const Napi::CallbackInfo& info);
  Napi::Value load_parameter(const Napi::CallbackInfo& info);
  Napi::Value get_gradient(const Napi::CallbackInfo& info);
  Napi::Value initialize(const Napi::CallbackInfo& info);
  Napi::Value set_item_features(const Napi::CallbackInfo& info);
  Napi::Value item_table(const Napi::CallbackInfo& info);
  Napi::Value add_item_bias(const Napi::CallbackInfo& info);
  Napi::Value interpolate(const Napi::CallbackInfo& info);
  Napi::Value forward(const Napi::CallbackInfo& info);
  Napi::Value project(const Napi::CallbackInfo& info);
  Napi::Value start_generation(const Napi::CallbackInfo& info);
};

}  // namespace limbeck
