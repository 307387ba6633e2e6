#pragma once

#include <cstddef>

namespace limbeck::cuda::emulator {

/// A stack of its own that runs `body` from its beginning whenever it is resumed after the body returned. Fibers of all
/// threads of the process must not run at the same time.
class Fiber {
 public:
  explicit Fiber(void (*body)());
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  /// Called by the scheduler: runs the fiber until it calls pause().
  void resume();
  /// Called by the fiber: back to where it was resumed.
  static void pause();
  /// Forgets where the fiber paused: it begins anew.
  void abandon();
  /// Called by the fiber before it throws, and where it catches. The address sanitizer then wants to know on which
  /// stack; at other times it need not, and to tell it at every turn takes longer than the turn.
  static void begin_throw();
  static void end_throw();

 private:
  static void main();
  void prepare();

  void (*body_)();
  char* memory_;  // a page that traps, then the stack
  void* stack_pointer_ = nullptr;
};

}  // namespace limbeck::cuda::emulator
