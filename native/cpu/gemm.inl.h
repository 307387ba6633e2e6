// The matrix product on packed panels. Included by kernels_<isa>.cc, after vec.inl.h.
//
// Panels of A hold kGemmRows rows, panels of B kGemmColumns columns, both k after k and padded with zeros, so that the
// innermost loop reads two streams from front to back (Goto & van de Geijn 2008, ACM TOMS 34(3), §4). What it reads
// are words of 32 bits: a float, or two bfloat16 of neighbouring k.

constexpr int kGemmVectors = 2;
constexpr int64_t kGemmColumns = kGemmVectors * kLanes;
// Accumulators of a tile: as many as hide the latency of two FMA pipes and leave registers for the operands.
constexpr int kGemmRows = kLanes == 16 ? 14 : 6;
// A panel of A this deep stays in the first-level cache while a group of panels of B, in the second, passes by.
constexpr int64_t kGemmBlockWords = 768;
constexpr int64_t kGemmGroupColumns = 6 * kGemmColumns;
constexpr int64_t kLineFloats = 16;      // of a cache line
constexpr int64_t kGemmPrefetch = 512;   // floats of B between those asked for and those used
constexpr int64_t kGemmAheadWords = 16;  // words of A between those asked for and those used

struct Float32Words {
  static constexpr int64_t kElements = 1;
  static VecF multiply_add(VecF sum, VecF a, VecF b) { return sum + a * b; }
};

/// Where the processor has the instruction it does the same, but for the rounding of the sum of two products.
struct BFloat16Words {
  static constexpr int64_t kElements = 2;
  static VecF multiply_add(VecF sum, VecF a, VecF b) {
#if defined(LIMBECK_HAS_DOT_PRODUCTS)
    return reinterpret_cast<VecF>(
        _mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b)));
#else
    const VecI left = reinterpret_cast<VecI>(a), right = reinterpret_cast<VecI>(b);
    constexpr int32_t kHigh = static_cast<int32_t>(0xFFFF0000u);
    sum += reinterpret_cast<VecF>(left & kHigh) * reinterpret_cast<VecF>(right & kHigh);
    return sum + reinterpret_cast<VecF>(left << 16) * reinterpret_cast<VecF>(right << 16);
#endif
  }
};

/// How a tile finds word p of its row i in A.
struct PackedRows {
  // a[p·kGemmRows + i]
  explicit PackedRows(int64_t) {}
  float at(const float* a, int i) const { return a[i]; }
  void prefetch(const float*) const {}
  int64_t step() const { return kGemmRows; }
  int64_t tile_offset(int64_t row, int64_t words) const { return row * words; }
};
struct DirectColumns {
  // a[p·stride + i]: A is transposed.
  explicit DirectColumns(int64_t stride) : stride(stride) {}
  float at(const float* a, int i) const { return a[i]; }
  // Words of k lie a row apart, and no processor looks ahead beyond a page.
  void prefetch(const float* a) const {
    __builtin_prefetch(a + kGemmAheadWords * stride);
    __builtin_prefetch(a + kGemmAheadWords * stride + kGemmRows - 1);
  }
  int64_t step() const { return stride; }
  int64_t tile_offset(int64_t row, int64_t) const { return row; }
  int64_t stride;
};
struct DirectRows {
  // a[i·stride + p]. The base of every third row is all that registers hold; an address adds the rest.
  explicit DirectRows(int64_t stride) : stride(stride) {}
  float at(const float* a, int i) const { return (a + i / 3 * 3 * stride)[i % 3 * stride]; }
  void prefetch(const float*) const {}
  int64_t step() const { return 1; }
  int64_t tile_offset(int64_t row, int64_t) const { return row * stride; }
  int64_t stride;
};

struct GemmTile {
  int64_t words;
  const float* a;
  int64_t a_stride;
  const float* b;  // [panels, words, kGemmColumns]
  float* c;        // [rows, ldc]
  int64_t ldc;
  int64_t width;      // columns of c that exist
  const float* bias;  // [width] or null
  bool accumulate;
};

