// One vector of floats and its arithmetic, for the instruction set of the file that includes this: GCC vector
// extensions, kLanes floats wide. Included by kernels_<isa>.cc inside a namespace of its own, after its target pragma.

typedef float VecF __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t VecI __attribute__((vector_size(kLanes * sizeof(int32_t))));

inline VecF load(const float* x) {
  VecF v;
  __builtin_memcpy(&v, x, sizeof v);
  return v;
}
inline void store(float* x, VecF v) { __builtin_memcpy(x, &v, sizeof v); }
inline VecI load_integers(const int32_t* x) {
  VecI v;
  __builtin_memcpy(&v, x, sizeof v);
  return v;
}
inline void store_integers(int32_t* x, VecI v) { __builtin_memcpy(x, &v, sizeof v); }
inline VecF broadcast(float x) { return x - VecF{}; }
/// Where a is NaN: b.
inline VecF max(VecF a, VecF b) { return a > b ? a : b; }

/// The first count < kLanes floats, then zeros. Nothing behind them is read.
inline VecF load_first(const float* x, int64_t count) {
#if LIMBECK_LANES == 16
  return reinterpret_cast<VecF>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), x));
#else
  float lanes[kLanes] = {};
  __builtin_memcpy(lanes, x, static_cast<size_t>(count) * sizeof(float));
  return load(lanes);
#endif
}
inline void store_first(float* x, VecF v, int64_t count) {
#if LIMBECK_LANES == 16
  _mm512_mask_storeu_ps(x, static_cast<__mmask16>((1u << count) - 1), reinterpret_cast<__m512>(v));
#else
  float lanes[kLanes];
  store(lanes, v);
  __builtin_memcpy(x, lanes, static_cast<size_t>(count) * sizeof(float));
#endif
}

/// How a body reads and writes: a whole vector, or the first `count` floats of one.
struct WholeVector {
  VecF operator()(const float* x) const { return load(x); }
  void operator()(float* x, VecF v) const { store(x, v); }
};
struct FirstFloats {
  int64_t count;
  VecF operator()(const float* x) const { return load_first(x, count); }
  void operator()(float* x, VecF v) const { store_first(x, v, count); }
};

/// Calls body(index, get, put) over count floats: whole vectors, then what is left as one padded by zeros.
template <typename Body>
inline void for_each_vector(int64_t count, Body&& body) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) body(i, WholeVector{}, WholeVector{});
  if (i < count) body(i, FirstFloats{count - i}, FirstFloats{count - i});
}

template <int kDistance, size_t... kLane>
inline VecF swap_lanes(VecF v, std::index_sequence<kLane...>) {
  return __builtin_shufflevector(v, v, static_cast<int>(kLane ^ kDistance)...);
}
/// Lanes i and i ^ kDistance change places.
template <int kDistance>
inline VecF swap_lanes(VecF v) {
  return swap_lanes<kDistance>(v, std::make_index_sequence<kLanes>{});
}

inline float horizontal_sum(VecF v) {
  if constexpr (kLanes >= 16) v += swap_lanes<8>(v);
  if constexpr (kLanes >= 8) v += swap_lanes<4>(v);
  v += swap_lanes<2>(v);
  v += swap_lanes<1>(v);
  return v[0];
}

inline float horizontal_max(VecF v) {
  if constexpr (kLanes >= 16) v = max(swap_lanes<8>(v), v);
  if constexpr (kLanes >= 8) v = max(swap_lanes<4>(v), v);
  v = max(swap_lanes<2>(v), v);
  v = max(swap_lanes<1>(v), v);
  return v[0];
}

/// Swaps bit `kBit` of the number of a row with that of a column. A transposition is one swap for every bit.
template <int kBit, size_t... kColumns>
inline void swap_bit(VecF (&rows)[kLanes], std::index_sequence<kColumns...>) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if ((i & kBit) != 0) continue;
    const VecF upper = rows[i], lower = rows[i | kBit];
    rows[i] =
        __builtin_shufflevector(upper, lower, ((kColumns & kBit) != 0 ? kLanes + (kColumns ^ kBit) : kColumns)...);
    rows[i | kBit] =
        __builtin_shufflevector(upper, lower, ((kColumns & kBit) != 0 ? kLanes + kColumns : kColumns ^ kBit)...);
  }
}

/// rows[i][j] becomes rows[j][i].
inline void transpose(VecF (&rows)[kLanes]) {
  constexpr auto kColumns = std::make_index_sequence<kLanes>{};
  swap_bit<1>(rows, kColumns);
  swap_bit<2>(rows, kColumns);
  if constexpr (kLanes >= 8) swap_bit<4>(rows, kColumns);
  if constexpr (kLanes >= 16) swap_bit<8>(rows, kColumns);
}

/// Bit i: whether lane i of a comparison holds.
inline uint32_t lane_mask(VecI holds) {
#if LIMBECK_LANES == 16
  return _mm512_movepi32_mask(reinterpret_cast<__m512i>(holds));
#elif LIMBECK_LANES == 8
  return static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(holds)));
