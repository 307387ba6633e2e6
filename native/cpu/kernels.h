#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cpu/attention.h"
#include "cpu/loss.h"
#include "cpu/retrieve.h"

namespace limbeck {

/// AdamW of one tensor (ops/optimizer.h), with what does not depend on the element worked out once.
struct AdamWUpdate {
  float beta1, one_minus_beta1, beta2, one_minus_beta2, epsilon;
  float step_size;                // lr / (1 − β1ᵗ)
  float inverse_root_correction;  // 1 / √(1 − β2ᵗ)
  float decay;                    // 1 − lr·wd
  float grad_scale;
};

struct SgdUpdate {
  float learning_rate, momentum;
  float decay;  // 1 − lr·wd
  float grad_scale;
};

/// Products of packed panels (cpu/gemm.inl.h) of 32-bit words: floats, or pairs of bfloat16.
struct GemmKernels {
  int64_t rows, columns;  // of a register tile
  int64_t word_elements;  // values of k in a word
  int64_t block_words;    // depth of a block that suits the caches
  int64_t group_columns;  // of B, which stay in the second-level cache while all rows of a block pass by

  using Multiply = void (*)(int64_t num_rows, int64_t columns, int64_t words, const float* a, int64_t a_stride,
                            const float* b_panels, const float* bias, float* c, int64_t ldc, bool accumulate);
  Multiply multiply;  // a is packed
  // Of A as it lies, a_stride between its rows, or between its columns: what a product with few columns takes. Null
  // where words hold two values.
  Multiply multiply_rows, multiply_columns;
  void (*pack_a)(const float* x, int64_t stride, int64_t k_stride, int64_t count, int64_t k, int64_t panel_floats,
                 float* out);
  void (*pack_b)(const float* x, int64_t stride, int64_t k_stride, int64_t count, int64_t k, int64_t panel_floats,
                 float* out);
};

/// The kernels of one instruction set. What each computes stands at its definition (*.inl.h); they check nothing.
struct CpuKernels {
  const char* isa;  // "avx512bf16", "avx512", "avx2" or "portable"
  GemmKernels gemm_float32, gemm_bfloat16;

  void (*gemv)(int64_t n, int64_t k, const float* a, int64_t a_stride, const float* b, int64_t row_stride,
               int64_t column_stride, const float* bias, float* c, bool accumulate);
  void (*gather_dots)(int64_t k, const float* a, const float* table, const int32_t* ids, int64_t count, float* out);
  void (*add_rows)(const float* x, int64_t stride, int64_t rows, int64_t columns, float* out);

  void (*add)(const float* x, float* y, int64_t count);
  void (*subtract)(const float* x, float* y, int64_t count);
  void (*interpolate)(float* parameters, const float* target, int64_t count, float alpha);
  double (*square_sum)(const float* x, int64_t count);
  void (*dropout)(float* x, uint64_t first, int64_t count, float probability, uint64_t seed, uint64_t stream);

  void (*gelu_tanh_forward)(const float* x, float* y, int64_t count);
  void (*gelu_tanh_backward)(const float* x, const float* d_y, float* d_x, int64_t count);
  void (*gelu_erf_forward)(const float* x, float* y, int64_t count);
  void (*gelu_erf_backward)(const float* x, const float* d_y, float* d_x, int64_t count);
  void (*swiglu_forward)(const float* gate, const float* up, float* y, int64_t count);
  void (*swiglu_backward)(const float* gate_up, const float* d_y, float* d_gate_up, int64_t count);

  float (*layer_norm_forward)(const float* x, const float* gamma, const float* beta, float* y, float* mean,
                              int64_t count, float eps);
  void (*layer_norm_backward)(const float* x, const float* gamma, float mean, float rstd, const float* d_y, float* d_x,
                              float* d_gamma, float* d_beta, int64_t count);
  float (*rms_norm_forward)(const float* x, const float* gamma, float* y, int64_t count, float eps);
  void (*rms_norm_backward)(const float* x, const float* gamma, float rstd, const float* d_y, float* d_x,
                            float* d_gamma, int64_t count);
  void (*rotate_heads)(float* x, int64_t num_heads, int64_t half, const float* cosines, const float* sines);

  void (*adamw)(const AdamWUpdate& update, float* parameters, const float* gradients, float* first, float* second,
                int64_t count);
  void (*sgd)(const SgdUpdate& update, float* parameters, const float* gradients, float* buffer, int64_t count);

  void (*attention_forward)(const AttentionTask& task, float* y, float* lse, float* maps, float* scratch);
  void (*attention_backward)(const AttentionTask& task, const float* y, const float* lse, const float* d_y,
                             float* d_qkv, const float* teacher_maps, float map_loss_scale, float* scratch);
  void (*attend_row)(const float* query, const float* keys, const float* values, int64_t stride, int64_t length,
                     int64_t dim, float* y, float* scores);
  double (*divergence)(const float* teacher, const float* student, int64_t count);

  LossRowValue (*loss_row)(const LossRow& row, float* scratch);
  double (*log_sum_exp)(const float* x, int64_t count);
  void (*quantised_bounds)(const uint8_t* table, const float* scales, int64_t num_blocks, const QuantisedQuery& query,
                           float* upper, uint64_t* above);
  int32_t quantised_query_max;  // largest magnitude of a query's value
  int64_t quantised_rows;       // queries of a panel
  void (*quantised_bounds_of_batch)(const QuantisedQuery* queries, int64_t num_queries, const int32_t* panels,
                                    const uint8_t* table, const float* scales, int64_t num_blocks, float* upper,
                                    uint64_t* above);
  float (*exceeded_by)(const float* x, int64_t count, int64_t k, float known);
  float (*exceeded_by_best)(const float* x, int64_t count, int64_t k);
  int64_t (*find_greater)(const float* x, int64_t begin, int64_t count, float threshold);
  int64_t (*count_not_less)(const float* x, int64_t count, float limit);
};

/// The widest that the processor and the operating system offer; LIMBECK_FORCE_ISA names another. Chosen at the first
/// call. Throws Error("ERR_INVALID_ARGUMENT") when the variable names a set that is unknown or not offered here.
const CpuKernels& cpu_kernels();

/// Those of a set by name; null when this machine cannot run them.
const CpuKernels* kernels_for_isa(const std::string& isa);

/// From now on cpu_kernels() is this. Not thread-safe.
void set_cpu_kernels_for_testing(const CpuKernels& kernels);

struct CpuInfo {
  std::vector<std::string> features;  // instruction sets offered
  std::string isa;                    // of cpu_kernels()
};
CpuInfo cpu_info();

}  // namespace limbeck
