#pragma once

#include <functional>
#include <string>

#include "core/error.h"
#include "cpu/kernels.h"

namespace limbeck_test {

/// Registers a test; main() runs them in the order of their files.
bool add_test(const char* title, void (*body)());
/// Counts a failure of the running test and prints where.
void fail(const char* expression, const char* file, int line);
/// The code of the limbeck::Error that `body` throws, or what happened instead.
std::string error_code(const std::function<void()>& body);

}  // namespace limbeck_test

/// Runs `body` once for each instruction set that this machine has.
template <typename Body>
void for_each_isa(Body&& body) {
  const limbeck::CpuKernels& chosen = limbeck::cpu_kernels();
  for (const char* isa : {"portable", "avx2", "avx512", "avx512bf16"}) {
    const limbeck::CpuKernels* kernels = limbeck::kernels_for_isa(isa);
    if (kernels == nullptr) continue;
    limbeck::set_cpu_kernels_for_testing(*kernels);
    body();
  }
  limbeck::set_cpu_kernels_for_testing(chosen);
}

#define LIMBECK_JOIN_(a, b) a##b
#define LIMBECK_JOIN(a, b) LIMBECK_JOIN_(a, b)
#define TEST(title)                                                      \
  static void LIMBECK_JOIN(test_body_, __LINE__)();                      \
  static const bool LIMBECK_JOIN(test_added_, __LINE__) =                \
      limbeck_test::add_test(title, LIMBECK_JOIN(test_body_, __LINE__)); \
  static void LIMBECK_JOIN(test_body_, __LINE__)()
#define CHECK(...)                                                            \
  do {                                                                        \
    if (!(__VA_ARGS__)) limbeck_test::fail(#__VA_ARGS__, __FILE__, __LINE__); \
  } while (false)
/// Expects limbeck::Error with this code.
#define CHECK_ERROR(code, ...) CHECK(limbeck_test::error_code([&] { __VA_ARGS__; }) == (code))
