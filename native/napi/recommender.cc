#include "napi/recommender.h"

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "napi/recommend_request.h"
#include "napi/share_registry.h"
#include "napi/text_batch.h"
#include "napi/transformer.h"

namespace limbeck {

namespace {

// Below so many values of the item table, the processor is done before a GPU has begun.
constexpr int64_t kMinGpuTable = int64_t{1} << 23;

/// Bytes of the folded snapshot: its table and its blocks.
int64_t size_bytes(const TransformerConfig& config) {
  const int64_t d = config.hidden_size;
  const int64_t block =
      d * (config.qkv_size() + config.attention_size() + config.mlp_input_size() + config.intermediate_size);
  return (config.vocab_size * (d + 1) + config.num_hidden_layers * block) * static_cast<int64_t>(sizeof(float));
}

struct RankRequest {
  BatchInput batch;
  FloatInput states;  // [S, d] or empty
  std::vector<int32_t> targets, exclude_ids, exclude_offsets;
  int64_t top_k = 0;
};

struct RankResult {
  std::vector<int32_t> ranks, top_k_ids;
  std::vector<float> top_k_scores;
};

RankRequest read_rank_request(const Napi::Value& value, int64_t hidden_size) {
  const Fields fields(value, "");
  RankRequest request;
  request.batch = read_batch(fields);
  const int64_t S = request.batch.num_sequences();
  const Napi::Value states = fields.get("states");
  if (!states.IsUndefined()) request.states = FloatInput(states, "states", S * hidden_size);
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

/// Where answers are written: room for k, apart from all that is read.
struct Answer {
  ArrayView<int32_t> item_ids;
  ArrayView<float> scores;
};

Answer answer_view(const Napi::Value& item_ids, const Napi::Value& scores, int64_t k) {
  const Answer answer{int32_view(item_ids, "itemIds"), float32_view(scores, "scores")};
  if (answer.item_ids.count < k || answer.scores.count < k) {
    throw Error("ERR_SHAPE_MISMATCH", "Expected itemIds and scores to have room for k = " + std::to_string(k) +
                                          " items, got " + std::to_string(answer.item_ids.count) + " and " +
                                          std::to_string(answer.scores.count) + ".");
  }
  check_apart("itemIds", answer.item_ids, "scores", answer.scores);
  return answer;
}

template <typename T>
void check_apart_from(const Answer& answer, const char* name, const ArrayView<T>& input) {
  check_apart("itemIds", answer.item_ids, name, input);
  check_apart("scores", answer.scores, name, input);
}

}  // namespace

void RecommenderObject::define(Napi::Env env) {
  JsClass::define(env, "Recommender",
                  {
                      getter<&RecommenderObject::num_items>("numItems"),
                      method<&RecommenderObject::recommend>("recommend"),
                      method<&RecommenderObject::serve>("serve"),
                      method<&RecommenderObject::serve_batch>("serveBatch"),
                      method<&RecommenderObject::serve_all>("serveAll"),
                      promise_method<&RecommenderObject::serve_all_aside>("serveAllAside"),
                      promise_method<&RecommenderObject::answer_all_aside>("answerAllAside"),
                      method<&RecommenderObject::answer_texts>("answerTexts"),
                      promise_method<&RecommenderObject::answer_texts_aside>("answerTextsAside"),
                      getter<&RecommenderObject::has_names>("hasNames"),
                      method<&RecommenderObject::name_items>("nameItems"),
                      method<&RecommenderObject::similar>("similar"),
                      method<&RecommenderObject::search>("search"),
                      method<&RecommenderObject::interests>("interests"),
                      method<&RecommenderObject::explain>("explain"),
                      method<&RecommenderObject::add_items>("addItems"),
                      method<&RecommenderObject::describe_items>("describeItems"),
                      method<&RecommenderObject::hide_items>("hideItems"),
                      method<&RecommenderObject::set_popularity>("setPopularity"),
                      method<&RecommenderObject::find_topics>("findTopics"),
                      method<&RecommenderObject::set_topics>("setTopics"),
                      method<&RecommenderObject::topics>("topics"),
                      method<&RecommenderObject::topics_of>("topicsOf"),
                      method<&RecommenderObject::share>("share"),
                      promise_method<&RecommenderObject::rank>("rank"),
                      dispose_method(),
                  });
}

Napi::Object RecommenderObject::create(Napi::Env env, std::shared_ptr<TaskQueue> queue, const Napi::Value& model,
                                       const Napi::Value& min_gpu_items) {
  TransformerObject& object = TransformerObject::unwrap_of(*queue, model, "model");
  const Transformer& transformer = object.idle().host();
  object.state()->check_no_adapter();
  const TransformerConfig& config = transformer.config();
  const int64_t least = min_gpu_items.IsUndefined() ? kMinGpuTable / config.hidden_size
                                                    : to_integer(min_gpu_items, "minGpuItems", 0, kMaxInt32);
  ThreadPool pool(1);
  Arena scratch;
  Context context{pool, scratch};
  auto snapshot = std::make_shared<const Recommender>(context, transformer);
  std::shared_ptr<GpuRequests> device;
  if (object.state()->has_gpu() && config.vocab_size >= least) {
    device = std::make_shared<GpuRequests>(object.state());
  }
  auto recommender = std::make_shared<SharedRecommender>(snapshot, Catalogue(snapshot), std::move(device));
  return wrap(env, std::move(queue), std::move(recommender), size_bytes(config));
}

Napi::Object RecommenderObject::open(Napi::Env env, const Napi::Value& key) {
  const std::string name = to_string(key, "key");
  std::shared_ptr<const PublishedCatalogue> published = ShareRegistry::open<PublishedCatalogue>(name);
  if (published == nullptr) {
    throw Error("ERR_DISPOSED",
                "The student of this handle was disposed of, or changed before the handle was opened. Share it again.");
  }
  auto recommender = std::make_shared<SharedRecommender>(published->recommender, published->catalogue);
  const int64_t own_bytes = recommender->retriever.num_items() * 16;
  recommender->names = published->names;
  recommender->published.push_back(std::move(published));
  recommender->key = name;
  return wrap(env, nullptr, std::move(recommender), own_bytes);
}

Retriever& RecommenderObject::changing() {
  SharedRecommender& shared = *state();
  shared.published.clear();
  shared.lane.retriever.reset();
  return shared.retriever;
}

ItemNames& RecommenderObject::own_names() {
  std::shared_ptr<ItemNames>& names = state()->names;
  if (names == nullptr) {
    names = std::make_shared<ItemNames>();
  } else if (names.use_count() > 1) {
    names = std::make_shared<ItemNames>(*names);
  } else {
    // What another thread read, it read before it let go.
    std::atomic_thread_fence(std::memory_order_acquire);
  }
  return *names;
}

BatchLane& RecommenderObject::lane(Napi::Env env) {
  SharedRecommender& shared = *state();
  BatchLane& lane = shared.lane;
  if (lane.queue == nullptr) lane.queue = TaskQueue::start(env, 1, Precision::kFloat32, nullptr);
  if (lane.retriever == nullptr) {
    lane.retriever = std::make_shared<Retriever>(shared.retriever.catalogue().searchable());
  }
  return lane;
}

ArrayView<float> RecommenderObject::features_view(const Napi::Value& value, int64_t* num_features) {
  *num_features = 0;
  if (value.IsUndefined()) return {};
  const ArrayView<float> features = float32_view(value, "features");
  const int64_t width = state()->recommender->item_feature_size();
  if (width > 0 && features.count % width != 0) {
    throw Error("ERR_SHAPE_MISMATCH", "Expected features of " + std::to_string(width) + " numbers an item, got " +
                                          std::to_string(features.count) + " in all.");
  }
  *num_features = width > 0 ? features.count / width : features.count;
  return features;
}

Napi::Value RecommenderObject::num_items(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(state()->retriever.num_items()));
}

Napi::Value RecommenderObject::recommend(const Napi::CallbackInfo& info) {
  const Fields request(info[0], "");
  const Napi::Value history_value = request.get("history"), exclude_value = request.get("exclude"),
                    item_ids_value = request.get("itemIds"), scores_value = request.get("scores"),
                    features_value = request.get("features");
  const int64_t k = request.integer("k", 1, kMaxInt32);

  // No getter of the request runs from here on, so the memory stays where it is.
  Retriever& retriever = state()->retriever;
  const ArrayView<int32_t> history = int32_view(history_value, "history");
  const ArrayView<int32_t> exclude = int32_view(exclude_value, "exclude");
  History of_user{history.data, history.count};
  const ArrayView<float> features = features_view(features_value, &of_user.num_features);
  of_user.features = features.data;
  const Answer answer = answer_view(item_ids_value, scores_value, k);
  check_apart_from(answer, "history", history);
  check_apart_from(answer, "exclude", exclude);
  check_apart_from(answer, "features", features);
  if (history.count == 0) invalid("Expected a history of at least one item.");
  Selection selection;
  selection.exclude = exclude.data;
  selection.num_excluded = exclude.count;
  const int64_t count = retriever.recommend(of_user, selection, {}, k, answer.item_ids.data, answer.scores.data);
  return Napi::Number::New(info.Env(), static_cast<double>(count));
}

Napi::Value RecommenderObject::serve(const Napi::CallbackInfo& info) {
  Retriever& retriever = state()->retriever;
  const ArrayView<int32_t> request = int32_view(info[0], "request");
  const ArrayView<float> numbers = float32_view(info[1], "numbers");
  PackedRequest packed = read_packed(request, numbers);
  const ArrayView<float> features = features_view(info[4], &packed.history.num_features);
  packed.history.features = features.data;
  const Answer answer = answer_view(info[2], info[3], packed.k);
  check_apart_from(answer, "request", request);
  check_apart_from(answer, "numbers", numbers);
  check_apart_from(answer, "features", features);
  const int64_t count = retriever.recommend(packed.history, packed.selection, packed.ranking, packed.k,
                                            answer.item_ids.data, answer.scores.data);
  return Napi::Number::New(info.Env(), static_cast<double>(count));
}

void check_offsets(const char* name, const ArrayView<int32_t>& offsets, int64_t count) {
  if (offsets.data[0] != 0 || offsets.data[offsets.count - 1] != count) {
    invalid(std::string(name) + " must run from 0 to the number of ids, " + std::to_string(count) + ".");
  }
  if (!std::is_sorted(offsets.data, offsets.data + offsets.count)) invalid(std::string(name) + " must ascend.");
}

Napi::Value RecommenderObject::serve_batch(const Napi::CallbackInfo& info) {
  Retriever& retriever = state()->retriever;
  const ArrayView<int32_t> request = int32_view(info[0], "request");
  const ArrayView<float> numbers = float32_view(info[1], "numbers");
  const ArrayView<int32_t> histories = int32_view(info[2], "histories");
  const ArrayView<int32_t> offsets = int32_view(info[3], "offsets");
  const PackedRequest packed = read_packed(request, numbers);
  const int64_t k = packed.k;
  if (offsets.count < 2)
    invalid("Expected offsets to have at least 2 elements, from 0 to the number of histories' ids.");
  if (k < 1) invalid("Expected k of at least 1, got " + std::to_string(k) + ".");
  check_offsets("offsets", offsets, histories.count);
  const HistoryBatch batch{histories.data, offsets.data, offsets.count - 1};
  const Answer answer = answer_view(info[4], info[5], batch.count * k);
  check_apart_from(answer, "request", request);
  check_apart_from(answer, "numbers", numbers);
  check_apart_from(answer, "histories", histories);
  check_apart_from(answer, "offsets", offsets);
  retriever.recommend_batch(batch, packed.selection, packed.ranking, k, answer.item_ids.data, answer.scores.data);
  return info.Env().Undefined();
}

namespace {

struct BatchAnswers {
  std::vector<int32_t> item_ids;  // [size, width]
  std::vector<float> scores;      // [size, width]
};

BatchAnswers answer(const RequestBatch& batch, Retriever& retriever) {
  BatchAnswers answers;
  answers.item_ids.resize(static_cast<size_t>(batch.size() * batch.width));
  answers.scores.resize(answers.item_ids.size());
  const HistoryBatch histories{batch.histories.data(),       batch.offsets.data(),  batch.size(),  batch.exclude.data(),
                               batch.exclude_offsets.data(), batch.rankings.data(), batch.k.data()};
  retriever.recommend_batch(histories, {}, {}, batch.width, answers.item_ids.data(), answers.scores.data());
  return answers;
}

Napi::Value new_answers(Napi::Env env, const BatchAnswers& answers) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("itemIds", new_int32_array(env, answers.item_ids));
  object.Set("scores", new_float32_array(env, answers.scores));
  return object;
}

}  // namespace

