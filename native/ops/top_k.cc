#include "ops/top_k.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "cpu/kernels.h"

namespace limbeck {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

}  // namespace

bool BestScores::is_worse(int64_t a, int64_t b) const {
  return values_[a] < values_[b] || (values_[a] == values_[b] && indices_[a] > indices_[b]);
}

void BestScores::swap(int64_t a, int64_t b) {
  std::swap(indices_[a], indices_[b]);
  std::swap(values_[a], values_[b]);
}

void BestScores::push(float value, int32_t index) {
  int64_t child = size_++;
  values_[child] = value;
  indices_[child] = index;
  for (int64_t parent; child > 0 && is_worse(child, parent = (child - 1) / 2); child = parent) swap(child, parent);
}

// Most of the work of long lists, and a fifth slower as a call.
__attribute__((always_inline)) inline void BestScores::sink_root() {
  for (int64_t parent = 0;;) {
    int64_t worst = parent;
    for (int64_t child = 2 * parent + 1; child <= 2 * parent + 2 && child < size_; ++child) {
      if (is_worse(child, worst)) worst = child;
    }
    if (worst == parent) return;
    swap(parent, worst);
    parent = worst;
  }
}

void BestScores::replace_root(float value, int32_t index) {
  values_[0] = value;
  indices_[0] = index;
  sink_root();
}

void BestScores::add(const float* scores, const uint8_t* excluded, int64_t count, int32_t first) {
  if (k_ <= 0) return;
  const auto find_greater = cpu_kernels().find_greater;
  // Of many scores, most that fill the list would be displaced: only those are taken that k at least are like.
  const bool is_first = size_ == 0 && excluded == nullptr;
  const float bound = is_first ? cpu_kernels().exceeded_by_best(scores, count, k_) : -kInfinity;
  const auto next = [&](int64_t i) { return bound > -kInfinity ? find_greater(scores, i, count, bound) : i; };
  int64_t i = next(0);
  for (; i < count && size_ < k_; i = next(i + 1)) {
    if (!std::isnan(scores[i]) && !(excluded && excluded[i])) push(scores[i], first + static_cast<int32_t>(i));
  }
  if (size_ < k_) return;
  // A later score that equals the worst has a higher index, so only a greater one enters.
  for (i = find_greater(scores, i, count, values_[0]); i < count; i = find_greater(scores, i + 1, count, values_[0])) {
    if (!(excluded && excluded[i])) replace_root(scores[i], first + static_cast<int32_t>(i));
  }
}

void BestScores::sort() {
  const int64_t count = size_;
  while (size_ > 1) {
    swap(0, --size_);
    sink_root();
  }
  size_ = count;
}

// All that are no NaN are listed, else the list were full.
void BestScores::fill_with_nan(int64_t count) {
  if (size_ >= std::min(k_, count)) return;
  std::vector<bool> is_listed(static_cast<size_t>(count), false);
  for (int64_t i = 0; i < size_; ++i) is_listed[static_cast<size_t>(indices_[i])] = true;
  for (int64_t i = 0; size_ < std::min(k_, count); ++i) {
    if (is_listed[static_cast<size_t>(i)]) continue;
    indices_[size_] = static_cast<int32_t>(i);
    values_[size_++] = std::numeric_limits<float>::quiet_NaN();
  }
}

int64_t top_k(const float* scores, const uint8_t* excluded, int64_t count, int64_t k, int32_t* indices, float* values) {
  BestScores best(indices, values, k);
  best.add(scores, excluded, count, 0);
  best.sort();
  int64_t written = best.size();
  for (int64_t i = 0; i < count && written < k; ++i) {
    if (!std::isnan(scores[i]) || (excluded && excluded[i])) continue;
    indices[written] = static_cast<int32_t>(i);
    values[written++] = scores[i];
  }
  return written;
}

double log_sum_exp(const float* x, int64_t count) { return cpu_kernels().log_sum_exp(x, count); }

double log_add_exp(double a, double b) {
  const double high = a > b ? a : b, low = a > b ? b : a;  // a NaN is in one of the two
  if (std::isinf(high) && !std::isnan(low)) return high;
  return high + std::log1p(std::exp(low - high));
}

}  // namespace limbeck