/// c = a·b + bias, or c += a·b. Not inlined: among other loops the compiler would keep accumulators on the stack.
template <typename Words, typename Rows, int kRows, int kPanels = 1>
__attribute__((noinline)) void gemm_tile(const GemmTile& tile) {
  constexpr int kVectors = kPanels * kGemmVectors;
  constexpr int64_t kColumns = kPanels * kGemmColumns;
  const Rows rows(tile.a_stride);
  const int64_t panel_floats = tile.words * kGemmColumns;
  VecF sums[kRows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    // The rows of c are needed when the sums are done: ask for them now.
    __builtin_prefetch(tile.c + i * tile.ldc, 1);
    __builtin_prefetch(tile.c + i * tile.ldc + kColumns - 1, 1);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sums[i][v] = VecF{};
  }
  const float* __restrict a = tile.a;
  const float* __restrict b = tile.b;
  for (int64_t p = tile.words; p > 0; --p, a += rows.step(), b += kGemmColumns) {
    // A panel of B is read once a row of tiles: without this, each read waits for the third-level cache.
#pragma GCC unroll 4
    for (int panel = 0; panel < kPanels; ++panel) {
#pragma GCC unroll 4
      for (int64_t line = 0; line < kGemmColumns; line += kLineFloats) {
        __builtin_prefetch(b + panel * panel_floats + kGemmPrefetch + line);
      }
    }
    rows.prefetch(a);
    VecF right[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) right[v] = load(b + v / kGemmVectors * panel_floats + v % kGemmVectors * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const VecF left = broadcast(rows.at(a, i));
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[i][v] = Words::multiply_add(sums[i][v], left, right[v]);
    }
  }
  if (tile.width == kColumns) {
    VecF start[kVectors] = {};
    if (tile.bias != nullptr) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) start[v] = load(tile.bias + v * kLanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        float* out = tile.c + i * tile.ldc + v * kLanes;
        store(out, sums[i][v] + (tile.accumulate ? load(out) : start[v]));
      }
    }
    return;
  }
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
    const int64_t left = tile.width - v * kLanes, count = left < kLanes ? left : kLanes;
    if (count <= 0) break;
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      float* out = tile.c + i * tile.ldc + v * kLanes;
      const float* offset = tile.accumulate ? out : tile.bias == nullptr ? nullptr : tile.bias + v * kLanes;
      store_first(out, offset == nullptr ? sums[i][v] : sums[i][v] + load_first(offset, count), count);
    }
  }
}

/// The kernel of `num_rows` rows.
template <typename Words, typename Rows, int kRows = kGemmRows>
inline void gemm_tile_rows(const GemmTile& tile, int64_t num_rows) {
  if constexpr (kRows == 1) {
    gemm_tile<Words, Rows, 1>(tile);
  } else {
    if (num_rows == kRows) {
      gemm_tile<Words, Rows, kRows>(tile);
    } else {
      gemm_tile_rows<Words, Rows, kRows - 1>(tile, num_rows);
    }
  }
}

/// c [num_rows, columns] = or += the product with packed panels; bias [columns] is added where c is written first.
template <typename Words, typename Rows>
void gemm_multiply(int64_t num_rows, int64_t columns, int64_t words, const float* a, int64_t a_stride,
                   const float* b_panels, const float* bias, float* c, int64_t ldc, bool accumulate) {
  for (int64_t row = 0; row < num_rows; row += kGemmRows) {
    const int64_t rows = num_rows - row < kGemmRows ? num_rows - row : kGemmRows;
    for (int64_t column = 0; column < columns;) {
      const int64_t left = columns - column;
      const int64_t panels = rows > 1 || left <= kGemmColumns ? 1 : left <= 3 * kGemmColumns ? 2 : 4;
      const GemmTile tile{words,
                          a + Rows(a_stride).tile_offset(row, words),
                          a_stride,
                          b_panels + column * words,
                          c + row * ldc + column,
                          ldc,
                          left < panels * kGemmColumns ? left : panels * kGemmColumns,
                          accumulate || bias == nullptr ? nullptr : bias + column,
                          accumulate};
      // A single row takes several panels at once: with one it would wait for its two sums.
      if (panels == 4) {
        gemm_tile<Words, Rows, 1, 4>(tile);
      } else if (panels == 2) {
        gemm_tile<Words, Rows, 1, 2>(tile);
      } else {
        gemm_tile_rows<Words, Rows>(tile, rows);
      }
      column += tile.width;
    }
  }
}

