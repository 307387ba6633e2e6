#include "train/importance.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "core/error.h"
#include "ops/optimizer.h"

namespace limbeck {

namespace {

OptimizerOptions no_optimizer() {
  OptimizerOptions options;
  options.kind = OptimizerKind::kNone;
  return options;
}

AxisSums zeros(const TransformerConfig& config) {
  const size_t L = static_cast<size_t>(config.num_hidden_layers);
  return {std::vector<double>(static_cast<size_t>(config.hidden_size)),
          std::vector<std::vector<double>>(L, std::vector<double>(static_cast<size_t>(config.intermediate_size))),
          std::vector<std::vector<double>>(L, std::vector<double>(static_cast<size_t>(config.num_key_value_heads))),
          std::vector<double>(L)};
}

void divide(AxisSums& sums, double residual, double intermediate, double key_value_heads, double layers) {
  for (double& value : sums.residual) value /= residual;
  for (auto& block : sums.intermediate) {
    for (double& value : block) value /= intermediate;
  }
  for (auto& block : sums.key_value_heads) {
    for (double& value : block) value /= key_value_heads;
  }
  for (double& value : sums.layers) value /= layers;
}

}  // namespace

Importance::Importance(std::shared_ptr<Transformer> model)
    : trainer_(std::move(model), no_optimizer()),
      squares_(allocate_floats(trainer_.model().parameters().flat_count())),
      activations_(zeros(trainer_.model().config())) {
  if (trainer_.model().adapter() != nullptr) {
    throw Error("ERR_INVALID_ARGUMENT",
                "Importance is that of a model's own parameters, and this model has an adapter: merge it first.");
  }
}

void Importance::add(Context& context, Arena& arena, const Batch& batch, const int32_t* labels) {
  Transformer& model = trainer_.model();
  check_batch(model.config(), batch);
  for (int64_t s = 0; s < batch.num_sequences; ++s) {
    const int64_t begin = batch.sequence_offsets[s], t = batch.sequence_offsets[s + 1] - begin;
    const int32_t offsets[2] = {0, static_cast<int32_t>(t)};
    StepInputs inputs{};
    inputs.batch = {batch.input_ids + begin, offsets,
                    batch.token_type_ids != nullptr ? batch.token_type_ids + begin : nullptr, t, 1};
    inputs.labels = labels + begin;
    bool has_label = false;
    for (int64_t i = 0; i < t; ++i) has_label |= inputs.labels[i] != kIgnoredLabel;
    if (!has_label) {
      arena.reset();
      add_activations(model.forward(context, arena, inputs.batch, {true}));
      continue;
    }
    const StepResult result = trainer_.compute_gradients(context, arena, inputs);
    if (!std::isfinite(result.grad_norm)) {
      throw Error("ERR_NOT_FINITE", "Example " + std::to_string(num_examples_ + 1) + " has a gradient of norm " +
                                        std::to_string(result.grad_norm) + ".");
    }
    Parameters& parameters = model.parameters();
    add_squares(context, squares_.get(), parameters.gradients(), parameters.flat_count());
    ++num_examples_;
    add_activations(trainer_.activations());
  }
}

void Importance::add_activations(const Activations& a) {
  const TransformerConfig& config = trainer_.model().config();
  const int64_t N = a.batch.num_tokens, d = config.hidden_size, I = config.intermediate_size;
  const int64_t L = config.num_hidden_layers, group_size = config.attention_size() / config.num_key_value_heads;
  num_tokens_ += N;
  for (int64_t l = 0; l <= L; ++l) {
    for (int64_t i = 0; i < N * d; ++i) activations_.residual[static_cast<size_t>(i % d)] += std::fabs(a.hidden[l][i]);
  }
  for (int64_t l = 0; l < L; ++l) {
    const size_t block = static_cast<size_t>(l);
    for (int64_t i = 0; i < N * I; ++i) {
      activations_.intermediate[block][static_cast<size_t>(i % I)] += std::fabs(a.blocks[l].mlp_activated[i]);
    }
    for (int64_t i = 0; i < N * config.attention_size(); ++i) {
      const size_t head = static_cast<size_t>(i % config.attention_size() / group_size);
      activations_.key_value_heads[block][head] += std::fabs(a.blocks[l].attended[i]);
    }
    // Not hidden[l + 1]: that of the last block is after the final norm, whose scale says nothing about the block.
    for (int64_t i = 0; i < N * d; ++i) {
      activations_.layers[block] += std::fabs(a.blocks[l].output[i] - a.blocks[l].input[i]);
    }
  }
}

void Importance::squared_gradients(const Parameter& parameter, float* out) const {
  const float* sums = squares_.get() + parameter.offset;
  for (int64_t i = 0; i < parameter.count; ++i) {
    out[i] = num_examples_ > 0 ? sums[i] / static_cast<float>(num_examples_) : 0.0f;
  }
}

AxisSums Importance::mean_by_axis(const float* sums_over_examples) const {
  AxisSums sums = sum_by_axis(model().config(), model().parameters(), sums_over_examples);
  const double examples = std::max<double>(1, static_cast<double>(num_examples_));
  divide(sums, examples, examples, examples, examples);
  return sums;
}

AxisSums Importance::fisher_by_axis() const { return mean_by_axis(squares_.get()); }

AxisSums Importance::saliency_by_axis() const {
  const Parameters& parameters = model().parameters();
  const AlignedFloats saliency = allocate_floats(parameters.flat_count());  // [flat_count]
  const float* values = parameters.values();
  for (int64_t i = 0; i < parameters.flat_count(); ++i) saliency.get()[i] = squares_.get()[i] * values[i] * values[i];
  return mean_by_axis(saliency.get());
}

AxisSums Importance::activation_by_axis() const {
  const TransformerConfig& config = model().config();
  AxisSums sums = activations_;
  const double tokens = std::max<double>(1, static_cast<double>(num_tokens_));
  const double group_size = static_cast<double>(config.attention_size() / config.num_key_value_heads);
  divide(sums, tokens * static_cast<double>(config.num_hidden_layers + 1), tokens, tokens * group_size,
         tokens * static_cast<double>(config.hidden_size));
  return sums;
}

}  // namespace limbeck
