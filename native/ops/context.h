#pragma once

#include "core/arena.h"
#include "core/thread_pool.h"

namespace limbeck {

/// What the operands of matrix products are rounded to; sums are fp32 in any case.
enum class Precision { kFloat32, kBFloat16 };

/// What an op needs besides its arguments: threads, and scratch memory that it gives back before it returns.
struct Context {
  ThreadPool& pool;
  Arena& scratch;
  Precision precision = Precision::kFloat32;
};

}  // namespace limbeck
