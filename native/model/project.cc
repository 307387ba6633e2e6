#include "model/project.h"

#include <cstring>
#include <numeric>
#include <utility>

#include "core/error.h"
#include "ops/linear.h"

namespace limbeck {

namespace {

[[noreturn]] void invalid(const std::string& message) { throw Error("ERR_INVALID_ARGUMENT", message); }

enum class AxisKind {
  kResidual,      // channels of the residual stream
  kGain,          // the same, for a factor of each channel: it turns by P∘P
  kQkv,           // rows: query heads, key heads, value heads
  kAttended,      // channels of the query heads, side by side
  kMlpInput,      // rows: intermediate channels, twice for SwiGLU (gate, up)
  kIntermediate,  // intermediate channels
  kHead,          // channels of one head
  kPositions,     // learned positions, from position 0 on
  kLeading,       // tokens, types, item features: the first ones; also the one column of a vector
};

struct ParameterAxes {
  const char* suffix;
  AxisKind rows, columns;
};

constexpr ParameterAxes kParameterAxes[] = {
    {"embeddings.word", AxisKind::kLeading, AxisKind::kResidual},
    {"embeddings.position", AxisKind::kPositions, AxisKind::kResidual},
    {"embeddings.token_type", AxisKind::kLeading, AxisKind::kResidual},
    {"attention.q_norm.weight", AxisKind::kHead, AxisKind::kLeading},
    {"attention.k_norm.weight", AxisKind::kHead, AxisKind::kLeading},
    {"norm.weight", AxisKind::kGain, AxisKind::kLeading},
    {"norm.bias", AxisKind::kResidual, AxisKind::kLeading},
    {"attention.qkv.weight", AxisKind::kQkv, AxisKind::kResidual},
    {"attention.qkv.bias", AxisKind::kQkv, AxisKind::kLeading},
    {"attention.output.weight", AxisKind::kResidual, AxisKind::kAttended},
    {"attention.output.bias", AxisKind::kResidual, AxisKind::kLeading},
    {"mlp.input.weight", AxisKind::kMlpInput, AxisKind::kResidual},
    {"mlp.input.bias", AxisKind::kMlpInput, AxisKind::kLeading},
    {"mlp.output.weight", AxisKind::kResidual, AxisKind::kIntermediate},
    {"mlp.output.bias", AxisKind::kResidual, AxisKind::kLeading},
    // Its output meets the output table, so it lives in the residual channels too.
    {"head.dense.weight", AxisKind::kResidual, AxisKind::kResidual},
    {"head.dense.bias", AxisKind::kResidual, AxisKind::kLeading},
    {"head.output.weight", AxisKind::kLeading, AxisKind::kResidual},
    {"head.bias", AxisKind::kLeading, AxisKind::kLeading},
    {"item_projection.weight", AxisKind::kResidual, AxisKind::kLeading},
};

const ParameterAxes& parameter_axes(const std::string& name) {
  for (const ParameterAxes& axes : kParameterAxes) {
    const size_t length = std::strlen(axes.suffix);
    if (name.size() >= length && name.compare(name.size() - length, length, axes.suffix) == 0) return axes;
  }
  throw Error("ERR_INTERNAL", "No rule projects the parameter '" + name + "'.");
}

/// Which places of a source axis are read, and what turns them: target = rotation·source[indices].
struct Axis {
  std::vector<int64_t> indices;
  const float* rotation = nullptr;  // [target size, indices], or null = as they are
};

std::vector<int64_t> leading(int64_t count) {
  std::vector<int64_t> indices(static_cast<size_t>(count));
  std::iota(indices.begin(), indices.end(), int64_t{0});
  return indices;
}

/// Evenly spread places. The second half of an even axis lands on the second half of an even source in the same way as
/// the first on the first, so a selection of a head's channels keeps the pairs (j, j + head_dim/2) that rotary turns.
std::vector<int64_t> spread(int64_t source, int64_t target) {
  std::vector<int64_t> indices;
  for (int64_t i = 0; i < target; ++i) indices.push_back((2 * i + 1) * source / (2 * target));
  return indices;
}

/// A query head stays with its key-value head where the groups allow it: with another's keys it would match nothing.
std::vector<int64_t> query_heads(const TransformerConfig& source, const TransformerConfig& target) {
  const int64_t group = source.num_attention_heads / source.num_key_value_heads;
  const int64_t target_group = target.num_attention_heads / target.num_key_value_heads;
  if (target_group > group) return spread(source.num_attention_heads, target.num_attention_heads);
  std::vector<int64_t> heads;
  for (int64_t kv : spread(source.num_key_value_heads, target.num_key_value_heads)) {
    for (int64_t query : spread(group, target_group)) heads.push_back(kv * group + query);
  }
  return heads;
}

/// Appends `offset` + every pair (block, place), blocks of `block_size` places.
void append_blocks(const std::vector<int64_t>& blocks, int64_t block_size, const std::vector<int64_t>& places,
                   int64_t offset, std::vector<int64_t>& indices) {
  for (int64_t block : blocks) {
    for (int64_t place : places) indices.push_back(offset + block * block_size + place);
  }
}

std::vector<int64_t> attended_indices(const TransformerConfig& source, const TransformerConfig& target) {
  std::vector<int64_t> indices;
  append_blocks(query_heads(source, target), source.head_dim, spread(source.head_dim, target.head_dim), 0, indices);
  return indices;
}

std::vector<int64_t> qkv_indices(const TransformerConfig& source, const TransformerConfig& target) {
  std::vector<int64_t> indices = attended_indices(source, target);
  const std::vector<int64_t> heads = spread(source.num_key_value_heads, target.num_key_value_heads);
  const std::vector<int64_t> channels = spread(source.head_dim, target.head_dim);
  const int64_t keys = source.attention_size(), values = keys + source.num_key_value_heads * source.head_dim;
  append_blocks(heads, source.head_dim, channels, keys, indices);
  append_blocks(heads, source.head_dim, channels, values, indices);
  return indices;
}

std::vector<int64_t> mlp_input_indices(const TransformerConfig& source, const TransformerConfig& target) {
  std::vector<int64_t> indices;
  const std::vector<int64_t> channels = spread(source.intermediate_size, target.intermediate_size);
  append_blocks(leading(source.mlp_input_size() / source.intermediate_size), source.intermediate_size, channels, 0,
                indices);
  return indices;
}

/// Rows before position 0 belong to padding, which no model learns from: they come from the source's first such row.
std::vector<int64_t> position_indices(const TransformerConfig& source, const TransformerConfig& target) {
  std::vector<int64_t> indices;
  for (int64_t i = 0; i < target.position_rows(); ++i) {
    indices.push_back(i < target.position_offset ? 0 : i - target.position_offset + source.position_offset);
  }
  return indices;
}

class Projector {
 public:
  Projector(Context& context, const TransformerConfig& source, const TransformerConfig& target,
            const ProjectionMap& map)
      : context_(context),
        qkv_(qkv_indices(source, target)),
        attended_(attended_indices(source, target)),
        mlp_input_(mlp_input_indices(source, target)),
        intermediate_(spread(source.intermediate_size, target.intermediate_size)),
        head_(spread(source.head_dim, target.head_dim)),
        positions_(position_indices(source, target)) {
    if (map.width == WidthMap::kSelection) {
      residual_.indices = gain_.indices = spread(source.hidden_size, target.hidden_size);
      return;
    }
    residual_ = gain_ = {leading(source.hidden_size), map.components};
    squares_.assign(map.components, map.components + target.hidden_size * source.hidden_size);
    for (float& value : squares_) value *= value;
    gain_.rotation = squares_.data();
  }

