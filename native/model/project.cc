#include "model/project.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <optional>
#include <string>
#include <utility>

#include "core/error.h"
#include "model/narrow_heads.h"
#include "model/residual_basis.h"
#include "ops/linear.h"

namespace limbeck {

namespace {

[[noreturn]] void invalid(const std::string& message) { throw Error("ERR_INVALID_ARGUMENT", message); }

enum class AxisKind {
  kResidual,      // channels of the residual stream
  kGain,          // the same, for a factor of each channel
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

/// Evenly spread places.
std::vector<int64_t> spread(int64_t source, int64_t target) {
  std::vector<int64_t> indices;
  for (int64_t i = 0; i < target; ++i) indices.push_back((2 * i + 1) * source / (2 * target));
  return indices;
}

/// A query head stays with its key-value head where the groups allow it: with another's keys it would match nothing.
std::vector<int64_t> query_heads(const TransformerConfig& source, const TransformerConfig& target,
                                 const std::vector<int64_t>& key_value_heads) {
  const int64_t group = source.num_attention_heads / source.num_key_value_heads;
  const int64_t target_group = target.num_attention_heads / target.num_key_value_heads;
  if (target_group > group) return spread(source.num_attention_heads, target.num_attention_heads);
  std::vector<int64_t> heads;
  for (int64_t kv : key_value_heads) {
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

/// The source's places of the axes that each block has for itself.
struct BlockAxes {
  std::vector<int64_t> qkv, attended, mlp_input, intermediate;
};

BlockAxes block_axes(const TransformerConfig& source, const TransformerConfig& target,
                     const std::vector<int64_t>& key_value_heads, const std::vector<int64_t>& intermediate) {
  BlockAxes axes;
  const std::vector<int64_t> channels = head_channels(source, target.head_dim);
  append_blocks(query_heads(source, target, key_value_heads), source.head_dim, channels, 0, axes.attended);
  const int64_t keys = source.attention_size(), values = keys + source.num_key_value_heads * source.head_dim;
  axes.qkv = axes.attended;
  append_blocks(key_value_heads, source.head_dim, channels, keys, axes.qkv);
  append_blocks(key_value_heads, source.head_dim, channels, values, axes.qkv);
  append_blocks(leading(source.mlp_input_size() / source.intermediate_size), source.intermediate_size, intermediate, 0,
                axes.mlp_input);
  axes.intermediate = intermediate;
  return axes;
}

/// The block of a parameter "layers.3.…", or −1.
int64_t block_of(const std::string& name) {
  static const std::string kPrefix = "layers.";
  return name.compare(0, kPrefix.size(), kPrefix) == 0 ? std::stol(name.substr(kPrefix.size())) : -1;
}

/// The last row before position 0 is read by padding tokens. Rows that the source lacks, which nothing reads, are its
/// first.
std::vector<int64_t> position_indices(const TransformerConfig& source, const TransformerConfig& target) {
  std::vector<int64_t> indices;
  for (int64_t i = 0; i < target.position_rows(); ++i) {
    indices.push_back(std::max<int64_t>(0, i - target.position_offset + source.position_offset));
  }
  return indices;
}

/// The source's values as they are projected: with its adapter's share; for a target without item features with them in
/// the table; for a PCA with heads of the target's channels and, where norms come before the blocks, the gain and bias
/// of a norm in the linear layer that alone reads it. What is left of such a norm commutes with rotations.
class SourceValues {
 public:
  SourceValues(Context& context, const Transformer& source, const TransformerConfig& target, const ProjectionMap& map)
      : context_(context), source_(source), head_dim_(source.config().head_dim) {
    const TransformerConfig& config = source.config();
    folds_features_ = config.item_feature_size > 0 && target.item_feature_size == 0;
    if (map.width == WidthMap::kPca) head_dim_ = target.head_dim;
    if (map.components == nullptr || config.norm_placement != NormPlacement::kBefore ||
        target.norm_placement != NormPlacement::kBefore) {
      return;
    }
    const bool has_bias = config.norm == NormKind::kLayerNorm;
    if (!has_bias || (config.qkv_bias && target.qkv_bias)) folded_.push_back({"attention_norm", "attention.qkv"});
    if (!has_bias || (config.mlp_bias && target.mlp_bias)) folded_.push_back({"mlp_norm", "mlp.input"});
    // A tied table is read by the embedding, too, and no head but BERT's has a bias.
    const bool is_tied = config.tie_word_embeddings || target.tie_word_embeddings;
    if (!has_bias && !is_tied && !config.masked_lm_head) folded_.push_back({"final_norm", "head.output"});
  }

  /// Whether the layer that reads this norm takes over its gain.
  bool folds(const std::string& norm) const {
    return std::any_of(folded_.begin(), folded_.end(),
                       [&](const FoldedNorm& folded) { return prefix_before(norm, folded.norm).has_value(); });
  }

  /// The source's configuration, as far as the shapes of its values go.
  TransformerConfig config() const {
    TransformerConfig config = source_.config();
    config.head_dim = head_dim_;
    return config;
  }

  /// Of a matrix that of() gives.
  int64_t columns(const Parameter& matrix) const {
    return prefix_before(matrix.name, "attention.output.weight") ? config().attention_size() : matrix.shape[1];
  }

  /// In the shape of config(); in `storage` where they are not the source's own.
  const float* of(const Parameter& parameter, std::vector<float>& storage) {
    if (head_dim_ == source_.config().head_dim) return whole(parameter, storage);
    const std::string& name = parameter.name;
    const auto end = [&name](const char* suffix) { return prefix_before(name, suffix).has_value(); };
    if (end("q_norm.weight") || end("k_norm.weight")) {
      storage.clear();
      for (int64_t channel : head_channels(source_.config(), head_dim_)) storage.push_back(own(parameter)[channel]);
      return storage.data();
    }
    if (end("attention.qkv.weight")) return narrow(block_of(name)).qkv.data();
    if (end("attention.qkv.bias")) return narrow(block_of(name)).qkv_bias.data();
    if (end("attention.output.weight")) return narrow(block_of(name)).output.data();
    return whole(parameter, storage);
  }

 private:
  /// With all channels of the heads.
  const float* whole(const Parameter& parameter, std::vector<float>& storage) const {
    const size_t dot = parameter.name.rfind('.');
    const std::string owner = parameter.name.substr(0, dot);
    const bool is_weight = parameter.name.compare(dot, std::string::npos, ".weight") == 0;
    if (folds(owner)) {
      storage.assign(static_cast<size_t>(parameter.count), is_weight ? 1.0f : 0.0f);
      return storage.data();
    }
    for (const FoldedNorm& folded : folded_) {
      if (const std::optional<std::string> prefix = prefix_before(owner, folded.reader)) {
        const std::string norm = *prefix + folded.norm;
        storage = is_weight ? scaled_columns(parameter, norm + ".weight")
                            : with_norm_bias(parameter, owner + ".weight", norm + ".bias");
        return storage.data();
      }
    }
    if (folds_features_ && parameter.name == "embeddings.word") {
      const Arena::Scope scope(context_.scratch);
      const float* table = source_.word_table(context_, context_.scratch);  // v + A·u
      storage.assign(table, table + parameter.count);
      return storage.data();
    }
    if (source_.adapter() == nullptr) return own(parameter);
    storage = effective(parameter);
    return storage.data();
  }

  /// Attention of a block of the source, from 0, with narrower heads.
  const AttentionWeights& narrow(int64_t block) {
    if (block == narrow_block_) return narrow_;
    AttentionWeights whole_heads;
    std::vector<float> storage;
    const auto read = [&](const char* suffix, std::vector<float>& values) {
      const std::string name = "layers." + std::to_string(block) + ".attention." + suffix;
      if (!source_.parameters().has(name)) return;
      const Parameter& parameter = source_.parameters().find(name);
      const float* x = whole(parameter, storage);
      values.assign(x, x + parameter.count);
    };
    read("qkv.weight", whole_heads.qkv);
    read("qkv.bias", whole_heads.qkv_bias);
    read("output.weight", whole_heads.output);
    narrow_ = narrow_heads(context_, source_.config(), whole_heads, head_dim_);
    narrow_block_ = block;
    return narrow_;
  }

  struct FoldedNorm {
    const char *norm, *reader;
  };

  /// "layers.3." of "layers.3.mlp.input" before "mlp.input"
  static std::optional<std::string> prefix_before(const std::string& name, const std::string& end) {
    const bool ends = name.size() >= end.size() && name.compare(name.size() - end.size(), end.size(), end) == 0;
    return ends ? std::optional(name.substr(0, name.size() - end.size())) : std::nullopt;
  }

  const float* own(const Parameter& parameter) const { return source_.parameters().values() + parameter.offset; }
  const float* own(const std::string& name) const { return own(source_.parameters().find(name)); }

  std::vector<float> effective(const Parameter& parameter) const {
    std::vector<float> values(own(parameter), own(parameter) + parameter.count);
    if (source_.adapter() != nullptr) source_.effective_values(context_, parameter, values.data());
    return values;
  }

  /// W·diag(gain)
  std::vector<float> scaled_columns(const Parameter& weight, const std::string& gain_name) const {
    std::vector<float> values = effective(weight);
    const float* gain = own(gain_name);
    for (int64_t i = 0; i < weight.count; ++i) values[static_cast<size_t>(i)] *= gain[i % weight.shape[1]];
    return values;
  }

  /// bias + W·norm_bias
  std::vector<float> with_norm_bias(const Parameter& bias, const std::string& weight_name,
                                    const std::string& norm_bias_name) const {
    std::vector<float> values = effective(bias);
    if (!source_.parameters().has(norm_bias_name)) return values;
    const Parameter& weight = source_.parameters().find(weight_name);
    const std::vector<float> w = effective(weight);
    gemm(context_, weight.shape[0], 1, weight.shape[1], {w.data(), weight.shape[1], 1}, {own(norm_bias_name), 1, 1},
         nullptr, values.data(), 1, true);
    return values;
  }

  Context& context_;
  const Transformer& source_;
  int64_t head_dim_;
  bool folds_features_;
  std::vector<FoldedNorm> folded_;
  AttentionWeights narrow_;
  int64_t narrow_block_ = -1;
};

class Projector {
 public:
  /// @param gain [d_source] what norms of the target have to keep of the source's gains
  Projector(Context& context, const TransformerConfig& source, const TransformerConfig& target,
            const ProjectionMap& map, const std::vector<float>& gain)
      : context_(context), head_(head_channels(source, target.head_dim)), positions_(position_indices(source, target)) {
    const ChannelSelection& chosen = map.channels;
    for (size_t l = 0; l < static_cast<size_t>(target.num_hidden_layers); ++l) {
      blocks_.push_back(
          block_axes(source, target,
                     chosen.key_value_heads.empty() ? spread(source.num_key_value_heads, target.num_key_value_heads)
                                                    : chosen.key_value_heads[l],
                     chosen.intermediate.empty() ? spread(source.intermediate_size, target.intermediate_size)
                                                 : chosen.intermediate[l]));
    }
    if (map.components == nullptr) {
      residual_.indices = gain_.indices =
          chosen.residual.empty() ? spread(source.hidden_size, target.hidden_size) : chosen.residual;
      return;
    }
    rotation_ = residual_basis(context, map.components, target.hidden_size, source.hidden_size, gain.data(),
                               target.norm == NormKind::kLayerNorm);
    // A gain G would become P·G·Pᵀ, of which a norm can hold the diagonal. Fewer channels hold the same length, so that
    // a norm makes them larger by the root of the ratio.
    const float scale = std::sqrt(static_cast<float>(target.hidden_size) / static_cast<float>(source.hidden_size));
    for (float value : rotation_) gain_rotation_.push_back(value * value / scale);
    residual_ = {leading(source.hidden_size), rotation_.data()};
    gain_ = {leading(source.hidden_size), gain_rotation_.data()};
  }

  /// source [.., source_columns] → values [num_rows, num_columns]. `block` of the target, from 0; −1 = none.
  void project(const ParameterAxes& axes, int64_t block, const float* source, int64_t source_columns, int64_t num_rows,
               int64_t num_columns, float* values) const {
    const Axis rows = axis(axes.rows, block, num_rows), columns = axis(axes.columns, block, num_columns);
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
  Axis axis(AxisKind kind, int64_t block, int64_t target_size) const {
    const auto of_block = [&]() -> const BlockAxes& { return blocks_[static_cast<size_t>(block)]; };
    switch (kind) {
      case AxisKind::kResidual:
        return residual_;
      case AxisKind::kGain:
        return gain_;
      case AxisKind::kQkv:
        return {of_block().qkv};
      case AxisKind::kAttended:
        return {of_block().attended};
      case AxisKind::kMlpInput:
        return {of_block().mlp_input};
      case AxisKind::kIntermediate:
        return {of_block().intermediate};
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
  std::vector<BlockAxes> blocks_;  // of the target
  std::vector<int64_t> head_, positions_;
  Axis residual_, gain_;
  std::vector<float> rotation_;       // kPca: P, [d, d_source]
  std::vector<float> gain_rotation_;  // √(d_source/d)·P∘P
};

void check_not_wider(const char* name, int64_t source, int64_t target) {
  if (target > source) {
    invalid("The target's " + std::string(name) + " of " + std::to_string(target) + " is more than the source's " +
            std::to_string(source) + ". A projection only shrinks: choose a smaller target.");
  }
}

void check_channels(const char* name, const std::vector<int64_t>& channels, int64_t source, int64_t target) {
  if (channels.empty()) return;
  if (static_cast<int64_t>(channels.size()) != target) {
    invalid("Expected " + std::to_string(target) + " places of " + name + ", got " + std::to_string(channels.size()) +
            ".");
  }
  int64_t before = -1;
  for (int64_t channel : channels) {
    if (channel <= before || channel >= source) {
      invalid("Expected places of " + std::string(name) + " that ascend from 0 to " + std::to_string(source - 1) +
              ", got " + std::to_string(channel) + " after " + std::to_string(before) + ".");
    }
    before = channel;
  }
}

void check_channels(const char* name, const std::vector<std::vector<int64_t>>& channels, int64_t num_layers,
                    int64_t source, int64_t target) {
  if (!channels.empty() && static_cast<int64_t>(channels.size()) != num_layers) {
    invalid("Expected places of " + std::string(name) + " for each of " + std::to_string(num_layers) + " blocks, got " +
            std::to_string(channels.size()) + ".");
  }
  for (const std::vector<int64_t>& block : channels) {
    if (block.empty()) invalid("Expected places of " + std::string(name) + " for each block, got none.");
    check_channels(name, block, source, target);
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
  if (map.width == WidthMap::kPca && map.components == nullptr && target.hidden_size < source.hidden_size) {
    invalid("A projection by pca needs components [" + std::to_string(target.hidden_size) + ", " +
            std::to_string(source.hidden_size) + "].");
  }
  for (int64_t i = 0; map.components != nullptr && i < target.hidden_size * source.hidden_size; ++i) {
    if (!std::isfinite(map.components[i])) {
      invalid("Expected components of finite numbers, got " + std::to_string(map.components[i]) + " in row " +
              std::to_string(i / source.hidden_size) + ".");
    }
  }
}

void check_selection(const TransformerConfig& source, const TransformerConfig& target, const ProjectionMap& map) {
  const ChannelSelection& chosen = map.channels;
  if (!chosen.residual.empty() && map.width != WidthMap::kSelection)
    invalid("Channels of the residual stream are chosen with the width map 'selection' alone.");
  check_channels("hiddenSize", chosen.residual, source.hidden_size, target.hidden_size);
  check_channels("intermediateSize", chosen.intermediate, target.num_hidden_layers, source.intermediate_size,
                 target.intermediate_size);
  check_channels("numKeyValueHeads", chosen.key_value_heads, target.num_hidden_layers, source.num_key_value_heads,
                 target.num_key_value_heads);
}

/// The source's name of a target parameter: "layers.0.…" becomes the mapped block's.
std::string source_name(const std::string& name, const ProjectionMap& map) {
  const int64_t block = block_of(name);
  if (block < 0) return name;
  const std::string suffix = name.substr(name.find('.', sizeof("layers.") - 1));
  return "layers." + std::to_string(map.layers[static_cast<size_t>(block)] - 1) + suffix;
}

}  // namespace

AxisSums sum_by_axis(const TransformerConfig& config, const Parameters& parameters, const float* values) {
  const size_t L = static_cast<size_t>(config.num_hidden_layers);
  const int64_t query_size = config.attention_size(), key_size = config.num_key_value_heads * config.head_dim;
  const int64_t group_size = query_size / config.num_key_value_heads;  // columns of the query heads of one group
  AxisSums sums{
      std::vector<double>(static_cast<size_t>(config.hidden_size)),
      std::vector<std::vector<double>>(L, std::vector<double>(static_cast<size_t>(config.intermediate_size))),
      std::vector<std::vector<double>>(L, std::vector<double>(static_cast<size_t>(config.num_key_value_heads))),
      std::vector<double>(L)};
  const auto add = [&](AxisKind kind, int64_t block, int64_t place, double value) {
    const size_t b = static_cast<size_t>(block);
    switch (kind) {
      case AxisKind::kResidual:
      case AxisKind::kGain:
        sums.residual[static_cast<size_t>(place)] += value;
        break;
      case AxisKind::kQkv:
        sums.key_value_heads[b][static_cast<size_t>(
            place < query_size ? place / group_size : (place - query_size) % key_size / config.head_dim)] += value;
        break;
      case AxisKind::kAttended:
        sums.key_value_heads[b][static_cast<size_t>(place / group_size)] += value;
        break;
      case AxisKind::kMlpInput:
      case AxisKind::kIntermediate:
        sums.intermediate[b][static_cast<size_t>(place % config.intermediate_size)] += value;
        break;
      case AxisKind::kHead:
      case AxisKind::kPositions:
      case AxisKind::kLeading:
        break;
    }
  };
  for (const Parameter& parameter : parameters.list()) {
    const ParameterAxes& axes = parameter_axes(parameter.name);
    const int64_t block = block_of(parameter.name), rows = parameter.shape[0], columns = parameter.count / rows;
    const float* x = values + parameter.offset;  // [rows, columns]
    std::vector<double> row_sums(static_cast<size_t>(rows)), column_sums(static_cast<size_t>(columns));
    double total = 0;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) {
        row_sums[static_cast<size_t>(r)] += x[r * columns + c];
        column_sums[static_cast<size_t>(c)] += x[r * columns + c];
      }
      total += row_sums[static_cast<size_t>(r)];
    }
    for (int64_t r = 0; r < rows; ++r) add(axes.rows, block, r, row_sums[static_cast<size_t>(r)]);
    for (int64_t c = 0; c < columns; ++c) add(axes.columns, block, c, column_sums[static_cast<size_t>(c)]);
    if (block >= 0) sums.layers[static_cast<size_t>(block)] += total;
  }
  return sums;
}

namespace {

/// [d_source], over the target's norms of the residual stream whose gains no layer takes over; zeros without one.
std::vector<float> mean_gain(const Transformer& source, const Parameters& target, const ProjectionMap& map,
                             const SourceValues& source_values) {
  std::vector<float> sum(static_cast<size_t>(source.config().hidden_size));
  float count = 0;
  for (const Parameter& parameter : target.list()) {
    const std::string name = source_name(parameter.name, map);
    if (parameter_axes(name).rows != AxisKind::kGain || !source.parameters().has(name)) continue;
    if (source_values.folds(name.substr(0, name.rfind('.')))) continue;
    const float* gain = source.parameters().values() + source.parameters().find(name).offset;
    for (float& value : sum) value += *gain++;
    ++count;
  }
  for (float& value : sum) value /= std::max(count, 1.0f);
  return sum;
}

}  // namespace

std::vector<ProjectedParameter> project(Context& any_precision, const Transformer& source,
                                        const TransformerConfig& target, const ProjectionMap& map) {
  check_map(source.config(), target, map);
  check_selection(source.config(), target, map);
  Context context{any_precision.pool, any_precision.scratch};  // weights are not rounded, and rotations stay such
  const Parameters target_parameters(target);
  SourceValues source_values(context, source, target, map);
  const TransformerConfig from_config = source_values.config();
  const Projector projector(context, from_config, target, map,
                            mean_gain(source, target_parameters, map, source_values));
  std::vector<ProjectedParameter> result;
  for (const Parameter& parameter : target_parameters.list()) {
    const std::string name = source_name(parameter.name, map);
    if (!source.parameters().has(name)) continue;
    if (name == "item_projection.weight" && source.config().item_feature_size != target.item_feature_size) continue;
    const Parameter& from = source.parameters().find(name);
    const bool is_vector = parameter.shape.size() == 1;
    ProjectedParameter projected{parameter.name, std::vector<float>(static_cast<size_t>(parameter.count))};
    std::vector<float> storage;
    projector.project(parameter_axes(name), block_of(parameter.name), source_values.of(from, storage),
                      is_vector ? 1 : source_values.columns(from), parameter.shape[0],
                      is_vector ? 1 : parameter.shape[1], projected.values.data());
    result.push_back(std::move(projected));
  }
  return result;
}

}  // namespace limbeck
