#include "ops/embedding.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/rng.h"
#include "ops/reference.h"
#include "test.h"

using namespace limbeck;

namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr int64_t kNumEmbeddings = 50;

const std::vector<int64_t> kHiddenSizes = {1, 3, 5, 7, 17, 33, 64, 100, 257, 1000};

std::vector<float> normals(int64_t count, uint64_t stream) {
  const Philox random{8, stream};
  std::vector<float> out(static_cast<size_t>(count));
  for (size_t i = 0; i < out.size(); ++i) out[i] = random.normal(i);
  return out;
}

std::vector<double> widen(const std::vector<float>& x) { return {x.begin(), x.end()}; }

/// theta^(−2j/head_dim)
std::vector<double> frequencies_of(double theta, int64_t head_dim) {
  std::vector<double> out;
  for (int64_t j = 0; j < head_dim / 2; ++j) out.push_back(std::pow(theta, -2.0 * j / head_dim));
  return out;
}

/// Drawn from [0, limit): most come several times, the first is 0 and the second limit − 1.
std::vector<int32_t> draw_ids(int64_t count, int64_t limit) {
  const Philox random{9, static_cast<uint64_t>(limit)};
  std::vector<int32_t> ids(static_cast<size_t>(count));
  for (size_t i = 0; i < ids.size(); ++i) {
    ids[i] = i == 0 ? 0 : i == 1 ? static_cast<int32_t>(limit - 1) : static_cast<int32_t>(random.word(i) % limit);
  }
  return ids;
}

}  // namespace

TEST("embedding_forward copies rows of the table, embedding_add_forward adds them") {
  for (const int64_t hidden_size : kHiddenSizes) {
    for (const int64_t num_rows : {0, 1, 3, 300}) {
      const auto table = normals(kNumEmbeddings * hidden_size, 1), before = normals(num_rows * hidden_size, 2);
      const auto ids = draw_ids(num_rows, kNumEmbeddings);
      std::vector<float> expected(before.size()), expected_sum = before;
      for (int64_t r = 0; r < num_rows; ++r) {
        for (int64_t j = 0; j < hidden_size; ++j) {
          expected[r * hidden_size + j] = table[ids[r] * hidden_size + j];
          expected_sum[r * hidden_size + j] += table[ids[r] * hidden_size + j];
        }
      }
      for_each_isa([&] {
        ThreadPool pool(2);
        Arena arena;
        Context context{pool, arena};
        std::vector<float> y(before.size(), kNaN), sums = before;
        embedding_forward(context, ids.data(), table.data(), y.data(), num_rows, hidden_size, kNumEmbeddings);
        embedding_add_forward(context, ids.data(), table.data(), sums.data(), num_rows, hidden_size, kNumEmbeddings);
        CHECK(y == expected);
        CHECK(sums == expected_sum);
      });
    }
  }
}

TEST("embedding_backward adds rows in their order, to the same bits on 1, 2 and 3 threads") {
  for (const int64_t hidden_size : kHiddenSizes) {
    constexpr int64_t kRows = 300;
    const auto d_y = normals(kRows * hidden_size, 1), before = normals(kNumEmbeddings * hidden_size, 2);
    const auto ids = draw_ids(kRows, kNumEmbeddings);
    std::vector<float> expected = before;
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t j = 0; j < hidden_size; ++j) expected[ids[r] * hidden_size + j] += d_y[r * hidden_size + j];
    }
    for_each_isa([&] {
      for (const int num_threads : {1, 2, 3}) {
        ThreadPool pool(num_threads);
        Arena arena;
        Context context{pool, arena};
        std::vector<float> d_table = before;
        embedding_backward(context, ids.data(), d_y.data(), d_table.data(), kRows, hidden_size, kNumEmbeddings);
        CHECK(d_table == expected);
      }
    });
  }
}

