#include "cuda/catalogue_loss.h"

#include <cmath>
#include <limits>
#include <vector>

#include "compare.h"
#include "device_test.h"
#include "ops/reference_loss.h"

using namespace limbeck::cuda;
using namespace limbeck_test;

namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInitialGradient = 0x1p-10f;  // what d_table and d_bias are added to
constexpr float kScale = 0.25f;

struct Case {
  int64_t num_rows, hidden_size, vocab_size;
  bool with_bias = true;
  int64_t chunk_rows = 1000;
  float even_scale = 1, odd_scale = 1;  // of the logits of even rows and of odd rows
  float bias = 0;                       // added to each
};

int64_t padded(int64_t vocab_size) { return (vocab_size + 63) / 64 * 64; }

bool is_near(double x, double y, double tolerance) { return std::fabs(x - y) <= tolerance; }

struct Results {
  std::vector<float> losses, d_hidden, d_table, d_bias;
  double sum = 0;
};

struct Problem {
  explicit Problem(const Case& c) : c(c) {
    std::vector<float> x =
        random_floats(c.num_rows * c.hidden_size, 1, 1 / std::sqrt(static_cast<float>(c.hidden_size)));
    for (int64_t i = 0; i < c.num_rows * c.hidden_size; ++i) {
      x[i] *= i / c.hidden_size % 2 == 0 ? c.even_scale : c.odd_scale;
    }
    hidden = rounded<bf16>(x);
    table = rounded<bf16>(random_floats(c.vocab_size * c.hidden_size, 2));
    if (c.with_bias) bias = random_floats(c.vocab_size, 3);
    for (float& b : bias) b = rounded<bf16>(b + c.bias);
    for (int64_t r = 0; r < c.num_rows; ++r) {
      labels.push_back(static_cast<int32_t>((r * 7 + c.vocab_size - 1) % c.vocab_size));
    }
  }

  enum class Path { kCatalogue, kLossHead, kGeneral };
  /// With accumulates_table, d_table includes kInitialGradient; otherwise it was NaN before.
  Results run(bool with_gradient = true, Path path = Path::kCatalogue, int num_multiprocessors = 0,
              bool accumulates_table = true) const {
    TestDevice device;
    if (num_multiprocessors > 0) device.context.num_multiprocessors = num_multiprocessors;
    std::vector<float> rows = table, pads = bias;
    rows.resize(static_cast<size_t>(padded(c.vocab_size) * c.hidden_size), 0.0f);
    if (c.with_bias) pads.resize(static_cast<size_t>(padded(c.vocab_size)), kNaN);  // nobody may look at them
    const DeviceArray<bf16> device_hidden(converted<bf16>(hidden)), device_table(converted<bf16>(rows)),
        device_bias(converted<bf16>(pads));
    const DeviceArray<int32_t> device_labels(labels);
    const DeviceArray<uint8_t> allowed(std::vector<uint8_t>(static_cast<size_t>(c.vocab_size), 1));
    const DeviceArray<float2> losses(c.num_rows);
    const DeviceArray<bf16> d_hidden(c.num_rows * c.hidden_size);
    const DeviceArray<float> d_table(std::vector<float>(rows.size(), accumulates_table ? kInitialGradient : kNaN));
    const DeviceArray<float> d_bias(std::vector<float>(static_cast<size_t>(c.vocab_size), kInitialGradient));
    const DeviceArray<double> sums(std::vector<double>(2, 0));
    const OutputTable<bf16> output{device_table.data(), c.with_bias ? device_bias.data() : nullptr, c.vocab_size,
                                   padded(c.vocab_size)};
    bf16* d_x = with_gradient ? d_hidden.data() : nullptr;
    float* d_t = with_gradient ? d_table.data() : nullptr;
    float* d_b = with_gradient && c.with_bias ? d_bias.data() : nullptr;
    Results results;
    if (path == Path::kCatalogue) {
      catalogue_loss(device.context, device_hidden.data(), output, device_labels.data(), kScale, d_x, d_t,
                     accumulates_table, d_b, losses.data(), c.num_rows, c.hidden_size, c.chunk_rows);
      for (const float2& loss : losses.get()) {
        results.losses.push_back(loss.x);
        results.sum += loss.x;
        CHECK(loss.y == 0);
      }
    } else {
      LossHeadOptions options;
      options.ce_weight = 0.5f;
      loss_head<bf16>(device.context, device_hidden.data(), output, device_labels.data(), {}, options, 2 * kScale,
                      path == Path::kGeneral ? allowed.data() : nullptr, d_x, d_t, accumulates_table, d_b, sums.data(),
                      c.num_rows, c.hidden_size, c.chunk_rows);
      results.sum = sums.get()[0];
      CHECK(sums.get()[1] == 0);
    }
    results.d_hidden = d_hidden.floats();
    results.d_table = d_table.get();
    for (size_t i = table.size(); i < rows.size(); ++i) {
      CHECK(results.d_table[i] == (accumulates_table ? kInitialGradient : 0.0f));
    }
    results.d_table.resize(table.size());
    results.d_bias = d_bias.get();
    return results;
  }

