#include "cuda/driver.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <sstream>

#include "core/error.h"
#include "cuda/check.h"
#ifdef LIMBECK_CUDA_EMULATED
#include "cuda/emulator/cublas_lt.h"
#endif

namespace limbeck::cuda {
namespace {

constexpr int kMinMajor = 8;  // bf16 tensor cores and cp.async

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

/// Why no device can be used at all.
std::string driver_problem(int driver_version, int runtime_version, cudaError_t status, int num_devices) {
  if (driver_version == 0) {
    return "no NVIDIA driver was found (libcuda.so.1); install one that runs CUDA " + version_text(runtime_version) +
           " or later, and in a container start it with the GPU (docker run --gpus all)";
  }
  // A driver runs all programs of its own major version.
  if (status == cudaErrorInsufficientDriver || driver_version / 1000 < runtime_version / 1000) {
    return "the NVIDIA driver is too old: it runs CUDA " + version_text(driver_version) + ", CUDA " +
           std::to_string(runtime_version / 1000) + ".0 is needed; install a newer driver (580 or later for CUDA 13)";
  }
  if (status == cudaErrorNoDevice || (status == cudaSuccess && num_devices == 0)) {
    return "the NVIDIA driver sees no GPU; see nvidia-smi and CUDA_VISIBLE_DEVICES";
  }
  if (status != cudaSuccess) {
    return std::string("the NVIDIA driver does not work: ") + cudaGetErrorString(status) + " (" +
           cudaGetErrorName(status) + ")";
  }
  return "";
}

DeviceInfo inspect_device(int index) {
  DeviceInfo info{index, "", 0, 0, 0, 0, 0, ""};
  cudaDeviceProp properties;
  const cudaError_t status = cudaGetDeviceProperties(&properties, index);
  if (status != cudaSuccess) {
    cudaGetLastError();
    info.problem = std::string("cannot be asked: ") + cudaGetErrorString(status);
    return info;
  }
  info.name = properties.name;
  info.major = properties.major;
  info.minor = properties.minor;
  info.num_multiprocessors = properties.multiProcessorCount;
  info.total_bytes = properties.totalGlobalMem;
  if (properties.major < kMinMajor) {
    info.problem = info.name + " has compute capability " + std::to_string(info.major) + "." +
                   std::to_string(info.minor) + "; 8.0 or later (Ampere) is needed";
  }
  return info;
}

const char* const kLibraryNames[] = {"libcublasLt.so.13", "libcublasLt.so.12"};

void append_folder(std::vector<std::filesystem::path>& folders, const char* root, const char* below) {
  if (root != nullptr && *root != '\0') folders.push_back(std::filesystem::path(root) / below);
}

/// Folders that the loader does not look into.
std::vector<std::filesystem::path> library_folders() {
  std::vector<std::filesystem::path> folders;
  for (const char* root :
       {static_cast<const char*>(std::getenv("CUDA_HOME")), static_cast<const char*>(std::getenv("CUDA_PATH")),
        "/usr/local/cuda", "/usr/local/cuda-13", "/opt/cuda"}) {
    append_folder(folders, root, "lib64");
    append_folder(folders, root, "targets/x86_64-linux/lib");
    append_folder(folders, root, "targets/sbsa-linux/lib");
  }
  std::vector<std::filesystem::path> prefixes;
  append_folder(prefixes, std::getenv("VIRTUAL_ENV"), "lib");
  append_folder(prefixes, std::getenv("CONDA_PREFIX"), "lib");
  append_folder(prefixes, std::getenv("HOME"), ".local/lib");
  std::error_code ignored;
  // Of each Python on the path.
  const char* path = std::getenv("PATH");
  std::stringstream entries(path == nullptr ? "" : path);
  for (std::string bin; std::getline(entries, bin, ':');) {
    const auto python = std::filesystem::canonical(std::filesystem::path(bin) / "python3", ignored);
    if (bin.empty() || ignored) continue;
    prefixes.push_back(std::filesystem::path(bin).parent_path() / "lib");
    prefixes.push_back(python.parent_path().parent_path() / "lib");
  }
  for (const char* prefix : {"/usr/local/lib", "/usr/lib", "/opt/conda/lib"}) prefixes.emplace_back(prefix);
  for (const auto& prefix : prefixes) {
    std::vector<std::filesystem::path> pythons;
    for (const auto& entry : std::filesystem::directory_iterator(prefix, ignored)) {
      if (entry.path().filename().string().rfind("python3", 0) == 0) pythons.push_back(entry.path());
    }
    std::sort(pythons.rbegin(), pythons.rend());
    for (const auto& python : pythons) {
      for (const char* packages : {"site-packages", "dist-packages"}) {
        folders.push_back(python / packages / "nvidia/cu13/lib");
        folders.push_back(python / packages / "nvidia/cublas/lib");
      }
    }
  }
  return folders;
}

struct Opened {
  void* handle = nullptr;
  std::string problem;
};

Opened try_open(const std::string& path) {
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle != nullptr) return {handle, ""};
  const char* why = dlerror();
  return {nullptr, why == nullptr ? path + " cannot be opened" : why};
}

/// The library, or everything that was wrong with the ones that exist.
Opened find_library() {
  std::string problems;
  std::error_code ignored;
  const auto try_folder = [&](const std::filesystem::path& folder) -> void* {
    for (const char* name : kLibraryNames) {
      if (!std::filesystem::exists(folder / name, ignored)) continue;
      const Opened opened = try_open((folder / name).string());
      if (opened.handle != nullptr) return opened.handle;
      problems += "; " + opened.problem;
    }
    return nullptr;
  };
  const char* named = std::getenv("LIMBECK_CUBLAS_PATH");
  if (named != nullptr && *named != '\0') {
    if (std::filesystem::is_directory(named, ignored)) {
      if (void* handle = try_folder(named)) return {handle, ""};
      if (problems.empty()) problems = "; that folder has no libcublasLt.so.13 or libcublasLt.so.12";
    } else {
      const Opened opened = try_open(named);
      if (opened.handle != nullptr) return opened;
      problems = "; " + opened.problem;
    }
    return {nullptr, std::string("LIMBECK_CUBLAS_PATH is ") + named + problems};
  }
  for (const char* name : kLibraryNames) {
    if (void* handle = try_open(name).handle) return {handle, ""};
  }
  for (const auto& folder : library_folders()) {
    if (void* handle = try_folder(folder)) return {handle, ""};
  }
  return {nullptr,
          "libcublasLt.so.13 (NVIDIA cuBLAS) was not found on the loader's path, in /usr/local/cuda or in a Python "
          "package" +
              problems +
              "; install it (pip install nvidia-cublas, or the package libcublas-13-0 of the CUDA toolkit), or set "
              "LIMBECK_CUBLAS_PATH to the library or its folder"};
}

template <typename Function>
void load(void* handle, const char* name, Function*& function, std::string& problem) {
  function = reinterpret_cast<Function*>(dlsym(handle, name));
  if (function == nullptr) problem = std::string("libcublasLt cannot be used: it has no function ") + name;
}

const CublasLtLibrary& library() {
#ifdef LIMBECK_CUDA_EMULATED
  static CublasLtLibrary the_library;
  the_library = {emulator::cublas_lt(), "emulated", ""};
  if (!emulator::machine().has_cublas) the_library = {{}, "", "libcublasLt.so.13 (NVIDIA cuBLAS) was not found"};
#else
  static const CublasLtLibrary the_library = find_cublas_lt();  // open until the process ends
#endif
  return the_library;
}

}  // namespace

