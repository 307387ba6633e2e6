#include <algorithm>
#include <string>
#include <vector>

#include "core/error.h"
#include "cuda/elementwise.h"
#include "cuda/launch.h"
#include "cuda/model.h"
#include "cuda/pooling.h"
#include "cuda/results.h"

namespace limbeck::cuda {

namespace {

constexpr int32_t kIgnoredLabel = -100;
// Tokens of one piece: enough to fill the GPU, few enough that the results of one piece cross the bus while the next is
// computed.
constexpr int64_t kPieceTokens = 16384;
constexpr size_t kPieceBytes = size_t{128} << 20;  // of results

/// Some sequences of the batch, computed together.
struct Piece {
  int64_t first_sequence, num_sequences, first_token, num_tokens;
  int64_t map_elements_before;   // Σ t² of the sequences before
  std::vector<int32_t> offsets;  // [num_sequences + 1] from 0
  std::vector<int32_t> rows;     // tokens whose logits are wanted, from the piece's first token; empty = all
  std::vector<int32_t> label_rows, labels;
  int64_t map_elements() const {
    int64_t total = 0;
    for (size_t s = 0; s + 1 < offsets.size(); ++s) {
      const int64_t length = int64_t{offsets[s + 1]} - offsets[s];
      total += length * length;
    }
    return total;
  }
};

/// Bytes of everything that the request wants of a piece.
size_t result_bytes(const TransformerConfig& config, const ApiForward& request, const Piece& piece) {
  const auto floats = [](int64_t count) { return Results::padded_bytes(static_cast<size_t>(count) * sizeof(float)); };
  const int64_t rows = request.pooling == ApiPooling::kNone ? piece.num_tokens : piece.num_sequences;
  const int64_t logit_rows = request.logit_rows != nullptr ? request.num_logit_rows : piece.num_tokens;
  size_t bytes = static_cast<size_t>(request.num_hidden_states) * floats(rows * config.hidden_size);
  const int64_t elements = piece.map_elements();
  bytes += static_cast<size_t>(request.num_attentions) * floats(config.num_attention_heads * elements);
  bytes += static_cast<size_t>(request.num_value_relations) * floats(request.relation_heads * elements);
  if (request.logits_out != nullptr) bytes += floats(logit_rows * config.vocab_size);
  if (request.top_k > 0) bytes += 2 * floats(logit_rows * request.top_k) + floats(logit_rows);
  return bytes + Results::padded_bytes(2 * sizeof(double));
}

/// The batch cut between sequences.
std::vector<Piece> cut(const TransformerConfig& config, const ApiForward& request) {
  const ApiBatch& batch = request.batch;
  // Rows of logits come in an order of their own.
  const bool is_one = request.logit_rows != nullptr;
  std::vector<Piece> pieces;
  int64_t map_elements = 0;
  for (int64_t s = 0; s < batch.num_sequences; ++s) {
    const int64_t begin = batch.sequence_offsets[s], length = batch.sequence_offsets[s + 1] - begin;
    bool fits = !pieces.empty();
    if (fits && !is_one) {
      Piece with = pieces.back();
      with.num_tokens += length;
      with.num_sequences += 1;
      with.offsets.push_back(static_cast<int32_t>(with.num_tokens));
      fits = with.num_tokens <= kPieceTokens && result_bytes(config, request, with) <= kPieceBytes;
    }
    if (!fits) pieces.push_back({s, 0, begin, 0, map_elements, {0}, {}, {}, {}});
    Piece& piece = pieces.back();
    piece.num_sequences += 1;
    piece.num_tokens += length;
    piece.offsets.push_back(static_cast<int32_t>(piece.num_tokens));
    map_elements += length * length;
  }
  for (Piece& piece : pieces) {
    if (request.logit_rows != nullptr) {
      piece.rows.assign(request.logit_rows, request.logit_rows + request.num_logit_rows);
    }
    for (int64_t i = 0; request.labels != nullptr && i < piece.num_tokens; ++i) {
      const int32_t label = request.labels[piece.first_token + i];
      if (label == kIgnoredLabel) continue;
      piece.label_rows.push_back(static_cast<int32_t>(i));
      piece.labels.push_back(label);
    }
  }
  return pieces;
}

template <typename T>
class Inference {
 public:
  Inference(const Transformer<T>& model, const ApiForward& request, Results& results)
      : model_(model), config_(model.config), request_(request), results_(results) {
    const auto L = static_cast<size_t>(config_.num_hidden_layers);
    options_.keep_maps.assign(L, false);
    options_.keep_values.assign(L, false);
    options_.keep_hidden.assign(L + 1, false);
    for (int64_t i = 0; i < request.num_attentions; ++i) {
      options_.keep_maps[static_cast<size_t>(request.attentions[i] - 1)] = true;
    }
    for (int64_t i = 0; i < request.num_value_relations; ++i) {
      options_.keep_values[static_cast<size_t>(request.value_relations[i] - 1)] = true;
    }
    for (int64_t i = 0; i < request.num_hidden_states; ++i) {
      const int64_t layer = request.hidden_states[i];
      options_.keep_hidden[static_cast<size_t>(layer)] = true;
      if (request.pooling == ApiPooling::kAttention) options_.keep_maps[weighing_block(layer)] = true;
    }
  }

