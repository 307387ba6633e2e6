#include "model/item_bias.h"

#include <cmath>
#include <string>
#include <vector>

#include "core/error.h"

namespace limbeck {
namespace {

// Lengths of the moves are bias / kConstant: a bias of a few units moves a row by a fraction of its length.
constexpr double kConstant = 10;

/// x −= share·(x·direction)·direction over x[0], x[stride], …
void turn(float* x, int64_t stride, const std::vector<double>& direction, double share) {
  double projection = 0;
  for (size_t j = 0; j < direction.size(); ++j) projection += direction[j] * x[static_cast<int64_t>(j) * stride];
  for (size_t j = 0; j < direction.size(); ++j) {
    float& value = x[static_cast<int64_t>(j) * stride];
    value = static_cast<float>(value - share * projection * direction[j]);
  }
}

}  // namespace

void add_item_bias(Transformer& model, const float* bias) {
  const TransformerConfig& config = model.config();
  if (!config.tie_word_embeddings || config.masked_lm_head || config.norm != NormKind::kLayerNorm) {
    throw Error("ERR_INVALID_ARGUMENT",
                "An item bias needs tied embeddings, layer norms, and no head between them and the logits.");
  }
  const int64_t V = config.vocab_size, d = config.hidden_size, f = config.item_feature_size;
  for (int64_t i = 0; i < V; ++i) {
    if (!std::isfinite(bias[i])) {
      throw Error("ERR_INVALID_ARGUMENT", "bias[" + std::to_string(i) + "] must be finite.");
    }
  }
  Parameters& parameters = model.parameters();
  const std::string norm = config.norm_placement == NormPlacement::kBefore
                               ? "final_norm"
                               : "layers." + std::to_string(config.num_hidden_layers - 1) + ".mlp_norm";
  const float* gain = parameters.values() + parameters.find(norm + ".weight").offset;
  float* shift = parameters.values() + parameters.find(norm + ".bias").offset;
  std::vector<double> direction(static_cast<size_t>(d));  // 1/γ
  double square = 0, constant = 0;
  for (int64_t j = 0; j < d; ++j) {
    if (gain[j] == 0) throw Error("ERR_INVALID_ARGUMENT", "A gain of the last layer norm is 0.");
    const double value = 1.0 / static_cast<double>(gain[j]);
    direction[static_cast<size_t>(j)] = value;
    square += value * value;
    constant += value * static_cast<double>(shift[j]);
  }
  const double wanted = kConstant * std::sqrt(square);
  const double along = (wanted - constant) / square;
  for (int64_t j = 0; j < d; ++j) {
    shift[j] = static_cast<float>(shift[j] + along * direction[static_cast<size_t>(j)]);
  }
  float* word = parameters.values() + parameters.find("embeddings.word").offset;  // v [V, d]
  for (int64_t i = 0; i < V; ++i) {
    turn(word + i * d, 1, direction, along / wanted);
    const double length = static_cast<double>(bias[i]) / wanted;
    for (int64_t j = 0; j < d; ++j) {
      word[i * d + j] = static_cast<float>(word[i * d + j] + length * direction[static_cast<size_t>(j)]);
    }
  }
  if (f == 0) return;
  float* projection = parameters.values() + parameters.find("item_projection.weight").offset;  // A [d, f]
  for (int64_t c = 0; c < f; ++c) turn(projection + c, f, direction, along / wanted);
}

}  // namespace limbeck
