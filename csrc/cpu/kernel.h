// SPDX-License-Identifier: Apache-2.0
// What the kernels of all instruction sets share: how their loops are to be compiled, and scratch
// memory. Included before the target pragma (see project_avx2.cpp).
#pragma once
#include <cstdint>
#include <new>

#include "../params.h"
#include "../solve.h"

// Loops over registers: GCC keeps an array in registers only if the loops over it are gone early.
#define CLIPPROJ_UNROLL _Pragma("GCC unroll 16")
#define CLIPPROJ_INLINE __attribute__((always_inline)) inline
// One copy with all registers to itself.
#define CLIPPROJ_NOINLINE __attribute__((noinline))

namespace clipproj {

// A pointer that the compiler can't see through. It would keep one for each row of a block through
// the loop over blocks, and spill the factors to make room for them.
template <class P>
CLIPPROJ_INLINE P opaque(P p) {
  asm("" : "+r"(p));
  return p;
}

// The problem of the rows of one projector: their own directions alone. Inlined always, since both
// the launch and every instruction set need it.
template <class A>
CLIPPROJ_INLINE ProjectParams<A> projector(ProjectParams<A> p, Span span) {
  p.k = span.rank < 0 ? -int64_t{span.rank} : span.rank;
  p.read += span.start * p.d;
  p.write += span.start * p.d;
  if (p.offset) p.offset += span.start;
  p.gram = span.rank < 0 ? p.gram + span.start * p.gram_row : nullptr;
  return p;
}

// Whether directions do not look at each other: the solution of each is its own clamp.
template <class A>
CLIPPROJ_INLINE bool is_diagonal(const A* gram, int64_t row, int64_t k) {
  for (int64_t i = 0; i < k; ++i) {
    const A* at = gram + i * row;
    A beside = 0;  // NaN is not 0 either
    for (int64_t j = 0; j < i; ++j) beside += at[j] * at[j];
    for (int64_t j = i + 1; j < k; ++j) beside += at[j] * at[j];
    if (beside != 0) return false;
  }
  return true;
}

// p, told whether its gram is diagonal.
template <class A>
CLIPPROJ_INLINE ProjectParams<A> with_clamps(ProjectParams<A> p) {
  p.clamps = p.gram && is_diagonal(p.gram, p.gram_row, p.k);
  return p;
}

// Cache-line aligned memory of one thread.
template <class A>
class Scratch {
 public:
  explicit Scratch(int64_t size)
      : data_(static_cast<A*>(::operator new(sizeof(A) * (size + 1), std::align_val_t{64}))) {}
  ~Scratch() { ::operator delete(data_, std::align_val_t{64}); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  A* get() { return data_; }

 private:
  A* data_;
};

}  // namespace clipproj
