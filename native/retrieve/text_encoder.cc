#include "retrieve/text_encoder.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "core/error.h"
#include "ops/linear.h"
#include "retrieve/recommender.h"

namespace limbeck {

namespace {

void check_size(const char* name, size_t size, int64_t expected) {
  if (static_cast<int64_t>(size) != expected) {
    throw Error("ERR_SHAPE_MISMATCH", "Expected " + std::string(name) + " of " + std::to_string(expected) +
                                          " numbers, got " + std::to_string(size) + ".");
  }
}

int64_t num_columns(const TransformerConfig& config, const TextFusion& fusion) {
  return config.hidden_size * (fusion.concatenate ? static_cast<int64_t>(fusion.layers.size()) : 1);
}

/// Returns the feature size.
int64_t check_fusion(const TransformerConfig& config, const TextFusion& fusion) {
  if (fusion.layers.empty()) throw Error("ERR_INVALID_ARGUMENT", "Expected at least one layer to read.");
  for (int64_t layer : fusion.layers) {
    if (layer < 0 || layer > config.num_hidden_layers) {
      throw Error("ERR_INVALID_ARGUMENT", "Expected layers between 0 and " + std::to_string(config.num_hidden_layers) +
                                              ", got " + std::to_string(layer) + ".");
    }
  }
  const int64_t columns = num_columns(config, fusion);
  if (!fusion.concatenate) check_size("weights", fusion.weights.size(), static_cast<int64_t>(fusion.layers.size()));
  check_size("mean", fusion.mean.size(), columns);
  const auto count = static_cast<int64_t>(fusion.components.size());
  if (count == 0 || count % columns != 0) {
    throw Error("ERR_SHAPE_MISMATCH", "Expected components in rows of " + std::to_string(columns) +
                                          " numbers, at least one, got " + std::to_string(count) + " numbers.");
  }
  return count / columns;
}

}  // namespace

TextModel::TextModel(const Transformer& model, TextFusion fusion)
    : model_(model.config()), fusion_(std::move(fusion)), feature_size_(check_fusion(model.config(), fusion_)) {
  ThreadPool pool(1);
  Arena scratch;
  Context context{pool, scratch};
  float* values = model_.parameters().values();
  for (const Parameter& parameter : model.parameters().list()) {
    model.effective_values(context, parameter, values + parameter.offset);
  }
  if (model.item_features() != nullptr) model_.set_item_features(model.item_features());
  model_.pack_weights(context);
}

void TextModel::encode(Context& context, Arena& arena, const Batch& batch, float* features) const {
  const TransformerConfig& config = model_.config();
  check_batch(config, batch);
  const int64_t S = batch.num_sequences, d = config.hidden_size, columns = num_columns(config, fusion_);
  const Activations activations = model_.forward(context, arena, batch, {});

  float* centred = arena.allocate<float>(S * columns);  // [S, columns]
  double* fused = arena.allocate<double>(columns);      // of one sequence
  double* pooled = arena.allocate<double>(d);           // of one sequence and layer
  for (int64_t s = 0; s < S; ++s) {
    const int32_t begin = batch.sequence_offsets[s], end = batch.sequence_offsets[s + 1];
    std::fill(fused, fused + columns, 0.0);
    for (size_t i = 0; i < fusion_.layers.size(); ++i) {
      const float* hidden = activations.hidden[fusion_.layers[i]];
      std::fill(pooled, pooled + d, 0.0);
      for (int64_t t = begin; t < end; ++t) {
        for (int64_t c = 0; c < d; ++c) pooled[c] += hidden[t * d + c];
      }
      double* out = fused + (fusion_.concatenate ? static_cast<int64_t>(i) * d : 0);
      const double weight = (fusion_.concatenate ? 1.0 : fusion_.weights[i]) / (end - begin);
      for (int64_t c = 0; c < d; ++c) out[c] += weight * pooled[c];
    }
    for (int64_t c = 0; c < columns; ++c) {
      centred[s * columns + c] = static_cast<float>(fused[c] - fusion_.mean[static_cast<size_t>(c)]);
    }
  }
  gemm(context, S, feature_size_, columns, {centred, columns, 1}, {fusion_.components.data(), 1, columns}, nullptr,
       features, feature_size_, false);
  check_finite("Features of the text", features, S * feature_size_);
}

}  // namespace limbeck
