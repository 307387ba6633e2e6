#pragma once

#include <cstdint>

#include "ops/attention.h"
#include "ops/context.h"

namespace limbeck {

/// Value relations (Wang et al. 2021, MiniLMv2, arXiv:2012.15828, §3): of each sequence and relation head the softmax
/// of V·Vᵀ/√head_dim, where the columns of V are cut into heads anew, so that models of other head counts have maps of
/// one shape. Causal models relate a token to itself and earlier ones. `shape` has the relation heads as query and as
/// key-value heads; A·head_dim = columns of V.
///   values [N, A·head_dim], maps as in attention_forward: sequence by sequence [A, t, t] =
void value_relation_forward(Context& context, const AttentionShape& shape, const float* values, float* maps);

/// Gradient of scale · Σ KL(teacher ‖ student) of these maps.   teacher_maps in the layout of maps, d_values =
void value_relation_backward(Context& context, const AttentionShape& shape, const float* values,
                             const float* teacher_maps, float scale, float* d_values);

}  // namespace limbeck
