#pragma once

#include <napi.h>

#include <memory>
#include <utility>

#include "napi/object.h"
#include "napi/transformer.h"
#include "train/importance.h"

namespace limbeck {

struct SharedImportance : Shareable {
  explicit SharedImportance(std::shared_ptr<SharedModel> measured)
      : model(std::move(measured)), importance(SharedModel::keep(model)) {}
  std::shared_ptr<SharedModel> model;
  Importance importance;
};

/// NativeImportance of src/binding.ts.
class ImportanceObject : public EngineObject<ImportanceObject, SharedImportance> {
 public:
  static constexpr napi_type_tag kTypeTag = {0x4c1d2f0e6b7a4931, 0xa1c5e2d98f304b07};
  static constexpr const char* kName = "importance";
  static constexpr Napi::FunctionReference AddonData::*kConstructor = &AddonData::importance;

  using EngineObject::EngineObject;
  static void define(Napi::Env env);
  static Napi::Object create(Napi::Env env, std::shared_ptr<TaskQueue> queue, const Napi::Value& model);

 private:
  friend class JsClass<ImportanceObject>;
  Napi::Value num_examples(const Napi::CallbackInfo& info);
  Napi::Value add(const Napi::CallbackInfo& info);
  Napi::Value squared_gradient(const Napi::CallbackInfo& info);
  Napi::Value fisher(const Napi::CallbackInfo& info);
  Napi::Value saliency(const Napi::CallbackInfo& info);
  Napi::Value activation(const Napi::CallbackInfo& info);
};

}  // namespace limbeck
