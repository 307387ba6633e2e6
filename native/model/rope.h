#pragma once

#include <cstdint>
#include <vector>

namespace limbeck {

/// How rotary frequencies are changed for sequences longer than those of pretraining; the words of `rope_scaling`.
enum class RopeType { kDefault, kLinear, kLlama3, kYarn };

struct RopeScaling {
  RopeType type = RopeType::kDefault;
  float factor = 1;                              // longer by this
  int64_t original_max_position_embeddings = 1;  // positions of pretraining (llama3, yarn)
  float low_freq_factor = 1;                     // llama3: turns within those positions, below which a pair slows down
  float high_freq_factor = 4;                    // llama3: and above which it stays
  float beta_fast = 32;                          // yarn: turns above which a pair stays
  float beta_slow = 1;                           // yarn: and below which it slows down
  float attention_factor = 1;                    // yarn: factor of queries and keys both
};

/// Angle of each pair of a head at position 1, [head_dim / 2]: theta^(−2j/head_dim), and with a scaling
///   linear  divided by factor (Chen et al. 2023, arXiv:2306.15595, §3.2)
///   llama3  the same for pairs that turn less than low_freq_factor times in the original positions, unchanged for
///   those
///           that turn more than high_freq_factor times, between the two by the number of turns (Dubey et al. 2024,
///           arXiv:2407.21783, §3.4.1; `rope_scaling` of Llama 3.1)
///   yarn    likewise between beta_slow and beta_fast turns, by the index of the pair (Peng et al. 2023,
///           arXiv:2309.00071, §3.2, with the bounds rounded outwards to whole indices as published)
std::vector<double> rotary_frequencies(const RopeScaling& scaling, double theta, int64_t head_dim);

}  // namespace limbeck
