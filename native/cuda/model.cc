// The model of model.h on the device: its parameters, their gradients and the tables made of them.

#include "cuda/model.h"

#include <cmath>
#include <type_traits>

#include "core/error.h"
#include "cuda/elementwise.h"
#include "cuda/gemm.h"
#include "cuda/launch.h"
#include "model/rope.h"

namespace limbeck::cuda {

namespace {

constexpr int64_t kTableRows = 64;        // rows of tables are rounded up to a multiple of it, see OutputTable
constexpr int64_t kTensorElements = 128;  // 256 bytes of bf16

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

/// Whether a product sets the gradient of a parameter, so that it need not be zeros before: the blocks' weights always,
/// the two tables where the softmax is over all of the vocabulary.
bool is_gradient_set_at_once(const Parameter& parameter) {
  const bool is_of_block = parameter.name.rfind("layers.", 0) == 0;
  return (is_of_block && parameter.shape.size() == 2) || parameter.name == "embeddings.word" ||
         parameter.name == "head.output.weight";
}

}  // namespace

template <typename T>
Transformer<T>::Transformer(Engine& engine, const TransformerConfig& config) : Model(engine, config) {
  check_config(config);
  padded_vocab_size_ = round_up(config.vocab_size, kTableRows);
  for (Parameter& parameter : list_parameters(config, &host_count_)) {
    const bool has_vocab_rows = parameter.shape[0] == config.vocab_size &&
                                (parameter.name == "embeddings.word" || parameter.name == "head.output.weight" ||
                                 parameter.name == "head.bias");
    const int64_t row = parameter.count / parameter.shape[0];
    const int64_t padded = has_vocab_rows ? padded_vocab_size_ * row : parameter.count;
    index_.emplace(parameter.name, tensors_.size());
    tensors_.push_back({std::move(parameter), 0, padded});
  }
  const auto place = [&](bool is_set_at_once) {
    for (Tensor& tensor : tensors_) {
      if (is_gradient_set_at_once(tensor.parameter) != is_set_at_once) continue;
      tensor.offset = device_count_;
      device_count_ += round_up(tensor.padded_count, kTensorElements);
    }
  };
  place(true);
  first_added_ = device_count_;
  place(false);

  const bool is_rotary = config.positions == PositionKind::kRotary;
  const int64_t positions = config.position_rows(), half = config.head_dim / 2;
  engine.reserve(memory_, [&](DeviceArena& memory) {
    values_ = memory.allocate<float>(device_count_);
    if constexpr (std::is_same_v<T, float>) {
      compute_ = values_;
    } else {
      compute_ = memory.allocate<T>(device_count_);
    }
    if (config.item_feature_size > 0) {
      item_features_ = memory.allocate<T>(padded_vocab_size_ * config.item_feature_size);
    }
    if (is_rotary) {
      cosines_ = memory.allocate<float>(positions * half);
      sines_ = memory.allocate<float>(positions * half);
    }
  });

  Context context = engine.context();
  set_zero(context, values_, device_count_);
  if (is_rotary) {
    const std::vector<double> frequencies =
        rotary_frequencies(config.rope_scaling, static_cast<double>(config.rope_theta), config.head_dim);
    const double scale = static_cast<double>(config.rope_scaling.attention_factor);
    std::vector<float> cosines(static_cast<size_t>(positions * half)), sines(cosines.size());
    for (int64_t p = 0; p < positions; ++p) {
      for (int64_t j = 0; j < half; ++j) {
        const double angle = static_cast<double>(p) * frequencies[static_cast<size_t>(j)];
        cosines[static_cast<size_t>(p * half + j)] = static_cast<float>(scale * std::cos(angle));
        sines[static_cast<size_t>(p * half + j)] = static_cast<float>(scale * std::sin(angle));
      }
    }
    copy_to_device(context, cosines_, cosines.data(), positions * half);
    copy_to_device(context, sines_, sines.data(), positions * half);
    engine.synchronize();
  }
  refresh_compute(context);
  engine.synchronize();
  bind();
}

template <typename T>
const typename Transformer<T>::Tensor* Transformer<T>::find(const std::string& name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

template <typename T>
const float* Transformer<T>::master(const std::string& name) const {
  const Tensor* tensor = find(name);
  return tensor == nullptr ? nullptr : values_ + tensor->offset;
}

template <typename T>
const T* Transformer<T>::compute(const std::string& name) const {
  const Tensor* tensor = find(name);
  return tensor == nullptr ? nullptr : compute_ + tensor->offset;
}

template <typename T>
float* Transformer<T>::gradient(const std::string& name) const {
  const Tensor* tensor = find(name);
  return tensor == nullptr || gradients_ == nullptr ? nullptr : gradients_ + tensor->offset;
}

template <typename T>
typename Transformer<T>::Norm Transformer<T>::norm(const std::string& name) const {
  return {master(name + ".weight"), master(name + ".bias"), gradient(name + ".weight"), gradient(name + ".bias")};
}

template <typename T>
typename Transformer<T>::Linear Transformer<T>::linear(const std::string& name) const {
  return {compute(name + ".weight"), compute(name + ".bias"), gradient(name + ".weight"), gradient(name + ".bias")};
}

template <typename T>
void Transformer<T>::bind() {
  blocks_.clear();
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    const std::string prefix = "layers." + std::to_string(layer) + ".";
    Block block;
    block.attention_norm = norm(prefix + "attention_norm");
    block.mlp_norm = norm(prefix + "mlp_norm");
    block.query_norm = norm(prefix + "attention.q_norm");
    block.key_norm = norm(prefix + "attention.k_norm");
    block.qkv = linear(prefix + "attention.qkv");
    block.attention_output = linear(prefix + "attention.output");
    block.mlp_input = linear(prefix + "mlp.input");
    block.mlp_output = linear(prefix + "mlp.output");
    blocks_.push_back(block);
  }
  embedding_norm_ = norm("embeddings.norm");
  final_norm_ = norm("final_norm");
  head_norm_ = norm("head.norm");
  head_dense_ = linear("head.dense");
}

template <typename T>
void Transformer<T>::refresh_compute(Context& context) {
  if constexpr (!std::is_same_v<T, float>) convert<float, T>(context, values_, compute_, device_count_);
}

template <typename T>
void Transformer<T>::upload(const float* flat, float* device) {
  engine.make_current();
  Context context = engine.context();
  for (const Tensor& tensor : tensors_) {
    copy_to_device(context, device + tensor.offset, flat + tensor.parameter.offset, tensor.parameter.count);
  }
  engine.synchronize();
}

template <typename T>
void Transformer<T>::download(const float* device, float* flat) {
  engine.make_current();
  Context context = engine.context();
  for (const Tensor& tensor : tensors_) {
    copy_to_host(context, flat + tensor.parameter.offset, device + tensor.offset, tensor.parameter.count);
  }
  engine.synchronize();
}

template <typename T>
void Transformer<T>::set_parameters(const float* flat) {
  upload(flat, values_);
  Context context = engine.context();
  refresh_compute(context);
  engine.synchronize();
}

template <typename T>
void Transformer<T>::get_parameters(float* flat) {
  download(values_, flat);
}

template <typename T>
void Transformer<T>::get_gradients(float* flat) {
  if (gradients_ == nullptr) throw Error("ERR_INVALID_ARGUMENT", "This transformer has no gradients yet.");
  download(gradients_, flat);
}

template <typename T>
void Transformer<T>::set_item_features(const float* features) {
  const int64_t count = config.vocab_size * config.item_feature_size;
  engine.run([&](Context& context) {
    float* rows = context.arena.template allocate<float>(count);  // [V, f]
    copy_to_device(context, rows, features, count);
    set_zero(context, item_features_, padded_vocab_size_ * config.item_feature_size);
    convert<float, T>(context, rows, item_features_, count);
  });
  has_item_features_ = true;
}

template <typename T>
void Transformer<T>::interpolate(const Model& source, float alpha) {
  const auto* other = dynamic_cast<const Transformer<T>*>(&source);
  if (other == nullptr || &other->engine != &engine || other->device_count_ != device_count_) {
    throw Error("ERR_SHAPE_MISMATCH", "Expected two models of one configuration on one GPU.");
  }
  engine.make_current();
  Context context = engine.context();
  bf16* rounded = nullptr;
  if constexpr (std::is_same_v<T, bf16>) rounded = compute_;
  cuda::interpolate(context, values_, other->values_, nullptr, rounded, device_count_, alpha);
  engine.synchronize();
}

template <typename T>
void Transformer<T>::require_gradients() {
  if (gradients_ != nullptr) return;
  engine.reserve(gradient_memory_, [&](DeviceArena& memory) { gradients_ = memory.allocate<float>(device_count_); });
  Context context = engine.context();
  set_zero(context, gradients_, device_count_);
  bind();
}

template <typename T>
void Transformer<T>::zero_added_gradients(Context& context) const {
  set_zero(context, gradients_ + first_added_, device_count_ - first_added_);
}

template <typename T>
void Transformer<T>::zero_table_gradient(Context& context, const std::string& name) const {
  if (const Tensor* table = find(name)) set_zero(context, gradients_ + table->offset, table->padded_count);
}

template <typename T>
std::vector<OptimizerTensor> Transformer<T>::optimizer_tensors(float* first, float* second, float weight_decay,
                                                               const uint8_t* touched_words) const {
  std::vector<OptimizerTensor> result;
  for (const Tensor& tensor : tensors_) {
    const auto at = [&](float* array) { return array == nullptr ? nullptr : array + tensor.offset; };
    bf16* rounded = nullptr;
    if constexpr (std::is_same_v<T, bf16>) rounded = compute_ + tensor.offset;
    result.push_back({at(values_), at(gradients_), at(first), at(second), rounded, tensor.parameter.count,
                      tensor.parameter.shape.size() >= 2 ? weight_decay : 0.0f, nullptr, 0});
    if (touched_words != nullptr && tensor.parameter.name == "embeddings.word") {
      result.back().touched_rows = touched_words;
      result.back().row_size = config.hidden_size;
    }
  }
  return result;
}

template <typename T>
const T* Transformer<T>::word_table(Context& context) const {
  const T* word = compute("embeddings.word");  // v [padded V, d]
  if (config.item_feature_size == 0) return word;
  if (!has_item_features_) {
    throw Error("ERR_INVALID_ARGUMENT", "This model has item features: call setItemFeatures() first.");
  }
  const int64_t d = config.hidden_size, f = config.item_feature_size;
  T* table = context.arena.template allocate<T>(padded_vocab_size_ * d);  // [padded V, d]
  linear_forward<T>(context, item_features_, compute("item_projection.weight"), nullptr, word, table,
                    padded_vocab_size_, f, d);
  return table;
}

template <typename T>
OutputTable<T> Transformer<T>::output_table(const T* word_table) const {
  const T* weight = config.tie_word_embeddings ? word_table : compute("head.output.weight");
  return {weight, compute("head.bias"), config.vocab_size, padded_vocab_size_};
}

template class Transformer<float>;
template class Transformer<bf16>;

}  // namespace limbeck::cuda
