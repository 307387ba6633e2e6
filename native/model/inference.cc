#include "model/inference.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/memory.h"
#include "ops/linear.h"
#include "ops/logit_blocks.h"
#include "ops/loss_head.h"
#include "ops/top_k.h"
#include "ops/value_relation.h"

namespace limbeck {

namespace {

constexpr int32_t kIgnoredLabel = -100;
// So few rows read the table as it lies.
constexpr int64_t kFewRows = 4;

[[noreturn]] void invalid(const std::string& message) { throw Error("ERR_INVALID_ARGUMENT", message); }

void check_layers(const char* what, const std::vector<int64_t>& layers, int64_t min, int64_t max) {
  for (int64_t layer : layers) {
    if (layer < min || layer > max) {
      invalid("Expected " + std::string(what) + " between " + std::to_string(min) + " and " + std::to_string(max) +
              ", got " + std::to_string(layer) + ".");
    }
  }
}

void check_inputs(const TransformerConfig& config, const ForwardInputs& inputs) {
  check_batch(config, inputs.batch);
  const int64_t N = inputs.batch.num_tokens, V = config.vocab_size;
  check_layers("hiddenStates", inputs.hidden_states, 0, config.num_hidden_layers);
  check_layers("attentions", inputs.attentions, 1, config.num_hidden_layers);
  check_layers("valueRelations", inputs.value_relations, 1, config.num_hidden_layers);
  if (inputs.logits == LogitsForm::kTopK && (inputs.top_k < 1 || inputs.top_k > V)) {
    invalid("Expected topK between 1 and the vocabulary of " + std::to_string(V) + ", got " +
            std::to_string(inputs.top_k) + ".");
  }
  for (int64_t r = 0; inputs.logit_rows != nullptr && r < inputs.num_logit_rows; ++r) {
    if (inputs.logit_rows[r] < 0 || inputs.logit_rows[r] >= N) {
      invalid("logitRows[" + std::to_string(r) + "] = " + std::to_string(inputs.logit_rows[r]) +
              " is no token of the batch, which has " + std::to_string(N) + ".");
    }
  }
  for (int64_t i = 0; inputs.labels != nullptr && i < N; ++i) {
    const int32_t label = inputs.labels[i];
    if (label != kIgnoredLabel && (label < 0 || label >= V)) {
      invalid("labels[" + std::to_string(i) + "] = " + std::to_string(label) + " is neither -100 nor inside the " +
              "vocabulary of " + std::to_string(V) + ".");
    }
  }
}

int64_t output_rows(const ForwardInputs& inputs) {
  return inputs.pooling == Pooling::kNone ? inputs.batch.num_tokens : inputs.batch.num_sequences;
}

void check_output_memory(const Transformer& model, const ForwardInputs& inputs) {
  const TransformerConfig& config = model.config();
  int64_t floats = static_cast<int64_t>(inputs.hidden_states.size()) * output_rows(inputs) * config.hidden_size;
  floats += static_cast<int64_t>(inputs.attentions.size()) * attention_map_floats(model.attention_shape(inputs.batch));
  if (!inputs.value_relations.empty()) {
    floats += static_cast<int64_t>(inputs.value_relations.size()) *
              attention_map_floats(model.relation_shape(inputs.batch, inputs.relation_heads));
  }
  if (inputs.logits == LogitsForm::kDense) floats += num_logit_rows(inputs) * config.vocab_size;
  if (inputs.logits == LogitsForm::kTopK) floats += num_logit_rows(inputs) * (2 * inputs.top_k + 1);
  const size_t size_bytes = static_cast<size_t>(floats) * sizeof(float);
  if (size_bytes < kCheckedBytes) return;
  const size_t available = available_memory_bytes();
  if (size_bytes > available) {
    throw Error("ERR_OUT_OF_MEMORY", "The results need " + std::to_string(size_bytes) + " bytes and " +
                                         std::to_string(available) +
                                         " are available. Ask for fewer layers or rows, for topK, or for pooling.");
  }
}

/// What each token counts for in attention-weighted pooling.   maps as in attention_forward → [N]
std::vector<float> attention_received(const AttentionShape& shape, const float* maps) {
  std::vector<float> weights(static_cast<size_t>(shape.sequence_offsets[shape.num_sequences]));
  const int64_t H = shape.num_attention_heads;
  for (int64_t s = 0; s < shape.num_sequences; ++s) {
    const int64_t begin = shape.sequence_offsets[s], t = shape.sequence_offsets[s + 1] - begin;
    std::vector<double> received(static_cast<size_t>(t));
    double total = 0;
    for (int64_t j = 0; j < t; ++j) {
      // The queries that see token j.
      const int64_t first = shape.causal ? j : 0;
      const int64_t last = shape.sliding_window > 0 ? std::min(t, j + shape.sliding_window) : t;
      double sum = 0;
      for (int64_t h = 0; h < H; ++h) {
        for (int64_t i = first; i < last; ++i) sum += maps[(h * t + i) * t + j];
      }
      received[static_cast<size_t>(j)] = sum / static_cast<double>(last - first);
      total += received[static_cast<size_t>(j)];
    }
    for (int64_t j = 0; j < t; ++j) {
      weights[static_cast<size_t>(begin + j)] = static_cast<float>(received[static_cast<size_t>(j)] / total);
    }
    maps += H * t * t;
  }
  return weights;
}

/// One row a sequence: one of its tokens, their mean, or their sum by `weights` [N].   hidden [N, d] → pooled [S, d] =
void pool(const Batch& batch, const float* hidden, int64_t d, Pooling pooling, const std::vector<float>& weights,
          float* pooled) {
  std::memset(pooled, 0, static_cast<size_t>(batch.num_sequences * d) * sizeof(float));
  for (int64_t s = 0; s < batch.num_sequences; ++s) {
    float* row = pooled + s * d;
    const int64_t begin = batch.sequence_offsets[s], end = batch.sequence_offsets[s + 1];
    if (pooling == Pooling::kLast || pooling == Pooling::kCls) {
      const int64_t token = pooling == Pooling::kLast ? end - 1 : begin;
      std::memcpy(row, hidden + token * d, static_cast<size_t>(d) * sizeof(float));
      continue;
    }
    for (int64_t i = begin; i < end; ++i) {
      const float weight = pooling == Pooling::kAttention ? weights[static_cast<size_t>(i)] : 1.0f;
      for (int64_t c = 0; c < d; ++c) row[c] += weight * hidden[i * d + c];
    }
    if (pooling == Pooling::kAttention) continue;
    for (int64_t c = 0; c < d; ++c) row[c] /= static_cast<float>(end - begin);
  }
}

/// Rows of hidden [N, d] named by `rows` [R], packed.
const float* gather(Arena& arena, const float* hidden, const int32_t* rows, int64_t num_rows, int64_t d) {
  float* packed = arena.allocate<float>(num_rows * d);
  for (int64_t r = 0; r < num_rows; ++r) {
    std::memcpy(packed + r * d, hidden + int64_t{rows[r]} * d, static_cast<size_t>(d) * sizeof(float));
  }
  return packed;
}

void compute_logits(Context& context, Arena& arena, const Transformer& model, const ForwardInputs& inputs,
                    const Activations& activations, ForwardOutputs& outputs) {
  const TransformerConfig& config = model.config();
  const int64_t d = config.hidden_size, V = config.vocab_size, rows = num_logit_rows(inputs), K = inputs.top_k;
  const float* hidden = activations.hidden[config.num_hidden_layers];  // [N, d]
  if (inputs.logit_rows != nullptr) hidden = gather(arena, hidden, inputs.logit_rows, rows, d);
  const float* head = model.head_forward(context, arena, hidden, rows).output;  // [rows, d]
  const OutputTable table = model.output_table(activations.word_table);
  if (inputs.logits == LogitsForm::kDense) {
    linear_forward(context, head, table.weight, table.bias, outputs.logits.data(), rows, d, V);
    return;
  }
  int32_t* indices = outputs.top_k_indices.data();  // [rows, K]
  float* values = outputs.top_k_values.data();      // [rows, K]
  if (rows < kFewRows) {
    float* logits = arena.allocate<float>(rows * V);  // [rows, V]
    linear_forward(context, head, table.weight, table.bias, logits, rows, d, V);
    for (int64_t row = 0; row < rows; ++row, logits += V) {
      top_k(logits, nullptr, V, K, indices + row * K, values + row * K);
      outputs.log_sum_exp[static_cast<size_t>(row)] = static_cast<float>(log_sum_exp(logits, V));
    }
    return;
  }
  // Of the columns so far: how many of the best there are, and the log-sum-exp.
  std::vector<int64_t> num_best(static_cast<size_t>(rows), 0);
  std::vector<double> sums(static_cast<size_t>(rows), -std::numeric_limits<double>::infinity());
  for_each_logit_block(context, head, table.weight, table.bias, rows, d, V,
                       [&](int64_t row, float* logits, int64_t first, int64_t count) {
                         const auto r = static_cast<size_t>(row);
                         BestScores best(indices + row * K, values + row * K, K, num_best[r]);
                         best.add(logits, nullptr, count, static_cast<int32_t>(first));
                         num_best[r] = best.size();
                         sums[r] = log_add_exp(sums[r], log_sum_exp(logits, count));
                       });
  context.pool.parallel_for(rows, [&](int64_t row, int) {
    const auto r = static_cast<size_t>(row);
    BestScores best(indices + row * K, values + row * K, K, num_best[r]);
    best.sort();
    best.fill_with_nan(V);
    outputs.log_sum_exp[r] = static_cast<float>(sums[r]);
  });
}

void compute_loss(Context& context, Arena& arena, const Transformer& model, const ForwardInputs& inputs,
                  const Activations& activations, ForwardOutputs& outputs) {
  const TransformerConfig& config = model.config();
  const int64_t d = config.hidden_size;
  std::vector<int32_t> rows, labels;
  for (int64_t i = 0; i < inputs.batch.num_tokens; ++i) {
    if (inputs.labels[i] == kIgnoredLabel) continue;
    rows.push_back(static_cast<int32_t>(i));
    labels.push_back(inputs.labels[i]);
  }
  if (rows.empty()) return;
  const float* hidden =
      gather(arena, activations.hidden[config.num_hidden_layers], rows.data(), outputs.num_labels, d);  // [R, d]
  const float* head = model.head_forward(context, arena, hidden, outputs.num_labels).output;
  const OutputTable table = model.output_table(activations.word_table);
  const LossHeadResult sums =
      loss_head(context, head, table.weight, table.bias, labels.data(), TeacherLogits{}, LossHeadOptions{}, 1.0,
                nullptr, nullptr, nullptr, nullptr, outputs.num_labels, d, config.vocab_size);
  outputs.loss_sum = sums.ce_sum;
}

}  // namespace

int64_t num_logit_rows(const ForwardInputs& inputs) {
  return inputs.logit_rows != nullptr ? inputs.num_logit_rows : inputs.batch.num_tokens;
}

void check_forward(const Transformer& model, const ForwardInputs& inputs) {
  check_inputs(model.config(), inputs);
  check_output_memory(model, inputs);
}

ForwardOutputs allocate_outputs(const Transformer& model, const ForwardInputs& inputs) {
  const TransformerConfig& config = model.config();
  const int64_t rows = num_logit_rows(inputs), K = inputs.top_k;
  ForwardOutputs outputs;
  for (size_t i = 0; i < inputs.hidden_states.size(); ++i) {
    outputs.hidden_states.emplace_back(output_rows(inputs) * config.hidden_size);
  }
  const int64_t map_floats = attention_map_floats(model.attention_shape(inputs.batch));
  for (size_t i = 0; i < inputs.attentions.size(); ++i) outputs.attentions.emplace_back(map_floats);
  for (size_t i = 0; i < inputs.value_relations.size(); ++i) {
    outputs.value_relations.emplace_back(
        attention_map_floats(model.relation_shape(inputs.batch, inputs.relation_heads)));
  }
  if (inputs.logits == LogitsForm::kDense) outputs.logits = FloatBuffer(rows * config.vocab_size);
  if (inputs.logits == LogitsForm::kTopK) {
    outputs.top_k_indices.resize(static_cast<size_t>(rows * K));
    outputs.top_k_values.resize(static_cast<size_t>(rows * K));
    outputs.log_sum_exp.resize(static_cast<size_t>(rows));
  }
  for (int64_t i = 0; inputs.labels != nullptr && i < inputs.batch.num_tokens; ++i) {
    outputs.num_labels += inputs.labels[i] != kIgnoredLabel;
  }
  return outputs;
}

ForwardOutputs run_forward(Context& context, Arena& arena, Transformer& model, const ForwardInputs& inputs) {
  const TransformerConfig& config = model.config();
  check_forward(model, inputs);
  arena.reset();
  const int64_t L = config.num_hidden_layers, N = inputs.batch.num_tokens, d = config.hidden_size;
  std::vector<uint8_t> keep_maps(static_cast<size_t>(L), 0);
  for (int64_t layer : inputs.attentions) keep_maps[static_cast<size_t>(layer - 1)] = 1;
  const bool weighs_tokens = inputs.pooling == Pooling::kAttention;
  for (int64_t layer : inputs.hidden_states) {
    if (weighs_tokens) keep_maps[static_cast<size_t>(std::max<int64_t>(layer, 1) - 1)] = 1;
  }
  std::vector<uint8_t> keep_values(static_cast<size_t>(L), 0);
  for (int64_t layer : inputs.value_relations) keep_values[static_cast<size_t>(layer - 1)] = 1;
  ForwardOutputs outputs = allocate_outputs(model, inputs);
  // Whole hidden states are computed where the caller will find them.
  std::vector<float*> hidden_buffers(static_cast<size_t>(L + 1), nullptr);
  for (size_t i = 0; i < inputs.hidden_states.size() && inputs.pooling == Pooling::kNone; ++i) {
    float*& buffer = hidden_buffers[static_cast<size_t>(inputs.hidden_states[i])];
    if (buffer == nullptr) buffer = outputs.hidden_states[i].data();
  }
  model.pack_weights(context);
  ForwardOptions options;
  options.keep_maps = keep_maps.data();
  options.keep_values = keep_values.data();
  options.hidden_buffers = hidden_buffers.data();
  const Activations activations = model.forward(context, arena, inputs.batch, options);
  for (size_t i = 0; i < inputs.hidden_states.size(); ++i) {
    const float* hidden = activations.hidden[inputs.hidden_states[i]];
    if (inputs.pooling != Pooling::kNone) {
      const int64_t block = std::max<int64_t>(inputs.hidden_states[i], 1) - 1;
      const std::vector<float> weights =
          weighs_tokens ? attention_received(model.attention_shape(inputs.batch, block), activations.blocks[block].maps)
                        : std::vector<float>();
      pool(inputs.batch, hidden, d, inputs.pooling, weights, outputs.hidden_states[i].data());
    } else if (outputs.hidden_states[i].data() != hidden) {  // asked for twice
      std::memcpy(outputs.hidden_states[i].data(), hidden, static_cast<size_t>(N * d) * sizeof(float));
    }
  }
  for (size_t i = 0; i < inputs.attentions.size(); ++i) {
    const FloatBuffer& maps = outputs.attentions[i];
    std::memcpy(maps.data(), activations.blocks[inputs.attentions[i] - 1].maps,
                static_cast<size_t>(maps.count()) * sizeof(float));
  }
  for (size_t i = 0; i < inputs.value_relations.size(); ++i) {
    const AttentionShape shape = model.relation_shape(inputs.batch, inputs.relation_heads);
    value_relation_forward(context, shape, activations.blocks[inputs.value_relations[i] - 1].values,
                           outputs.value_relations[i].data());
  }
  if (inputs.logits != LogitsForm::kNone) compute_logits(context, arena, model, inputs, activations, outputs);
  if (inputs.labels != nullptr) compute_loss(context, arena, model, inputs, activations, outputs);
  return outputs;
}

void weighted_sum(Context& context, const std::vector<const float*>& tensors, const std::vector<float>& weights,
                  int64_t count, float* y) {
  constexpr int64_t kBlock = 4096;
  context.pool.parallel_for((count + kBlock - 1) / kBlock, [&](int64_t block, int) {
    const int64_t begin = block * kBlock, size = std::min(kBlock, count - begin);
    float* out = y + begin;
    std::memset(out, 0, static_cast<size_t>(size) * sizeof(float));
    for (size_t t = 0; t < tensors.size(); ++t) {
      const float* x = tensors[t] + begin;
      const float weight = weights[t];
      for (int64_t i = 0; i < size; ++i) out[i] += weight * x[i];
    }
  });
}

}  // namespace limbeck
