// Products against the peak of the processor, measured in the same run: prints one JSON object. GFLOP/s are medians of
// alternating repeats; a share is the median of product/peak of neighbouring measurements on as many threads, so that a
// change of clock between repeats cancels. LIMBECK_FORCE_ISA chooses another instruction set.
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <vector>

#include "core/memory.h"
#include "core/rng.h"
#include "cpu/kernels.h"
#include "cpu/retrieve.h"
#include "ops/linear.h"
#include "ops/reference.h"

namespace {

// Independent accumulators: more than the latency of an FMA times the two that start in a cycle, and few enough for
// the 16 registers of AVX2.
constexpr int kAccumulators = 12, kWideAccumulators = 16;

/// Defines a loop that multiplies and adds in registers alone: kCount times an iteration, `step` of (sum, a, b).
/// Sums converge to 1: neither overflow nor denormals slow them.
#define LIMBECK_PEAK_LOOP(name, Vec, kCount, step)                            \
  void name(int64_t iterations, float* out) {                                 \
    Vec sums[kCount];                                                         \
    const Vec scale = out[0] - Vec{}, shift = out[1] - Vec{};                 \
    for (int i = 0; i < kCount; ++i) sums[i] = static_cast<float>(i) - Vec{}; \
    for (int64_t iteration = 0; iteration < iterations; ++iteration) {        \
      _Pragma("GCC unroll 16") for (int i = 0; i < kCount; ++i) {             \
        const Vec sum = sums[i];                                              \
        sums[i] = step;                                                       \
      }                                                                       \
    }                                                                         \
    for (int i = 1; i < kCount; ++i) sums[0] += sums[i];                      \
    out[2] = sums[0][0];                                                      \
  }

namespace portable {
typedef float Vec __attribute__((vector_size(16)));
LIMBECK_PEAK_LOOP(fma_loop, Vec, kAccumulators, sum* scale + shift)
}  // namespace portable

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
typedef float Vec __attribute__((vector_size(32)));
LIMBECK_PEAK_LOOP(fma_loop, Vec, kAccumulators, sum* scale + shift)
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma")
namespace avx512 {
typedef float Vec __attribute__((vector_size(64)));
LIMBECK_PEAK_LOOP(fma_loop, Vec, kWideAccumulators, sum* scale + shift)
// Pairs of a small and a negligible bfloat16: the sums stay finite.
LIMBECK_PEAK_LOOP(bfloat16_loop, Vec, kWideAccumulators,
                  reinterpret_cast<Vec>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum),
                                                         reinterpret_cast<__m512bh>(scale),
                                                         reinterpret_cast<__m512bh>(shift))))
// Sums of bits that may wrap: integer instructions take as long whatever they hold.
LIMBECK_PEAK_LOOP(int8_loop, Vec, kWideAccumulators,
                  reinterpret_cast<Vec>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum),
                                                            reinterpret_cast<__m512i>(scale),
                                                            reinterpret_cast<__m512i>(shift))))
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

enum class Operands { kFloat32, kBFloat16, kInt8 };

/// A kind of operands, and the loop that shows how fast the processor can multiply them.
struct Kind {
  const char* name;
  Operands operands;
  void (*peak_loop)(int64_t iterations, float* out);
  double iteration_flops;
};

std::vector<Kind> kinds_of(const char* isa) {
#if defined(__x86_64__)
  std::vector<Kind> kinds;
  if (std::strncmp(isa, "avx512", 6) == 0) {
    kinds.push_back({"float32", Operands::kFloat32, avx512::fma_loop, 2.0 * kWideAccumulators * 16});
    if (std::strcmp(isa, "avx512bf16") == 0) {
      kinds.push_back({"bfloat16", Operands::kBFloat16, avx512::bfloat16_loop, 4.0 * kWideAccumulators * 16});
      kinds.push_back({"int8", Operands::kInt8, avx512::int8_loop, 8.0 * kWideAccumulators * 16});
    }
    return kinds;
  }
  if (std::strcmp(isa, "avx2") == 0) return {{"float32", Operands::kFloat32, avx2::fma_loop, 2.0 * kAccumulators * 8}};
#else
  static_cast<void>(isa);
#endif
  return {{"float32", Operands::kFloat32, portable::fma_loop, 2.0 * kAccumulators * 4}};
}

