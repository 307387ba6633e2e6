// Philox words and dropout factors, several blocks at a time. Included by kernels_<isa>.cc, after vec.inl.h.

typedef uint64_t VecU64 __attribute__((vector_size(kLanes * 4)));

/// Lane by lane the 64-bit product of the low 32 bits of a and a 32-bit constant; high halves of a are ignored.
inline VecU64 multiply_low_halves(VecU64 a, uint64_t b) {
  const VecU64 constant = b - VecU64{};
#if LIMBECK_LANES == 16
  return reinterpret_cast<VecU64>(_mm512_mul_epu32(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(constant)));
#elif LIMBECK_LANES == 8
  return reinterpret_cast<VecU64>(_mm256_mul_epu32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(constant)));
#else
  return (a & 0xFFFFFFFFu) * constant;
#endif
}

constexpr int64_t kPhiloxBlocks = kLanes;

/// The words of kPhiloxBlocks blocks of Philox4x32-10 in order: what Philox::block (core/rng.h) gives one at a time.
inline void philox_words(uint64_t seed, uint64_t stream, uint64_t first_block, uint32_t* words) {
  constexpr int kVectorBlocks = kLanes / 2;
  VecU64 c0[2], c1[2], c2[2], c3[2];
  for (int v = 0; v < 2; ++v) {
    uint64_t indices[kVectorBlocks];
    for (int lane = 0; lane < kVectorBlocks; ++lane) {
      indices[lane] = first_block + static_cast<uint64_t>(v * kVectorBlocks + lane);
    }
    __builtin_memcpy(&c0[v], indices, sizeof indices);
    c1[v] = c0[v] >> 32;
    c2[v] = stream - VecU64{};
    c3[v] = c2[v] >> 32;
  }
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round, key0 += 0x9E3779B9u, key1 += 0xBB67AE85u) {
    // The high halves of the counters collect rubbish, which no product reads.
    for (int v = 0; v < 2; ++v) {
      const VecU64 product0 = multiply_low_halves(c0[v], 0xD2511F53u);
      const VecU64 product1 = multiply_low_halves(c2[v], 0xCD9E8D57u);
      c0[v] = (product1 >> 32) ^ c1[v] ^ key0;
      c2[v] = (product0 >> 32) ^ c3[v] ^ key1;
      c1[v] = product1;
      c3[v] = product0;
    }
  }
  for (int v = 0; v < 2; ++v) {
    for (int lane = 0; lane < kVectorBlocks; ++lane, words += 4) {
      words[0] = static_cast<uint32_t>(c0[v][lane]);
      words[1] = static_cast<uint32_t>(c1[v][lane]);
      words[2] = static_cast<uint32_t>(c2[v][lane]);
      words[3] = static_cast<uint32_t>(c3[v][lane]);
    }
  }
}

/// Dropout factors of elements first … first + count − 1: 0 or 1/(1 − probability).
inline void dropout_factors(uint64_t seed, uint64_t stream, float probability, uint64_t first, int64_t count,
                            float* factors) {
  constexpr int64_t kWords = 4 * kPhiloxBlocks;
  const float keep = 1.0f / (1.0f - probability);
  const uint32_t threshold = static_cast<uint32_t>(__builtin_ceilf(probability * 0x1p24f));
  uint32_t words[kWords];
  int64_t skip = static_cast<int64_t>(first % 4);
  uint64_t block = first / 4;
  for (int64_t done = 0; done < count; block += kPhiloxBlocks) {
    philox_words(seed, stream, block, words);
    const int64_t take = kWords - skip < count - done ? kWords - skip : count - done;
    for (int64_t i = 0; i < take; ++i) factors[done + i] = (words[skip + i] >> 8) >= threshold ? keep : 0.0f;
    done += take;
    skip = 0;
  }
}

/// x[i] *= factor of element first + i.
void dropout(float* x, uint64_t first, int64_t count, float probability, uint64_t seed, uint64_t stream) {
  constexpr int64_t kBlock = 512;
  float factors[kBlock];
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t size = begin + kBlock < count ? kBlock : count - begin;
    dropout_factors(seed, stream, probability, first + static_cast<uint64_t>(begin), size, factors);
    for (int64_t i = 0; i < size; ++i) x[begin + i] *= factors[i];
  }
}
