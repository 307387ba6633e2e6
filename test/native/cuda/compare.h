#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace limbeck_test {

inline std::vector<double> widen(const std::vector<float>& x) { return {x.begin(), x.end()}; }

/// Whether `out` is `expected` up to `tolerance`, of the whole relative to its norm and of each element relative to its
/// own size and the root mean square. A NaN is close to nothing.
inline bool is_close(const std::vector<float>& out, const std::vector<double>& expected, double tolerance) {
  if (out.size() != expected.size()) return false;
  double squares = 0, error_squares = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    squares += expected[i] * expected[i];
    error_squares += (out[i] - expected[i]) * (out[i] - expected[i]);
  }
  const double scale = std::sqrt(squares / static_cast<double>(out.size() + (out.empty() ? 1 : 0)));
  for (size_t i = 0; i < out.size(); ++i) {
    if (!(std::fabs(out[i] - expected[i]) <= 4 * tolerance * (std::fabs(expected[i]) + scale))) return false;
  }
  return std::sqrt(error_squares) <= tolerance * std::sqrt(squares);
}

/// Of fp32 results, and of results rounded to T: half a unit of the last of 8 bits is 0.2 %.
constexpr double kFloatTolerance = 1e-5;
template <typename T>
constexpr double kTolerance = sizeof(T) == 4 ? kFloatTolerance : 4e-3;

}  // namespace limbeck_test
