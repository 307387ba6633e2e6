#pragma once

#include <napi.h>

#include <cstdint>
#include <exception>
#include <initializer_list>
#include <memory>
#include <string>
#include <utility>

#include "core/error.h"
#include "napi/convert.h"
#include "napi/task_queue.h"

namespace limbeck {

/// What one JS environment (the main thread or a worker) holds of this addon.
struct AddonData {
  Napi::FunctionReference engine, transformer, trainer, recommender, text_encoder, generation, importance;
};

/// A JS class. `new object.constructor()` from JS gives an empty object, whose methods throw ERR_DISPOSED. T has
///   kTypeTag, kName   what tells its objects from others, and the word for one in messages
///   kConstructor      the member of AddonData that holds its constructor
template <typename T>
class JsClass : public Napi::ObjectWrap<T> {
 public:
  explicit JsClass(const Napi::CallbackInfo& info) : Napi::ObjectWrap<T>(info) {
    info.This().template As<Napi::Object>().TypeTag(&T::kTypeTag);
  }

  /// Error("ERR_INVALID_ARGUMENT") when the value is no object of this class.
  static T& unwrap(const Napi::Value& value, const std::string& what) {
    if (!value.IsObject() || !value.As<Napi::Object>().CheckTypeTag(&T::kTypeTag)) {
      invalid("Expected " + what + " to be a " + T::kName + " of this engine.");
    }
    return *T::Unwrap(value.As<Napi::Object>());
  }

 protected:
  using Method = Napi::Value (T::*)(const Napi::CallbackInfo&);
  using Property = Napi::ClassPropertyDescriptor<T>;

  static Napi::Object construct(Napi::Env env) { return (env.GetInstanceData<AddonData>()->*T::kConstructor).New({}); }

  static void define(Napi::Env env, const char* name, const std::initializer_list<Property>& properties) {
    env.GetInstanceData<AddonData>()->*T::kConstructor = Napi::Persistent(T::DefineClass(env, name, properties));
  }

  template <Method kMethod>
  static Property method(const char* name) {
    return T::InstanceMethod(name, static_cast<Method>(&JsClass::template call<kMethod>));
  }

  /// What the method throws becomes a rejected promise.
  template <Method kMethod>
  static Property promise_method(const char* name) {
    return T::InstanceMethod(name, static_cast<Method>(&JsClass::template call_promise<kMethod>));
  }

  template <Method kMethod>
  static Property getter(const char* name) {
    napi_property_descriptor property{};
    property.utf8name = name;
    property.getter = call_getter<kMethod>;
    return Property(property);
  }

 private:
  template <Method kMethod>
  Napi::Value call(const Napi::CallbackInfo& info) {
    return with_js_errors(info.Env(), [&] { return (static_cast<T*>(this)->*kMethod)(info); });
  }

  template <Method kMethod>
  Napi::Value call_promise(const Napi::CallbackInfo& info) {
    try {
      return (static_cast<T*>(this)->*kMethod)(info);
    } catch (...) {
      const auto deferred = Napi::Promise::Deferred::New(info.Env());
      deferred.Reject(to_js_error(info.Env(), std::current_exception()).Value());
      return deferred.Promise();
    }
  }

  // Node checks the receiver of a method, but not that of a getter; nor does InstanceAccessor().
  template <Method kMethod>
  static napi_value call_getter(napi_env env, napi_callback_info raw_info) {
    try {
      const Napi::CallbackInfo info(env, raw_info);
      return (unwrap(info.This(), "this").*kMethod)(info);
    } catch (...) {
      to_js_error(env, std::current_exception()).ThrowAsJavaScriptException();
      return nullptr;
    }
  }
};

/// A JS class whose objects belong to an engine and share a native State with queued tasks. An object may belong to
/// none: then it has synchronous methods only.
template <typename T, typename State>
class EngineObject : public JsClass<T> {
 public:
  using JsClass<T>::JsClass;

  ~EngineObject() { account(0); }

  /// Error("ERR_DISPOSED") once the object or its engine was disposed of.
  const std::shared_ptr<State>& state() const {
    if (state_ == nullptr) throw Error("ERR_DISPOSED", std::string("This ") + T::kName + " was disposed of.");
    if (queue_ != nullptr) queue_->check_running();
    return state_;
  }

  /// As state(), and Error("ERR_BUSY") while a task that uses the object waits or runs.
  State& idle() const {
    const std::shared_ptr<State>& state = this->state();
    if (state->pending > 0) {
      throw Error("ERR_BUSY",
                  std::string("This ") + T::kName + " is at work: await the promises of its earlier calls.");
    }
    return *state;
  }

  /// Error("ERR_INVALID_ARGUMENT") for an object that belongs to no engine.
  TaskQueue& queue() const {
    if (queue_ == nullptr) invalid(std::string("This ") + T::kName + " was opened from a handle, without an engine.");
    return *queue_;
  }

  /// Error("ERR_INVALID_ARGUMENT") unless the value is an object of this class and of this engine.
  static T& unwrap_of(const TaskQueue& queue, const Napi::Value& value, const std::string& what) {
    T& object = JsClass<T>::unwrap(value, what);
    object.state();
    if (object.queue_.get() != &queue) invalid("Expected " + what + " to belong to the same engine.");
    return object;
  }

 protected:
  /// A new JS object around `state`, which takes about `size_bytes` outside V8's heap.
  static Napi::Object wrap(Napi::Env env, std::shared_ptr<TaskQueue> queue, std::shared_ptr<State> state,
                           int64_t size_bytes) {
    const Napi::Object object = JsClass<T>::construct(env);
    T& wrapper = *T::Unwrap(object);
    wrapper.queue_ = std::move(queue);
    wrapper.state_ = std::move(state);
    wrapper.account(size_bytes);
    return object;
  }

  static typename JsClass<T>::Property dispose_method() {
    return T::InstanceMethod("dispose", static_cast<typename JsClass<T>::Method>(&EngineObject::dispose));
  }

  /// Tells V8 how much memory hangs on this small object, so that it collects in time.
  void account(int64_t size_bytes) {
    int64_t total = 0;
    napi_adjust_external_memory(this->Env(), size_bytes - size_bytes_, &total);
    size_bytes_ = size_bytes;
  }
  int64_t accounted() const { return size_bytes_; }

 private:
  Napi::Value dispose(const Napi::CallbackInfo& info) {
    return with_js_errors(info.Env(), [&] {
      if (state_ != nullptr && state_->pending > 0) idle();  // says that it is busy
      state_.reset();
      account(0);
      return info.Env().Undefined();
    });
  }

  std::shared_ptr<TaskQueue> queue_;
  std::shared_ptr<State> state_;
  int64_t size_bytes_ = 0;
};

}  // namespace limbeck
