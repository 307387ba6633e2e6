#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/transformer.h"

namespace limbeck {

enum class WidthMap { kSelection, kPca };

/// Places of the source's axes that a selection keeps, each list ascending. What is empty is spread evenly.
struct ChannelSelection {
  std::vector<int64_t> residual;                      // [d]
  std::vector<std::vector<int64_t>> intermediate;     // [L][I], a list for each target block
  std::vector<std::vector<int64_t>> key_value_heads;  // [L][KV]; query heads go with theirs
};

/// How the axes of a smaller model are filled from a larger one of the same kind.
struct ProjectionMap {
  std::vector<int64_t> layers;  // entry i = source block (from 1) that fills block i + 1
  WidthMap width = WidthMap::kSelection;
  const float* components = nullptr;  // kPca: [d, d_source], orthonormal rows; null where d is d_source
  ChannelSelection channels = {};     // of kPca, not the residual ones
};

struct ProjectedParameter {
  std::string name;
  std::vector<float> values;  // in the target's shape
};

/// Sums of a value of every parameter (such as its mean squared gradient) over all that belongs to a place of an axis.
/// Query heads count for their key-value head; norms and embeddings for the residual stream.
struct AxisSums {
  std::vector<double> residual;                      // [d]
  std::vector<std::vector<double>> intermediate;     // [L][I]
  std::vector<std::vector<double>> key_value_heads;  // [L][KV]
  std::vector<double> layers;                        // [L] all parameters of a block
};

/// `values` in the layout of Parameters.
AxisSums sum_by_axis(const TransformerConfig& config, const Parameters& parameters, const float* values);

/// φ(source): a value for every parameter of the target that the source has too, in the target's shapes; neither model
/// changes. In fp32 whatever the context's precision. With equal shapes and the identity layer map it is the source
/// itself, bit for bit, by selection or by PCA without components.
///
/// Selection takes the channels given, or evenly spread ones of an axis: ⌊(2i + 1)·source/(2·target)⌋ — whole heads
/// first, then channels of a head, as head_channels() says. Query heads are selected inside the group of each selected
/// key-value head, or among all query heads when the target's groups are larger than the source's. SwiGLU's gate and up
/// rows are selected alike.
///
/// PCA turns the residual axis by P: weights that read it become W·Pᵀ, those that write it P·W, biases P·bias. Heads of
/// fewer channels are those of narrow_heads(); other axes are selected. Where norms come before the blocks, their gains
/// and biases go into the layers that read them first, so that nothing is lost but what P drops (Ashkboos et al. 2024,
/// arXiv:2401.15024, §3.2). Other gains, among them the last one of a tied table, become √(d_source/d)·P∘P·gain: the
/// rows of P are turned among themselves, which changes nothing that they keep, so that P·diag(mean of such gains)·Pᵀ
/// is diagonal; and for layer norms so that what they remove of the source's channels, the mean, or else the last row
/// lies along the mean of the target's.
///
/// Vocabulary, positions and types are cut to the target's. A target without item features has the source's in its
/// table; a projection of item features of another width is left out. Throws Error("ERR_INVALID_ARGUMENT") for channels
/// that do not ascend, are out of range or too few, a layer map of the wrong length or range, an axis of the target
/// that is longer than the source's, SwiGLU against another activation, or PCA of a wider source without components.
std::vector<ProjectedParameter> project(Context& context, const Transformer& source, const TransformerConfig& target,
                                        const ProjectionMap& map);

}  // namespace limbeck
