#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace limbeck::cuda {

/// What is computed together of a batch.
struct PieceSize {
  int64_t num_sequences = 0, num_tokens = 0;
  int64_t map_elements = 0;  // Σ t²

  PieceSize with(int64_t length) const {
    return {num_sequences + 1, num_tokens + length, map_elements + length * length};
  }
};

/// A batch cut between sequences into as few pieces as are needed for each to have at most `max_tokens` and to fit, or
/// to be of one sequence. Several are made even, so that none is left with little to fill a GPU; some then have up to
/// one sequence more than max_tokens. Where even ones would not fit, they are filled in turn.
///   sequence_offsets  [num_sequences + 1]
std::vector<PieceSize> cut_evenly(const int32_t* sequence_offsets, int64_t num_sequences, int64_t max_tokens,
                                  const std::function<bool(const PieceSize&)>& fits);

}  // namespace limbeck::cuda
