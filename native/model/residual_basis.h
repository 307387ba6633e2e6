#pragma once

#include <cstdint>
#include <vector>

#include "ops/context.h"

namespace limbeck {

/// Orthonormal rows P turned among themselves. What they keep stays the same; what a norm can do to it does not: its
/// gain is a diagonal, and a layer norm removes the mean of the channels. First P·diag(gain)·Pᵀ is made diagonal. Then,
/// for a layer norm, what the source's removes, the mean of its channels, is brought to the mean of the target's; where
/// P does not keep its share of that, the last row is, which carries least. As little else as can be is changed by
/// that.
///   components [rows, columns], gain [columns]; returns P [rows, columns]
std::vector<float> residual_basis(Context& context, const float* components, int64_t rows, int64_t columns,
                                  const float* gain, bool removes_mean);

}  // namespace limbeck
