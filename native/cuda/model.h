#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "cuda/api.h"
#include "cuda/attention.h"
#include "cuda/device_batch.h"
#include "cuda/engine.h"
#include "cuda/loss_head.h"
#include "cuda/optimizer.h"
#include "cuda/pending_sums.h"
#include "model/config.h"
#include "model/parameters.h"

namespace limbeck::cuda {

/// The opaque Pass of api.h: a forward pass whose results are under way. What is not finished is forgotten.
struct Pass {
  virtual ~Pass() = default;
  /// Waits until they are in the caller's arrays.
  virtual void finish() = 0;
};

/// The opaque Model of api.h: a transformer whose elements are those of its engine's precision.
struct Model {
  Model(Engine& engine, const TransformerConfig& config) : engine(engine), config(config) {}
  virtual ~Model() = default;
  virtual void set_parameters(const float* flat) = 0;
  virtual void get_parameters(float* flat) = 0;
  virtual void get_gradients(float* flat) = 0;
  virtual void set_item_features(const float* features) = 0;
  /// Puts a forward pass on the stream. Outputs of the request are written until the pass is finished or destroyed.
  virtual std::unique_ptr<Pass> begin(const ApiForward& request) = 0;
  virtual void interpolate(const Model& source, float alpha) = 0;

  Engine& engine;
  const TransformerConfig config;
  int64_t num_steps_begun = 0;  // by its trainers, and not finished: they may still change the parameters
};

/// What one block keeps for its backward pass; shapes as BlockActivations of model/transformer.h, statistics fp32.
template <typename T>
struct BlockActivations {
  const T* input;                          // [N, d] residual stream
  T* attention_normed;                     // [N, d] what attention reads; norm after: null, it reads input
  float *attention_mean, *attention_rstd;  // [N]
  T* qkv;                                  // [N, (H + 2KV)·hd], queries and keys normed and turned
  T* raw_qk;                               // [N, (H + KV)·hd] before their norms, or null
  float *query_rstd, *key_rstd;            // [N, H], [N, KV], with norms of queries and keys
  float* lse;                              // [H, N]
  T* attended;                             // [N, H·hd]
  T* residual;                             // [N, d] input + attention output
  int64_t mlp_rows;                        // M: tokens that go through the feed-forward at once; N before a backward
  T* mlp_normed;                           // [M, d] what the feed-forward reads
  float *mlp_mean, *mlp_rstd;              // [N]
  T* mlp_input;                            // [M, I or 2I] before the activation
  T* mlp_activated;                        // [M, I]
  T* output_sum;                           // [M, d] norm after: residual + feed-forward output; else null
  T* output;                               // [N, d] what the next block reads
  float* maps;                             // Σ H·t², or null
  T* values;                               // [N, KV·hd], or null
};

template <typename T>
struct Activations {
  const DeviceBatch* batch;
  const T* word_table;                      // [padded V, d]: embeddings.word, or the item table v + A·u
  T* embedded;                              // [N, d] sum of embeddings, before embeddings.norm (norm after)
  float *embedded_mean, *embedded_rstd;     // [N]
  std::vector<BlockActivations<T>> blocks;  // [L]
  std::vector<T*> hidden;          // [L + 1], each [N, d]; without backward only those kept are whole at the end
  const T* final_input;            // [N, d] what final_norm reads
  float *final_mean, *final_rstd;  // [N]
  const uint64_t* dropout_seed;    // [1] device memory, or null = none
  bool recomputes_blocks;          // see model/transformer.h
};

template <typename T>
struct ForwardOptions {
  bool for_backward = false;
  bool recomputes_blocks = false;            // as in model/transformer.h
  const uint64_t* dropout_seed = nullptr;    // for_backward alone: sums in place have no room for a branch of its own
  std::vector<bool> keep_maps, keep_values;  // [L] or empty = none
  std::vector<bool> keep_hidden;             // [L + 1] or empty = the last alone
  std::vector<T*> hidden;                    // [L + 1] or empty; where to put them, entries [N, d] or null
};

template <typename T>
struct BackwardInputs {
  T* d_final;                              // [N, d] gradient at hidden[L]; overwritten
  std::vector<const T*> d_hidden;          // [L + 1], entries [N, d] or null, added at hidden[l], l < L
  std::vector<const float*> teacher_maps;  // [L], entries or null
  float map_loss_scale = 0;
  std::vector<const T*> d_values;  // [L], entries [N, KV·hd] or null
  float* d_word_table;             // [padded V, d] += gradient of word_table
  bool adds_to_weights = false;    // gradients of the blocks' weights += instead of =
};

/// Rows of `hidden` on their way to logits, see HeadActivations of model/transformer.h.
template <typename T>
struct HeadActivations {
  const T* input;        // [R, d]
  T *dense, *activated;  // [R, d] before and after the activation
  float *mean, *rstd;    // [R]
  const T* output;       // [R, d] what the table is multiplied with
};

/// Forward and backward of one transformer, the same mathematics as model/transformer.h. Master weights, gradients and
/// moments are fp32; products read weights of type T.
template <typename T>
class Transformer final : public Model {
 public:
  Transformer(Engine& engine, const TransformerConfig& config);

