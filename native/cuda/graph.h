#pragma once

#include "cuda/launch.h"

namespace limbeck::cuda {

/// Work that was put on a stream once and can be run again with one call. It runs with the same pointers and sizes;
/// what changes from run to run lies in device memory, or in pinned host memory that copies of the graph read anew. Run
/// the same work without a graph first: what a first call loads, allocates or measures has no place in one.
class Graph {
 public:
  Graph() = default;
  ~Graph() { clear(); }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  /// Records what body() puts on the stream of the context, instead of running it.
  template <typename Body>
  void capture(Context& context, Body&& body) {
    clear();
    check_cuda(cudaStreamBeginCapture(context.stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    cudaGraph_t graph = nullptr;
    try {
      body();
    } catch (...) {
      cudaStreamEndCapture(context.stream, &graph);
      if (graph != nullptr) cudaGraphDestroy(graph);
      cudaGetLastError();
      throw;
    }
    check_cuda(cudaStreamEndCapture(context.stream, &graph), "cudaStreamEndCapture");
    const cudaError_t status = cudaGraphInstantiate(&exec_, graph, 0);
    cudaGraphDestroy(graph);
    check_cuda(status, "cudaGraphInstantiate");
  }
  void run(Context& context) { check_cuda(cudaGraphLaunch(exec_, context.stream), "cudaGraphLaunch"); }
  bool is_captured() const { return exec_ != nullptr; }
  void clear() {
    if (exec_ != nullptr) cudaGraphExecDestroy(exec_);
    exec_ = nullptr;
  }

 private:
  cudaGraphExec_t exec_ = nullptr;
};

}  // namespace limbeck::cuda
