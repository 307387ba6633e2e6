#pragma once

#include <napi.h>

namespace limbeck {

/// packTopK, unpackTopK and narrow of NativeBinding (src/binding.ts).
void define_packing(Napi::Env env, Napi::Object exports);

}  // namespace limbeck
