#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "core/shared_vector.h"

namespace limbeck {

/// What the outside calls the items of a catalogue: by item id, as JSON strings with their quotes ("tt0078748"), and
/// back. A removed item keeps its name for answers that are under way, and is found no more; its name may be given to
/// another item. Any number of threads may read while none appends or removes. A copy sees no later change; it shares
/// memory with the other one but for the parts that change, so that a change of a million names in use costs little.
class ItemNames {
 public:
  /// Names the next item: `json_string` is the name as JSON writes it, with its quotes. No other item that can be found
  /// has this name. Error("ERR_INVALID_ARGUMENT") where the quotes are missing. Views that json_string() gave end here.
  void append(std::string_view json_string);
  /// The item, 0 ≤ id < num_items(), is found no more. Nothing happens where that is so already.
  void remove(int32_t id);

  /// Removed ones, too.
  int64_t num_items() const { return num_items_; }
  /// With its quotes; 0 ≤ id < num_items(). Valid until the next append().
  std::string_view json_string(int32_t id) const {
    const Part& part = parts_[static_cast<size_t>(id) / kPartItems];
    const int64_t* offset = part.offsets.data() + static_cast<size_t>(id) % kPartItems;
    return {part.bytes.data() + offset[0], static_cast<size_t>(offset[1] - offset[0])};
  }
  /// Id of the item with this name, or −1. `name` is without quotes, of any length, and has no character that JSON
  /// escapes: names that have one cannot be asked for.
  int32_t find(std::string_view name) const;

 private:
  static constexpr size_t kPartItems = 8192, kPartSlots = 16384;
  /// Names of kPartItems items, end to end.
  struct Part {
    SharedVector<char> bytes;
    SharedVector<int64_t> offsets;  // [items + 1]
  };

  std::string_view without_quotes(int32_t id) const;
  size_t first_slot(std::string_view name) const;
  size_t next_slot(size_t slot) const { return (slot + 1) & (num_slots_ - 1); }
  int32_t slot(size_t index) const { return slots_[index / kPartSlots][index % kPartSlots]; }
  void set_slot(size_t index, int32_t id);
  void insert(int32_t id);
  void double_slots();
  static std::vector<SharedVector<int32_t>> free_slots(size_t count);

  std::vector<Part> parts_;
  int64_t num_items_ = 0;
  // Ids of the items that can be found, each at the first slot of its name or behind it, with no free slot (−1)
  // between. A power of two, at most half of them taken; in parts of kPartSlots.
  size_t num_slots_ = 16;
  std::vector<SharedVector<int32_t>> slots_ = free_slots(num_slots_);
  int64_t num_found_ = 0;
};

}  // namespace limbeck
