#include <algorithm>
#include <numeric>
#include <string>
#include <utility>

#include "core/error.h"
#include "cuda/embedding.h"
#include "cuda/launch.h"

namespace limbeck::cuda {
namespace {

constexpr int64_t kHeaderWords = 3;

/// Indices of ids in ascending order of id, equal ones in their own order: a radix sort, the time of which follows the
/// number of rows and not that of embeddings.
std::vector<int32_t> stable_order(const int32_t* ids, int64_t num_rows, int64_t num_embeddings) {
  constexpr int kDigitBits = 11;
  constexpr size_t kDigits = size_t{1} << kDigitBits;
  std::vector<int32_t> order(static_cast<size_t>(num_rows)), next(order.size());
  std::iota(order.begin(), order.end(), 0);
  for (int shift = 0; shift < 32 && (num_embeddings - 1) >> shift > 0; shift += kDigitBits) {
    const auto digit = [&](int32_t row) { return static_cast<size_t>(ids[row] >> shift) % kDigits; };
    std::vector<int32_t> ends(kDigits, 0);
    for (const int32_t row : order) ++ends[digit(row)];
    int32_t begin = 0;
    for (int32_t& end : ends) begin += std::exchange(end, begin);
    for (const int32_t row : order) next[static_cast<size_t>(ends[digit(row)]++)] = row;
    order.swap(next);
  }
  return order;
}

}  // namespace

EmbeddingOrder EmbeddingOrder::of(const int32_t* host_ids, int64_t num_rows, int64_t num_embeddings) {
  for (int64_t r = 0; r < num_rows; ++r) {
    if (host_ids[r] < 0 || host_ids[r] >= num_embeddings) {
      throw Error("ERR_INVALID_ARGUMENT", "id " + std::to_string(host_ids[r]) + " of row " + std::to_string(r) +
                                              " must be in [0, " + std::to_string(num_embeddings) + ")");
    }
  }
  const std::vector<int32_t> rows = stable_order(host_ids, num_rows, num_embeddings);
  std::vector<int32_t> piece_begin, piece_target, split_begin, split_ids;
  int32_t num_partial_sums = 0;
  for (int64_t begin = 0; begin < num_rows;) {
    const int32_t id = host_ids[rows[static_cast<size_t>(begin)]];
    int64_t end = begin;
    while (end < num_rows && host_ids[rows[static_cast<size_t>(end)]] == id) ++end;
    const bool is_split = end - begin > kMaxPieceRows;
    if (is_split) {
      split_ids.push_back(id);
      split_begin.push_back(num_partial_sums);
    }
    for (; begin < end; begin = std::min(end, begin + kMaxPieceRows)) {
      piece_begin.push_back(static_cast<int32_t>(begin));
      piece_target.push_back(is_split ? -1 - num_partial_sums++ : id);
    }
  }
  piece_begin.push_back(static_cast<int32_t>(num_rows));
  split_begin.push_back(num_partial_sums);

  EmbeddingOrder order;
  order.words = {static_cast<int32_t>(num_rows), static_cast<int32_t>(piece_target.size()),
                 static_cast<int32_t>(split_ids.size())};
  const std::vector<int32_t>* parts[] = {&rows, &piece_begin, &piece_target, &split_begin, &split_ids};
  for (const auto* part : parts) order.words.insert(order.words.end(), part->begin(), part->end());
  return order;
}

DeviceEmbeddingOrder allocate_embedding_order(Context& context, int64_t num_rows, int64_t num_embeddings) {
  constexpr int64_t kMaxRows = EmbeddingOrder::kMaxPieceRows;
  DeviceEmbeddingOrder order;
  // An id of n rows has at most 1 + (n − 1)/kMaxRows pieces; n > kMaxRows where they are several.
  order.max_pieces = std::min(num_rows, num_embeddings) + num_rows / kMaxRows;
  order.max_split_ids = num_rows / (kMaxRows + 1);
  order.max_partial_sums = order.max_split_ids + num_rows / kMaxRows;
  order.max_words = kHeaderWords + num_rows + 2 * order.max_pieces + 1 + 2 * order.max_split_ids + 1;
  order.words = context.arena.allocate<int32_t>(order.max_words);
  return order;
}

void upload(Context& context, const EmbeddingOrder& order, DeviceEmbeddingOrder& device) {
  const int64_t count = static_cast<int64_t>(order.words.size());
  if (count > device.max_words) throw Error("ERR_INVALID_ARGUMENT", "more rows than the order was allocated for");
  copy_to_device(context, device.words, order.words.data(), count);
}

PendingOrder::PendingOrder(Context& context, const int32_t* host_ids, int64_t num_rows, int64_t num_embeddings)
    : device_(allocate_embedding_order(context, num_rows, num_embeddings)) {
  constexpr int64_t kMinThreadRows = 4096;  // below, a thread takes longer to start
  if (context.is_dry) return;
  made_ = std::async(num_rows < kMinThreadRows ? std::launch::deferred : std::launch::async,
                     [=] { return EmbeddingOrder::of(host_ids, num_rows, num_embeddings); });
}

void PendingOrder::upload(Context& context) {
  if (context.is_dry) return;
  host_ = made_.get();
  cuda::upload(context, host_, device_);
}

}  // namespace limbeck::cuda
