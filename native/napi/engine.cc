#include "napi/engine.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "model/inference.h"
#include "napi/importance.h"
#include "napi/recommender.h"
#include "napi/text_encoder.h"
#include "napi/trainer.h"
#include "napi/transformer.h"
#include "ops/gemm.h"
#include "ops/pca.h"
#include "ops/sparse_svd.h"
#include "retrieve/item_neighbors.h"
#include "train/classifier.h"
#include "train/layer_weights.h"

namespace limbeck {

namespace {

constexpr int64_t kMaxThreads = 256;

struct PcaResult {
  std::vector<float> mean, components, explained_variance;
};

/// Rows by √variance: the transformed columns then have variance 1. A row without variance becomes zeros.
void whiten(PcaResult& pca, int64_t columns) {
  for (size_t i = 0; i < pca.explained_variance.size(); ++i) {
    const float variance = pca.explained_variance[i];
    float* row = pca.components.data() + static_cast<int64_t>(i) * columns;
    for (int64_t c = 0; c < columns; ++c) row[c] = variance > 0 ? row[c] / std::sqrt(variance) : 0.0f;
  }
}

std::vector<FloatInput> read_tensors(const Fields& fields, const char* key, int64_t count) {
  const Napi::Array array = to_array(fields.get(key), fields.name(key));
  std::vector<FloatInput> tensors;
  for (uint32_t i = 0; i < array.Length(); ++i) {
    tensors.emplace_back(array.Get(i), fields.name(key) + "[" + std::to_string(i) + "]");
    if (count < 0) count = tensors.front().count();
    check_count("each entry of " + fields.name(key), tensors.back().count(), count);
  }
  if (tensors.empty()) invalid("Expected " + fields.name(key) + " to have at least one entry.");
  return tensors;
}

std::vector<const float*> pointers(const std::vector<FloatInput>& tensors) {
  std::vector<const float*> result;
  for (const FloatInput& tensor : tensors) result.push_back(tensor.data());
  return result;
}

}  // namespace

void Engine::define(Napi::Env env) {
  JsClass::define(env, "Engine",
                  {
                      getter<&Engine::threads>("threads"),
                      getter<&Engine::precision>("precision"),
                      getter<&Engine::device>("device"),
                      getter<&Engine::device_name>("deviceName"),
                      method<&Engine::create_transformer>("createTransformer"),
                      method<&Engine::create_trainer>("createTrainer"),
                      method<&Engine::create_importance>("createImportance"),
                      method<&Engine::create_recommender>("createRecommender"),
                      method<&Engine::create_text_encoder>("createTextEncoder"),
                      promise_method<&Engine::pca>("pca"),
                      promise_method<&Engine::pca_transform>("pcaTransform"),
                      promise_method<&Engine::residual_axes>("residualAxes"),
                      promise_method<&Engine::sparse_svd>("sparseSvd"),
                      promise_method<&Engine::weighted_sum>("weightedSum"),
                      promise_method<&Engine::learn_layer_weights>("learnLayerWeights"),
                      promise_method<&Engine::fit_classifier>("fitClassifier"),
                      promise_method<&Engine::class_probabilities>("classProbabilities"),
                      promise_method<&Engine::item_neighbors>("itemNeighbors"),
                      promise_method<&Engine::rank_by_neighbors>("rankByNeighbors"),
                      method<&Engine::dispose>("dispose"),
                  });
}

Napi::Object Engine::create(Napi::Env env, const Napi::Value& options) {
  const Fields fields(options, "options");
  const int64_t threads = fields.integer("threads", 0, kMaxThreads);
  Precision precision = Precision::kFloat32, gpu_precision = Precision::kFloat32;
  if (!fields.get("precision").IsUndefined()) {
    enum class Choice { kFloat32, kBFloat16, kFastest };
    const Choice choice = fields.choice<Choice>(
        "precision", {{"float32", Choice::kFloat32}, {"bfloat16", Choice::kBFloat16}, {"fastest", Choice::kFastest}});
    precision = choice == Choice::kFastest    ? fastest_precision()
                : choice == Choice::kBFloat16 ? Precision::kBFloat16
                                              : Precision::kFloat32;
    if (choice != Choice::kFloat32) gpu_precision = Precision::kBFloat16;
  }
  std::shared_ptr<CudaEngine> gpu;
  const Napi::Value cuda = fields.get("cuda");
  if (!cuda.IsUndefined()) {
    const Fields cuda_fields(cuda, "options.cuda");
    const int64_t device = cuda_fields.integer("device", 0, kMaxInt32);
    gpu = CudaEngine::create(to_string(cuda_fields.get("library"), cuda_fields.name("library")),
                             static_cast<int>(device), gpu_precision,
                             !cuda_fields.get("tuneProducts").IsUndefined() && cuda_fields.boolean("tuneProducts"));
  }
  const Napi::Object object = construct(env);
  Engine::Unwrap(object)->queue_ = TaskQueue::start(env, static_cast<int>(threads), precision, std::move(gpu));
  return object;
}

const std::shared_ptr<TaskQueue>& Engine::queue() const {
  if (queue_ == nullptr) throw Error("ERR_DISPOSED", "This engine was never started: use createEngine().");
  queue_->check_running();
  return queue_;
}

Napi::Value Engine::threads(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), queue()->num_threads());
}

