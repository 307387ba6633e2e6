#include "cuda/api.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <type_traits>

#include "core/error.h"
#include "cuda/driver.h"
#include "cuda/engine.h"
#include "cuda/model.h"
#include "cuda/pca.h"
#include "cuda/recommender.h"
#include "cuda/trainer.h"

namespace limbeck::cuda {

namespace {

static_assert(std::is_trivially_copyable_v<TransformerConfig>);

template <size_t Size>
void copy_text(char (&to)[Size], const std::string& text) {
  const size_t length = std::min(text.size(), Size - 1);
  std::memcpy(to, text.data(), length);
  to[length] = '\0';
}

void set_error(ApiError* error, const char* code, const std::string& message) {
  copy_text(error->code, code);
  copy_text(error->message, message);
}

/// body(), whose exceptions become *error; `failed` then.
template <typename Body, typename Result>
Result guarded(ApiError* error, Result failed, Body&& body) {
  try {
    return body();
  } catch (const Error& caught) {
    set_error(error, caught.code(), caught.what());
  } catch (const std::bad_alloc&) {
    set_error(error, "ERR_OUT_OF_MEMORY", "The host has too little memory.");
  } catch (const std::exception& caught) {
    set_error(error, "ERR_CUDA", caught.what());
  }
  return failed;
}

template <typename Body>
int32_t attempt(ApiError* error, Body&& body) {
  return guarded(error, int32_t{-1}, [&] {
    body();
    return int32_t{0};
  });
}

void describe_runtime(ApiRuntime* out) {
  *out = {};
  const DriverInfo info = inspect_driver(kNoDevice);
  out->runtime_version = info.runtime_version;
  out->driver_version = info.driver_version;
  out->num_devices = static_cast<int32_t>(info.devices.size());
  copy_text(out->cublas, info.cublas_path);
  copy_text(out->problem, info.problem.empty() ? info.cublas_problem : info.problem);
}

int32_t describe_device(int32_t device, ApiDevice* out, ApiError* error) {
  return attempt(error, [&] {
    *out = {};
    const DriverInfo driver = inspect_driver(device);
    if (device < 0 || device >= static_cast<int32_t>(driver.devices.size())) {
      throw Error("ERR_INVALID_ARGUMENT", "There is no GPU " + std::to_string(device) + "; this machine has " +
                                              std::to_string(driver.devices.size()) + ".");
    }
    const DeviceInfo& info = driver.devices[static_cast<size_t>(device)];
    copy_text(out->name, info.name);
    out->major = info.major;
    out->minor = info.minor;
    out->num_multiprocessors = info.num_multiprocessors;
    out->total_bytes = info.total_bytes;
    out->free_bytes = info.free_bytes;
    copy_text(out->problem, info.problem);
  });
}

Engine* create_engine(int32_t device, ApiPrecision precision, ApiError* error) {
  return guarded(error, static_cast<Engine*>(nullptr), [&] { return new Engine(device, precision); });
}

void destroy_engine(Engine* engine) { delete engine; }

void set_tuning(Engine* engine, int32_t tuning) { engine->blas->set_tuning(tuning != 0); }

void set_mlp_bytes(Engine* engine, int64_t size_bytes) { engine->mlp_bytes = size_bytes; }

Model* create_model(Engine* engine, const TransformerConfig* config, size_t config_bytes, ApiError* error) {
  return guarded(error, static_cast<Model*>(nullptr), [&]() -> Model* {
    if (config_bytes != sizeof(TransformerConfig)) {
      throw Error("ERR_CUDA_UNAVAILABLE", "The CUDA library was built from other sources than the addon. Build both.");
    }
    if (engine->precision == ApiPrecision::kBFloat16) return new Transformer<bf16>(*engine, *config);
    return new Transformer<float>(*engine, *config);
  });
}

void destroy_model(Model* model) { delete model; }

int32_t set_parameters(Model* model, const float* flat, ApiError* error) {
  return attempt(error, [&] { model->set_parameters(flat); });
}

int32_t get_parameters(Model* model, float* flat, ApiError* error) {
  return attempt(error, [&] { model->get_parameters(flat); });
}

int32_t get_gradients(Model* model, float* flat, ApiError* error) {
  return attempt(error, [&] { model->get_gradients(flat); });
}

int32_t set_item_features(Model* model, const float* features, ApiError* error) {
  return attempt(error, [&] { model->set_item_features(features); });
}

int32_t forward(Model* model, const ApiForward* request, ApiError* error) {
  return attempt(error, [&] { model->begin(*request)->finish(); });
}

Pass* begin_forward(Model* model, const ApiForward* request, ApiError* error) {
  return guarded(error, static_cast<Pass*>(nullptr), [&] { return model->begin(*request).release(); });
}

int32_t finish_forward(Pass* pass, ApiError* error) {
  return attempt(error, [&] { pass->finish(); });
}

void destroy_forward(Pass* pass) { delete pass; }

int32_t interpolate(Model* model, const Model* source, float alpha, ApiError* error) {
  return attempt(error, [&] { model->interpolate(*source, alpha); });
}

Trainer* create_trainer(Model* model, const ApiOptimizer* optimizer, ApiError* error) {
  return guarded(error, static_cast<Trainer*>(nullptr), [&]() -> Trainer* {
    if (model->engine.precision == ApiPrecision::kBFloat16) {
      return new TransformerTrainer<bf16>(static_cast<Transformer<bf16>&>(*model), *optimizer);
    }
    return new TransformerTrainer<float>(static_cast<Transformer<float>&>(*model), *optimizer);
  });
}

void destroy_trainer(Trainer* trainer) { delete trainer; }

int32_t compute_gradients(Trainer* trainer, const ApiStep* parts, int64_t num_parts, ApiStepResult* result,
                          ApiError* error) {
  return attempt(error, [&] { *result = trainer->compute_gradients(parts, num_parts); });
}

int32_t step(Trainer* trainer, const ApiStep* parts, int64_t num_parts, ApiStepResult* result, ApiError* error) {
  return attempt(error, [&] { *result = trainer->step(parts, num_parts); });
}

int32_t begin_step(Trainer* trainer, const ApiStep* parts, int64_t num_parts, ApiError* error) {
  return attempt(error, [&] { trainer->begin_step(parts, num_parts); });
}

int32_t finish_step(Trainer* trainer, ApiStepResult* result, ApiError* error) {
  return attempt(error, [&] { *result = trainer->finish_step(); });
}

int64_t get_step_count(const Trainer* trainer) { return trainer->step_count; }

void set_step_count(Trainer* trainer, int64_t step_count) { trainer->step_count = step_count; }

int32_t projection_shape(const Trainer* trainer, int64_t index, int64_t* rows, int64_t* columns) {
  return trainer->projection_shape(index, rows, columns) ? 0 : -1;
}

int32_t ensure_projection(Trainer* trainer, int64_t index, int64_t rows, int64_t columns, ApiError* error) {
  return attempt(error, [&] { trainer->ensure_projection(index, rows, columns); });
}

int32_t read_array(Trainer* trainer, ApiArray array, int64_t index, float* out, ApiError* error) {
  return attempt(error, [&] { trainer->read_array(array, index, out); });
}

int32_t write_array(Trainer* trainer, ApiArray array, int64_t index, const float* in, ApiError* error) {
  return attempt(error, [&] { trainer->write_array(array, index, in); });
}

Recommender* create_recommender(Model* model, ApiError* error) {
  return guarded(error, static_cast<Recommender*>(nullptr), [&]() -> Recommender* {
    if (model->engine.precision == ApiPrecision::kBFloat16) {
      return new TransformerRecommender<bf16>(static_cast<Transformer<bf16>&>(*model));
    }
    return new TransformerRecommender<float>(static_cast<Transformer<float>&>(*model));
  });
}

void destroy_recommender(Recommender* recommender) { delete recommender; }

int32_t recommend(Recommender* recommender, const ApiRecommend* request, ApiError* error) {
  return attempt(error, [&] { recommender->recommend(*request); });
}

int32_t rank(Recommender* recommender, const ApiRank* request, ApiError* error) {
  return attempt(error, [&] { recommender->rank(*request); });
}

/// engine->run(body), whose memory is not kept: data may be larger than any pass of a model, and comes once.
template <typename Body>
void run_once(Engine* engine, Body&& body) {
  const struct Release {
    Engine* engine;
    size_t capacity_bytes;
    ~Release() {
      if (engine->main.arena.capacity_bytes() <= capacity_bytes) return;
      ++engine->main.arena_generation;
      engine->main.arena.reserve(0);
    }
  } release{engine, engine->main.arena.capacity_bytes()};
  engine->run(body);
}

int32_t pca(Engine* engine, const ApiPca* request, ApiError* error) {
  return attempt(error, [&] {
    const ApiPca& r = *request;
    run_once(engine, [&](Context& context) {
      pca(context, r.x, r.num_rows, r.num_columns, r.num_components, r.seed, r.mean, r.components,
          r.explained_variance);
    });
  });
}

int32_t pca_transform(Engine* engine, const ApiPcaTransform* request, ApiError* error) {
  return attempt(error, [&] {
    const ApiPcaTransform& r = *request;
    run_once(engine, [&](Context& context) {
      pca_transform(context, r.x, r.mean, r.components, r.y, r.num_rows, r.num_columns, r.num_components);
    });
  });
}

constexpr Api kApi = {
    kApiVersion,
    sizeof(Api),
    describe_runtime,
    describe_device,
    create_engine,
    destroy_engine,
    set_tuning,
    create_model,
    destroy_model,
    set_parameters,
    get_parameters,
    get_gradients,
    set_item_features,
    forward,
    begin_forward,
    finish_forward,
    destroy_forward,
    interpolate,
    create_trainer,
    destroy_trainer,
    compute_gradients,
    step,
    begin_step,
    finish_step,
    get_step_count,
    set_step_count,
    projection_shape,
    ensure_projection,
    read_array,
    write_array,
    create_recommender,
    destroy_recommender,
    recommend,
    pca,
    pca_transform,
    set_mlp_bytes,
    rank,
};

}  // namespace

}  // namespace limbeck::cuda

extern "C" __attribute__((visibility("default"))) const limbeck::cuda::Api* limbeck_cuda_api(uint32_t version) {
  return version == limbeck::cuda::kApiVersion ? &limbeck::cuda::kApi : nullptr;
}
