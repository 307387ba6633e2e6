#include "cuda/emulator/runtime.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <new>
#include <vector>

#include "cuda/emulator/sanitizer.h"

namespace limbeck::cuda::emulator {

struct Graph {
  std::vector<std::function<void()>> work;
};
struct GraphExec {
  std::shared_ptr<const std::vector<std::function<void()>>> work;  // outlives it while it is on a stream
};
/// What a stream of a lazy machine has not done yet.
struct Backlog {
  std::deque<std::function<void()>> work;
  uint64_t num_given = 0, num_done = 0;

  void add(std::function<void()> piece) {
    work.push_back(std::move(piece));
    ++num_given;
  }
  void do_until(uint64_t count) {
    while (num_done < count) {
      const std::function<void()> piece = std::move(work.front());
      work.pop_front();
      piece();
      ++num_done;
    }
  }
};

struct Stream {
  std::unique_ptr<Graph> capture;
  std::shared_ptr<Backlog> backlog = std::make_shared<Backlog>();
};
struct Event {
  std::shared_ptr<std::chrono::steady_clock::time_point> time =
      std::make_shared<std::chrono::steady_clock::time_point>();
  std::shared_ptr<Backlog> backlog;  // of the stream that recorded it last, or null
  uint64_t num_before = 0;           // pieces of its work that the event waits for

  void wait() const {
    if (backlog != nullptr) backlog->do_until(num_before);
  }
};

Machine& machine() {
  static Machine the_machine;
  return the_machine;
}

namespace {

constexpr size_t kGuardBytes = 256;
constexpr unsigned char kGuardByte = 0xA5;

thread_local cudaError_t last_error = cudaSuccess;
thread_local Stream* capturing = nullptr;
bool is_lost = false;

/// Of the machine and the allocations.
std::recursive_mutex& mutex() {
  static std::recursive_mutex the_mutex;
  return the_mutex;
}
using Lock = std::lock_guard<std::recursive_mutex>;

std::map<void*, size_t>& allocations() {
  static std::map<void*, size_t> map;
  return map;
}

cudaError_t remember(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

/// Of all streams, the latest first.
std::deque<std::shared_ptr<Backlog>>& backlogs() {
  static std::deque<std::shared_ptr<Backlog>> all;
  return all;
}

void do_all() {
  const Lock lock(mutex());
  for (const std::shared_ptr<Backlog>& backlog : backlogs()) backlog->do_until(backlog->num_given);
}

/// Now, or in its turn. Without a stream, when all work that was given is done.
void do_in_turn(cudaStream_t stream, std::function<void()> work) {
  {
    const Lock lock(mutex());
    if (machine().is_lazy && stream != nullptr) return stream->backlog->add(std::move(work));
    do_all();
  }
  work();
}

cudaError_t driver_error() {
  if (machine().driver_version == 0) return cudaErrorInsufficientDriver;  // what the runtime says without a driver
  if (machine().driver_version < 13000) return cudaErrorInsufficientDriver;
  if (machine().num_devices == 0) return cudaErrorNoDevice;
  return cudaSuccess;
}

/// Of every call that does work: counts towards the loss of the device, which stays lost until the machine is reset.
cudaError_t call_device() {
  const Lock lock(mutex());
  Machine& m = machine();
  if (m.calls_until_lost < 0) {
    is_lost = false;
  } else if (m.calls_until_lost == 0) {
    is_lost = true;
  } else {
    --m.calls_until_lost;
  }
  const cudaError_t error = driver_error();
  return remember(error != cudaSuccess ? error : is_lost ? cudaErrorLaunchFailure : cudaSuccess);
}

cudaError_t wait_for_all() {
  do_all();
  return call_device();
}

/// A lazy machine does one piece of work when it is asked.
cudaError_t query(Backlog* pending, uint64_t num_before) {
  const Lock lock(mutex());
  if (pending != nullptr && pending->num_done < num_before) pending->do_until(pending->num_done + 1);
  const cudaError_t error = call_device();
  if (error != cudaSuccess) return error;
  return remember(pending != nullptr && pending->num_done < num_before ? cudaErrorNotReady : cudaSuccess);
}

}  // namespace

size_t allocated_bytes() {
  const Lock lock(mutex());
  size_t sum = 0;
  for (const auto& [pointer, size_bytes] : allocations()) sum += size_bytes;
  return sum;
}

// What is allocated and given back while a graph is recorded is so again when it runs.
void reveal(cudaStream_t stream, void* address, size_t size_bytes) {
  const auto reveal_now = [=] {
    unpoison(address, size_bytes);
    std::memset(address, 0xFF, size_bytes);
  };
  do_in_turn(stream, reveal_now);
  if (capturing != nullptr) capturing->capture->work.push_back(reveal_now);
}

void hide(cudaStream_t stream, void* address, size_t size_bytes) {
  const auto hide_now = [=] { poison(address, size_bytes); };
  do_in_turn(stream, hide_now);
  if (capturing != nullptr) capturing->capture->work.push_back(hide_now);
}

cudaError_t enqueue(cudaStream_t stream, std::function<void()> work) {
  const cudaError_t error = call_device();
  if (error != cudaSuccess) return error;
  if (stream != nullptr && stream->capture != nullptr) {
    stream->capture->work.push_back(std::move(work));
  } else {
    do_in_turn(stream, std::move(work));
  }
  return cudaSuccess;
}

cudaError_t launch(cudaStream_t stream, dim3 grid, dim3 block, size_t shared_bytes, int cluster_size,
                   std::function<void()> kernel) {
  const bool fits = grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.x <= 0x7FFFFFFFu && grid.y <= 65535 &&
                    grid.z <= 65535 && block.x > 0 && block.y > 0 && block.z > 0 && block.z <= 64 &&
                    uint64_t{block.x} * block.y * block.z <= 1024 && shared_bytes <= 227 * 1024 && cluster_size >= 1 &&
                    cluster_size <= 8 && grid.x % static_cast<unsigned>(cluster_size) == 0 &&
                    (cluster_size == 1 || machine().major >= 9);
  if (!fits) return remember(cudaErrorInvalidConfiguration);
  return enqueue(stream, [=] { run_blocks(grid, block, shared_bytes, kernel, cluster_size); });
}

}  // namespace limbeck::cuda::emulator

using namespace limbeck::cuda::emulator;

cudaError_t cudaDriverGetVersion(int* version) {
  *version = machine().driver_version;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 0;
  const cudaError_t error = driver_error();
  if (error == cudaSuccess) *count = machine().num_devices;
  return remember(error);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (const cudaError_t error = driver_error(); error != cudaSuccess) return remember(error);
  if (device < 0 || device >= machine().num_devices) return remember(cudaErrorInvalidDevice);
  *properties = {};
  std::snprintf(properties->name, sizeof(properties->name), "Emulated GPU");
  properties->major = machine().major;
  properties->minor = machine().minor;
  properties->multiProcessorCount = machine().num_multiprocessors;
  properties->totalGlobalMem = machine().total_bytes;
  properties->sharedMemPerBlockOptin = 227 * 1024;
  properties->l2CacheSize = 50 << 20;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp properties;
  const cudaError_t error = cudaGetDeviceProperties(&properties, device);
  if (error != cudaSuccess) return error;
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = properties.multiProcessorCount;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = properties.major;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = properties.minor;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = static_cast<int>(properties.sharedMemPerBlockOptin) + 1024;
      break;
  }
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (const cudaError_t error = driver_error(); error != cudaSuccess) return remember(error);
  return remember(device < 0 || device >= machine().num_devices ? cudaErrorInvalidDevice : cudaSuccess);
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return remember(driver_error());
}