  /// `sums` [2] of the loss, on the host, filled when the results have arrived.
  void run(Context& context, const Piece& piece, DeviceBatch& batch, double* sums) {
    const DeviceArena::Scope scope(context.arena);
    const Activations<T> activations = model_.forward(context, batch, options_);
    hidden_states(context, piece, batch, activations);
    for (int64_t i = 0; i < request_.num_attentions; ++i) {
      const int64_t H = config_.num_attention_heads, count = H * batch.map_elements;
      float* out = results_.add(request_.attentions_out[i] + H * piece.map_elements_before, count);
      copy_on_device(context, out, activations.blocks[static_cast<size_t>(request_.attentions[i] - 1)].maps, count);
    }
    for (int64_t i = 0; i < request_.num_value_relations; ++i) {
      const int64_t A = request_.relation_heads;
      float* out =
          results_.add(request_.value_relations_out[i] + A * piece.map_elements_before, A * batch.map_elements);
      value_relation_forward<T>(context, model_.relation_shape(batch, A),
                                activations.blocks[static_cast<size_t>(request_.value_relations[i] - 1)].values, out);
    }
    if (request_.logits_out != nullptr || request_.top_k > 0) logits(context, piece, activations);
    if (request_.labels != nullptr) loss(context, piece, activations, sums);
  }

 private:
  static size_t weighing_block(int64_t layer) { return static_cast<size_t>(std::max<int64_t>(layer, 1) - 1); }

  void hidden_states(Context& context, const Piece& piece, const DeviceBatch& batch,
                     const Activations<T>& activations) {
    const int64_t d = config_.hidden_size, N = piece.num_tokens, S = piece.num_sequences;
    for (int64_t i = 0; i < request_.num_hidden_states; ++i) {
      const int64_t layer = request_.hidden_states[i];
      const T* hidden = activations.hidden[static_cast<size_t>(layer)];
      if (request_.pooling == ApiPooling::kNone) {
        float* out = results_.add(request_.hidden_out[i] + piece.first_token * d, N * d);
        convert<T, float>(context, hidden, out, N * d);
        continue;
      }
      float* pooled = results_.add(request_.hidden_out[i] + piece.first_sequence * d, S * d);
      if (request_.pooling == ApiPooling::kMean) {
        pool_mean<T>(context, hidden, batch.sequence_offsets, pooled, S, d);
      } else if (request_.pooling == ApiPooling::kAttention) {
        const size_t block = weighing_block(layer);
        float* received = context.arena.allocate<float>(N);
        pool_by_attention<T>(context, model_.attention_shape(batch, static_cast<int64_t>(block)),
                             activations.blocks[block].maps, hidden, received, pooled, d);
      } else {
        pool_token<T>(context, hidden, batch.sequence_offsets, request_.pooling == ApiPooling::kLast, pooled, S, d);
      }
    }
  }

