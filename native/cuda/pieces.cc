#include "cuda/pieces.h"

#include <algorithm>

namespace limbeck::cuda {

namespace {

/// A piece takes sequences as long as it has at most `max_tokens` and fits.
std::vector<PieceSize> cut_in_turn(const int32_t* sequence_offsets, int64_t num_sequences, int64_t max_tokens,
                                   const std::function<bool(const PieceSize&)>& fits) {
  std::vector<PieceSize> pieces;
  for (int64_t s = 0; s < num_sequences; ++s) {
    const int64_t length = sequence_offsets[s + 1] - sequence_offsets[s];
    if (!pieces.empty()) {
      const PieceSize longer = pieces.back().with(length);
      if (longer.num_tokens <= max_tokens && fits(longer)) {
        pieces.back() = longer;
        continue;
      }
    }
    pieces.push_back(PieceSize{}.with(length));
  }
  return pieces;
}

}  // namespace

std::vector<PieceSize> cut_evenly(const int32_t* sequence_offsets, int64_t num_sequences, int64_t max_tokens,
                                  const std::function<bool(const PieceSize&)>& fits) {
  const std::vector<PieceSize> pieces = cut_in_turn(sequence_offsets, num_sequences, max_tokens, fits);
  if (pieces.size() <= 1) return pieces;
  const auto num_pieces = static_cast<int64_t>(pieces.size());
  std::vector<PieceSize> even;
  int64_t last = -1;
  for (int64_t s = 0; s < num_sequences; ++s) {
    const int64_t piece = sequence_offsets[s] * num_pieces / sequence_offsets[num_sequences];
    if (piece != last) even.emplace_back();
    last = piece;
    even.back() = even.back().with(sequence_offsets[s + 1] - sequence_offsets[s]);
  }
  const bool do_fit = std::all_of(even.begin(), even.end(),
                                  [&](const PieceSize& piece) { return piece.num_sequences == 1 || fits(piece); });
  return do_fit ? even : pieces;
}

}  // namespace limbeck::cuda