  /// In double.
  void check(const Results& out, double tolerance = 4e-3) const {
    const int64_t d = c.hidden_size, V = c.vocab_size;
    const std::vector<double> t = widen(table), b = widen(bias);
    std::vector<double> d_hidden(hidden.size(), 0), d_table(table.size(), 0), d_bias(static_cast<size_t>(V), 0);
    for (int64_t r = 0; r < c.num_rows; ++r) {
      const std::vector<double> h(hidden.begin() + r * d, hidden.begin() + (r + 1) * d);
      const std::vector<double> z = limbeck::reference_logits(h.data(), t.data(), b.empty() ? nullptr : b.data(), d, V);
      const double loss = limbeck::reference_cross_entropy(z, labels[r], nullptr);
      // The loss is a difference: however small the label's logit, it is no more exact than its own size allows in
      // fp32.
      CHECK(is_near(out.losses[r], loss, 2e-5 * (1 + std::fabs(z[labels[r]])) + 4e-6 * loss));
      std::vector<double> g = limbeck::reference_softmax(z);
      g[labels[r]] -= 1;
      for (int64_t v = 0; v < V; ++v) {
        const double gradient = kScale * g[v];
        d_bias[v] += gradient;
        for (int64_t i = 0; i < d; ++i) {
          d_hidden[r * d + i] += gradient * t[v * d + i];
          d_table[v * d + i] += gradient * h[i];
        }
      }
    }
    for (double& x : d_table) x += kInitialGradient;
    for (double& x : d_bias) x += kInitialGradient;
    CHECK(is_close(out.d_hidden, d_hidden, tolerance));
    CHECK(is_close(out.d_table, d_table, tolerance));
    if (c.with_bias) CHECK(is_close(out.d_bias, d_bias, tolerance));
  }

  Case c;
  std::vector<float> hidden, table, bias;
  std::vector<int32_t> labels;
};

}  // namespace

TEST("cuda: a catalogue's cross-entropy and gradients, any number of rows and items") {
  for (const Case& c : std::vector<Case>{
           {1, 16, 33},
           {5, 48, 64, false},
           {130, 64, 100},
           {5, 128, 100, false},
           {1, 96, 1000, false},
           {5, 16, 1000, true, 2},
           {130, 128, 33, true, 129},
           {5, 64, 4097},
           {130, 128, 1100, false},
           {128, 64, 4097},
           {300, 96, 2200, true, 290},
           {270, 16, 8200},
       }) {
    const Problem problem(c);
    problem.check(problem.run());
  }
}

TEST("cuda: a catalogue's cross-entropy alone is the same, and the same bits on every run") {
  for (const Case& c : std::vector<Case>{{5, 48, 1100, false, 3}, {5, 48, 1100, true, 3}, {140, 112, 600}}) {
    const Problem problem(c);
    const Results out = problem.run(), again = problem.run(), value = problem.run(false);
    CHECK(same_bits(out.losses, again.losses));
    CHECK(same_bits(out.d_hidden, again.d_hidden));
    CHECK(same_bits(out.d_table, again.d_table));
    CHECK(same_bits(out.d_bias, again.d_bias));
    CHECK(same_bits(out.losses, value.losses));
    CHECK(std::isnan(value.d_hidden[0]));  // untouched
  }
}

TEST("cuda: a catalogue's cross-entropy is the same bits on any number of multiprocessors") {
  const Problem problem({260, 80, 4300});
  const Results one = problem.run(true, Problem::Path::kCatalogue, 1);
  problem.check(one);
  for (const int n : {2, 5, 1000}) {
    const Results out = problem.run(true, Problem::Path::kCatalogue, n);
    CHECK(same_bits(out.losses, one.losses));
    CHECK(same_bits(out.d_hidden, one.d_hidden));
    CHECK(same_bits(out.d_table, one.d_table));
  }
}

