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

/// upper[i] = scales[i]·(query.scale·dot + query.margin) from the dot products of a block, without the offset.
///   dots of kQuantisedItems; returns whether one is above the threshold.
inline bool bounds_of_block(const VecI (&dots)[kQuantisedVectors], const float* scales, const QuantisedQuery& query,
                            float threshold, float* upper) {
  VecI is_above{};
#pragma GCC unroll 4
  for (int64_t v = 0; v < kQuantisedVectors; ++v) {
    const VecF bound =
        load(scales + v * kLanes) * (__builtin_convertvector(dots[v], VecF) * query.scale + query.margin);
    store(upper + v * kLanes, bound);
    is_above |= bound > threshold;
  }
  return lane_mask(is_above) != 0;
}

/// upper[i] is what no score of item i is above. Bit b of the result: one of block b is above the threshold. The table
/// is read from front to back, as fast as memory gives it.
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
    VecI dots[kQuantisedVectors];
    for (int64_t v = 0; v < kQuantisedVectors; ++v) {
      dots[v] = (sums[0][v] + sums[1][v]) + (sums[2][v] + sums[3][v]);
    }
    found |= static_cast<uint64_t>(bounds_of_block(dots, scales, query, threshold, upper)) << b;
  }
  return found;
}

/// The same from dots [num_blocks·16] of quantised_products().
uint64_t bounds_of_products(const int32_t* dots, const float* scales, int64_t num_blocks, const QuantisedQuery& query,
                            float threshold, float* upper) {
  uint64_t found = 0;
  for (int64_t b = 0; b < num_blocks; ++b) {
    VecI sums[kQuantisedVectors];
    for (int64_t v = 0; v < kQuantisedVectors; ++v) {
      sums[v] = load_integers(dots + b * kQuantisedItems + v * kLanes) - kQuantisedOffset * query.value_sum;
    }
    found |= static_cast<uint64_t>(
                 bounds_of_block(sums, scales + b * kQuantisedItems, query, threshold, upper + b * kQuantisedItems))
             << b;
  }
  return found;
}

// A register tile of the product: this many queries by as many blocks as leave registers for the operands.
constexpr int kQuantisedRows = kGemmRows;
constexpr int64_t kQuantisedTileBlocks = kLanes == 16 ? 2 : 1;

template <int kRows, int64_t kBlocks>
__attribute__((noinline)) void quantised_tile(int64_t words, const int32_t* queries, const uint8_t* table,
                                              int32_t* dots, int64_t ldd) {
  constexpr int64_t kWordBytes = kQuantisedItems * kQuantisedWordDimensions, kVectorBytes = kLanes * sizeof(int32_t);
  const int64_t block_bytes = words * kWordBytes;
  VecI sums[kRows][kBlocks * kQuantisedVectors] = {};
  for (int64_t w = 0; w < words; ++w, queries += kQuantisedRows, table += kWordBytes) {
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (int64_t v = 0; v < kBlocks * kQuantisedVectors; ++v) {
        const uint8_t* items = table + v / kQuantisedVectors * block_bytes + v % kQuantisedVectors * kVectorBytes;
        add_products(sums[i][v], items, queries[i]);
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int64_t v = 0; v < kBlocks * kQuantisedVectors; ++v) store_integers(dots + i * ldd + v * kLanes, sums[i][v]);
  }
}

/// The kernel of `num_rows` queries.
template <int64_t kBlocks, int kRows = kQuantisedRows>
inline void quantised_tile_rows(int64_t num_rows, int64_t words, const int32_t* queries, const uint8_t* table,
                                int32_t* dots, int64_t ldd) {
  if constexpr (kRows > 1) {
    if (num_rows < kRows) {
      return quantised_tile_rows<kBlocks, kRows - 1>(num_rows, words, queries, table, dots, ldd);
    }
  }
  quantised_tile<kRows, kBlocks>(words, queries, table, dots, ldd);
}

/// dots [num_queries, ldd] = the exact products of queries with the items of the table, its offset included.
///   queries: panels of kQuantisedRows, each [words, kQuantisedRows] words of 4 int8, |value| ≤ kQuantisedQueryMax;
///   the last one's padding is not read. num_blocks·16 ≤ ldd; words ≤ 32,768, so that sums fit 32 bits
void quantised_products(int64_t num_queries, int64_t num_blocks, int64_t words, const int32_t* queries,
                        const uint8_t* table, int32_t* dots, int64_t ldd) {
  const int64_t block_bytes = words * kQuantisedItems * kQuantisedWordDimensions;
  for (int64_t row = 0; row < num_queries; row += kQuantisedRows, queries += kQuantisedRows * words) {
    const int64_t rows = num_queries - row < kQuantisedRows ? num_queries - row : kQuantisedRows;
    int32_t* out = dots + row * ldd;
    int64_t b = 0;
    for (; b + kQuantisedTileBlocks <= num_blocks; b += kQuantisedTileBlocks) {
      quantised_tile_rows<kQuantisedTileBlocks>(rows, words, queries, table + b * block_bytes,
                                                out + b * kQuantisedItems, ldd);
    }
    for (; b < num_blocks; ++b) {
      quantised_tile_rows<1>(rows, words, queries, table + b * block_bytes, out + b * kQuantisedItems, ldd);
    }
  }
}
