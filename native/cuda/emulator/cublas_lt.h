#pragma once

#include "cuda/cublas_lt.h"

namespace limbeck::cuda::emulator {

/// cuBLASLt in plain loops. Like the real one, it has no algorithm for bf16 rows that are not aligned to 16 bytes…
/// which the real one mostly has, so that in tests what stands in for it is run, too.
lt::Functions cublas_lt();

/// The algorithm of the last product.
struct LastAlgorithm {
  lt::Tile tile;
  lt::ClusterShape cluster;
  int32_t split_k;
};
LastAlgorithm last_algorithm_of_cublas_lt();

}  // namespace limbeck::cuda::emulator
