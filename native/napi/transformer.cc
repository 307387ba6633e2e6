#include "napi/transformer.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "core/crc32c.h"
#include "model/inference.h"
#include "model/item_bias.h"
#include "model/project.h"
#include "napi/generation.h"
#include "ops/optimizer.h"

namespace limbeck {

namespace {

constexpr int64_t kFloatBytes = static_cast<int64_t>(sizeof(float));
constexpr int64_t kMaxAdapterRank = 1 << 16;
// A GPU computes two; that the third is begun before the results of the first are there keeps both lanes busy.
constexpr size_t kMaxPassesAtOnce = 3;

RopeScaling read_rope_scaling(const Fields& fields) {
  RopeScaling scaling;
  // Dynamic scaling begins after the model's last position, and longer sequences are refused.
  scaling.type = fields.choice<RopeType>("ropeType", {{"linear", RopeType::kLinear},
                                                      {"dynamic", RopeType::kDefault},
                                                      {"llama3", RopeType::kLlama3},
                                                      {"yarn", RopeType::kYarn}});
  scaling.factor = fields.number("factor");
  if (scaling.type == RopeType::kLlama3 || scaling.type == RopeType::kYarn) {
    scaling.original_max_position_embeddings = fields.integer("originalMaxPositionEmbeddings", 1, kMaxInt32);
  }
  if (scaling.type == RopeType::kLlama3) {
    scaling.low_freq_factor = fields.number("lowFreqFactor");
    scaling.high_freq_factor = fields.number("highFreqFactor");
  }
  if (scaling.type == RopeType::kYarn) {
    scaling.beta_fast = fields.number("betaFast");
    scaling.beta_slow = fields.number("betaSlow");
    scaling.attention_factor = fields.number("attentionFactor");
  }
  return scaling;
}

TransformerConfig read_config(const Napi::Value& value) {
  const Fields fields(value, "config");
  const auto size = [&](const char* key) { return fields.integer(key, 0, kMaxInt32); };
  TransformerConfig config{};
  config.vocab_size = size("vocabSize");
  config.hidden_size = size("hiddenSize");
  config.num_hidden_layers = size("numHiddenLayers");
  config.num_attention_heads = size("numAttentionHeads");
  config.num_key_value_heads = size("numKeyValueHeads");
  config.head_dim = size("headDim");
  config.intermediate_size = size("intermediateSize");
  config.max_position_embeddings = size("maxPositionEmbeddings");
  config.type_vocab_size = size("typeVocabSize");
  config.norm = fields.choice<NormKind>("norm", {{"layerNorm", NormKind::kLayerNorm}, {"rmsNorm", NormKind::kRmsNorm}});
  config.norm_placement = fields.choice<NormPlacement>(
      "normPlacement", {{"before", NormPlacement::kBefore}, {"after", NormPlacement::kAfter}});
  config.norm_eps = fields.number("normEps");
  config.positions = fields.choice<PositionKind>(
      "positions", {{"learned", PositionKind::kLearned}, {"rotary", PositionKind::kRotary}});
  config.rope_theta = fields.number("ropeTheta");
  config.causal = fields.choice<bool>("attention", {{"causal", true}, {"bidirectional", false}});
  config.hidden_act = fields.choice<Activation>(
      "hiddenAct",
      {{"gelu_new", Activation::kGeluTanh}, {"gelu", Activation::kGeluErf}, {"swiglu", Activation::kSwiglu}});
  config.qkv_bias = fields.boolean("qkvBias");
  config.attention_output_bias = fields.boolean("attentionOutputBias");
  config.mlp_bias = fields.boolean("mlpBias");
  config.tie_word_embeddings = fields.boolean("tieWordEmbeddings");
  config.masked_lm_head = fields.boolean("maskedLmHead");
  config.item_feature_size = size("itemFeatureSize");
  config.embedding_dropout = fields.number("embeddingDropout");
  config.attention_dropout = fields.number("attentionDropout");
  config.hidden_dropout = fields.number("hiddenDropout");
  const auto size_if_any = [&](const char* key) { return fields.get(key).IsUndefined() ? 0 : size(key); };
  config.position_offset = size_if_any("positionOffset");
  config.sliding_window = size_if_any("slidingWindow");
  config.max_window_layers = size_if_any("maxWindowLayers");
  config.qk_norm = !fields.get("qkNorm").IsUndefined() && fields.boolean("qkNorm");
  const Napi::Value rope_scaling = fields.get("ropeScaling");
  if (!rope_scaling.IsUndefined()) config.rope_scaling = read_rope_scaling(Fields(rope_scaling, "ropeScaling"));
  return config;
}

/// A ForwardRequest, copied.
struct ForwardRequest {
  BatchInput batch;
  std::vector<int32_t> logit_rows, labels;
  ForwardInputs inputs;  // without its pointers

