#pragma once

#include <napi.h>

#include <memory>
#include <utility>

#include "accelerator/cuda_library.h"
#include "model/transformer.h"
#include "napi/object.h"

namespace limbeck {

/// A model shared by its JS object, its trainers and queued tasks. On an engine with a GPU its parameters live in two
/// places: host() and on_gpu() bring what they return up to date with what was written last. Both are called by the
/// task that holds the model, or on the JS thread while none does.
class SharedModel : public Shareable {
 public:
  /// `gpu` is null on an engine without one.
  SharedModel(const TransformerConfig& config, std::shared_ptr<CudaEngine> gpu)
      : gpu_(std::move(gpu)), transformer_(config) {}

  const TransformerConfig& config() const { return transformer_.config(); }
  /// Names, shapes and configuration, at any time. Its values may be old: they are host()'s.
  const Transformer& layout() const { return transformer_; }
  /// The model on the host. What is written to it is on the GPU at the next on_gpu().
  Transformer& host();
  /// The same for an object that keeps it, and calls host() before each use.
  static std::shared_ptr<Transformer> keep(const std::shared_ptr<SharedModel>& model) {
    return std::shared_ptr<Transformer>(model, &model->transformer_);
  }
  /// Gradients of what is trainable, of the last compute_gradients() or step(), wherever it ran; null before.
  /// [flat_count]
  const float* gradients();
  /// Error("ERR_INVALID_ARGUMENT") with an adapter, for what changes or copies the model's own parameters.
  void check_no_adapter() const;

  bool has_gpu() const { return gpu_ != nullptr; }
  const std::shared_ptr<CudaEngine>& gpu() const { return gpu_; }
  /// With a GPU only. Throws the errors of CudaModel.
  CudaModel& on_gpu();
  /// After on_gpu(): what was written there.
  void parameters_changed_on_gpu();
  void gradients_changed_on_gpu() { has_gpu_gradients_ = true; }

  /// With a GPU only: passes overlap.
  std::unique_ptr<CudaPass> begin_forward(const ForwardInputs& inputs);

 private:
  std::shared_ptr<CudaEngine> gpu_;
  Transformer transformer_;
  std::unique_ptr<CudaModel> on_gpu_;
  uint64_t uploaded_version_ = 0, uploaded_features_version_ = 0;  // of the host's, when the GPU's were the same
  bool is_host_old_ = false;                                       // the GPU's parameters are newer
  bool has_gpu_gradients_ = false;                                 // the GPU's gradients are newer
};

/// NativeTransformer of src/binding.ts.
class TransformerObject : public EngineObject<TransformerObject, SharedModel> {
 public:
  static constexpr napi_type_tag kTypeTag = {0x4c1d2f0e6b7a4931, 0xa1c5e2d98f304b01};
  static constexpr const char* kName = "transformer";
  static constexpr Napi::FunctionReference AddonData::*kConstructor = &AddonData::transformer;

  using EngineObject::EngineObject;
  static void define(Napi::Env env);
  static Napi::Object create(Napi::Env env, std::shared_ptr<TaskQueue> queue, const Napi::Value& config);

 private:
  friend class JsClass<TransformerObject>;
  Napi::Value device(const Napi::CallbackInfo& info);
  Napi::Value num_parameters(const Napi::CallbackInfo& info);
  Napi::Value parameters(const Napi::CallbackInfo& info);
  Napi::Value trainable_parameters(const Napi::CallbackInfo& info);
  Napi::Value attach_adapter(const Napi::CallbackInfo& info);
  Napi::Value merge_adapter(const Napi::CallbackInfo& info);
  Napi::Value remove_adapter(const Napi::CallbackInfo& info);
  Napi::Value get_parameter(const Napi::CallbackInfo& info);
  Napi::Value set_parameter(const Napi::CallbackInfo& info);
  Napi::Value parameter_checksum(const Napi::CallbackInfo& info);
  Napi::Value load_parameter(const Napi::CallbackInfo& info);
  Napi::Value get_gradient(const Napi::CallbackInfo& info);
  Napi::Value initialize(const Napi::CallbackInfo& info);
  Napi::Value set_item_features(const Napi::CallbackInfo& info);
  Napi::Value item_table(const Napi::CallbackInfo& info);
  Napi::Value add_item_bias(const Napi::CallbackInfo& info);
  Napi::Value interpolate(const Napi::CallbackInfo& info);
  Napi::Value interpolate_from(const Napi::CallbackInfo& info);
  Napi::Value copy(const Napi::CallbackInfo& info);
  Napi::Value forward(const Napi::CallbackInfo& info);
  Napi::Value project(const Napi::CallbackInfo& info);
  Napi::Value start_generation(const Napi::CallbackInfo& info);
};

}  // namespace limbeck
