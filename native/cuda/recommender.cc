#include "cuda/recommender.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>

#include "core/error.h"
#include "cuda/elementwise.h"
#include "cuda/launch.h"
#include "cuda/rank_items.h"
#include "cuda/top_k_items.h"
#include "model/batch.h"

namespace limbeck::cuda {

namespace {

constexpr int64_t kMaxK = 1024;                      // of top_k_items
constexpr int64_t kMinQuantised = int64_t{1} << 22;  // elements of the table
constexpr int64_t kMinLength = 16, kMinK = 16;
constexpr int64_t kPassTokens = 32768;  // of histories that are encoded together

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

// What no kernel writes as an index, or as a score: of NaN it writes one alone.
constexpr int32_t kNoIndex = std::numeric_limits<int32_t>::min();
constexpr uint32_t kNoScoreBits = 0x7FE5A5A5u;

void set_unwritten(int32_t* indices, float* scores, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    indices[i] = kNoIndex;
    std::memcpy(scores + i, &kNoScoreBits, sizeof(kNoScoreBits));
  }
  std::atomic_thread_fence(std::memory_order_seq_cst);
}

bool are_written(const int32_t* indices, const float* scores, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const float score = static_cast<const volatile float*>(scores)[i];
    uint32_t bits;
    std::memcpy(&bits, &score, sizeof(bits));
    if (bits == kNoScoreBits || static_cast<const volatile int32_t*>(indices)[i] == kNoIndex) return false;
  }
  std::atomic_thread_fence(std::memory_order_acquire);
  return true;
}

/// Returns when the answers are there, before the stream tells that its work is done: that takes longer. Answers are
/// the last that a graph writes, when it has read all its inputs.
void wait_for_answers(Engine& engine, const int32_t* indices, const float* scores, int64_t count) {
  constexpr int kPolls = 1024;
  for (;;) {
    for (int i = 0; i < kPolls; ++i) {
      if (are_written(indices, scores, count)) return;
    }
    const cudaError_t status = cudaStreamQuery(engine.main.stream);
    if (status == cudaErrorNotReady) continue;
    check_cuda(status, "the work of the GPU");
    return;
  }
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
  model.engine.make_current();
  const bool has_encoder = describe_encoder();
  model.engine.reserve(memory_, [&](DeviceArena& memory) {
    items_ = memory.allocate<T>(count);
    if (has_encoder) packed_encoder_ = memory.allocate<char>(packed_encoder_bytes(encoder_));
  });
  if (has_encoder && config.tie_word_embeddings) encoder_.words = reinterpret_cast<const bf16*>(items_);
  model.engine.run([&](Context& context) {
    copy_on_device(context, items_, model.output_table(model.word_table(context)).weight, count);
    if (has_encoder) pack_encoder(context, encoder_, packed_encoder_);
  });
  quantise_items();
}

