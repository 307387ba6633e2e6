#include "cuda/emulator/fiber.h"

#include <sys/mman.h>

#include <new>

#include "cuda/emulator/sanitizer.h"

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace limbeck::cuda::emulator {
namespace {

constexpr size_t kPageBytes = 4096, kStackBytes = 256 << 10;

Fiber* running = nullptr;

#ifdef LIMBECK_ADDRESS_SANITIZER
// Of the thread that runs the fibers, while one of them throws.
const void* thread_stack = nullptr;
size_t thread_stack_bytes = 0;
void* thread_fake_stack = nullptr;
#endif

}  // namespace

#ifdef __x86_64__

// Saves what a callee must keep on the stack that is left, and takes it from the one that is entered. swapcontext()
// asks the kernel for the signal mask each time, which costs more than most turns.
extern "C" void limbeck_switch_stack(void** left, void* entered);
asm(R"(
.text
.globl limbeck_switch_stack
.hidden limbeck_switch_stack
.type limbeck_switch_stack, @function
limbeck_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size limbeck_switch_stack, .-limbeck_switch_stack
)");

namespace {

void* scheduler_pointer = nullptr;

void* first_frame(char* stack, void (*entry)()) {
  void** top =
      reinterpret_cast<void**>(stack + kStackBytes) - 1;  // where a return address makes the stack odd, as calls do
  *top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  return top - 6;  // six registers of no importance
}
void enter(void*& fiber_pointer) { limbeck_switch_stack(&scheduler_pointer, fiber_pointer); }
void leave(void*& fiber_pointer) { limbeck_switch_stack(&fiber_pointer, scheduler_pointer); }
void free_frame(void*) {}

}  // namespace

#else

namespace {

ucontext_t scheduler_context;

void* first_frame(char* stack, void (*entry)()) {
  auto* context = new ucontext_t;
  getcontext(context);
  context->uc_stack.ss_sp = stack;
  context->uc_stack.ss_size = kStackBytes;
  makecontext(context, entry, 0);
  return context;
}
void enter(void*& context) { swapcontext(&scheduler_context, static_cast<ucontext_t*>(context)); }
void leave(void*& context) { swapcontext(static_cast<ucontext_t*>(context), &scheduler_context); }
void free_frame(void* context) { delete static_cast<ucontext_t*>(context); }

}  // namespace

#endif

Fiber::Fiber(void (*body)()) : body_(body) {
  void* memory = mmap(nullptr, kPageBytes + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  memory_ = static_cast<char*>(memory);
  mprotect(memory_, kPageBytes, PROT_NONE);
  prepare();
}

Fiber::~Fiber() {
  free_frame(stack_pointer_);
  unpoison(memory_ + kPageBytes, kStackBytes);
  munmap(memory_, kPageBytes + kStackBytes);
}

void Fiber::prepare() {
  unpoison(memory_ + kPageBytes, kStackBytes);
  stack_pointer_ = first_frame(memory_ + kPageBytes, main);
}

void Fiber::abandon() {
  free_frame(stack_pointer_);
  prepare();
}

void Fiber::main() {
  for (;;) {
    running->body_();
    pause();
  }
}

void Fiber::resume() {
  running = this;
  enter(stack_pointer_);
}

void Fiber::pause() { leave(running->stack_pointer_); }

void Fiber::begin_throw() {
#ifdef LIMBECK_ADDRESS_SANITIZER
  if (thread_stack != nullptr) return;
  __sanitizer_start_switch_fiber(&thread_fake_stack, running->memory_ + kPageBytes, kStackBytes);
  __sanitizer_finish_switch_fiber(nullptr, &thread_stack, &thread_stack_bytes);
#endif
}

void Fiber::end_throw() {
#ifdef LIMBECK_ADDRESS_SANITIZER
  if (thread_stack == nullptr) return;
  __sanitizer_start_switch_fiber(nullptr, thread_stack, thread_stack_bytes);
  __sanitizer_finish_switch_fiber(thread_fake_stack, nullptr, nullptr);
  thread_stack = nullptr;
#endif
}

}  // namespace limbeck::cuda::emulator
