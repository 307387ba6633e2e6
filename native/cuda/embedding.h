#pragma once

#include <future>
#include <vector>

#include "cuda/context.h"

namespace limbeck::cuda {

/// y[i] = words[input_ids[i]] + positions[position_ids[i]] + types[token_type_ids[i]]; the tables of positions and
/// types may be null. ids were checked on the host.
///   words [·, hidden_size], positions, types likewise; y [num_rows, hidden_size]
template <typename T>
void embedding_forward(Context& context, const int32_t* input_ids, const T* words, const int32_t* position_ids,
                       const T* positions, const int32_t* token_type_ids, const T* types, T* y, int64_t num_rows,
                       int64_t hidden_size);

/// The rows that each id gathers its gradient from, in ascending order: what makes the sums come out the same on every
/// run. Made on the host, then copied in one piece. Long lists are cut into pieces, so that one frequent id does not
/// hold up the rest; the sums of the pieces of one id are then added up in order.
struct EmbeddingOrder {
  static constexpr int64_t kMaxPieceRows = 128;

  /// N rows, P pieces, S ids of several pieces (together of A pieces), then these, one after the other:
  ///   rows          [N]      grouped by id, ascending within
  ///   piece_begin   [P + 1]  into rows
  ///   piece_target  [P]      the id of which this is the only piece, or −1 − the number of its partial sum
  ///   split_begin   [S + 1]  into the partial sums, [0, A)
  ///   split_ids     [S]      ascending
  std::vector<int32_t> words;

  static EmbeddingOrder of(const int32_t* host_ids, int64_t num_rows, int64_t num_embeddings);
};

/// The same in device memory. A captured graph runs with any other order of as many rows or fewer: kernels read all
/// counts from the first words.
struct DeviceEmbeddingOrder {
  int32_t* words;
  int64_t max_words, max_pieces, max_split_ids, max_partial_sums;  // follow from num_rows and num_embeddings
};

/// Allocates for any batch of so many rows; upload() copies one order into it.
DeviceEmbeddingOrder allocate_embedding_order(Context& context, int64_t num_rows, int64_t num_embeddings);
void upload(Context& context, const EmbeddingOrder& order, DeviceEmbeddingOrder& device);

/// An order that is made beside the calling thread, while the GPU has other work.
class PendingOrder {
 public:
  /// Allocates, and begins. host_ids [num_rows] must live as long as this.
  PendingOrder(Context& context, const int32_t* host_ids, int64_t num_rows, int64_t num_embeddings);
  /// For ops that come after upload().
  const DeviceEmbeddingOrder& device() const { return device_; }
  /// Waits for it and copies it.
  void upload(Context& context);

 private:
  DeviceEmbeddingOrder device_;
  EmbeddingOrder host_;
  std::future<EmbeddingOrder> made_;
};

///   d_table[id] += Σ over the rows of that id of d_y[row], in order.   d_y [num_rows, hidden_size], d_table fp32
template <typename T>
void embedding_backward(Context& context, const DeviceEmbeddingOrder& order, const T* d_y, float* d_table,
                        int64_t hidden_size);

/// Rotary positions in place, as in ops/embedding.h, with cosines and sines made once on the host in double.
///   x [num_rows, row_stride]; cosines, sines [positions, head_dim/2] already times `scale`
///   direction +1 forward, −1 backward
template <typename T>
void rotary(Context& context, T* x, const int32_t* position_ids, int64_t num_rows, int64_t row_stride,
            int64_t num_heads, int64_t head_dim, const float* cosines, const float* sines, int direction);

}  // namespace limbeck::cuda
