#include "ops/logit_blocks.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "core/rng.h"
#include "model/inference.h"
#include "model_configs.h"
#include "ops/gemm.h"
#include "ops/top_k.h"
#include "test.h"

using namespace limbeck;

namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
// More columns than a block.
constexpr int64_t kColumns = 4500, kWidth = 24;

std::vector<float> normals(int64_t count, uint64_t seed) {
  const Philox random{seed, 0};
  std::vector<float> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i) values[i] = random.normal(i);
  return values;
}

/// 11 tokens in two sequences.
ForwardInputs best_logits(const std::vector<int32_t>& ids, const std::vector<int32_t>& offsets, int64_t k) {
  ForwardInputs inputs;
  inputs.batch = {ids.data(), offsets.data(), nullptr, static_cast<int64_t>(ids.size()),
                  static_cast<int64_t>(offsets.size()) - 1};
  inputs.logits = LogitsForm::kTopK;
  inputs.top_k = k;
  return inputs;
}

}  // namespace

TEST("blocks of logits: each column once, in order, with the bits of one packed product, any rows and threads") {
  const std::vector<float> table = normals(kColumns * kWidth, 1), bias = normals(kColumns, 2);
  for_each_isa([&] {
    for (const Precision precision : {Precision::kFloat32, Precision::kBFloat16}) {
      for (const int64_t num_rows : {0, 1, 3, 30, 100}) {
        const std::vector<float> x = normals(num_rows * kWidth, 3);
        for (const bool has_bias : {true, false}) {
          for (const int num_threads : {1, 4}) {
            ThreadPool pool(num_threads);
            Arena scratch;
            Context context{pool, scratch, precision};
            const float* added = has_bias ? bias.data() : nullptr;
            std::vector<float> expected(static_cast<size_t>(num_rows * kColumns), kNaN), logits = expected;
            const PackedMatrix whole(context, {table.data(), 1, kWidth}, kWidth, kColumns);
            gemm_packed(context, num_rows, 0, kColumns, {x.data(), kWidth, 1}, whole, added, expected.data(), kColumns);
            std::vector<int64_t> seen(static_cast<size_t>(num_rows), 0);
            for_each_logit_block(context, x.data(), table.data(), added, num_rows, kWidth, kColumns,
                                 [&](int64_t row, float* block, int64_t first, int64_t count) {
                                   int64_t& next = seen[static_cast<size_t>(row)];
                                   if (first == next)
                                     std::copy_n(block, count, logits.begin() + row * kColumns + first);
                                   next = first + count;
                                   std::fill(block, block + count, kNaN);
                                 });
            CHECK(logits == expected);
            CHECK(std::all_of(seen.begin(), seen.end(), [](int64_t next) { return next == kColumns; }));
          }
        }
      }
    }
  });
}

TEST("the best logits and their log-sum-exp are those of dense logits, of many rows and of few") {
  Transformer model(gpt2_config({kColumns, kWidth, 1, 2, 32, 8}));
  model.initialize(5, 0.3f);
  const std::vector<int32_t> ids = {1, 4499, 2048, 7, 9, 11, 2047, 3000, 5, 5, 6}, offsets = {0, 4, 11};
  const std::vector<int32_t> few = {10, 0};
  ThreadPool pool(3);
  Arena arena, scratch;
  Context context{pool, scratch};
  for (const bool is_few : {false, true}) {
    for (const int64_t k : {int64_t{1}, int64_t{16}, kColumns}) {
      ForwardInputs inputs = best_logits(ids, offsets, k);
      if (is_few) {
        inputs.logit_rows = few.data();
        inputs.num_logit_rows = 2;
      }
      const ForwardOutputs best = run_forward(context, arena, model, inputs);
      inputs.logits = LogitsForm::kDense;
      const ForwardOutputs dense = run_forward(context, arena, model, inputs);
      for (int64_t r = 0; r < num_logit_rows(inputs); ++r) {
        const float* row = dense.logits.data() + r * kColumns;
        std::vector<float> sorted(row, row + kColumns);
        std::sort(sorted.begin(), sorted.end(), std::greater<float>());
        double sum = 0;
        for (const float logit : sorted) sum += std::exp(double{logit});
        CHECK(std::abs(best.log_sum_exp[static_cast<size_t>(r)] - std::log(sum)) < 1e-5);
        std::vector<uint8_t> is_listed(kColumns, 0);
        for (int64_t i = 0; i < k; ++i) {
          const size_t at = static_cast<size_t>(r * k + i);
          const int32_t id = best.top_k_indices[at];
          CHECK(id >= 0 && id < kColumns && is_listed[static_cast<size_t>(id)]++ == 0);
          CHECK(std::abs(best.top_k_values[at] - sorted[static_cast<size_t>(i)]) < 1e-5f);
          CHECK(std::abs(best.top_k_values[at] - row[id]) < 1e-5f);
        }
      }
    }
  }
}

