#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "core/rng.h"
#include "cuda/context.h"
#include "cuda/cublas_lt.h"
#include "cuda/launch.h"
#include "test.h"

namespace limbeck_test {

using limbeck::cuda::bf16;

/// A device with a stream of its own and an arena that grows.
class TestDevice {
 public:
  TestDevice() : context{make_stream(), arena_, blas_, num_multiprocessors()} {}
  ~TestDevice() {
    cudaStreamSynchronize(context.stream);
    cudaStreamDestroy(context.stream);
  }

 private:
  static cudaStream_t make_stream() {
    cudaStream_t stream;
    limbeck::cuda::check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    return stream;
  }
  static int num_multiprocessors() {
    cudaDeviceProp properties;
    limbeck::cuda::check_cuda(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
    return properties.multiProcessorCount;
  }

  limbeck::cuda::DeviceArena arena_;
  limbeck::cuda::CublasLt blas_;

 public:
  limbeck::cuda::Context context;
};

/// x as T holds it.
template <typename T>
float rounded(float x) {
  return limbeck::cuda::to_float(limbeck::cuda::from_float<T>(x));
}
template <typename T>
std::vector<float> rounded(std::vector<float> x) {
  for (float& value : x) value = rounded<T>(value);
  return x;
}

/// An array in device memory of its own, so that an overrun is seen.
template <typename T>
class DeviceArray {
 public:
  /// Every byte is `poison`: with 0xFF, numbers are NaN.
  explicit DeviceArray(int64_t count, int poison = 0xFF) : count_(count) {
    limbeck::cuda::check_cuda(cudaMalloc(&data_, size_bytes()), "cudaMalloc");
    if (count > 0) limbeck::cuda::check_cuda(cudaMemset(data_, poison, size_bytes()), "cudaMemset");
    limbeck::cuda::check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  }
  DeviceArray(const std::vector<T>& host) : DeviceArray(static_cast<int64_t>(host.size())) { set(host); }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return data_; }
  int64_t count() const { return count_; }
  void set(const std::vector<T>& host) {
    if (host.empty()) return;
    limbeck::cuda::check_cuda(cudaMemcpy(data_, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice),
                              "cudaMemcpy");
    limbeck::cuda::check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");  // it may still be on its way
  }
  /// Waits for all work of the device.
  std::vector<T> get() const {
    std::vector<T> host(count_);
    limbeck::cuda::check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    if (count_ > 0) {
      limbeck::cuda::check_cuda(cudaMemcpy(host.data(), data_, size_bytes(), cudaMemcpyDeviceToHost), "cudaMemcpy");
    }
    return host;
  }
  /// get() of float or bf16 as floats.
  std::vector<float> floats() const {
    std::vector<float> out;
    for (T value : get()) out.push_back(limbeck::cuda::to_float(value));
    return out;
  }

 private:
  size_t size_bytes() const { return static_cast<size_t>(count_) * sizeof(T); }

  T* data_ = nullptr;
  int64_t count_;
};

/// Floats rounded to T, for DeviceArray<T>.
template <typename T>
std::vector<T> converted(const std::vector<float>& x) {
  std::vector<T> out;
  for (float value : x) out.push_back(limbeck::cuda::from_float<T>(value));
  return out;
}

/// Standard normals times `scale`.
inline std::vector<float> random_floats(int64_t count, uint64_t seed, float scale = 1) {
  std::vector<float> out(count);
  limbeck::Philox{seed, 77}.fill_normal(out.data(), static_cast<uint64_t>(count));
  for (float& value : out) value *= scale;
  return out;
}

template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

}  // namespace limbeck_test
