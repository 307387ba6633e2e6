// The matrix product on packed panels. Included by kernels_<isa>.cc, after vec.inl.h.
//
// Panels of A hold kGemmRows rows, panels of B kGemmColumns columns, both k after k and padded with zeros, so that the
// innermost loop reads two streams from front to back (Goto & van de Geijn 2008, ACM TOMS 34(3), §4).

constexpr int kGemmVectors = 2;
constexpr int64_t kGemmColumns = kGemmVectors * kLanes;
// Accumulators of a tile: as many as hide the latency of two FMA pipes and leave registers for the operands.
constexpr int64_t kGemmRows = kLanes == 16 ? 14 : 6;

/// sums = Σ_k a_panel[k, ·]·b_panel[k, ·]
inline void gemm_tile(int64_t k, const float* __restrict a, const float* __restrict b,
                      VecF (&sums)[kGemmRows][kGemmVectors]) {
  VecF c[kGemmRows][kGemmVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kGemmRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kGemmVectors; ++v) c[i][v] = VecF{};
  }
  for (int64_t p = 0; p < k; ++p, a += kGemmRows, b += kGemmColumns) {
    VecF right[kGemmVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kGemmVectors; ++v) right[v] = load(b + v * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kGemmRows; ++i) {
      const VecF left = broadcast(a[i]);
#pragma GCC unroll 4
      for (int v = 0; v < kGemmVectors; ++v) c[i][v] += left * right[v];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kGemmRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kGemmVectors; ++v) sums[i][v] = c[i][v];
  }
}

/// c [rows, columns] = or += the product of packed panels; bias [columns] is added where c is written first.
void gemm_block(int64_t rows, int64_t columns, int64_t k, const float* a_panels, const float* b_panels,
                const float* bias, float* c, int64_t ldc, bool accumulate) {
  for (int64_t column = 0; column < columns; column += kGemmColumns) {
    const float* b = b_panels + column * k;
    const int64_t width = columns - column < kGemmColumns ? columns - column : kGemmColumns;
    for (int64_t row = 0; row < rows; row += kGemmRows) {
      const int64_t height = rows - row < kGemmRows ? rows - row : kGemmRows;
      VecF sums[kGemmRows][kGemmVectors];
      gemm_tile(k, a_panels + row * k, b, sums);
      float* tile = c + row * ldc + column;
      for (int64_t i = 0; i < height; ++i) {
        for (int v = 0; v < kGemmVectors; ++v) {
          const int64_t left = width - v * kLanes;
          if (left <= 0) break;
          float* out = tile + i * ldc + v * kLanes;
          const float* offset = accumulate ? out : bias == nullptr ? nullptr : bias + column + v * kLanes;
          if (left >= kLanes) {
            store(out, offset == nullptr ? sums[i][v] : sums[i][v] + load(offset));
          } else {
            store_first(out, offset == nullptr ? sums[i][v] : sums[i][v] + load_first(offset, left), left);
          }
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

/// One panel: out [k, kTile] = element (i, p) of x at x[i·stride + p·k_stride] for i < count, zeros for the others.
template <int64_t kTile>
inline void pack_panel(const float* x, int64_t stride, int64_t k_stride, int64_t count, int64_t k, float* out) {
  if (stride == 1 && count == kTile) {
    for (int64_t p = 0; p < k; ++p) __builtin_memcpy(out + p * kTile, x + p * k_stride, kTile * sizeof(float));
    return;
  }
  int64_t i = 0;
  if (k_stride == 1) {
    for (; i + 4 <= count; i += 4) {
      int64_t p = 0;
      for (; p + 4 <= k; p += 4) transpose4(x + i * stride + p, stride, out + p * kTile + i, kTile);
      for (; p < k; ++p) {
        for (int64_t lane = i; lane < i + 4; ++lane) out[p * kTile + lane] = x[lane * stride + p];
      }
    }
  }
  for (; i < kTile; ++i) {
    for (int64_t p = 0; p < k; ++p) out[p * kTile + i] = i < count ? x[i * stride + p * k_stride] : 0.0f;
  }
}

void pack_a_panel(const float* x, int64_t stride, int64_t k_stride, int64_t count, int64_t k, float* out) {
  pack_panel<kGemmRows>(x, stride, k_stride, count, k, out);
}

void pack_b_panel(const float* x, int64_t stride, int64_t k_stride, int64_t count, int64_t k, float* out) {
  pack_panel<kGemmColumns>(x, stride, k_stride, count, k, out);
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
