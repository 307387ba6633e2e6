#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/memory.h"
#include "model/config.h"

namespace limbeck {

struct Parameter {
  std::string name;
  std::vector<int64_t> shape;
  int64_t offset;  // floats from the start of the flat array, a multiple of 16 (64 bytes)
  int64_t count;   // product of shape
};

/// Parameters one after another in a flat array, each at its own cache line.
struct ParameterLayout {
  std::vector<Parameter> list;
  int64_t flat_count = 0;  // floats of the array, gaps included

  void add(const std::string& name, std::vector<int64_t> shape);
};

/// Every parameter of such a model, in the order and at the offsets of Parameters; *flat_count gets the floats of the
/// flat array, gaps included. Allocates no values.
std::vector<Parameter> list_parameters(const TransformerConfig& config, int64_t* flat_count);

/// How a checkpoint stores a value, little-endian.
enum class StoredType { kFloat32, kFloat16, kBFloat16, kFloat64 };
int64_t stored_size_bytes(StoredType type);

/// Every parameter of a model in one flat array, and their gradients in another of the same layout. The gaps between
/// parameters stay zero in both, so that whole-array passes (norm, optimiser) need no special case.
class Parameters {
 public:
  explicit Parameters(const TransformerConfig& config);
  /// Throws Error("ERR_INVALID_ARGUMENT") when two have one name.
  explicit Parameters(ParameterLayout layout);

  const std::vector<Parameter>& list() const { return list_; }
  /// Throws Error("ERR_INVALID_ARGUMENT") when there is no such name.
  const Parameter& find(const std::string& name) const;
  bool has(const std::string& name) const { return index_.count(name) != 0; }

  int64_t flat_count() const { return flat_count_; }
  /// Number of parameters, without gaps.
  int64_t num_parameters() const;

  /// For writing: call it anew each time, since it counts as a change.
  float* values() {
    ++version_;
    return values_.get();
  }
  const float* values() const { return values_.get(); }
  /// For writing what belongs to this version, and only comes late: from a copy of the model that changed elsewhere.
  float* late_values() { return values_.get(); }
  /// Goes up whenever the values may have changed.
  uint64_t version() const { return version_; }
  /// Widens `count` stored values (at any alignment) into a parameter, from value `first` of the file's order on. With
  /// is_transposed the file has [columns, rows] of the parameter's [rows, columns]. Returns the index in `bytes` of the
  /// first value that is NaN or infinite in float32, −1 = none. Throws Error("ERR_INVALID_ARGUMENT") for values outside
  /// the parameter, or to transpose anything but a matrix.
  int64_t load(const Parameter& parameter, StoredType type, const uint8_t* bytes, int64_t first, int64_t count,
               bool is_transposed);
  /// Allocated, zeroed, at the first call: a model that only serves has none.
  float* gradients();
  bool has_gradients() const { return gradients_ != nullptr; }
  void free_gradients() { gradients_.reset(); }

 private:
  int64_t flat_count_ = 0;  // before list_, which is made with it
  std::vector<Parameter> list_;
  std::unordered_map<std::string, size_t> index_;
  uint64_t version_ = 0;
  AlignedFloats values_;
  AlignedFloats gradients_;
};

}  // namespace limbeck
