#include "cuda/uploads.h"

#include "device_test.h"

using namespace limbeck::cuda;
using namespace limbeck_test;

namespace {

std::vector<int32_t> numbers(int64_t count, int32_t first) {
  std::vector<int32_t> x(static_cast<size_t>(count));
  for (size_t i = 0; i < x.size(); ++i) x[i] = first + static_cast<int32_t>(i);
  return x;
}

void check_copies(size_t chunk_bytes, size_t max_chunks) {
  TestDevice device;
  Uploads uploads(chunk_bytes, max_chunks);
  device.context.uploads = &uploads;
  std::vector<std::unique_ptr<DeviceArray<int32_t>>> arrays;
  for (int64_t i = 0; i < 24; ++i) {
    const int64_t count = i * i * 3 % 47;
    arrays.push_back(std::make_unique<DeviceArray<int32_t>>(count));
    std::vector<int32_t> host = numbers(count, static_cast<int32_t>(1000 * i));
    copy_to_device(device.context, arrays.back()->data(), host.data(), count);
    std::fill(host.begin(), host.end(), -1);  // it was read
    CHECK(uploads.num_chunks() <= max_chunks);
  }
  synchronize(device.context);
  for (int64_t i = 0; i < 24; ++i) {
    const std::vector<int32_t> expected = numbers(i * i * 3 % 47, static_cast<int32_t>(1000 * i));
    CHECK(arrays[static_cast<size_t>(i)]->get() == expected);
  }
}

}  // namespace

TEST("cuda uploads: arrays of any size arrive, whatever becomes of the host's") {
  for (const bool is_lazy : {false, true}) {
#ifdef LIMBECK_CUDA_EMULATED
    emulator::machine().is_lazy = is_lazy;
#endif
    for (const size_t chunk_bytes : {64, 100, 256, 1024, 1 << 20}) {
      for (const size_t max_chunks : {1, 2, 3, 16}) check_copies(chunk_bytes, max_chunks);
    }
#ifdef LIMBECK_CUDA_EMULATED
    emulator::machine().reset();
#else
    (void)is_lazy;
#endif
  }
}

TEST("cuda uploads: nothing is copied when dry") {
  TestDevice device;
  Uploads uploads;
  Context dry{device.context.stream, device.context.arena, device.context.blas, 1, true, &uploads};
  const int32_t value = 1;
  copy_to_device<int32_t>(dry, nullptr, &value, 1);
  CHECK(uploads.num_chunks() == 0);
}
