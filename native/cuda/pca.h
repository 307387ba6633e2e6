#pragma once

#include "cuda/context.h"

namespace limbeck::cuda {

/// As limbeck::pca() of ops/pca.h, from the same random directions, in fp32 whatever the precision of the engine. All
/// of x is on the GPU while it runs; small matrices are factorised on the host. All memory is the host's; ready when it
/// returns.
///   host_x [num_rows, num_columns], host_mean [num_columns] =, host_components [num_components, num_columns] =
///   host_explained_variance [num_components] =
void pca(Context& context, const float* host_x, int64_t num_rows, int64_t num_columns, int64_t num_components,
         uint64_t seed, float* host_mean, float* host_components, float* host_explained_variance);

/// y = (x − mean)·componentsᵀ, some rows of x at a time on the GPU. All memory is the host's; ready when it returns.
///   host_components [num_components, num_columns], host_y [num_rows, num_components] =
void pca_transform(Context& context, const float* host_x, const float* host_mean, const float* host_components,
                   float* host_y, int64_t num_rows, int64_t num_columns, int64_t num_components);

}  // namespace limbeck::cuda
