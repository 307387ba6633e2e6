#include "napi/text_encoder.h"

#include <utility>
#include <vector>

#include "napi/share_registry.h"
#include "napi/transformer.h"

namespace limbeck {

namespace {

std::vector<float> copy_floats(const Fields& fields, const char* key) {
  const ArrayView<float> array = float32_view(fields.get(key), fields.name(key));
  return std::vector<float>(array.data, array.data + array.count);
}

}  // namespace

void TextEncoderObject::define(Napi::Env env) {
  JsClass::define(env, "TextEncoder",
                  {
                      getter<&TextEncoderObject::feature_size>("featureSize"),
                      method<&TextEncoderObject::encode>("encode"),
                      method<&TextEncoderObject::share>("share"),
                      dispose_method(),
                  });
}

Napi::Object TextEncoderObject::create(Napi::Env env, std::shared_ptr<TaskQueue> queue, const Napi::Value& options) {
  const Fields fields(options, "");
  TextFusion fusion;
  fusion.layers = fields.integers("layers", 0, kMaxInt32);
  fusion.concatenate = fields.choice<bool>("fusion", {{"sum", false}, {"concat", true}});
  if (!fusion.concatenate) fusion.weights = copy_floats(fields, "weights");
  fusion.mean = copy_floats(fields, "mean");
  fusion.components = copy_floats(fields, "components");
  const Napi::Value model = fields.get("model");
  const Transformer& transformer = TransformerObject::unwrap_of(*queue, model, "model").idle().host();
  auto encoder = std::make_shared<SharedTextEncoder>(std::make_shared<const TextModel>(transformer, std::move(fusion)));
  const int64_t size_bytes = transformer.parameters().flat_count() * static_cast<int64_t>(sizeof(float));
  return wrap(env, std::move(queue), std::move(encoder), size_bytes);
}

Napi::Object TextEncoderObject::open(Napi::Env env, const Napi::Value& key) {
  const std::string name = to_string(key, "key");
  std::shared_ptr<const PublishedTextModel> published = ShareRegistry::open<PublishedTextModel>(name);
  if (published == nullptr) throw Error("ERR_DISPOSED", "The text encoder of this handle was disposed of.");
  auto encoder = std::make_shared<SharedTextEncoder>(published->model);
  encoder->published = std::move(published);
  encoder->key = name;
  return wrap(env, nullptr, std::move(encoder), 0);
}

Napi::Value TextEncoderObject::share(const Napi::CallbackInfo& info) {
  SharedTextEncoder& shared = *state();
  if (shared.published == nullptr) {
    shared.published = std::make_shared<const PublishedTextModel>(PublishedTextModel{shared.encoder.model()});
    shared.key = ShareRegistry::publish(shared.published);
  }
  return Napi::String::New(info.Env(), shared.key);
}

Napi::Value TextEncoderObject::feature_size(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(state()->encoder.feature_size()));
}

Napi::Value TextEncoderObject::encode(const Napi::CallbackInfo& info) {
  const BatchInput batch = read_batch(Fields(info[0], ""));
  TextEncoder& encoder = state()->encoder;
  check_memory(batch.num_sequences() * encoder.feature_size() * static_cast<int64_t>(2 * sizeof(float)));
  std::vector<float> features(static_cast<size_t>(batch.num_sequences() * encoder.feature_size()));  // [S, f]
  encoder.encode(batch.view(), features.data());
  return new_float32_array(info.Env(), features);
}

}  // namespace limbeck