  ForwardInputs view() const {
    ForwardInputs view = inputs;
    view.batch = batch.view();
    if (has_logit_rows) view.logit_rows = logit_rows.data();
    view.num_logit_rows = static_cast<int64_t>(logit_rows.size());
    if (has_labels) view.labels = labels.data();
    return view;
  }
  bool has_logit_rows = false, has_labels = false;
};

ForwardRequest read_forward_request(const Fields& fields, const TransformerConfig& config) {
  ForwardRequest request;
  request.batch = read_batch(fields);
  ForwardInputs& inputs = request.inputs;
  if (!fields.get("hiddenStates").IsUndefined()) {
    inputs.hidden_states = fields.integers("hiddenStates", 0, config.num_hidden_layers);
  }
  if (!fields.get("pooling").IsUndefined()) {
    inputs.pooling = fields.choice<Pooling>("pooling", {{"none", Pooling::kNone},
                                                        {"mean", Pooling::kMean},
                                                        {"last", Pooling::kLast},
                                                        {"cls", Pooling::kCls},
                                                        {"attention", Pooling::kAttention}});
  }
  if (!fields.get("attentions").IsUndefined()) {
    inputs.attentions = fields.integers("attentions", 1, config.num_hidden_layers);
  }
  if (!fields.get("valueRelations").IsUndefined()) {
    inputs.value_relations = fields.integers("valueRelations", 1, config.num_hidden_layers);
    if (!inputs.value_relations.empty()) inputs.relation_heads = fields.integer("relationHeads", 1, kMaxInt32);
  }
  const Napi::Value logits = fields.get("logits");
  if (logits.IsObject()) {
    inputs.logits = LogitsForm::kTopK;
    inputs.top_k = Fields(logits, "logits").integer("topK", 1, config.vocab_size);
  } else if (!logits.IsUndefined()) {
    inputs.logits = fields.choice<LogitsForm>("logits", {{"dense", LogitsForm::kDense}});
  }
  if (!fields.get("logitRows").IsUndefined()) {
    request.logit_rows = fields.int32s("logitRows");
    request.has_logit_rows = true;
    if (request.logit_rows.empty()) invalid("Expected logitRows to name at least one token.");
  }
  if (!fields.get("labels").IsUndefined()) {
    request.labels = fields.int32s("labels");
    request.has_labels = true;
    check_count("labels", static_cast<int64_t>(request.labels.size()), request.batch.num_tokens());
  }
  return request;
}

std::vector<std::vector<int64_t>> read_lists(const Fields& fields, const char* key) {
  std::vector<std::vector<int64_t>> lists;
  if (fields.get(key).IsUndefined()) return lists;
  const Napi::Array array = to_array(fields.get(key), fields.name(key));
  for (uint32_t i = 0; i < array.Length(); ++i) {
    lists.push_back(to_integers(array.Get(i), fields.name(key) + "[" + std::to_string(i) + "]", 0, kMaxInt32));
  }
  return lists;
}

ChannelSelection read_channels(const Fields& fields) {
  ChannelSelection channels;
  if (!fields.get("residual").IsUndefined()) channels.residual = fields.integers("residual", 0, kMaxInt32);
  channels.intermediate = read_lists(fields, "intermediate");
  channels.key_value_heads = read_lists(fields, "keyValueHeads");
  return channels;
}

void check_same_parameters(const Parameters& a, const Parameters& b) {
  const auto same = [](const Parameter& x, const Parameter& y) { return x.name == y.name && x.shape == y.shape; };
  const std::vector<Parameter>&x = a.list(), &y = b.list();
  if (!std::equal(x.begin(), x.end(), y.begin(), y.end(), same)) {
    throw Error("ERR_SHAPE_MISMATCH", "Expected source to have the same parameters as the transformer.");
  }
}

/// Of the parameters and item features.
int64_t size_bytes(const Transformer& transformer) {
  const TransformerConfig& config = transformer.config();
  const int64_t features = transformer.item_features() == nullptr ? 0 : config.vocab_size * config.item_feature_size;
  return (transformer.parameters().flat_count() + features) * kFloatBytes;
}

Napi::Value describe(Napi::Env env, const std::vector<Parameter>& list) {
  Napi::Array result = Napi::Array::New(env, list.size());
  for (uint32_t i = 0; i < list.size(); ++i) {
    Napi::Array shape = Napi::Array::New(env, list[i].shape.size());
    for (uint32_t axis = 0; axis < list[i].shape.size(); ++axis) {
      shape.Set(axis, static_cast<double>(list[i].shape[axis]));
    }
    Napi::Object entry = Napi::Object::New(env);
    entry.Set("name", list[i].name);
    entry.Set("shape", shape);
    result.Set(i, entry);
  }
  return result;
}

Napi::Value forward_result(Napi::Env env, const ForwardRequest& request, ForwardOutputs& outputs) {
  const auto arrays = [&](std::vector<FloatBuffer>& tensors) {
    Napi::Array list = Napi::Array::New(env, tensors.size());
    for (uint32_t i = 0; i < tensors.size(); ++i) list.Set(i, new_float32_array(env, std::move(tensors[i])));
    return list;
  };
  Napi::Object result = Napi::Object::New(env);
  result.Set("hiddenStates", arrays(outputs.hidden_states));
  result.Set("attentions", arrays(outputs.attentions));
  result.Set("valueRelations", arrays(outputs.value_relations));
  if (request.inputs.logits == LogitsForm::kDense)
    result.Set("logits", new_float32_array(env, std::move(outputs.logits)));
  if (request.inputs.logits == LogitsForm::kTopK) {
    Napi::Object top_k = Napi::Object::New(env);
    top_k.Set("indices", new_int32_array(env, outputs.top_k_indices));
    top_k.Set("values", new_float32_array(env, outputs.top_k_values));
    top_k.Set("logSumExp", new_float32_array(env, outputs.log_sum_exp));
    result.Set("topK", top_k);
  }
  if (request.has_labels) {
    // Without a label there is no mean.
    if (outputs.num_labels > 0) result.Set("loss", outputs.loss_sum / static_cast<double>(outputs.num_labels));
    result.Set("lossSum", outputs.loss_sum);
    result.Set("numLabels", static_cast<double>(outputs.num_labels));
  }
  return result;
}

}  // namespace

Transformer& SharedModel::host() {
  if (is_host_old_) {
    on_gpu_->get_parameters(transformer_.parameters().late_values());
    uploaded_version_ = transformer_.parameters().version();
    is_host_old_ = false;
  }
  return transformer_;
}

const float* SharedModel::gradients() {
  Parameters& parameters = transformer_.trainable();
  if (has_gpu_gradients_) {
    on_gpu_->get_gradients(parameters.gradients());
    has_gpu_gradients_ = false;
  }
  return parameters.has_gradients() ? parameters.gradients() : nullptr;
}

void SharedModel::check_no_adapter() const {
  if (transformer_.adapter() != nullptr) {
    invalid(
        "This transformer has an adapter, under which its own parameters stay as they are: merge or remove it first.");
  }
}

CudaModel& SharedModel::on_gpu() {
  const bool is_new = on_gpu_ == nullptr;
  if (is_new) on_gpu_ = std::make_unique<CudaModel>(gpu_, transformer_.config());
  const Parameters& parameters = transformer_.parameters();
  // While the GPU's parameters are newer, nothing was written to the host's: host() fetches before.
  if (!is_host_old_ && (is_new || uploaded_version_ != parameters.version())) {
    // An upload that fails is tried again.
    uploaded_version_ = UINT64_MAX;
    on_gpu_->set_parameters(parameters.values());
    uploaded_version_ = parameters.version();
  }
  if (uploaded_features_version_ != transformer_.item_features_version()) {
    on_gpu_->set_item_features(transformer_.item_features());
    uploaded_features_version_ = transformer_.item_features_version();
  }
  return *on_gpu_;
}

void SharedModel::parameters_changed_on_gpu() {
  transformer_.parameters().values();  // another version from now on, though it is fetched later
  is_host_old_ = true;
}

std::unique_ptr<CudaPass> SharedModel::begin_forward(const ForwardInputs& inputs) {
  check_forward(transformer_, inputs);  // before an upload
  return on_gpu().begin_forward(transformer_, inputs);
}

void TransformerObject::define(Napi::Env env) {
  JsClass::define(env, "Transformer",
                  {
                      getter<&TransformerObject::device>("device"),
                      getter<&TransformerObject::num_parameters>("numParameters"),
                      method<&TransformerObject::parameters>("parameters"),
                      method<&TransformerObject::trainable_parameters>("trainableParameters"),
                      method<&TransformerObject::attach_adapter>("attachAdapter"),
                      promise_method<&TransformerObject::merge_adapter>("mergeAdapter"),
                      method<&TransformerObject::remove_adapter>("removeAdapter"),
                      method<&TransformerObject::get_parameter>("getParameter"),
                      method<&TransformerObject::set_parameter>("setParameter"),
                      method<&TransformerObject::parameter_checksum>("parameterChecksum"),
                      method<&TransformerObject::load_parameter>("loadParameter"),
                      method<&TransformerObject::get_gradient>("getGradient"),
                      method<&TransformerObject::initialize>("initialize"),
                      method<&TransformerObject::set_item_features>("setItemFeatures"),
                      method<&TransformerObject::item_table>("itemTable"),
                      method<&TransformerObject::add_item_bias>("addItemBias"),
                      promise_method<&TransformerObject::interpolate>("interpolate"),
                      promise_method<&TransformerObject::interpolate_from>("interpolateFrom"),
                      method<&TransformerObject::copy>("copy"),
                      promise_method<&TransformerObject::forward>("forward"),
                      promise_method<&TransformerObject::project>("project"),
                      method<&TransformerObject::start_generation>("startGeneration"),
                      dispose_method(),
                  });
}

Napi::Object TransformerObject::create(Napi::Env env, std::shared_ptr<TaskQueue> queue, const Napi::Value& config) {
  auto model = std::make_shared<SharedModel>(read_config(config), queue->gpu());
  const int64_t size_bytes = model->layout().parameters().flat_count() * kFloatBytes;
  return wrap(env, std::move(queue), std::move(model), size_bytes);
}

Napi::Value TransformerObject::device(const Napi::CallbackInfo& info) {
  return Napi::String::New(info.Env(), state()->has_gpu() ? "cuda" : "cpu");
}

Napi::Value TransformerObject::num_parameters(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(state()->layout().parameters().num_parameters()));
}

