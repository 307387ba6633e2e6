#pragma once

#include <cstdint>
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

/// A snapshot of a language model that turns texts into item features on the calling thread. Not thread-safe.
class TextEncoder {
 public:
  /// Copies the parameters of `model`. Throws Error("ERR_INVALID_ARGUMENT", "ERR_SHAPE_MISMATCH").
  TextEncoder(const Transformer& model, TextFusion fusion);

  int64_t feature_size() const { return feature_size_; }
  /// features [S, f] = (fused − mean)·componentsᵀ. Throws for a batch that the model cannot take.
  void encode(const Batch& batch, float* features);

 private:
  Transformer model_;
  TextFusion fusion_;
  int64_t feature_size_;
  ThreadPool pool_{1};
  Arena arena_;
};

}  // namespace limbeck
