// SPDX-License-Identifier: Apache-2.0
// What csrc/cuda/device.cuh offers to kernels, for kernels that run on the CPU: the names and
// their meaning are documented there. Each thread of a block is a fibre (block.h); whatever CUDA
// leaves undefined is refused by an error that names the kernel's line.
#pragma once
#include <math.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <source_location>

#include "numbers.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

namespace cuda_on_cpu {

using Where = std::source_location;

struct Index {
  unsigned x, y = 0, z = 0;
};
const Index& thread_index();
const Index& block_index();
const Index& block_size();
const Index& grid_size();

void* shared_part(int index, size_t start, size_t bytes, Where where);
void check_aligned(const void* p, Where where);
void wait_for_groups(int pending, Where where);
void load_matrices(uint32_t (&r)[4], bool transposed, const void* row, Where where);
void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Where where);
// What `source` of this warp gives.
uint32_t exchange(uint32_t value, int source, Where where);
uint32_t ballot(bool value, Where where);

}  // namespace cuda_on_cpu

#define threadIdx (cuda_on_cpu::thread_index())
#define blockIdx (cuda_on_cpu::block_index())
#define blockDim (cuda_on_cpu::block_size())
#define gridDim (cuda_on_cpu::grid_size())

namespace clipproj {

using cuda_on_cpu::Where;

template <class T>
constexpr size_t shared_bytes(int64_t count);
template <class T>
struct Pack;

class SharedParts {
 public:
  template <class T>
  T* take(int64_t count, Where where = Where::current()) {
    void* part = cuda_on_cpu::shared_part(parts_++, used_, sizeof(T) * count, where);
    used_ += shared_bytes<T>(count);
    return static_cast<T*>(part);
  }

 private:
  int parts_ = 0;
  size_t used_ = 0;
};

template <class T>
Pack<T> load_pack(const T* from, Where where = Where::current()) {
  cuda_on_cpu::check_aligned(from, where);
  return *reinterpret_cast<const Pack<T>*>(from);
}
template <class T>
void store_pack(T* to, const Pack<T>& pack, Where where = Where::current()) {
  cuda_on_cpu::check_aligned(to, where);
  *reinterpret_cast<Pack<T>*>(to) = pack;
}

inline void load_pair(const int32_t* from, int32_t& first, int32_t& second) {
  first = from[0];
  second = from[1];
}

void sync_block(Where where = Where::current());
void sync_part(int which, unsigned threads, Where where);
template <int threads>
void sync_part(int which, Where where = Where::current()) {
  sync_part(which, threads, where);
}
void sync_warp(Where where = Where::current());

template <class T>
T shuffle(T value, int source, Where where = Where::current()) {
  static_assert(sizeof(T) == 4);
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits = cuda_on_cpu::exchange(bits, source, where);
  std::memcpy(&value, &bits, 4);
  return value;
}
template <class T>
T shuffle_xor(T value, int mask, Where where = Where::current()) {
  return shuffle(value, static_cast<int>(threadIdx.x % 32) ^ mask, where);
}

size_t launched_shared_bytes();
inline float near_sqrt(float v) { return sqrtf(v); }
inline float near_rsqrt(float v) { return 1 / sqrtf(v); }
inline uint32_t opaque(uint32_t value) { return value; }

inline uint32_t ballot(bool value, Where where = Where::current()) {
  return cuda_on_cpu::ballot(value, where);
}
inline int first_of(uint32_t bits) { return std::countr_zero(bits); }

// Relaxed: ThreadSanitizer would call plain stores of the same value a race.
inline void raise_flag(int32_t* flag) { __atomic_store_n(flag, 1, __ATOMIC_RELAXED); }

void copy_async16(void* shared, const void* global, bool pred = true,
                  Where where = Where::current());
void copy_async_commit();
template <int pending>
void copy_async_wait(Where where = Where::current()) {
  cuda_on_cpu::wait_for_groups(pending, where);
}

template <int offset = 0>
void load_matrix_x4(uint32_t (&r)[4], const void* row, Where where = Where::current()) {
  cuda_on_cpu::load_matrices(r, false, static_cast<const char*>(row) + offset, where);
}
template <int offset = 0>
void load_matrix_x4_trans(uint32_t (&r)[4], const void* row, Where where = Where::current()) {
  cuda_on_cpu::load_matrices(r, true, static_cast<const char*>(row) + offset, where);
}
inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                     Where where = Where::current()) {
  cuda_on_cpu::multiply(d, a, b, where);
}

}  // namespace clipproj
