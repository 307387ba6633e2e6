// The int8 pass over an item table. Included by kernels_<isa>.cc, after vec.inl.h.

constexpr int64_t kQuantisedPrefetch = 8192;                     // bytes between those asked for and those used
constexpr int64_t kQuantisedVectors = kQuantisedItems / kLanes;  // of the dot products of a block
// Sums that grow in turns: as many as hide the latency of an instruction.
constexpr int64_t kQuantisedSums = 4;

/// sum += the four products of a word of each item with a word of the query.
inline void add_products(VecI& sum, const uint8_t* items, int32_t word) {
#if LIMBECK_LANES == 16
  const __m512i left = _mm512_loadu_si512(items), right = _mm512_set1_epi32(word);
#if defined(LIMBECK_HAS_DOT_PRODUCTS)
  sum = reinterpret_cast<VecI>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), left, right));
#else
  // Two products fit 16 bits: see kQuantisedQueryMax.
  const __m512i pairs = _mm512_maddubs_epi16(left, right);
  sum += reinterpret_cast<VecI>(_mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#endif
#elif LIMBECK_LANES == 8
  const __m256i left = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(items));
  const __m256i pairs = _mm256_maddubs_epi16(left, _mm256_set1_epi32(word));
  sum += reinterpret_cast<VecI>(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#else
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < 4; ++i) sum[lane] += items[4 * lane + i] * static_cast<int8_t>(word >> (8 * i));
  }
#endif
}

/// upper[i] = scales[i]·(query.scale·dot + query.margin): no score of item i is above it. Bit b of the result: one of
/// block b is above the threshold. The table is read from front to back, as fast as memory gives it.
///   table: num_blocks ≤ 64 blocks; scales, upper [num_blocks·16]
uint64_t quantised_bounds(const uint8_t* table, const float* scales, int64_t num_blocks, const QuantisedQuery& query,
                          float threshold, float* upper) {
  constexpr int64_t kWordBytes = kQuantisedItems * kQuantisedWordDimensions;
  uint64_t found = 0;
  for (int64_t b = 0; b < num_blocks; ++b, scales += kQuantisedItems, upper += kQuantisedItems) {
    VecI sums[kQuantisedSums][kQuantisedVectors] = {};
    // Items are stored kQuantisedOffset too high.
    for (VecI& sum : sums[0]) sum -= kQuantisedOffset * query.value_sum;
    const auto add_word = [&](int64_t w, VecI(&into)[kQuantisedVectors]) {
      int32_t word;
      __builtin_memcpy(&word, query.values + w * kQuantisedWordDimensions, sizeof word);
      __builtin_prefetch(table + kQuantisedPrefetch);
#pragma GCC unroll 4
      for (int64_t v = 0; v < kQuantisedVectors; ++v) {
        add_products(into[v], table + v * kLanes * kQuantisedWordDimensions, word);
      }
      table += kWordBytes;
    };
    int64_t w = 0;
    for (; w + kQuantisedSums <= query.words; w += kQuantisedSums) {
#pragma GCC unroll 4
      for (int64_t s = 0; s < kQuantisedSums; ++s) add_word(w + s, sums[s]);
    }
    for (; w < query.words; ++w) add_word(w, sums[0]);
    VecI is_above{};
    for (int64_t v = 0; v < kQuantisedVectors; ++v) {
      const VecI dots = (sums[0][v] + sums[1][v]) + (sums[2][v] + sums[3][v]);
      const VecF bound = load(scales + v * kLanes) * (__builtin_convertvector(dots, VecF) * query.scale + query.margin);
      store(upper + v * kLanes, bound);
      is_above |= bound > threshold;
    }
    found |= static_cast<uint64_t>(lane_mask(is_above) != 0) << b;
  }
  return found;
}
