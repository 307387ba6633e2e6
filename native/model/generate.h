#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "model/transformer.h"

namespace limbeck {

struct GenerateOptions {
  int64_t max_new_tokens;
  float temperature;     // 0 = greedy
  int64_t top_k;         // 0 = the whole vocabulary
  uint64_t seed;         // of the draws; token i is a function of (seed, i) and its logits
  int32_t eos_token_id;  // −1 = none; not part of the result
};

/// Continues input_ids [num_tokens] with a causal model, keeping keys and values of earlier tokens. Stops at
/// max_new_tokens, at eos_token_id, at the model's last position (prompt and result together are at most
/// max_position_embeddings tokens), or when should_stop() (asked before each token; may be empty). Equal logits: the
/// lower id. Resets `arena`. Throws Error("ERR_INVALID_ARGUMENT"), and Error("ERR_NOT_FINITE") for a model whose
/// parameters give no finite logits.
std::vector<int32_t> generate(Context& context, Arena& arena, const Transformer& model, const int32_t* input_ids,
                              int64_t num_tokens, const GenerateOptions& options,
                              const std::function<bool()>& should_stop);

}  // namespace limbeck
