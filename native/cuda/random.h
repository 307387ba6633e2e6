#pragma once

#include <cstdint>

#include "cuda/device_code.h"

namespace limbeck::cuda {

/// The four words of block `index` of Philox4x32-10, those of Philox::block of core/rng.h.
__device__ __forceinline__ void philox_block(uint64_t seed, uint64_t stream, uint64_t index, uint32_t (&out)[4]) {
  uint32_t c0 = static_cast<uint32_t>(index), c1 = static_cast<uint32_t>(index >> 32);
  uint32_t c2 = static_cast<uint32_t>(stream), c3 = static_cast<uint32_t>(stream >> 32);
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53u} * c0;
    const uint64_t product1 = uint64_t{0xCD9E8D57u} * c2;
    const uint32_t next0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ key0;
    const uint32_t next2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ key1;
    c1 = static_cast<uint32_t>(product1);
    c3 = static_cast<uint32_t>(product0);
    c0 = next0;
    c2 = next2;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  out[0] = c0;
  out[1] = c1;
  out[2] = c2;
  out[3] = c3;
}

/// Inverted dropout keeps element i, and multiplies it by `scale`, where (word i >> 8) ≥ threshold.
struct DropoutRule {
  uint32_t threshold;
  float scale;

  explicit DropoutRule(float probability)
      : threshold(static_cast<uint32_t>(__builtin_ceilf(probability * 16777216.0f))),
        scale(1.0f / (1.0f - probability)) {}
  __device__ __forceinline__ float factor(uint32_t word) const { return (word >> 8) >= threshold ? scale : 0.0f; }
};

}  // namespace limbeck::cuda