double measure_peak(const Kind& kind, ThreadPool& pool) {
  constexpr int64_t kIterations = 100000;
  return measure(kind.iteration_flops * kIterations * pool.num_threads(), [&] {
    pool.parallel_for(pool.num_threads(), [&](int64_t, int) {
      float out[3] = {0.999f, 0.001f, 0};
      kind.peak_loop(kIterations, out);
    });
  });
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
    // Square ones.
    {512, 512, 512, "nn"},
    {1024, 1024, 1024, "nn"},
    {2048, 2048, 2048, "nn"},
    {4096, 4096, 4096, "nn"},
    // GPT-2 124M over 1,024 tokens: the blocks forward, and a weight gradient.
    {1024, 2304, 768, "nt"},
    {1024, 768, 768, "nt"},
    {1024, 3072, 768, "nt"},
    {1024, 768, 3072, "nt"},
    {3072, 768, 1024, "tn"},
    // A language student of width 256: the head over a vocabulary, forward and both gradients.
    {256, 50257, 256, "nt"},
    {256, 256, 50257, "nn"},
    {50257, 256, 256, "tn"},
    // A sequence student of width 64.
    {2048, 192, 64, "nt"},
    {2048, 64, 256, "nt"},
    {2048, 12101, 64, "nt"},
    {192, 64, 2048, "tn"},
};

constexpr Shape kQuantisedShapes[] = {
    {1024, 1024, 1024, "nt"},
    {2048, 2048, 2048, "nt"},
    {4096, 4096, 4096, "nt"},
    // Batches of requests against a catalogue.
    {84, 100000, 128, "nt"},
    {84, 12101, 64, "nt"},
};

AlignedFloats normals(int64_t count, uint64_t stream) {
  const Philox random{1, stream};
  AlignedFloats out = allocate_floats(count);
  random.fill_normal(out.get(), static_cast<uint64_t>(count));
  return out;
}

/// Operands where a model has them: in memory of huge pages.
struct Product {
  explicit Product(const Shape& shape)
      : shape(shape),
        a(normals(shape.m * shape.k, 1)),
        b(normals(shape.k * shape.n, 2)),
        c(allocate_floats(shape.m * shape.n)) {}

  template <typename View, typename T>
  View a_view(const T* data) const {
    return shape.layout[0] == 't' ? View{data, 1, shape.m} : View{data, shape.k, 1};
  }
  template <typename View, typename T>
  View b_view(const T* data) const {
    return shape.layout[1] == 't' ? View{data, 1, shape.k} : View{data, shape.n, 1};
  }

  void run(ThreadPool& pool, Arena& arena, Precision precision = Precision::kFloat32) {
    Context context{pool, arena, precision};
    gemm(context, shape.m, shape.n, shape.k, a_view<MatrixView>(a.get()), b_view<MatrixView>(b.get()), nullptr, c.get(),
         shape.n, false);
  }

  bool is_right(ThreadPool& pool, Arena& arena) {
    const int64_t count = shape.m * shape.n;
    std::fill(c.get(), c.get() + count, std::nanf(""));
    run(pool, arena);
    const std::vector<double> wide_a(a.get(), a.get() + shape.m * shape.k),
        wide_b(b.get(), b.get() + shape.k * shape.n);
    std::vector<double> expected(static_cast<size_t>(count));
    reference_gemm<double>(shape.m, shape.n, shape.k, a_view<ReferenceMatrix<double>>(wide_a.data()),
                           b_view<ReferenceMatrix<double>>(wide_b.data()), nullptr, expected.data(), shape.n, false);
    return largest_error({c.get(), c.get() + count}, expected, std::sqrt(static_cast<double>(shape.k))) < kTolerance;
  }

  Shape shape;
  AlignedFloats a, b, c;
};