Napi::Value Engine::precision(const Napi::CallbackInfo& info) {
  return Napi::String::New(info.Env(), queue()->precision() == Precision::kBFloat16 ? "bfloat16" : "float32");
}

Napi::Value Engine::device(const Napi::CallbackInfo& info) {
  return Napi::String::New(info.Env(), queue()->gpu() != nullptr ? "cuda" : "cpu");
}

Napi::Value Engine::device_name(const Napi::CallbackInfo& info) {
  const std::shared_ptr<CudaEngine>& gpu = queue()->gpu();
  return Napi::String::New(info.Env(), gpu != nullptr ? gpu->device().name : std::string());
}

Napi::Value Engine::create_transformer(const Napi::CallbackInfo& info) {
  return TransformerObject::create(info.Env(), queue(), info[0]);
}

Napi::Value Engine::create_trainer(const Napi::CallbackInfo& info) {
  return TrainerObject::create(info.Env(), queue(), info[0], info[1]);
}

Napi::Value Engine::create_importance(const Napi::CallbackInfo& info) {
  return ImportanceObject::create(info.Env(), queue(), info[0]);
}

Napi::Value Engine::create_recommender(const Napi::CallbackInfo& info) {
  return RecommenderObject::create(info.Env(), queue(), info[0], info[1]);
}

Napi::Value Engine::create_text_encoder(const Napi::CallbackInfo& info) {
  return TextEncoderObject::create(info.Env(), queue(), info[0]);
}

Napi::Value Engine::pca(const Napi::CallbackInfo& info) {
  const std::shared_ptr<TaskQueue> queue = this->queue();
  const std::shared_ptr<CudaEngine> gpu = queue->gpu();
  const Fields fields(info[0], "");
  const int64_t rows = fields.integer("rows", 1, kMaxInt32), columns = fields.integer("columns", 1, kMaxInt32);
  const int64_t components = fields.integer("components", 1, std::min(rows, columns));
  const uint64_t seed = static_cast<uint64_t>(fields.integer("seed", 0, kMaxSafeInteger));
  const bool whitens = fields.boolean("whiten");
  FloatInput x(fields.get("x"), "x", rows * columns);
  return queue->submit(
      {},
      [=, x = std::move(x)](Context& context, Arena&) {
        PcaResult result{std::vector<float>(static_cast<size_t>(columns)),
                         std::vector<float>(static_cast<size_t>(components * columns)),
                         std::vector<float>(static_cast<size_t>(components))};
        if (gpu != nullptr) {
          gpu->pca(x.data(), rows, columns, components, seed, result.mean.data(), result.components.data(),
                   result.explained_variance.data());
        } else {
          limbeck::pca(context, x.data(), rows, columns, components, seed, result.mean.data(), result.components.data(),
                       result.explained_variance.data());
        }
        if (whitens) whiten(result, columns);
        return result;
      },
      [](Napi::Env env, const PcaResult& result) -> Napi::Value {
        Napi::Object object = Napi::Object::New(env);
        object.Set("mean", new_float32_array(env, result.mean));
        object.Set("components", new_float32_array(env, result.components));
        object.Set("explainedVariance", new_float32_array(env, result.explained_variance));
        return object;
      });
}

