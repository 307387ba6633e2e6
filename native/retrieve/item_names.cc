#include "retrieve/item_names.h"

#include <cstring>
#include <string>

#include "core/error.h"

namespace limbeck {

namespace {

template <typename Word>
uint64_t load(const char* bytes) {
  Word word;
  std::memcpy(&word, bytes, sizeof word);
  return word;
}

uint64_t mix(uint64_t hash, uint64_t word) {
  hash = (hash ^ word) * 0x9e3779b97f4a7c15;
  return hash ^ (hash >> 32);
}

/// Eight bytes at a time; the last eight may overlap those before.
uint64_t hash_of(std::string_view name) {
  const char* bytes = name.data();
  const size_t size = name.size();
  uint64_t hash = size;
  if (size >= 8) {
    for (size_t i = 0; i + 8 < size; i += 8) hash = mix(hash, load<uint64_t>(bytes + i));
    return mix(hash, load<uint64_t>(bytes + size - 8));
  }
  if (size >= 4) return mix(hash, load<uint32_t>(bytes) << 32 | load<uint32_t>(bytes + size - 4));
  if (size == 0) return hash;
  return mix(hash, load<uint8_t>(bytes) << 16 | load<uint8_t>(bytes + size / 2) << 8 | load<uint8_t>(bytes + size - 1));
}

}  // namespace

void ItemNames::append(std::string_view json_string) {
  if (json_string.size() < 2 || json_string.front() != '"' || json_string.back() != '"') {
    throw Error("ERR_INVALID_ARGUMENT", "expected the name of an item as a JSON string with its quotes, got " +
                                            std::string(json_string.substr(0, 64)));
  }
  if (2 * (num_found_ + 1) > static_cast<int64_t>(slots_.size())) double_slots();
  bytes_.insert(bytes_.end(), json_string.begin(), json_string.end());
  offsets_.push_back(static_cast<int64_t>(bytes_.size()));
  insert(static_cast<int32_t>(num_items() - 1));
  ++num_found_;
}

void ItemNames::remove(int32_t id) {
  size_t slot = first_slot(without_quotes(id));
  while (slots_[slot] != id) {
    if (slots_[slot] < 0) return;
    slot = next_slot(slot);
  }
  // Those behind move up where they may lie nearer to their first slot: no gap may part them from it.
  const size_t mask = slots_.size() - 1;
  for (size_t other = next_slot(slot); slots_[other] >= 0; other = next_slot(other)) {
    const size_t way = (other - first_slot(without_quotes(slots_[other]))) & mask;
    if (way < ((other - slot) & mask)) continue;
    slots_[slot] = slots_[other];
    slot = other;
  }
  slots_[slot] = -1;
  --num_found_;
}

int32_t ItemNames::find(std::string_view name) const {
  size_t slot = first_slot(name);
  while (slots_[slot] >= 0 && without_quotes(slots_[slot]) != name) slot = next_slot(slot);
  return slots_[slot];
}

std::string_view ItemNames::without_quotes(int32_t id) const {
  const std::string_view quoted = json_string(id);
  return {quoted.data() + 1, quoted.size() - 2};
}

size_t ItemNames::first_slot(std::string_view name) const { return hash_of(name) & (slots_.size() - 1); }

void ItemNames::insert(int32_t id) {
  size_t slot = first_slot(without_quotes(id));
  while (slots_[slot] >= 0) slot = next_slot(slot);
  slots_[slot] = id;
}

void ItemNames::double_slots() {
  std::vector<int32_t> before(2 * slots_.size(), -1);
  before.swap(slots_);
  for (const int32_t id : before) {
    if (id >= 0) insert(id);
  }
}

}  // namespace limbeck
