#include "retrieve/item_names.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "core/rng.h"
#include "test.h"

using namespace limbeck;

namespace {

std::string quoted(const std::string& name) { return '"' + name + '"'; }

}  // namespace

TEST("item names: each is found by its name, whatever its length") {
  ItemNames names;
  std::vector<std::string> all;
  for (size_t size = 1; size <= 300; ++size) {
    // Names that differ in one place each: at the begin, in the middle and at the end.
    for (const size_t place : {size_t{0}, size / 2, size - 1}) {
      std::string name(size, 'a');
      name[place] = 'b';
      if (std::find(all.begin(), all.end(), name) == all.end()) all.push_back(name);
    }
  }
  for (const std::string& name : all) names.append(quoted(name));
  CHECK(names.num_items() == static_cast<int64_t>(all.size()));
  for (size_t i = 0; i < all.size(); ++i) {
    CHECK(names.find(all[i]) == static_cast<int32_t>(i));
    CHECK(names.json_string(static_cast<int32_t>(i)) == quoted(all[i]));
    CHECK(names.find(all[i] + "z") == -1);
  }
  CHECK(names.find("") == -1);
  CHECK(ItemNames().find("a") == -1);
  CHECK(names.find(std::string(100'000, 'a')) == -1);
}

TEST("item names: a removed item keeps its name, and another one may have it") {
  ItemNames names;
  names.append("\"a\"");
  names.append("\"b\"");
  names.remove(0);
  CHECK(names.find("a") == -1);
  CHECK(names.find("b") == 1);
  CHECK(names.json_string(0) == "\"a\"");
  names.remove(0);
  CHECK(names.find("b") == 1);
  names.append("\"a\"");
  CHECK(names.find("a") == 2);
  names.remove(0);  // not the one that has its name now
  CHECK(names.find("a") == 2);
  CHECK(names.num_items() == 3);
  CHECK(names.json_string(2) == "\"a\"");
}

TEST("item names: names that JSON escapes are kept, and disturb none") {
  ItemNames names;
  names.append("\"a\\\"b\"");
  names.append("\"é\"");
  names.append("\"\"");
  names.append("\"b\"");
  CHECK(names.json_string(0) == "\"a\\\"b\"");
  CHECK(names.json_string(1) == "\"é\"");
  CHECK(names.json_string(2) == "\"\"");
  CHECK(names.find("b") == 3);
  CHECK(names.find("a") == -1);
}

TEST("item names: expect quotes") {
  ItemNames names;
  for (const char* name : {"", "\"", "a", "\"a", "a\""}) CHECK_ERROR("ERR_INVALID_ARGUMENT", names.append(name));
  CHECK(names.num_items() == 0);
}

TEST("item names: a copy sees no later change") {
  ItemNames names;
  names.append("\"a\"");
  ItemNames copy = names;
  copy.remove(0);
  copy.append("\"b\"");
  CHECK(names.find("a") == 0);
  CHECK(names.find("b") == -1);
  CHECK(names.num_items() == 1);
  CHECK(copy.find("a") == -1);
  CHECK(copy.find("b") == 1);
}

TEST("item names: copies of many share what does not change, and are read while others change") {
  constexpr int32_t kCount = 30'000;
  ItemNames names;
  for (int32_t i = 0; i < kCount; ++i) names.append(quoted(std::to_string(i)));
  const ItemNames before = names;
  std::atomic<bool> ends{false};
  std::vector<std::thread> readers;
  std::atomic<int64_t> wrong{0};
  for (int t = 0; t < 2; ++t) {
    readers.emplace_back([&ends, &wrong, copy = names] {
      for (int32_t i = 0; !ends; i = (i + 1) % kCount) {
        const std::string name = std::to_string(i);
        wrong += copy.find(name) != i || copy.json_string(i) != quoted(name);
      }
    });
  }
  for (int32_t i = 0; i < 500; ++i) {
    const ItemNames in_use = names;  // by a search that is under way
    names.remove(i);
    names.append(quoted("new " + std::to_string(i)));
    CHECK(in_use.find(std::to_string(i)) == i && in_use.num_items() == kCount + i);
    CHECK(names.find(std::to_string(i)) == -1 && names.find("new " + std::to_string(i)) == kCount + i);
    CHECK(names.json_string(i) == quoted(std::to_string(i)));
  }
  ends = true;
  for (std::thread& reader : readers) reader.join();
  CHECK(wrong == 0);
  CHECK(before.num_items() == kCount && before.find("new 0") == -1 && before.find("0") == 0);
  CHECK(before.json_string(0).data() == names.json_string(0).data());
}

TEST("item names: any order of appending and removing finds what a map finds") {
  ItemNames names;
  std::map<std::string, int32_t> expected;
  std::vector<std::string> all;
  const Philox random{3, 1};
  uint64_t next = 0;
  for (int round = 0; round < 20'000; ++round) {
    // Few names, so that many come again; more are removed in some phases than are appended.
    const std::string name = std::to_string(static_cast<int>(random.uniform(next++) * 500));
    const auto found = expected.find(name);
    CHECK(names.find(name) == (found == expected.end() ? -1 : found->second));
    const bool removes = random.uniform(next++) < (round / 2000 % 2 == 0 ? 0.2F : 0.8F);
    if (removes && found != expected.end()) {
      names.remove(found->second);
      expected.erase(found);
    } else if (!removes && found == expected.end()) {
      expected[name] = static_cast<int32_t>(all.size());
      names.append(quoted(name));
      all.push_back(name);
    }
  }
  for (int i = 0; i < 500; ++i) {
    const auto found = expected.find(std::to_string(i));
    CHECK(names.find(std::to_string(i)) == (found == expected.end() ? -1 : found->second));
  }
  for (size_t i = 0; i < all.size(); ++i) CHECK(names.json_string(static_cast<int32_t>(i)) == quoted(all[i]));
}
