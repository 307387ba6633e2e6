#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "model/transformer.h"
#include "ops/context.h"

namespace limbeck {

/// How a catalogue's item features were made from a language model's hidden states.
struct TextFusion {
  std::vector<int64_t> layers;    // hidden states that are read, each 0 … L; pooled by their mean over the tokens
  bool concatenate = false;       // side by side, else Σ weights[i]·hidden[layers[i]]
  std::vector<float> weights;     // [layers]
  std::vector<float> mean;        // [columns], columns = d, or layers·d when concatenated
  std::vector<float> components;  // [f, columns]
};

/// A snapshot of a language model and of how its hidden states become item features. It never changes, so any number of
/// threads may read it.
class TextModel {
 public:
  /// Copies the parameters of `model`. Throws Error("ERR_INVALID_ARGUMENT", "ERR_SHAPE_MISMATCH").
  TextModel(const Transformer& model, TextFusion fusion);

  const TransformerConfig& config() const { return model_.config(); }
  int64_t feature_size() const { return feature_size_; }
  /// features [S, f] = (fused − mean)·componentsᵀ. Throws for a batch that the model cannot take.
  void encode(Context& context, Arena& arena, const Batch& batch, float* features) const;

 private:
  Transformer model_;
  TextFusion fusion_;
  int64_t feature_size_;
};

/// Turns texts into item features on the calling thread, in memory of its own. Not thread-safe; any number of them may
/// share one TextModel.
class TextEncoder {
 public:
  explicit TextEncoder(std::shared_ptr<const TextModel> model) : model_(std::move(model)) {}
  TextEncoder(const Transformer& model, TextFusion fusion)
      : model_(std::make_shared<const TextModel>(model, std::move(fusion))) {}

  const std::shared_ptr<const TextModel>& model() const { return model_; }
  int64_t feature_size() const { return model_->feature_size(); }
  /// As TextModel::encode().
  void encode(const Batch& batch, float* features) {
    arena_.reset();
    Context context{pool_, arena_};
    model_->encode(context, arena_, batch, features);
  }

 private:
  std::shared_ptr<const TextModel> model_;
  ThreadPool pool_{1};
  Arena arena_;
};

}  // namespace limbeck