  const T* rows_of_last_layer(Context& context, const Activations<T>& activations, const std::vector<int32_t>& rows) {
    const T* hidden = activations.hidden[static_cast<size_t>(config_.num_hidden_layers)];
    if (rows.empty()) return hidden;
    const int64_t d = config_.hidden_size, R = static_cast<int64_t>(rows.size());
    int32_t* device_rows = context.arena.allocate<int32_t>(R);
    copy_to_device(context, device_rows, rows.data(), R);
    T* packed = context.arena.allocate<T>(R * d);
    gather_rows<T>(context, hidden, device_rows, packed, R, d);
    return packed;
  }

  void logits(Context& context, const Piece& piece, const Activations<T>& activations) {
    const int64_t d = config_.hidden_size, V = config_.vocab_size, K = request_.top_k;
    const int64_t R = piece.rows.empty() ? piece.num_tokens : static_cast<int64_t>(piece.rows.size());
    const int64_t first = piece.rows.empty() ? piece.first_token : 0;
    const T* hidden = rows_of_last_layer(context, activations, piece.rows);
    const T* head = model_.head_forward(context, hidden, R).output;  // [R, d]
    const OutputTable<T> table = model_.output_table(activations.word_table);
    if (request_.logits_out != nullptr) {
      float* out = results_.add(request_.logits_out + first * V, R * V);
      dense_logits<T>(context, head, table, out, R, d);
    }
    if (K > 0) {
      int32_t* indices = results_.add(request_.top_k_indices + first * K, R * K);
      float* values = results_.add(request_.top_k_values + first * K, R * K);
      float* log_sum_exp = results_.add(request_.log_sum_exp + first, R);
      top_k_logits<T>(context, head, table, K, indices, values, log_sum_exp, R, d);
    }
  }

  void loss(Context& context, const Piece& piece, const Activations<T>& activations, double* sums) {
    if (piece.labels.empty()) return;
    const int64_t d = config_.hidden_size, R = static_cast<int64_t>(piece.labels.size());
    const T* hidden = rows_of_last_layer(context, activations, piece.label_rows);
    const T* head = model_.head_forward(context, hidden, R).output;
    int32_t* labels = context.arena.allocate<int32_t>(R);
    copy_to_device(context, labels, piece.labels.data(), R);
    double* device_sums = results_.add(sums, 2);
    set_zero(context, device_sums, 2);
    loss_head<T>(context, head, model_.output_table(activations.word_table), labels, {}, {}, 1.0f, nullptr, nullptr,
                 nullptr, nullptr, device_sums, R, d);
  }

  const Transformer<T>& model_;
  const TransformerConfig& config_;
  const ApiForward& request_;
  Results& results_;
  ForwardOptions options_;
};

}  // namespace

template <typename T>
void Transformer<T>::infer(const ApiForward& request) {
  const std::vector<Piece> pieces = cut(config, request);
  size_t slot_bytes = 0;
  for (const Piece& piece : pieces) slot_bytes = std::max(slot_bytes, result_bytes(config, request, piece));
  std::vector<double> sums(2 * pieces.size(), 0.0);
  std::vector<std::unique_ptr<DeviceBatch>> batches(pieces.size());  // their host memory outlives the pass
  Results results(engine);
  Inference<T> inference(*this, request, results);
  engine.run([&](Context& context) {
    results.plan(context, slot_bytes);
    for (size_t i = 0; i < pieces.size(); ++i) {
      const Piece& piece = pieces[i];
      results.begin();
      const DeviceArena::Scope scope(context.arena);
      const int32_t* types = request.batch.token_type_ids;
      const Batch batch{request.batch.input_ids + piece.first_token, piece.offsets.data(),
                        types == nullptr ? nullptr : types + piece.first_token, piece.num_tokens, piece.num_sequences};
      batches[i] = std::make_unique<DeviceBatch>(context, config, batch, false);
      inference.run(context, piece, *batches[i], sums.data() + 2 * i);
      results.end(context);
    }
    results.finish();
  });
  if (request.loss_sum != nullptr) {
    *request.loss_sum = 0;
    for (size_t i = 0; i < pieces.size(); ++i) *request.loss_sum += sums[2 * i];
  }
}

template void Transformer<float>::infer(const ApiForward&);
template void Transformer<bf16>::infer(const ApiForward&);

}  // namespace limbeck::cuda
