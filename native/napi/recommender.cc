#include "napi/recommender.h"

#include <string>
#include <utility>
#include <vector>

#include "napi/transformer.h"

namespace limbeck {

namespace {

/// Bytes of the folded snapshot: its table and its blocks.
int64_t size_bytes(const TransformerConfig& config) {
  const int64_t d = config.hidden_size;
  const int64_t block =
      d * (config.qkv_size() + config.attention_size() + config.mlp_input_size() + config.intermediate_size);
  return (config.vocab_size * (d + 1) + config.num_hidden_layers * block) * static_cast<int64_t>(sizeof(float));
}

struct RankRequest {
  BatchInput batch;
  std::vector<int32_t> targets, exclude_ids, exclude_offsets;
  int64_t top_k = 0;
};

struct RankResult {
  std::vector<int32_t> ranks, top_k_ids;
  std::vector<float> top_k_scores;
};

RankRequest read_rank_request(const Napi::Value& value) {
  const Fields fields(value, "");
  RankRequest request;
  request.batch = read_batch(fields);
  const int64_t S = request.batch.num_sequences();
  request.targets = fields.int32s("targets");
  check_count("targets", static_cast<int64_t>(request.targets.size()), S);
  request.exclude_ids = fields.int32s("excludeIds");
  request.exclude_offsets = fields.int32s("excludeOffsets");
  check_count("excludeOffsets", static_cast<int64_t>(request.exclude_offsets.size()), S + 1);
  const int64_t num_excluded = static_cast<int64_t>(request.exclude_ids.size());
  if (request.exclude_offsets.front() != 0 || request.exclude_offsets.back() != num_excluded) {
    invalid("excludeOffsets must run from 0 to the number of excludeIds, " + std::to_string(num_excluded) + ".");
  }
  request.top_k = fields.integer("topK", 0, kMaxInt32);
  check_memory(S * request.top_k * 2 * static_cast<int64_t>(sizeof(float) + sizeof(int32_t)));
  return request;
}

/// Outputs are written while inputs are still read: they must not share memory.
template <typename Output, typename Input>
void check_apart(const char* output_name, const ArrayView<Output>& output, const char* input_name,
                 const ArrayView<Input>& input) {
  const char* output_begin = reinterpret_cast<const char*>(output.data);
  const char* output_end = reinterpret_cast<const char*>(output.data + output.count);
  const char* input_begin = reinterpret_cast<const char*>(input.data);
  const char* input_end = reinterpret_cast<const char*>(input.data + input.count);
  if (output_begin < input_end && input_begin < output_end) {
    invalid(std::string("Expected ") + output_name + " and " + input_name + " not to share memory.");
  }
}

}  // namespace

void RecommenderObject::define(Napi::Env env) {
  JsClass::define(env, "Recommender",
                  {
                      getter<&RecommenderObject::num_items>("numItems"),
                      method<&RecommenderObject::recommend>("recommend"),
                      method<&RecommenderObject::add_items>("addItems"),
                      promise_method<&RecommenderObject::rank>("rank"),
                      dispose_method(),
                  });
}

Napi::Object RecommenderObject::create(Napi::Env env, std::shared_ptr<TaskQueue> queue, const Napi::Value& model) {
  const Transformer& transformer = TransformerObject::unwrap_of(*queue, model, "model").idle().transformer;
  ThreadPool pool(1);
  Arena scratch;
  Context context{pool, scratch};
  auto recommender = std::make_shared<SharedRecommender>(context, transformer);
  return wrap(env, std::move(queue), std::move(recommender), size_bytes(transformer.config()));
}

Napi::Value RecommenderObject::num_items(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(state()->recommender.num_items()));
}

Napi::Value RecommenderObject::recommend(const Napi::CallbackInfo& info) {
  const Fields request(info[0], "");
  const Napi::Value history_value = request.get("history"), exclude_value = request.get("exclude"),
                    item_ids_value = request.get("itemIds"), scores_value = request.get("scores"),
                    features_value = request.get("features");
  const int64_t k = request.integer("k", 1, kMaxInt32);

  // No getter of the request runs from here on, so the memory stays where it is.
  Recommender& recommender = state()->recommender;
  const ArrayView<int32_t> history = int32_view(history_value, "history");
  const ArrayView<int32_t> exclude = int32_view(exclude_value, "exclude");
  const ArrayView<int32_t> item_ids = int32_view(item_ids_value, "itemIds");
  const ArrayView<float> scores = float32_view(scores_value, "scores");
  ArrayView<float> features;
  int64_t num_features = 0;
  if (!features_value.IsUndefined()) {
    features = float32_view(features_value, "features");
    const int64_t width = recommender.item_feature_size();
    if (width > 0 && features.count % width != 0) {
      throw Error("ERR_SHAPE_MISMATCH", "Expected features of " + std::to_string(width) + " numbers an item, got " +
                                            std::to_string(features.count) + " in all.");
    }
    num_features = width > 0 ? features.count / width : features.count;
  }
  if (item_ids.count < k || scores.count < k) {
    throw Error("ERR_SHAPE_MISMATCH", "Expected itemIds and scores to have room for k = " + std::to_string(k) +
                                          " items, got " + std::to_string(item_ids.count) + " and " +
                                          std::to_string(scores.count) + ".");
  }
  check_apart("itemIds", item_ids, "scores", scores);
  check_apart("itemIds", item_ids, "history", history);
  check_apart("itemIds", item_ids, "exclude", exclude);
  check_apart("itemIds", item_ids, "features", features);
  check_apart("scores", scores, "history", history);
  check_apart("scores", scores, "exclude", exclude);
  check_apart("scores", scores, "features", features);
  const int64_t count = recommender.recommend(history.data, history.count, features.data, num_features, exclude.data,
                                              exclude.count, k, item_ids.data, scores.data);
  return Napi::Number::New(info.Env(), static_cast<double>(count));
}

Napi::Value RecommenderObject::add_items(const Napi::CallbackInfo& info) {
  Recommender& recommender = idle().recommender;
  const ArrayView<float> features = float32_view(info[0], "features");
  const int64_t before = recommender.num_items();
  const int64_t first = recommender.add_items(features.data, features.count);
  account(accounted() + accounted() / before * (recommender.num_items() - before));
  return Napi::Number::New(info.Env(), static_cast<double>(first));
}

Napi::Value RecommenderObject::rank(const Napi::CallbackInfo& info) {
  const std::shared_ptr<SharedRecommender> shared = state();
  RankRequest request = read_rank_request(info[0]);
  return queue().submit(
      {Hold(shared)},
      [shared, request = std::move(request)](Context& context, Arena& arena) {
        const size_t S = static_cast<size_t>(request.batch.num_sequences());
        const size_t listed = S * static_cast<size_t>(request.top_k);
        RankResult result{std::vector<int32_t>(S), std::vector<int32_t>(listed), std::vector<float>(listed)};
        const RankInputs inputs{request.batch.view(), request.targets.data(), request.exclude_ids.data(),
                                request.exclude_offsets.data(), request.top_k};
        shared->recommender.rank(context, arena, inputs, result.ranks.data(), result.top_k_ids.data(),
                                 result.top_k_scores.data());
        return result;
      },
      [](Napi::Env env, const RankResult& result) -> Napi::Value {
        Napi::Object object = Napi::Object::New(env);
        object.Set("ranks", new_int32_array(env, result.ranks));
        object.Set("topK", new_int32_array(env, result.top_k_ids));
        object.Set("topKScores", new_float32_array(env, result.top_k_scores));
        return object;
      });
}

}  // namespace limbeck