TEST("an id outside the table is refused before anything is read or written") {
  for_each_isa([] {
    ThreadPool pool(2);
    Arena arena;
    Context context{pool, arena};
    for (const int32_t id : {-1, 5, 6, std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max()}) {
      for (const size_t position : {0, 150, 299}) {
        std::vector<int32_t> ids(300, 4);
        ids[position] = id;
        const std::vector<float> table(5 * 7, 1.0f), rows(300 * 7, 1.0f);
        std::vector<float> y = rows, d_table = table;
        CHECK_ERROR("ERR_INVALID_ARGUMENT", embedding_forward(context, ids.data(), table.data(), y.data(), 300, 7, 5));
        CHECK_ERROR("ERR_INVALID_ARGUMENT",
                    embedding_add_forward(context, ids.data(), table.data(), y.data(), 300, 7, 5));
        CHECK_ERROR("ERR_INVALID_ARGUMENT",
                    embedding_backward(context, ids.data(), rows.data(), d_table.data(), 300, 7, 5));
        CHECK(y == rows);
        CHECK(d_table == table);
      }
    }
    const int32_t id = 0;
    float y = 0;
    CHECK_ERROR("ERR_INVALID_ARGUMENT", embedding_forward(context, &id, &y, &y, 1, 1, 0));
  });
}

TEST("rotary equals the reference forward and backward, and leaves the rest of each row alone") {
  for (const int64_t head_dim : {2, 4, 6, 10, 20, 34, 64, 128}) {
    for (const int64_t num_heads : {1, 3}) {
      for (const int64_t num_rows : {0, 1, 5, 257}) {
        for (const int direction : {1, -1}) {
          const auto frequencies = frequencies_of(num_heads == 1 ? 10000 : 500000, head_dim);
          const float scale = num_rows == 5 ? 1.25f : 1.0f;
          const int64_t row_stride = num_heads * head_dim + 7;
          const auto x = normals(num_rows * row_stride, 1);
          const auto position_ids = draw_ids(num_rows, 4096);
          std::vector<double> expected = widen(x);
          reference_rotary<double>(expected.data(), position_ids.data(), num_rows, row_stride, num_heads, head_dim,
                                   frequencies.data(), scale, direction);
          for_each_isa([&] {
            ThreadPool pool(2);
            Arena arena;
            Context context{pool, arena};
            std::vector<float> out = x;
            rotary(context, out.data(), position_ids.data(), num_rows, row_stride, num_heads, head_dim,
                   frequencies.data(), scale, direction);
            CHECK(largest_error(out, expected, 1) < 5e-7);
          });
        }
      }
    }
  }
}

TEST("rotary backward is the gradient of rotary forward, by central differences") {
  constexpr int64_t kRows = 3, kHeads = 2, kDim = 6, kStride = 14;
  const auto x = normals(kRows * kStride, 1), d_y = normals(kRows * kStride, 2);
  const std::vector<int32_t> position_ids = {2, 0, 19};
  const auto frequencies = frequencies_of(10000, kDim);
  const auto gradient = central_differences(widen(x), [&](std::vector<double> y) {
    reference_rotary<double>(y.data(), position_ids.data(), kRows, kStride, kHeads, kDim, frequencies.data(), 1.5, 1);
    double sum = 0;
    for (size_t i = 0; i < y.size(); ++i) sum += y[i] * d_y[i];
    return sum;
  });
  for_each_isa([&] {
    ThreadPool pool(2);
    Arena arena;
    Context context{pool, arena};
    std::vector<float> d_x = d_y;
    rotary(context, d_x.data(), position_ids.data(), kRows, kStride, kHeads, kDim, frequencies.data(), 1.5f, -1);
    CHECK(largest_error(d_x, gradient, 1) < 5e-7);
  });
}

TEST("rotary has the same bits on 1, 2 and 3 threads") {
  constexpr int64_t kRows = 1000, kHeads = 2, kDim = 20;
  const auto x = normals(kRows * kHeads * kDim, 1);
  const auto position_ids = draw_ids(kRows, 100);
  const auto run = [&](int num_threads) {
    ThreadPool pool(num_threads);
    Arena arena;
    Context context{pool, arena};
    std::vector<float> out = x;
    rotary(context, out.data(), position_ids.data(), kRows, kHeads * kDim, kHeads, kDim,
           frequencies_of(10000, kDim).data(), 1, 1);
    return out;
  };
  for_each_isa([&] {
    const auto alone = run(1);
    CHECK(run(2) == alone);
    CHECK(run(3) == alone);
  });
}
