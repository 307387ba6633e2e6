#include "retrieve/item_names.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

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
  if (2 * (num_found_ + 1) > static_cast<int64_t>(num_slots_)) double_slots();
  if (static_cast<size_t>(num_items_) % kPartItems == 0) {
    Part empty;
    empty.offsets.resize(1);
    parts_.push_back(std::move(empty));
  }
  Part& part = parts_.back();
  part.bytes.insert(part.bytes.end(), json_string.data(), json_string.data() + json_string.size());
  part.offsets.resize(part.offsets.size() + 1, static_cast<int64_t>(part.bytes.size()));
  insert(static_cast<int32_t>(num_items_++));
  ++num_found_;
}

void ItemNames::remove(int32_t id) {
  size_t gap = first_slot(without_quotes(id));
  while (slot(gap) != id) {
    if (slot(gap) < 0) return;
    gap = next_slot(gap);
  }
  // Those behind move up where they may lie nearer to their first slot: no gap may part them from it.
  const size_t mask = num_slots_ - 1;
  for (size_t other = next_slot(gap); slot(other) >= 0; other = next_slot(other)) {
    const size_t way = (other - first_slot(without_quotes(slot(other)))) & mask;
    if (way < ((other - gap) & mask)) continue;
    set_slot(gap, slot(other));
    gap = other;
  }
  set_slot(gap, -1);
  --num_found_;
}

int32_t ItemNames::find(std::string_view name) const {
  size_t index = first_slot(name);
  while (slot(index) >= 0 && without_quotes(slot(index)) != name) index = next_slot(index);
  return slot(index);
}

std::string_view ItemNames::without_quotes(int32_t id) const {
  const std::string_view quoted = json_string(id);
  return {quoted.data() + 1, quoted.size() - 2};
}

size_t ItemNames::first_slot(std::string_view name) const { return hash_of(name) & (num_slots_ - 1); }

void ItemNames::set_slot(size_t index, int32_t id) {
  SharedVector<int32_t>& part = slots_[index / kPartSlots];
  part.own();
  part[index % kPartSlots] = id;
}

void ItemNames::insert(int32_t id) {
  size_t index = first_slot(without_quotes(id));
  while (slot(index) >= 0) index = next_slot(index);
  set_slot(index, id);
}

void ItemNames::double_slots() {
  std::vector<SharedVector<int32_t>> before = free_slots(2 * num_slots_);
  before.swap(slots_);
  num_slots_ *= 2;
  for (const SharedVector<int32_t>& part : before) {
    for (size_t i = 0; i < part.size(); ++i) {
      if (part[i] >= 0) insert(part[i]);
    }
  }
}

std::vector<SharedVector<int32_t>> ItemNames::free_slots(size_t count) {
  std::vector<SharedVector<int32_t>> parts((count + kPartSlots - 1) / kPartSlots);
  for (SharedVector<int32_t>& part : parts) part.resize(std::min(count, kPartSlots), -1);
  return parts;
}

}  // namespace limbeck