Napi::Value Engine::pca_transform(const Napi::CallbackInfo& info) {
  const std::shared_ptr<TaskQueue> queue = this->queue();
  const std::shared_ptr<CudaEngine> gpu = queue->gpu();
  const Fields fields(info[0], "");
  const int64_t rows = fields.integer("rows", 1, kMaxInt32), columns = fields.integer("columns", 1, kMaxInt32);
  FloatInput x(fields.get("x"), "x", rows * columns);
  FloatInput mean(fields.get("mean"), "mean", columns);
  FloatInput components(fields.get("components"), "components");
  const int64_t num_components = components.count() / columns;
  if (num_components < 1 || num_components * columns != components.count()) {
    throw Error("ERR_SHAPE_MISMATCH", "Expected components to be rows of " + std::to_string(columns) +
                                          " numbers, got " + std::to_string(components.count()) + " numbers.");
  }
  check_memory(rows * num_components * static_cast<int64_t>(2 * sizeof(float)));
  return queue->submit(
      {},
      [=, x = std::move(x), mean = std::move(mean), components = std::move(components)](Context& context, Arena&) {
        std::vector<float> y(static_cast<size_t>(rows * num_components));
        if (gpu != nullptr) {
          gpu->pca_transform(x.data(), mean.data(), components.data(), y.data(), rows, columns, num_components);
        } else {
          limbeck::pca_transform(context, x.data(), mean.data(), components.data(), y.data(), rows, columns,
                                 num_components);
        }
        return y;
      },
      [](Napi::Env env, const std::vector<float>& y) { return new_float32_array(env, y); });
}

Napi::Value Engine::residual_axes(const Napi::CallbackInfo& info) {
  const Fields fields(info[0], "");
  const int64_t rows = fields.integer("rows", 1, kMaxInt32), columns = fields.integer("columns", 1, kMaxInt32);
  const int64_t axes = fields.integer("axes", 1, std::min(rows, columns));
  const uint64_t seed = static_cast<uint64_t>(fields.integer("seed", 0, kMaxSafeInteger));
  const bool subtracts_mean = fields.boolean("subtractsMean");
  FloatInput x(fields.get("x"), "x", rows * columns);
  return queue()->submit(
      {},
      [=, x = std::move(x)](Context& context, Arena&) {
        std::vector<float> result(static_cast<size_t>(axes * columns));
        limbeck::residual_axes(context, x.data(), subtracts_mean, rows, columns, axes, seed, result.data());
        return result;
      },
      [](Napi::Env env, const std::vector<float>& result) -> Napi::Value { return new_float32_array(env, result); });
}

