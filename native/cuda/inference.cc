#include <algorithm>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "cuda/elementwise.h"
#include "cuda/launch.h"
#include "cuda/model.h"
#include "cuda/pieces.h"
#include "cuda/pooling.h"
#include "cuda/results.h"

namespace limbeck::cuda {

namespace {

constexpr int32_t kIgnoredLabel = -100;
// Tokens of one piece. Results of a pass cross the bus while the next one is computed, so a pass need not be cut for
// that, and its products fill the GPU the better, the more rows they have. Of 33,792, two tiles of 128 rows for each of
// the 132 multiprocessors of an H100.
constexpr int64_t kPieceTokens = 33'792;

/// Some sequences of the batch, computed together.
struct Piece {
  int64_t first_sequence, first_token;
  int64_t map_elements_before;  // Σ t² of the sequences before
  PieceSize size;
  std::vector<int32_t> offsets;  // [num_sequences + 1] from 0
  std::vector<int32_t> rows;     // tokens whose logits are wanted, from the piece's first token; empty = all
  std::vector<int32_t> label_rows, labels;
};

/// Hidden states cross the bus as they are, where they are bfloat16 or wanted so; the host widens them.
template <typename T>
bool is_bfloat16_on_bus(const ApiForward& request) {
  if (request.pooling != ApiPooling::kNone) return false;
  return std::is_same_v<T, bf16> || request.hidden_type == ApiPrecision::kBFloat16;
}

/// Bytes of everything that the request wants of a piece.
template <typename T>
size_t result_bytes(const TransformerConfig& config, const ApiForward& request, const PieceSize& size) {
  const auto floats = [](int64_t count) { return Results::padded_bytes(static_cast<size_t>(count) * sizeof(float)); };
  const int64_t rows = request.pooling == ApiPooling::kNone ? size.num_tokens : size.num_sequences;
  const int64_t logit_rows = request.logit_rows != nullptr ? request.num_logit_rows : size.num_tokens;
  const size_t bytes_a_state =
      is_bfloat16_on_bus<T>(request)
          ? Results::padded_bytes(static_cast<size_t>(rows * config.hidden_size) * sizeof(bf16))
          : floats(rows * config.hidden_size);
  size_t bytes = static_cast<size_t>(request.num_hidden_states) * bytes_a_state;
  bytes += static_cast<size_t>(request.num_attentions) * floats(config.num_attention_heads * size.map_elements);
  bytes += static_cast<size_t>(request.num_value_relations) * floats(request.relation_heads * size.map_elements);
  if (request.logits_out != nullptr) bytes += floats(logit_rows * config.vocab_size);
  if (request.top_k > 0) bytes += 2 * floats(logit_rows * request.top_k) + floats(logit_rows);
  if (request.labels != nullptr) bytes += Results::padded_bytes(2 * sizeof(double));
  return bytes;
}

/// The batch cut between sequences.
template <typename T>
std::vector<Piece> cut(const TransformerConfig& config, const ApiForward& request) {
  const int32_t* offsets = request.batch.sequence_offsets;
  // Rows of logits come in an order of their own, so that their batch is not cut.
  const bool is_one = request.logit_rows != nullptr;
  const auto fits = [&](const PieceSize& size) {
    return is_one || result_bytes<T>(config, request, size) <= Results::kMaxPieceBytes;
  };
  const int64_t max_tokens = is_one ? std::numeric_limits<int64_t>::max() : kPieceTokens;
  std::vector<Piece> pieces;
  int64_t first_sequence = 0, map_elements = 0;
  for (const PieceSize& size : cut_evenly(offsets, request.batch.num_sequences, max_tokens, fits)) {
    Piece piece{first_sequence, offsets[first_sequence], map_elements, size, {0}, {}, {}, {}};
    first_sequence += size.num_sequences;
    map_elements += size.map_elements;
    for (int64_t s = piece.first_sequence; s < first_sequence; ++s) {
      piece.offsets.push_back(static_cast<int32_t>(offsets[s + 1] - piece.first_token));
    }
    pieces.push_back(std::move(piece));
  }
  for (Piece& piece : pieces) {
    if (request.logit_rows != nullptr) {
      piece.rows.assign(request.logit_rows, request.logit_rows + request.num_logit_rows);
    }
    for (int64_t i = 0; request.labels != nullptr && i < piece.size.num_tokens; ++i) {
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
    const std::vector<T*> states = place_token_states(piece);
    const Activations<T> activations = model_.forward(context, batch, options_);
    hidden_states(context, piece, batch, activations, states);
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

  /// Hidden states of tokens that cross the bus as they are computed: forward() writes them where they leave from.
  ///   [num_hidden_states], null = not so
  std::vector<T*> place_token_states(const Piece& piece) {
    std::vector<T*> states(static_cast<size_t>(request_.num_hidden_states), nullptr);
    const bool as_bfloat16 = request_.hidden_type == ApiPrecision::kBFloat16;
    if (request_.pooling != ApiPooling::kNone || (sizeof(T) == sizeof(float) && as_bfloat16)) return states;
    options_.hidden.assign(static_cast<size_t>(config_.num_hidden_layers) + 1, nullptr);
    const int64_t first = piece.first_token * config_.hidden_size, count = piece.size.num_tokens * config_.hidden_size;
    for (size_t i = 0; i < states.size(); ++i) {
      T* const same = static_cast<T*>(request_.hidden_out[i]) + first;
      if constexpr (std::is_same_v<T, bf16>) {
        float* const wider = static_cast<float*>(request_.hidden_out[i]) + first;
        states[i] = as_bfloat16 ? results_.add(same, count) : results_.add_widened(wider, count);
      } else {
        states[i] = results_.add(same, count);
      }
      options_.hidden[static_cast<size_t>(request_.hidden_states[i])] = states[i];
    }
    return states;
  }

  ///   states  of place_token_states()
  void hidden_states(Context& context, const Piece& piece, const DeviceBatch& batch, const Activations<T>& activations,
                     const std::vector<T*>& states) {
    const int64_t d = config_.hidden_size, N = piece.size.num_tokens, S = piece.size.num_sequences;
    for (int64_t i = 0; i < request_.num_hidden_states; ++i) {
      const int64_t layer = request_.hidden_states[i];
      const T* hidden = activations.hidden[static_cast<size_t>(layer)];
      if (T* const state = states[static_cast<size_t>(i)]) {
        if (state != hidden) copy_on_device(context, state, hidden, N * d);  // a layer that is wanted twice
        continue;
      }
      if (request_.pooling == ApiPooling::kNone) {
        bf16* const out = static_cast<bf16*>(request_.hidden_out[i]) + piece.first_token * d;
        convert<T, bf16>(context, hidden, results_.add(out, N * d), N * d);
        continue;
      }
      float* pooled = results_.add(static_cast<float*>(request_.hidden_out[i]) + piece.first_sequence * d, S * d);
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
    const int64_t R = piece.rows.empty() ? piece.size.num_tokens : static_cast<int64_t>(piece.rows.size());
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
                 nullptr, false, nullptr, device_sums, R, d);
  }

  const Transformer<T>& model_;
  const TransformerConfig& config_;
  const ApiForward& request_;
  Results& results_;
  ForwardOptions<T> options_;
};

/// What the pass of begin_forward() keeps until it is finished.
template <typename T>
class InferencePass final : public Pass {
 public:
  InferencePass(const Transformer<T>& model, const ApiForward& request)
      : engine_(model.engine),
        results_(*model.engine.results),
        loss_sum_(request.loss_sum),
        pieces_(cut<T>(model.config, request)) {
    size_t slot_bytes = 0;
    for (const Piece& piece : pieces_) {
      slot_bytes = std::max(slot_bytes, result_bytes<T>(model.config, request, piece.size));
    }
    sums_.assign(2 * pieces_.size(), 0.0);
    results_.reserve(pieces_.size(), slot_bytes);
    Inference<T> inference(model, request, results_);
    try {
      lane_ = &engine_.enqueue_forward([&](Context& context) {
        for (size_t i = 0; i < pieces_.size(); ++i) run_piece(context, model, request, inference, i);
      });
      ++lane_->num_passes;
    } catch (...) {
      results_.drop(this);
      throw;
    }
  }
  ~InferencePass() override {
    leave_lane();
    results_.drop(this);
  }

  void finish() override {
    leave_lane();
    results_.collect(this);
    if (loss_sum_ == nullptr) return;
    *loss_sum_ = 0;
    for (size_t i = 0; i < pieces_.size(); ++i) *loss_sum_ += sums_[2 * i];
  }

 private:
  void leave_lane() {
    if (lane_ != nullptr) --lane_->num_passes;
    lane_ = nullptr;
  }
  void run_piece(Context& context, const Transformer<T>& model, const ApiForward& request, Inference<T>& inference,
                 size_t index) {
    const Piece& piece = pieces_[index];
    results_.begin(context, this);
    const DeviceArena::Scope scope(context.arena);
    const int32_t* types = request.batch.token_type_ids;
    const Batch batch{request.batch.input_ids + piece.first_token, piece.offsets.data(),
                      types == nullptr ? nullptr : types + piece.first_token, piece.size.num_tokens,
                      piece.size.num_sequences};
    DeviceBatch device_batch(context, model.config, batch, false);
    inference.run(context, piece, device_batch, sums_.data() + 2 * index);
    results_.end(context);
  }

  Engine& engine_;
  Results& results_;
  Lane* lane_ = nullptr;  // until it is finished
  double* loss_sum_;
  std::vector<Piece> pieces_;
  std::vector<double> sums_;  // [pieces, 2]
};

}  // namespace

template <typename T>
std::unique_ptr<Pass> Transformer<T>::begin(const ApiForward& request) {
  return std::make_unique<InferencePass<T>>(*this, request);
}

template std::unique_ptr<Pass> Transformer<float>::begin(const ApiForward&);
template std::unique_ptr<Pass> Transformer<bf16>::begin(const ApiForward&);

}  // namespace limbeck::cuda
