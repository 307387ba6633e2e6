// What the transformer multiplies with: parameters, adapters, packed and folded weights.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "core/error.h"
#include "core/rng.h"
#include "model/transformer.h"
#include "ops/linear.h"

namespace limbeck {

namespace {

// Streams of the dropout masks of adapters, one for each target; those of the rest are in transformer.cc.
constexpr uint64_t kAdapterStream = uint64_t{1} << 44;

[[noreturn]] void invalid(const std::string& message) { throw Error("ERR_INVALID_ARGUMENT", message); }

}  // namespace

Transformer::Transformer(const TransformerConfig& config)
    : config_((check_config(config), config)), parameters_(config_) {
  if (config_.positions == PositionKind::kRotary) {
    rotary_frequencies_ =
        rotary_frequencies(config_.rope_scaling, static_cast<double>(config_.rope_theta), config_.head_dim);
  }
  bind();
}

const float* Transformer::value(const std::string& name) const {
  return parameters_.has(name) ? parameters_.values() + parameters_.find(name).offset : nullptr;
}

Transformer::Norm Transformer::norm(const std::string& name) const {
  const Linear pair = linear(name);
  return {pair.weight, pair.bias, pair.d_weight, pair.d_bias};
}

Transformer::Linear Transformer::linear(const std::string& name) const {
  Linear result{value(name + ".weight"), value(name + ".bias"), nullptr, nullptr, nullptr, {}};
  if (!trainable().has_gradients()) {
    result.adapted = adapted(name, nullptr);
    return result;
  }
  float* gradients = const_cast<Transformer*>(this)->trainable().gradients();
  result.adapted = adapted(name, gradients);
  if (adapter_ != nullptr) return result;
  if (result.weight != nullptr) result.d_weight = gradients + (result.weight - parameters_.values());
  if (result.bias != nullptr) result.d_bias = gradients + (result.bias - parameters_.values());
  return result;
}

std::vector<Transformer::LowRank> Transformer::adapted(const std::string& name, float* gradients) const {
  std::vector<LowRank> result;
  if (adapter_ == nullptr) return result;
  const std::vector<AdapterTarget>& targets = adapter_->config().targets;
  const float* values = std::as_const(*adapter_).parameters().values();
  for (size_t i = 0; i < targets.size(); ++i) {
    if (targets[i].linear != name) continue;
    const int64_t a = adapter_->a(targets[i]).offset, b = adapter_->b(targets[i]).offset;
    result.push_back({targets[i].first_row, targets[i].num_rows, values + a, values + b,
                      gradients == nullptr ? nullptr : gradients + a, gradients == nullptr ? nullptr : gradients + b,
                      kAdapterStream + i});
  }
  return result;
}

void Transformer::attach_adapter(AdapterConfig config, uint64_t seed) {
  if (adapter_ != nullptr) invalid("This model has an adapter: merge or remove it first.");
  adapter_ = std::make_unique<Adapter>(std::move(config), parameters_, seed);
  ++adapter_version_;
  parameters_.free_gradients();
  bind();
}

void Transformer::merge_adapter(Context& context) {
  if (adapter_ == nullptr) return;
  for (const Parameter& parameter : parameters_.list()) {
    adapter_->add_to(context, parameter, parameters_.values() + parameter.offset);
  }
  remove_adapter();
}

void Transformer::remove_adapter() {
  if (adapter_ == nullptr) return;
  adapter_version_ += adapter_->version() + 1;  // version() never goes down
  adapter_.reset();
  bind();
}

void Transformer::effective_values(Context& context, const Parameter& parameter, float* values) const {
  std::memcpy(values, parameters_.values() + parameter.offset, static_cast<size_t>(parameter.count) * sizeof(float));
  if (adapter_ != nullptr) adapter_->add_to(context, parameter, values);
}

void Transformer::bind() {
  blocks_.clear();
  for (int64_t layer = 0; layer < config_.num_hidden_layers; ++layer) {
    const std::string prefix = "layers." + std::to_string(layer) + ".";
    blocks_.push_back({norm(prefix + "attention_norm"), norm(prefix + "mlp_norm"), linear(prefix + "attention.qkv"),
                       linear(prefix + "attention.output"), linear(prefix + "mlp.input"), linear(prefix + "mlp.output"),
                       norm(prefix + "attention.q_norm"), norm(prefix + "attention.k_norm")});
  }
  embedding_norm_ = norm("embeddings.norm");
  final_norm_ = norm("final_norm");
  head_norm_ = norm("head.norm");
  head_dense_ = linear("head.dense");
  bound_with_gradients_ = trainable().has_gradients();
  packed_version_ = UINT64_MAX;  // the packed weights went with the blocks
}

void Transformer::initialize(uint64_t seed, float initializer_range) {
  const float residual_scale = 1.0f / std::sqrt(2.0f * static_cast<float>(config_.num_hidden_layers));
  uint64_t stream = 0;
  for (const Parameter& parameter : parameters_.list()) {
    float* values = parameters_.values() + parameter.offset;
    const Philox random{seed, stream++};
    const bool is_gain = parameter.shape.size() == 1 && parameter.name.find(".weight") != std::string::npos;
    const bool writes_residual = parameter.name.find("attention.output.weight") != std::string::npos ||
                                 parameter.name.find("mlp.output.weight") != std::string::npos;
    const float range = initializer_range * (writes_residual ? residual_scale : 1.0f);
    if (parameter.shape.size() >= 2) {
      random.fill_normal(values, static_cast<uint64_t>(parameter.count));
      for (int64_t i = 0; i < parameter.count; ++i) values[i] *= range;
    } else {
      std::fill(values, values + parameter.count, is_gain ? 1.0f : 0.0f);
    }
  }
}

void Transformer::set_item_features(const float* features) {
  const int64_t count = config_.vocab_size * config_.item_feature_size;
  if (item_features_ == nullptr) item_features_ = allocate_floats(count);
  std::memcpy(item_features_.get(), features, static_cast<size_t>(count) * sizeof(float));
  ++item_features_version_;
}

void Transformer::pack_weights(Context& context, bool for_few_rows) {
  packed_for_few_rows_ = for_few_rows;
  if (is_packed() && packed_precision_ == context.precision) return;
  const int64_t d = config_.hidden_size;
  const auto for_each_linear = [&](auto&& body) {
    for (Block& block : blocks_) {
      body(block.qkv, d, config_.qkv_size());
      body(block.attention_output, config_.attention_size(), d);
      body(block.mlp_input, d, config_.mlp_input_size());
      body(block.mlp_output, config_.intermediate_size, d);
    }
  };
  const bool folds = for_few_rows && context.precision == Precision::kFloat32 && can_fold_last_attention();
  int64_t count = folds ? 4 * config_.num_attention_heads * d * d : 0;
  folded_ = nullptr;
  for_each_linear([&](Linear& linear, int64_t in_features, int64_t out_features) {
    linear.packed = nullptr;
    count += in_features * out_features;
  });
  packed_version_ = UINT64_MAX;
  const size_t size_bytes = static_cast<size_t>(count) * sizeof(float);
  // Twice as much must be free: the activations need some as well.
  if (size_bytes >= kCheckedBytes && 2 * size_bytes > available_memory_bytes()) return;
  for_each_linear([&](Linear& linear, int64_t in_features, int64_t out_features) {
    linear.packed = std::make_shared<const PackedMatrix>(context, MatrixView{linear.weight, 1, in_features},
                                                         in_features, out_features);
  });
  if (folds) folded_ = std::make_unique<const FoldedAttention>(fold_last_attention(context));
  packed_version_ = parameters_.version();
  packed_precision_ = context.precision;
}

// Positions, norms and adapters stand between the rows and their keys. And the folded weights, 2·H·d², must be no more
// than those they take the place of: so the shortest of histories does not cost more either.
bool Transformer::can_fold_last_attention() const {
  const int64_t d = config_.hidden_size, H = config_.num_attention_heads, KV = config_.num_key_value_heads;
  return config_.positions != PositionKind::kRotary && !config_.qk_norm && adapter_ == nullptr &&
         H * d <= (H + KV) * config_.head_dim;
}

Transformer::FoldedAttention Transformer::fold_last_attention(Context& context) const {
  const Block& block = blocks_.back();
  const int64_t d = config_.hidden_size, H = config_.num_attention_heads, KV = config_.num_key_value_heads;
  const int64_t hd = config_.head_dim;
  // attend_row() will take rows of width d and scale by 1/√d.
  const float scale = static_cast<float>(std::sqrt(static_cast<double>(d) / static_cast<double>(hd)));
  AlignedFloats queries = allocate_floats(d * H * d);  // [d, H·d]: from a row to its folded queries
  AlignedFloats output = allocate_floats(H * d * d);   // [H·d, d]
  FoldedAttention folded{allocate_floats(H * d + d), {}, {}};
  float *query_bias = folded.biases.get(), *output_bias = query_bias + H * d;
  if (block.attention_output.bias != nullptr) {
    std::memcpy(output_bias, block.attention_output.bias, static_cast<size_t>(d) * sizeof(float));
  }
  for (int64_t h = 0; h < H; ++h) {
    const int64_t group = h / (H / KV), q = h * hd, k = (H + group) * hd, v = (H + KV + group) * hd;  // first rows
    const float *weight = block.qkv.weight, *bias = block.qkv.bias;
    const MatrixView keys{weight + k * d, d, 1};                                // [hd, d]
    const MatrixView own_output{block.attention_output.weight + q, 1, H * hd};  // [hd, d]
    gemm(context, d, d, hd, {weight + q * d, 1, d}, keys, nullptr, queries.get() + h * d, H * d, false);
    gemm(context, d, d, hd, {weight + v * d, 1, d}, own_output, nullptr, output.get() + h * d * d, d, false);
    if (bias == nullptr) continue;
    gemm(context, 1, d, hd, {bias + q, hd, 1}, keys, nullptr, query_bias + h * d, H * d, false);
    gemm(context, 1, d, hd, {bias + v, hd, 1}, own_output, nullptr, output_bias, d, true);
  }
  for (int64_t i = 0; i < d * H * d; ++i) queries[static_cast<size_t>(i)] *= scale;
  for (int64_t i = 0; i < H * d; ++i) query_bias[i] *= scale;
  folded.queries.bias = query_bias;
  folded.queries.packed = std::make_shared<const PackedMatrix>(context, MatrixView{queries.get(), H * d, 1}, d, H * d);
  folded.output.bias = output_bias;
  folded.output.packed = std::make_shared<const PackedMatrix>(context, MatrixView{output.get(), d, 1}, H * d, d);
  return folded;
}

}  // namespace limbeck
