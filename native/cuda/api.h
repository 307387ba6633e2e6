#pragma once

#include <cstddef>
#include <cstdint>

#include "model/config.h"

// What the addon calls of the CUDA library. Plain structs and functions: no exception, allocation or class crosses.
// Arguments were checked by the caller (ids, offsets, layers, shapes); the library checks what only it can know:
// devices, memory, results that are not finite. All memory of the arguments is the host's.

namespace limbeck::cuda {

constexpr uint32_t kApiVersion = 3;

struct ApiError {
  char code[32];  // "ERR_…"
  char message[1024];
};

struct ApiDevice {
  char name[256];
  int32_t major, minor;  // compute capability
  int32_t num_multiprocessors;
  uint64_t total_bytes, free_bytes;
  char problem[512];  // why it cannot be used, empty = it can
};

struct ApiRuntime {
  int32_t runtime_version;  // 1000·major + 10·minor
  int32_t driver_version;   // 0 = no driver
  int32_t num_devices;
  char cublas[256];    // the library that was opened, empty = none
  char problem[1024];  // why nothing can be computed, empty = something can
};

enum class ApiPrecision : int32_t { kFloat32, kBFloat16 };

struct Engine;   // one GPU, its stream, its libraries
struct Model;    // parameters of one transformer there
struct Trainer;  // optimiser state of a model
struct Pass;     // a forward pass at work

struct ApiBatch {
  const int32_t* input_ids;         // [N]
  const int32_t* sequence_offsets;  // [S + 1]
  const int32_t* token_type_ids;    // [N], or null = type 0
  int64_t num_tokens, num_sequences;
  int64_t tokens_before = 0, squares_before = 0;  // see Batch of model/batch.h
};

enum class ApiPooling : int32_t { kNone, kMean, kLast, kCls, kAttention };

/// One inference pass; see ForwardInputs of model/inference.h. Outputs of a list have one pointer an entry.
struct ApiForward {
  ApiBatch batch;
  const int64_t* hidden_states;  // [num_hidden_states] each 0 … L
  int64_t num_hidden_states;
  ApiPooling pooling;
  ApiPrecision hidden_type;   // of hidden_out: float, or bfloat16 rounded to the nearest, without pooling alone
  void* const* hidden_out;    // each [N or S, d]
  const int64_t* attentions;  // [num_attentions] each 1 … L
  int64_t num_attentions;
  float* const* attentions_out;    // each Σ H·t²
  const int64_t* value_relations;  // [num_value_relations] each 1 … L
  int64_t num_value_relations, relation_heads;
  float* const* value_relations_out;  // each Σ relation_heads·t²
  const int32_t* logit_rows;          // [num_logit_rows]; null = all N
  int64_t num_logit_rows;
  float* logits_out;  // [rows, V] or null = none
  int64_t top_k;      // 0 = none
  int32_t* top_k_indices;
  float *top_k_values, *log_sum_exp;  // [rows, top_k], [rows]
  const int32_t* labels;              // [N] or null
  double* loss_sum;                   // [1] Σ cross-entropy over labelled tokens, with labels
};

enum class ApiOptimizerKind : int32_t { kAdamW, kSgd, kNone };

struct ApiOptimizer {  // see OptimizerOptions of train/trainer.h
  ApiOptimizerKind kind;
  float beta1, beta2, epsilon, weight_decay, momentum, max_grad_norm;
};

struct ApiTeacher {          // see TeacherSignal of train/trainer.h
  Model* model;              // or null: the arrays below
  const int64_t* layer_map;  // [num_pairs, 2] student block, teacher block; from 1
  int64_t num_pairs;
  const float* const* hidden;      // [num_pairs] or null; each [N, teacher_hidden_size]
  const float* const* attentions;  // [num_pairs] or null; each Σ H·t²
  const float* const* relations;   // [num_pairs] or null; each Σ relation_heads·t²
  int64_t relation_heads, teacher_hidden_size;
  const float* dense_logits;   // [N, V] or null
  const float* logits_hidden;  // [N, head's hidden size] with `head`, or null
  Model* head;
  const int32_t* top_k_indices;  // [N, top_k]
  const float *top_k_values, *log_sum_exp;
  int64_t top_k;
};

/// A step, or a part of one (see train/micro_batches.h): then all but batch, labels and teacher are those of the
/// others.
struct ApiStep {
  ApiBatch batch;
  const int32_t* labels;             // [N], -100 = ignored
  int64_t step_tokens, step_labels;  // what losses are averaged over, those of the whole step; step_labels ≥ 1
  float learning_rate;
  int64_t dropout_seed;  // < 0 = no dropout
  float ce, kd, hidden, attention, relation, temperature, fusion, gate;
  const ApiTeacher* teacher;         // or null
  int64_t sampled_negatives;         // 0 = full softmax
  int32_t activation_checkpointing;  // not 0 = blocks are computed again on the way back
};

constexpr int kMaxStepsInFlight = 2;

struct ApiStepResult {
  double loss, ce, kd, hidden, attention, relation;
  double grad_norm;  // before clipping
  int64_t num_labels;
};

/// Which array of a trainer; the last four belong to the projection `index` of the hidden loss.
enum class ApiArray : int32_t {
  kFirst,   // [flat] in the layout of Parameters
  kSecond,  // likewise; AdamW alone
  kProjection,
  kProjectionGradient,
  kProjectionFirst,
  kProjectionSecond,
};

struct Recommender;  // requests to a sequence model

struct ApiRecommend {
  const int32_t* history;  // [length] items, the oldest first; 1 ≤ length ≤ the model's positions
  int64_t length;
  const int32_t* excluded;  // [num_excluded] items that are not answered
  int64_t num_excluded;
  int64_t k;             // ≤ 1024, as num_excluded
  int32_t* indices;      // [k] best first, equal scores by lower index
  float* scores;         // [k]
  int64_t* num_results;  // [1] ≤ k
};

/// Full ranking of held-out items; see Recommender::rank() of retrieve/recommender.h.
struct ApiRank {
  ApiBatch batch;                   // histories, of at most the model's positions; with states, num_sequences alone
  const float* states;              // [S, d] the state after each history, or null
  const int32_t* targets;           // [S]
  const int32_t* excluded_items;    // lists end to end: each item once in a list, the target in none
  const int32_t* excluded_offsets;  // [S + 1] from 0
  int64_t top_k;                    // ≤ the number of items; 0 = ranks only
  int32_t* ranks;                   // [S]
  int32_t* indices;                 // [S, top_k] best first; −1 and score −∞ where fewer are left
  float* scores;                    // [S, top_k]
};

/// See pca.h of this folder.
struct ApiPca {
  const float* x;  // [num_rows, num_columns]
  int64_t num_rows, num_columns, num_components;
  uint64_t seed;
  float* mean;                // [num_columns]
  float* components;          // [num_components, num_columns]
  float* explained_variance;  // [num_components]
};

struct ApiPcaTransform {
  const float *x, *mean, *components;  // as ApiPca has them
  int64_t num_rows, num_columns, num_components;
  float* y;  // [num_rows, num_components]
};

/// Functions that can fail return 0, or −1 with *error set; those that make something return null then. A lost device
/// ("ERR_DEVICE_LOST") fails every later call of its engine. One thread at a time an engine.
struct Api {
  uint32_t version;     // kApiVersion
  uint32_t size_bytes;  // sizeof(Api)