/// The upper half of the nearest bfloat16 (ties to even), in place of the float; NaN stays NaN.
inline VecI round_to_bfloat16(VecF x) {
  const VecI bits = reinterpret_cast<VecI>(x);
  const VecI rounded = bits + 0x7FFF + ((bits >> 16) & 1);
  return x == x ? rounded : (bits | 0x00400000);
}

typedef int16_t VecHalves __attribute__((vector_size(kLanes * sizeof(int32_t))));

template <size_t... kWords>
inline VecF neighbours_to_words(VecF first, VecF second, std::index_sequence<kWords...>) {
  return reinterpret_cast<VecF>(__builtin_shufflevector(reinterpret_cast<VecHalves>(round_to_bfloat16(first)),
                                                        reinterpret_cast<VecHalves>(round_to_bfloat16(second)),
                                                        static_cast<int>(2 * kWords + 1)...));
}

/// Words of 2·kLanes floats that follow each other: bfloat16 in the order of the floats.
inline VecF neighbours_to_words(VecF first, VecF second) {
#if defined(LIMBECK_HAS_DOT_PRODUCTS)
  return reinterpret_cast<VecF>(_mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(second), reinterpret_cast<__m512>(first)));
#else
  return neighbours_to_words(first, second, std::make_index_sequence<2 * kLanes>{});
#endif
}

/// Word j = bfloat16 of low[j], then of high[j].
inline VecF pair_to_words(VecF low, VecF high) {
#if defined(LIMBECK_HAS_DOT_PRODUCTS)
  const __m512i halves = reinterpret_cast<__m512i>(neighbours_to_words(low, high));
  const __m512i lows = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(halves));
  const __m512i highs = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(halves, 1));
  return reinterpret_cast<VecF>(_mm512_or_si512(lows, _mm512_slli_epi32(highs, 16)));
#else
  constexpr int32_t kHigh = static_cast<int32_t>(0xFFFF0000u);
  return reinterpret_cast<VecF>(((round_to_bfloat16(low) >> 16) & 0xFFFF) | (round_to_bfloat16(high) & kHigh));
#endif
}

/// kLanes words of a row whose k lie side by side, from the first of `count` floats on; zeros beyond.
template <typename Words>
inline VecF load_words(const float* x, int64_t count) {
  const auto part = [&](int64_t first) {
    if (count >= first + kLanes) return load(x + first);
    return count > first ? load_first(x + first, count - first) : VecF{};
  };
  if constexpr (Words::kElements == 1) {
    return part(0);
  } else {
    return neighbours_to_words(part(0), part(kLanes));
  }
}

