#include "cuda/recommender.h"

#include <algorithm>
#include <limits>
#include <string>

#include "core/error.h"
#include "cuda/elementwise.h"
#include "cuda/launch.h"

namespace limbeck::cuda {

namespace {

constexpr int64_t kMaxK = 1024;  // of top_k_items
constexpr int64_t kMinLength = 16, kMinK = 16;

/// A plan serves all requests up to the next power of two.
int64_t bucket(int64_t value, int64_t least, int64_t most) {
  int64_t size = least;
  while (size < value) size *= 2;
  return std::min(size, most);
}

template <typename T>
T* allocate_pinned(int64_t count) {
  T* pointer = nullptr;
  check_cuda(cudaHostAlloc(&pointer, static_cast<size_t>(count) * sizeof(T), cudaHostAllocDefault), "cudaHostAlloc");
  return pointer;
}

}  // namespace

template <typename T>
TransformerRecommender<T>::Plan::~Plan() {
  if (host_inputs != nullptr) cudaFreeHost(host_inputs);
  if (host_indices != nullptr) cudaFreeHost(host_indices);
  if (host_scores != nullptr) cudaFreeHost(host_scores);
}

template <typename T>
TransformerRecommender<T>::TransformerRecommender(Transformer<T>& model) : model_(model) {
  const TransformerConfig& config = model.config;
  if (!config.causal || config.masked_lm_head || config.type_vocab_size > 0) {
    throw Error("ERR_INVALID_ARGUMENT", "Only a causal sequence model without token types recommends.");
  }
  const int64_t count = model.padded_vocab_size() * config.hidden_size;
  model.engine.reserve(memory_, [&](DeviceArena& memory) { items_ = memory.allocate<T>(count); });
  model.engine.run([&](Context& context) {
    copy_on_device(context, items_, model.output_table(model.word_table(context)).weight, count);
  });
}

template <typename T>
typename TransformerRecommender<T>::Plan& TransformerRecommender<T>::plan_for(int64_t length, int64_t k) {
  const int64_t most_items = std::min(kMaxK, model_.config.vocab_size);
  const std::pair<int64_t, int64_t> key(
      bucket(length, kMinLength, std::max(length, model_.config.max_position_embeddings)),
      bucket(k, std::min(kMinK, most_items), most_items));
  std::unique_ptr<Plan>& plan = plans_[key];
  if (plan == nullptr) {
    auto made = std::make_unique<Plan>();
    made->length = key.first;
    made->k = key.second;
    make(*made);
    plan = std::move(made);
  }
  return *plan;
}

template <typename T>
void TransformerRecommender<T>::make(Plan& plan) {
  const TransformerConfig& config = model_.config;
  const int64_t length = plan.length, d = config.hidden_size;
  const int64_t num_inputs = 2 * length + 3;
  plan.host_inputs = allocate_pinned<int32_t>(num_inputs);
  plan.host_indices = allocate_pinned<int32_t>(plan.k);
  plan.host_scores = allocate_pinned<float>(plan.k);
  std::fill(plan.host_inputs, plan.host_inputs + num_inputs, 0);
  plan.host_inputs[2 * length + 1] = 1;  // one item
  Engine& engine = model_.engine;
  engine.reserve(plan.memory, [&](DeviceArena& memory) {
    Context context = engine.context(memory, memory.is_dry());
    int32_t* inputs = memory.allocate<int32_t>(num_inputs);
    const DeviceBatch batch(length, inputs, inputs + length, inputs + 2 * length);
    const int32_t* last_row = inputs + 2 * length + 2;
    T* query = memory.allocate<T>(d);
    int32_t* indices = memory.allocate<int32_t>(plan.k);
    float* scores = memory.allocate<float>(plan.k);
    const auto body = [&] {
      const DeviceArena::Scope scope(memory);
      copy_to_device(context, inputs, plan.host_inputs, num_inputs);
      const Activations<T> activations = model_.forward(context, batch, {});
      gather_rows<T>(context, activations.hidden[static_cast<size_t>(config.num_hidden_layers)], last_row, query, 1, d);
      top_k_items<T>(context, query, items_, nullptr, 1, config.vocab_size, d, plan.k, indices, scores);
      copy_to_host(context, plan.host_indices, indices, plan.k);
      copy_to_host(context, plan.host_scores, scores, plan.k);
    };
    body();
    if (context.is_dry) return;
    engine.synchronize();
    plan.graph.capture(context, body);
  });
}

template <typename T>
void TransformerRecommender<T>::recommend(const ApiRecommend& request) {
  const TransformerConfig& config = model_.config;
  // What is left out is asked for as well, and dropped here.
  const int64_t wanted = std::min(request.k + request.num_excluded, config.vocab_size);
  if (request.length < 1 || request.length > config.max_position_embeddings || wanted > kMaxK) {
    throw Error("ERR_INVALID_ARGUMENT", "Expected a history of 1 to " + std::to_string(config.max_position_embeddings) +
                                            " items and at most " + std::to_string(kMaxK) +
                                            " answers and excluded items together, got " +
                                            std::to_string(request.length) + " and " + std::to_string(wanted) + ".");
  }
  model_.engine.make_current();
  Plan& plan = plan_for(request.length, wanted);
  std::copy(request.history, request.history + request.length, plan.host_inputs);
  int32_t* positions = plan.host_inputs + plan.length;
  for (int64_t i = 0; i < request.length; ++i) {
    positions[i] = static_cast<int32_t>(i + config.position_offset);
  }
  int32_t* offsets = positions + plan.length;
  offsets[0] = 0;
  offsets[1] = static_cast<int32_t>(request.length);
  offsets[2] = static_cast<int32_t>(request.length - 1);  // the last row
  Context context = model_.engine.context();
  plan.graph.run(context);
  model_.engine.synchronize();

  int64_t count = 0;
  const int32_t* excluded_end = request.excluded + request.num_excluded;
  for (int64_t i = 0; i < plan.k && count < request.k; ++i) {
    const int32_t item = plan.host_indices[i];
    if (item < 0 || std::find(request.excluded, excluded_end, item) != excluded_end) continue;
    request.indices[count] = item;
    request.scores[count++] = plan.host_scores[i];
  }
  *request.num_results = count;
}

template class TransformerRecommender<float>;
template class TransformerRecommender<bf16>;

}  // namespace limbeck::cuda
