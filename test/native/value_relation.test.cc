#include "ops/value_relation.h"

#include <cmath>
#include <cstdint>
#include <vector>

#include "core/rng.h"
#include "test.h"

using namespace limbeck;

namespace {

const std::vector<int32_t> kOffsets = {0, 1, 4, 9};

AttentionShape shape_of(int64_t heads, int64_t head_dim, bool causal) {
  return {static_cast<int64_t>(kOffsets.size()) - 1, kOffsets.data(), heads, heads, head_dim, causal};
}

std::vector<double> normals(size_t count, uint64_t stream) {
  const Philox random{6, stream};
  std::vector<double> out(count);
  for (size_t i = 0; i < count; ++i) out[i] = static_cast<float>(random.normal(i));
  return out;
}

std::vector<float> round(const std::vector<double>& x) { return {x.begin(), x.end()}; }

/// The definition, in double.
std::vector<double> reference(const AttentionShape& shape, const std::vector<double>& values) {
  const int64_t A = shape.num_attention_heads, r = shape.head_dim, width = A * r;
  std::vector<double> maps;
  for (int64_t s = 0; s < shape.num_sequences; ++s) {
    const int64_t begin = kOffsets[static_cast<size_t>(s)], t = kOffsets[static_cast<size_t>(s) + 1] - begin;
    for (int64_t h = 0; h < A; ++h) {
      for (int64_t i = 0; i < t; ++i) {
        std::vector<double> row(static_cast<size_t>(t));
        double sum = 0;
        for (int64_t j = 0; j < (shape.causal ? i + 1 : t); ++j) {
          double dot = 0;
          for (int64_t c = 0; c < r; ++c) {
            dot += values[static_cast<size_t>((begin + i) * width + h * r + c)] *
                   values[static_cast<size_t>((begin + j) * width + h * r + c)];
          }
          sum += row[static_cast<size_t>(j)] = std::exp(dot / std::sqrt(static_cast<double>(r)));
        }
        for (double& entry : row) maps.push_back(entry / sum);
      }
    }
  }
  return maps;
}

double divergence(const std::vector<double>& teacher, const std::vector<double>& student) {
  double sum = 0;
  for (size_t i = 0; i < teacher.size(); ++i) {
    if (teacher[i] > 0) sum += teacher[i] * std::log(teacher[i] / student[i]);
  }
  return sum;
}

}  // namespace

TEST("value relations are those of the definition, and their gradient that of finite differences") {
  for (const bool causal : {false, true}) {
    for (const auto& [heads, head_dim] : {std::pair<int64_t, int64_t>{1, 3}, {2, 4}, {3, 5}}) {
      const AttentionShape shape = shape_of(heads, head_dim, causal);
      const size_t count = static_cast<size_t>(kOffsets.back() * heads * head_dim);
      const std::vector<double> values = normals(count, 1);
      const std::vector<double> teacher = reference(shape, normals(count, 2));
      const std::vector<double> expected = reference(shape, values);
      std::vector<double> gradient(count);
      for (size_t i = 0; i < count; ++i) {
        std::vector<double> up = values, down = values;
        up[i] += 1e-6;
        down[i] -= 1e-6;
        gradient[i] =
            0.3 * (divergence(teacher, reference(shape, up)) - divergence(teacher, reference(shape, down))) / 2e-6;
      }
      for_each_isa([&] {
        ThreadPool pool(2);
        Arena arena;
        Context context{pool, arena};
        const std::vector<float> x = round(values), target = round(teacher);
        std::vector<float> maps(expected.size(), NAN), d_values(count, NAN);
        value_relation_forward(context, shape, x.data(), maps.data());
        value_relation_backward(context, shape, x.data(), target.data(), 0.3f, d_values.data());
        for (size_t i = 0; i < maps.size(); ++i) CHECK(std::fabs(maps[i] - expected[i]) < 2e-6);
        for (size_t i = 0; i < count; ++i) CHECK(std::fabs(d_values[i] - gradient[i]) < 1e-5);
      });
    }
  }
}
