#pragma once

#include <napi.h>

#include <memory>
#include <string>
#include <utility>

#include "napi/object.h"
#include "retrieve/text_encoder.h"

namespace limbeck {

/// What other threads open by its key.
struct PublishedTextModel {
  static constexpr const char* kShareKind = "text encoder";
  std::shared_ptr<const TextModel> model;
};

struct SharedTextEncoder : Shareable {
  explicit SharedTextEncoder(std::shared_ptr<const TextModel> model) : encoder(std::move(model)) {}
  TextEncoder encoder;
  std::shared_ptr<const PublishedTextModel> published;  // once shared
  std::string key;
};

/// NativeTextEncoder of src/binding.ts.
class TextEncoderObject : public EngineObject<TextEncoderObject, SharedTextEncoder> {
 public:
  static constexpr napi_type_tag kTypeTag = {0x4c1d2f0e6b7a4931, 0xa1c5e2d98f304b04};
  static constexpr const char* kName = "text encoder";
  static constexpr Napi::FunctionReference AddonData::*kConstructor = &AddonData::text_encoder;

  using EngineObject::EngineObject;
  static void define(Napi::Env env);
  static Napi::Object create(Napi::Env env, std::shared_ptr<TaskQueue> queue, const Napi::Value& options);
  /// The encoder that another thread shared under this key, without an engine.
  static Napi::Object open(Napi::Env env, const Napi::Value& key);

 private:
  friend class JsClass<TextEncoderObject>;
  Napi::Value feature_size(const Napi::CallbackInfo& info);
  Napi::Value encode(const Napi::CallbackInfo& info);
  Napi::Value share(const Napi::CallbackInfo& info);
};

}  // namespace limbeck
