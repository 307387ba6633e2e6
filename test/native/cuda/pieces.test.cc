#include "cuda/pieces.h"

#include <algorithm>
#include <random>

#include "test.h"

using namespace limbeck::cuda;

namespace {

constexpr int64_t kTokens = 33'792;  // of a pass

bool any(const PieceSize&) { return true; }

std::vector<int32_t> offsets_of(const std::vector<int32_t>& lengths) {
  std::vector<int32_t> offsets{0};
  for (const int32_t length : lengths) offsets.push_back(offsets.back() + length);
  return offsets;
}

std::vector<PieceSize> pieces_of(const std::vector<int32_t>& lengths, int64_t max_tokens,
                                 const std::function<bool(const PieceSize&)>& fits = any) {
  return cut_evenly(offsets_of(lengths).data(), static_cast<int64_t>(lengths.size()), max_tokens, fits);
}

std::vector<int64_t> tokens_of(size_t count, int32_t length) {
  std::vector<int64_t> tokens;
  for (const PieceSize& piece : pieces_of(std::vector<int32_t>(count, length), kTokens)) {
    CHECK(piece.map_elements == piece.num_tokens * length && piece.num_tokens == piece.num_sequences * length);
    tokens.push_back(piece.num_tokens);
  }
  return tokens;
}

}  // namespace

TEST("cut_evenly: sequences of one length go into few pieces of one size") {
  CHECK(tokens_of(264, 128) == std::vector<int64_t>{kTokens});
  CHECK(tokens_of(33, 1024) == std::vector<int64_t>{kTokens});
  CHECK(tokens_of(66, 1024) == std::vector<int64_t>({kTokens, kTokens}));
  CHECK(tokens_of(64, 1024) == std::vector<int64_t>({32'768, 32'768}));
  CHECK(tokens_of(34, 1024) == std::vector<int64_t>({17'408, 17'408}));
  CHECK(tokens_of(67, 1024) == std::vector<int64_t>({23'552, 22'528, 22'528}));
  CHECK(tokens_of(1, 50'000) == std::vector<int64_t>{50'000});
  CHECK(tokens_of(3, 50'000) == std::vector<int64_t>({50'000, 50'000, 50'000}));
  CHECK(tokens_of(0, 1).empty());
}

TEST("cut_evenly: every sequence is in one piece, in order, and no piece is far from its share") {
  std::mt19937 random(3);
  for (int round = 0; round < 200; ++round) {
    std::vector<int32_t> lengths(1 + random() % 300);
    for (int32_t& length : lengths) length = static_cast<int32_t>(1 + random() % 40);
    const int64_t max_tokens = 100 + static_cast<int64_t>(random() % 900);
    const std::vector<PieceSize> pieces = pieces_of(lengths, max_tokens);
    const int64_t longest = *std::max_element(lengths.begin(), lengths.end());
    size_t s = 0;
    int64_t total = 0;
    for (const PieceSize& piece : pieces) {
      PieceSize expected;
      for (int64_t i = 0; i < piece.num_sequences; ++i) expected = expected.with(lengths.at(s++));
      CHECK(expected.num_tokens == piece.num_tokens && expected.map_elements == piece.map_elements);
      CHECK(piece.num_sequences > 0 && piece.num_tokens < max_tokens + longest);
      total += piece.num_tokens;
    }
    CHECK(s == lengths.size());
    const int64_t share = total / static_cast<int64_t>(pieces.size());
    for (const PieceSize& piece : pieces)
      CHECK(piece.num_tokens > share - longest && piece.num_tokens < share + longest);
    // One piece fewer would be too few.
    CHECK(pieces.size() == 1 || total > (static_cast<int64_t>(pieces.size()) - 1) * (max_tokens - longest));
  }
}

TEST("cut_evenly: pieces fit, whatever their tokens") {
  const auto fits = [](const PieceSize& piece) { return piece.map_elements <= 5000; };
  for (const PieceSize& piece : pieces_of({10, 60, 20, 20, 50, 60, 80, 5, 5, 5, 70, 1}, 1000, fits)) {
    CHECK(fits(piece) || piece.num_sequences == 1);
  }
  CHECK(pieces_of({1, 1, 1, 1, 1}, 1000, [](const PieceSize& piece) { return piece.num_tokens <= 2; }).size() == 3);
}
