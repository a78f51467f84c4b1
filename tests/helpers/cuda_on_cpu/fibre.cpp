// SPDX-License-Identifier: Apache-2.0
// Switches between fibres on one thread.
#include "fibre.h"

#include <cstdint>

#include "sanitizers.h"

#ifndef __x86_64__
#error "the switch between fibres is written for x86-64"
#endif

// void clipproj_switch_stack(void** from, void* to): keeps what a call must keep on the stack that
// is left, and takes it from the other. ucontext would make two system calls for signal masks.
extern "C" void clipproj_switch_stack(void** from, void* to);
asm(R"(
.text
.globl clipproj_switch_stack
.hidden clipproj_switch_stack
.type clipproj_switch_stack, @function
clipproj_switch_stack:
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
.size clipproj_switch_stack, .-clipproj_switch_stack
)");

namespace cuda_on_cpu {

namespace {
Fibre* from = nullptr;  // the two ends of the switch under way
Fibre* running = nullptr;
}  // namespace

Fibre::Fibre() {
#ifdef CUDA_ON_CPU_TSAN
  tsan_ = __tsan_get_current_fiber();
#endif
}

Fibre::Fibre(size_t stack_bytes)
    : memory_(new char[stack_bytes]), stack_(memory_.get()), size_(stack_bytes) {
#ifdef CUDA_ON_CPU_TSAN
  tsan_ = __tsan_create_fiber(0);
#endif
}

Fibre::~Fibre() {
  open_bytes(stack_, size_);  // frames that were left, not returned from
#ifdef CUDA_ON_CPU_TSAN
  if (memory_) __tsan_destroy_fiber(tsan_);
#endif
}

void enter_fibre() {
  running->arrived();
  running->entry_();
}

void Fibre::restart(void (*entry)()) {
  open_bytes(stack_, size_);
  entry_ = entry;
  fake_stack_ = nullptr;
  // As a call of enter_fibre leaves it: six registers, where to go on, no return address, and the
  // alignment that every function may count on.
  const auto end = reinterpret_cast<uintptr_t>(stack_) + size_;
  auto* top = reinterpret_cast<uintptr_t*>(end / 16 * 16);
  *--top = 0;
  *--top = reinterpret_cast<uintptr_t>(&enter_fibre);
  for (int i = 0; i < 6; ++i) *--top = 0;
  top_ = top;
}

void Fibre::switch_to(Fibre& to, [[maybe_unused]] bool last) {
  from = this;
  running = &to;
#if defined(CUDA_ON_CPU_ASAN)
  __sanitizer_start_switch_fiber(last ? nullptr : &fake_stack_, to.stack_, to.size_);
#elif defined(CUDA_ON_CPU_TSAN)
  __tsan_switch_to_fiber(to.tsan_, __tsan_switch_to_fiber_no_sync);
#endif
  clipproj_switch_stack(&top_, to.top_);
  arrived();
}

void Fibre::arrived() {
#ifdef CUDA_ON_CPU_ASAN
  const void* stack;
  size_t size;
  __sanitizer_finish_switch_fiber(fake_stack_, &stack, &size);
  if (!from->memory_) from->stack_ = stack, from->size_ = size;  // the thread's own
#endif
}

}  // namespace cuda_on_cpu