  void (*describe_runtime)(ApiRuntime* out);
  int32_t (*describe_device)(int32_t device, ApiDevice* out, ApiError* error);

  Engine* (*create_engine)(int32_t device, ApiPrecision precision, ApiError* error);
  void (*destroy_engine)(Engine* engine);
  /// With tuning, products choose the fastest of several algorithms when a shape is first met; off at first. Faster by
  /// a few percent, but another process may choose otherwise, and round otherwise.
  void (*set_tuning)(Engine* engine, int32_t tuning);

  /// config_bytes = sizeof(TransformerConfig), checked.
  Model* (*create_model)(Engine* engine, const TransformerConfig* config, size_t config_bytes, ApiError* error);
  void (*destroy_model)(Model* model);
  /// flat: all of Parameters, in its layout.
  int32_t (*set_parameters)(Model* model, const float* flat, ApiError* error);
  int32_t (*get_parameters)(Model* model, float* flat, ApiError* error);
  int32_t (*get_gradients)(Model* model, float* flat, ApiError* error);
  /// [V, f]
  int32_t (*set_item_features)(Model* model, const float* features, ApiError* error);
  int32_t (*forward)(Model* model, const ApiForward* request, ApiError* error);
  /// The same in two: returns when the pass is on its way, so that the next ones may be begun; other calls of the
  /// engine may come between, in whose order it reads the model. Inputs are the caller's again; outputs are written
  /// until finish_forward() has returned, which waits for them, or destroy_forward(), which comes in any case, before
  /// the engine is destroyed.
  Pass* (*begin_forward)(Model* model, const ApiForward* request, ApiError* error);
  int32_t (*finish_forward)(Pass* pass, ApiError* error);
  void (*destroy_forward)(Pass* pass);
  /// θ ← θ + alpha·(source − θ), both of one configuration and engine.
  int32_t (*interpolate)(Model* model, const Model* source, float alpha, ApiError* error);

