#pragma once

#include <cstdint>
#include <vector>

#include "core/memory.h"
#include "model/transformer.h"

namespace limbeck {

/// kCls is the first token. kAttention weighs each token by the attention that it receives in the block before the
/// hidden state (the first block for the embeddings): mean over heads and over the queries that see it, normalised to
/// sum 1.
enum class Pooling { kNone, kMean, kLast, kCls, kAttention };
enum class LogitsForm { kNone, kDense, kTopK };

/// What one inference pass is asked for; every list may be empty.
struct ForwardInputs {
  Batch batch;
  std::vector<int64_t> hidden_states;    // each 0 … L
  Pooling pooling = Pooling::kNone;      // all others give one row a sequence
  std::vector<int64_t> attentions;       // each 1 … L
  std::vector<int64_t> value_relations;  // each 1 … L
  int64_t relation_heads = 0;            // of value_relations; divides KV·hd
  LogitsForm logits = LogitsForm::kNone;
  int64_t top_k = 0;                    // 1 … V, with kTopK
  const int32_t* logit_rows = nullptr;  // [num_logit_rows] tokens whose logits are wanted; null = all
  int64_t num_logit_rows = 0;
  const int32_t* labels = nullptr;  // [N] target id a token, -100 = ignored; null = no loss
};

struct ForwardOutputs {
  std::vector<FloatBuffer> hidden_states;    // each [N or S, d]
  std::vector<FloatBuffer> attentions;       // each: S maps [H, t, t]
  std::vector<FloatBuffer> value_relations;  // each: S maps [relation_heads, t, t]
  FloatBuffer logits;                        // [rows, V]
  std::vector<int32_t> top_k_indices;        // [rows, K], best first
  std::vector<float> top_k_values;           // [rows, K]
  std::vector<float> log_sum_exp;            // [rows] over the whole vocabulary
  double loss_sum = 0;                       // Σ cross-entropy over labelled tokens
  int64_t num_labels = 0;
};

/// Rows of the logits: those named, or all tokens.
int64_t num_logit_rows(const ForwardInputs& inputs);

/// What run_forward() checks before anything else, with its errors. Reads the model's configuration alone, as does
/// allocate_outputs().
void check_forward(const Transformer& model, const ForwardInputs& inputs);
/// Results of a pass in their shapes, not computed yet: floats and ids undefined, loss 0, labels counted.
ForwardOutputs allocate_outputs(const Transformer& model, const ForwardInputs& inputs);

/// One forward pass without dropout. Top-k logits go chunk of rows by chunk of rows: no [rows, V] matrix is written.
/// Resets `arena`. Throws Error("ERR_INVALID_ARGUMENT") for a layer, row, label or id out of range, and
/// Error("ERR_OUT_OF_MEMORY") when the results alone would not fit.
ForwardOutputs run_forward(Context& context, Arena& arena, Transformer& model, const ForwardInputs& inputs);

/// Layer fusion: y = Σ weights[i]·tensors[i].   tensors: each [count], y [count] =
void weighted_sum(Context& context, const std::vector<const float*>& tensors, const std::vector<float>& weights,
                  int64_t count, float* y);

}  // namespace limbeck
