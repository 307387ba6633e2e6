#include "napi/gpu_recommender.h"

#include <algorithm>
#include <string>

#include "napi/convert.h"

namespace limbeck {

namespace {

void check_items(const char* what, const ArrayView<int32_t>& items, int64_t num_items) {
  for (int64_t i = 0; i < items.count; ++i) {
    if (items.data[i] >= 0 && items.data[i] < num_items) continue;
    invalid(std::string(what) + "[" + std::to_string(i) + "] = " + std::to_string(items.data[i]) +
            " is no item of the model, which has " + std::to_string(num_items) + ".");
  }
}

}  // namespace

void GpuRecommenderObject::define(Napi::Env env) {
  JsClass::define(env, "GpuRecommender", {method<&GpuRecommenderObject::recommend>("recommend"), dispose_method()});
}

Napi::Object GpuRecommenderObject::create(Napi::Env env, std::shared_ptr<TaskQueue> queue, const Napi::Value& model) {
  TransformerObject& transformer = TransformerObject::unwrap_of(*queue, model, "model");
  if (!transformer.idle().has_gpu()) invalid("This engine has no GPU: create it with device 'cuda'.");
  return wrap(env, std::move(queue), std::make_shared<SharedGpuRecommender>(transformer.state()), 0);
}

Napi::Value GpuRecommenderObject::recommend(const Napi::CallbackInfo& info) {
  const Fields request(info[0], "");
  const Napi::Value history_value = request.get("history"), exclude_value = request.get("exclude"),
                    item_ids_value = request.get("itemIds"), scores_value = request.get("scores");
  const int64_t k = request.integer("k", 1, CudaRecommender::kMaxAnswers);

  // No getter of the request runs from here on, so the memory stays where it is.
  SharedGpuRecommender& shared = idle();
  const TransformerConfig& config = shared.model->config();
  if (shared.model->pending > 0) throw Error("ERR_BUSY", "The model of this recommender is at work.");
  if (shared.model->layout().parameters().version() != shared.parameter_version) {
    invalid("The model was changed after this recommender was made. Make another one.");
  }
  const ArrayView<int32_t> history = int32_view(history_value, "history");
  const ArrayView<int32_t> exclude = int32_view(exclude_value, "exclude");
  const ArrayView<int32_t> item_ids = int32_view(item_ids_value, "itemIds");
  const ArrayView<float> scores = float32_view(scores_value, "scores");
  if (item_ids.count < k || scores.count < k) {
    throw Error("ERR_SHAPE_MISMATCH", "Expected itemIds and scores to have room for k = " + std::to_string(k) +
                                          " items, got " + std::to_string(item_ids.count) + " and " +
                                          std::to_string(scores.count) + ".");
  }
  if (history.count == 0) invalid("Expected a history of at least one item.");
  if (k + exclude.count > CudaRecommender::kMaxAnswers) {
    invalid("Expected k and the excluded items to be at most " + std::to_string(CudaRecommender::kMaxAnswers) +
            " together, got " + std::to_string(k + exclude.count) + ".");
  }
  check_items("history", history, config.vocab_size);
  check_items("exclude", exclude, config.vocab_size);
  const int64_t length = std::min(history.count, config.max_position_embeddings);
  const int64_t count = shared.recommender.recommend(history.data + history.count - length, length, exclude.data,
                                                     exclude.count, k, item_ids.data, scores.data);
  return Napi::Number::New(info.Env(), static_cast<double>(count));
}

}  // namespace limbeck