Napi::Value TransformerObject::parameters(const Napi::CallbackInfo& info) {
  return describe(info.Env(), state()->layout().parameters().list());
}

Napi::Value TransformerObject::trainable_parameters(const Napi::CallbackInfo& info) {
  return describe(info.Env(), state()->layout().trainable().list());
}

Napi::Value TransformerObject::attach_adapter(const Napi::CallbackInfo& info) {
  if (state()->has_gpu()) {
    invalid("Adapters run on the processor alone: use an engine with device 'cpu'. A merged model runs on the GPU.");
  }
  const Fields fields(info[0], "adapter");
  AdapterConfig config;
  config.rank = fields.integer("rank", 1, kMaxAdapterRank);
  config.scale = fields.number("scale");
  config.dropout = fields.number("dropout", 0.0f);
  const Napi::Array targets = to_array(fields.get("targets"), fields.name("targets"));
  for (uint32_t i = 0; i < targets.Length(); ++i) {
    const Fields target(targets.Get(i), fields.name("targets") + "[" + std::to_string(i) + "]");
    config.targets.push_back({to_string(target.get("name"), target.name("name")),
                              to_string(target.get("linear"), target.name("linear")),
                              target.integer("firstRow", 0, kMaxInt32), target.integer("numRows", 1, kMaxInt32)});
  }
  const int64_t seed = fields.integer("seed", 0, kMaxSafeInteger);
  Transformer& transformer = idle().host();
  transformer.attach_adapter(std::move(config), static_cast<uint64_t>(seed));
  account(size_bytes(transformer) + transformer.trainable().flat_count() * kFloatBytes);
  return info.Env().Undefined();
}

