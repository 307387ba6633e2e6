#pragma once

#include "core/arena.h"
#include "core/thread_pool.h"

namespace limbeck {

/// What an op needs besides its arguments: threads, and scratch memory that it gives back before it returns.
struct Context {
  ThreadPool& pool;
  Arena& scratch;
};

}  // namespace limbeck