#else
  uint32_t mask = 0;
  for (int lane = 0; lane < kLanes; ++lane) mask |= static_cast<uint32_t>(holds[lane] != 0) << lane;
  return mask;
#endif
}

/// Bit i: whether lane i of a is greater.
inline uint32_t greater_mask(VecF a, float b) {
#if LIMBECK_LANES == 16
  return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(a), _mm512_set1_ps(b), _CMP_GT_OQ);
#else
  return lane_mask(a > b);
#endif
}

/// The first `count` lanes of v, −∞ in those behind.
inline VecF first_lanes(VecF v, int64_t count) {
  VecI lanes;
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = lane;
  return lanes < static_cast<int32_t>(count) ? v : broadcast(-__builtin_inff());
}

/// eˣ to 2 ulp: x = n·ln 2 + r, |r| ≤ ln 2/2, polynomial of degree 6 in r (Cephes expf). Below −86.6 it is 0; NaN
/// stays NaN.
inline VecF exp(VecF x) {
  constexpr float kLowest = -86.6f, kHighest = 88.8f;
  constexpr float kRound = 12582912.0f;  // 1.5·2²³: adding it leaves the nearest integer in the low bits
#if LIMBECK_LANES == 16
  // A NaN is the second operand, which is what min gives then. What is too low need not be clamped: it becomes 0.
  const VecF clamped = reinterpret_cast<VecF>(_mm512_min_ps(_mm512_set1_ps(kHighest), reinterpret_cast<__m512>(x)));
#else
  const VecF clamped = x < kLowest ? broadcast(kLowest) : (x > kHighest ? broadcast(kHighest) : x);
#endif
  const VecF shifted = clamped * 1.44269504088896341f + kRound;
  const VecF n = shifted - kRound;
  VecF r = clamped - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  VecF p = broadcast(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + (r + 1.0f);
#if LIMBECK_LANES == 16
  const __mmask16 counts = _mm512_cmp_ps_mask(reinterpret_cast<__m512>(x), _mm512_set1_ps(kLowest), _CMP_NLT_UQ);
  return reinterpret_cast<VecF>(
      _mm512_maskz_scalef_ps(counts, reinterpret_cast<__m512>(p), reinterpret_cast<__m512>(n)));
#else
  // 2ⁿ⁻¹ twice: 2¹²⁸ itself has no float, though the product may.
  const VecI exponent = (reinterpret_cast<VecI>(shifted) << 23) + (126 << 23);
  const VecF result = (p + p) * reinterpret_cast<VecF>(exponent);
  return x < kLowest ? VecF{} : result;
#endif
}

/// Natural logarithm of positive normal numbers to 2 ulp (Cephes logf).
inline VecF log(VecF x) {
  VecI bits = reinterpret_cast<VecI>(x);
  VecI exponent = (bits >> 23) - 126;
  VecF m = reinterpret_cast<VecF>((bits & 0x007FFFFF) | 0x3F000000);  // [0.5, 1)
  const VecI is_small = m < 0.707106781186547524f;
  exponent += is_small;  // −1 where true
  m = (is_small ? m + m : m) - 1.0f;
  const VecF e = __builtin_convertvector(exponent, VecF);
  VecF p = broadcast(7.0376836292e-2f);
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  const VecF square = m * m;
  VecF y = p * m * square;
  y = y + e * -2.12194440e-4f;
  y = y - square * 0.5f;
  return m + y + e * 0.693359375f;
}

inline VecF sigmoid(VecF x) { return 1.0f / (1.0f + exp(-x)); }

inline VecF sqrt(VecF x) {
#if LIMBECK_LANES == 16
  return reinterpret_cast<VecF>(_mm512_sqrt_ps(reinterpret_cast<__m512>(x)));
#elif LIMBECK_LANES == 8
  return reinterpret_cast<VecF>(_mm256_sqrt_ps(reinterpret_cast<__m256>(x)));
#else
  for (int lane = 0; lane < kLanes; ++lane) x[lane] = __builtin_sqrtf(x[lane]);
  return x;
#endif
}

/// erfc(z) for z ≥ 0, relative error 1.2e-7 (Press et al., Numerical Recipes, 2nd ed., §6.2).
inline VecF erfc_positive(VecF z) {
  const VecF t = 1.0f / (1.0f + 0.5f * z);
  VecF p = broadcast(0.17087277f);
  p = p * t - 0.82215223f;
  p = p * t + 1.48851587f;
  p = p * t - 1.13520398f;
  p = p * t + 0.27886807f;
  p = p * t - 0.18628806f;
  p = p * t + 0.09678418f;
  p = p * t + 0.37409196f;
  p = p * t + 1.00002368f;
  p = p * t - 1.26551223f;
  return t * exp(p - z * z);
}

/// Standard normal distribution function Φ.
inline VecF normal_cdf(VecF x) {
  const VecF tail = 0.5f * erfc_positive((x < 0.0f ? -x : x) * 0.70710678118654752f);
  return x < 0.0f ? tail : 1.0f - tail;
}
