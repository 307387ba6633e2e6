#include "cuda/emulator/cublas_lt.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace limbeck::cuda::lt {

struct HandleOpaque {};
struct DescOpaque {
  int32_t transpose_a = kNone, transpose_b = kNone, bias_type = -1;
  uint32_t epilogue = kEpilogueDefault;
  const void* bias = nullptr;
  void* aux = nullptr;
  int64_t aux_leading_dimension = 0;
};
struct LayoutOpaque {
  DataType type;
  int64_t num_rows, num_columns, leading_dimension;
};
struct PreferenceOpaque {
  uint64_t max_workspace_bytes = 0;
  uint32_t schemes = 7, alignments[4] = {256, 256, 256, 256};
};

}  // namespace limbeck::cuda::lt

namespace limbeck::cuda::emulator {
namespace {

using namespace lt;

/// What an algorithm's data hold. All give the same bits.
struct AlgorithmConfig {
  int32_t id;
  uint32_t tile;
  int32_t split_k;
  uint32_t reduction_scheme, custom_option;
  uint16_t cluster;
  uint32_t workspace_bytes;
};
static_assert(sizeof(AlgorithmConfig) <= sizeof(Algorithm));
constexpr int32_t kId = 66;
constexpr Tile kOfferedTile = kTile256x128;
AlgorithmConfig last_algorithm;

AlgorithmConfig config_of(const Algorithm& algorithm) {
  AlgorithmConfig config;
  std::memcpy(&config, &algorithm, sizeof(config));
  return config;
}

/// Calls function(field) with the field of the attribute.
template <typename Config, typename Function>
Status with_field(Config& config, AlgorithmAttribute attribute, Function&& function) {
  switch (attribute) {
    case kAlgorithmId:
      return function(config.id);
    case kTileId:
      return function(config.tile);
    case kSplitKNumber:
      return function(config.split_k);
    case kReductionScheme:
      return function(config.reduction_scheme);
    case kCustomOption:
      return function(config.custom_option);
    case kClusterShapeId:
      return function(config.cluster);
  }
  return kInvalidValue;
}

Status get_algorithm_attribute(const Algorithm* algorithm, AlgorithmAttribute attribute, void* value, size_t size_bytes,
                               size_t* written_bytes) {
  const AlgorithmConfig config = config_of(*algorithm);
  return with_field(config, attribute, [&](const auto& field) {
    if (size_bytes != sizeof(field)) return kInvalidValue;
    std::memcpy(value, &field, size_bytes);
    *written_bytes = size_bytes;
    return kSuccess;
  });
}

Status set_algorithm_attribute(Algorithm* algorithm, AlgorithmAttribute attribute, const void* value,
                               size_t size_bytes) {
  AlgorithmConfig config = config_of(*algorithm);
  const Status status = with_field(config, attribute, [&](auto& field) {
    if (size_bytes != sizeof(field)) return kInvalidValue;
    std::memcpy(&field, value, size_bytes);
    return kSuccess;
  });
  std::memcpy(algorithm, &config, sizeof(config));
  return status;
}

Status set_desc(Desc desc, DescAttribute attribute, const void* value, size_t size_bytes) {
  const auto set = [&](auto& field) {
    if (size_bytes != sizeof(field)) return kInvalidValue;
    std::memcpy(&field, value, size_bytes);
    return kSuccess;
  };
  switch (attribute) {
    case kTransposeA:
      return set(desc->transpose_a);
    case kTransposeB:
      return set(desc->transpose_b);
    case kEpilogue:
      return set(desc->epilogue);
    case kBiasPointer:
      return set(desc->bias);
    case kAuxPointer:
      return set(desc->aux);
    case kAuxLeadingDimension:
      return set(desc->aux_leading_dimension);
    case kBiasDataType:
      return set(desc->bias_type);
  }
  return kInvalidValue;
}

Status set_preference(Preference preference, PreferenceAttribute attribute, const void* value, size_t size_bytes) {
  if (attribute == kMaxWorkspaceBytes && size_bytes == 8) {
    std::memcpy(&preference->max_workspace_bytes, value, 8);
  } else if (attribute == kReductionSchemeMask && size_bytes == 4) {
    std::memcpy(&preference->schemes, value, 4);
  } else if (attribute >= kMinAlignmentA && attribute <= kMinAlignmentD && size_bytes == 4) {
    std::memcpy(&preference->alignments[attribute - kMinAlignmentA], value, 4);
  } else {
    return kInvalidValue;
  }
  return kSuccess;
}

bool has_bias(uint32_t epilogue) {
  return epilogue == kEpilogueBias || epilogue == kEpilogueGeluBias || epilogue == kEpilogueGeluAuxBias;
}
bool writes_aux(uint32_t epilogue) { return epilogue == kEpilogueGeluAux || epilogue == kEpilogueGeluAuxBias; }
bool has_gelu(uint32_t epilogue) {
  return epilogue == kEpilogueGelu || epilogue == kEpilogueGeluBias || writes_aux(epilogue);
}

int64_t item_bytes(DataType type) { return type == kFloat32 ? 4 : 2; }

/// The shapes agree, and D and C are of one shape.
bool is_valid(Desc desc, Layout a, Layout b, Layout c, Layout d) {
  const bool ta = desc->transpose_a == kTranspose, tb = desc->transpose_b == kTranspose;
  const int64_t m = ta ? a->num_columns : a->num_rows, k = ta ? a->num_rows : a->num_columns;
  const int64_t n = tb ? b->num_rows : b->num_columns, k_of_b = tb ? b->num_columns : b->num_rows;
  for (Layout layout : {a, b, c, d}) {
    if (layout->num_rows <= 0 || layout->num_columns <= 0 || layout->leading_dimension < layout->num_rows) return false;
  }
  const uint32_t epilogue = desc->epilogue;
  const bool has_aux = writes_aux(epilogue) || epilogue == kEpilogueDGelu;
  if (epilogue != kEpilogueDefault && !has_bias(epilogue) && !has_gelu(epilogue) && !has_aux) return false;
  if (has_aux &&
      (desc->aux == nullptr || desc->aux_leading_dimension < d->num_rows || desc->aux_leading_dimension % 8 != 0)) {
    return false;
  }
  return k == k_of_b && m == d->num_rows && n == d->num_columns && m == c->num_rows && n == c->num_columns &&
         a->type == b->type && c->type == d->type && (a->type == kBFloat16 || d->type == kFloat32);
}

Status get_heuristic(Handle, Desc desc, Layout a, Layout b, Layout c, Layout d, Preference preference,
                     int num_requested, HeuristicResult* results, int* num_results) {
  *num_results = 0;
  if (!is_valid(desc, a, b, c, d)) return kInvalidValue;
  if (d->type == kFloat32 && (has_gelu(desc->epilogue) || desc->epilogue == kEpilogueDGelu)) return kNotSupported;
  for (Layout layout : {a, b, d}) {
    if (layout->type == kBFloat16 && layout->leading_dimension * item_bytes(layout->type) % 16 != 0) {
      return kNotSupported;
    }
  }
  for (uint32_t alignment : preference->alignments) {
    if (alignment < static_cast<uint32_t>(item_bytes(a->type))) return kNotSupported;
  }
  *num_results = std::min(num_requested, 2);
  for (int i = 0; i < *num_results; ++i) {
    const uint32_t workspace_bytes = 1024 * static_cast<uint32_t>(i);
    const uint16_t cluster = i == 0 ? kCluster4x2 : kCluster1x2;
    const AlgorithmConfig config{kId, kOfferedTile, 1, 0, 0, cluster, workspace_bytes};
    results[i] = {};
    std::memcpy(&results[i].algorithm, &config, sizeof(config));
    results[i].workspace_bytes = workspace_bytes;
  }
  return kSuccess;
}

Status check_algorithm(Handle, Desc desc, Layout a, Layout b, Layout c, Layout d, const Algorithm* algorithm,
                       HeuristicResult* result) {
  const AlgorithmConfig config = config_of(*algorithm);
  if (!is_valid(desc, a, b, c, d) || config.id != kId) return kInvalidValue;
  if (!machine().has_preferred_algorithms) return kNotSupported;
  const size_t workspace_bytes = config.workspace_bytes;
  *result = {};  // the algorithm, too: what the caller had there is lost
  result->workspace_bytes = workspace_bytes;
  return kSuccess;
}

/// Element i of an array of either type.
float read(const void* data, DataType type, int64_t i) {
  if (type == kFloat32) return static_cast<const float*>(data)[i];
  return __uint_as_float(static_cast<uint32_t>(static_cast<const bf16*>(data)[i].bits) << 16);
}

void write(void* data, DataType type, int64_t i, float value) {
  if (type == kFloat32) {
    static_cast<float*>(data)[i] = value;
  } else {
    static_cast<bf16*>(data)[i] = round_to_bf16(value);
  }
}

constexpr float kGeluScale = 0.7978845608028654f, kGeluCubic = 0.044715f;  // √(2/π)

float gelu(float x) { return 0.5f * x * (1 + std::tanh(kGeluScale * (x + kGeluCubic * x * x * x))); }

float gelu_derivative(float x) {
  const float t = std::tanh(kGeluScale * (x + kGeluCubic * x * x * x));
  return 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * kGeluScale * (1 + 3 * kGeluCubic * x * x);
}

void multiply(const DescOpaque& desc, float alpha, const void* a_data, const LayoutOpaque& a, const void* b_data,
              const LayoutOpaque& b, float beta, const void* c_data, const LayoutOpaque& c, void* d_data,
              const LayoutOpaque& d) {
  const bool ta = desc.transpose_a == kTranspose, tb = desc.transpose_b == kTranspose;
  const int64_t k = ta ? a.num_rows : a.num_columns;
  // Row by row: a copy of op(A)'s row, then sums along op(B)'s columns.
  for (int64_t i = 0; i < d.num_rows; ++i) {
    std::vector<float> row(k);
    for (int64_t p = 0; p < k; ++p) {
      row[p] = read(a_data, a.type, ta ? i * a.leading_dimension + p : p * a.leading_dimension + i);
    }
    for (int64_t j = 0; j < d.num_columns; ++j) {
      float sum = 0;
      for (int64_t p = 0; p < k; ++p) {
        sum += row[p] * read(b_data, b.type, tb ? p * b.leading_dimension + j : j * b.leading_dimension + p);
      }
      float out = alpha * sum;
      if (beta != 0) out += beta * read(c_data, c.type, j * c.leading_dimension + i);
      if (has_bias(desc.epilogue)) out += read(desc.bias, static_cast<DataType>(desc.bias_type), i);
      const int64_t aux_index = j * desc.aux_leading_dimension + i;
      if (writes_aux(desc.epilogue)) write(desc.aux, d.type, aux_index, out);
      if (has_gelu(desc.epilogue)) out = gelu(out);
      if (desc.epilogue == kEpilogueDGelu) out *= gelu_derivative(read(desc.aux, d.type, aux_index));
      write(d_data, d.type, j * d.leading_dimension + i, out);
    }
  }
}

Status matmul(Handle, Desc desc, const void* alpha, const void* a_data, Layout a, const void* b_data, Layout b,
              const void* beta, const void* c_data, Layout c, void* d_data, Layout d, const Algorithm* algorithm,
              void* workspace, size_t workspace_bytes, cudaStream_t stream) {
  if (!is_valid(desc, a, b, c, d) || algorithm == nullptr) return kInvalidValue;
  const AlgorithmConfig config = config_of(*algorithm);
  if (config.id != kId || config.workspace_bytes > workspace_bytes) return kInvalidValue;
  if (config.workspace_bytes > 0 && workspace == nullptr) return kInvalidValue;
  if (has_bias(desc->epilogue) && desc->bias_type != d->type) return kNotSupported;
  if (config.tile != kOfferedTile && !machine().runs_preferred_algorithms) return kNotSupported;
  const float alpha_value = *static_cast<const float*>(alpha), beta_value = *static_cast<const float*>(beta);
  last_algorithm = config;
  const cudaError_t error = enqueue(stream, [=, desc = *desc, a = *a, b = *b, c = *c, d = *d] {
    multiply(desc, alpha_value, a_data, a, b_data, b, beta_value, c_data, c, d_data, d);
  });
  return error == cudaSuccess ? kSuccess : kExecutionFailed;
}

}  // namespace

LastAlgorithm last_algorithm_of_cublas_lt() {
  return {static_cast<Tile>(last_algorithm.tile), static_cast<ClusterShape>(last_algorithm.cluster),
          last_algorithm.split_k};
}

Functions cublas_lt() {
  Functions functions;
  functions.GetVersion = [] { return size_t{130000}; };
  functions.Create = [](Handle* handle) {
    *handle = new HandleOpaque;
    return kSuccess;
  };
  functions.Destroy = [](Handle handle) {
    delete handle;
    return kSuccess;
  };
  functions.MatmulDescCreate = [](Desc* desc, ComputeType compute, DataType scale) {
    if (compute != kCompute32F || scale != kFloat32) return kNotSupported;
    *desc = new DescOpaque;
    return kSuccess;
  };
  functions.MatmulDescDestroy = [](Desc desc) {
    delete desc;
    return kSuccess;
  };
  functions.MatmulDescSetAttribute = set_desc;
  functions.MatrixLayoutCreate = [](Layout* layout, DataType type, uint64_t num_rows, uint64_t num_columns,
                                    int64_t leading_dimension) {
    *layout =
        new LayoutOpaque{type, static_cast<int64_t>(num_rows), static_cast<int64_t>(num_columns), leading_dimension};
    return kSuccess;
  };
  functions.MatrixLayoutDestroy = [](Layout layout) {
    delete layout;
    return kSuccess;
  };
  functions.MatmulPreferenceCreate = [](Preference* preference) {
    *preference = new PreferenceOpaque;
    return kSuccess;
  };
  functions.MatmulPreferenceDestroy = [](Preference preference) {
    delete preference;
    return kSuccess;
  };
  functions.MatmulPreferenceSetAttribute = set_preference;
  functions.MatmulAlgoGetHeuristic = get_heuristic;
  functions.MatmulAlgoConfigGetAttribute = get_algorithm_attribute;
  functions.MatmulAlgoConfigSetAttribute = set_algorithm_attribute;
  functions.MatmulAlgoCheck = check_algorithm;
  functions.Matmul = matmul;
  return functions;
}

}  // namespace limbeck::cuda::emulator