template <typename T>
void TransformerRecommender<T>::quantise_items() {
  const int64_t items = model_.config.vocab_size, d = model_.config.hidden_size;
  if (items * d < kMinQuantised || d > QuantisedItems::kMaxWidth || d * sizeof(T) % 16 != 0) return;
  int8_t* levels = nullptr;
  float* scales = nullptr;
  model_.engine.reserve(quantised_memory_, [&](DeviceArena& memory) {
    levels = memory.allocate<int8_t>(items * QuantisedItems::row_bytes(d));
    scales = memory.allocate<float>(divide_up(items, 4) * 4);
  });
  model_.engine.run(
      [&](Context& context) { quantised_ = cuda::quantise_items<T>(context, items_, items, d, levels, scales); });
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
bool TransformerRecommender<T>::describe_encoder() {
  const TransformerConfig& config = model_.config;
  if constexpr (std::is_same_v<T, bf16>) {
    const bool has_words = config.tie_word_embeddings || config.item_feature_size == 0;
    if (!has_words || !can_encode_sequence(config, 1, encoder_shared_bytes())) return false;
    const auto int_of = [](int64_t value) { return static_cast<int>(value); };
    const bool norm_after = config.norm_placement == NormPlacement::kAfter;
    encoder_ = {int_of(config.num_hidden_layers),
                int_of(config.hidden_size),
                int_of(config.num_attention_heads),
                int_of(config.head_dim),
                int_of(config.intermediate_size),
                config.norm_eps,
                norm_after,
                config.hidden_act == Activation::kGeluErf,
                config.tie_word_embeddings ? nullptr : model_.compute("embeddings.word"),
                model_.compute("embeddings.position"),
                model_.master(norm_after ? "embeddings.norm.weight" : "final_norm.weight"),
                model_.master(norm_after ? "embeddings.norm.bias" : "final_norm.bias"),
                {}};
    for (int64_t l = 0; l < config.num_hidden_layers; ++l) {
      const std::string prefix = "layers." + std::to_string(l) + ".";
      const auto master = [&](const char* name) { return model_.master(prefix + name); };
      const auto compute = [&](const char* name) { return model_.compute(prefix + name); };
      encoder_.layers[l] = {master("attention_norm.weight"),    master("attention_norm.bias"),
                            master("mlp_norm.weight"),          master("mlp_norm.bias"),
                            compute("attention.qkv.weight"),    compute("attention.qkv.bias"),
                            compute("attention.output.weight"), compute("attention.output.bias"),
                            compute("mlp.input.weight"),        compute("mlp.input.bias"),
                            compute("mlp.output.weight"),       compute("mlp.output.bias")};
    }
    return true;
  }
  return false;
}

template <typename T>
void TransformerRecommender<T>::make(Plan& plan) {
  const TransformerConfig& config = model_.config;
  const int64_t length = plan.length, d = config.hidden_size;
  const int64_t num_inputs = 2 * length + 4 + kMaxK;
  plan.host_inputs = allocate_pinned<int32_t>(num_inputs);
  plan.host_indices = allocate_pinned<int32_t>(plan.k);
  plan.host_scores = allocate_pinned<float>(plan.k);
  std::fill(plan.host_inputs, plan.host_inputs + num_inputs, 0);
  plan.host_inputs[2 * length + 1] = 1;  // one item
  Engine& engine = model_.engine;
  const bool has_encoder = packed_encoder_ != nullptr && can_encode_sequence(config, length, encoder_shared_bytes());
  // A few blocks encode while the rest of the device has nothing to do.
  const bool is_quantised = quantised_.levels != nullptr && plan.k <= kMaxQuantisedK;
  const int64_t table_bytes =
      config.vocab_size * (is_quantised ? QuantisedItems::row_bytes(d) : d * static_cast<int64_t>(sizeof(T)));
  const FetchedBytes fetched{is_quantised ? static_cast<const void*>(quantised_.levels) : items_,
                             std::min(table_bytes, static_cast<int64_t>(fetchable_bytes()))};
  engine.reserve(plan.memory, [&](DeviceArena& memory) {
    Context context = engine.context(memory, memory.is_dry());
    T* query = memory.allocate<T>(d);
    unsigned* num_finished = memory.allocate<unsigned>(1);
    set_zero(context, num_finished, 1);
    int32_t* inputs = memory.allocate<int32_t>(num_inputs);
    int32_t* num_excluded = inputs + 2 * length + 3;
    const DeviceBatch batch(length, inputs, inputs + length, inputs + 2 * length);
    const auto body = [&] {
      const DeviceArena::Scope scope(memory);
      // Kernels read and write the host's few numbers themselves: a copy would take longer.
      if constexpr (std::is_same_v<T, bf16>) {
        if (has_encoder) {
          encode_sequence(context, encoder_, packed_encoder_, length, plan.host_inputs + 2 * length + 1,
                          plan.host_inputs, query,
                          {plan.host_inputs + 2 * length + 3, num_excluded, static_cast<int>(1 + kMaxK)}, fetched);
        }
      }
      if (!has_encoder) {
        copy_pinned_to_device(context, inputs, plan.host_inputs, num_inputs);
        const Activations<T> activations = model_.forward(context, batch, {});
        gather_rows<T>(context, activations.hidden[static_cast<size_t>(config.num_hidden_layers)],
                       inputs + 2 * length + 2, query, 1, d);
      }
      top_k_items<T>(context, query, items_, nullptr, 1, config.vocab_size, d, plan.k, plan.host_indices,
                     plan.host_scores, 0, {num_excluded + 1, num_excluded, num_finished}, quantised_);
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
  const int64_t k = std::min(request.k, config.vocab_size);
  if (request.length < 1 || request.length > config.max_position_embeddings || k > kMaxK ||
      request.num_excluded > kMaxK) {
    throw Error("ERR_INVALID_ARGUMENT", "Expected a history of 1 to " + std::to_string(config.max_position_embeddings) +
                                            " items, at most " + std::to_string(kMaxK) +
                                            " answers and as many excluded " + "items, got " +
                                            std::to_string(request.length) + ", " + std::to_string(k) + " and " +
                                            std::to_string(request.num_excluded) + ".");
  }
  model_.engine.make_current();
  Plan& plan = plan_for(request.length, k);
  std::copy(request.history, request.history + request.length, plan.host_inputs);
  int32_t* positions = plan.host_inputs + plan.length;
  int32_t* offsets = positions + plan.length;
  offsets[0] = 0;
  offsets[1] = static_cast<int32_t>(request.length);
  fill_position_ids(config, {plan.host_inputs, offsets, nullptr, request.length, 1}, positions);
  offsets[2] = static_cast<int32_t>(request.length - 1);  // the last row
  offsets[3] = static_cast<int32_t>(request.num_excluded);
  std::copy(request.excluded, request.excluded + request.num_excluded, offsets + 4);
  Context context = model_.engine.context();
  set_unwritten(plan.host_indices, plan.host_scores, plan.k);
  plan.graph.run(context);
  wait_for_answers(model_.engine, plan.host_indices, plan.host_scores, plan.k);

  int64_t count = 0;
  for (; count < k && plan.host_indices[count] >= 0; ++count) {
    request.indices[count] = plan.host_indices[count];
    request.scores[count] = plan.host_scores[count];
  }
  *request.num_results = count;
}

template <typename T>
void TransformerRecommender<T>::encode_histories(Context& context, const ApiBatch& batch, T* queries) {
  const TransformerConfig& config = model_.config;
  const int64_t d = config.hidden_size;
  int64_t end;
  for (int64_t begin = 0; begin < batch.num_sequences; begin = end) {
    const DeviceArena::Scope scope(context.arena);
    const int32_t first_token = batch.sequence_offsets[begin];
    std::vector<int32_t> offsets{0}, last_rows;
    for (end = begin; end < batch.num_sequences; ++end) {
      const int32_t end_token = batch.sequence_offsets[end + 1] - first_token;
      if (end > begin && end_token > kPassTokens) break;
      offsets.push_back(end_token);
      last_rows.push_back(end_token - 1);
    }
    const int64_t count = end - begin;
    const DeviceBatch histories(context, config,
                                {batch.input_ids + first_token, offsets.data(), nullptr, offsets.back(), count}, false);
    const Activations<T> activations = model_.forward(context, histories, {});
    int32_t* rows = context.arena.allocate<int32_t>(count);
    copy_to_device(context, rows, last_rows.data(), count);
    gather_rows<T>(context, activations.hidden[static_cast<size_t>(config.num_hidden_layers)], rows,
                   queries + begin * d, count, d);
  }
}

template <typename T>
void TransformerRecommender<T>::rank(const ApiRank& request) {
  const int64_t S = request.batch.num_sequences, d = model_.config.hidden_size, k = request.top_k;
  model_.engine.run([&](Context& context) {
    const auto upload = [&](const auto* values, int64_t count) {
      auto* uploaded = context.arena.allocate<std::decay_t<decltype(*values)>>(count);
      copy_to_device(context, uploaded, values, count);
      return uploaded;
    };
    T* queries = context.arena.allocate<T>(S * d);
    if (request.states != nullptr) {
      convert<float, T>(context, upload(request.states, S * d), queries, S * d);
    } else {
      encode_histories(context, request.batch, queries);
    }
    const RankCases cases{upload(request.targets, S), upload(request.excluded_items, request.excluded_offsets[S]),
                          upload(request.excluded_offsets, S + 1)};
    int32_t* ranks = context.arena.allocate<int32_t>(S);
    int32_t* indices = context.arena.allocate<int32_t>(S * k);
    float* scores = context.arena.allocate<float>(S * k);
    rank_items<T>(context, queries, {items_, nullptr, model_.config.vocab_size, model_.padded_vocab_size()}, cases, S,
                  d, k, ranks, indices, scores);
    copy_to_host(context, request.ranks, ranks, S);
    copy_to_host(context, request.indices, indices, S * k);
    copy_to_host(context, request.scores, scores, S * k);
  });
}

template class TransformerRecommender<float>;
template class TransformerRecommender<bf16>;

}  // namespace limbeck::cuda
