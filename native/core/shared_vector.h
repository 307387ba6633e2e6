#pragma once

#include <atomic>
#include <cstddef>
#include <memory>

#include "core/memory.h"

namespace limbeck {

/// A vector whose copies share one memory until one of them changes its size: that one then has its own. Elements must
/// be written only after resize() or insert(). Copies may be used on several threads.
template <typename T>
class SharedVector {
 public:
  T* data() const { return values_->data(); }
  size_t size() const { return values_->size(); }
  T& operator[](size_t index) const { return (*values_)[index]; }

  T* end() const { return values_->data() + values_->size(); }
  /// Appends; `position` is end().
  void insert(const T* /*position*/, const T* first, const T* last) {
    own();
    values_->insert(values_->end(), first, last);
  }
  void resize(size_t size, T value = T()) {
    own();
    values_->resize(size, value);
  }

 private:
  void own() {
    if (values_.use_count() > 1) {
      values_ = std::make_shared<AlignedVector<T>>(*values_);
    } else {
      // What another thread read through a copy that is gone now, it read before.
      std::atomic_thread_fence(std::memory_order_acquire);
    }
  }

  std::shared_ptr<AlignedVector<T>> values_ = std::make_shared<AlignedVector<T>>();
};

}  // namespace limbeck
