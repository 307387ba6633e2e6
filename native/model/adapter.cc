#include "model/adapter.h"

#include <array>
#include <cmath>
#include <utility>

#include "core/error.h"
#include "core/rng.h"
#include "ops/gemm.h"

namespace limbeck {
namespace {

constexpr std::array<const char*, 4> kLinears = {"attention.qkv", "attention.output", "mlp.input", "mlp.output"};

[[noreturn]] void invalid(const std::string& message) { throw Error("ERR_INVALID_ARGUMENT", message); }

/// The weight of a target's layer, after checks.
const Parameter& weight_of(const AdapterTarget& target, const Parameters& base) {
  const size_t block_end = target.linear.find('.', sizeof("layers.") - 1);
  bool is_linear = target.linear.rfind("layers.", 0) == 0 && block_end != std::string::npos;
  if (is_linear) {
    const std::string name = target.linear.substr(block_end + 1);
    is_linear = false;
    for (const char* linear : kLinears) is_linear = is_linear || name == linear;
  }
  if (!is_linear || !base.has(target.linear + ".weight")) {
    invalid("An adapter's '" + target.name + "' names '" + target.linear + "', which is no linear layer of a block.");
  }
  const Parameter& weight = base.find(target.linear + ".weight");
  const int64_t rows = weight.shape[0];
  if (target.first_row < 0 || target.num_rows < 1 || target.num_rows > rows ||
      target.first_row > rows - target.num_rows) {
    invalid("An adapter's '" + target.name + "' has rows " + std::to_string(target.first_row) + " to " +
            std::to_string(target.first_row + target.num_rows) + " of the " + std::to_string(rows) + " of '" +
            weight.name + "'.");
  }
  return weight;
}

ParameterLayout layout_of(const AdapterConfig& config, const Parameters& base) {
  if (config.rank < 1) invalid("Expected an adapter of a rank of at least 1, got " + std::to_string(config.rank) + ".");
  if (!std::isfinite(config.scale) || !(config.dropout >= 0 && config.dropout < 1)) {
    invalid("Expected an adapter with a finite scale and a dropout in [0, 1).");
  }
  if (config.targets.empty()) invalid("Expected an adapter of at least one layer, got none.");
  ParameterLayout layout;
  for (const AdapterTarget& target : config.targets) {
    const Parameter& weight = weight_of(target, base);
    layout.add(target.name + ".lora_A.weight", {config.rank, weight.shape[1]});
    layout.add(target.name + ".lora_B.weight", {target.num_rows, config.rank});
  }
  for (const Parameter& parameter : layout.list) {
    if (base.has(parameter.name)) invalid("The model has a parameter '" + parameter.name + "' of its own.");
  }
  return layout;
}

}  // namespace

Adapter::Adapter(AdapterConfig config, const Parameters& base, uint64_t seed)
    : config_(std::move(config)), parameters_(layout_of(config_, base)) {
  uint64_t stream = 0;
  for (const AdapterTarget& target : config_.targets) {
    const Parameter& parameter = a(target);  // [rank, in]
    const Philox random{seed, stream++};
    const float bound = 1.0f / std::sqrt(static_cast<float>(parameter.shape[1]));
    float* values = parameters_.values() + parameter.offset;
    for (int64_t i = 0; i < parameter.count; ++i) {
      values[i] = bound * (2 * random.uniform(static_cast<uint64_t>(i)) - 1);
    }
  }
}

void Adapter::add_to(Context& context, const Parameter& weight, float* values) const {
  Context exact{context.pool, context.scratch};
  for (const AdapterTarget& target : config_.targets) {
    if (target.linear + ".weight" != weight.name) continue;
    const Arena::Scope scope(context.scratch);
    const int64_t in = weight.shape[1], rank = config_.rank;
    const float* left = parameters_.values() + b(target).offset;              // [num_rows, rank]
    float* scaled = context.scratch.allocate<float>(target.num_rows * rank);  // [num_rows, rank]
    for (int64_t i = 0; i < target.num_rows * rank; ++i) scaled[i] = config_.scale * left[i];
    gemm(exact, target.num_rows, in, rank, {scaled, rank, 1}, {parameters_.values() + a(target).offset, in, 1}, nullptr,
         values + target.first_row * in, in, true);
  }
}

}  // namespace limbeck
