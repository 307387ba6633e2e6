#include "model/rope.h"

#include <algorithm>
#include <cmath>

namespace limbeck {

namespace {

constexpr double kTwoPi = 6.283185307179586;

/// Share of the slowed frequency for a pair of this frequency: 1 = slowed, 0 = unchanged.
double llama3_share(const RopeScaling& scaling, double frequency) {
  const double turns = static_cast<double>(scaling.original_max_position_embeddings) * frequency / kTwoPi;
  const double low = scaling.low_freq_factor, high = scaling.high_freq_factor;
  return 1 - std::clamp((turns - low) / (high - low), 0.0, 1.0);
}

/// Index of the pair, not a whole number, that turns so many times in the original positions.
double pair_of_turns(const RopeScaling& scaling, double turns, double theta, int64_t head_dim) {
  const double positions = static_cast<double>(scaling.original_max_position_embeddings);
  return static_cast<double>(head_dim) * std::log(positions / (turns * kTwoPi)) / (2 * std::log(theta));
}

}  // namespace

std::vector<double> rotary_frequencies(const RopeScaling& scaling, double theta, int64_t head_dim) {
  std::vector<double> frequencies;
  for (int64_t j = 0; j < head_dim / 2; ++j) {
    frequencies.push_back(std::pow(theta, -2.0 * static_cast<double>(j) / static_cast<double>(head_dim)));
  }
  if (scaling.type == RopeType::kDefault) return frequencies;

  double first = 0, last = 0;  // yarn: pairs up to the first stay, from the last on they are slowed
  if (scaling.type == RopeType::kYarn) {
    first = std::max(std::floor(pair_of_turns(scaling, scaling.beta_fast, theta, head_dim)), 0.0);
    last = std::min(std::ceil(pair_of_turns(scaling, scaling.beta_slow, theta, head_dim)),
                    static_cast<double>(head_dim - 1));
    if (first == last) last += 0.001;  // as published: a step instead of a ramp of no width
  }
  for (size_t j = 0; j < frequencies.size(); ++j) {
    double share = 1;
    if (scaling.type == RopeType::kLlama3) share = llama3_share(scaling, frequencies[j]);
    if (scaling.type == RopeType::kYarn) {
      share = std::clamp((static_cast<double>(j) - first) / (last - first), 0.0, 1.0);
    }
    frequencies[j] *= share / scaling.factor + (1 - share);
  }
  return frequencies;
}

}  // namespace limbeck
