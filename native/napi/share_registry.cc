#include "napi/share_registry.h"

#include <cstdint>
#include <cstring>
#include <iterator>
#include <mutex>
#include <random>
#include <unordered_map>

namespace limbeck {

namespace {

struct Entry {
  const char* kind;
  std::weak_ptr<const void> object;
};

struct Entries {
  std::mutex mutex;
  std::unordered_map<std::string, Entry> by_key;  // guarded by mutex
};

Entries& entries() {
  static Entries* all = new Entries();
  return *all;
}

std::string random_key() {
  static const char* kDigits = "0123456789abcdef";
  std::random_device random;
  std::string key;
  for (int word = 0; word < 4; ++word) {
    uint32_t bits = random();
    for (int digit = 0; digit < 8; ++digit, bits >>= 4) key += kDigits[bits & 15];
  }
  return key;
}

}  // namespace

std::string ShareRegistry::publish_any(const char* kind, const std::shared_ptr<const void>& object) {
  std::string key = random_key();
  Entries& all = entries();
  const std::lock_guard<std::mutex> lock(all.mutex);
  for (auto entry = all.by_key.begin(); entry != all.by_key.end();) {
    entry = entry->second.object.expired() ? all.by_key.erase(entry) : std::next(entry);
  }
  all.by_key.emplace(key, Entry{kind, object});
  return key;
}

std::shared_ptr<const void> ShareRegistry::open_any(const char* kind, const std::string& key) {
  Entries& all = entries();
  const std::lock_guard<std::mutex> lock(all.mutex);
  const auto entry = all.by_key.find(key);
  if (entry == all.by_key.end() || std::strcmp(entry->second.kind, kind) != 0) return nullptr;
  return entry->second.object.lock();
}

}  // namespace limbeck
