#pragma once

#include "cuda/check.h"
#include "cuda/context.h"
#include "cuda/uploads.h"

namespace limbeck::cuda {

#if defined(__CUDACC__) || defined(LIMBECK_CUDA_EMULATED)  // not in host code that g++ compiles
/// Runs kernel(arguments…) on the stream, in clusters of neighbouring blocks where cluster_size > 1 (compute capability
/// 9.0 on). Nothing when dry, or where the grid is empty.
///   shared_bytes  of dynamic shared memory, ≤ 227 KiB on sm_90 (99 on sm_86 and sm_89, 163 on sm_80)
template <typename... Parameters>
void launch_clusters(Context& context, void (*kernel)(Parameters...), int cluster_size, dim3 grid, dim3 block,
                     size_t shared_bytes, std::decay_t<Parameters>... arguments) {
  if (context.is_dry || grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  // More than 48 KiB, static memory included, must be asked for.
  if (shared_bytes > 32 * 1024) {
    check_cuda(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
        "cudaFuncSetAttribute");
  }
#ifdef LIMBECK_CUDA_EMULATED
  check_cuda(emulator::launch_kernel(kernel, grid, block, shared_bytes, cluster_size, context.stream, arguments...),
             "a launch");
#else
  if (cluster_size == 1) {
    // clang-format off
    kernel<<<grid, block, shared_bytes, context.stream>>>(arguments...);
    // clang-format on
  } else {
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = static_cast<unsigned>(cluster_size);
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = context.stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
    check_cuda(cudaLaunchKernelEx(&config, kernel, arguments...), "a launch");
  }
  check_cuda(cudaGetLastError(), "a launch");
#endif
}

template <typename... Parameters>
void launch(Context& context, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
            std::decay_t<Parameters>... arguments) {
  launch_clusters(context, kernel, 1, grid, block, shared_bytes, arguments...);
}

/// This block's number, counted from the last. Kernels between two products take rows so: the first blocks to run find
/// in the L2 cache what the product before wrote last, and the last ones leave there what the product after reads
/// first.
__device__ __forceinline__ unsigned block_from_last() { return gridDim.x - 1 - blockIdx.x; }

#endif

/// ⌈count/divisor⌉, for grids.
constexpr int64_t divide_up(int64_t count, int64_t divisor) { return (count + divisor - 1) / divisor; }

/// Rows of a part, where parts of `most` rows would be uneven: as even as they go, in whole tiles of a product.
constexpr int64_t even_rows(int64_t num_rows, int64_t most) {
  constexpr int64_t kTileRows = 128;
  return divide_up(divide_up(num_rows, divide_up(num_rows, most)), kTileRows) * kTileRows;
}

template <typename T>
void set_zero(Context& context, T* to, int64_t count) {
  if (context.is_dry || count == 0) return;
  check_cuda(cudaMemsetAsync(to, 0, static_cast<size_t>(count) * sizeof(T), context.stream), "cudaMemsetAsync");
}

namespace detail {
inline void copy(Context& context, void* to, const void* from, size_t size_bytes, cudaMemcpyKind kind) {
  if (context.is_dry || size_bytes == 0) return;
  check_cuda(cudaMemcpyAsync(to, from, size_bytes, kind, context.stream), "cudaMemcpyAsync");
}
}  // namespace detail

/// Does not wait for the stream, and host_from may change as soon as it returns (see Context::uploads).
template <typename T>
void copy_to_device(Context& context, T* to, const T* host_from, int64_t count) {
  const size_t size_bytes = static_cast<size_t>(count) * sizeof(T);
  if (context.uploads == nullptr) {
    detail::copy(context, to, host_from, size_bytes, cudaMemcpyHostToDevice);
  } else if (!context.is_dry) {
    context.uploads->copy(context.stream, to, host_from, size_bytes);
  }
}
/// Reads host_pinned when the stream comes to it: a graph does so in every run.
template <typename T>
void copy_pinned_to_device(Context& context, T* to, const T* host_pinned, int64_t count) {
  detail::copy(context, to, host_pinned, static_cast<size_t>(count) * sizeof(T), cudaMemcpyHostToDevice);
}
/// Host memory must live until the stream has passed.
template <typename T>
void copy_to_host(Context& context, T* host_to, const T* from, int64_t count) {
  detail::copy(context, host_to, from, static_cast<size_t>(count) * sizeof(T), cudaMemcpyDeviceToHost);
}
template <typename T>
void copy_on_device(Context& context, T* to, const T* from, int64_t count) {
  detail::copy(context, to, from, static_cast<size_t>(count) * sizeof(T), cudaMemcpyDeviceToDevice);
}

/// Waits for all work of the stream.
inline void synchronize(Context& context) {
  if (!context.is_dry) check_cuda(cudaStreamSynchronize(context.stream), "cudaStreamSynchronize");
}

}  // namespace limbeck::cuda
