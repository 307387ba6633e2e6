#pragma once

#include <napi.h>

namespace limbeck {

/// tryLockFile(fd) of src/binding.ts.
Napi::Value try_lock_file(const Napi::CallbackInfo& info);

}  // namespace limbeck
