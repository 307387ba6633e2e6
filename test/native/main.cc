// [TITLE] [--shard I/N]: runs the C++ tests whose title contains TITLE, of these every Nth from the Ith on, so that N
// processes run them all; 2 is returned where there is none. A test that hangs is named, and ends the program.
#include <cstdio>
#include <cstring>
#include <exception>
#include <vector>

#ifndef _WIN32
#include <signal.h>
#include <unistd.h>
#endif

#include "test.h"

namespace limbeck_test {
namespace {

struct Test {
  const char* title;
  void (*body)();
};

std::vector<Test>& tests() {
  static std::vector<Test> list;
  return list;
}

int failures_in_test = 0;

#ifndef _WIN32
constexpr unsigned kMaxTestSeconds = 900;
const char* running_title = "";

void report_hang(int) {
  for (const char* text : {"FAIL ", running_title, ": it did not end in time\n"}) {
    if (write(STDOUT_FILENO, text, std::strlen(text)) < 0) break;
  }
  _exit(1);
}
#endif

/// Arms the alarm that ends a test which hangs.
void watch([[maybe_unused]] const char* title) {
#ifndef _WIN32
  running_title = title;
  signal(SIGALRM, report_hang);
  alarm(kMaxTestSeconds);
#endif
}

}  // namespace

bool add_test(const char* title, void (*body)()) {
  tests().push_back({title, body});
  return true;
}

void fail(const char* expression, const char* file, int line) {
  ++failures_in_test;
  std::printf("    %s:%d: %s\n", file, line, expression);
}

std::string error_code(const std::function<void()>& body) {
  try {
    body();
  } catch (const limbeck::Error& error) {
    return error.code();
  } catch (const std::exception& error) {
    return std::string("another exception: ") + error.what();
  }
  return "no exception";
}

}  // namespace limbeck_test

int main(int argc, char** argv) {
  using namespace limbeck_test;
  const char* title = "";
  int shard = 0, num_shards = 1;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--shard") != 0) {
      title = argv[i];
    } else if (++i == argc || std::sscanf(argv[i], "%d/%d", &shard, &num_shards) != 2 || shard < 0 ||
               shard >= num_shards) {
      std::fprintf(stderr, "--shard takes I/N, where 0 <= I < N\n");
      return 1;
    }
  }
  int matching = 0, passed = 0, failed = 0;
  for (const Test& test : tests()) {
    if (std::strstr(test.title, title) == nullptr || matching++ % num_shards != shard) continue;
    failures_in_test = 0;
    watch(test.title);
    const limbeck::CpuKernels& chosen = limbeck::cpu_kernels();
    try {
      test.body();
    } catch (const std::exception& error) {
      ++failures_in_test;
      std::printf("    unexpected exception: %s\n", error.what());
    }
    limbeck::set_cpu_kernels_for_testing(chosen);
    std::printf("%s %s\n", failures_in_test == 0 ? "ok  " : "FAIL", test.title);
    std::fflush(stdout);
    ++(failures_in_test == 0 ? passed : failed);
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed > 0 ? 1 : passed > 0 ? 0 : 2;
}