Napi::Value RecommenderObject::serve_all(const Napi::CallbackInfo& info) {
  Retriever& retriever = state()->retriever;
  return new_answers(info.Env(), answer(read_requests(info[0], info[1], retriever.num_items()), retriever));
}

Napi::Value RecommenderObject::serve_all_aside(const Napi::CallbackInfo& info) {
  BatchLane& lane = this->lane(info.Env());
  return lane.queue->submit(
      {},
      [retriever = lane.retriever, batch = read_requests(info[0], info[1], lane.retriever->num_items())](
          Context&, Arena&) { return answer(batch, *retriever); },
      new_answers);
}

Napi::Value RecommenderObject::answer_all_aside(const Napi::CallbackInfo& info) {
  const Napi::Array list = to_array(info[2], "unknown");
  std::vector<std::string> unknown(list.Length());
  // A getter of the list may do anything: all else is looked at when it is read.
  for (uint32_t i = 0; i < unknown.size(); ++i) unknown[i] = to_string(list[i], "unknown");
  const std::shared_ptr<const ItemNames> names = state()->names;
  BatchLane& lane = this->lane(info.Env());
  if (names == nullptr || names->num_items() < lane.retriever->num_items()) {
    invalid("Items must be named before requests are answered as text.");
  }
  RequestBatch batch = read_requests(info[0], info[1], lane.retriever->num_items());
  check_count("unknown", static_cast<int64_t>(unknown.size()), batch.size());
  return lane.queue->submit(
      {},
      [retriever = lane.retriever, batch = std::move(batch), unknown = std::move(unknown), names](Context&, Arena&) {
        const BatchAnswers answers = answer(batch, *retriever);
        std::vector<std::string> texts(unknown.size());
        for (size_t i = 0; i < texts.size(); ++i) {
          const size_t begin = i * static_cast<size_t>(batch.width);
          append_answer(*names, answers.item_ids.data() + begin, answers.scores.data() + begin, batch.k[i], unknown[i],
                        texts[i]);
        }
        return texts;
      },
      [](Napi::Env env, const std::vector<std::string>& texts) -> Napi::Value { return new_string_array(env, texts); });
}