cudaError_t cudaDeviceSynchronize() { return wait_for_all(); }

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInsufficientDriver:
      return "cudaErrorInsufficientDriver";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    case cudaErrorStreamCaptureUnsupported:
      return "cudaErrorStreamCaptureUnsupported";
    default:
      return "another error";
  }
}

const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }

cudaError_t cudaMalloc(void** pointer, size_t size_bytes) {
  *pointer = nullptr;
  if (const cudaError_t error = call_device(); error != cudaSuccess) return error;
  if (capturing != nullptr) return remember(cudaErrorStreamCaptureUnsupported);
  if (size_bytes == 0) return cudaSuccess;
  const Lock lock(mutex());
  size_t free_bytes, total_bytes;
  cudaMemGetInfo(&free_bytes, &total_bytes);
  if (size_bytes > free_bytes || size_bytes > machine().failing_allocation_bytes) {
    return remember(cudaErrorMemoryAllocation);
  }
  void* memory = nullptr;
  if (posix_memalign(&memory, 512, size_bytes + kGuardBytes) != 0) return remember(cudaErrorMemoryAllocation);
  std::memset(memory, 0xFF, size_bytes);
  std::memset(static_cast<char*>(memory) + size_bytes, kGuardByte, kGuardBytes);
  poison(static_cast<char*>(memory) + size_bytes, kGuardBytes);
  allocations()[memory] = size_bytes;
  *pointer = memory;
  return cudaSuccess;
}

