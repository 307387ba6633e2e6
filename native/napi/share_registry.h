#pragma once

#include <memory>
#include <string>

namespace limbeck {

/// What one thread of this process hands to others, under keys that no one can guess. An entry lives as long as someone
/// holds its object: the registry itself holds nothing. Any thread.
class ShareRegistry {
 public:
  /// Of objects of kind T, one a process. Never destroyed: threads may outlive static objects.
  template <typename T>
  static std::string publish(const std::shared_ptr<const T>& object) {
    return publish_any(T::kShareKind, object);
  }

  /// Null when the key was never given out, names another kind, or its object is gone.
  template <typename T>
  static std::shared_ptr<const T> open(const std::string& key) {
    return std::static_pointer_cast<const T>(open_any(T::kShareKind, key));
  }

 private:
  static std::string publish_any(const char* kind, const std::shared_ptr<const void>& object);
  static std::shared_ptr<const void> open_any(const char* kind, const std::string& key);
};

}  // namespace limbeck