Napi::Value TransformerObject::merge_adapter(const Napi::CallbackInfo&) {
  const std::shared_ptr<SharedModel> model = state();
  return queue().submit(
      {Hold(model)},
      [model](Context& context, Arena&) {
        model->host().merge_adapter(context);
        return true;
      },
      [](Napi::Env env, bool) { return env.Undefined(); });
}

Napi::Value TransformerObject::remove_adapter(const Napi::CallbackInfo& info) {
  Transformer& transformer = idle().host();
  transformer.remove_adapter();
  account(size_bytes(transformer));
  return info.Env().Undefined();
}

Napi::Value TransformerObject::get_parameter(const Napi::CallbackInfo& info) {
  const Transformer& transformer = idle().host();
  const std::string name = to_string(info[0], "name");
  const Parameters& trainable = transformer.trainable();
  if (trainable.has(name)) {
    const Parameter& parameter = trainable.find(name);
    return new_float32_array(info.Env(), trainable.values() + parameter.offset, parameter.count);
  }
  const Parameter& parameter = transformer.parameters().find(name);
  check_memory(parameter.count * kFloatBytes);
  Napi::Float32Array values = Napi::Float32Array::New(info.Env(), static_cast<size_t>(parameter.count));
  ThreadPool pool(1);
  Arena scratch;
  Context context{pool, scratch};
  transformer.effective_values(context, parameter, values.Data());
  return values;
}