  void set_parameters(const float* flat) override;
  void get_parameters(float* flat) override;
  void get_gradients(float* flat) override;
  void set_item_features(const float* features) override;
  std::unique_ptr<Pass> begin(const ApiForward& request) override;
  void interpolate(const Model& source, float alpha) override;

  const T* word_table(Context& context) const;
  OutputTable<T> output_table(const T* word_table) const;

  Activations<T> forward(Context& context, const DeviceBatch& batch, const ForwardOptions<T>& options) const;
  /// Gradients +=, but for those of the blocks' weights [out, in] and of the word table (see BackwardInputs).
  void backward(Context& context, const Activations<T>& activations, const BackwardInputs<T>& inputs) const;
  /// embeddings.word and item_projection += from the gradient of the word table [V, d].
  void backward_word_table(Context& context, const float* d_word_table) const;

  HeadActivations<T> head_forward(Context& context, const T* hidden, int64_t num_rows) const;
  /// d_output [R, d] → d_input [R, d] = (may be one buffer); head parameters +=.
  void head_backward(Context& context, const HeadActivations<T>& activations, T* d_output, T* d_input,
                     int64_t num_rows) const;

  AttentionShape attention_shape(const DeviceBatch& batch, int64_t layer = 0) const;
  AttentionShape relation_shape(const DeviceBatch& batch, int64_t num_heads) const;

  /// Allocated at the first call.
  void require_gradients();
  /// Those that backward() and head_backward() add to, but for the tables embeddings.word and head.output.weight.
  void zero_added_gradients(Context& context) const;
  /// That of embeddings.word or head.output.weight; nothing, where the model has no such table.
  void zero_table_gradient(Context& context, const std::string& name) const;
  float* gradient(const std::string& name) const;
  /// One entry a parameter; moments are those of the trainer, in the device layout (see device_count).
  ///   touched_words [V] or null: see OptimizerTensor, for embeddings.word
  std::vector<OptimizerTensor> optimizer_tensors(float* first, float* second, float weight_decay,
                                                 const uint8_t* touched_words) const;
  /// Floats of a device array of all parameters.
  int64_t device_count() const { return device_count_; }
  /// Copies between an array in the host's layout of Parameters and one in the device layout.
  void upload(const float* flat, float* device);
  void download(const float* device, float* flat);
  int64_t padded_vocab_size() const { return padded_vocab_size_; }
  /// The fp32 values of a parameter, and those that products read; null where the model has none of that name.
  const float* master(const std::string& name) const;
  const T* compute(const std::string& name) const;

 private:
  struct Tensor {
    Parameter parameter;   // its place on the host
    int64_t offset;        // floats from the start of a device array, a multiple of 128
    int64_t padded_count;  // rows of tables rounded up, zeros
  };
  struct Norm {
    const float *weight = nullptr, *bias = nullptr;  // [d] master values; bias null for RMS norm
    float *d_weight = nullptr, *d_bias = nullptr;
  };
  struct Linear {
    const T *weight = nullptr, *bias = nullptr;  // [out, in], [out] or null
    float *d_weight = nullptr, *d_bias = nullptr;
  };
  struct Block {
    Norm attention_norm, mlp_norm, query_norm, key_norm;
    Linear qkv, attention_output, mlp_input, mlp_output;
  };

