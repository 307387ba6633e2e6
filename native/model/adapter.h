#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/parameters.h"
#include "ops/context.h"

namespace limbeck {

/// Rows of a linear layer's weight [out, in] that get a low-rank share of their own.
struct AdapterTarget {
  std::string name;    // of its parameters: NAME.lora_A.weight [rank, in], NAME.lora_B.weight [num_rows, rank]
  std::string linear;  // attention.qkv, attention.output, mlp.input or mlp.output of a block, such as
                       // layers.0.attention.qkv
  int64_t first_row, num_rows;
};

struct AdapterConfig {
  int64_t rank;
  float scale;    // α / rank
  float dropout;  // in [0, 1), of what A reads, in training
  std::vector<AdapterTarget> targets;
};

/// LoRA (Hu et al. 2021, arXiv:2106.09685): W + scale·B·A in place of W, where B and A alone are trained.
class Adapter {
 public:
  /// B = 0; A uniform in ±1/√in, as PEFT starts it. Throws Error("ERR_INVALID_ARGUMENT") for a layer that is none, rows
  /// outside of it, or a name that is taken.
  Adapter(AdapterConfig config, const Parameters& base, uint64_t seed);

  const AdapterConfig& config() const { return config_; }
  Parameters& parameters() { return parameters_; }
  const Parameters& parameters() const { return parameters_; }
  /// Goes up whenever the parameters may have changed.
  uint64_t version() const { return parameters_.version(); }
  /// Those of the target, in `parameters`.
  const Parameter& a(const AdapterTarget& target) const { return parameters_.find(target.name + ".lora_A.weight"); }
  const Parameter& b(const AdapterTarget& target) const { return parameters_.find(target.name + ".lora_B.weight"); }

  /// values += scale·B·A in fp32, for each target in this parameter of the model.   values [out, in]
  void add_to(Context& context, const Parameter& weight, float* values) const;

 private:
  AdapterConfig config_;
  Parameters parameters_;
};

}  // namespace limbeck