Napi::Value TransformerObject::parameter_checksum(const Napi::CallbackInfo& info) {
  const Transformer& transformer = idle().host();
  const Parameter& parameter = transformer.parameters().find(to_string(info[0], "name"));
  const float* values = transformer.parameters().values() + parameter.offset;
  AlignedFloats adapted;
  if (transformer.adapter() != nullptr) {
    adapted = allocate_floats(parameter.count);
    ThreadPool pool(1);
    Arena scratch;
    Context context{pool, scratch};
    transformer.effective_values(context, parameter, adapted.get());
    values = adapted.get();
  }
  const uint32_t checksum = limbeck::crc32c(values, static_cast<size_t>(parameter.count * kFloatBytes));
  return Napi::Number::New(info.Env(), checksum);
}

Napi::Value TransformerObject::set_parameter(const Napi::CallbackInfo& info) {
  Transformer& transformer = idle().host();
  const std::string name = to_string(info[0], "name");
  Parameters& parameters = transformer.trainable();
  if (!parameters.has(name)) state()->check_no_adapter();
  const Parameter& parameter = parameters.find(name);
  const ArrayView<float> values = float32_view(info[1], "values of " + parameter.name);
  check_count("values of " + parameter.name, values.count, parameter.count);
  std::memcpy(parameters.values() + parameter.offset, values.data, static_cast<size_t>(values.count) * sizeof(float));
  return info.Env().Undefined();
}

Napi::Value TransformerObject::load_parameter(const Napi::CallbackInfo& info) {
  const Fields fields(info[1], "values");
  const auto type = fields.choice<StoredType>("dtype", {{"F32", StoredType::kFloat32},
                                                        {"F16", StoredType::kFloat16},
                                                        {"BF16", StoredType::kBFloat16},
                                                        {"F64", StoredType::kFloat64}});
  const int64_t first = fields.integer("offset", 0, kMaxSafeInteger);
  const bool is_transposed = fields.boolean("isTransposed");
  const ArrayView<uint8_t> bytes = uint8_view(fields.get("bytes"), fields.name("bytes"));

  // No getter of the values runs from here on, so the model stays what it is.
  state()->check_no_adapter();
  Parameters& parameters = idle().host().parameters();
  const Parameter& parameter = parameters.find(to_string(info[0], "name"));
  const int64_t size_bytes = stored_size_bytes(type);
  if (bytes.count % size_bytes != 0) invalid("Expected values.bytes to hold whole values of " + parameter.name + ".");
  const int64_t bad = parameters.load(parameter, type, bytes.data, first, bytes.count / size_bytes, is_transposed);
  return Napi::Number::New(info.Env(), static_cast<double>(bad));
}