  const Tensor* find(const std::string& name) const;
  Norm norm(const std::string& name) const;
  Linear linear(const std::string& name) const;
  void bind();
  /// The rounded copy of all parameters, after they changed.
  void refresh_compute(Context& context);

  void norm_forward(Context& context, const Norm& norm, const T* x, T* y, float* mean, float* rstd,
                    int64_t num_rows) const;
  /// d_x_sums, pending: see layer_norm_backward()
  void norm_backward(Context& context, const Norm& norm, const T* x, const float* mean, const float* rstd, const T* d_y,
                     T* d_x, int64_t num_rows, bool accumulate, float* d_x_sums = nullptr,
                     PendingSums* pending = nullptr) const;
  /// Dropout of x [N, d] in place, when the pass has any, with the mask of these rows in the whole batch.
  void drop(Context& context, const Activations<T>& activations, T* x, float probability,
            uint64_t dropout_stream) const;
  AttentionDropout dropout_of_attention(const Activations<T>& activations, int64_t layer) const;
  BlockActivations<T> allocate_block(Context& context, int64_t num_rows, bool for_backward) const;
  /// Without `output` (norm before the branches), what backward needs and no more.
  void block_forward(Context& context, const Activations<T>& activations, int64_t layer, BlockActivations<T>& a) const;
  /// Of num_rows tokens from `first` on.
  void feed_forward(Context& context, const Activations<T>& activations, int64_t layer, const BlockActivations<T>& a,
                    int64_t first, int64_t num_rows) const;
  int64_t mlp_rows_of(int64_t num_rows) const;
  void block_backward(Context& context, const Activations<T>& activations, const BackwardInputs<T>& inputs,
                      int64_t layer, T* d_stream) const;
  void turn_heads(Context& context, const Block& block, const DeviceBatch& batch, const BlockActivations<T>& a) const;
  void turn_heads_backward(Context& context, const Block& block, const DeviceBatch& batch, const BlockActivations<T>& a,
                           T* d_qkv, PendingSums* pending) const;
  void add_branch(Context& context, const Activations<T>& activations, const Linear& linear, const T* x,
                  int64_t in_features, const T* stream, T* sum, int64_t num_rows, uint64_t dropout_stream) const;
  const T* branch_gradient(Context& context, const Activations<T>& activations, const T* d_stream, T* buffer,
                           uint64_t dropout_stream) const;
  void qkv_bias_backward(Context& context, const T* d_qkv, float* d_bias, int64_t num_rows, PendingSums* pending) const;
  bool drops_branches(const Activations<T>& activations) const;
  /// The gradient of the bias that block `layer` adds last, where the norm that writes the gradient of the block's
  /// output can sum it up on the way; else null.
  float* output_bias_of_norm(const Activations<T>& activations, const BackwardInputs<T>& inputs, int64_t layer) const;

  std::vector<Tensor> tensors_;
  std::unordered_map<std::string, size_t> index_;
  int64_t host_count_ = 0, device_count_ = 0, padded_vocab_size_ = 0;
  int64_t first_added_ = 0;  // element of a device array: from here on, gradients are added to
  DeviceArena memory_, gradient_memory_;
  float* values_ = nullptr;     // [device_count]
  float* gradients_ = nullptr;  // [device_count] or null
  T* compute_ = nullptr;        // [device_count]; for T = float it is values_
  T* item_features_ = nullptr;  // [padded V, f]
  bool has_item_features_ = false;
  float *cosines_ = nullptr, *sines_ = nullptr;  // [positions, hd/2], with rotary positions
  std::vector<Block> blocks_;
  Norm embedding_norm_, final_norm_, head_norm_;
  Linear head_dense_;
};

}  // namespace limbeck::cuda