Napi::Value RecommenderObject::answer_texts(const Napi::CallbackInfo& info) {
  const TextBatch batch = read_text_batch(info[0], info[1], info[2], state()->names);
  return new_string_array(info.Env(), batch.answer(state()->retriever));
}

Napi::Value RecommenderObject::answer_texts_aside(const Napi::CallbackInfo& info) {
  TextBatch batch = read_text_batch(info[0], info[1], info[2], state()->names);
  if (batch.requests.size() == 0) {  // another thread would be woken for nothing
    const auto deferred = Napi::Promise::Deferred::New(info.Env());
    deferred.Resolve(Napi::Array::New(info.Env()));
    return deferred.Promise();
  }
  BatchLane& lane = this->lane(info.Env());
  return lane.queue->submit(
      {}, [retriever = lane.retriever, batch = std::move(batch)](Context&, Arena&) { return batch.answer(*retriever); },
      [](Napi::Env env, const std::vector<std::string>& texts) -> Napi::Value { return new_string_array(env, texts); });
}

Napi::Value RecommenderObject::similar(const Napi::CallbackInfo& info) {
  const int64_t item = to_integer(info[0], "item", 0, kMaxInt32);
  Retriever& retriever = state()->retriever;
  const ArrayView<int32_t> request = int32_view(info[1], "request");
  const ArrayView<float> numbers = float32_view(info[2], "numbers");
  const PackedRequest packed = read_packed(request, numbers);
  const Answer answer = answer_view(info[3], info[4], packed.k);
  check_apart_from(answer, "request", request);
  check_apart_from(answer, "numbers", numbers);
  const int64_t count = retriever.similar(static_cast<int32_t>(item), packed.selection, packed.k, answer.item_ids.data,
                                          answer.scores.data);
  return Napi::Number::New(info.Env(), static_cast<double>(count));
}

