#pragma once

#include <napi.h>

namespace limbeck {

/// tryLockFile(fd) of src/binding.ts.
Napi::Value try_lock_file(const Napi::CallbackInfo& info);
/// exchangeNames(a, b) of src/binding.ts.
Napi::Value exchange_names(const Napi::CallbackInfo& info);

}  // namespace limbeck