  /// source [.., source_columns] → values [num_rows, num_columns]
  void project(const ParameterAxes& axes, const float* source, int64_t source_columns, int64_t num_rows,
               int64_t num_columns, float* values) const {
    const Axis rows = axis(axes.rows, num_rows), columns = axis(axes.columns, num_columns);
    const auto r = static_cast<int64_t>(rows.indices.size()), c = static_cast<int64_t>(columns.indices.size());
    const Arena::Scope scope(context_.scratch);
    const bool turns_rows = rows.rotation != nullptr, turns_columns = columns.rotation != nullptr;
    float* selected = turns_rows || turns_columns ? context_.scratch.allocate<float>(r * c) : values;  // [r, c]
    context_.pool.parallel_for(r, [&](int64_t i, int) {
      const float* row = source + rows.indices[static_cast<size_t>(i)] * source_columns;
      for (int64_t j = 0; j < c; ++j) selected[i * c + j] = row[columns.indices[static_cast<size_t>(j)]];
    });
    float* turned = selected;  // [r, num_columns]
    if (turns_columns) {
      turned = turns_rows ? context_.scratch.allocate<float>(r * num_columns) : values;
      gemm(context_, r, num_columns, c, {selected, c, 1}, {columns.rotation, 1, c}, nullptr, turned, num_columns,
           false);
    }
    if (turns_rows) {
      gemm(context_, num_rows, num_columns, r, {rows.rotation, r, 1}, {turned, num_columns, 1}, nullptr, values,
           num_columns, false);
    }
  }

