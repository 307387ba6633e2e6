#pragma once

#include <napi.h>

#include <cstdint>
#include <vector>

#include "napi/convert.h"
#include "retrieve/retriever.h"

namespace limbeck {

/// One request in one array: kHeader counts, then its lists end to end (see serve() in src/binding.ts).
struct PackedRequest {
  enum { kK, kHistory, kExclude, kAny, kAll, kNone, kCandidates, kBoosts, kSeed, kHeader };
  enum { kDiversity, kNovelty, kExplore, kNumbers };
  int64_t k = 0;
  History history;
  Selection selection;
  Ranking ranking;
};

/// The lists stay where they are: valid until JS runs again.
PackedRequest read_packed(const ArrayView<int32_t>& request, const ArrayView<float>& numbers);

/// Requests of histories that are not empty, without filters and boosts.
struct RequestBatch {
  std::vector<int32_t> histories, offsets{0}, exclude, exclude_offsets{0};
  std::vector<int32_t> k;  // [size]
  std::vector<Ranking> rankings;
  int32_t width = 1;  // largest k

  int64_t size() const { return static_cast<int64_t>(k.size()); }
};

/// Copies requests that lie end to end (see serveAll() in src/binding.ts).
RequestBatch read_requests(const Napi::Value& ints, const Napi::Value& numbers, int64_t num_items);

}  // namespace limbeck
