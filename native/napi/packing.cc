#include "napi/packing.h"

#include "napi/convert.h"
#include "ops/half.h"
#include "ops/packed_logits.h"

namespace limbeck {

namespace {

struct PackedShape {
  int64_t top_k, vocab_size, row_bytes;
};

PackedShape read_shape(const Fields& fields) {
  const int64_t vocab_size = fields.integer("vocabSize", 1, kMaxInt32);
  const int64_t top_k = fields.integer("topK", 1, vocab_size);
  return {top_k, vocab_size, packed_row_bytes(top_k, vocab_size)};
}

Napi::Value pack(const Napi::CallbackInfo& info) {
  return with_js_errors(info.Env(), [&] {
    const Fields fields(info[0], "");
    const PackedShape shape = read_shape(fields);
    const Napi::Value log_sum_exp_value = fields.get("logSumExp"), values_value = fields.get("values"),
                      indices_value = fields.get("indices");
    // No getter of the request runs from here on, so the memory stays where it is.
    const ArrayView<float> log_sum_exp = float32_view(log_sum_exp_value, "logSumExp");
    const ArrayView<float> values = float32_view(values_value, "values");
    const ArrayView<int32_t> indices = int32_view(indices_value, "indices");
    const int64_t rows = log_sum_exp.count;
    check_count("values", values.count, rows * shape.top_k);
    check_count("indices", indices.count, rows * shape.top_k);
    Napi::Uint8Array packed = Napi::Uint8Array::New(info.Env(), static_cast<size_t>(rows * shape.row_bytes));
    pack_top_k(indices.data, values.data, log_sum_exp.data, rows, shape.top_k, shape.vocab_size, packed.Data());
    return packed;
  });
}

Napi::Value unpack(const Napi::CallbackInfo& info) {
  return with_js_errors(info.Env(), [&] {
    const Fields fields(info[0], "");
    const PackedShape shape = read_shape(fields);
    const Napi::Value value = fields.get("packed");
    if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array) {
      invalid("Expected packed to be a Uint8Array.");
    }
    const Napi::Uint8Array packed = value.As<Napi::Uint8Array>();
    const int64_t rows = static_cast<int64_t>(packed.ByteLength()) / shape.row_bytes;
    check_count("packed", static_cast<int64_t>(packed.ByteLength()), rows * shape.row_bytes);
    check_memory(rows * (2 * shape.top_k + 1) * static_cast<int64_t>(sizeof(float)));
    Napi::Int32Array indices = Napi::Int32Array::New(info.Env(), static_cast<size_t>(rows * shape.top_k));
    Napi::Float32Array values = Napi::Float32Array::New(info.Env(), static_cast<size_t>(rows * shape.top_k));
    Napi::Float32Array log_sum_exp = Napi::Float32Array::New(info.Env(), static_cast<size_t>(rows));
    unpack_top_k(packed.Data(), rows, shape.top_k, shape.vocab_size, indices.Data(), values.Data(), log_sum_exp.Data());
    Napi::Object result = Napi::Object::New(info.Env());
    result.Set("indices", indices);
    result.Set("values", values);
    result.Set("logSumExp", log_sum_exp);
    return result;
  });
}

Napi::Value narrow(const Napi::CallbackInfo& info) {
  return with_js_errors(info.Env(), [&] {
    const ArrayView<float> values = float32_view(info[0], "values");
    const std::string dtype = to_string(info[1], "dtype");
    if (dtype != "float16" && dtype != "bfloat16") invalid("Expected dtype to be 'float16' or 'bfloat16'.");
    Napi::Uint16Array bits = Napi::Uint16Array::New(info.Env(), static_cast<size_t>(values.count));
    (dtype == "float16" ? to_float16 : to_bfloat16)(values.data, bits.Data(), values.count);
    return bits;
  });
}

}  // namespace

void define_packing(Napi::Env env, Napi::Object exports) {
  exports.Set("packTopK", Napi::Function::New(env, pack, "packTopK"));
  exports.Set("unpackTopK", Napi::Function::New(env, unpack, "unpackTopK"));
  exports.Set("narrow", Napi::Function::New(env, narrow, "narrow"));
}

}  // namespace limbeck
