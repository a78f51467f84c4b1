// SPDX-License-Identifier: Apache-2.0
// What the sanitizers are told, nothing in plain builds. Under ThreadSanitizer only kernels are
// instrumented, not the code that runs them (its own accesses would look like races), so that code
// says which accesses it makes in a kernel's name and which operations put them in order.
#pragma once
#include <cstddef>

#if defined(CUDA_ON_CPU_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#elif defined(CUDA_ON_CPU_TSAN)
#include <sanitizer/tsan_interface.h>
extern "C" void __tsan_read_range(void*, unsigned long);
extern "C" void __tsan_write_range(void*, unsigned long);
#endif

namespace cuda_on_cpu {

// No access to these bytes is right, until they are opened.
inline void close_bytes([[maybe_unused]] void* p, [[maybe_unused]] size_t bytes) {
#ifdef CUDA_ON_CPU_ASAN
  __asan_poison_memory_region(p, bytes);
#endif
}
inline void open_bytes([[maybe_unused]] const void* p, [[maybe_unused]] size_t bytes) {
#ifdef CUDA_ON_CPU_ASAN
  __asan_unpoison_memory_region(p, bytes);
#endif
}

// The running fibre reads or writes.
inline void note_read([[maybe_unused]] const void* p, [[maybe_unused]] size_t bytes) {
#ifdef CUDA_ON_CPU_TSAN
  __tsan_read_range(const_cast<void*>(p), bytes);
#endif
}
inline void note_write([[maybe_unused]] void* p, [[maybe_unused]] size_t bytes) {
#ifdef CUDA_ON_CPU_TSAN
  __tsan_write_range(p, bytes);
#endif
}

// What ran before a release of a tag comes before what runs after an acquire of it.
inline void release([[maybe_unused]] void* tag) {
#ifdef CUDA_ON_CPU_TSAN
  __tsan_release(tag);
#endif
}
inline void acquire([[maybe_unused]] void* tag) {
#ifdef CUDA_ON_CPU_TSAN
  __tsan_acquire(tag);
#endif
}

}  // namespace cuda_on_cpu