CublasLtLibrary find_cublas_lt() {
  CublasLtLibrary out;
  const Opened opened = find_library();
  out.problem = opened.problem;
  if (opened.handle == nullptr) return out;
#define LIMBECK_LOAD(name) load(opened.handle, "cublasLt" #name, out.functions.name, out.problem)
  LIMBECK_LOAD(GetVersion);
  LIMBECK_LOAD(Create);
  LIMBECK_LOAD(Destroy);
  LIMBECK_LOAD(MatmulDescCreate);
  LIMBECK_LOAD(MatmulDescDestroy);
  LIMBECK_LOAD(MatmulDescSetAttribute);
  LIMBECK_LOAD(MatrixLayoutCreate);
  LIMBECK_LOAD(MatrixLayoutDestroy);
  LIMBECK_LOAD(MatmulPreferenceCreate);
  LIMBECK_LOAD(MatmulPreferenceDestroy);
  LIMBECK_LOAD(MatmulPreferenceSetAttribute);
  LIMBECK_LOAD(MatmulAlgoGetHeuristic);
  LIMBECK_LOAD(MatmulAlgoConfigGetAttribute);
  LIMBECK_LOAD(MatmulAlgoConfigSetAttribute);
  LIMBECK_LOAD(MatmulAlgoCheck);
  LIMBECK_LOAD(Matmul);
#undef LIMBECK_LOAD
  Dl_info info;
  if (!out.problem.empty()) {
    dlclose(opened.handle);
    out.functions = {};
  } else if (dladdr(reinterpret_cast<void*>(out.functions.Matmul), &info) != 0) {
    out.path = info.dli_fname;
  }
  return out;
}

