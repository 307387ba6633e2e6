#pragma once

#include <cstdint>
#include <vector>

namespace limbeck {

/// Lists of category ids; −1 stands for a category that no item has. Null or empty lists do not filter.
struct CategoryFilter {
  const int32_t *any = nullptr, *all = nullptr, *none = nullptr;
  int64_t num_any = 0, num_all = 0, num_none = 0;

  bool is_empty() const { return num_any + num_all + num_none == 0; }
};

/// Which items have which categories: a bit an item for categories of many items, a list of ids for the others, so that
/// neither many categories nor large ones take more than 4 bytes an item that has them.
class CategoryIndex {
 public:
  int64_t num_items() const { return num_items_; }

  /// Describes the next item. Category ids are ≥ 0; repetitions are harmless.
  void append(const int32_t* categories, int64_t count);

  /// bits [⌈num_items / 64⌉] = : bit i is set where item i has at least one of `any`, each of `all` and none of `none`.
  /// scratch [⌈num_items / 64⌉]. Error("ERR_INVALID_ARGUMENT") for an id below −1.
  void select(const CategoryFilter& filter, uint64_t* bits, uint64_t* scratch) const;

 private:
  struct Category {
    std::vector<int32_t> items;  // ascending
    std::vector<uint64_t> bits;  // up to the last item that has it; empty for a small category
  };
  /// bits |= the items of a category.
  void add_to(int32_t category, uint64_t* bits) const;

  int64_t num_items_ = 0;
  std::vector<Category> categories_;
};

}  // namespace limbeck
