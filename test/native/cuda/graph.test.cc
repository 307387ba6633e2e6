#include "cuda/graph.h"

#include "cuda/gemm.h"
#include "device_test.h"

using namespace limbeck::cuda;
using namespace limbeck_test;

namespace {

__global__ void add_scaled(const float* x, const float* scale, float* y, int count) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) y[i] += *scale * x[i];
}

}  // namespace

TEST("graph: runs again what was recorded, with what the memory then holds") {
  TestDevice device;
  Context& context = device.context;
  DeviceArray<float> x(std::vector<float>{1, 2, 3}), y(std::vector<float>{10, 10, 10}), scale(std::vector<float>{1});
  float* host_scale;  // pinned
  check_cuda(cudaHostAlloc(&host_scale, sizeof(float), cudaHostAllocDefault), "cudaHostAlloc");
  host_scale[0] = 2;
  Graph graph;
  CHECK(!graph.is_captured());
  graph.capture(context, [&] {
    copy_pinned_to_device(context, scale.data(), host_scale, 1);
    launch(context, add_scaled, 1, 32, 0, x.data(), scale.data(), y.data(), 3);
  });
  CHECK(graph.is_captured());
  synchronize(context);
  CHECK(y.get() == std::vector<float>{10, 10, 10});
  graph.run(context);
  synchronize(context);
  CHECK(y.get() == std::vector<float>{12, 14, 16});
  host_scale[0] = -1;
  x.set({5, 5, 5});
  graph.run(context);
  synchronize(context);
  CHECK(y.get() == std::vector<float>{7, 9, 11});
  cudaFreeHost(host_scale);
}

TEST("graph: products inside, chosen before or in the capture, without timing") {
  TestDevice device;
  Context& context = device.context;
  context.blas.set_tuning(true, 0);
  DeviceArray<float> a(random_floats(64, 1)), b(random_floats(64, 2)), c(64);
  Graph graph;
  graph.capture(context, [&] {
    gemm<float, float>(context, {8, 8, 8, false, true, 8, 8, 8}, a.data(), b.data(), nullptr, nullptr, c.data());
  });
  graph.run(context);
  const std::vector<float> replayed = c.get();
  gemm<float, float>(context, {8, 8, 8, false, true, 8, 8, 8}, a.data(), b.data(), nullptr, nullptr, c.data());
  CHECK(same_bits(replayed, c.get()) && replayed[0] == replayed[0]);
}

TEST("graph: an error while recording leaves the stream usable") {
  TestDevice device;
  Context& context = device.context;
  DeviceArray<float> x(std::vector<float>{1, 2, 3});
  Graph graph;
  CHECK_ERROR("ERR_INVALID_ARGUMENT", graph.capture(context, [&] {
    set_zero(context, x.data(), 3);
    throw limbeck::Error("ERR_INVALID_ARGUMENT", "stop");
  }));
  CHECK(!graph.is_captured());
  synchronize(context);
  CHECK(x.get() == std::vector<float>{1, 2, 3});
  set_zero(context, x.data(), 1);
  CHECK(x.get() == std::vector<float>{0, 2, 3});
}