  Trainer* (*create_trainer)(Model* model, const ApiOptimizer* optimizer, ApiError* error);
  void (*destroy_trainer)(Trainer* trainer);
  /// Gradients of a step in num_parts ≥ 1 parts, each computed alone; parameters stay.
  int32_t (*compute_gradients)(Trainer* trainer, const ApiStep* parts, int64_t num_parts, ApiStepResult* result,
                               ApiError* error);
  /// "ERR_NOT_FINITE", parameters untouched, when loss or norm is not finite.
  int32_t (*step)(Trainer* trainer, const ApiStep* parts, int64_t num_parts, ApiStepResult* result, ApiError* error);
  /// step() in two: begin returns when the step is on its way, so that the host may prepare and begin the next while
  /// the GPU works, up to kMaxStepsInFlight; the arguments are the caller's again. finish waits for the oldest. After a
  /// step that was not finite those begun after it change nothing and fail alike, and the next to be begun follows the
  /// last good one. Other calls that read or change the model come after the steps that were begun;
  /// compute_gradients(), step() and set_step_count() want them finished.
  int32_t (*begin_step)(Trainer* trainer, const ApiStep* parts, int64_t num_parts, ApiError* error);
  int32_t (*finish_step)(Trainer* trainer, ApiStepResult* result, ApiError* error);
  /// Of the steps that were finished.
  int64_t (*get_step_count)(const Trainer* trainer);
  void (*set_step_count)(Trainer* trainer, int64_t step_count);
  /// Rows (d_teacher) and columns (d_student) of projection `index`; −1 without error when there is none.
  int32_t (*projection_shape)(const Trainer* trainer, int64_t index, int64_t* rows, int64_t* columns);
  /// Makes projection `index`, or checks its shape.
  int32_t (*ensure_projection)(Trainer* trainer, int64_t index, int64_t rows, int64_t columns, ApiError* error);
  int32_t (*read_array)(Trainer* trainer, ApiArray array, int64_t index, float* out, ApiError* error);
  int32_t (*write_array)(Trainer* trainer, ApiArray array, int64_t index, const float* in, ApiError* error);

  /// The items are the rows of the model's table as it is now, and so may its layers be; the rest stays shared with it.
  Recommender* (*create_recommender)(Model* model, ApiError* error);
  void (*destroy_recommender)(Recommender* recommender);
  int32_t (*recommend)(Recommender* recommender, const ApiRecommend* request, ApiError* error);

  int32_t (*pca)(Engine* engine, const ApiPca* request, ApiError* error);
  int32_t (*pca_transform)(Engine* engine, const ApiPcaTransform* request, ApiError* error);

  /// What the feed-forward of a pass may keep between its products: more tokens go through it part by part. 512 MB at
  /// first.
  void (*set_mlp_bytes)(Engine* engine, int64_t size_bytes);

  int32_t (*rank)(Recommender* recommender, const ApiRank* request, ApiError* error);
};

}  // namespace limbeck::cuda

/// The library's one export: null when it has no such version.
extern "C" const limbeck::cuda::Api* limbeck_cuda_api(uint32_t version);
