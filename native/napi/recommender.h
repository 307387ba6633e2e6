#pragma once

#include <napi.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "napi/gpu_requests.h"
#include "napi/object.h"
#include "retrieve/item_names.h"
#include "retrieve/recommender.h"
#include "retrieve/retriever.h"

namespace limbeck {

/// What other threads open by its key: a catalogue as it was when it was shared.
struct PublishedCatalogue {
  static constexpr const char* kShareKind = "recommender";
  std::shared_ptr<const Recommender> recommender;
  Catalogue catalogue;
  std::shared_ptr<ItemNames> names;  // as in SharedRecommender
};

/// Answers batches beside the JS thread, one after the other, from the catalogue as it was when they came.
struct BatchLane {
  std::shared_ptr<TaskQueue> queue;      // of one thread; null before the first batch
  std::shared_ptr<Retriever> retriever;  // that thread's; null before the first batch, and after a change
};

/// A recommender shared by its JS object and queued rankings, which use nothing but `recommender` and `gpu`.
struct SharedRecommender : Shareable {
  SharedRecommender(std::shared_ptr<const Recommender> snapshot, Catalogue catalogue,
                    std::shared_ptr<GpuRequests> device = nullptr)
      : recommender(std::move(snapshot)), gpu(std::move(device)), retriever(std::move(catalogue), gpu) {}
  std::shared_ptr<const Recommender> recommender;
  std::shared_ptr<GpuRequests> gpu;  // or null
  Retriever retriever;
  std::shared_ptr<ItemNames> names;  // null until items are named; never changed while others hold it
  std::vector<std::shared_ptr<const PublishedCatalogue>> published;  // while nothing changed since but their names
  std::string key;                                                   // of the latest
  BatchLane lane;
};

/// NativeRecommender of src/binding.ts.
class RecommenderObject : public EngineObject<RecommenderObject, SharedRecommender> {
 public:
  static constexpr napi_type_tag kTypeTag = {0x4c1d2f0e6b7a4931, 0xa1c5e2d98f304b03};
  static constexpr const char* kName = "recommender";
  static constexpr Napi::FunctionReference AddonData::*kConstructor = &AddonData::recommender;

  using EngineObject::EngineObject;
  static void define(Napi::Env env);
  static Napi::Object create(Napi::Env env, std::shared_ptr<TaskQueue> queue, const Napi::Value& model,
                             const Napi::Value& min_gpu_items);
  /// The recommender that another thread shared under this key, without an engine.
  static Napi::Object open(Napi::Env env, const Napi::Value& key);

 private:
  friend class JsClass<RecommenderObject>;
  /// Of what will change: what was shared before stays as it is.
  Retriever& changing();
  /// The names, to be changed: a copy where others hold them.
  ItemNames& own_names();
  /// Where batches are answered beside this thread.
  BatchLane& lane(Napi::Env env);
  ArrayView<float> features_view(const Napi::Value& value, int64_t* num_features);
  Napi::Value num_items(const Napi::CallbackInfo& info);
  Napi::Value recommend(const Napi::CallbackInfo& info);
  Napi::Value serve(const Napi::CallbackInfo& info);
  Napi::Value serve_batch(const Napi::CallbackInfo& info);
  Napi::Value serve_all(const Napi::CallbackInfo& info);
  Napi::Value serve_all_aside(const Napi::CallbackInfo& info);
  Napi::Value answer_all_aside(const Napi::CallbackInfo& info);
  Napi::Value answer_texts(const Napi::CallbackInfo& info);
  Napi::Value answer_texts_aside(const Napi::CallbackInfo& info);
  Napi::Value similar(const Napi::CallbackInfo& info);
  Napi::Value search(const Napi::CallbackInfo& info);
  Napi::Value interests(const Napi::CallbackInfo& info);
  Napi::Value explain(const Napi::CallbackInfo& info);
  Napi::Value add_items(const Napi::CallbackInfo& info);
  Napi::Value describe_items(const Napi::CallbackInfo& info);
  Napi::Value has_names(const Napi::CallbackInfo& info);
  Napi::Value name_items(const Napi::CallbackInfo& info);
  Napi::Value hide_items(const Napi::CallbackInfo& info);
  Napi::Value set_popularity(const Napi::CallbackInfo& info);
  Napi::Value find_topics(const Napi::CallbackInfo& info);
  Napi::Value set_topics(const Napi::CallbackInfo& info);
  Napi::Value topics(const Napi::CallbackInfo& info);
  Napi::Value topics_of(const Napi::CallbackInfo& info);
  Napi::Value share(const Napi::CallbackInfo& info);
  Napi::Value rank(const Napi::CallbackInfo& info);
};

}  // namespace limbeck
