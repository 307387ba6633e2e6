#pragma once

#include <napi.h>

#include <memory>

#include "napi/object.h"

namespace limbeck {

/// NativeEngine of src/binding.ts: makes the other objects, and runs what needs no object.
class Engine : public JsClass<Engine> {
 public:
  static constexpr napi_type_tag kTypeTag = {0x4c1d2f0e6b7a4931, 0xa1c5e2d98f304b05};
  static constexpr const char* kName = "engine";
  static constexpr Napi::FunctionReference AddonData::*kConstructor = &AddonData::engine;

  using JsClass::JsClass;
  static void define(Napi::Env env);
  static Napi::Object create(Napi::Env env, const Napi::Value& options);

 private:
  friend class JsClass<Engine>;
  /// Error("ERR_DISPOSED") once the engine was disposed of.
  const std::shared_ptr<TaskQueue>& queue() const;
  Napi::Value threads(const Napi::CallbackInfo& info);
  Napi::Value precision(const Napi::CallbackInfo& info);
  Napi::Value device(const Napi::CallbackInfo& info);
  Napi::Value device_name(const Napi::CallbackInfo& info);
  Napi::Value create_transformer(const Napi::CallbackInfo& info);
  Napi::Value create_trainer(const Napi::CallbackInfo& info);
  Napi::Value create_importance(const Napi::CallbackInfo& info);
  Napi::Value create_recommender(const Napi::CallbackInfo& info);
  Napi::Value create_text_encoder(const Napi::CallbackInfo& info);
  Napi::Value pca(const Napi::CallbackInfo& info);
  Napi::Value pca_transform(const Napi::CallbackInfo& info);
  Napi::Value residual_axes(const Napi::CallbackInfo& info);
  Napi::Value sparse_svd(const Napi::CallbackInfo& info);
  Napi::Value weighted_sum(const Napi::CallbackInfo& info);
  Napi::Value learn_layer_weights(const Napi::CallbackInfo& info);
  Napi::Value fit_classifier(const Napi::CallbackInfo& info);
  Napi::Value class_probabilities(const Napi::CallbackInfo& info);
  Napi::Value item_neighbors(const Napi::CallbackInfo& info);
  Napi::Value rank_by_neighbors(const Napi::CallbackInfo& info);
  Napi::Value dispose(const Napi::CallbackInfo& info);

  std::shared_ptr<TaskQueue> queue_;
};

}  // namespace limbeck