TEST("cuda: the gradient of a catalogue's table is set, or added to what is there") {
  for (const int64_t chunk_rows : {3, 1000}) {
    const Problem problem({8, 16, 4100, true, chunk_rows});
    for (const auto path : {Problem::Path::kCatalogue, Problem::Path::kLossHead}) {
      const Results added = problem.run(true, path);
      const Results set = problem.run(true, path, 0, false);
      for (size_t i = 0; i < set.d_table.size(); ++i) {
        CHECK(is_near(set.d_table[i] + kInitialGradient, added.d_table[i], 1e-6));
      }
    }
  }
}

TEST("cuda: a catalogue's cross-entropy of extreme logits") {
  for (const Case& c : std::vector<Case>{
           {6, 32, 200, true, 4, 1, 300},       // odd rows have no safe shift
           {6, 32, 200, false, 6, 12, 25},      // some need one above 0
           {6, 32, 200, false, 6, 1e-3f, 1e4},  // far beyond fp32's exponents
           {6, 32, 200, true, 4, 1, 1, -500},   // all logits are far below what they might be
           {6, 32, 200, true, 4, 1, 2, 500},
           {3, 16, 4200, true, 3, 1, 300},  // more columns than a block looks through
           {130, 32, 200, true, 130, 1, 300},
           {130, 16, 300, false, 130, 12, 1e4},
       }) {
    const Problem problem(c);
    problem.check(problem.run());
  }
}

TEST("cuda: a catalogue's cross-entropy of a sure row keeps a precise gradient") {
  Problem problem({4, 16, 70, true});
  for (int64_t r = 0; r < 4; ++r) problem.bias[problem.labels[r]] += 8.0f + 4.0f * static_cast<float>(r);
  for (float& b : problem.bias) b = rounded<bf16>(b);
  for (int32_t& label : problem.labels) label = problem.labels[3];
  problem.check(problem.run(), 6e-3);
}

TEST("cuda: a catalogue's cross-entropy of what is not a number is none") {
  Problem problem({5, 16, 100});
  problem.hidden[2 * 16 + 3] = kNaN;
  const Results out = problem.run(false);
  for (int64_t r = 0; r < 5; ++r) CHECK(std::isnan(out.losses[r]) == (r == 2));
  problem.hidden[2 * 16 + 3] = 1;
  problem.table[50 * 16] = kNaN;
  for (const float loss : problem.run(false).losses) CHECK(std::isnan(loss));
}

TEST("cuda: the loss head takes the catalogue's way, which agrees with the general one") {
  const Problem problem({5, 16, 4100, true, 3});
  const Results way = problem.run(), head = problem.run(true, Problem::Path::kLossHead);
  CHECK(same_bits(way.d_hidden, head.d_hidden));
  CHECK(same_bits(way.d_table, head.d_table));
  CHECK(same_bits(way.d_bias, head.d_bias));
  CHECK(is_near(way.sum, head.sum, 1e-6 * head.sum));
  const Results general = problem.run(true, Problem::Path::kGeneral);
  CHECK(is_near(general.sum, head.sum, 2e-3 * head.sum));
  CHECK(is_close(general.d_hidden, widen(head.d_hidden), 1e-2));
  CHECK(is_close(general.d_table, widen(head.d_table), 1e-2));
  CHECK(is_close(general.d_bias, widen(head.d_bias), 1e-2));
  CHECK(problem.run(false, Problem::Path::kLossHead).sum == head.sum);
}

TEST("cuda: a measured catalogue loss takes what a run takes, and runs nothing") {
  TestDevice device;
  DeviceArena arena(true), used;
  Context dry{device.context.stream, arena, device.context.blas, device.context.num_multiprocessors, true};
  Context wet{device.context.stream, used, device.context.blas, device.context.num_multiprocessors};
  const int64_t rows = 5, width = 16, vocab = 100;
  const DeviceArray<bf16> hidden(converted<bf16>(random_floats(rows * width, 1))),
      table(converted<bf16>(random_floats(padded(vocab) * width, 2))),
      bias(converted<bf16>(random_floats(padded(vocab), 3)));
  const DeviceArray<int32_t> labels(std::vector<int32_t>(rows, 7));
  const DeviceArray<bf16> d_hidden(rows * width);
  const DeviceArray<float> d_table(padded(vocab) * width), d_bias(vocab);
  const DeviceArray<float2> losses(rows);
  for (Context* context : {&dry, &wet}) {
    catalogue_loss(*context, hidden.data(), {table.data(), bias.data(), vocab, padded(vocab)}, labels.data(), kScale,
                   d_hidden.data(), d_table.data(), true, d_bias.data(), losses.data(), rows, width, 3);
    CHECK(std::isnan(d_hidden.floats()[0]) == context->is_dry);
  }
  CHECK(arena.peak_bytes() == used.peak_bytes());
  CHECK(arena.used_bytes() == 0 && used.used_bytes() == 0);
}
