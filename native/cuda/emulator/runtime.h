#pragma once

// The functions of the CUDA runtime that we call, over the memory of the process. Streams do their work at once, or
// write it down while a graph is captured; on a machine that is lazy, as late as they may.
// See NVIDIA's CUDA Runtime
// API for what each means.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <tuple>
#include <type_traits>

#include "cuda/emulator/blocks.h"

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorECCUncorrectable = 214,
  cudaErrorNotReady = 600,
  cudaErrorIllegalAddress = 700,
  cudaErrorLaunchTimeout = 702,
  cudaErrorHardwareStackError = 714,
  cudaErrorIllegalInstruction = 715,
  cudaErrorMisalignedAddress = 716,
  cudaErrorInvalidAddressSpace = 717,
  cudaErrorInvalidPc = 718,
  cudaErrorLaunchFailure = 719,
  cudaErrorSystemDriverMismatch = 803,
  cudaErrorStreamCaptureUnsupported = 900,
  cudaErrorStreamCaptureInvalidated = 901,
  cudaErrorUnknown = 999,
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
};
enum cudaStreamCaptureMode {
  cudaStreamCaptureModeGlobal,
  cudaStreamCaptureModeThreadLocal,
  cudaStreamCaptureModeRelaxed
};
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
constexpr unsigned cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2, cudaHostAllocDefault = 0;

struct cudaDeviceProp {
  char name[256];
  int major, minor, multiProcessorCount;
  size_t totalGlobalMem, sharedMemPerBlockOptin;
  int l2CacheSize;
};

namespace limbeck::cuda::emulator {
struct Stream;
struct Event;
struct Graph;
struct GraphExec;
}  // namespace limbeck::cuda::emulator
using cudaStream_t = limbeck::cuda::emulator::Stream*;
using cudaEvent_t = limbeck::cuda::emulator::Event*;
using cudaGraph_t = limbeck::cuda::emulator::Graph*;
using cudaGraphExec_t = limbeck::cuda::emulator::GraphExec*;

cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaGetLastError();
const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);

cudaError_t cudaMalloc(void** pointer, size_t size_bytes);
template <typename T>
cudaError_t cudaMalloc(T** pointer, size_t size_bytes) {
  return cudaMalloc(reinterpret_cast<void**>(pointer), size_t{size_bytes});
}
cudaError_t cudaFree(void* pointer);
cudaError_t cudaHostAlloc(void** pointer, size_t size_bytes, unsigned flags);
template <typename T>
cudaError_t cudaHostAlloc(T** pointer, size_t size_bytes, unsigned flags) {
  return cudaHostAlloc(reinterpret_cast<void**>(pointer), size_t{size_bytes}, flags);
}
cudaError_t cudaFreeHost(void* pointer);
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes);
cudaError_t cudaMemcpy(void* to, const void* from, size_t size_bytes, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size_bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width_bytes,
                              size_t num_rows, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemset(void* to, int value, size_t size_bytes);
cudaError_t cudaMemsetAsync(void* to, int value, size_t size_bytes, cudaStream_t stream);

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags = 0);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventCreate(cudaEvent_t* event);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = nullptr);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end);

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long flags = 0);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int value) {
  return value <= 227 * 1024 ? cudaSuccess : cudaErrorInvalidValue;
}

namespace limbeck::cuda::emulator {

/// What the machine that is emulated has, and where it fails. Tests change it; reset() makes it whole again.
struct Machine {
  int driver_version = 13000;  // 0: no driver is installed
  int num_devices = 1;
  int major = 9, minor = 0;
  int num_multiprocessors = 4;
  size_t total_bytes = size_t{4} << 30;
  size_t used_by_others_bytes = 0;
  bool has_cublas = true;
  bool has_preferred_algorithms = true;   // else cuBLASLt refuses algorithms that it did not offer
  bool runs_preferred_algorithms = true;  // else only when they are to run
  size_t failing_allocation_bytes = std::numeric_limits<size_t>::max();  // larger ones fail, whatever is free
  /// Work waits until the host waits for it, or asks whether it is done: that of the stream that is waited for is then
  /// done, and what this waits for by events, but nothing of other streams.
  bool is_lazy = false;
  int64_t calls_until_lost = -1;  // this many launches, copies and waits succeed, then the device is lost; −1: never

  void reset() { *this = Machine(); }
};
Machine& machine();
/// Bytes of device memory that are allocated now.
size_t allocated_bytes();

/// Hands out and takes back parts of an allocation: what is not handed out must not be touched, what is is poison. In
/// the order of this stream, or, without one, of all.
void reveal(cudaStream_t stream, void* address, size_t size_bytes);
void hide(cudaStream_t stream, void* address, size_t size_bytes);

/// Does the work now, or when the graph under capture is launched.
cudaError_t enqueue(cudaStream_t stream, std::function<void()> work);
cudaError_t launch(cudaStream_t stream, dim3 grid, dim3 block, size_t shared_bytes, int cluster_size,
                   std::function<void()> kernel);

template <typename... Parameters>
cudaError_t launch_kernel(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, int cluster_size,
                          cudaStream_t stream, std::decay_t<Parameters>... arguments) {
  return launch(
      stream, grid, block, shared_bytes, cluster_size,
      [kernel, copies = std::tuple<std::decay_t<Parameters>...>(arguments...)] { std::apply(kernel, copies); });
}

}  // namespace limbeck::cuda::emulator