Napi::Value RecommenderObject::search(const Napi::CallbackInfo& info) {
  Retriever& retriever = state()->retriever;
  const ArrayView<float> text = float32_view(info[0], "text");
  const ArrayView<int32_t> request = int32_view(info[1], "request");
  const ArrayView<float> numbers = float32_view(info[2], "numbers");
  PackedRequest packed = read_packed(request, numbers);
  check_count("text", text.count, state()->recommender->item_feature_size());
  const ArrayView<float> features = features_view(info[5], &packed.history.num_features);
  packed.history.features = features.data;
  const Answer answer = answer_view(info[3], info[4], packed.k);
  check_apart_from(answer, "text", text);
  check_apart_from(answer, "request", request);
  check_apart_from(answer, "numbers", numbers);
  check_apart_from(answer, "features", features);
  const int64_t count =
      retriever.search(text.data, packed.history, packed.selection, packed.k, answer.item_ids.data, answer.scores.data);
  return Napi::Number::New(info.Env(), static_cast<double>(count));
}

Napi::Value RecommenderObject::interests(const Napi::CallbackInfo& info) {
  Retriever& retriever = state()->retriever;
  PackedRequest packed = read_packed(int32_view(info[0], "request"), float32_view(info[1], "numbers"));
  packed.history.features = features_view(info[2], &packed.history.num_features).data;
  std::vector<float> weights(static_cast<size_t>(retriever.catalogue().topics().num_topics()));
  retriever.interests(packed.history, weights.data());
  return new_float32_array(info.Env(), weights);
}