Napi::Value Engine::sparse_svd(const Napi::CallbackInfo& info) {
  struct Result {
    std::vector<float> singular_values, components, projected;
  };
  const std::shared_ptr<TaskQueue> queue = this->queue();
  const Fields fields(info[0], "");
  std::vector<int32_t> row_offsets = fields.int32s("rowOffsets"), entries = fields.int32s("columns");
  if (row_offsets.size() < 2) invalid("Expected rowOffsets to have at least 2 elements.");
  FloatInput values(fields.get("values"), "values", static_cast<int64_t>(entries.size()));
  check_count("columns", static_cast<int64_t>(entries.size()), row_offsets.back());
  const int64_t rows = static_cast<int64_t>(row_offsets.size()) - 1;
  const int64_t columns = fields.integer("numColumns", 1, kMaxInt32);
  const int64_t components = fields.integer("components", 1, std::min(rows, columns));
  const uint64_t seed = static_cast<uint64_t>(fields.integer("seed", 0, kMaxSafeInteger));
  // Basis and products in double, results in float.
  check_memory((rows + columns) * (components + 10) * static_cast<int64_t>(sizeof(double) + sizeof(float)));
  return queue->submit(
      {},
      [=, row_offsets = std::move(row_offsets), entries = std::move(entries), values = std::move(values)](
          Context& context, Arena&) {
        Result result{std::vector<float>(static_cast<size_t>(components)),
                      std::vector<float>(static_cast<size_t>(components * columns)),
                      std::vector<float>(static_cast<size_t>(rows * components))};
        limbeck::sparse_svd(context, {row_offsets.data(), entries.data(), values.data(), rows, columns}, components,
                            seed, result.singular_values.data(), result.components.data(), result.projected.data());
        return result;
      },
      [](Napi::Env env, const Result& result) -> Napi::Value {
        Napi::Object object = Napi::Object::New(env);
        object.Set("singularValues", new_float32_array(env, result.singular_values));
        object.Set("components", new_float32_array(env, result.components));
        object.Set("projected", new_float32_array(env, result.projected));
        return object;
      });
}

Napi::Value Engine::weighted_sum(const Napi::CallbackInfo& info) {
  const std::shared_ptr<TaskQueue> queue = this->queue();
  const Fields fields(info[0], "");
  std::vector<FloatInput> tensors = read_tensors(fields, "tensors", -1);
  const Napi::Array numbers = to_array(fields.get("weights"), "weights");
  check_count("weights", numbers.Length(), static_cast<int64_t>(tensors.size()));
  std::vector<float> weights;
  for (uint32_t i = 0; i < tensors.size(); ++i) {
    weights.push_back(to_float(numbers.Get(i), "weights[" + std::to_string(i) + "]"));
  }
  return queue->submit(
      {},
      [tensors = std::move(tensors), weights = std::move(weights)](Context& context, Arena&) {
        std::vector<float> y(static_cast<size_t>(tensors.front().count()));
        limbeck::weighted_sum(context, pointers(tensors), weights, tensors.front().count(), y.data());
        return y;
      },
      [](Napi::Env env, const std::vector<float>& y) { return new_float32_array(env, y); });
}

Napi::Value Engine::learn_layer_weights(const Napi::CallbackInfo& info) {
  const std::shared_ptr<TaskQueue> queue = this->queue();
  const Fields fields(info[0], "");
  const int64_t rows = fields.integer("rows", 1, kMaxInt32), columns = fields.integer("columns", 1, kMaxInt32);
  std::vector<FloatInput> layers = read_tensors(fields, "layers", rows * columns);
  std::vector<int32_t> queries = fields.int32s("queries"), targets = fields.int32s("targets");
  check_count("targets", static_cast<int64_t>(targets.size()), static_cast<int64_t>(queries.size()));
  const int64_t steps = fields.integer("steps", 1, kMaxInt32);
  const uint64_t seed = static_cast<uint64_t>(fields.integer("seed", 0, kMaxSafeInteger));
  return queue->submit(
      {},
      [=, layers = std::move(layers), queries = std::move(queries), targets = std::move(targets)](Context& context,
                                                                                                  Arena& arena) {
        return limbeck::learn_layer_weights(context, arena,
                                            {pointers(layers), rows, columns, queries.data(), targets.data(),
                                             static_cast<int64_t>(queries.size()), steps, seed});
      },
      [](Napi::Env env, const LayerWeightsResult& result) -> Napi::Value {
        Napi::Object object = Napi::Object::New(env);
        object.Set("weights", new_float32_array(env, result.weights));
        object.Set("firstLoss", result.first_loss);
        object.Set("lastLoss", result.last_loss);
        return object;
      });
}

