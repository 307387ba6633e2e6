#pragma once

#include <cstdint>
#include <vector>

#include "model/config.h"
#include "ops/context.h"

namespace limbeck {

/// What attention of one block computes with.
struct AttentionWeights {
  std::vector<float> qkv;       // [(H + 2·KV)·head_dim, d]
  std::vector<float> qkv_bias;  // [(H + 2·KV)·head_dim], or empty
  std::vector<float> output;    // [d, H·head_dim]
};

/// Channels of a head that a narrower one keeps, ascending. Rotary positions turn channel j with j + head_dim/2 by an
/// angle that falls with j: each pair comes from the one that turns as fast, or nearly. Others are spread evenly.
std::vector<int64_t> head_channels(const TransformerConfig& source, int64_t head_dim);

/// The same attention with heads of fewer channels. Attention knows values by O·V alone, and queries and keys by Qᵀ·K:
/// both are replaced by their best approximations of rank head_dim (Eckart & Young 1936), head by head, the queries
/// that share a key-value head together. Where rotary positions or norms come between queries and keys, their channels
/// are those of head_channels().
AttentionWeights narrow_heads(Context& context, const TransformerConfig& config, const AttentionWeights& weights,
                              int64_t head_dim);

}  // namespace limbeck
