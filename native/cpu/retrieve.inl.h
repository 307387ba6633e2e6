// The int8 pass over an item table. Included by kernels_<isa>.cc, after vec.inl.h.

constexpr int64_t kQuantisedPrefetch = 8192;                     // bytes between those asked for and those used
constexpr int64_t kQuantisedVectors = kQuantisedItems / kLanes;  // of the dot products of a block
// Sums that grow in turns: as many as hide the latency of an instruction.
constexpr int64_t kQuantisedSums = 4;

/// Largest magnitude of a query's value: where two products with unsigned bytes meet in 16 bits, 2·64·255 still fits.
#if defined(LIMBECK_HAS_DOT_PRODUCTS)
constexpr int32_t kQuantisedQueryMax = 127;
#else
constexpr int32_t kQuantisedQueryMax = 64;
#endif

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

/// upper[i] = scales[i]·(query.scale·dot + query.margin) from dot products of kQuantisedItems items, which no score is
/// above. Bit i of the result: upper[i] is above the threshold.
inline uint64_t bounds_of_block(const VecI* dots, const float* scales, const QuantisedQuery& query, float* upper) {
  uint64_t above = 0;
#pragma GCC unroll 4
  for (int64_t v = 0; v < kQuantisedVectors; ++v) {
    const VecF bound =
        load(scales + v * kLanes) * (__builtin_convertvector(dots[v], VecF) * query.scale + query.margin);
    store(upper + v * kLanes, bound);
    above |= static_cast<uint64_t>(greater_mask(bound, query.threshold)) << (v * kLanes);
  }
  return above;
}

/// The bits of block b join those of its word; the first of a word begins it.
inline void set_bits(uint64_t* above, int64_t b, uint64_t bits) {
  uint64_t& word = above[b / kQuantisedWordBlocks];
  word = (b % kQuantisedWordBlocks == 0 ? 0 : word) | bits << (b % kQuantisedWordBlocks * kQuantisedItems);
}

/// upper[i] is what no score of item i is above. Bit i of `above`: upper[i] is above query.threshold. The table is read
/// from front to back, as fast as memory gives it.
///   table: num_blocks blocks; scales, upper [num_blocks·16]; above: a bit an item, whole words are written
void quantised_bounds(const uint8_t* table, const float* scales, int64_t num_blocks, const QuantisedQuery& query,
                      float* upper, uint64_t* above) {
  constexpr int64_t kWordBytes = kQuantisedItems * kQuantisedWordDimensions;
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
    set_bits(above, b, bounds_of_block(dots, scales, query, upper));
  }
}

// A register tile of the product: this many queries by as many blocks as leave registers for the operands.
constexpr int kQuantisedRows = kGemmRows;
constexpr int64_t kQuantisedTileBlocks = kLanes == 16 ? 2 : 1;

template <int kRows, int64_t kBlocks>
__attribute__((noinline)) void quantised_tile(const QuantisedQuery* queries, const int32_t* panel, const uint8_t* table,
                                              const float* scales, float* upper, int64_t ldu, uint64_t* above,
                                              int64_t lda, int64_t block) {
  constexpr int64_t kWordBytes = kQuantisedItems * kQuantisedWordDimensions, kVectorBytes = kLanes * sizeof(int32_t);
  const int64_t words = queries[0].words, block_bytes = words * kWordBytes;
  VecI sums[kRows][kBlocks * kQuantisedVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    // Items are stored kQuantisedOffset too high.
    for (VecI& sum : sums[i]) sum = VecI{} - kQuantisedOffset * queries[i].value_sum;
  }
  for (int64_t w = 0; w < words; ++w, panel += kQuantisedRows, table += kWordBytes) {
    for (int64_t b = 0; b < kBlocks; ++b) __builtin_prefetch(table + kQuantisedPrefetch + b * block_bytes);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (int64_t v = 0; v < kBlocks * kQuantisedVectors; ++v) {
        const uint8_t* items = table + v / kQuantisedVectors * block_bytes + v % kQuantisedVectors * kVectorBytes;
        add_products(sums[i][v], items, panel[i]);
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int64_t b = 0; b < kBlocks; ++b) {
      const uint64_t bits = bounds_of_block(sums[i] + b * kQuantisedVectors, scales + b * kQuantisedItems, queries[i],
                                            upper + i * ldu + b * kQuantisedItems);
      set_bits(above + i * lda, block + b, bits);
    }
  }
}

/// The kernel of `num_rows` queries.
template <int64_t kBlocks, int kRows = kQuantisedRows, typename... Arguments>
inline void quantised_tile_rows(int64_t num_rows, Arguments... arguments) {
  if constexpr (kRows > 1) {
    if (num_rows < kRows) return quantised_tile_rows<kBlocks, kRows - 1>(num_rows, arguments...);
  }
  quantised_tile<kRows, kBlocks>(arguments...);
}