Napi::Value TransformerObject::get_gradient(const Napi::CallbackInfo& info) {
  SharedModel& model = idle();
  const Parameter& parameter = model.layout().trainable().find(to_string(info[0], "name"));
  const float* gradients = model.gradients();
  if (gradients == nullptr) invalid("This transformer has no gradients: call computeGradients() of a trainer.");
  return new_float32_array(info.Env(), gradients + parameter.offset, parameter.count);
}

Napi::Value TransformerObject::initialize(const Napi::CallbackInfo& info) {
  const int64_t seed = to_integer(info[0], "seed", 0, kMaxSafeInteger);
  const float range = to_float(info[1], "initializerRange", 0.0f);
  state()->check_no_adapter();
  idle().host().initialize(static_cast<uint64_t>(seed), range);
  return info.Env().Undefined();
}

Napi::Value TransformerObject::set_item_features(const Napi::CallbackInfo& info) {
  Transformer& transformer = idle().host();
  const TransformerConfig& config = transformer.config();
  if (config.item_feature_size == 0) invalid("This transformer has no item features: its itemFeatureSize is 0.");
  const ArrayView<float> features = float32_view(info[0], "features");
  check_count("features", features.count, config.vocab_size * config.item_feature_size);
  const bool is_first = transformer.item_features() == nullptr;
  transformer.set_item_features(features.data);
  if (is_first) account(accounted() + features.count * kFloatBytes);
  return info.Env().Undefined();
}

Napi::Value TransformerObject::item_table(const Napi::CallbackInfo& info) {
  const Transformer& transformer = idle().host();
  ThreadPool pool(1);
  Arena scratch, arena;
  Context context{pool, scratch};
  const float* table = transformer.word_table(context, arena);
  return new_float32_array(info.Env(), table, transformer.config().vocab_size * transformer.config().hidden_size);
}

Napi::Value TransformerObject::add_item_bias(const Napi::CallbackInfo& info) {
  Transformer& transformer = idle().host();
  state()->check_no_adapter();
  const ArrayView<float> bias = float32_view(info[0], "bias");
  check_count("bias", bias.count, transformer.config().vocab_size);
  limbeck::add_item_bias(transformer, bias.data);
  return info.Env().Undefined();
}

Napi::Value TransformerObject::interpolate(const Napi::CallbackInfo& info) {
  const std::shared_ptr<SharedModel> model = state();
  const Parameter& parameter = model->layout().parameters().find(to_string(info[0], "name"));
  const float alpha = to_float(info[2], "alpha");
  model->check_no_adapter();
  auto target = std::make_shared<FloatInput>(info[1], "target of " + parameter.name, parameter.count);
  auto weights = info[3].IsUndefined()
                     ? nullptr
                     : std::make_shared<FloatInput>(info[3], "weights of " + parameter.name, parameter.count);
  return queue().submit(
      {Hold(model)},
      [model, target, weights, offset = parameter.offset, alpha](Context& context, Arena&) {
        float* values = model->host().parameters().values() + offset;
        if (weights == nullptr) {
          limbeck::interpolate(context, values, target->data(), target->count(), alpha);
        } else {
          interpolate_weighted(context, values, target->data(), weights->data(), target->count(), alpha);
        }
        return true;
      },
      [target, weights](Napi::Env env, bool) { return env.Undefined(); });
}

Napi::Value TransformerObject::interpolate_from(const Napi::CallbackInfo& info) {
  const std::shared_ptr<SharedModel> model = state();
  const std::shared_ptr<SharedModel> source = unwrap_of(queue(), info[0], "source").state();
  const float alpha = to_float(info[1], "alpha");
  model->check_no_adapter();
  source->check_no_adapter();
  check_same_parameters(model->layout().parameters(), source->layout().parameters());
  return queue().submit(
      {Hold(model), Hold(source)},
      [model, source, alpha](Context& context, Arena&) {
        if (model->has_gpu()) {
          CudaModel& target = model->on_gpu();
          target.interpolate(source->on_gpu(), alpha);
          model->parameters_changed_on_gpu();
        } else {
          const Parameters& from = source->host().parameters();
          // The gaps are zero in both, and stay so.
          limbeck::interpolate(context, model->host().parameters().values(), from.values(), from.flat_count(), alpha);
        }
        return true;
      },
      [](Napi::Env env, bool) { return env.Undefined(); });
}

