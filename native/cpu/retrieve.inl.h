// The int8 pass over an item table. Included by kernels_<isa>.cc, after vec.inl.h.

/// Integer dot products of one block of items with the query. `high` and `low` parts are summed apart: their weighted
/// sum may not fit 32 bits.
constexpr int64_t kQuantisedPrefetch = 2048;  // bytes between those asked for and those used

inline void quantised_block(const int8_t* block, const QuantisedQuery& query, float (&dots)[kQuantisedItems]) {
#if defined(LIMBECK_HAS_DOT_PRODUCTS)
  // The instruction multiplies unsigned by signed bytes: items are taken 128 higher, and 128·Σ query is subtracted.
  const __m512i offset = _mm512_set1_epi8(static_cast<char>(0x80));
  __m512i high[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
  __m512i low[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
  const int8_t* parts = query.parts;
  for (int64_t w = 0; w < query.words; ++w, block += 64, parts += 8) {
    __builtin_prefetch(block + kQuantisedPrefetch);
    const __m512i items = _mm512_xor_si512(_mm512_loadu_si512(block), offset);
    int32_t high_word, low_word;
    __builtin_memcpy(&high_word, parts, 4);
    __builtin_memcpy(&low_word, parts + 4, 4);
    high[w & 1] = _mm512_dpbusd_epi32(high[w & 1], items, _mm512_set1_epi32(high_word));
    low[w & 1] = _mm512_dpbusd_epi32(low[w & 1], items, _mm512_set1_epi32(low_word));
  }
  const int32_t high_offset = static_cast<int32_t>(128 * query.high_sum);
  const int32_t low_offset = static_cast<int32_t>(128 * (query.value_sum - 128 * query.high_sum));
  const __m512i highs = _mm512_sub_epi32(_mm512_add_epi32(high[0], high[1]), _mm512_set1_epi32(high_offset));
  const __m512i lows = _mm512_sub_epi32(_mm512_add_epi32(low[0], low[1]), _mm512_set1_epi32(low_offset));
  const VecF high_sums = __builtin_convertvector(reinterpret_cast<VecI>(highs), VecF);
  store(dots, high_sums * 128.0f + __builtin_convertvector(reinterpret_cast<VecI>(lows), VecF));
#elif LIMBECK_LANES >= 8
  // Each vector of 16 products holds four items; the two halves of an item's word are added at the end.
  __m256i sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = _mm256_setzero_si256();
  for (int64_t w = 0; w < query.words; ++w, block += 64) {
    __builtin_prefetch(block + kQuantisedPrefetch);
    int64_t word;
    __builtin_memcpy(&word, query.values + 4 * w, sizeof word);
    const __m256i values = _mm256_set1_epi64x(word);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m256i items = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block + 16 * i)));
      sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(items, values));
    }
  }
  for (int i = 0; i < 2; ++i) {
    // Items 0 1 4 5 | 2 3 6 7 of this half.
    const __m256i pairs = _mm256_hadd_epi32(sums[2 * i], sums[2 * i + 1]);
    _mm256_storeu_ps(dots + 8 * i, _mm256_cvtepi32_ps(_mm256_permute4x64_epi64(pairs, 0xD8)));
  }
#else
  int32_t sums[kQuantisedItems] = {};
  for (int64_t w = 0; w < query.words; ++w, block += 64) {
    for (int64_t item = 0; item < kQuantisedItems; ++item) {
      for (int64_t i = 0; i < 4; ++i) sums[item] += block[item * 4 + i] * query.values[4 * w + i];
    }
  }
  for (int64_t item = 0; item < kQuantisedItems; ++item) dots[item] = static_cast<float>(sums[item]);
#endif
}

/// upper[i] = scales[i]·(query.scale·dot + query.margin): no score of item i is above it.
///   table: num_blocks blocks; scales, upper [num_blocks·16]
void quantised_bounds(const int8_t* table, const float* scales, int64_t num_blocks, const QuantisedQuery& query,
                      float* upper) {
  const int64_t block_bytes = query.words * kQuantisedItems * kQuantisedWordDimensions;
  const VecF scale = broadcast(query.scale), margin = broadcast(query.margin);
  for (int64_t b = 0; b < num_blocks; ++b) {
    float dots[kQuantisedItems];
    quantised_block(table + b * block_bytes, query, dots);
    for (int64_t i = 0; i < kQuantisedItems; i += kLanes) {
      const int64_t item = b * kQuantisedItems + i;
      store(upper + item, load(scales + item) * (load(dots + i) * scale + margin));
    }
  }
}
