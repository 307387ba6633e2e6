#include "ops/packed_logits.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "core/rng.h"
#include "test.h"

using namespace limbeck;

namespace {

struct Rows {
  std::vector<int32_t> indices;
  std::vector<float> values, log_sum_exp;
};

/// The best k of rows of normal logits of this deviation.
Rows best_of(int64_t num_rows, int64_t top_k, int64_t vocab_size, float deviation) {
  Rows rows;
  for (int64_t r = 0; r < num_rows; ++r) {
    const Philox random{3, static_cast<uint64_t>(r)};
    std::vector<float> logits(static_cast<size_t>(vocab_size));
    for (size_t i = 0; i < logits.size(); ++i) logits[i] = deviation * random.normal(i);
    std::vector<int32_t> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
    double sum = 0;
    for (float logit : logits) sum += std::exp(double{logit} - logits[order[0]]);
    rows.log_sum_exp.push_back(static_cast<float>(logits[order[0]] + std::log(sum)));
    for (int64_t i = 0; i < top_k; ++i) {
      rows.indices.push_back(order[i]);
      rows.values.push_back(logits[order[i]]);
    }
  }
  return rows;
}

/// Probabilities of the k classes and of what is left, which a rounded log-sum-exp may make negative.
std::vector<double> classes(const Rows& rows, int64_t row, int64_t top_k) {
  std::vector<double> p;
  double rest = 1;
  for (int64_t i = 0; i < top_k; ++i) {
    p.push_back(std::exp(double{rows.values[row * top_k + i]} - rows.log_sum_exp[row]));
    rest -= p.back();
  }
  p.push_back(rest);
  return p;
}

}  // namespace

TEST("packed top-k logits keep their indices, and their distribution within the bound") {
  double worst = 0;
  for (const int64_t vocab_size : {2, 3, 100, 1000, 50257}) {
    for (const int64_t top_k : {1, 2, 7, 64, 256}) {
      if (top_k > vocab_size / 2 + 1) continue;
      for (const float deviation : {0.01f, 1.0f, 4.0f, 20.0f}) {
        const int64_t num_rows = vocab_size > 1000 ? 3 : 20;
        const Rows rows = best_of(num_rows, top_k, vocab_size, deviation);
        const int64_t row_bytes = packed_row_bytes(top_k, vocab_size);
        std::vector<uint8_t> packed(static_cast<size_t>(num_rows * row_bytes) + 8, 0xA5);
        pack_top_k(rows.indices.data(), rows.values.data(), rows.log_sum_exp.data(), num_rows, top_k, vocab_size,
                   packed.data());
        for (int i = 0; i < 8; ++i) CHECK(packed[static_cast<size_t>(num_rows * row_bytes + i)] == 0xA5);
        Rows out{std::vector<int32_t>(rows.indices.size(), -1), std::vector<float>(rows.values.size(), NAN),
                 std::vector<float>(rows.log_sum_exp.size(), NAN)};
        unpack_top_k(packed.data(), num_rows, top_k, vocab_size, out.indices.data(), out.values.data(),
                     out.log_sum_exp.data());
        CHECK(out.indices == rows.indices);
        Rows threaded = out;
        std::fill(threaded.values.begin(), threaded.values.end(), NAN);
        std::fill(threaded.log_sum_exp.begin(), threaded.log_sum_exp.end(), NAN);
        std::fill(threaded.indices.begin(), threaded.indices.end(), -1);
        ThreadPool pool(2);
        Arena arena;
        Context context{pool, arena};
        unpack_top_k(context, packed.data(), num_rows, top_k, vocab_size, threaded.indices.data(),
                     threaded.values.data(), threaded.log_sum_exp.data());
        CHECK(threaded.indices == out.indices && threaded.values == out.values);
        CHECK(threaded.log_sum_exp == out.log_sum_exp);
        for (int64_t r = 0; r < num_rows; ++r) {
          const std::vector<double> p = classes(rows, r, top_k), q = classes(out, r, top_k);
          double divergence = 0;
          for (size_t i = 0; i < p.size(); ++i) {
            // Below, fp32 does not tell what is left from nothing.
            if (p[i] > 1e-6) divergence += p[i] * std::log(p[i] / q[i]);
          }
          worst = std::max(worst, divergence);
        }
      }
    }
  }
  CHECK(worst <= kPackedStep * kPackedStep / 8 + 3e-6);
  CHECK(worst > 1e-6);  // or nothing was measured
}

TEST("packed top-k logits of a vocabulary of 50,257 take at most 2 % of the dense ones") {
  const double dense = 50257 * sizeof(float);
  CHECK(packed_row_bytes(64, 50257) == 4 + (64 * 28 + 12 + 7) / 8);
  CHECK(packed_row_bytes(64, 50257) / dense < 0.0012);
  CHECK(packed_row_bytes(256, 50257) / dense < 0.0046);
  CHECK(packed_row_bytes(1024, 50257) / dense < 0.02);
}

TEST("packing takes logits of −infinity, and what is left of a whole vocabulary") {
  const int32_t indices[3] = {2, 0, 1};
  const float values[3] = {1, 0, -std::numeric_limits<float>::infinity()};
  const float lse = static_cast<float>(std::log(std::exp(1.0) + 1));
  std::vector<uint8_t> packed(static_cast<size_t>(packed_row_bytes(3, 3)));
  pack_top_k(indices, values, &lse, 1, 3, 3, packed.data());
  int32_t out_indices[3];
  float out_values[3], out_lse;
  unpack_top_k(packed.data(), 1, 3, 3, out_indices, out_values, &out_lse);
  CHECK(out_indices[0] == 2 && out_indices[1] == 0 && out_indices[2] == 1);
  CHECK(std::fabs(std::exp(out_values[0] - out_lse) - 0.7310586) < 0.005);
  CHECK(std::exp(out_values[2] - out_lse) < 1e-27);
}

TEST("packing refuses what it cannot keep, unpacking what is outside the vocabulary") {
  std::vector<uint8_t> packed(static_cast<size_t>(packed_row_bytes(1, 5)));
  const int32_t good = 4, outside = 5, negative = -1;
  const float zero = 0, nan = NAN, infinite = std::numeric_limits<float>::infinity();
  CHECK_ERROR("ERR_INVALID_ARGUMENT", pack_top_k(&outside, &zero, &zero, 1, 1, 5, packed.data()));
  CHECK_ERROR("ERR_INVALID_ARGUMENT", pack_top_k(&negative, &zero, &zero, 1, 1, 5, packed.data()));
  CHECK_ERROR("ERR_NOT_FINITE", pack_top_k(&good, &nan, &zero, 1, 1, 5, packed.data()));
  CHECK_ERROR("ERR_NOT_FINITE", pack_top_k(&good, &zero, &infinite, 1, 1, 5, packed.data()));
  std::fill(packed.begin(), packed.end(), uint8_t{0xFF});
  int32_t index;
  float value, lse;
  CHECK_ERROR("ERR_INVALID_ARGUMENT", unpack_top_k(packed.data(), 1, 1, 5, &index, &value, &lse));
}
