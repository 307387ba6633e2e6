#include "retrieve/category_index.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/rng.h"
#include "test.h"

using namespace limbeck;

namespace {

bool has(const std::vector<int32_t>& list, int32_t value) {
  return std::find(list.begin(), list.end(), value) != list.end();
}

/// Random items: category 0 is everywhere, the others rarer and rarer; 7 is nowhere.
std::vector<std::vector<int32_t>> random_items(int64_t count, uint64_t seed) {
  const Philox random{seed, 0};
  std::vector<std::vector<int32_t>> items(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    for (int32_t c = 0; c < 7; ++c) {
      if (random.uniform(static_cast<uint64_t>(i * 7 + c)) * static_cast<float>(1 << (c * 2)) < 1.0f) {
        items[static_cast<size_t>(i)].push_back(c);
      }
    }
  }
  return items;
}

}  // namespace

TEST("categories select exactly the items with any, all and none of them, at every size around a word") {
  for (const int64_t count : {1, 63, 64, 65, 1000, 4097}) {
    const auto items = random_items(count, static_cast<uint64_t>(count));
    CategoryIndex index;
    for (const auto& categories : items) index.append(categories.data(), static_cast<int64_t>(categories.size()));
    const auto words = static_cast<size_t>((count + 63) / 64);
    std::vector<uint64_t> bits(words), scratch(words);
    const std::vector<std::vector<int32_t>> lists = {{}, {0}, {1}, {6}, {7}, {-1}, {2, 5}, {1, 2, 3}, {6, -1}};
    for (const auto& any : lists) {
      for (const auto& all : lists) {
        for (const auto& none : lists) {
          CategoryFilter filter{any.data(),
                                all.data(),
                                none.data(),
                                static_cast<int64_t>(any.size()),
                                static_cast<int64_t>(all.size()),
                                static_cast<int64_t>(none.size())};
          index.select(filter, bits.data(), scratch.data());
          bool is_equal = true;
          for (int64_t i = 0; i < static_cast<int64_t>(words) * 64; ++i) {
            const bool selected = (bits[static_cast<size_t>(i / 64)] >> (i % 64) & 1) != 0;
            bool expected = i < count;
            if (expected) {
              const auto& own = items[static_cast<size_t>(i)];
              const auto owns = [&](int32_t c) { return has(own, c); };
              expected = (any.empty() || std::any_of(any.begin(), any.end(), owns)) &&
                         std::all_of(all.begin(), all.end(), owns) && std::none_of(none.begin(), none.end(), owns);
            }
            is_equal = is_equal && selected == expected;
          }
          CHECK(is_equal);
        }
      }
    }
  }
}

TEST("a category id below -1 is refused, in a filter and of an item") {
  CategoryIndex index;
  const int32_t good = 3, bad = -2, unknown = -1;
  index.append(&good, 1);
  CHECK_ERROR("ERR_INVALID_ARGUMENT", index.append(&unknown, 1));
  uint64_t bits = 0, scratch = 0;
  CategoryFilter filter;
  filter.none = &bad;
  filter.num_none = 1;
  CHECK_ERROR("ERR_INVALID_ARGUMENT", index.select(filter, &bits, &scratch));
}
