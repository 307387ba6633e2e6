// The kernels of one instruction set and their table. Included by kernels_<isa>.cc inside the namespace of the set,
// after LIMBECK_LANES is defined and the target pragma is on. (The pragma does not define __AVX2__ and its like.)

constexpr int64_t kLanes = LIMBECK_LANES;  // floats of a vector

#include "cpu/vec.inl.h"
//
#include "cpu/random.inl.h"
//
#include "cpu/attention.inl.h"
#include "cpu/elementwise.inl.h"
#include "cpu/gemm.inl.h"
#include "cpu/loss.inl.h"
#include "cpu/retrieve.inl.h"

constexpr CpuKernels make_kernels(const char* isa) {
  CpuKernels kernels{};
  kernels.isa = isa;
  kernels.gemm_float32 = make_gemm_kernels<Float32Words>();
  kernels.gemm_bfloat16 = make_gemm_kernels<BFloat16Words>();
  kernels.gemv = gemv;
  kernels.gather_dots = gather_dots;
  kernels.add_rows = add_rows;
  kernels.add = add;
  kernels.subtract = subtract;
  kernels.interpolate = interpolate;
  kernels.square_sum = square_sum;
  kernels.dropout = dropout;
  kernels.gelu_tanh_forward = gelu_tanh_forward;
  kernels.gelu_tanh_backward = gelu_tanh_backward;
  kernels.gelu_erf_forward = gelu_erf_forward;
  kernels.gelu_erf_backward = gelu_erf_backward;
  kernels.swiglu_forward = swiglu_forward;
  kernels.swiglu_backward = swiglu_backward;
  kernels.layer_norm_forward = layer_norm_forward;
  kernels.layer_norm_backward = layer_norm_backward;
  kernels.rms_norm_forward = rms_norm_forward;
  kernels.rms_norm_backward = rms_norm_backward;
  kernels.rotate_heads = rotate_heads;
  kernels.adamw = adamw;
  kernels.sgd = sgd;
  kernels.attention_forward = attention_forward;
  kernels.attention_backward = attention_backward;
  kernels.attend_row = attend_row;
  kernels.divergence = divergence;
  kernels.loss_row = loss_row;
  kernels.log_sum_exp = log_sum_exp;
  kernels.quantised_bounds = quantised_bounds;
  kernels.quantised_query_max = kQuantisedQueryMax;
  kernels.quantised_rows = kQuantisedRows;
  kernels.quantised_bounds_of_batch = quantised_bounds_of_batch;
  kernels.exceeded_by = exceeded_by;
  kernels.exceeded_by_best = exceeded_by_best;
  kernels.find_greater = find_greater;
  kernels.count_not_less = count_not_less;
  return kernels;
}