Napi::Value Engine::fit_classifier(const Napi::CallbackInfo& info) {
  const std::shared_ptr<TaskQueue> queue = this->queue();
  const Fields fields(info[0], "");
  ClassifierInputs inputs{};
  inputs.num_rows = fields.integer("rows", 1, kMaxInt32);
  inputs.num_columns = fields.integer("columns", 1, kMaxInt32);
  FloatInput x(fields.get("x"), fields.name("x"), inputs.num_rows * inputs.num_columns);
  std::vector<int32_t> labels = fields.int32s("labels");
  check_count("labels", static_cast<int64_t>(labels.size()), inputs.num_rows);
  inputs.num_classes = fields.integer("classes", 2, kMaxInt32);
  inputs.learning_rate = fields.number("learningRate");
  inputs.l2 = fields.number("l2");
  inputs.batch_size = fields.integer("batchSize", 1, kMaxInt32);
  inputs.max_epochs = fields.integer("maxEpochs", 1, kMaxInt32);
  inputs.patience = fields.integer("patience", 1, kMaxInt32);
  inputs.held_out = fields.number("heldOut");
  inputs.seed = static_cast<uint64_t>(fields.integer("seed", 0, kMaxSafeInteger));
  return queue->submit(
      {},
      [inputs, x = std::move(x), labels = std::move(labels)](Context& context, Arena& arena) mutable {
        inputs.x = x.data();
        inputs.labels = labels.data();
        return limbeck::fit_classifier(context, arena, inputs);
      },
      [](Napi::Env env, const ClassifierResult& result) -> Napi::Value {
        Napi::Object object = Napi::Object::New(env);
        object.Set("weight", new_float32_array(env, result.weight));
        object.Set("bias", new_float32_array(env, result.bias));
        object.Set("trainLoss", result.train_losses[static_cast<size_t>(result.best_epoch)]);
        if (!result.held_out_losses.empty()) {
          object.Set("heldOutLoss", result.held_out_losses[static_cast<size_t>(result.best_epoch)]);
        }
        object.Set("epochs", static_cast<double>(result.train_losses.size()));
        object.Set("bestEpoch", static_cast<double>(result.best_epoch + 1));
        object.Set("heldOutRows", new_int32_array(env, result.held_out_rows));
        return object;
      });
}

Napi::Value Engine::class_probabilities(const Napi::CallbackInfo& info) {
  const std::shared_ptr<TaskQueue> queue = this->queue();
  const Fields fields(info[0], "");
  const int64_t rows = fields.integer("rows", 1, kMaxInt32), columns = fields.integer("columns", 1, kMaxInt32);
  const int64_t classes = fields.integer("classes", 1, kMaxInt32);
  FloatInput x(fields.get("x"), fields.name("x"), rows * columns);
  FloatInput weight(fields.get("weight"), fields.name("weight"), classes * columns);
  FloatInput bias(fields.get("bias"), fields.name("bias"), classes);
  return queue->submit(
      {},
      [=, x = std::move(x), weight = std::move(weight), bias = std::move(bias)](Context& context, Arena&) {
        std::vector<float> probabilities(static_cast<size_t>(rows * classes));
        limbeck::class_probabilities(context, x.data(), weight.data(), bias.data(), probabilities.data(), rows, columns,
                                     classes);
        return probabilities;
      },
      [](Napi::Env env, const std::vector<float>& probabilities) -> Napi::Value {
        return new_float32_array(env, probabilities);
      });
}

