#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "model/adapter.h"
#include "model/batch.h"
#include "model/config.h"
#include "model/parameters.h"
#include "ops/attention.h"
#include "ops/context.h"
#include "ops/gemm.h"
#include "ops/low_rank.h"

namespace limbeck {

/// The output table of a model: what hidden states are multiplied with to give logits.
struct OutputTable {
  const float* weight;  // [V, d]
  const float* bias;    // [V] or null
};

/// What one block keeps for its backward pass. Every buffer has N rows.
struct BlockActivations {
  const float* input;                      // [N, d] residual stream
  float* attention_normed;                 // [N, d] norm before: what attention reads; norm after: = input
  float *attention_mean, *attention_rstd;  // [N]
  float* qkv;                              // [N, (H + 2KV)·hd], queries and keys normed and turned
  float* raw_qk;                           // [N, (H + KV)·hd] queries and keys before their norms, or null
  float *query_rstd, *key_rstd;            // [N, H], [N, KV], with norms of queries and keys
  float* lse;                              // [N, H], null unless for a backward pass
  float* attended;                         // [N, H·hd]
  float* residual;                         // [N, d] input + attention output
  float* mlp_normed;                       // [N, d] what the feed-forward reads
  float *mlp_mean, *mlp_rstd;              // [N]
  float* mlp_input;                        // [N, I or 2I] before the activation
  float* mlp_activated;                    // [N, I]
  float* output_sum;                       // [N, d] norm after: residual + feed-forward output; norm before: = output
  float* output;                           // [N, d] what the next block reads
  float* maps;                             // Σ H·t², or null
  float* values;                           // [N, KV·hd], or null
};

/// Dropout of what an adapter reads.
struct AdapterDropout {
  int64_t seed = -1;          // < 0 = none
  int64_t tokens_before = 0;  // as of Batch
};

/// Activations of one forward pass, in the arena given to it.
struct Activations {
  Batch batch;
  int32_t* position_ids;                 // [N], from position_offset in each sequence
  const float* word_table;               // [V, d]: embeddings.word, or the item table v + A·u
  float* embedded;                       // [N, d] sum of embeddings, before embeddings.norm (norm after)
  float *embedded_mean, *embedded_rstd;  // [N]
  BlockActivations* blocks;              // [L], all of them when kept for backward
  float** hidden;                        // [L + 1] hidden states, each [N, d] (see last_rows_only)
  const float* final_input;              // [N, d] what final_norm reads
  float *final_mean, *final_rstd;        // [N]
  int64_t dropout_seed;                  // < 0 = none
  bool recomputes_blocks;                // `blocks` have the last one's buffers, but for input, output, maps and values

  AdapterDropout adapter_dropout() const { return {dropout_seed, batch.tokens_before}; }
};

struct ForwardOptions {
  bool for_backward = false;
  /// For backward: keep the inputs of the blocks alone, and compute each block again on the way back (Chen et al. 2016,
  /// arXiv:1604.06174).
  bool recomputes_blocks = false;
  int64_t dropout_seed = -1;  // < 0 = no dropout
  /// [L] or null: 1 = keep the attention maps of that block.
  const uint8_t* keep_maps = nullptr;
  /// [L] or null: 1 = keep the values of that block beside its qkv, which inference uses again.
  const uint8_t* keep_values = nullptr;
  /// [L + 1] or null; an entry [N, d] or null: where that hidden state goes instead of the arena.
  float* const* hidden_buffers = nullptr;
  /// hidden[L] holds only the last row of each sequence, [S, d], and the last block computes no other. Inference only.
  bool last_rows_only = false;
};

struct BackwardInputs {
  float* d_final;                    // [N, d] gradient at hidden[L]; overwritten
  const float* const* d_hidden;      // [L + 1] or null; entries [N, d] or null, added at hidden[l], l < L
  const float* const* teacher_maps;  // [L] or null; entries or null
  float map_loss_scale;
  float* d_word_table;  // [V, d] += gradient of word_table; not read while there is an adapter
  /// [L] or null; entries [N, KV·hd] or null, added at the values of the blocks.
  const float* const* d_values = nullptr;
};

/// Rows of `hidden` on their way to logits (masked LM: dense, activation, norm; others: the rows themselves).
struct HeadActivations {
  const float* input;   // [R, d]
  float* dense;         // [R, d] before the activation
  float* activated;     // [R, d]
  float *mean, *rstd;   // [R]
  const float* output;  // [R, d] what the table is multiplied with
};

/// One transformer, its parameters, forward and backward. Not thread-safe: one pass at a time.
class Transformer {
 public:
  explicit Transformer(const TransformerConfig& config);

  const TransformerConfig& config() const { return config_; }
  Parameters& parameters() { return parameters_; }
  const Parameters& parameters() const { return parameters_; }

