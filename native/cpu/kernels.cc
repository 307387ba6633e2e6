#include "cpu/kernels.h"

#include <atomic>
#include <cstdlib>

#include "core/error.h"
#include "cpu/kernel_tables.h"

namespace limbeck {
namespace {

// __builtin_cpu_supports looks at XGETBV too: a set counts only when the operating system saves its registers.
bool has_avx2() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

bool has_avx512() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && has_avx2();
#else
  return false;
#endif
}

bool has_avx512bf16() {
#if defined(__x86_64__)
  return has_avx512() && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

const CpuKernels& choose_kernels() {
  const char* forced = std::getenv("LIMBECK_FORCE_ISA");
  if (forced != nullptr && *forced != '\0') {
    if (const CpuKernels* kernels = kernels_for_isa(forced)) return *kernels;
    throw Error("ERR_INVALID_ARGUMENT",
                std::string("LIMBECK_FORCE_ISA is '") + forced +
                    "'; expected avx512bf16, avx512, avx2 or portable, and one that this processor has.");
  }
  for (const char* isa : {"avx512bf16", "avx512", "avx2"}) {
    if (const CpuKernels* kernels = kernels_for_isa(isa)) return *kernels;
  }
  return kPortableKernels;
}

std::atomic<const CpuKernels*> chosen{nullptr};

}  // namespace

const CpuKernels& cpu_kernels() {
  const CpuKernels* kernels = chosen.load(std::memory_order_acquire);
  if (kernels == nullptr) {
    kernels = &choose_kernels();
    chosen.store(kernels, std::memory_order_release);
  }
  return *kernels;
}

const CpuKernels* kernels_for_isa(const std::string& isa) {
#if defined(__x86_64__)
  if (isa == "avx512bf16" && has_avx512bf16()) return &kAvx512Bf16Kernels;
  if (isa == "avx512" && has_avx512()) return &kAvx512Kernels;
  if (isa == "avx2" && has_avx2()) return &kAvx2Kernels;
#endif
  return isa == "portable" ? &kPortableKernels : nullptr;
}

void set_cpu_kernels_for_testing(const CpuKernels& kernels) { chosen.store(&kernels, std::memory_order_release); }

CpuInfo cpu_info() {
  CpuInfo info;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("sse4.2")) info.features.push_back("sse4.2");
  if (__builtin_cpu_supports("avx")) info.features.push_back("avx");
  if (__builtin_cpu_supports("avx2")) info.features.push_back("avx2");
  if (__builtin_cpu_supports("fma")) info.features.push_back("fma");
  if (__builtin_cpu_supports("avx512f")) info.features.push_back("avx512f");
  if (__builtin_cpu_supports("avx512bw")) info.features.push_back("avx512bw");
  if (__builtin_cpu_supports("avx512dq")) info.features.push_back("avx512dq");
  if (__builtin_cpu_supports("avx512vl")) info.features.push_back("avx512vl");
  if (__builtin_cpu_supports("avx512vnni")) info.features.push_back("avx512vnni");
  if (__builtin_cpu_supports("avx512bf16")) info.features.push_back("avx512bf16");
#endif
  info.isa = cpu_kernels().isa;
  return info;
}

}  // namespace limbeck
