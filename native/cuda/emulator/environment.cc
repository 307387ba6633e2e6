// LIMBECK_EMULATED_MACHINE="driver_version=0;num_devices=2": what an emulated library finds when a process opens it,
// for tests that reach it from outside.

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cuda/emulator/runtime.h"

namespace limbeck::cuda::emulator {

namespace {

void set(Machine& machine, const std::string& name, long long value) {
  if (name == "driver_version") {
    machine.driver_version = static_cast<int>(value);
  } else if (name == "num_devices") {
    machine.num_devices = static_cast<int>(value);
  } else if (name == "major") {
    machine.major = static_cast<int>(value);
  } else if (name == "minor") {
    machine.minor = static_cast<int>(value);
  } else if (name == "has_cublas") {
    machine.has_cublas = value != 0;
  } else if (name == "total_bytes") {
    machine.total_bytes = static_cast<size_t>(value);
  } else if (name == "used_by_others_bytes") {
    machine.used_by_others_bytes = static_cast<size_t>(value);
  } else if (name == "failing_allocation_bytes") {
    machine.failing_allocation_bytes = static_cast<size_t>(value);
  } else if (name == "calls_until_lost") {
    machine.calls_until_lost = value;
  } else {
    throw std::invalid_argument("LIMBECK_EMULATED_MACHINE: there is no " + name);
  }
}

bool read_environment() {
  const char* text = std::getenv("LIMBECK_EMULATED_MACHINE");
  const std::string settings = text != nullptr ? text : "";
  for (size_t begin = 0; begin < settings.size();) {
    const size_t end = std::min(settings.find(';', begin), settings.size());
    const size_t equals = std::min(settings.find('=', begin), end);
    if (equals < end)
      set(machine(), settings.substr(begin, equals - begin), std::stoll(settings.substr(equals + 1, end)));
    begin = end + 1;
  }
  return true;
}

const bool was_read = read_environment();

}  // namespace

}  // namespace limbeck::cuda::emulator