  /// Puts a low-rank adapter over linear layers of the blocks. From now on training changes it alone: the parameters
  /// are frozen, and have no gradients. Throws Error("ERR_INVALID_ARGUMENT") when there is one, and as Adapter's
  /// constructor.
  void attach_adapter(AdapterConfig config, uint64_t seed);
  /// Null without one.
  const Adapter* adapter() const { return adapter_.get(); }
  /// Adds the adapter to the parameters, and ends it. Does nothing without one.
  void merge_adapter(Context& context);
  void remove_adapter();
  /// Another one for each adapter that comes or goes.
  uint64_t adapter_version() const { return adapter_version_; }
  /// Goes up whenever what the model computes may have changed, item features apart.
  uint64_t version() const {
    return parameters_.version() + adapter_version_ + (adapter_ != nullptr ? adapter_->version() : 0);
  }
  /// What training changes: the adapter's parameters where there is one, else the model's.
  Parameters& trainable() { return adapter_ != nullptr ? adapter_->parameters() : parameters_; }
  const Parameters& trainable() const { return adapter_ != nullptr ? adapter_->parameters() : parameters_; }
  /// What the model computes with in place of this parameter: with the adapter's share.   values [parameter.count] =
  void effective_values(Context& context, const Parameter& parameter, float* values) const;

  /// Normal(0, initializer_range) weights, zero biases, unit gains; the two products that write to the residual stream
  /// scaled by 1/√(2L) (Radford et al. 2019, §2.3).
  void initialize(uint64_t seed, float initializer_range);

  /// Frozen features u [V, f], copied.
  void set_item_features(const float* features);
  const float* item_features() const { return item_features_.get(); }
  /// Goes up with each set_item_features().
  uint64_t item_features_version() const { return item_features_version_; }

  /// The table that ids index, in `arena` when it must be computed: e_i = v_i + A·u_i.
  const float* word_table(Context& context, Arena& arena) const;
  OutputTable output_table(const float* word_table) const;

  /// Packs the weights of the blocks, in the precision of the context, for faster inference until the parameters
  /// change. Does nothing when that is done already; gives packed weights up when memory is short.
  /// for_few_rows: products of fewer than 4 rows read them, too, and so a row has the same bits among any others; and
  /// where it pays, last_rows_only spares the keys and values of the last block (see FoldedAttention).
  void pack_weights(Context& context, bool for_few_rows = false);

  Activations forward(Context& context, Arena& arena, const Batch& batch, const ForwardOptions& options) const;
  /// Adds to trainable().gradients(), except to the word table (see BackwardInputs).
  void backward(Context& context, Arena& arena, const Activations& activations, const BackwardInputs& inputs);
  /// embeddings.word and item_projection += from the gradient of the word table [V, d].
  void backward_word_table(Context& context, const float* d_word_table);

  /// hidden [R, d] → the rows that the output table is multiplied with.
  HeadActivations head_forward(Context& context, Arena& arena, const float* hidden, int64_t num_rows) const;
  /// d_output [R, d] → d_input [R, d] = ; head parameters +=. Without a head transform the two may be one buffer.
  void head_backward(Context& context, Arena& arena, const HeadActivations& activations, float* d_output,
                     float* d_input, int64_t num_rows);

  /// Of block `layer`, from 0: blocks differ in their sliding window alone.
  AttentionShape attention_shape(const Batch& batch, int64_t layer = 0) const;
  /// That of value relations with so many heads. Throws Error("ERR_INVALID_ARGUMENT") unless they divide KV·hd.
  AttentionShape relation_shape(const Batch& batch, int64_t num_heads) const;

 private:
  friend class Generator;
  struct Norm {
    const float *weight, *bias;  // [d]; bias null for RMS norm
    float *d_weight, *d_bias;    // null while there are no gradients, and with an adapter
  };
  /// What an adapter adds to rows of a linear layer's weight.
  struct LowRank {
    int64_t first_row, num_rows;
    const float *a, *b;  // [rank, in], [num_rows, rank]
    float *d_a, *d_b;    // null while there are no gradients
    uint64_t dropout_stream;
  };
  struct Linear {
    const float *weight, *bias;                  // [out, in], [out] or null
    float *d_weight, *d_bias;                    // null while there are no gradients, and with an adapter
    std::shared_ptr<const PackedMatrix> packed;  // weightᵀ, see is_packed()
    std::vector<LowRank> adapted;
  };
  struct Block {
    Norm attention_norm, mlp_norm;
    Linear qkv, attention_output, mlp_input, mlp_output;
    Norm query_norm, key_norm;  // gains [hd], with qk_norm
  };
  /// Attention of the last block for one query a sequence, without its keys and values: head h scores row x as
  /// qₕ·(W_kₕ·x + b_kₕ) = (W_kₕᵀ·qₕ)·x plus what is the same for all rows, which the softmax cancels; and as its
  /// probabilities add up to 1, Σ p·(W_vₕ·x + b_vₕ) = W_vₕ·Σ p·x + b_vₕ. So all heads attend to the rows themselves.
  struct FoldedAttention {
    AlignedFloats biases;    // [H·d + d]
    Linear queries, output;  // W_kₕᵀ·W_qₕ of all heads [H·d, d], W_oₕ·W_vₕ [d, H·d]; packed alone
  };

