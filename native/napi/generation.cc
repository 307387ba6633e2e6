#include "napi/generation.h"

#include <algorithm>

namespace limbeck {

void GenerationObject::define(Napi::Env env) {
  JsClass::define(env, "Generation", {promise_method<&GenerationObject::next>("next"), dispose_method()});
}

Napi::Object GenerationObject::create(Napi::Env env, std::shared_ptr<TaskQueue> queue,
                                      std::shared_ptr<SharedModel> model, const Napi::Value& request) {
  const Fields fields(request, "");
  GenerateOptions options{};
  options.max_new_tokens = fields.integer("maxNewTokens", 0, kMaxInt32);
  options.min_new_tokens = fields.integer("minNewTokens", 0, kMaxInt32);
  options.temperature = fields.number("temperature", 0.0f);
  options.top_k = fields.integer("topK", 0, kMaxInt32);
  options.top_p = fields.number("topP", 0.0f, 1.0f);
  options.repetition_penalty = fields.number("repetitionPenalty", 0.0f);
  options.seed = static_cast<uint64_t>(fields.integer("seed", 0, kMaxSafeInteger));
  options.eos_token_ids = fields.int32s("eosTokenIds");
  const TransformerConfig& config = model->config();
  std::vector<int32_t> input_ids = fields.int32s("inputIds");
  // Keys and values of the prompt and of what may follow it.
  const int64_t num_positions =
      std::min(static_cast<int64_t>(input_ids.size()) + options.max_new_tokens, config.max_position_embeddings);
  const int64_t size_bytes = 2 * num_positions * config.num_hidden_layers * config.num_key_value_heads *
                             config.head_dim * static_cast<int64_t>(sizeof(float));
  auto generation = std::make_shared<SharedGeneration>(std::move(model), std::move(input_ids), options);
  return wrap(env, std::move(queue), std::move(generation), size_bytes);
}

Napi::Value GenerationObject::next(const Napi::CallbackInfo& info) {
  const std::shared_ptr<SharedGeneration> shared = state();
  const int64_t count = to_integer(info[0], "count", 1, kMaxInt32);
  return queue().submit(
      {Hold(shared), Hold(shared->model)},
      [shared, count, queue = &queue()](Context& context, Arena& arena) {
        const auto should_stop = [queue] { return queue->is_stopping(); };
        shared->model->host();  // brought up to date
        std::vector<int32_t> ids = shared->generation.next(context, arena, count, should_stop);
        if (should_stop()) throw Error("ERR_DISPOSED", "The engine was disposed of while it generated.");
        return ids;
      },
      [](Napi::Env env, const std::vector<int32_t>& ids) { return new_int32_array(env, ids); });
}

}  // namespace limbeck
