#include "cuda/engine.h"
#include "cuda/launch.h"
#include "cuda/touched_rows.h"

namespace limbeck::cuda {

namespace {

constexpr int kThreads = 256;

// A warp a row. Ids that are repeated write the same.
__global__ void __launch_bounds__(kThreads)
    clear_kernel(const int32_t* ids, int64_t count, uint8_t* flags, float* gradients, int64_t width) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (i >= count) return;
  const int64_t row = ids[i];
  for (int64_t c = threadIdx.x % 32; c < width; c += 32) gradients[row * width + c] = 0;
  if (threadIdx.x % 32 == 0) flags[row] = 0;
}

__global__ void __launch_bounds__(kThreads) mark_kernel(const int32_t* ids, int64_t count, uint8_t* flags) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) flags[ids[i]] = 1;
}

__global__ void __launch_bounds__(kThreads) mark_all_kernel(int64_t count, uint8_t* flags) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) flags[i] = 1;
}

dim3 grid_of(int64_t count, int64_t each) { return dim3(static_cast<unsigned>(divide_up(count, each))); }

}  // namespace

void TouchedRows::reserve(Engine& engine, int64_t num_rows, int64_t max_ids) {
  num_rows_ = num_rows;
  max_ids_ = max_ids;
  num_touched_ = -1;
  engine.reserve(memory_, [&](DeviceArena& memory) {
    flags_ = memory.allocate<uint8_t>(num_rows);
    ids_ = memory.allocate<int32_t>(max_ids);
  });
}

void TouchedRows::begin(Context& context, float* gradients, int64_t width, std::initializer_list<Ids> lists) const {
  if (num_touched_ < 0) {
    set_zero(context, gradients, num_rows_ * width);
    set_zero(context, flags_, num_rows_);
  } else {
    launch(context, clear_kernel, grid_of(num_touched_, kThreads / 32), dim3(kThreads), 0, ids_, num_touched_, flags_,
           gradients, width);
  }
  int64_t count = 0;
  for (const Ids& list : lists) {
    copy_on_device(context, ids_ + count, list.ids, list.count);
    count += list.count;
  }
  launch(context, mark_kernel, grid_of(count, kThreads), dim3(kThreads), 0, ids_, count, flags_);
}

void TouchedRows::begin_all(Context& context, float* gradients, int64_t width) const {
  set_zero(context, gradients, num_rows_ * width);
  launch(context, mark_all_kernel, grid_of(num_rows_, kThreads), dim3(kThreads), 0, num_rows_, flags_);
}

}  // namespace limbeck::cuda