/// One panel of words [⌈k / Words::kElements⌉, kTile] from rows whose k lie side by side.
template <typename Words, int64_t kTile>
inline void pack_rows(const float* x, int64_t stride, int64_t count, int64_t k, float* out) {
  constexpr int64_t kStep = kLanes * Words::kElements;
  constexpr int64_t kAhead = 4 * kLineFloats;  // of each row, beyond what is in work
  const int64_t words = (k + Words::kElements - 1) / Words::kElements;
  for (int64_t p = 0; p < k; p += kStep) {
    const int64_t left_words = words - p / Words::kElements;
    float* to = out + p / Words::kElements * kTile;
    for (int64_t first = 0; first < kTile; first += kLanes) {
      VecF rows[kLanes];
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; ++i) {
        const bool exists = first + i < count;
        const float* row = x + (exists ? first + i : 0) * stride + p;
        for (int64_t line = 0; line < kStep; line += kLineFloats) __builtin_prefetch(row + kAhead + line);
        rows[i] = exists ? load_words<Words>(row, k - p) : VecF{};
      }
      transpose(rows);
#pragma GCC unroll 16
      for (int64_t w = 0; w < kLanes; ++w) {
        if (w >= left_words) break;
        if constexpr (kTile % kLanes == 0) {
          store(to + w * kTile + first, rows[w]);
        } else if (first + kLanes <= kTile) {
          store(to + w * kTile + first, rows[w]);
        } else {
          store_first(to + w * kTile + first, rows[w], kTile - first);
        }
      }
    }
  }
}

/// The same from rows that lie side by side, for all panels at once: what is read is read in the order of memory.
template <typename Words, int64_t kTile>
inline void pack_columns(const float* x, int64_t k_stride, int64_t count, int64_t k, int64_t panel_floats, float* out) {
  const auto words_at = [&](int64_t p, auto get) {
    if constexpr (Words::kElements == 1) {
      return get(x + p * k_stride);
    } else {
      return pair_to_words(get(x + p * k_stride), p + 1 < k ? get(x + (p + 1) * k_stride) : VecF{});
    }
  };
  constexpr int64_t kAheadRows = 8;
  for (int64_t p = 0; p < k; p += Words::kElements, out += kTile) {
    for (int64_t line = 0; line < count; line += kLineFloats) {
      for (int64_t e = 0; e < Words::kElements; ++e) __builtin_prefetch(x + (p + kAheadRows + e) * k_stride + line);
    }
    for (int64_t panel = 0; panel * kTile < count; ++panel) {
      float* to = out + panel * panel_floats;
      for (int64_t lane = 0; lane < kTile; lane += kLanes) {
        const int64_t i = panel * kTile + lane, left = count - i;
        const int64_t width = kTile - lane < kLanes ? kTile - lane : kLanes;
        VecF words{};
        if (left >= kLanes) {
          words = words_at(p, [&](const float* row) { return load(row + i); });
        } else if (left > 0) {
          words = words_at(p, [&](const float* row) { return load_first(row + i, left); });
        }
        if (width == kLanes) {
          store(to + lane, words);
        } else {
          store_first(to + lane, words, width);
        }
      }
    }
  }
}

/// Packs element (i, p) at x[i·stride + p·k_stride], i < count and p < k, one stride being 1: panels of kTile rows,
/// each [⌈k / Words::kElements⌉, kTile] words and panel_floats after the one before, with zeros for missing rows.
template <typename Words, int64_t kTile>
void pack_panels(const float* x, int64_t stride, int64_t k_stride, int64_t count, int64_t k, int64_t panel_floats,
                 float* out) {
  if (stride == 1) return pack_columns<Words, kTile>(x, k_stride, count, k, panel_floats, out);
  for (int64_t i = 0; i < count; i += kTile, out += panel_floats) {
    pack_rows<Words, kTile>(x + i * stride, stride, count - i < kTile ? count - i : kTile, k, out);
  }
}

template <typename Words>
constexpr GemmKernels make_gemm_kernels() {
  GemmKernels kernels{};
  kernels.rows = kGemmRows;
  kernels.columns = kGemmColumns;
  kernels.word_elements = Words::kElements;
  kernels.block_words = kGemmBlockWords;
  kernels.group_columns = kGemmGroupColumns;
  kernels.multiply = gemm_multiply<Words, PackedRows>;
  if constexpr (Words::kElements == 1) {
    kernels.multiply_rows = gemm_multiply<Words, DirectRows>;
    kernels.multiply_columns = gemm_multiply<Words, DirectColumns>;
  }
  kernels.pack_a = pack_panels<Words, kGemmRows>;
  kernels.pack_b = pack_panels<Words, kGemmColumns>;
  return kernels;
}

