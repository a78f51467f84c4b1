// SPDX-License-Identifier: Apache-2.0
// Copies of a kernel's buffers, each in a heap block of its own and no byte longer, so that
// AddressSanitizer sees every access beyond one.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "sanitizers.h"

namespace cuda_on_cpu {

class Operands {
 public:
  Operands() = default;
  Operands(const Operands&) = delete;
  Operands& operator=(const Operands&) = delete;
  ~Operands() {
    for (const One& one : all_) open_bytes(one.memory.get(), one.lead);
  }

  // The copy of `count` elements, at an address with the same remainder by 16; the same copy for
  // the same address, which is how in place and symmetric stay so. Null for null.
  template <class T>
  T* take(T* original, int64_t count) {
    if (!original) return nullptr;
    for (const One& one : all_) {
      if (one.original == original) return reinterpret_cast<T*>(one.memory.get() + one.lead);
    }
    const size_t bytes = sizeof(T) * count, lead = reinterpret_cast<uintptr_t>(original) % 16;
    One one{original, std::make_unique<char[]>(lead + bytes), lead, bytes};
    std::memcpy(one.memory.get() + lead, original, bytes);
    close_bytes(one.memory.get(), lead);
    all_.push_back(std::move(one));
    return reinterpret_cast<T*>(all_.back().memory.get() + lead);
  }

  // Writes back what the kernel left in every copy, read-only ones too: that it left them alone
  // is for the caller to see.
  void bring_back() const {
    for (const One& one : all_) {
      std::memcpy(const_cast<void*>(one.original), one.memory.get() + one.lead, one.bytes);
    }
  }

 private:
  struct One {
    const void* original;
    std::unique_ptr<char[]> memory;
    size_t lead, bytes;
  };
  std::vector<One> all_;
};

}  // namespace cuda_on_cpu
