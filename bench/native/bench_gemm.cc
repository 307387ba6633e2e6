// GEMM against the peak of the processor, measured in the same run: prints one JSON object. GFLOP/s are medians of
// alternating repeats; a share is the median of gemm/peak of neighbouring measurements, so that a change of clock
// between repeats cancels. LIMBECK_FORCE_ISA chooses another instruction set.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "core/rng.h"
#include "cpu/kernels.h"
#include "ops/linear.h"
#include "ops/reference.h"

namespace {

// Independent accumulators: more than the latency of an FMA times the two that start in a cycle, and few enough for
// the 16 registers of AVX2.
#define LIMBECK_ACCUMULATORS 12

/// Defines `void fma_loop(iterations, out)`, which does LIMBECK_ACCUMULATORS·kLanes FMAs an iteration in registers
/// alone. They converge to 1: neither overflow nor denormals slow them.
#define LIMBECK_FMA_LOOP(kLanes)                                                                                     \
  void fma_loop(int64_t iterations, float* out) {                                                                    \
    typedef float Vec __attribute__((vector_size(kLanes * sizeof(float))));                                          \
    Vec sums[LIMBECK_ACCUMULATORS];                                                                                  \
    const Vec scale = out[0] - Vec{}, shift = out[1] - Vec{};                                                        \
    for (int i = 0; i < LIMBECK_ACCUMULATORS; ++i) sums[i] = static_cast<float>(i) - Vec{};                          \
    for (int64_t iteration = 0; iteration < iterations; ++iteration) {                                               \
      _Pragma("GCC unroll 16") for (int i = 0; i < LIMBECK_ACCUMULATORS; ++i) { sums[i] = sums[i] * scale + shift; } \
    }                                                                                                                \
    for (int i = 1; i < LIMBECK_ACCUMULATORS; ++i) sums[0] += sums[i];                                               \
    out[2] = sums[0][0];                                                                                             \
  }

namespace portable {
LIMBECK_FMA_LOOP(4)
}  // namespace portable

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
LIMBECK_FMA_LOOP(8)
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
namespace avx512 {
LIMBECK_FMA_LOOP(16)
}  // namespace avx512
#pragma GCC pop_options
#endif

using namespace limbeck;

constexpr int kRepeats = 7;
constexpr double kMeasureSeconds = 0.05;
constexpr double kTolerance = 5e-6;  // of an fp32 sum of k products of normals, over √k

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

/// GFLOP/s of body(), called until kMeasureSeconds are over.
template <typename Body>
double measure(double flops, Body&& body) {
  const double begin = now();
  int64_t calls = 0;
  double seconds = 0;
  do {
    body();
    ++calls;
    seconds = now() - begin;
  } while (seconds < kMeasureSeconds);
  return flops * static_cast<double>(calls) / seconds * 1e-9;
}

struct PeakLoop {
  void (*loop)(int64_t iterations, float* out);
  int lanes;
};

PeakLoop peak_loop(const char* isa) {
#if defined(__x86_64__)
  if (std::strncmp(isa, "avx512", 6) == 0) return {avx512::fma_loop, 16};
  if (std::strcmp(isa, "avx2") == 0) return {avx2::fma_loop, 8};
#else
  static_cast<void>(isa);
#endif
  return {portable::fma_loop, 4};
}

double measure_peak(const PeakLoop& peak) {
  constexpr int64_t kIterations = 100000;
  float out[3] = {0.999f, 0.001f, 0};
  return measure(2.0 * LIMBECK_ACCUMULATORS * peak.lanes * kIterations, [&] { peak.loop(kIterations, out); });
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

/// "nn": A·B; "nt": B is stored transposed, as in a linear layer; "tn": A is, as in the gradient of its weight.
struct Shape {
  int64_t m, n, k;
  const char* layout;
};

constexpr Shape kShapes[] = {
    {512, 512, 512, "nn"},  {1024, 1024, 1024, "nn"}, {2048, 2048, 2048, "nn"}, {2048, 192, 64, "nt"},
    {2048, 2414, 64, "nt"}, {192, 64, 2048, "tn"},    {2048, 64, 256, "nt"},
};

struct Product {
  explicit Product(const Shape& shape)
      : shape(shape),
        a(normals(shape.m * shape.k, 1)),
        b(normals(shape.k * shape.n, 2)),
        c(static_cast<size_t>(shape.m * shape.n)) {}

  static std::vector<float> normals(int64_t count, uint64_t stream) {
    const Philox random{1, stream};
    std::vector<float> out(static_cast<size_t>(count));
    for (size_t i = 0; i < out.size(); ++i) out[i] = random.normal(i);
    return out;
  }

  template <typename View, typename T>
  View a_view(const std::vector<T>& data) const {
    return shape.layout[0] == 't' ? View{data.data(), 1, shape.m} : View{data.data(), shape.k, 1};
  }
  template <typename View, typename T>
  View b_view(const std::vector<T>& data) const {
    return shape.layout[1] == 't' ? View{data.data(), 1, shape.k} : View{data.data(), shape.n, 1};
  }

  void run(ThreadPool& pool, Arena& arena, Precision precision = Precision::kFloat32) {
    Context context{pool, arena, precision};
    gemm(context, shape.m, shape.n, shape.k, a_view<MatrixView>(a), b_view<MatrixView>(b), nullptr, c.data(), shape.n,
         false);
  }

  bool is_right(ThreadPool& pool, Arena& arena) {
    std::fill(c.begin(), c.end(), std::nanf(""));
    run(pool, arena);
    const std::vector<double> wide_a(a.begin(), a.end()), wide_b(b.begin(), b.end());
    std::vector<double> expected(c.size());
    reference_gemm<double>(shape.m, shape.n, shape.k, a_view<ReferenceMatrix<double>>(wide_a),
                           b_view<ReferenceMatrix<double>>(wide_b), nullptr, expected.data(), shape.n, false);
    return largest_error(c, expected, std::sqrt(static_cast<double>(shape.k))) < kTolerance;
  }

  Shape shape;
  std::vector<float> a, b, c;
};

}  // namespace

int main() {
  const char* isa = cpu_kernels().isa;
  const PeakLoop peak = peak_loop(isa);
  const bool has_bfloat16 = std::strcmp(isa, "avx512bf16") == 0;
  ThreadPool one(1), all(0);
  Arena arena;
  for (const Shape& shape : {Shape{192, 64, 2048, "tn"}, Shape{200, 150, 64, "nt"}, Shape{150, 100, 300, "nn"}}) {
    if (Product(shape).is_right(all, arena)) continue;
    std::fprintf(stderr, "The product %lld x %lld x %lld (%s) differs from the reference.\n",
                 static_cast<long long>(shape.m), static_cast<long long>(shape.n), static_cast<long long>(shape.k),
                 shape.layout);
    return 1;
  }
  std::vector<double> peaks;
  std::printf("{\"isa\":\"%s\",\"threads\":%d,\"shapes\":[", isa, all.num_threads());
  for (const Shape& shape : kShapes) {
    Product product(shape);
    const double flops =
        2.0 * static_cast<double>(shape.m) * static_cast<double>(shape.n) * static_cast<double>(shape.k);
    product.run(all, arena);
    arena.reset();
    std::vector<double> gflops[2], shares[2], bfloat16;
    for (int repeat = 0; repeat < kRepeats; ++repeat) {
      if (has_bfloat16) {
        bfloat16.push_back(measure(flops, [&] { product.run(one, arena, Precision::kBFloat16); }));
      }
      for (const int index : {0, 1}) {
        ThreadPool& pool = index == 0 ? one : all;
        const double peak_gflops = measure_peak(peak);
        const double rate = measure(flops, [&] { product.run(pool, arena); });
        peaks.push_back(peak_gflops);
        gflops[index].push_back(rate);
        shares[index].push_back(rate / (peak_gflops * pool.num_threads()));
      }
    }
    std::printf(
        "%s{\"m\":%lld,\"n\":%lld,\"k\":%lld,\"layout\":\"%s\",\"gflops1\":%.1f,\"share1\":%.3f,"
        "\"gflopsAll\":%.1f,\"shareAll\":%.3f",
        &shape == kShapes ? "" : ",", static_cast<long long>(shape.m), static_cast<long long>(shape.n),
        static_cast<long long>(shape.k), shape.layout, median(gflops[0]), median(shares[0]), median(gflops[1]),
        median(shares[1]));
    if (has_bfloat16) std::printf(",\"bfloat16Gflops1\":%.1f", median(bfloat16));
    std::printf("}");
  }
  std::printf("],\"peakGflops\":%.1f}\n", median(peaks));
  return 0;
}
