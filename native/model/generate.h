#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "model/transformer.h"

namespace limbeck {

struct GenerateOptions {
  int64_t max_new_tokens;
  float temperature;                   // 0 = greedy
  int64_t top_k;                       // 0 = the whole vocabulary
  uint64_t seed;                       // of the draws; token i is a function of (seed, i) and its logits
  std::vector<int32_t> eos_token_ids;  // each ends a text; none is part of the result
  /// Draws come from the fewest best candidates whose probabilities sum to this much (Holtzman et al. 2020,
  /// arXiv:1904.09751, §3.1), in (0, 1]; after top_k.
  float top_p = 1;
  /// Logits of tokens that are in the prompt or the result: divided by it when positive, else multiplied (Keskar et al.
  /// 2019, arXiv:1909.05858, §4.1). > 0; 1 = none.
  float repetition_penalty = 1;
  int64_t min_new_tokens = 0;  // before so many, none of eos_token_ids is drawn
};

class Generator;
class Sampler;

/// A text on its way: continues input_ids with a causal model, keeping keys and values of earlier tokens. It ends at
/// max_new_tokens, at one of eos_token_ids, or at the model's last position (prompt and result together are at most
/// max_position_embeddings tokens). Equal logits: the lower id. The model must not change until the end.
class Generation {
 public:
  /// Reads nothing yet. Throws Error("ERR_INVALID_ARGUMENT").
  Generation(const Transformer& model, std::vector<int32_t> input_ids, const GenerateOptions& options);
  ~Generation();

  /// The next `count` tokens; fewer at the end, or when should_stop() (asked before each token; may be empty). The
  /// first call reads the prompt, and resets `arena` for it. Throws Error("ERR_INVALID_ARGUMENT") for a model that
  /// changed, and Error("ERR_NOT_FINITE") for one whose parameters give no finite logits.
  std::vector<int32_t> next(Context& context, Arena& arena, int64_t count, const std::function<bool()>& should_stop);

 private:
  const Transformer& model_;
  std::vector<int32_t> input_ids_;
  GenerateOptions options_;
  uint64_t parameter_version_;
  int64_t limit_;           // tokens of the whole result
  int64_t num_tokens_ = 0;  // of the result so far
  bool has_ended_ = false;
  int32_t last_id_ = -1;
  Arena cache_;  // keys and values, and the activations of one token
  std::unique_ptr<Generator> generator_;
  std::unique_ptr<Sampler> sampler_;
};

}  // namespace limbeck
