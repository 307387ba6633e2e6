#include "cuda/product_tiles.h"

#include "cuda/launch.h"

namespace limbeck::cuda {
namespace {

// Custom options are not documented: of 0 … 7, those that were fastest with these clusters.
constexpr ProductTile kSquare{lt::kTile128x128, 128, 128, 1.0, 1, lt::kCluster2x1};
constexpr ProductTile kTall{lt::kTile128x160, 128, 160, 1.03, 1, lt::kCluster2x1};
constexpr ProductTile kWide{lt::kTile176x128, 176, 128, 1.04, 2, lt::kCluster1x2};
constexpr ProductTile kTwoResults{lt::kTile96x128, 96, 128, 1.0, 0, lt::kCluster2x1};  // GELU and its input

constexpr double kLeastProducts = 2.5e8;
constexpr int64_t kWideResult = 8192;       // columns: logits
constexpr int64_t kLongestSum = 8192;       // terms: the longer, the less is written for what is multiplied
constexpr int64_t kLongestResidual = 1024;  // the same where a residual stream is added
constexpr double kLeastScore = 0.75;

/// Speed, as far as multiprocessors multiply what is asked for: neither beyond the edges of C nor in a last round of
/// tiles that has some for few of them. Two blocks of a cluster have tiles side by side.
double score(const ProductTile& tile, const Product& p, int num_multiprocessors) {
  const int64_t num_tiles = 2 * divide_up(p.n, 2 * tile.columns) * divide_up(p.m, tile.rows);
  const int64_t rounds = divide_up(num_tiles, num_multiprocessors);
  const double all = static_cast<double>(rounds * num_multiprocessors * tile.columns * tile.rows);
  return tile.speed * static_cast<double>(p.m) * static_cast<double>(p.n) / all;
}

}  // namespace

// The library ranks larger tiles first, two of which no multiprocessor can hold: it does not multiply while it writes a
// result. Where much is written for what is multiplied, smaller ones are faster. What counts is how fast they are when
// they run for long, at the card's power limit, which takes off up to a fifth of what they are in short runs, of each
// its own share. On an H200 (cuBLAS 13.1, bf16, 0.15 s each at 700 W) the library's first → what is taken here, in µs:
//   rows × columns = · terms              65,536 rows       32,768            16,384
//   2,304 = · 768, bias                   377 → 345         200 → 177         106 → 96
//   3,072 = · 768, bias, GELU                               288 → 261 (1 × 2) 144 → 135
//   3,072 = · 768, bias, GELU, its input  656 → 639
//   768 = · 768, bias, residual           155 → 154
//   768 = · 3,072                         467 → 463
//   768 = · 2,304                         354 → 348
//   768 = · 768                           134 → 124
//   50,304 = · 768                        2,785 → 2,505 (21,888 rows)         2,085 → 1,861
// The library's own are as fast or faster, 2 to 6 %, for longer sums: of gradients over a batch, and over logits; and
// where 128 × 128 with a residual stream would be taken.
const ProductTile* preferred_tile(const Product& p, int num_multiprocessors) {
  const double products = static_cast<double>(p.m) * static_cast<double>(p.n) * static_cast<double>(p.k);
  if (p.in != lt::kBFloat16 || p.out != lt::kBFloat16 || p.gelu == Gelu::kBackward || products < kLeastProducts ||
      p.k > (p.residual == nullptr ? kLongestSum : kLongestResidual)) {
    return nullptr;
  }
  const ProductTile* best = &kSquare;
  if (p.gelu == Gelu::kForward && p.gelu_input != nullptr) {
    best = &kTwoResults;
  } else if (p.n >= kWideResult) {
    best = &kWide;
  } else if (score(kTall, p, num_multiprocessors) > score(kSquare, p, num_multiprocessors)) {
    best = &kTall;
  } else if (p.residual != nullptr) {
    return nullptr;
  }
  return score(*best, p, num_multiprocessors) < kLeastScore ? nullptr : best;
}

}  // namespace limbeck::cuda
