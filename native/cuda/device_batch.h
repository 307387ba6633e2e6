#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cuda/attention.h"
#include "cuda/context.h"
#include "cuda/embedding.h"
#include "model/batch.h"

namespace limbeck::cuda {

/// A batch in device memory, with what follows from it. The host's copies live as long as this, which must outlive the
/// pass that reads them.
class DeviceBatch {
 public:
  /// Allocates from the context's arena and starts the copies. The orders of the embeddings' gradients are for backward
  /// alone, which must come after upload_orders().
  DeviceBatch(Context& context, const TransformerConfig& config, const Batch& batch, bool for_backward);
  /// One sequence of at most max_length tokens, whose ids and length others write to device memory: for graphs.
  ///   ids [max_length], position_ids [max_length], sequence_offsets [2]
  DeviceBatch(int64_t max_length, const int32_t* ids, const int32_t* position_ids, const int32_t* sequence_offsets)
      : num_tokens(max_length),
        num_sequences(1),
        max_length(max_length),
        map_elements(0),
        input_ids(ids),
        position_ids(position_ids),
        token_type_ids(nullptr),
        sequence_offsets(sequence_offsets),
        map_offsets(nullptr) {}
  DeviceBatch(const DeviceBatch&) = delete;
  DeviceBatch& operator=(const DeviceBatch&) = delete;

  void upload_orders(Context& context);

  int64_t num_tokens, num_sequences, max_length;
  int64_t map_elements;                           // Σ t²: floats of the maps of one head
  int64_t tokens_before = 0, squares_before = 0;  // see model/batch.h
  const int32_t* input_ids;                       // [N]
  const int32_t* position_ids;                    // [N]
  const int32_t* token_type_ids;                  // [N] or null: the model has none
  const int32_t* sequence_offsets;                // [S + 1]
  const int64_t* map_offsets;                     // [S + 1]
  /// Of what the model has, for backward.
  std::unique_ptr<PendingOrder> word_order, position_order, token_type_order;

 private:
  std::vector<int32_t> host_ids_;  // input_ids, position_ids, token types, offsets, one after the other
  std::vector<int64_t> host_map_offsets_;
};

}  // namespace limbeck::cuda
