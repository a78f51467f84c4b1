// SPDX-License-Identifier: Apache-2.0
// All that kernels take from CUDA. Device code includes this and nothing else of CUDA's, so that
// tests/helpers/cuda_on_cpu can run the same kernels where there is no GPU: built with
// CLIPPROJ_CUDA_ON_CPU, its runtime.h gives every name below the meaning that is documented here.
//
// Blocks are one-dimensional, a multiple of 32 threads, and all threads of a warp take part in
// every operation of the warp.
#pragma once
#include <cstddef>
#include <cstdint>

#ifdef CLIPPROJ_CUDA_ON_CPU
#include <cuda_on_cpu/runtime.h>
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

namespace clipproj {

// What a part of `count` elements takes of the launch's shared memory; see SharedParts.
template <class T>
__host__ __device__ constexpr size_t shared_bytes(int64_t count) {
  return (sizeof(T) * count + 15) / 16 * 16;
}

// Sixteen bytes, the widest load and store.
template <class T>
struct alignas(16) Pack {
  static constexpr int size = 16 / sizeof(T);
  T at[size];
};

__device__ inline int lane() { return threadIdx.x % 32; }
__device__ inline int warp() { return threadIdx.x / 32; }

#ifndef CLIPPROJ_CUDA_ON_CPU

// The launch's shared memory, dealt out in parts that start at multiples of 16 bytes. Every thread
// of the block takes the same parts in the same order; their shared_bytes add up to the launch's.
class SharedParts {
 public:
  __device__ SharedParts() {
    extern __shared__ __align__(16) unsigned char clipproj_shared[];
    next_ = clipproj_shared;
  }
  template <class T>
  __device__ T* take(int64_t count) {
    T* part = reinterpret_cast<T*>(next_);
    next_ += shared_bytes<T>(count);
    return part;
  }

 private:
  unsigned char* next_;
};

// Conversions; from_float rounds to nearest even and keeps NaN.
__device__ inline float to_float(float v) { return v; }
__device__ inline float to_float(__half v) { return __half2float(v); }
__device__ inline float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }
template <class T>
__device__ T from_float(float v);
template <>
__device__ inline float from_float(float v) {
  return v;
}
template <>
__device__ inline __half from_float(float v) {
  return __float2half_rn(v);
}
template <>
__device__ inline __nv_bfloat16 from_float(float v) {
  return __float2bfloat16_rn(v);
}
// Both rounded; `low` in bits 0 to 15.
__device__ inline uint32_t pack_bf16(float low, float high) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

// Sixteen bytes at an address that is a multiple of sixteen.
template <class T>
__device__ inline Pack<T> load_pack(const T* from) {
  const uint4 words = *reinterpret_cast<const uint4*>(from);
  Pack<T> pack;
  memcpy(&pack, &words, sizeof(pack));
  return pack;
}
template <class T>
__device__ inline void store_pack(T* to, const Pack<T>& pack) {
  uint4 words;  // nvcc would store the elements one by one
  memcpy(&words, &pack, sizeof(pack));
  *reinterpret_cast<uint4*>(to) = words;
}

// Eight bytes at an address that is a multiple of eight, by one load.
__device__ inline void load_pair(const int32_t* from, int32_t& first, int32_t& second) {
  const int2 pair = *reinterpret_cast<const int2*>(from);
  first = pair.x;
  second = pair.y;
}

// The value, of which the compiler knows nothing.
__device__ inline uint32_t opaque(uint32_t value) {
  asm volatile("" : "+r"(value));
  return value;
}

// Waits for all threads of the block, or of the warp; what they wrote before is seen after.
__device__ inline void sync_block() { __syncthreads(); }
// The same for `threads` of them, part `which` of the block.
template <int threads>
__device__ inline void sync_part(int which) {
  asm volatile("bar.sync %0, %1;" ::"r"(1 + which), "n"(threads) : "memory");
}
__device__ inline void sync_warp() { __syncwarp(); }

// The value of lane `lane() ^ mask`, or of lane `source`.
template <class T>
__device__ inline T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
template <class T>
__device__ inline T shuffle(T value, int source) {
  return __shfl_sync(0xffffffffu, value, source);
}

// Square roots with a relative error of at most 2^-22, in a few instructions.
__device__ inline float near_sqrt(float v) {
  float root;
  asm("sqrt.approx.f32 %0, %1;" : "=f"(root) : "f"(v));
  return root;
}
__device__ inline float near_rsqrt(float v) {
  float root;
  asm("rsqrt.approx.f32 %0, %1;" : "=f"(root) : "f"(v));
  return root;
}

// Bit i: whether lane i's value holds.
__device__ inline uint32_t ballot(bool value) { return __ballot_sync(0xffffffffu, value); }
// The first of some lanes, or of rows: the lowest bit that is set.
__device__ inline int first_of(uint32_t bits) { return __ffs(static_cast<int>(bits)) - 1; }

// *flag = 1, from any number of threads of the launch.
__device__ inline void raise_flag(int32_t* flag) { *static_cast<volatile int32_t*>(flag) = 1; }

__device__ inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Copies 16 bytes to shared memory, or zeros where pred is false, whatever `global` is, some time
// before the thread's copy_async_wait for the group that it is committed to. Other threads see them
// after a barrier that follows the wait.
__device__ inline void copy_async16(void* shared, const void* global, bool pred = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(__cvta_generic_to_global(global)), "r"(pred ? 16 : 0)
               : "memory");
}
__device__ inline void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most `pending` groups of this thread are under way.
template <int pending>
__device__ inline void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// ldmatrix: 8x8 matrices of 2-byte elements. Lane 8 i + j gives the address of row j of matrix i,
// 16 bytes in shared memory, `offset` bytes on from what is given; every lane gets, of each matrix,
// the elements (lane / 4, 2 (lane % 4) + {0, 1}), of its transpose with _trans.
template <int offset = 0>
__device__ inline void load_matrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4 + %5];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row)), "n"(offset)
               : "memory");
}
template <int offset = 0>
__device__ inline void load_matrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4 + %5];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row)), "n"(offset)
               : "memory");
}

// d += a b with a [16, 16], b [16, 8] and d [16, 8] over the lanes as PTX lays out the fragments
// of mma.m16n8k16: with g = lane / 4 and t = 2 (lane % 4),
//   a: (g, t + {0, 1}), (g + 8, the same), (g, t + {8, 9}), (g + 8, the same)
//   b: (t + {0, 1}, g), (t + {8, 9}, g)        d: (g, t), (g, t + 1), (g + 8, t), (g + 8, t + 1)
__device__ inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Bytes of shared memory that the launch asked for.
__device__ inline size_t launched_shared_bytes() {
  uint32_t bytes;
  asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(bytes));
  return bytes;
}

#endif  // CLIPPROJ_CUDA_ON_CPU

}  // namespace clipproj
