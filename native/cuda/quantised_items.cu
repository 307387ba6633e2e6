#include "cuda/launch.h"
#include "cuda/quantised_items.h"

namespace limbeck::cuda {
namespace {

constexpr int kThreads = 256;
// Within these, no product with a query, no sum of them and no scale leaves the range of normal fp32 numbers.
constexpr float kLeast = 1e-20f, kMost = 1e20f;

/// A warp an item.   levels, scales: see QuantisedItems, =
template <typename T>
__global__ void __launch_bounds__(kThreads) quantise_items_kernel(const T* items, int64_t num_items, int hidden_size,
                                                                  int row_bytes, int8_t* levels, float* scales) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (item >= num_items) return;
  const T* const row = items + item * hidden_size;
  float largest = kLeast;
  bool is_bounded = true;
  for (int c = lane; c < hidden_size; c += 32) {
    const float magnitude = fabsf(to_float(row[c]));
    largest = fmaxf(largest, magnitude);
    is_bounded = is_bounded && magnitude <= kMost;  // a NaN is not
  }
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, mask));
  is_bounded = __all_sync(0xffffffffu, is_bounded);
  const float scale = largest / QuantisedItems::kLevels;
  for (int c = lane; c < row_bytes; c += 32) {
    const float level = c < hidden_size && is_bounded ? rintf(to_float(row[c]) / scale) : 0;
    levels[item * row_bytes + c] =
        static_cast<int8_t>(fminf(fmaxf(level, -QuantisedItems::kLevels), QuantisedItems::kLevels));
  }
  if (lane == 0) scales[item] = is_bounded ? scale : __builtin_inff();
}

}  // namespace

template <typename T>
QuantisedItems quantise_items(Context& context, const T* items, int64_t num_items, int64_t hidden_size, int8_t* levels,
                              float* scales) {
  launch(context, quantise_items_kernel<T>, dim3(static_cast<unsigned>(divide_up(num_items, kThreads / 32))),
         dim3(kThreads), 0, items, num_items, static_cast<int>(hidden_size),
         static_cast<int>(QuantisedItems::row_bytes(hidden_size)), levels, scales);
  return {levels, scales};
}

template QuantisedItems quantise_items<float>(Context&, const float*, int64_t, int64_t, int8_t*, float*);
template QuantisedItems quantise_items<bf16>(Context&, const bf16*, int64_t, int64_t, int8_t*, float*);

}  // namespace limbeck::cuda