Napi::Value RecommenderObject::explain(const Napi::CallbackInfo& info) {
  Retriever& retriever = state()->retriever;
  PackedRequest packed = read_packed(int32_view(info[0], "request"), float32_view(info[1], "numbers"));
  const ArrayView<int32_t> items = int32_view(info[2], "items");
  packed.history.features = features_view(info[3], &packed.history.num_features).data;
  check_memory(items.count * packed.history.length * static_cast<int64_t>(2 * sizeof(float)));
  std::vector<float> weights(static_cast<size_t>(items.count * packed.history.length));
  retriever.explain(packed.history, items.data, items.count, weights.data());
  return new_float32_array(info.Env(), weights);
}

Napi::Value RecommenderObject::add_items(const Napi::CallbackInfo& info) {
  const ArrayView<float> features = float32_view(info[0], "features");
  const int64_t width = state()->recommender->item_feature_size(), before = state()->retriever.num_items();
  if (width == 0) invalid("This student has no item features, so items cannot be added by text.");
  if (features.count < width || features.count % width != 0) {
    throw Error("ERR_SHAPE_MISMATCH", "Expected features of " + std::to_string(width) + " numbers an item, got " +
                                          std::to_string(features.count) + " in all.");
  }
  const int64_t added = features.count / width;
  const int64_t first = changing().add_items(features.data, added);
  account(accounted() + accounted() / before * added);
  return Napi::Number::New(info.Env(), static_cast<double>(first));
}

Napi::Value RecommenderObject::describe_items(const Napi::CallbackInfo& info) {
  const Fields request(info[0], "");
  const std::vector<int32_t> categories = request.int32s("categories"), offsets = request.int32s("categoryOffsets"),
                             hidden = request.int32s("hidden");
  const FloatInput boosts(request.get("boosts"), "boosts");
  const auto count = static_cast<int64_t>(hidden.size());
  check_count("categoryOffsets", static_cast<int64_t>(offsets.size()), count + 1);
  check_count("boosts", boosts.count(), count);
  if (offsets.back() != static_cast<int64_t>(categories.size())) {
    invalid("categoryOffsets must end with the number of categories, " + std::to_string(categories.size()) + ".");
  }
  changing().describe(categories.data(), offsets.data(), boosts.data(), hidden.data(), count);
  return info.Env().Undefined();
}

Napi::Value RecommenderObject::hide_items(const Napi::CallbackInfo& info) {
  const ArrayView<int32_t> ids = int32_view(info[0], "ids");
  const Retriever& retriever = state()->retriever;
  for (int64_t i = 0; i < ids.count; ++i) check_item("ids", ids.data[i], retriever.num_items());
  for (int64_t i = 0; i < ids.count; ++i) {
    // Those that are hidden already change nothing, so that what was shared may still be opened.
    if (!retriever.catalogue().is_hidden(ids.data[i])) changing().hide(ids.data[i]);
  }
  if (state()->names != nullptr) {
    ItemNames& names = own_names();
    for (int64_t i = 0; i < ids.count; ++i) {
      if (ids.data[i] < names.num_items()) names.remove(ids.data[i]);
    }
  }
  return info.Env().Undefined();
}