/// sums[r] = a·rows[r], four dot products of length k at a time; each is the same whatever its neighbours are.
inline void dot_rows(int64_t k, const float* a, const float* const (&rows)[4], float (&sums)[4]) {
  VecF partial[4] = {};
  int64_t p = 0;
  for (; p + kLanes <= k; p += kLanes) {
    const VecF left = load(a + p);
    for (int r = 0; r < 4; ++r) partial[r] += left * load(rows[r] + p);
  }
  if (p < k) {
    const VecF left = load_first(a + p, k - p);
    for (int r = 0; r < 4; ++r) partial[r] += left * load_first(rows[r] + p, k - p);
  }
  for (int r = 0; r < 4; ++r) sums[r] = horizontal_sum(partial[r]);
}

/// out[i] = a·(row ids[i] of the table [n, k]), with the bits of gemv().
void gather_dots(int64_t k, const float* a, const float* table, const int32_t* ids, int64_t count, float* out) {
  for (int64_t i = 0; i < count; i += 4) {
    const int64_t size = count - i < 4 ? count - i : 4;
    const float* rows[4];
    for (int64_t r = 0; r < 4; ++r) rows[r] = table + int64_t{ids[i + (r < size ? r : 0)]} * k;
    float sums[4];
    dot_rows(k, a, rows, sums);
    for (int64_t r = 0; r < size; ++r) out[i + r] = sums[r];
  }
}

/// One row of A against B [k, n] without packing: what a product of few rows takes, as it reads B once.
///   c [n] = or += a·B; element (p, j) of B at b[p·row_stride + j·column_stride], one of which is 1
void gemv(int64_t n, int64_t k, const float* a, int64_t a_stride, const float* b, int64_t row_stride,
          int64_t column_stride, const float* bias, float* c, bool accumulate) {
  if (row_stride == 1 && a_stride == 1) {
    // Rows of Bᵀ are contiguous: dot products, four at a time, one of each quarter. So memory is read in four streams
    // that go straight on, which is far faster than four rows that lie side by side and then the next four.
    const int64_t quarter = (n + 3) / 4;
    for (int64_t j = 0; j < quarter; ++j) {
      const int64_t count = (n - j + quarter - 1) / quarter;  // quarters that have a row j
      const float* rows[4];
      for (int64_t r = 0; r < 4; ++r) rows[r] = b + (j + (r < count ? r * quarter : 0)) * column_stride;
      float sums[4];
      dot_rows(k, a, rows, sums);
      for (int64_t r = 0; r < count; ++r) {
        const int64_t column = j + r * quarter;
        const float offset = accumulate ? c[column] : bias == nullptr ? 0.0f : bias[column];
        c[column] = offset + sums[r];
      }
    }
    return;
  }
  for (int64_t j = 0; j < n; ++j) {
    if (!accumulate) c[j] = bias == nullptr ? 0.0f : bias[j];
  }
  for (int64_t p = 0; p < k; ++p) {
    const float left = a[p * a_stride];
    const float* row = b + p * row_stride;
    if (column_stride == 1) {
      for_each_vector(n, [&](int64_t j, auto get, auto put) { put(c + j, get(c + j) + get(row + j) * left); });
    } else {
      for (int64_t j = 0; j < n; ++j) c[j] += left * row[j * column_stride];
    }
  }
}

/// out [columns] += Σ over rows of x [rows, stride]
void add_rows(const float* x, int64_t stride, int64_t rows, int64_t columns, float* out) {
  for_each_vector(columns, [&](int64_t c, auto get, auto put) {
    VecF sum = get(out + c);
    for (int64_t r = 0; r < rows; ++r) sum += get(x + r * stride + c);
    put(out + c, sum);
  });
}
