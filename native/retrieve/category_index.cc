#include "retrieve/category_index.h"

#include <cstring>
#include <string>

#include "core/error.h"

namespace limbeck {

namespace {

// From this many items on, a bit for each item of the catalogue is less than 4 bytes for each of the category.
constexpr int64_t kItemsPerListed = 32;

int64_t words_of(int64_t num_items) { return (num_items + 63) / 64; }

void set_bit(std::vector<uint64_t>& bits, int64_t item) {
  if (static_cast<int64_t>(bits.size()) <= item / 64) bits.resize(static_cast<size_t>(item / 64 + 1), 0);
  bits[static_cast<size_t>(item / 64)] |= uint64_t{1} << (item % 64);
}

void check_category(int32_t category) {
  if (category < -1) {
    throw Error("ERR_INVALID_ARGUMENT", "Expected a category id of at least -1, got " + std::to_string(category) + ".");
  }
}

}  // namespace

void CategoryIndex::append(const int32_t* categories, int64_t count) {
  const int64_t item = num_items_++;
  for (int64_t i = 0; i < count; ++i) {
    if (categories[i] < 0) check_category(-2);
    if (static_cast<int64_t>(categories_.size()) <= categories[i]) {
      categories_.resize(static_cast<size_t>(categories[i]) + 1);
    }
    Category& category = categories_[static_cast<size_t>(categories[i])];
    if (!category.items.empty() && category.items.back() == item) continue;
    category.items.push_back(static_cast<int32_t>(item));
    if (!category.bits.empty()) {
      set_bit(category.bits, item);
    } else if (static_cast<int64_t>(category.items.size()) * kItemsPerListed > num_items_) {
      for (const int32_t id : category.items) set_bit(category.bits, id);
    }
  }
}

void CategoryIndex::add_to(int32_t category, uint64_t* bits) const {
  if (category < 0 || category >= static_cast<int64_t>(categories_.size())) return;
  const Category& entry = categories_[static_cast<size_t>(category)];
  if (entry.bits.empty()) {
    for (const int32_t id : entry.items) bits[id / 64] |= uint64_t{1} << (id % 64);
  } else {
    for (size_t w = 0; w < entry.bits.size(); ++w) bits[w] |= entry.bits[w];
  }
}

void CategoryIndex::select(const CategoryFilter& filter, uint64_t* bits, uint64_t* scratch) const {
  const int64_t words = words_of(num_items_);
  const size_t size_bytes = static_cast<size_t>(words) * sizeof(uint64_t);
  for (int64_t i = 0; i < filter.num_any; ++i) check_category(filter.any[i]);
  for (int64_t i = 0; i < filter.num_all; ++i) check_category(filter.all[i]);
  for (int64_t i = 0; i < filter.num_none; ++i) check_category(filter.none[i]);

  std::memset(bits, filter.num_any > 0 ? 0 : 0xFF, size_bytes);
  for (int64_t i = 0; i < filter.num_any; ++i) add_to(filter.any[i], bits);
  for (int64_t i = 0; i < filter.num_all; ++i) {
    std::memset(scratch, 0, size_bytes);
    add_to(filter.all[i], scratch);
    for (int64_t w = 0; w < words; ++w) bits[w] &= scratch[w];
  }
  if (filter.num_none > 0) {
    std::memset(scratch, 0, size_bytes);
    for (int64_t i = 0; i < filter.num_none; ++i) add_to(filter.none[i], scratch);
    for (int64_t w = 0; w < words; ++w) bits[w] &= ~scratch[w];
  }
  if (num_items_ % 64 != 0 && words > 0) bits[words - 1] &= (uint64_t{1} << (num_items_ % 64)) - 1;
}

}  // namespace limbeck
