#include "napi/recommend_request.h"

#include <algorithm>
#include <string>

namespace limbeck {

PackedRequest read_packed(const ArrayView<int32_t>& request, const ArrayView<float>& numbers) {
  if (request.count < PackedRequest::kHeader || numbers.count < PackedRequest::kNumbers) {
    throw Error("ERR_SHAPE_MISMATCH", "Expected a request of at least " + std::to_string(PackedRequest::kHeader) +
                                          " numbers, and " + std::to_string(PackedRequest::kNumbers) + " weights.");
  }
  const int32_t* next = request.data + PackedRequest::kHeader;
  int64_t left = request.count - PackedRequest::kHeader;
  const auto list = [&](int field, int64_t* count) {
    *count = request.data[field];
    if (*count < 0 || *count > left) {
      throw Error("ERR_SHAPE_MISMATCH", "A list of the request has " + std::to_string(*count) + " entries, of " +
                                            std::to_string(left) + " that are left.");
    }
    const int32_t* begin = next;
    next += *count;
    left -= *count;
    return begin;
  };
  PackedRequest packed;
  packed.k = request.data[PackedRequest::kK];
  packed.history.items = list(PackedRequest::kHistory, &packed.history.length);
  packed.selection.exclude = list(PackedRequest::kExclude, &packed.selection.num_excluded);
  CategoryFilter& categories = packed.selection.categories;
  categories.any = list(PackedRequest::kAny, &categories.num_any);
  categories.all = list(PackedRequest::kAll, &categories.num_all);
  categories.none = list(PackedRequest::kNone, &categories.num_none);
  if (request.data[PackedRequest::kCandidates] >= 0) {
    packed.selection.candidates = list(PackedRequest::kCandidates, &packed.selection.num_candidates);
  }
  packed.ranking.boosted = list(PackedRequest::kBoosts, &packed.ranking.num_boosts);
  packed.ranking.boosts = numbers.data + PackedRequest::kNumbers;
  if (numbers.count - PackedRequest::kNumbers < packed.ranking.num_boosts) {
    throw Error("ERR_SHAPE_MISMATCH",
                "Expected a boost for each of " + std::to_string(packed.ranking.num_boosts) + " items, got fewer.");
  }
  packed.ranking.diversity = numbers.data[PackedRequest::kDiversity];
  packed.ranking.novelty = numbers.data[PackedRequest::kNovelty];
  packed.ranking.explore = numbers.data[PackedRequest::kExplore];
  packed.ranking.seed = static_cast<uint32_t>(request.data[PackedRequest::kSeed]);
  return packed;
}

RequestBatch read_requests(const Napi::Value& ints, const Napi::Value& numbers, int64_t num_items) {
  enum { kK, kSeed, kHistory, kExclude, kHeader };
  constexpr int64_t kNumWeights = 3;
  const ArrayView<int32_t> requests = int32_view(ints, "requests");
  const ArrayView<float> weights = float32_view(numbers, "weights");
  const int32_t* next = requests.data;
  int64_t left = requests.count;
  const auto take = [&](int64_t count) {
    if (count < 0 || count > left) {
      throw Error("ERR_SHAPE_MISMATCH", "Expected requests to have " + std::to_string(count) + " more numbers, of " +
                                            std::to_string(left) + ".");
    }
    const int32_t* begin = next;
    next += count;
    left -= count;
    return begin;
  };
  const int64_t size = *take(1);
  if (size < 1) invalid("Expected at least one request.");
  if (weights.count < size * kNumWeights) check_count("weights", weights.count, size * kNumWeights);
  RequestBatch batch;
  for (int64_t s = 0; s < size; ++s) {
    const int32_t* header = take(kHeader);
    const int32_t k = header[kK];
    if (k < 1 || k > num_items) invalid("Expected k from 1 to the number of items, got " + std::to_string(k) + ".");
    if (header[kHistory] == 0) invalid("Expected histories of at least one item.");
    const int32_t* history = take(header[kHistory]);
    const int32_t* exclude = take(header[kExclude]);
    batch.histories.insert(batch.histories.end(), history, history + header[kHistory]);
    batch.offsets.push_back(static_cast<int32_t>(batch.histories.size()));
    batch.exclude.insert(batch.exclude.end(), exclude, exclude + header[kExclude]);
    batch.exclude_offsets.push_back(static_cast<int32_t>(batch.exclude.size()));
    batch.k.push_back(k);
    batch.width = std::max(batch.width, k);
    Ranking ranking;
    ranking.diversity = weights.data[s * kNumWeights + PackedRequest::kDiversity];
    ranking.novelty = weights.data[s * kNumWeights + PackedRequest::kNovelty];
    ranking.explore = weights.data[s * kNumWeights + PackedRequest::kExplore];
    ranking.seed = static_cast<uint32_t>(header[kSeed]);
    batch.rankings.push_back(ranking);
  }
  check_memory(size * batch.width * static_cast<int64_t>(sizeof(int32_t) + sizeof(float)));
  return batch;
}

}  // namespace limbeck
