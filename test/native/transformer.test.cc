#include "model/transformer.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "core/rng.h"
#include "model_configs.h"
#include "test.h"

using namespace limbeck;

namespace {

constexpr int64_t kVocabulary = 23, kWidth = 24;
constexpr ModelSizes kSizes{kVocabulary, kWidth, 2, 2, 40, 40};

/// The last block attends to its rows by folded weights in all of these but the last three: whose positions or norms
/// stand between rows and keys, and with too many heads.
std::vector<TransformerConfig> configs() {
  const TransformerConfig plain = gpt2_config(kSizes);
  TransformerConfig no_biases = plain, grouped = plain, narrow = plain, windowed = plain, wide = plain;
  no_biases.qkv_bias = no_biases.attention_output_bias = false;
  no_biases.norm = NormKind::kRmsNorm;
  grouped.num_attention_heads = 4;
  grouped.num_key_value_heads = 2;
  grouped.head_dim = 20;
  narrow.num_attention_heads = narrow.num_key_value_heads = 1;
  narrow.head_dim = 17;
  windowed.sliding_window = 3;
  wide.hidden_size = 128;  // several panels of weights
  wide.head_dim = 64;
  TransformerConfig rotary = plain, normed = plain, many = plain;
  rotary.positions = PositionKind::kRotary;
  rotary.rope_theta = 10000;
  normed.qk_norm = true;
  many.num_attention_heads = many.num_key_value_heads = 12;
  many.head_dim = 2;
  return {plain, bert_config(kSizes), no_biases, grouped, narrow, windowed, wide, rotary, normed, many};
}

void randomise(Parameters& parameters, float scale, uint64_t seed) {
  uint64_t stream = 0;
  for (const Parameter& parameter : parameters.list()) {
    const Philox random{seed, stream++};
    for (int64_t i = 0; i < parameter.count; ++i) {
      parameters.values()[parameter.offset + i] = scale * random.normal(static_cast<uint64_t>(i));
    }
  }
}

struct Machine {
  ThreadPool pool{2};
  Arena scratch, arena;
  Context context{pool, scratch};
};

/// The last hidden state of the last row of each sequence, [S, d].
std::vector<float> last_rows(const Transformer& model, const std::vector<int32_t>& ids,
                             const std::vector<int32_t>& offsets, bool last_rows_only) {
  Machine machine;
  const int64_t S = static_cast<int64_t>(offsets.size()) - 1, d = model.config().hidden_size;
  const Batch batch{ids.data(), offsets.data(), nullptr, static_cast<int64_t>(ids.size()), S};
  ForwardOptions options;
  options.last_rows_only = last_rows_only;
  const Activations a = model.forward(machine.context, machine.arena, batch, options);
  const float* hidden = a.hidden[model.config().num_hidden_layers];
  std::vector<float> rows;
  for (int64_t s = 0; s < S; ++s) {
    const float* row = hidden + (last_rows_only ? s : offsets[static_cast<size_t>(s) + 1] - 1) * d;
    rows.insert(rows.end(), row, row + d);
  }
  return rows;
}

/// The largest difference, in parts of the largest value.
double relative_difference(const std::vector<float>& x, const std::vector<float>& y) {
  double difference = 0, largest = 1e-6;
  for (size_t i = 0; i < x.size(); ++i) {
    if (std::isnan(x[i]) || std::isnan(y[i])) return INFINITY;
    difference = std::max(difference, std::fabs(double{x[i]} - double{y[i]}));
    largest = std::max(largest, std::fabs(double{y[i]}));
  }
  return x.size() == y.size() ? difference / largest : INFINITY;
}

const std::vector<int32_t> kOffsets = {0, 7, 8, 12, 14, 47};

std::vector<int32_t> random_ids() {
  const Philox random{3, 0};
  std::vector<int32_t> ids(static_cast<size_t>(kOffsets.back()));
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(random.uniform(i) * kVocabulary);
  return ids;
}

}  // namespace

TEST("last rows alone are those of the whole pass, with packed weights and without") {
  const std::vector<int32_t> ids = random_ids();
  for_each_isa([&] {
    for (const TransformerConfig& config : configs()) {
      Transformer model(config);
      randomise(model.parameters(), 0.4f, 5);
      const std::vector<float> whole = last_rows(model, ids, kOffsets, false);
      CHECK(relative_difference(last_rows(model, ids, kOffsets, true), whole) < 1e-5);
      Machine machine;
      model.pack_weights(machine.context, true);
      CHECK(relative_difference(last_rows(model, ids, kOffsets, true), whole) < 1e-5);
      CHECK(relative_difference(last_rows(model, ids, kOffsets, false), whole) < 1e-5);
    }
  });
}

TEST("a sequence's last row has the same bits alone and among others") {
  const std::vector<int32_t> ids = random_ids();
  for (const TransformerConfig& config : configs()) {
    Transformer model(config);
    randomise(model.parameters(), 0.4f, 5);
    Machine machine;
    model.pack_weights(machine.context, true);
    std::vector<float> one_by_one;
    for (size_t s = 0; s + 1 < kOffsets.size(); ++s) {
      const std::vector<int32_t> own(ids.begin() + kOffsets[s], ids.begin() + kOffsets[s + 1]);
      const std::vector<float> row = last_rows(model, own, {0, static_cast<int32_t>(own.size())}, true);
      one_by_one.insert(one_by_one.end(), row.begin(), row.end());
    }
    CHECK(one_by_one == last_rows(model, ids, kOffsets, true));
  }
}

TEST("packed weights follow the parameters, and their use by few rows can end") {
  const std::vector<int32_t> ids = {4, 9, 2}, offsets = {0, 3};
  for (const TransformerConfig& config : configs()) {
    Transformer model(config), other(config);
    randomise(model.parameters(), 0.4f, 5);
    randomise(other.parameters(), 0.4f, 6);
    const std::vector<float> expected = last_rows(other, ids, offsets, false);
    Machine machine;
    model.pack_weights(machine.context, true);
    CHECK(relative_difference(last_rows(model, ids, offsets, true), expected) > 0.05);
    randomise(model.parameters(), 0.4f, 6);
    CHECK(relative_difference(last_rows(model, ids, offsets, true), expected) < 1e-5);
    model.pack_weights(machine.context, true);
    CHECK(relative_difference(last_rows(model, ids, offsets, true), expected) < 1e-5);
    model.pack_weights(machine.context, false);
    CHECK(relative_difference(last_rows(model, ids, offsets, true), expected) < 1e-5);
  }
}