/// Queries of int8 and a table as a catalogue is kept: the table was packed when its items were added, the queries are
/// packed in the time that counts, and so are the bounds that the products become. m queries, n items, k dimensions, a
/// multiple of 4.
struct QuantisedProduct {
  explicit QuantisedProduct(const Shape& shape)
      : shape(shape),
        words(shape.k / kQuantisedWordDimensions),
        num_blocks((shape.n + kQuantisedItems - 1) / kQuantisedItems),
        queries(static_cast<size_t>(shape.m * shape.k)),
        table(static_cast<size_t>(num_blocks * kQuantisedItems * shape.k)),
        scales(static_cast<size_t>(num_blocks * kQuantisedItems), 1.0f),
        panels(static_cast<size_t>((shape.m + cpu_kernels().quantised_rows) * words)),
        bounds(static_cast<size_t>(shape.m * num_blocks * kQuantisedItems)),
        above(static_cast<size_t>(shape.m * (num_blocks / kQuantisedWordBlocks + 1))),
        quantised(static_cast<size_t>(shape.m)) {
    const Philox random{1, 3};
    for (size_t i = 0; i < queries.size(); ++i) queries[i] = static_cast<int8_t>(random.uniform(i) * 128 - 64);
    for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<uint8_t>(random.uniform(i) * 255);
    for (size_t i = 0; i < quantised.size(); ++i) {
      const int8_t* values = queries.data() + i * static_cast<size_t>(shape.k);
      // Few bounds are above the threshold, as of a search that has found its best.
      quantised[i] = {values, words, std::accumulate(values, values + shape.k, 0), 1.0f, 0.0f, 1e30f};
    }
  }

  void run(ThreadPool& pool) {
    constexpr int64_t kGroupBytes = int64_t{1} << 18;  // of the table: half of a second-level cache
    const CpuKernels& kernels = cpu_kernels();
    const int64_t rows = kernels.quantised_rows, num_panels = (shape.m + rows - 1) / rows;
    pool.parallel_for(num_panels, [&](int64_t panel, int) {
      int32_t* out = panels.data() + panel * rows * words;
      for (int64_t i = panel * rows; i < std::min(shape.m, (panel + 1) * rows); ++i) {
        const int8_t* query = queries.data() + i * shape.k;
        for (int64_t w = 0; w < words; ++w) std::memcpy(out + w * rows + i % rows, query + 4 * w, sizeof(int32_t));
      }
    });
    const int64_t block_bytes = kQuantisedItems * shape.k, word_blocks = kQuantisedWordBlocks;
    const int64_t blocks = std::max(word_blocks, kGroupBytes / block_bytes / word_blocks * word_blocks);
    pool.parallel_for((num_blocks + blocks - 1) / blocks, [&](int64_t group, int) {
      const int64_t first = group * blocks;
      kernels.quantised_bounds_of_batch(quantised.data(), shape.m, panels.data(), table.data() + first * block_bytes,
                                        scales.data() + first * kQuantisedItems, std::min(blocks, num_blocks - first),
                                        bounds.data() + first * kQuantisedItems * shape.m,
                                        above.data() + first / word_blocks * shape.m);
    });
  }

  Shape shape;
  int64_t words, num_blocks;
  std::vector<int8_t> queries;  // [m, k]
  std::vector<uint8_t> table;
  std::vector<float> scales;
  std::vector<int32_t> panels;
  std::vector<float> bounds;
  std::vector<uint64_t> above;
  std::vector<QuantisedQuery> quantised;  // [m]
};

constexpr int64_t kRateFloats = int64_t{1} << 26;  // 256 MB: more than any cache holds

/// GB/s of a copy, what is read and what is written counted, on all threads.
double measure_copy(ThreadPool& pool, const float* from, float* to) {
  constexpr int64_t kPiece = int64_t{1} << 18;
  return measure(8.0 * kRateFloats, [&] {
    pool.parallel_for(kRateFloats / kPiece, [&](int64_t piece, int) {
      std::memcpy(to + piece * kPiece, from + piece * kPiece, kPiece * sizeof(float));
    });
  });
}

/// GB/s of reading on one thread.
double measure_read(const float* from) {
  volatile int64_t sink = 0;
  return measure(4.0 * kRateFloats, [&] {
    typedef int64_t Vec __attribute__((vector_size(64)));
    const auto* lines = reinterpret_cast<const Vec*>(from);
    Vec sums[4] = {};
    for (int64_t line = 0; line < kRateFloats / 16; line += 4) {
      for (int i = 0; i < 4; ++i) {
        __builtin_prefetch(lines + line + i + 64);
        sums[i] += lines[line + i];
      }
    }
    sink = sink + (sums[0] + sums[1] + sums[2] + sums[3])[0];
  });
}

