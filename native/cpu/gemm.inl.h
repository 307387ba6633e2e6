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
constexpr int64_t kGemmBlockWords = 512;
constexpr int64_t kGemmGroupColumns = 8 * kGemmColumns;
constexpr int64_t kLineFloats = 16;     // of a cache line
constexpr int64_t kGemmPrefetch = 512;  // floats of B between those asked for and those used

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

struct GemmTile {
  int64_t words;
  const float* a;  // [words, kGemmRows]
  const float* b;  // [words, kGemmColumns]
  float* c;        // [rows, ldc]
  int64_t ldc;
  int64_t width;      // columns of c that exist
  const float* bias;  // [width] or null
  bool accumulate;
};

/// c = a·b + bias, or c += a·b. Not inlined: among other loops the compiler would keep accumulators on the stack.
template <typename Words, int kRows>
__attribute__((noinline)) void gemm_tile(const GemmTile& tile) {
  VecF sums[kRows][kGemmVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    // The rows of c are needed when the sums are done: ask for them now.
    __builtin_prefetch(tile.c + i * tile.ldc, 1);
    __builtin_prefetch(tile.c + i * tile.ldc + kGemmColumns - 1, 1);
#pragma GCC unroll 4
    for (int v = 0; v < kGemmVectors; ++v) sums[i][v] = VecF{};
  }
  const float* __restrict a = tile.a;
  const float* __restrict b = tile.b;
  for (int64_t p = tile.words; p > 0; --p, a += kGemmRows, b += kGemmColumns) {
    // A panel of B is read once a row of tiles: without this, each read waits for the third-level cache.
#pragma GCC unroll 4
    for (int64_t line = 0; line < kGemmColumns; line += kLineFloats) __builtin_prefetch(b + kGemmPrefetch + line);
    VecF right[kGemmVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kGemmVectors; ++v) right[v] = load(b + v * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const VecF left = broadcast(a[i]);
#pragma GCC unroll 4
      for (int v = 0; v < kGemmVectors; ++v) sums[i][v] = Words::multiply_add(sums[i][v], left, right[v]);
    }
  }
  if (tile.width == kGemmColumns) {
    VecF start[kGemmVectors] = {};
    if (tile.bias != nullptr) {
#pragma GCC unroll 4
      for (int v = 0; v < kGemmVectors; ++v) start[v] = load(tile.bias + v * kLanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < kGemmVectors; ++v) {
        float* out = tile.c + i * tile.ldc + v * kLanes;
        store(out, sums[i][v] + (tile.accumulate ? load(out) : start[v]));
      }
    }
    return;
  }
#pragma GCC unroll 4
  for (int v = 0; v < kGemmVectors; ++v) {
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

/// The kernel of `rows` rows.
template <typename Words, int kRows = kGemmRows>
inline void gemm_tile_rows(const GemmTile& tile, int64_t rows) {
  if constexpr (kRows == 1) {
    gemm_tile<Words, 1>(tile);
  } else {
    if (rows == kRows) {
      gemm_tile<Words, kRows>(tile);
    } else {
      gemm_tile_rows<Words, kRows - 1>(tile, rows);
    }
  }
}

/// c [rows, columns] = or += the product of packed panels; bias [columns] is added where c is written first. A group of
/// columns small enough for the second-level cache meets all rows before the next one does.
template <typename Words>
void gemm_multiply(int64_t rows, int64_t columns, int64_t words, const float* a_panels, const float* b_panels,
                   const float* bias, float* c, int64_t ldc, bool accumulate) {
  for (int64_t group = 0; group < columns; group += kGemmGroupColumns) {
    const int64_t group_end = columns - group < kGemmGroupColumns ? columns : group + kGemmGroupColumns;
    for (int64_t row = 0; row < rows; row += kGemmRows) {
      for (int64_t column = group; column < group_end; column += kGemmColumns) {
        const int64_t width = columns - column < kGemmColumns ? columns - column : kGemmColumns;
        const float* tile_bias = accumulate || bias == nullptr ? nullptr : bias + column;
        const GemmTile tile{
            words,     a_panels + row * words, b_panels + column * words, c + row * ldc + column, ldc, width, tile_bias,
            accumulate};
        if (rows - row >= kGemmRows) {
          gemm_tile<Words, kGemmRows>(tile);
        } else {
          gemm_tile_rows<Words, kGemmRows - 1>(tile, rows - row);
        }
      }
    }
  }
}

typedef float Vec4 __attribute__((vector_size(16)));

inline Vec4 load4(const float* x) {
  Vec4 v;
  __builtin_memcpy(&v, x, sizeof v);
  return v;
}
inline void store4(float* x, Vec4 v) { __builtin_memcpy(x, &v, sizeof v); }

/// out[j·out_stride + i] = x[i·stride + j] for i, j < 4.
inline void transpose4(const float* x, int64_t stride, float* out, int64_t out_stride) {
  const Vec4 r0 = load4(x), r1 = load4(x + stride), r2 = load4(x + 2 * stride), r3 = load4(x + 3 * stride);
  const Vec4 low01 = __builtin_shufflevector(r0, r1, 0, 4, 1, 5), high01 = __builtin_shufflevector(r0, r1, 2, 6, 3, 7);
  const Vec4 low23 = __builtin_shufflevector(r2, r3, 0, 4, 1, 5), high23 = __builtin_shufflevector(r2, r3, 2, 6, 3, 7);
  store4(out, __builtin_shufflevector(low01, low23, 0, 1, 4, 5));
  store4(out + out_stride, __builtin_shufflevector(low01, low23, 2, 3, 6, 7));
  store4(out + 2 * out_stride, __builtin_shufflevector(high01, high23, 0, 1, 4, 5));
  store4(out + 3 * out_stride, __builtin_shufflevector(high01, high23, 2, 3, 6, 7));
}

/// The same for i < 2.
inline void transpose2(const float* x, int64_t stride, float* out, int64_t out_stride) {
  const Vec4 r0 = load4(x), r1 = load4(x + stride);
  float pairs[8];
  store4(pairs, __builtin_shufflevector(r0, r1, 0, 4, 1, 5));
  store4(pairs + 4, __builtin_shufflevector(r0, r1, 2, 6, 3, 7));
  for (int j = 0; j < 4; ++j) __builtin_memcpy(out + j * out_stride, pairs + 2 * j, 2 * sizeof(float));
}

/// out [k, kTile] = element (i, p) of x at x[i·stride + p·k_stride] for i < count, zeros for the others.
template <int64_t kTile>
inline void pack_floats(const float* x, int64_t stride, int64_t k_stride, int64_t count, int64_t k, float* out) {
  if (stride == 1 && count == kTile) {
    for (int64_t p = 0; p < k; ++p) __builtin_memcpy(out + p * kTile, x + p * k_stride, kTile * sizeof(float));
    return;
  }
  int64_t i = 0;
  if (k_stride == 1) {
    const int64_t whole = k / 4 * 4;
    for (; i + 2 <= count; i += i + 4 <= count ? 4 : 2) {
      if (i + 4 <= count) {
        for (int64_t p = 0; p < whole; p += 4) transpose4(x + i * stride + p, stride, out + p * kTile + i, kTile);
      } else {
        for (int64_t p = 0; p < whole; p += 4) transpose2(x + i * stride + p, stride, out + p * kTile + i, kTile);
      }
    }
    for (int64_t p = whole; p < k; ++p) {
      for (int64_t lane = 0; lane < i; ++lane) out[p * kTile + lane] = x[lane * stride + p];
    }
  }
  for (; i < kTile; ++i) {
    for (int64_t p = 0; p < k; ++p) out[p * kTile + i] = i < count ? x[i * stride + p * k_stride] : 0.0f;
  }
}

/// The upper half of the nearest bfloat16 (ties to even), in place of the float; NaN stays NaN.
inline VecI round_to_bfloat16(VecF x) {
  const VecI bits = reinterpret_cast<VecI>(x);
  const VecI rounded = bits + 0x7FFF + ((bits >> 16) & 1);
  return x == x ? rounded : (bits | 0x00400000);
}

/// One panel of words: [⌈k / Words::kElements⌉, kTile].
template <typename Words, int64_t kTile>
void pack_panel(const float* x, int64_t stride, int64_t k_stride, int64_t count, int64_t k, float* out) {
  if constexpr (Words::kElements == 1) {
    pack_floats<kTile>(x, stride, k_stride, count, k, out);
  } else {
    constexpr int64_t kChunk = 64;
    float floats[kChunk * kTile + kLanes] = {};
    for (int64_t first = 0; first < k; first += kChunk) {
      const int64_t size = k - first < kChunk ? k - first : kChunk;
      pack_floats<kTile>(x + first * k_stride, stride, k_stride, count, size, floats);
      if (size % 2 != 0) {
        for (int64_t i = 0; i < kTile; ++i) floats[size * kTile + i] = 0;
      }
      for (int64_t p = 0; p < size; p += 2, out += kTile) {
        for (int64_t i = 0; i < kTile; i += kLanes) {
          constexpr int32_t kHigh = static_cast<int32_t>(0xFFFF0000u);
          const VecI low = round_to_bfloat16(load(floats + p * kTile + i));
          const VecI high = round_to_bfloat16(load(floats + (p + 1) * kTile + i));
          const VecF words = reinterpret_cast<VecF>(((low >> 16) & 0xFFFF) | (high & kHigh));
          if (i + kLanes <= kTile) {
            store(out + i, words);
          } else {
            store_first(out + i, words, kTile - i);
          }
        }
      }
    }
  }
}

template <typename Words>
constexpr GemmKernels make_gemm_kernels() {
  GemmKernels kernels{};
  kernels.rows = kGemmRows;
  kernels.columns = kGemmColumns;
  kernels.word_elements = Words::kElements;
  kernels.block_words = kGemmBlockWords;
  kernels.multiply = gemm_multiply<Words>;
  kernels.pack_a = pack_panel<Words, kGemmRows>;
  kernels.pack_b = pack_panel<Words, kGemmColumns>;
  return kernels;
}

/// One row of A against B [k, n] without packing: what a product of few rows takes, as it reads B once.
///   c [n] = or += a·B; element (p, j) of B at b[p·row_stride + j·column_stride], one of which is 1
void gemv(int64_t n, int64_t k, const float* a, int64_t a_stride, const float* b, int64_t row_stride,
          int64_t column_stride, const float* bias, float* c, bool accumulate) {
  if (row_stride == 1 && a_stride == 1) {
    // Rows of Bᵀ are contiguous: dot products, four at a time.
    int64_t j = 0;
    for (; j < n; j += 4) {
      const int64_t count = n - j < 4 ? n - j : 4;
      const float* rows[4];
      for (int64_t r = 0; r < 4; ++r) rows[r] = b + (j + (r < count ? r : 0)) * column_stride;
      VecF sums[4] = {};
      int64_t p = 0;
      for (; p + kLanes <= k; p += kLanes) {
        const VecF left = load(a + p);
        for (int r = 0; r < 4; ++r) sums[r] += left * load(rows[r] + p);
      }
      if (p < k) {
        const VecF left = load_first(a + p, k - p);
        for (int r = 0; r < 4; ++r) sums[r] += left * load_first(rows[r] + p, k - p);
      }
      for (int64_t r = 0; r < count; ++r) {
        const float offset = accumulate ? c[j + r] : bias == nullptr ? 0.0f : bias[j + r];
        c[j + r] = offset + horizontal_sum(sums[r]);
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