TEST("logits that are NaN come last among the best, by index, and make the log-sum-exp NaN") {
  Transformer model(gpt2_config({kColumns, kWidth, 1, 2, 32, 8}));
  model.initialize(5, 0.3f);
  float* table = model.parameters().values() + model.parameters().find("embeddings.word").offset;
  for (const int64_t token : {40, 2048, 4499}) table[token * kWidth] = kNaN;
  const std::vector<int32_t> ids = {1, 2, 3, 4, 5, 6}, offsets = {0, 6};
  ThreadPool pool(2);
  Arena arena, scratch;
  Context context{pool, scratch};
  const ForwardOutputs all = run_forward(context, arena, model, best_logits(ids, offsets, kColumns));
  const ForwardOutputs most = run_forward(context, arena, model, best_logits(ids, offsets, kColumns - 2));
  const ForwardOutputs some = run_forward(context, arena, model, best_logits(ids, offsets, 5));
  for (int64_t r = 0; r < 6; ++r) {
    const int32_t* last = all.top_k_indices.data() + (r + 1) * kColumns - 3;
    CHECK(last[0] == 40 && last[1] == 2048 && last[2] == 4499);
    CHECK(std::isnan(all.top_k_values[static_cast<size_t>((r + 1) * kColumns - 1)]));
    CHECK(!std::isnan(all.top_k_values[static_cast<size_t>((r + 1) * kColumns - 4)]));
    CHECK(most.top_k_indices[static_cast<size_t>((r + 1) * (kColumns - 2) - 1)] == 40);
    CHECK(!std::isnan(some.top_k_values[static_cast<size_t>(r * 5 + 4)]));
    CHECK(std::isnan(all.log_sum_exp[static_cast<size_t>(r)]) && std::isnan(some.log_sum_exp[static_cast<size_t>(r)]));
  }
}

TEST("log_add_exp of numbers far apart, infinite or NaN") {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  CHECK(std::abs(log_add_exp(1.5, 0.25) - std::log(std::exp(1.5) + std::exp(0.25))) < 1e-15);
  CHECK(log_add_exp(2000, -2000) == 2000 && log_add_exp(-2000, 2000) == 2000);
  CHECK(log_add_exp(-kInfinity, 3) == 3 && log_add_exp(3, -kInfinity) == 3);
  CHECK(log_add_exp(-kInfinity, -kInfinity) == -kInfinity);
  CHECK(log_add_exp(kInfinity, 3) == kInfinity && log_add_exp(kInfinity, kInfinity) == kInfinity);
  CHECK(log_add_exp(-kInfinity, kInfinity) == kInfinity);
  for (const double other : {1.0, kInfinity, -kInfinity, static_cast<double>(kNaN)}) {
    CHECK(std::isnan(log_add_exp(kNaN, other)) && std::isnan(log_add_exp(other, kNaN)));
  }
}