/// The bounds of several queries, which read the table together: upper [num_queries, num_blocks·16] and above
/// [num_queries, words of a bit an item] as quantised_bounds() gives them.
///   panels of kQuantisedRows queries, each [words, kQuantisedRows] words of 4 values; the last one's padding is not
///   read. words ≤ 16,384, so that sums fit 32 bits
void quantised_bounds_of_batch(const QuantisedQuery* queries, int64_t num_queries, const int32_t* panels,
                               const uint8_t* table, const float* scales, int64_t num_blocks, float* upper,
                               uint64_t* above) {
  if (num_queries == 0) return;
  const int64_t words = queries[0].words, block_bytes = words * kQuantisedItems * kQuantisedWordDimensions;
  const int64_t ldu = num_blocks * kQuantisedItems,
                lda = (num_blocks + kQuantisedWordBlocks - 1) / kQuantisedWordBlocks;
  for (int64_t row = 0; row < num_queries; row += kQuantisedRows, panels += kQuantisedRows * words) {
    const int64_t rows = num_queries - row < kQuantisedRows ? num_queries - row : kQuantisedRows;
    const auto tile = [&](auto blocks, int64_t b) {
      quantised_tile_rows<decltype(blocks)::value>(
          rows, queries + row, panels, table + b * block_bytes, scales + b * kQuantisedItems,
          upper + row * ldu + b * kQuantisedItems, ldu, above + row * lda, lda, b);
    };
    int64_t b = 0;
    for (; b + kQuantisedTileBlocks <= num_blocks; b += kQuantisedTileBlocks) {
      tile(std::integral_constant<int64_t, kQuantisedTileBlocks>{}, b);
    }
    for (; b < num_blocks; ++b) tile(std::integral_constant<int64_t, 1>{}, b);
  }
}

/// A number that at least k of x are above, close to the largest such; `known`, which k are above or −∞, if none better
/// is found. x [count], finite, the differences too
float exceeded_by(const float* x, int64_t count, int64_t k, float known) {
  if (count < k) return known;
  float low = x[0], high = x[0];
  VecF least = broadcast(x[0]), largest = least;
  int64_t whole = 0;
  for (; whole + kLanes <= count; whole += kLanes) {
    least = -max(-least, -load(x + whole));
    largest = max(largest, load(x + whole));
  }
  const float* rest = x + whole;
  const int64_t num_rest = count - whole;  // < kLanes
  for (int64_t i = 0; i < num_rest; ++i) {
    low = rest[i] < low ? rest[i] : low;
    high = rest[i] > high ? rest[i] : high;
  }
  low = -horizontal_max(max(-least, broadcast(-low)));
  high = horizontal_max(max(largest, broadcast(high)));
  if (known > low) low = known;
  constexpr int kSteps = 24;
  for (int step = 0; step < kSteps; ++step) {
    const float middle = low + (high - low) * 0.5f;
    if (!(middle > low && middle < high)) break;
    int64_t above = 0;
    for (int64_t i = 0; i < whole; i += kLanes) above += __builtin_popcount(greater_mask(load(x + i), middle));
    for (int64_t i = 0; i < num_rest; ++i) above += rest[i] > middle;
    if (above < k) {
      high = middle;
      continue;
    }
    known = low = middle;
    if (above <= k + k / 8) break;
  }
  return known;
}

/// The same from the maxima of kVectors·kLanes even parts of x, in which anything may be. NaN are above nothing.
template <int kVectors>
float exceeded_by_parts(const float* x, int64_t count, int64_t k) {
  constexpr float kNone = -__builtin_inff();
  VecF maxima[kVectors];
  for (VecF& maximum : maxima) maximum = broadcast(kNone);
  for (int64_t i = 0; i + kVectors * kLanes <= count; i += kVectors * kLanes) {
    for (int64_t v = 0; v < kVectors; ++v) maxima[v] = max(load(x + i + v * kLanes), maxima[v]);
  }
  return exceeded_by(reinterpret_cast<const float*>(maxima), kVectors * kLanes, k, kNone);
}

/// The same at little cost, of many x [count] and a small k; else −∞. Rarely are two of the best in one part.
float exceeded_by_best(const float* x, int64_t count, int64_t k) {
  constexpr int kFew = 16, kMany = 64;
  if (k <= kFew * kLanes / 4 && count >= 2 * kFew * kLanes) return exceeded_by_parts<kFew>(x, count, k);
  if (k <= kMany * kLanes / 4 && count >= 2 * kMany * kLanes) return exceeded_by_parts<kMany>(x, count, k);
  return -__builtin_inff();
}
