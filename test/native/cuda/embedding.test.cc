#include "cuda/embedding.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "compare.h"
#include "device_test.h"
#include "ops/reference.h"

namespace limbeck::cuda {
namespace {

using namespace limbeck_test;

const std::vector<int64_t> kRows = {1, 3, 33, 257};
const std::vector<int64_t> kWidths = {1, 7, 8, 31, 64, 100, 768, 1000, 1032};

std::vector<int32_t> random_ids(int64_t count, int64_t num_embeddings, uint64_t seed) {
  std::vector<int32_t> ids(count);
  const Philox random{seed, 5};
  for (int64_t i = 0; i < count; ++i) {
    ids[i] = static_cast<int32_t>(random.word(static_cast<uint64_t>(i)) % static_cast<uint64_t>(num_embeddings));
  }
  return ids;
}

template <typename T>
void check_forward(int64_t num_rows, int64_t width, bool has_positions, bool has_types) {
  TestDevice device;
  const int64_t sizes[3] = {50, 40, 2};
  std::vector<std::vector<int32_t>> host_ids;
  std::vector<std::vector<float>> host_tables;
  for (uint64_t i = 0; i < 3; ++i) {
    host_ids.push_back(random_ids(num_rows, sizes[i], i));
    host_tables.push_back(rounded<T>(random_floats(sizes[i] * width, i)));
  }
  std::vector<double> expected;
  for (int64_t r = 0; r < num_rows; ++r) {
    for (int64_t j = 0; j < width; ++j) {
      const auto of = [&](size_t i) { return double{host_tables[i][host_ids[i][r] * width + j]}; };
      expected.push_back(of(0) + (has_positions ? of(1) : 0) + (has_types ? of(2) : 0));
    }
  }
  const DeviceArray<int32_t> ids(host_ids[0]), positions(host_ids[1]), types(host_ids[2]);
  const DeviceArray<T> words(converted<T>(host_tables[0])), position_table(converted<T>(host_tables[1]));
  const DeviceArray<T> type_table(converted<T>(host_tables[2])), y(num_rows * width);
  embedding_forward<T>(device.context, ids.data(), words.data(), has_positions ? positions.data() : nullptr,
                       has_positions ? position_table.data() : nullptr, has_types ? types.data() : nullptr,
                       has_types ? type_table.data() : nullptr, y.data(), num_rows, width);
  CHECK(is_close(y.floats(), expected, kTolerance<T>));
}

/// Two batches of unlike size through one allocation.
template <typename T>
void check_backward(const std::vector<std::vector<int32_t>>& batches, int64_t num_embeddings, int64_t width) {
  TestDevice device;
  size_t most_rows = 0;
  for (const auto& ids : batches) most_rows = std::max(most_rows, ids.size());
  DeviceEmbeddingOrder device_order =
      allocate_embedding_order(device.context, static_cast<int64_t>(most_rows), num_embeddings);
  for (const auto& ids : batches) {
    const int64_t num_rows = static_cast<int64_t>(ids.size());
    const auto host_d_y = rounded<T>(random_floats(num_rows * width, 1));
    const auto before = random_floats(num_embeddings * width, 2);
    std::vector<double> expected = widen(before);
    for (int64_t r = 0; r < num_rows; ++r) {
      for (int64_t j = 0; j < width; ++j) expected[ids[r] * width + j] += host_d_y[r * width + j];
    }
    const EmbeddingOrder order = EmbeddingOrder::of(ids.data(), num_rows, num_embeddings);
    upload(device.context, order, device_order);
    const DeviceArray<T> d_y(converted<T>(host_d_y));
    const DeviceArray<float> d_table(before), again(before);
    embedding_backward(device.context, device_order, d_y.data(), d_table.data(), width);
    CHECK(is_close(d_table.floats(), expected, kFloatTolerance));
    embedding_backward(device.context, device_order, d_y.data(), again.data(), width);
    CHECK(same_bits(again.get(), d_table.get()));
  }
}

/// The parts of an order, taken apart again.
struct Parts {
  explicit Parts(const EmbeddingOrder& order) {
    const auto& words = order.words;
    size_t at = 3;
    const auto take = [&](int64_t count) {
      std::vector<int32_t> part(words.begin() + at, words.begin() + at + count);
      at += count;
      return part;
    };
    rows = take(words[0]);
    piece_begin = take(words[1] + 1);
    piece_target = take(words[1]);
    split_begin = take(words[2] + 1);
    split_ids = take(words[2]);
    CHECK(at == words.size());
  }
  std::vector<int32_t> rows, piece_begin, piece_target, split_begin, split_ids;
};

template <typename T>
void check_rotary(int64_t num_rows, int64_t num_heads, int64_t head_dim, int64_t between) {
  constexpr int64_t kPositions = 64;
  constexpr float kScale = 1.25f;
  TestDevice device;
  const int64_t half = head_dim / 2, stride = num_heads * head_dim + between;
  std::vector<double> frequencies(half);
  std::vector<float> host_cosines, host_sines;
  for (int64_t j = 0; j < half; ++j) frequencies[j] = std::pow(100.0, -2.0 * j / head_dim);
  for (int64_t p = 0; p < kPositions; ++p) {
    for (int64_t j = 0; j < half; ++j) {
      host_cosines.push_back(static_cast<float>(kScale * std::cos(p * frequencies[j])));
      host_sines.push_back(static_cast<float>(kScale * std::sin(p * frequencies[j])));
    }
  }
  const auto host_ids = random_ids(num_rows, kPositions, 3);
  const DeviceArray<int32_t> ids(host_ids);
  const DeviceArray<float> cosines(host_cosines), sines(host_sines);
  for (const int direction : {1, -1}) {
    const auto host_x = rounded<T>(random_floats(num_rows * stride, 4));
    std::vector<double> expected = widen(host_x);
    reference_rotary<double>(expected.data(), host_ids.data(), num_rows, stride, num_heads, head_dim,
                             frequencies.data(), static_cast<double>(kScale), direction);
    const DeviceArray<T> x(converted<T>(host_x));
    rotary(device.context, x.data(), ids.data(), num_rows, stride, num_heads, head_dim, cosines.data(), sines.data(),
           direction);
    const auto out = x.floats();
    CHECK(is_close(out, expected, kTolerance<T>));
    for (int64_t r = 0; r < num_rows; ++r) {
      for (int64_t j = num_heads * head_dim; j < stride; ++j) CHECK(out[r * stride + j] == host_x[r * stride + j]);
    }
  }
}

}  // namespace

TEST("cuda embedding_forward adds the rows of up to three tables") {
  for (const int64_t num_rows : kRows) {
    for (const int64_t width : kWidths) {
      if (num_rows * width > 40000) continue;
      check_forward<float>(num_rows, width, num_rows != 3, num_rows != 33);
      check_forward<bf16>(num_rows, width, num_rows != 3, num_rows != 33);
    }
  }
  check_forward<float>(5, 64, false, false);
  check_forward<float>(0, 64, true, true);
}

TEST("cuda EmbeddingOrder groups rows by id and cuts long lists") {
  std::vector<int32_t> ids = random_ids(3000, 70000, 9);
  for (size_t i = 0; i < ids.size(); i += 3) ids[i] = 69999;
  for (size_t i = 1; i < 3 * 129; i += 3) ids[i] = 4;
  for (size_t i = 2; i < 3 * 128; i += 3) ids[i] = 66000;
  const EmbeddingOrder order = EmbeddingOrder::of(ids.data(), 3000, 70000);
  const Parts parts(order);
  for (size_t i = 1; i < parts.rows.size(); ++i) {
    const int32_t before = parts.rows[i - 1], row = parts.rows[i];
    CHECK(ids[before] < ids[row] || (ids[before] == ids[row] && before < row));
  }
  CHECK(parts.split_ids == std::vector<int32_t>({4, 69999}));
  CHECK(parts.split_begin == std::vector<int32_t>({0, 2, 10}));
  for (size_t p = 0; p < parts.piece_target.size(); ++p) {
    const int32_t begin = parts.piece_begin[p], end = parts.piece_begin[p + 1];
    CHECK(begin < end && end - begin <= EmbeddingOrder::kMaxPieceRows);
    const int32_t id = ids[parts.rows[begin]];
    CHECK(id == ids[parts.rows[end - 1]]);
    CHECK((id == 4 || id == 69999) ? parts.piece_target[p] < 0 : parts.piece_target[p] == id);
  }
  CHECK(parts.piece_begin.front() == 0 && parts.piece_begin.back() == 3000);

  const std::vector<int32_t> outside = {1, 5};
  CHECK_ERROR("ERR_INVALID_ARGUMENT", EmbeddingOrder::of(outside.data(), 2, 5));
  const std::vector<int32_t> negative = {-1};
  CHECK_ERROR("ERR_INVALID_ARGUMENT", EmbeddingOrder::of(negative.data(), 1, 5));
  TestDevice device;
  DeviceEmbeddingOrder small = allocate_embedding_order(device.context, 30, 70000);
  CHECK_ERROR("ERR_INVALID_ARGUMENT", upload(device.context, order, small));
}

TEST("cuda embedding_backward gives each id the sum of its rows, the same bits each time") {
  for (const int64_t width : kWidths) {
    const std::vector<std::vector<int32_t>> batches = {random_ids(257, 40, 1), random_ids(33, 40, 2), {7}, {}};
    check_backward<float>(batches, 40, width);
    check_backward<bf16>(batches, 40, width);
  }
  // One id for most rows, and ids of exactly one piece and one row more.
  std::vector<int32_t> ids(1500, 2);
  std::fill_n(ids.begin() + 40, 128, 1);
  std::fill_n(ids.begin() + 400, 129, 0);
  for (const int64_t width : {5, 64, 256}) {
    check_backward<float>({ids, std::vector<int32_t>(1500, 0), random_ids(1500, 3, 4)}, 3, width);
    check_backward<bf16>({ids, std::vector<int32_t>(1500, 0), random_ids(1500, 3, 4)}, 3, width);
  }
  check_backward<float>({random_ids(1500, 1, 4)}, 1, 8);
}

TEST("cuda rotary turns the heads and leaves what lies beside them") {
  for (const int64_t num_rows : kRows) {
    for (const int64_t head_dim : {2, 6, 16, 20, 64, 128}) {
      for (const int64_t between : {0, 5, 64}) {
        if (num_rows == 257 && head_dim > 20) continue;
        check_rotary<float>(num_rows, 3, head_dim, between);
        check_rotary<bf16>(num_rows, 3, head_dim, between);
      }
    }
  }
}

}  // namespace limbeck::cuda
