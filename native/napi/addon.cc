#include <napi.h>

#include <string>

#include "accelerator/cuda_library.h"
#include "core/crc32c.h"
#include "core/thread_pool.h"
#include "cpu/kernels.h"
#include "napi/convert.h"
#include "napi/engine.h"
#include "napi/file_system.h"
#include "napi/generation.h"
#include "napi/importance.h"
#include "napi/packing.h"
#include "napi/recommender.h"
#include "napi/text_encoder.h"
#include "napi/trainer.h"
#include "napi/transformer.h"

namespace limbeck {

namespace {

Napi::Value create_engine(const Napi::CallbackInfo& info) {
  return with_js_errors(info.Env(), [&] { return Engine::create(info.Env(), info[0]); });
}

Napi::Value cpu_info(const Napi::CallbackInfo& info) {
  return with_js_errors(info.Env(), [&] {
    const CpuInfo cpu = limbeck::cpu_info();
    Napi::Array features = Napi::Array::New(info.Env(), cpu.features.size());
    for (uint32_t i = 0; i < cpu.features.size(); ++i) features.Set(i, cpu.features[i]);
    Napi::Object result = Napi::Object::New(info.Env());
    result.Set("features", features);
    result.Set("isa", cpu.isa);
    result.Set("availableThreads", available_threads());
    return result;
  });
}

/// cudaInfo(library): what `limbeck doctor` says of the GPUs.
Napi::Value cuda_info(const Napi::CallbackInfo& info) {
  return with_js_errors(info.Env(), [&] {
    const CudaInfo cuda = limbeck::cuda_info(to_string(info[0], "library"));
    Napi::Array devices = Napi::Array::New(info.Env(), cuda.devices.size());
    for (uint32_t i = 0; i < cuda.devices.size(); ++i) {
      const CudaDevice& device = cuda.devices[i];
      Napi::Object entry = Napi::Object::New(info.Env());
      entry.Set("name", device.name);
      entry.Set("capability", std::to_string(device.major) + "." + std::to_string(device.minor));
      entry.Set("numMultiprocessors", device.num_multiprocessors);
      entry.Set("totalBytes", static_cast<double>(device.total_bytes));
      entry.Set("freeBytes", static_cast<double>(device.free_bytes));
      entry.Set("problem", device.problem);
      devices.Set(i, entry);
    }
    Napi::Object result = Napi::Object::New(info.Env());
    result.Set("runtimeVersion", cuda.runtime_version);
    result.Set("driverVersion", cuda.driver_version);
    result.Set("cublas", cuda.cublas);
    result.Set("problem", cuda.problem);
    result.Set("devices", devices);
    return result;
  });
}

Napi::Value crc32c(const Napi::CallbackInfo& info) {
  return with_js_errors(info.Env(), [&] {
    if (!info[0].IsTypedArray() || info[0].As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array) {
      invalid("Expected bytes to be a Uint8Array.");
    }
    const Napi::Uint8Array bytes = info[0].As<Napi::Uint8Array>();
    const int64_t before = info[1].IsUndefined() ? 0 : to_integer(info[1], "before", 0, UINT32_MAX);
    return Napi::Number::New(info.Env(),
                             limbeck::crc32c(bytes.Data(), bytes.ByteLength(), static_cast<uint32_t>(before)));
  });
}

Napi::Value open_recommender(const Napi::CallbackInfo& info) {
  return with_js_errors(info.Env(), [&] { return RecommenderObject::open(info.Env(), info[0]); });
}

Napi::Value open_text_encoder(const Napi::CallbackInfo& info) {
  return with_js_errors(info.Env(), [&] { return TextEncoderObject::open(info.Env(), info[0]); });
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(new AddonData());
  Engine::define(env);
  TransformerObject::define(env);
  TrainerObject::define(env);
  RecommenderObject::define(env);
  TextEncoderObject::define(env);
  GenerationObject::define(env);
  ImportanceObject::define(env);
  exports.Set("createEngine", Napi::Function::New(env, create_engine, "createEngine"));
  exports.Set("cpuInfo", Napi::Function::New(env, cpu_info, "cpuInfo"));
  exports.Set("cudaInfo", Napi::Function::New(env, cuda_info, "cudaInfo"));
  exports.Set("openRecommender", Napi::Function::New(env, open_recommender, "openRecommender"));
  exports.Set("openTextEncoder", Napi::Function::New(env, open_text_encoder, "openTextEncoder"));
  exports.Set("crc32c", Napi::Function::New(env, crc32c, "crc32c"));
  define_packing(env, exports);
  exports.Set("tryLockFile", Napi::Function::New(env, try_lock_file, "tryLockFile"));
  exports.Set("exchangeNames", Napi::Function::New(env, exchange_names, "exchangeNames"));
  return exports;
}

NODE_API_MODULE(limbeck, init)

}  // namespace

}  // namespace limbeck