  const float* value(const std::string& name) const;
  Norm norm(const std::string& name) const;
  Linear linear(const std::string& name) const;
  /// What the adapter adds to that layer.   gradients: those of the adapter, or null
  std::vector<LowRank> adapted(const std::string& name, float* gradients) const;
  /// Looks up every pointer of the blocks once; again after gradients appear.
  void bind();

  /// Whether the packed weights are those of the parameters.
  bool is_packed() const { return packed_version_ == parameters_.version(); }
  /// y [num_rows, ldy] = columns first_column … first_column + num_columns − 1 of x·weightᵀ + bias, with what an
  /// adapter adds.
  void linear_columns(Context& context, const Linear& linear, const float* x, float* y, int64_t num_rows,
                      int64_t in_features, int64_t first_column, int64_t num_columns, int64_t ldy,
                      const Epilogue& epilogue = {}, const AdapterDropout& dropout = {}) const;
  bool can_fold_last_attention() const;
  /// Needs the memory of 2·H·d² floats twice.
  FoldedAttention fold_last_attention(Context& context) const;
  LowRankShape low_rank_shape(const LowRank& adapted, int64_t num_rows, int64_t in_features, int64_t ldy,
                              const AdapterDropout& dropout) const;
  /// What an adapter adds to linear_backward(): d_x [num_rows, in_features] += , gradients of A and B +=
  ///   x [num_rows, in_features], d_y [num_rows, out_features]
  void adapted_backward(Context& context, const Linear& linear, const float* x, const float* d_y, float* d_x,
                        int64_t num_rows, int64_t in_features, int64_t out_features,
                        const AdapterDropout& dropout) const;
  void norm_forward(Context& context, const Norm& norm, const float* x, float* y, float* mean, float* rstd,
                    int64_t num_rows) const;
  void norm_backward(Context& context, const Norm& norm, const float* x, const float* mean, const float* rstd,
                     const float* d_y, float* d_x, int64_t num_rows) const;
  void activation_forward(Context& context, const float* x, float* y, int64_t num_rows) const;
  void activation_backward(Context& context, const float* x, const float* d_y, float* d_x, int64_t num_rows) const;
  /// Norms of queries and keys, then rotary positions, in place on the first heads of each row: `num_queries` query
  /// heads [hd], then `num_keys` key heads. query_rstd [num_rows, num_queries] =, key_rstd [num_rows, num_keys] =
  void turn_heads(Context& context, const Block& block, float* x, const int32_t* position_ids, int64_t num_rows,
                  int64_t row_stride, int64_t num_queries, int64_t num_keys, float* query_rstd, float* key_rstd) const;
  /// d_qkv [N, (H + 2KV)·hd]: in, the gradient of what attention read; out, of the product's result.
  void turn_heads_backward(Context& context, const Activations& activations, const Block& block,
                           const BlockActivations& a, float* d_qkv) const;
  /// Dropout of x [N, d] in place, when the pass has any, with the mask of these rows in the whole batch.
  void drop(Context& context, const Activations& activations, float* x, float probability,
            uint64_t dropout_stream) const;
  BlockActivations allocate_block(Arena& arena, int64_t num_rows, bool for_backward) const;
  /// Without `output` (norm before the branches), what backward needs and no more.
  void block_forward(Context& context, const Activations& activations, int64_t layer, BlockActivations& block) const;
  void last_block_forward(Context& context, Arena& arena, const Activations& activations,
                          BlockActivations& block) const;
  void last_attention(Context& context, Arena& arena, const Activations& activations, const float* attention_input,
                      const float* last_normed, BlockActivations& block) const;
  void folded_last_attention(Context& context, Arena& arena, const Activations& activations,
                             const float* attention_input, const float* last_normed, BlockActivations& block) const;
  void add_branch(Context& context, const Activations& activations, const Linear& linear, const float* x,
                  int64_t in_features, const float* stream, float* sum, int64_t num_rows,
                  uint64_t dropout_stream) const;
  /// The second half of a block, from `residual` on.
  void feed_forward(Context& context, const Activations& activations, int64_t layer, BlockActivations& block,
                    int64_t num_rows) const;
  void block_backward(Context& context, Arena& arena, const Activations& activations, int64_t layer, float* d_stream,
                      const float* teacher_maps, float map_loss_scale, const float* d_values) const;

  void qkv_bias_backward(Context& context, const float* d_qkv, float* d_bias, int64_t num_rows) const;

  TransformerConfig config_;
  Parameters parameters_;
  std::unique_ptr<Adapter> adapter_;
  uint64_t adapter_version_ = 0;
  AlignedFloats item_features_;
  uint64_t item_features_version_ = 0;
  std::vector<double> rotary_frequencies_;  // [hd/2], with rotary positions
  std::vector<Block> blocks_;
  Norm embedding_norm_{}, final_norm_{}, head_norm_{};
  Linear head_dense_{};
  bool bound_with_gradients_ = false;
  uint64_t packed_version_ = UINT64_MAX;
  Precision packed_precision_ = Precision::kFloat32;
  bool packed_for_few_rows_ = false;
  std::unique_ptr<const FoldedAttention> folded_;  // as is_packed(), or null
};

}  // namespace limbeck
