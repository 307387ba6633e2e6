#include "cuda/product_tiles.h"

#include "cuda/launch.h"

namespace limbeck::cuda {
namespace {

// Custom options are not documented: of 0 … 7, those that were fastest with clusters of 2 × 1.
constexpr ProductTile kSquare{lt::kTile128x128, 128, 128, 1.0, 1};
constexpr ProductTile kTall{lt::kTile128x160, 128, 160, 1.03, 1};
constexpr ProductTile kWide{lt::kTile176x128, 176, 128, 1.04, 0};
constexpr ProductTile kTwoResults{lt::kTile96x128, 96, 128, 1.0, 0};  // GELU and its input

constexpr double kLeastProducts = 2.5e8;
constexpr int64_t kWideResult = 8192;       // columns: logits
constexpr int64_t kLongestResidual = 1024;  // terms of a sum to which a residual stream is added
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
// result. Where much is written for what is multiplied, smaller ones are faster. On an H200 (cuBLAS 13.1, bf16, in
// turns with the others, the card at some 500 of 700 W) the library's first → what is taken here, in µs:
//   rows × columns = · terms              65,536 rows       32,768            16,384
//   2,304 = · 768, bias                   389 → 327         201 → 161         98 → 85
//   3,072 = · 768, bias, GELU                               259 → 220         142 → 119
//   3,072 = · 768, bias, GELU, its input  689 → 616         353 → 308         160 → 147
//   768 = · 768, bias, residual           147 → 139         79 → 75           44 → 45
//   768 = · 3,072                         465 → 441         239 → 230         110 → 109
//   768 = · 2,304                         361 → 336         175 → 169         85 → 83
//   768 = · 768                           129 → 112         64 → 58           36 → 34
//   50,304 = · 768                        3,063 → 2,350 (21,888 rows)         2,287 → 1,870, with other options
//   2,304 × 768 += · that many            384 → 370         196 → 181         90 → 89
//   50,304 × 768 += · that many           2,585 → 2,539 (21,888)              1,952 → 1,912
// Sums of 3,072 terms with a residual stream gained 2 % in one of three shapes and lost up to 6 % in the others.
const ProductTile* preferred_tile(const Product& p, int num_multiprocessors) {
  const double products = static_cast<double>(p.m) * static_cast<double>(p.n) * static_cast<double>(p.k);
  if (p.in != lt::kBFloat16 || p.gelu == Gelu::kBackward || products < kLeastProducts) return nullptr;
  const bool accumulates = p.residual != nullptr && p.residual == p.c;
  if (p.residual != nullptr && !accumulates && p.k > kLongestResidual) return nullptr;
  const ProductTile* best = &kSquare;
  if (p.gelu == Gelu::kForward && p.gelu_input != nullptr) {
    best = &kTwoResults;
  } else if (p.out == lt::kBFloat16) {
    if (p.n >= kWideResult) {
      best = &kWide;
    } else if (score(kTall, p, num_multiprocessors) > score(kSquare, p, num_multiprocessors)) {
      best = &kTall;
    }
  }
  return score(*best, p, num_multiprocessors) < kLeastScore ? nullptr : best;
}

}  // namespace limbeck::cuda