Napi::Value RecommenderObject::has_names(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), state()->names != nullptr);
}

Napi::Value RecommenderObject::name_items(const Napi::CallbackInfo& info) {
  if (!info[0].IsArray()) invalid("Expected names to be a list of texts.");
  const Napi::Array list = info[0].As<Napi::Array>();
  std::vector<std::string> names(list.Length());
  // A getter of the list may do anything: the state is looked at when all are read.
  for (uint32_t i = 0; i < names.size(); ++i) names[i] = to_string(list[i], "names");
  SharedRecommender& shared = *state();
  const int64_t named = shared.names == nullptr ? 0 : shared.names->num_items();
  check_count("names", static_cast<int64_t>(names.size()), shared.retriever.num_items() - named);
  ItemNames& own = own_names();
  for (const std::string& name : names) own.append(name);
  return info.Env().Undefined();
}

Napi::Value RecommenderObject::set_popularity(const Napi::CallbackInfo& info) {
  const ArrayView<float> counts = float32_view(info[0], "counts");
  changing().set_popularity(counts.data, counts.count);
  return info.Env().Undefined();
}

Napi::Value RecommenderObject::find_topics(const Napi::CallbackInfo& info) {
  const int64_t count = to_integer(info[0], "count", 1, kMaxInt32);
  const int64_t seed = to_integer(info[1], "seed", 0, kMaxSafeInteger);
  changing().find_topics(count, static_cast<uint64_t>(seed));
  return info.Env().Undefined();
}

Napi::Value RecommenderObject::set_topics(const Napi::CallbackInfo& info) {
  const ArrayView<float> centroids = float32_view(info[0], "centroids");
  changing().set_topics(centroids.data, centroids.count);
  return info.Env().Undefined();
}

Napi::Value RecommenderObject::topics(const Napi::CallbackInfo& info) {
  const Catalogue& catalogue = state()->retriever.catalogue();
  Napi::Object result = Napi::Object::New(info.Env());
  result.Set("centroids", new_float32_array(info.Env(), catalogue.topics().centroids));
  result.Set("itemTopics", new_int32_array(info.Env(), catalogue.item_topics()));
  return result;
}

Napi::Value RecommenderObject::topics_of(const Napi::CallbackInfo& info) {
  int64_t count = 0;
  const float* features = features_view(info[0], &count).data;
  std::vector<int32_t> topics(static_cast<size_t>(count));
  state()->retriever.topics_of(features, count, topics.data());
  return new_int32_array(info.Env(), topics);
}

Napi::Value RecommenderObject::share(const Napi::CallbackInfo& info) {
  SharedRecommender& shared = *state();
  if (shared.published.empty() || shared.published.back()->names != shared.names) {
    shared.published.push_back(std::make_shared<const PublishedCatalogue>(
        PublishedCatalogue{shared.recommender, shared.retriever.catalogue(), shared.names}));
    shared.key = ShareRegistry::publish(shared.published.back());
  }
  return Napi::String::New(info.Env(), shared.key);
}

Napi::Value RecommenderObject::rank(const Napi::CallbackInfo& info) {
  const std::shared_ptr<SharedRecommender> shared = state();
  TaskQueue& queue = this->queue();
  RankRequest request = read_rank_request(info[0], shared->recommender->hidden_size());
  std::vector<Hold> holds{Hold(shared)};
  if (shared->gpu != nullptr) holds.emplace_back(shared->gpu->model());
  return queue.submit(
      std::move(holds),
      [shared, request = std::move(request)](Context& context, Arena& arena) {
        const size_t S = static_cast<size_t>(request.batch.num_sequences());
        const size_t listed = S * static_cast<size_t>(request.top_k);
        RankResult result{std::vector<int32_t>(S), std::vector<int32_t>(listed), std::vector<float>(listed)};
        const RankInputs inputs{
            request.batch.view(),           request.states.empty() ? nullptr : request.states.data(),
            request.targets.data(),         request.exclude_ids.data(),
            request.exclude_offsets.data(), request.top_k};
        shared->recommender->rank(context, arena, inputs, result.ranks.data(), result.top_k_ids.data(),
                                  result.top_k_scores.data(), shared->gpu.get());
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
