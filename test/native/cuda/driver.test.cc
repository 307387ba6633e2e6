#include "cuda/driver.h"

#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "device_test.h"

using namespace limbeck::cuda;
using namespace limbeck_test;

TEST("driver: the first device can be used") {
  const DriverInfo info = inspect_driver();
  CHECK(info.problem.empty() && !info.devices.empty() && info.driver_version >= info.runtime_version / 1000 * 1000);
  CHECK(info.cublas_problem.empty() && !info.cublas_path.empty());
  const DeviceInfo& first = info.devices.at(0);
  CHECK(first.problem.empty() && first.major >= 8 && first.num_multiprocessors > 0 && !first.name.empty());
  CHECK(first.free_bytes > 0 && first.free_bytes <= first.total_bytes);
  CHECK(use_device(0).name == first.name);
  CHECK_ERROR("ERR_CUDA_UNAVAILABLE", use_device(-1));
  CHECK_ERROR("ERR_CUDA_UNAVAILABLE", use_device(static_cast<int>(info.devices.size())));
}

namespace {

bool has(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST("driver: a cuBLAS that is named and cannot be used is named in the complaint") {
  namespace fs = std::filesystem;
  const fs::path folder = fs::temp_directory_path() / ("limbeck-cublas-" + std::to_string(getpid()));
  fs::create_directories(folder / "empty");
  fs::create_directories(folder / "broken");
  std::ofstream(folder / "broken/libcublasLt.so.13") << "not a library";
  const char* before = getenv("LIMBECK_CUBLAS_PATH");
  const std::string kept = before == nullptr ? "" : before;
  const auto problem = [&](const fs::path& path) {
    setenv("LIMBECK_CUBLAS_PATH", path.c_str(), 1);
    const CublasLtLibrary library = find_cublas_lt();
    CHECK(library.path.empty() && library.functions.Matmul == nullptr);
    return library.problem;
  };
  CHECK(has(problem(folder / "absent.so"), "absent.so") && has(problem(folder / "absent.so"), "LIMBECK_CUBLAS_PATH"));
  CHECK(has(problem(folder / "empty"), "no libcublasLt.so.13"));
  CHECK(has(problem(folder / "broken"), "broken/libcublasLt.so.13"));
  CHECK(has(problem("libm.so.6"), "has no function cublasLt"));
  if (before == nullptr) {
    unsetenv("LIMBECK_CUBLAS_PATH");
  } else {
    setenv("LIMBECK_CUBLAS_PATH", kept.c_str(), 1);
  }
  fs::remove_all(folder);
}

#ifdef LIMBECK_CUDA_EMULATED

namespace {

/// The machine is whole again at the end.
struct Fault {
  ~Fault() { emulator::machine().reset(); }
  emulator::Machine* operator->() { return &emulator::machine(); }
};

/// What an Error says; empty without one.
std::string message_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const limbeck::Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST("driver: what is missing is named, with what to do") {
  const auto try_use = [] { use_device(0); };
  {
    Fault fault;
    fault->driver_version = 0;
    CHECK_ERROR("ERR_CUDA_UNAVAILABLE", try_use());
    CHECK(has(message_of(try_use), "no NVIDIA driver was found") && has(inspect_driver().problem, "libcuda.so.1"));
    CHECK(inspect_driver().devices.empty());
  }
  {
    Fault fault;
    fault->driver_version = 12040;
    CHECK_ERROR("ERR_CUDA_UNAVAILABLE", try_use());
    CHECK(has(message_of(try_use), "it runs CUDA 12.4, CUDA 13.0 is needed"));
  }
  {
    Fault fault;
    fault->num_devices = 0;
    CHECK_ERROR("ERR_CUDA_UNAVAILABLE", try_use());
    CHECK(has(message_of(try_use), "CUDA_VISIBLE_DEVICES"));
  }
  {
    Fault fault;
    fault->major = 7;
    fault->minor = 5;
    CHECK_ERROR("ERR_CUDA_UNAVAILABLE", try_use());
    CHECK(has(message_of(try_use), "compute capability 7.5; 8.0"));
    const DriverInfo info = inspect_driver();
    CHECK(info.problem.empty() && info.devices.size() == 1 && has(info.devices[0].problem, "7.5"));
  }
  {
    Fault fault;
    fault->has_cublas = false;
    CHECK_ERROR("ERR_CUDA_UNAVAILABLE", open_cublas_lt());
    CHECK_ERROR("ERR_CUDA_UNAVAILABLE", CublasLt());
    CHECK(has(inspect_driver().cublas_problem, "libcublasLt.so.13"));
  }
  CHECK(inspect_driver().problem.empty());
}

TEST("driver: without a name, cuBLAS is looked for in the Pythons of the path") {
  namespace fs = std::filesystem;
  const fs::path folder = fs::temp_directory_path() / ("limbeck-python-" + std::to_string(getpid()));
  const fs::path packages = folder / "lib/python3.12/site-packages/nvidia/cu13/lib";
  fs::create_directories(folder / "bin");
  fs::create_directories(packages);
  std::ofstream(folder / "bin/python3") << "";
  std::ofstream(packages / "libcublasLt.so.13") << "not a library";
  const std::string path = getenv("PATH");
  setenv("PATH", ("/nowhere::" + (folder / "bin").string()).c_str(), 1);
  const CublasLtLibrary library = find_cublas_lt();
  setenv("PATH", path.c_str(), 1);
  fs::remove_all(folder);
  // A machine that has a real one on the loader's path finds that first.
  CHECK(!library.path.empty() || has(library.problem, packages.c_str()));
}

TEST("driver: memory that is not there is refused before it is asked for") {
  Fault fault;
  fault->total_bytes = size_t{100} << 20;
  fault->used_by_others_bytes = size_t{90} << 20;
  DeviceArena arena;
  const auto reserve = [&] { arena.reserve(size_t{11} << 20); };
  CHECK_ERROR("ERR_OUT_OF_MEMORY", reserve());
  CHECK(has(message_of(reserve), "needs 11 MiB") && has(message_of(reserve), "10 MiB of 100 MiB are free"));
  CHECK(has(message_of(reserve), "Emulated GPU") && has(message_of(reserve), "smaller batch"));
  CHECK(emulator::allocated_bytes() == 0);
  arena.reserve(size_t{9} << 20);
  fault->failing_allocation_bytes = size_t{5} << 20;  // free, but not in one piece
  CHECK_ERROR("ERR_OUT_OF_MEMORY", arena.reserve(size_t{8} << 20));
  CHECK(arena.capacity_bytes() == 0 && emulator::allocated_bytes() == 0);
  arena.reserve(size_t{4} << 20);
  CHECK(arena.allocate<float>(10) != nullptr);
}

TEST("driver: a device that is lost stays lost") {
  Fault fault;
  TestDevice device;
  DeviceArray<float> x(std::vector<float>{1, 2});
  fault->calls_until_lost = 2;
  set_zero(device.context, x.data(), 2);
  synchronize(device.context);
  for (int i = 0; i < 2; ++i) {
    CHECK_ERROR("ERR_DEVICE_LOST", set_zero(device.context, x.data(), 2));
    CHECK_ERROR("ERR_DEVICE_LOST", synchronize(device.context));
  }
}

#endif