 private:
  Axis axis(AxisKind kind, int64_t target_size) const {
    switch (kind) {
      case AxisKind::kResidual:
        return residual_;
      case AxisKind::kGain:
        return gain_;
      case AxisKind::kQkv:
        return {qkv_};
      case AxisKind::kAttended:
        return {attended_};
      case AxisKind::kMlpInput:
        return {mlp_input_};
      case AxisKind::kIntermediate:
        return {intermediate_};
      case AxisKind::kHead:
        return {head_};
      case AxisKind::kPositions:
        return {positions_};
      case AxisKind::kLeading:
        break;
    }
    return {leading(target_size)};
  }

  Context& context_;
  std::vector<int64_t> qkv_, attended_, mlp_input_, intermediate_, head_, positions_;
  Axis residual_, gain_;
  std::vector<float> squares_;  // P∘P
};

void check_not_wider(const char* name, int64_t source, int64_t target) {
  if (target > source) {
    invalid("The target's " + std::string(name) + " of " + std::to_string(target) + " is more than the source's " +
            std::to_string(source) + ". A projection only shrinks: choose a smaller target.");
  }
}

void check_map(const TransformerConfig& source, const TransformerConfig& target, const ProjectionMap& map) {
  check_config(target);
  if (static_cast<int64_t>(map.layers.size()) != target.num_hidden_layers) {
    invalid("Expected a layer map of " + std::to_string(target.num_hidden_layers) + " entries, got " +
            std::to_string(map.layers.size()) + ".");
  }
  for (int64_t layer : map.layers) {
    if (layer < 1 || layer > source.num_hidden_layers) {
      invalid("The layer map names block " + std::to_string(layer) + " of " + std::to_string(source.num_hidden_layers) +
              ".");
    }
  }
  check_not_wider("hiddenSize", source.hidden_size, target.hidden_size);
  check_not_wider("numAttentionHeads", source.num_attention_heads, target.num_attention_heads);
  check_not_wider("numKeyValueHeads", source.num_key_value_heads, target.num_key_value_heads);
  check_not_wider("headDim", source.head_dim, target.head_dim);
  check_not_wider("intermediateSize", source.intermediate_size, target.intermediate_size);
  check_not_wider("vocabSize", source.vocab_size, target.vocab_size);
  if (source.positions == PositionKind::kLearned && target.positions == PositionKind::kLearned) {
    check_not_wider("maxPositionEmbeddings", source.max_position_embeddings, target.max_position_embeddings);
  }
  if (source.type_vocab_size > 0) check_not_wider("typeVocabSize", source.type_vocab_size, target.type_vocab_size);
  if ((source.hidden_act == Activation::kSwiglu) != (target.hidden_act == Activation::kSwiglu)) {
    invalid("A SwiGLU feed-forward and one without a gate do not fill each other.");
  }
  if (map.width == WidthMap::kPca && map.components == nullptr) {
    invalid("A projection by pca needs components [" + std::to_string(target.hidden_size) + ", " +
            std::to_string(source.hidden_size) + "].");
  }
}

/// The source's name of a target parameter: "layers.0.…" becomes the mapped block's.
std::string source_name(const std::string& name, const ProjectionMap& map) {
  static const std::string kPrefix = "layers.";
  if (name.compare(0, kPrefix.size(), kPrefix) != 0) return name;
  const size_t end = name.find('.', kPrefix.size());
  const size_t layer = std::stoul(name.substr(kPrefix.size(), end - kPrefix.size()));
  return kPrefix + std::to_string(map.layers[layer] - 1) + name.substr(end);
}

}  // namespace

std::vector<ProjectedParameter> project(Context& context, const Transformer& source, const TransformerConfig& target,
                                        const ProjectionMap& map) {
  check_map(source.config(), target, map);
  const Projector projector(context, source.config(), target, map);
  const Parameters target_parameters(target);
  std::vector<ProjectedParameter> result;
  for (const Parameter& parameter : target_parameters.list()) {
    const std::string name = source_name(parameter.name, map);
    if (!source.parameters().has(name)) continue;
    if (name == "item_projection.weight" && source.config().item_feature_size != target.item_feature_size) continue;
    const Parameter& from = source.parameters().find(name);
    const bool is_vector = parameter.shape.size() == 1;
    ProjectedParameter projected{parameter.name, std::vector<float>(static_cast<size_t>(parameter.count))};
    projector.project(parameter_axes(name), source.parameters().values() + from.offset, is_vector ? 1 : from.shape[1],
                      parameter.shape[0], is_vector ? 1 : parameter.shape[1], projected.values.data());
    result.push_back(std::move(projected));
  }
  return result;
}

}  // namespace limbeck
