#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace limbeck {

/// What the outside calls the items of a catalogue: by item id, as JSON strings with their quotes ("tt0078748"), and
/// back. A removed item keeps its name for answers that are under way, and is found no more; its name may be given to
/// another item. Any number of threads may read while none appends or removes; a copy shares nothing.
class ItemNames {
 public:
  /// Names the next item: `json_string` is the name as JSON writes it, with its quotes. No other item that can be found
  /// has this name. Error("ERR_INVALID_ARGUMENT") where the quotes are missing. Views that json_string() gave end here.
  void append(std::string_view json_string);
  /// The item, 0 ≤ id < num_items(), is found no more. Nothing happens where that is so already.
  void remove(int32_t id);

  /// Removed ones, too.
  int64_t num_items() const { return static_cast<int64_t>(offsets_.size()) - 1; }
  /// With its quotes; 0 ≤ id < num_items(). Valid until the next append().
  std::string_view json_string(int32_t id) const {
    const auto i = static_cast<size_t>(id);
    return {bytes_.data() + offsets_[i], static_cast<size_t>(offsets_[i + 1] - offsets_[i])};
  }
  /// Id of the item with this name, or −1. `name` is without quotes, of any length, and has no character that JSON
  /// escapes: names that have one cannot be asked for.
  int32_t find(std::string_view name) const;

 private:
  std::string_view without_quotes(int32_t id) const;
  size_t first_slot(std::string_view name) const;
  size_t next_slot(size_t slot) const { return (slot + 1) & (slots_.size() - 1); }
  void insert(int32_t id);
  void double_slots();

  std::vector<char> bytes_;
  std::vector<int64_t> offsets_{0};  // [num_items + 1]
  // Ids of the items that can be found, each at the first slot of its name or behind it, with no free slot (−1)
  // between. A power of two, at most half of them taken.
  std::vector<int32_t> slots_ = std::vector<int32_t>(16, -1);
  int64_t num_found_ = 0;
};

}  // namespace limbeck
