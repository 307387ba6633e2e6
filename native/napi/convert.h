#pragma once

#include <napi.h>

#include <cfloat>
#include <cstdint>
#include <exception>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/memory.h"
#include "model/transformer.h"

namespace limbeck {

/// An Error with `name` LimbeckError and a stable `code`; what JS itself threw stays as it is.
Napi::Error to_js_error(Napi::Env env, std::exception_ptr error);

/// Runs `body`; whatever it throws reaches JS as to_js_error() makes it.
template <typename Body>
auto with_js_errors(Napi::Env env, Body&& body) {
  try {
    return body();
  } catch (...) {
    throw to_js_error(env, std::current_exception());
  }
}

[[noreturn]] void invalid(const std::string& message);
/// Error("ERR_SHAPE_MISMATCH") unless count is expected.
void check_count(const std::string& what, int64_t count, int64_t expected);
/// Error("ERR_OUT_OF_MEMORY") when the machine has not that much left; V8 would end the process instead.
void check_memory(int64_t size_bytes);

/// Memory of a typed array; valid until JS runs again.
template <typename T>
struct ArrayView {
  T* data = nullptr;
  int64_t count = 0;
};

/// Arrays over a SharedArrayBuffer are refused: another thread could change them between check and use.
ArrayView<float> float32_view(const Napi::Value& value, const std::string& what);
ArrayView<int32_t> int32_view(const Napi::Value& value, const std::string& what);
ArrayView<uint8_t> uint8_view(const Napi::Value& value, const std::string& what);
std::vector<int32_t> to_int32_vector(const Napi::Value& value, const std::string& what);

int64_t to_integer(const Napi::Value& value, const std::string& what, int64_t min, int64_t max);
/// A finite number that a float can hold.
float to_float(const Napi::Value& value, const std::string& what, float min = -FLT_MAX, float max = FLT_MAX);
std::string to_string(const Napi::Value& value, const std::string& what);
Napi::Array to_array(const Napi::Value& value, const std::string& what);
/// Of safe integers in [min, max].
std::vector<int64_t> to_integers(const Napi::Value& value, const std::string& what, int64_t min, int64_t max);

Napi::Value new_float32_array(Napi::Env env, const float* data, int64_t count);
Napi::Value new_int32_array(Napi::Env env, const int32_t* data, int64_t count);
Napi::Value new_float32_array(Napi::Env env, const std::vector<float>& values);
Napi::Value new_int32_array(Napi::Env env, const std::vector<int32_t>& values);
/// Hands the memory over where the embedder allows it, and copies elsewhere.
Napi::Value new_float32_array(Napi::Env env, FloatBuffer buffer);

constexpr int64_t kMaxInt32 = INT32_MAX;
constexpr int64_t kMaxSafeInteger = (int64_t{1} << 53) - 1;

/// The properties of one options object; errors name them by their path ("teacher.logits.topK").
class Fields {
 public:
  /// `path` is empty for the request itself.
  Fields(const Napi::Value& value, std::string path);

  std::string name(const char* key) const { return path_.empty() ? key : path_ + "." + key; }
  /// undefined where there is no such property
  Napi::Value get(const char* key) const { return object_.Get(key); }
  int64_t integer(const char* key, int64_t min, int64_t max) const { return to_integer(get(key), name(key), min, max); }
  float number(const char* key, float min = -FLT_MAX, float max = FLT_MAX) const {
    return to_float(get(key), name(key), min, max);
  }
  bool boolean(const char* key) const;
  std::vector<int32_t> int32s(const char* key) const { return to_int32_vector(get(key), name(key)); }
  std::vector<int64_t> integers(const char* key, int64_t min, int64_t max) const {
    return to_integers(get(key), name(key), min, max);
  }

  /// One of a few words.
  template <typename T>
  T choice(const char* key, std::initializer_list<std::pair<const char*, T>> words) const {
    const Napi::Value value = get(key);
    const std::string word = value.IsString() ? value.As<Napi::String>().Utf8Value() : std::string();
    std::string allowed;
    for (const auto& entry : words) {
      if (value.IsString() && word == entry.first) return entry.second;
      allowed += (allowed.empty() ? "'" : ", '") + std::string(entry.first) + "'";
    }
    refuse(key, "one of " + allowed, value);
  }

 private:
  [[noreturn]] void refuse(const char* key, const std::string& expected, const Napi::Value& value) const;

  Napi::Object object_;
  std::string path_;
};

/// A Float32Array that outlives the call: copied up to 1 MiB, referenced above. A referenced one must not be changed,
/// transferred or detached until the promise is settled. Made and destroyed on the JS thread; read on any.
class FloatInput {
 public:
  FloatInput() = default;
  FloatInput(const Napi::Value& value, const std::string& what);
  /// Of exactly this many floats, else Error("ERR_SHAPE_MISMATCH").
  FloatInput(const Napi::Value& value, const std::string& what, int64_t count);
  FloatInput(FloatInput&&) = default;
  FloatInput& operator=(FloatInput&&) = default;

  const float* data() const { return referenced_ != nullptr ? referenced_ : copy_.data(); }
  int64_t count() const { return count_; }
  bool empty() const { return count_ == 0; }

 private:
  std::vector<float> copy_;
  Napi::Reference<Napi::Value> reference_;
  const float* referenced_ = nullptr;
  int64_t count_ = 0;
};

/// Sequences laid end to end, copied.
struct BatchInput {
  std::vector<int32_t> input_ids;         // [N]
  std::vector<int32_t> sequence_offsets;  // [S + 1]
  std::vector<int32_t> token_type_ids;    // [N] or empty

  int64_t num_tokens() const { return static_cast<int64_t>(input_ids.size()); }
  int64_t num_sequences() const { return static_cast<int64_t>(sequence_offsets.size()) - 1; }
  Batch view() const {
    return {input_ids.data(), sequence_offsets.data(), token_type_ids.empty() ? nullptr : token_type_ids.data(),
            num_tokens(), num_sequences()};
  }
};

/// Reads inputIds, sequenceOffsets and tokenTypeIds. Lengths are checked here, values by check_batch().
BatchInput read_batch(const Fields& fields);

}  // namespace limbeck
