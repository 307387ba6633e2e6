#include "ops/top_k.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "cpu/kernels.h"

namespace limbeck {
namespace {

/// The best entries so far, as a heap with the worst at the root.
struct WorstFirstHeap {
  int32_t* indices;
  float* values;
  int64_t size;

  bool is_worse(int64_t a, int64_t b) const {
    return values[a] < values[b] || (values[a] == values[b] && indices[a] > indices[b]);
  }

  void swap(int64_t a, int64_t b) {
    std::swap(indices[a], indices[b]);
    std::swap(values[a], values[b]);
  }

  void push(float value, int32_t index) {
    int64_t child = size++;
    values[child] = value;
    indices[child] = index;
    for (int64_t parent; child > 0 && is_worse(child, parent = (child - 1) / 2); child = parent) swap(child, parent);
  }

  void sink_root() {
    for (int64_t parent = 0;;) {
      int64_t worst = parent;
      for (int64_t child = 2 * parent + 1; child <= 2 * parent + 2 && child < size; ++child) {
        if (is_worse(child, worst)) worst = child;
      }
      if (worst == parent) return;
      swap(parent, worst);
      parent = worst;
    }
  }

  void replace_root(float value, int32_t index) {
    values[0] = value;
    indices[0] = index;
    sink_root();
  }

  /// Turns the heap into an array, best first.
  void sort() {
    const int64_t count = size;
    while (size > 1) {
      swap(0, --size);
      sink_root();
    }
    size = count;
  }
};

}  // namespace

int64_t top_k(const float* scores, const uint8_t* excluded, int64_t count, int64_t k, int32_t* indices, float* values) {
  if (k <= 0) return 0;
  WorstFirstHeap heap{indices, values, 0};
  int64_t i = 0;
  for (; i < count && heap.size < k; ++i) {
    if (!std::isnan(scores[i]) && !(excluded && excluded[i])) heap.push(scores[i], static_cast<int32_t>(i));
  }
  if (heap.size == k) {
    // A later score that equals the worst has a higher index, so only a greater one enters.
    const auto find_greater = cpu_kernels().find_greater;
    for (i = find_greater(scores, i, count, values[0]); i < count; i = find_greater(scores, i + 1, count, values[0])) {
      if (!(excluded && excluded[i])) heap.replace_root(scores[i], static_cast<int32_t>(i));
    }
  }
  heap.sort();
  int64_t written = heap.size;
  for (i = 0; i < count && written < k; ++i) {
    if (!std::isnan(scores[i]) || (excluded && excluded[i])) continue;
    indices[written] = static_cast<int32_t>(i);
    values[written++] = scores[i];
  }
  return written;
}

double log_sum_exp(const float* x, int64_t count) { return cpu_kernels().log_sum_exp(x, count); }

}  // namespace limbeck
