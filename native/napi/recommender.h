#pragma once

#include <napi.h>

#include <memory>

#include "napi/object.h"
#include "retrieve/recommender.h"

namespace limbeck {

/// A recommender shared by its JS object and queued rankings, which only read it.
struct SharedRecommender : Shareable {
  SharedRecommender(Context& context, const Transformer& model) : recommender(context, model) {}
  Recommender recommender;
};

/// NativeRecommender of src/binding.ts.
class RecommenderObject : public EngineObject<RecommenderObject, SharedRecommender> {
 public:
  static constexpr napi_type_tag kTypeTag = {0x4c1d2f0e6b7a4931, 0xa1c5e2d98f304b03};
  static constexpr const char* kName = "recommender";
  static constexpr Napi::FunctionReference AddonData::*kConstructor = &AddonData::recommender;

  using EngineObject::EngineObject;
  static void define(Napi::Env env);
  static Napi::Object create(Napi::Env env, std::shared_ptr<TaskQueue> queue, const Napi::Value& model);

 private:
  friend class JsClass<RecommenderObject>;
  Napi::Value num_items(const Napi::CallbackInfo& info);
  Napi::Value recommend(const Napi::CallbackInfo& info);
  Napi::Value add_items(const Napi::CallbackInfo& info);
  Napi::Value rank(const Napi::CallbackInfo& info);
};

}  // namespace limbeck