Napi::Value TransformerObject::copy(const Napi::CallbackInfo& info) {
  Transformer& from = idle().host();
  const std::shared_ptr<TaskQueue> queue = this->queue().shared_from_this();
  auto copied = std::make_shared<SharedModel>(from.config(), queue->gpu());
  Transformer& to = copied->host();
  const int64_t count = from.parameters().flat_count();
  std::memcpy(to.parameters().values(), from.parameters().values(), static_cast<size_t>(count) * sizeof(float));
  if (from.item_features() != nullptr) to.set_item_features(from.item_features());
  if (from.adapter() != nullptr) {
    const Parameters& adapter = std::as_const(from).trainable();
    to.attach_adapter(from.adapter()->config(), 0);
    std::memcpy(to.trainable().values(), adapter.values(), static_cast<size_t>(adapter.flat_count()) * sizeof(float));
  }
  return wrap(info.Env(), queue, std::move(copied), accounted());
}

Napi::Value TransformerObject::forward(const Napi::CallbackInfo& info) {
  const std::shared_ptr<SharedModel> model = state();
  auto request = std::make_shared<ForwardRequest>(read_forward_request(Fields(info[0], ""), model->config()));
  const auto convert = [request](Napi::Env env, ForwardOutputs& outputs) {
    return forward_result(env, *request, outputs);
  };
  if (model->has_gpu()) {
    return queue().submit_overlapping(
        kMaxPassesAtOnce, {Hold(model)}, [model, request](Context&) { return model->begin_forward(request->view()); },
        [](std::unique_ptr<CudaPass>& pass) { return pass->finish(); }, convert);
  }
  return queue().submit(
      {Hold(model)},
      [model, request](Context& context, Arena& arena) {
        return run_forward(context, arena, model->host(), request->view());
      },
      convert);
}

Napi::Value TransformerObject::project(const Napi::CallbackInfo& info) {
  const std::shared_ptr<SharedModel> target = state();
  const std::shared_ptr<SharedModel> source = unwrap_of(queue(), info[0], "source").state();
  const TransformerConfig& from = source->config();
  const Fields fields(info[1], "map");
  ProjectionMap map;
  map.layers = fields.integers("layers", 1, from.num_hidden_layers);
  map.width = fields.choice<WidthMap>("width", {{"selection", WidthMap::kSelection}, {"pca", WidthMap::kPca}});
  const Napi::Value channels = fields.get("channels");
  if (!channels.IsUndefined()) map.channels = read_channels(Fields(channels, "map.channels"));
  FloatInput components;
  const bool turns = map.width == WidthMap::kPca && !fields.get("components").IsUndefined();
  if (turns) {
    components = FloatInput(fields.get("components"), fields.name("components"),
                            target->config().hidden_size * from.hidden_size);
  }
  return queue().submit(
      {Hold(target), Hold(source)},
      [target, source, map, turns, components = std::move(components)](Context& context, Arena&) mutable {
        map.components = turns ? components.data() : nullptr;
        return limbeck::project(context, source->host(), target->config(), map);
      },
      [](Napi::Env env, const std::vector<ProjectedParameter>& projected) -> Napi::Value {
        Napi::Array result = Napi::Array::New(env, projected.size());
        for (uint32_t i = 0; i < projected.size(); ++i) {
          Napi::Object entry = Napi::Object::New(env);
          entry.Set("name", projected[i].name);
          entry.Set("values", new_float32_array(env, projected[i].values));
          result.Set(i, entry);
        }
        return result;
      });
}

Napi::Value TransformerObject::start_generation(const Napi::CallbackInfo& info) {
  return GenerationObject::create(info.Env(), queue().shared_from_this(), state(), info[0]);
}

}  // namespace limbeck
