#include "cuda/device_batch.h"

#include <algorithm>
#include <cstring>

#include "cuda/launch.h"

namespace limbeck::cuda {

DeviceBatch::DeviceBatch(Context& context, const TransformerConfig& config, const Batch& batch, bool for_backward)
    : num_tokens(batch.num_tokens),
      num_sequences(batch.num_sequences),
      max_length(0),
      map_elements(0),
      tokens_before(batch.tokens_before),
      squares_before(batch.squares_before) {
  const int64_t N = num_tokens, S = num_sequences;
  const bool has_types = config.type_vocab_size > 0;
  const int64_t count = N * (has_types ? 3 : 2) + S + 1;
  host_ids_.resize(static_cast<size_t>(count));
  int32_t* ids = host_ids_.data();
  int32_t* positions = ids + N;
  int32_t* types = has_types ? positions + N : nullptr;
  int32_t* offsets = ids + count - (S + 1);
  std::memcpy(ids, batch.input_ids, static_cast<size_t>(N) * sizeof(int32_t));
  fill_position_ids(config, batch, positions);
  if (has_types && batch.token_type_ids != nullptr) {
    std::memcpy(types, batch.token_type_ids, static_cast<size_t>(N) * sizeof(int32_t));
  }
  std::memcpy(offsets, batch.sequence_offsets, static_cast<size_t>(S + 1) * sizeof(int32_t));
  host_map_offsets_.push_back(0);
  for (int64_t s = 0; s < S; ++s) {
    const int64_t length = int64_t{offsets[s + 1]} - offsets[s];
    max_length = std::max(max_length, length);
    map_elements += length * length;
    host_map_offsets_.push_back(map_elements);
  }

  int32_t* device_ids = context.arena.allocate<int32_t>(count);
  int64_t* device_map_offsets = context.arena.allocate<int64_t>(S + 1);
  copy_to_device(context, device_ids, host_ids_.data(), count);
  copy_to_device(context, device_map_offsets, host_map_offsets_.data(), S + 1);
  input_ids = device_ids;
  position_ids = device_ids + N;
  token_type_ids = has_types ? device_ids + 2 * N : nullptr;
  sequence_offsets = device_ids + count - (S + 1);
  map_offsets = device_map_offsets;

  if (!for_backward) return;
  word_order = std::make_unique<PendingOrder>(context, ids, N, config.vocab_size);
  if (config.positions == PositionKind::kLearned) {
    position_order = std::make_unique<PendingOrder>(context, positions, N, config.position_rows());
  }
  if (has_types) token_type_order = std::make_unique<PendingOrder>(context, types, N, config.type_vocab_size);
}

void DeviceBatch::upload_orders(Context& context) {
  for (PendingOrder* order : {word_order.get(), position_order.get(), token_type_order.get()}) {
    if (order != nullptr) order->upload(context);
  }
}

}  // namespace limbeck::cuda
