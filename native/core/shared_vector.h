#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <memory>
#include <utility>

#include "core/memory.h"

namespace limbeck {

/// A vector whose copies share one memory until one of them changes: that one then has its own. Elements must be
/// written only after own(), reserve(), resize() or insert(). Copies may be used on several threads.
template <typename T>
class SharedVector {
 public:
  T* data() const { return data_; }
  size_t size() const { return values_->size(); }
  bool empty() const { return values_->empty(); }
  T& operator[](size_t index) const { return data_[index]; }

  T* end() const { return data_ + size(); }
  /// Appends; `position` is end().
  void insert(const T* /*position*/, const T* first, const T* last) {
    own();
    values_->insert(values_->end(), first, last);
    data_ = values_->data();
  }
  size_t capacity() const { return values_->capacity(); }
  void reserve(size_t size) {
    own(size);
    values_->reserve(size);
    data_ = values_->data();
  }
  void resize(size_t size, T value = T()) {
    own();
    values_->resize(size, value);
    data_ = values_->data();
  }
  /// Before elements are written. A copy that is made for it has room for `capacity` of them.
  void own(size_t capacity = 0) {
    if (values_.use_count() > 1) {
      auto values = std::make_shared<AlignedVector<T>>();
      values->reserve(std::max(capacity, size()));
      values->insert(values->end(), values_->begin(), values_->end());
      values_ = std::move(values);
      data_ = values_->data();
    } else {
      // What another thread read through a copy that is gone now, it read before.
      std::atomic_thread_fence(std::memory_order_acquire);
    }
  }

 private:
  std::shared_ptr<AlignedVector<T>> values_ = std::make_shared<AlignedVector<T>>();
  T* data_ = nullptr;  // of the values
};

}  // namespace limbeck
