#include "retrieve/item_neighbors.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "core/error.h"
#include "ops/top_k.h"

namespace limbeck {
namespace {

void check_ids(const char* what, const int32_t* ids, int64_t count, int64_t num_items) {
  for (int64_t i = 0; i < count; ++i) {
    if (ids[i] < 0 || ids[i] >= num_items) {
      throw Error("ERR_INVALID_ARGUMENT", std::string("Expected ") + what + " to be items from 0 to " +
                                              std::to_string(num_items - 1) + ", got " + std::to_string(ids[i]) + ".");
    }
  }
}

void check_offsets(const char* what, const int32_t* offsets, int64_t count, int64_t last) {
  bool is_ascending = offsets[0] == 0 && offsets[count] == last;
  for (int64_t i = 0; i < count && is_ascending; ++i) is_ascending = offsets[i] <= offsets[i + 1];
  if (!is_ascending) {
    throw Error("ERR_INVALID_ARGUMENT",
                std::string("Expected ") + what + " to ascend from 0 to " + std::to_string(last) + ".");
  }
}

/// Lists end to end, in place.
struct Lists {
  std::vector<int64_t> offsets;
  std::vector<int32_t> values;
};

/// Each history without repetitions, in the order of first appearance.
Lists distinct_items(const Histories& histories, int64_t num_items) {
  Lists lists;
  lists.offsets.push_back(0);
  std::vector<int64_t> seen_in(static_cast<size_t>(num_items), -1);
  for (int64_t h = 0; h < histories.num_histories; ++h) {
    for (int64_t i = histories.offsets[h]; i < histories.offsets[h + 1]; ++i) {
      const int32_t item = histories.items[i];
      if (seen_in[static_cast<size_t>(item)] == h) continue;
      seen_in[static_cast<size_t>(item)] = h;
      lists.values.push_back(item);
    }
    lists.offsets.push_back(static_cast<int64_t>(lists.values.size()));
  }
  return lists;
}

/// For every item, the histories that hold it, ascending.
Lists holders_of(const Lists& histories, int64_t num_items) {
  Lists lists;
  lists.offsets.assign(static_cast<size_t>(num_items) + 1, 0);
  for (const int32_t item : histories.values) ++lists.offsets[static_cast<size_t>(item) + 1];
  for (size_t i = 0; i < static_cast<size_t>(num_items); ++i) lists.offsets[i + 1] += lists.offsets[i];
  std::vector<int64_t> next(lists.offsets.begin(), lists.offsets.end() - 1);
  lists.values.resize(histories.values.size());
  for (size_t h = 0; h + 1 < histories.offsets.size(); ++h) {
    for (int64_t i = histories.offsets[h]; i < histories.offsets[h + 1]; ++i) {
      const size_t item = static_cast<size_t>(histories.values[static_cast<size_t>(i)]);
      lists.values[static_cast<size_t>(next[item]++)] = static_cast<int32_t>(h);
    }
  }
  return lists;
}

}  // namespace

ItemNeighbors item_neighbors(Context& context, const Histories& histories, int64_t num_history_items, int64_t num_items,
                             int64_t begin, int64_t end) {
  check_offsets("the offsets of the histories", histories.offsets, histories.num_histories, num_history_items);
  check_ids("the histories", histories.items, num_history_items, num_items);
  const Lists distinct = distinct_items(histories, num_items);
  const Lists holders = holders_of(distinct, num_items);
  const auto count_of = [&](int64_t item) {
    return holders.offsets[static_cast<size_t>(item) + 1] - holders.offsets[static_cast<size_t>(item)];
  };

  struct Row {
    std::vector<int32_t> items;
    std::vector<float> cosines;
  };
  std::vector<Row> rows(static_cast<size_t>(end - begin));
  // Per worker: counts that are zero between rows.
  std::vector<std::vector<int32_t>> counts(static_cast<size_t>(context.pool.num_threads()));
  for (auto& one : counts) one.assign(static_cast<size_t>(num_items), 0);
  context.pool.parallel_for(end - begin, [&](int64_t r, int worker) {
    const int64_t item = begin + r;
    std::vector<int32_t>& count = counts[static_cast<size_t>(worker)];
    Row& row = rows[static_cast<size_t>(r)];
    for (int64_t i = holders.offsets[static_cast<size_t>(item)]; i < holders.offsets[static_cast<size_t>(item) + 1];
         ++i) {
      const size_t h = static_cast<size_t>(holders.values[static_cast<size_t>(i)]);
      for (int64_t p = distinct.offsets[h]; p < distinct.offsets[h + 1]; ++p) {
        const int32_t other = distinct.values[static_cast<size_t>(p)];
        if (count[static_cast<size_t>(other)]++ == 0 && other != item) row.items.push_back(other);
      }
    }
    count[static_cast<size_t>(item)] = 0;
    std::sort(row.items.begin(), row.items.end());
    row.cosines.reserve(row.items.size());
    for (const int32_t other : row.items) {
      const double both = count[static_cast<size_t>(other)];
      const double norm = std::sqrt(static_cast<double>(count_of(item)) * static_cast<double>(count_of(other)));
      row.cosines.push_back(static_cast<float>(both / norm));
      count[static_cast<size_t>(other)] = 0;
    }
  });

  ItemNeighbors result;
  result.offsets.push_back(0);
  for (const Row& row : rows) {
    result.items.insert(result.items.end(), row.items.begin(), row.items.end());
    result.cosines.insert(result.cosines.end(), row.cosines.begin(), row.cosines.end());
    result.offsets.push_back(static_cast<int64_t>(result.items.size()));
  }
  return result;
}

void rank_by_neighbors(Context& context, const ItemNeighborsView& neighbors, const NeighborRankInputs& inputs,
                       int32_t* ranks, int32_t* top_k_items) {
  const int64_t num_items = neighbors.num_items, num_cases = inputs.histories.num_histories;
  check_offsets("the offsets of the neighbours", neighbors.offsets, num_items, neighbors.num_entries);
  check_ids("the neighbours", neighbors.items, neighbors.num_entries, num_items);
  check_offsets("the offsets of the histories", inputs.histories.offsets, num_cases, inputs.num_history_items);
  check_ids("the histories", inputs.histories.items, inputs.num_history_items, num_items);
  check_ids("the targets", inputs.targets, num_cases, num_items);
  check_offsets("excludeOffsets", inputs.exclude_offsets, num_cases, inputs.num_excluded);
  check_ids("excludeIds", inputs.exclude_ids, inputs.num_excluded, num_items);

  struct Scratch {
    std::vector<float> scores;
    std::vector<uint8_t> excluded;
    std::vector<float> best;
  };
  std::vector<Scratch> scratches(static_cast<size_t>(context.pool.num_threads()));
  for (Scratch& one : scratches) {
    one.scores.resize(static_cast<size_t>(num_items));
    one.excluded.assign(static_cast<size_t>(num_items), 0);
    one.best.resize(static_cast<size_t>(inputs.top_k));
  }
  context.pool.parallel_for(num_cases, [&](int64_t s, int worker) {
    Scratch& scratch = scratches[static_cast<size_t>(worker)];
    std::fill(scratch.scores.begin(), scratch.scores.end(), 0.0f);
    float weight = 1;
    for (int64_t p = inputs.histories.offsets[s + 1] - 1; p >= inputs.histories.offsets[s]; --p) {
      const int32_t item = inputs.histories.items[p];
      for (int32_t i = neighbors.offsets[item]; i < neighbors.offsets[item + 1]; ++i) {
        scratch.scores[static_cast<size_t>(neighbors.items[i])] += weight * neighbors.cosines[i];
      }
      weight *= inputs.decay;
    }
    const int32_t target = inputs.targets[s];
    const auto exclude = [&](uint8_t value) {
      for (int64_t i = inputs.exclude_offsets[s]; i < inputs.exclude_offsets[s + 1]; ++i) {
        if (inputs.exclude_ids[i] != target) scratch.excluded[static_cast<size_t>(inputs.exclude_ids[i])] = value;
      }
    };
    exclude(1);
    const float score = scratch.scores[static_cast<size_t>(target)];
    int32_t rank = 0;  // counts the target itself
    for (size_t j = 0; j < static_cast<size_t>(num_items); ++j) {
      rank += scratch.scores[j] >= score && scratch.excluded[j] == 0;
    }
    ranks[s] = rank;
    if (inputs.top_k > 0) {
      int32_t* list = top_k_items + s * inputs.top_k;
      const int64_t found =
          top_k(scratch.scores.data(), scratch.excluded.data(), num_items, inputs.top_k, list, scratch.best.data());
      std::fill(list + found, list + inputs.top_k, -1);
    }
    exclude(0);
  });
}

}  // namespace limbeck