cudaError_t cudaFree(void* pointer) {
  if (pointer == nullptr) return cudaSuccess;
  do_all();
  const Lock lock(mutex());
  const auto found = allocations().find(pointer);
  if (found == allocations().end()) return remember(cudaErrorInvalidValue);
  const auto* guard = static_cast<const unsigned char*>(pointer) + found->second;
  unpoison(pointer, found->second + kGuardBytes);
  for (size_t i = 0; i < kGuardBytes; ++i) {
    if (guard[i] == kGuardByte) continue;
    std::fprintf(stderr, "A kernel wrote %zu bytes beyond an allocation of %zu bytes.\n", i, found->second);
    std::abort();
  }
  allocations().erase(found);
  std::free(pointer);
  return call_device();
}

cudaError_t cudaHostAlloc(void** pointer, size_t size_bytes, unsigned) {
  *pointer = nullptr;
  if (const cudaError_t error = call_device(); error != cudaSuccess) return error;
  *pointer = std::malloc(size_bytes);
  if (*pointer == nullptr) return remember(cudaErrorMemoryAllocation);
  std::memset(*pointer, 0xFF, size_bytes);
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* pointer) {
  std::free(pointer);
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  const size_t used = machine().used_by_others_bytes + allocated_bytes();
  *total_bytes = machine().total_bytes;
  *free_bytes = used < *total_bytes ? *total_bytes - used : 0;
  return remember(driver_error());
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t size_bytes, cudaMemcpyKind) {
  const cudaError_t error = wait_for_all();
  if (error == cudaSuccess && size_bytes > 0) std::memcpy(to, from, size_bytes);
  return error;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size_bytes, cudaMemcpyKind, cudaStream_t stream) {
  return enqueue(stream, [=] {
    if (size_bytes > 0) std::memcpy(to, from, size_bytes);
  });
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width_bytes,
                              size_t num_rows, cudaMemcpyKind, cudaStream_t stream) {
  if (width_bytes > to_pitch || width_bytes > from_pitch) return remember(cudaErrorInvalidValue);
  return enqueue(stream, [=] {
    for (size_t row = 0; row < num_rows && width_bytes > 0; ++row) {
      std::memcpy(static_cast<char*>(to) + row * to_pitch, static_cast<const char*>(from) + row * from_pitch,
                  width_bytes);
    }
  });
}

cudaError_t cudaMemset(void* to, int value, size_t size_bytes) {
  const cudaError_t error = wait_for_all();
  if (error == cudaSuccess && size_bytes > 0) std::memset(to, value, size_bytes);
  return error;
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t size_bytes, cudaStream_t stream) {
  return enqueue(stream, [=] {
    if (size_bytes > 0) std::memset(to, value, size_bytes);
  });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = nullptr;
  if (const cudaError_t error = call_device(); error != cudaSuccess) return error;
  const Lock lock(mutex());
  *stream = new Stream;
  backlogs().push_front((*stream)->backlog);
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const Lock lock(mutex());
  stream->backlog->do_until(stream->backlog->num_given);
  backlogs().erase(std::find(backlogs().begin(), backlogs().end(), stream->backlog));
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (stream != nullptr && stream->capture != nullptr) return remember(cudaErrorStreamCaptureUnsupported);
  if (stream == nullptr) return wait_for_all();
  {
    const Lock lock(mutex());
    stream->backlog->do_until(stream->backlog->num_given);
  }
  return call_device();
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
  if (stream != nullptr && stream->capture != nullptr) return remember(cudaErrorStreamCaptureUnsupported);
  return stream == nullptr ? wait_for_all() : query(stream->backlog.get(), stream->backlog->num_given);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  return enqueue(stream, [event = *event] { event.wait(); });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = nullptr;
  if (const cudaError_t error = call_device(); error != cudaSuccess) return error;
  *event = new Event;
  return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const cudaError_t error = enqueue(stream, [time = event->time] { *time = std::chrono::steady_clock::now(); });
  event->backlog = stream == nullptr ? nullptr : stream->backlog;
  event->num_before = stream == nullptr ? 0 : stream->backlog->num_given;
  return error;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  {
    const Lock lock(mutex());
    event->wait();
  }
  return call_device();
}

cudaError_t cudaEventQuery(cudaEvent_t event) { return query(event->backlog.get(), event->num_before); }

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  *milliseconds = std::chrono::duration<float, std::milli>(*end->time - *begin->time).count();
  return call_device();
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (stream == nullptr || capturing != nullptr) return remember(cudaErrorStreamCaptureUnsupported);
  if (const cudaError_t error = call_device(); error != cudaSuccess) return error;
  stream->capture = std::make_unique<Graph>();
  capturing = stream;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = stream->capture.release();
  capturing = nullptr;
  return *graph == nullptr ? remember(cudaErrorStreamCaptureInvalidated) : cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  const bool is_active = stream != nullptr && stream->capture != nullptr;
  *status = is_active ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = new GraphExec{std::make_shared<const std::vector<std::function<void()>>>(graph->work)};
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  return enqueue(stream, [work = exec->work] {
    for (const std::function<void()>& piece : *work) piece();
  });
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}
