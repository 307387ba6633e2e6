#pragma once

#include <stdexcept>
#include <string>

namespace limbeck {

/// An error with a stable code, the same codes as in src/errors.ts. The only exception type the core throws on purpose.
class Error : public std::runtime_error {
 public:
  Error(const char* code, const std::string& message) : std::runtime_error(message), code_(code) {}
  const char* code() const { return code_; }

 private:
  const char* code_;  // a string literal
};

}  // namespace limbeck
