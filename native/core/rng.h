#pragma once

#include <cstdint>

namespace limbeck {

/// Counter-based generator Philox4x32-10 (Salmon et al. 2011, SC'11, §3.3): the numbers are a function of (seed,
/// stream, index) alone, so that order, threads and resumption cannot change them.
struct Philox {
  uint64_t seed;
  uint64_t stream;

  /// Four random words of the block `index`.
  void block(uint64_t index, uint32_t out[4]) const;
  /// Word `index` of the sequence made of all blocks, in order.
  uint32_t word(uint64_t index) const;
  /// Uniform in [0, 1), 24 bits.
  float uniform(uint64_t index) const { return static_cast<float>(word(index) >> 8) * 0x1p-24f; }
  /// Standard normal (Box–Muller); index counts normals.
  float normal(uint64_t index) const;
  /// out[i] = normal(i), each block of the generator made once.
  void fill_normal(float* out, uint64_t count) const;
};

}  // namespace limbeck
