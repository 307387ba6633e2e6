#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "retrieve/item_names.h"

namespace limbeck {

/// Requests that came as JSON text, packed for one search.
struct TextRequests {
  std::vector<int32_t> histories, offsets{0};        // item ids, lists end to end, and where they begin [size + 1]
  std::vector<int32_t> exclude, exclude_offsets{0};  // the same
  std::vector<int32_t> k;                            // [size] of each
  std::vector<std::string> unknown;                  // [size] names that no item has: JSON strings with commas between

  int64_t size() const { return static_cast<int64_t>(k.size()); }
  /// 0 where there is no request.
  int32_t largest_k() const;
};

/// Takes a request that is plain: an object of "history", a list of 1 to 1,000 names of which an item has at least one,
/// and perhaps "k", an integer from 1 to max_k (10 without it), and "exclude", a list of at most 1,000 names; each key
/// once, a name of 1 to 256 bytes of ASCII from space to ~, without quotes and backslashes. Names are looked up; those
/// of the history that no item has are noted, each time they come; those of `exclude` are left out. Whatever else is
/// JSON or not is left to those who know the rest: then the result is false and `requests` is as before.
bool append_plain_request(std::string_view text, const ItemNames& names, int32_t max_k, TextRequests& requests);

/// Appends `"items":[{"id":"tt1","score":0.5},…],"unknownItems":[…]` to `text`: the answer of a request, its items up
/// to the first id below 0 or all `count`, and `unknown` as it stands in TextRequests. It is what JSON.stringify()
/// writes of the same values: scores as doubles, with the fewest digits that tell them from all others, and null where
/// they are infinite or not a number.
void append_answer(const ItemNames& names, const int32_t* item_ids, const float* scores, int64_t count,
                   const std::string& unknown, std::string& text);

}  // namespace limbeck