DriverInfo inspect_driver(int memory_of) {
  DriverInfo info{};
  if (cudaDriverGetVersion(&info.driver_version) != cudaSuccess) info.driver_version = 0;
  if (cudaRuntimeGetVersion(&info.runtime_version) != cudaSuccess) info.runtime_version = 0;
  int num_devices = 0;
  const cudaError_t status = cudaGetDeviceCount(&num_devices);
  cudaGetLastError();
  info.problem = driver_problem(info.driver_version, info.runtime_version, status, num_devices);
  if (info.problem.empty()) {
    int current = 0;
    const bool has_current = memory_of != kNoDevice && cudaGetDevice(&current) == cudaSuccess;
    for (int index = 0; index < num_devices; ++index) {
      info.devices.push_back(inspect_device(index));
      if (memory_of != kAllDevices && memory_of != index) continue;
      size_t total_bytes;
      DeviceInfo& device = info.devices.back();
      if (!device.problem.empty() || cudaSetDevice(index) != cudaSuccess ||
          cudaMemGetInfo(&device.free_bytes, &total_bytes) != cudaSuccess) {
        device.free_bytes = 0;
        cudaGetLastError();
      }
    }
    if (has_current) cudaSetDevice(current);
  }
  const CublasLtLibrary& opened = library();
  info.cublas_path = opened.path;
  info.cublas_problem = opened.problem;
  return info;
}

DeviceInfo use_device(int index) {
  int driver_version = 0, runtime_version = 0, num_devices = 0;
  cudaDriverGetVersion(&driver_version);
  cudaRuntimeGetVersion(&runtime_version);
  const cudaError_t status = cudaGetDeviceCount(&num_devices);
  cudaGetLastError();
  const auto fail = [](const std::string& why) { throw Error("ERR_CUDA_UNAVAILABLE", "CUDA cannot be used: " + why); };
  const std::string problem = driver_problem(driver_version, runtime_version, status, num_devices);
  if (!problem.empty()) fail(problem);
  if (index < 0 || index >= num_devices) {
    fail("there is no device " + std::to_string(index) + "; this machine has " + std::to_string(num_devices) +
         ", counted from 0");
  }
  DeviceInfo info = inspect_device(index);
  if (!info.problem.empty()) fail(info.problem);
  check_cuda(cudaSetDevice(index), "cudaSetDevice");
  size_t total_bytes;
  check_cuda(cudaMemGetInfo(&info.free_bytes, &total_bytes), "cudaMemGetInfo");
  return info;
}

int hopper_multiprocessors() {
  int device;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  const auto attribute = [&](cudaDeviceAttr which) {
    int value;
    check_cuda(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
    return value;
  };
  const bool is_hopper =
      attribute(cudaDevAttrComputeCapabilityMajor) == 9 && attribute(cudaDevAttrComputeCapabilityMinor) == 0;
  return is_hopper ? attribute(cudaDevAttrMultiProcessorCount) : 0;
}

lt::Functions open_cublas_lt() {
  const CublasLtLibrary& opened = library();
  if (!opened.problem.empty()) throw Error("ERR_CUDA_UNAVAILABLE", "CUDA cannot be used: " + opened.problem);
  return opened.functions;
}

}  // namespace limbeck::cuda