Napi::Value Engine::item_neighbors(const Napi::CallbackInfo& info) {
  const std::shared_ptr<TaskQueue> queue = this->queue();
  const Fields fields(info[0], "");
  const int64_t num_items = fields.integer("numItems", 1, kMaxInt32);
  const int64_t begin = fields.integer("begin", 0, num_items), end = fields.integer("end", begin, num_items);
  std::vector<int32_t> sequences = fields.int32s("sequences"), offsets = fields.int32s("sequenceOffsets");
  if (offsets.empty()) invalid("Expected sequenceOffsets to have at least one entry.");
  return queue->submit(
      {},
      [=, sequences = std::move(sequences), offsets = std::move(offsets)](Context& context, Arena&) {
        const Histories histories{sequences.data(), offsets.data(), static_cast<int64_t>(offsets.size()) - 1};
        ItemNeighbors rows =
            limbeck::item_neighbors(context, histories, static_cast<int64_t>(sequences.size()), num_items, begin, end);
        if (rows.offsets.back() > kMaxInt32) {
          throw Error("ERR_OUT_OF_MEMORY", "Expected at most 2^31 - 1 pairs of neighbours a call, got " +
                                               std::to_string(rows.offsets.back()) + ": ask for fewer rows.");
        }
        return rows;
      },
      [](Napi::Env env, const ItemNeighbors& rows) -> Napi::Value {
        Napi::Object object = Napi::Object::New(env);
        object.Set("offsets", new_int32_array(env, {rows.offsets.begin(), rows.offsets.end()}));
        object.Set("items", new_int32_array(env, rows.items));
        object.Set("cosines", new_float32_array(env, rows.cosines));
        return object;
      });
}

Napi::Value Engine::rank_by_neighbors(const Napi::CallbackInfo& info) {
  struct Request {
    std::vector<int32_t> offsets, items, input_ids, sequence_offsets, targets, exclude_ids, exclude_offsets;
  };
  struct Result {
    std::vector<int32_t> ranks, lists;
  };
  const std::shared_ptr<TaskQueue> queue = this->queue();
  const Fields fields(info[0], "");
  const int64_t num_items = fields.integer("numItems", 1, kMaxInt32);
  Request request{fields.int32s("offsets"),         fields.int32s("items"),   fields.int32s("inputIds"),
                  fields.int32s("sequenceOffsets"), fields.int32s("targets"), fields.int32s("excludeIds"),
                  fields.int32s("excludeOffsets")};
  FloatInput cosines(fields.get("cosines"), "cosines", static_cast<int64_t>(request.items.size()));
  const int64_t num_cases = static_cast<int64_t>(request.targets.size());
  check_count("offsets", static_cast<int64_t>(request.offsets.size()), num_items + 1);
  check_count("sequenceOffsets", static_cast<int64_t>(request.sequence_offsets.size()), num_cases + 1);
  check_count("excludeOffsets", static_cast<int64_t>(request.exclude_offsets.size()), num_cases + 1);
  const float decay = fields.number("decay", FLT_MIN, 1.0f);
  const int64_t top_k = fields.integer("topK", 0, num_items);
  return queue->submit(
      {},
      [=, request = std::move(request), cosines = std::move(cosines)](Context& context, Arena&) {
        const ItemNeighborsView neighbors{request.offsets.data(), request.items.data(), cosines.data(),
                                          static_cast<int64_t>(request.items.size()), num_items};
        const NeighborRankInputs inputs{{request.input_ids.data(), request.sequence_offsets.data(), num_cases},
                                        static_cast<int64_t>(request.input_ids.size()),
                                        request.targets.data(),
                                        request.exclude_ids.data(),
                                        request.exclude_offsets.data(),
                                        static_cast<int64_t>(request.exclude_ids.size()),
                                        decay,
                                        top_k};
        Result result{std::vector<int32_t>(request.targets.size()),
                      std::vector<int32_t>(static_cast<size_t>(num_cases * top_k))};
        limbeck::rank_by_neighbors(context, neighbors, inputs, result.ranks.data(), result.lists.data());
        return result;
      },
      [](Napi::Env env, const Result& result) -> Napi::Value {
        Napi::Object object = Napi::Object::New(env);
        object.Set("ranks", new_int32_array(env, result.ranks));
        object.Set("topK", new_int32_array(env, result.lists));
        return object;
      });
}

Napi::Value Engine::dispose(const Napi::CallbackInfo& info) {
  if (queue_ != nullptr) queue_->stop();
  return info.Env().Undefined();
}

}  // namespace limbeck