/// What the floors of other benches are made of: one JSON object.
int print_rates(ThreadPool& one, ThreadPool& all) {
  const AlignedFloats from = normals(kRateFloats, 1), to = allocate_floats(kRateFloats);
  std::vector<double> copies, reads;
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
    copies.push_back(measure_copy(all, from.get(), to.get()));
    reads.push_back(measure_read(from.get()));
  }
  std::printf("{\"copyGBps\":%.1f,\"readGBps1\":%.1f", median(copies), median(reads));
  for (const Kind& kind : kinds_of(cpu_kernels().isa)) {
    std::vector<double> peaks1, peaks_all;
    for (int repeat = 0; repeat < kRepeats; ++repeat) {
      peaks1.push_back(measure_peak(kind, one));
      peaks_all.push_back(measure_peak(kind, all));
    }
    std::printf(",\"%s\":{\"gflops1\":%.1f,\"gflopsAll\":%.1f}", kind.name, median(peaks1), median(peaks_all));
  }
  std::printf("}\n");
  return 0;
}

/// Times run(pool) on one thread and on all, each beside the peak, and prints a JSON object.
template <typename Run>
void print_shape(const Kind& kind, const Shape& shape, ThreadPool& one, ThreadPool& all, const char* separator,
                 Run&& run) {
  const double flops = 2.0 * static_cast<double>(shape.m) * static_cast<double>(shape.n) * static_cast<double>(shape.k);
  run(all);
  std::vector<double> rates[2], shares[2];
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
    for (const int index : {0, 1}) {
      ThreadPool& pool = index == 0 ? one : all;
      const double peak = measure_peak(kind, pool);
      rates[index].push_back(measure(flops, [&] { run(pool); }));
      shares[index].push_back(rates[index].back() / peak);
    }
  }
  std::printf(
      "%s{\"kind\":\"%s\",\"m\":%lld,\"n\":%lld,\"k\":%lld,\"layout\":\"%s\",\"gflops1\":%.1f,\"share1\":%.3f,"
      "\"gflopsAll\":%.1f,\"shareAll\":%.3f}",
      separator, kind.name, static_cast<long long>(shape.m), static_cast<long long>(shape.n),
      static_cast<long long>(shape.k), shape.layout, median(rates[0]), median(shares[0]), median(rates[1]),
      median(shares[1]));
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  const char* isa = cpu_kernels().isa;
  ThreadPool one(1), all(0);
  Arena arena;
  if (argc > 1 && std::strcmp(argv[1], "--rates") == 0) return print_rates(one, all);
  for (const Shape& shape : {Shape{192, 64, 2048, "tn"}, Shape{200, 150, 64, "nt"}, Shape{150, 100, 300, "nn"}}) {
    if (Product(shape).is_right(all, arena)) continue;
    std::fprintf(stderr, "The product %lld x %lld x %lld (%s) differs from the reference.\n",
                 static_cast<long long>(shape.m), static_cast<long long>(shape.n), static_cast<long long>(shape.k),
                 shape.layout);
    return 1;
  }
  std::printf("{\"isa\":\"%s\",\"threads\":%d,\"shapes\":[", isa, all.num_threads());
  const char* separator = "";
  for (const Kind& kind : kinds_of(isa)) {
    if (kind.operands == Operands::kInt8) {
      for (const Shape& shape : kQuantisedShapes) {
        QuantisedProduct product(shape);
        print_shape(kind, shape, one, all, separator, [&](ThreadPool& pool) { product.run(pool); });
        separator = ",";
      }
      continue;
    }
    const Precision precision = kind.operands == Operands::kBFloat16 ? Precision::kBFloat16 : Precision::kFloat32;
    for (const Shape& shape : kShapes) {
      Product product(shape);
      print_shape(kind, shape, one, all, separator, [&](ThreadPool& pool) { product.run(pool, arena, precision); });
      arena.reset();
      separator = ",";
    }
  }
  std::printf("]}\n");
  return 0;
}
