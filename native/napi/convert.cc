#include "napi/convert.h"

#include <cmath>
#include <cstring>
#include <new>
#include <sstream>

#include "core/memory.h"

namespace limbeck {

namespace {

constexpr int64_t kCopiedFloats = (int64_t{1} << 20) / static_cast<int64_t>(sizeof(float));

Napi::Error make_error(Napi::Env env, const char* code, const std::string& message) {
  Napi::Error error = Napi::Error::New(env, message);
  const Napi::Object object = error.Value();
  object.Set("name", "LimbeckError");
  object.Set("code", code);
  return error;
}

std::string number_text(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  std::ostringstream text;
  text.precision(15);
  text << value;
  return text.str();
}

/// What came instead, in a few words.
std::string describe(const Napi::Value& value) {
  switch (value.Type()) {
    case napi_undefined:
      return "nothing";
    case napi_null:
      return "null";
    case napi_boolean:
      return value.As<Napi::Boolean>().Value() ? "true" : "false";
    case napi_number:
      return number_text(value.As<Napi::Number>().DoubleValue());
    case napi_string:
      return "'" + value.As<Napi::String>().Utf8Value().substr(0, 40) + "'";
    case napi_function:
      return "a function";
    default:
      return value.IsArray() ? "an array" : value.IsTypedArray() ? "another typed array" : "an object";
  }
}

[[noreturn]] void refuse_value(const std::string& what, const std::string& expected, const Napi::Value& value) {
  invalid("Expected " + what + " to be " + expected + ", got " + describe(value) + ".");
}

template <typename T>
ArrayView<T> view(const Napi::Value& value, const std::string& what, napi_typedarray_type wanted, const char* name) {
  if (!value.IsTypedArray()) refuse_value(what, name, value);
  napi_typedarray_type type;
  size_t count = 0;
  void* data = nullptr;
  napi_value buffer = nullptr;
  if (napi_get_typedarray_info(value.Env(), value, &type, &count, &data, &buffer, nullptr) != napi_ok ||
      type != wanted) {
    refuse_value(what, name, value);
  }
  bool is_owned = false;
  napi_is_arraybuffer(value.Env(), buffer, &is_owned);
  if (!is_owned) invalid("Expected " + what + " to have memory of its own, got one over a SharedArrayBuffer. Copy it.");
  return {static_cast<T*>(data), static_cast<int64_t>(count)};
}

template <typename Array, typename T>
Napi::Value new_array(Napi::Env env, const T* data, int64_t count) {
  check_memory(count * static_cast<int64_t>(sizeof(T)));
  Array array = Array::New(env, static_cast<size_t>(count));
  if (count > 0) std::memcpy(array.Data(), data, static_cast<size_t>(count) * sizeof(T));
  return array;
}

}  // namespace

Napi::Error to_js_error(Napi::Env env, std::exception_ptr error) {
  try {
    std::rethrow_exception(error);
  } catch (const Napi::Error& thrown) {
    return thrown;
  } catch (const Error& thrown) {
    return make_error(env, thrown.code(), thrown.what());
  } catch (const std::bad_alloc&) {
    return make_error(env, "ERR_OUT_OF_MEMORY", "The system has no memory left for this.");
  } catch (const std::exception& thrown) {
    return make_error(env, "ERR_INTERNAL", thrown.what());
  } catch (...) {
    return make_error(env, "ERR_INTERNAL", "The native code failed without saying why.");
  }
}

void invalid(const std::string& message) { throw Error("ERR_INVALID_ARGUMENT", message); }

void check_count(const std::string& what, int64_t count, int64_t expected) {
  if (count != expected) {
    throw Error("ERR_SHAPE_MISMATCH", "Expected " + what + " to have " + std::to_string(expected) + " elements, got " +
                                          std::to_string(count) + ".");
  }
}

void check_memory(int64_t size_bytes) {
  if (size_bytes < static_cast<int64_t>(kCheckedBytes)) return;
  const size_t available = available_memory_bytes();
  if (static_cast<size_t>(size_bytes) > available) {
    throw Error("ERR_OUT_OF_MEMORY", "The result needs " + std::to_string(size_bytes) + " bytes and " +
                                         std::to_string(available) + " are available. Ask for less at once.");
  }
}

ArrayView<uint8_t> uint8_view(const Napi::Value& value, const std::string& what) {
  return view<uint8_t>(value, what, napi_uint8_array, "a Uint8Array");
}

ArrayView<float> float32_view(const Napi::Value& value, const std::string& what) {
  return view<float>(value, what, napi_float32_array, "a Float32Array");
}

ArrayView<int32_t> int32_view(const Napi::Value& value, const std::string& what) {
  return view<int32_t>(value, what, napi_int32_array, "an Int32Array");
}

std::vector<int32_t> to_int32_vector(const Napi::Value& value, const std::string& what) {
  const ArrayView<int32_t> array = int32_view(value, what);
  return std::vector<int32_t>(array.data, array.data + array.count);
}

int64_t to_integer(const Napi::Value& value, const std::string& what, int64_t min, int64_t max) {
  const double number = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : NAN;
  if (!(number >= static_cast<double>(min) && number <= static_cast<double>(max) && number == std::trunc(number))) {
    refuse_value(what, "an integer from " + std::to_string(min) + " to " + std::to_string(max), value);
  }
  return static_cast<int64_t>(number);
}

float to_float(const Napi::Value& value, const std::string& what, float min, float max) {
  const double number = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : NAN;
  if (!(number >= min && number <= max)) {
    const bool is_bounded = min > -FLT_MAX || max < FLT_MAX;
    std::string expected = "a finite number";
    if (is_bounded && max == FLT_MAX) expected += " of at least " + number_text(min);
    if (is_bounded && max < FLT_MAX) expected += " from " + number_text(min) + " to " + number_text(max);
    refuse_value(what, expected, value);
  }
  return static_cast<float>(number);
}

std::string to_string(const Napi::Value& value, const std::string& what) {
  if (!value.IsString()) refuse_value(what, "a string", value);
  return value.As<Napi::String>().Utf8Value();
}

Napi::Array to_array(const Napi::Value& value, const std::string& what) {
  if (!value.IsArray()) refuse_value(what, "an array", value);
  return value.As<Napi::Array>();
}

std::vector<int64_t> to_integers(const Napi::Value& value, const std::string& what, int64_t min, int64_t max) {
  const Napi::Array array = to_array(value, what);
  std::vector<int64_t> numbers;
  for (uint32_t i = 0; i < array.Length(); ++i) {
    numbers.push_back(to_integer(array.Get(i), what + "[" + std::to_string(i) + "]", min, max));
  }
  return numbers;
}

Napi::Value new_float32_array(Napi::Env env, const float* data, int64_t count) {
  return new_array<Napi::Float32Array>(env, data, count);
}

Napi::Value new_int32_array(Napi::Env env, const int32_t* data, int64_t count) {
  return new_array<Napi::Int32Array>(env, data, count);
}

Napi::Value new_float32_array(Napi::Env env, const std::vector<float>& values) {
  return new_float32_array(env, values.data(), static_cast<int64_t>(values.size()));
}

Napi::Value new_int32_array(Napi::Env env, const std::vector<int32_t>& values) {
  return new_int32_array(env, values.data(), static_cast<int64_t>(values.size()));
}

Napi::Value new_float32_array(Napi::Env env, FloatBuffer buffer) {
  constexpr int64_t kCopiedCount = 16384;  // less is sooner copied than handed over
  if (buffer.count() > kCopiedCount) {
    const auto give_back = [](napi_env, void* data, void* count) {
      FloatBuffer::give_back(static_cast<float*>(data), static_cast<int64_t>(reinterpret_cast<intptr_t>(count)));
    };
    napi_value array_buffer = nullptr;
    const napi_status status = napi_create_external_arraybuffer(
        env, buffer.data(), static_cast<size_t>(buffer.count()) * sizeof(float), give_back,
        reinterpret_cast<void*>(static_cast<intptr_t>(buffer.count())), &array_buffer);
    if (status == napi_ok) {
      buffer.release();
      return Napi::Float32Array::New(env, static_cast<size_t>(buffer.count()), Napi::ArrayBuffer(env, array_buffer), 0);
    }
    // Some embedders keep all array buffers inside a cage of their own.
    if (status != napi_no_external_buffers_allowed) throw Napi::Error::New(env);
  }
  return new_float32_array(env, buffer.data(), buffer.count());
}

Fields::Fields(const Napi::Value& value, std::string path) : path_(std::move(path)) {
  if (!value.IsObject()) refuse_value(path_.empty() ? "the request" : path_, "an object", value);
  object_ = value.As<Napi::Object>();
}

bool Fields::boolean(const char* key) const {
  const Napi::Value value = get(key);
  if (!value.IsBoolean()) refuse(key, "true or false", value);
  return value.As<Napi::Boolean>().Value();
}

void Fields::refuse(const char* key, const std::string& expected, const Napi::Value& value) const {
  refuse_value(name(key), expected, value);
}

FloatInput::FloatInput(const Napi::Value& value, const std::string& what) {
  ArrayView<float> array = float32_view(value, what);
  if (array.count > kCopiedFloats) {
    // The memory of a resizable buffer can go away while it is read.
    const bool is_resizable = value.As<Napi::TypedArray>().ArrayBuffer().Get("resizable").ToBoolean().Value();
    array = float32_view(value, what);
    if (!is_resizable && array.count > kCopiedFloats) {
      reference_ = Napi::Reference<Napi::Value>::New(value, 1);
      referenced_ = array.data;
    }
  }
  if (referenced_ == nullptr) copy_.assign(array.data, array.data + array.count);
  count_ = array.count;
}

FloatInput::FloatInput(const Napi::Value& value, const std::string& what, int64_t count) : FloatInput(value, what) {
  check_count(what, count_, count);
}

BatchInput read_batch(const Fields& fields) {
  BatchInput batch;
  batch.input_ids = fields.int32s("inputIds");
  batch.sequence_offsets = fields.int32s("sequenceOffsets");
  if (batch.sequence_offsets.size() < 2) invalid("Expected sequenceOffsets to have at least 2 elements, from 0 to N.");
  const Napi::Value token_type_ids = fields.get("tokenTypeIds");
  if (!token_type_ids.IsUndefined()) {
    batch.token_type_ids = to_int32_vector(token_type_ids, "tokenTypeIds");
    check_count("tokenTypeIds", static_cast<int64_t>(batch.token_type_ids.size()), batch.num_tokens());
  }
  return batch;
}

}  // namespace limbeck
