// SPDX-License-Identifier: Apache-2.0
// Small kernels of 64 threads, right ones and such with one mistake each that the stand-in must
// find. Each block takes `in`, of 64 floats in a heap block of its own, to its part of `out`.
#pragma once
#include <type_traits>

#include "../../csrc/cuda/device.cuh"

namespace planted {

using namespace clipproj;

constexpr int kThreads = 64;
constexpr size_t kShared = shared_bytes<float>(kThreads) + shared_bytes<float>(1);

__device__ inline unsigned global_index() { return blockIdx.x * kThreads + threadIdx.x; }

// Turns the order around: through shared memory.
template <bool barrier>
__global__ void reverse(const float* in, float* out) {
  SharedParts shared;
  float* all = shared.take<float>(kThreads);
  all[threadIdx.x] = in[threadIdx.x];
  if (barrier) sync_block();
  out[global_index()] = all[kThreads - 1 - threadIdx.x];
}

// Adds up over the block twice, the second time what the first sum left over.
template <bool barrier>
__global__ void sum_twice(const float* in, float* out) {
  SharedParts shared;
  float* slots = shared.take<float>(2);
  float value = in[threadIdx.x];
  for (int round = 0; round < 2; ++round) {
    for (int step = 16; step > 0; step /= 2) value += shuffle_xor(value, step);
    if (barrier) sync_block();  // slots may still be read
    if (lane() == 0) slots[warp()] = value;
    sync_block();
    value = slots[0] + slots[1];
  }
  out[global_index()] = value;
}

template <bool barrier>
__global__ void reverse_warps(const float* in, float* out) {
  SharedParts shared;
  float* all = shared.take<float>(kThreads);
  all[threadIdx.x] = in[threadIdx.x];
  if (barrier) sync_warp();
  out[global_index()] = all[threadIdx.x ^ 31];
}

__global__ void divergent_barrier(const float* in, float* out) {
  if (in[threadIdx.x] > 0) {
    sync_block();
  } else {
    sync_block();
  }
  out[global_index()] = 0;
}

__global__ void left_before_barrier(const float*, float* out) {
  if (threadIdx.x == 33) return;
  sync_block();
  out[global_index()] = 0;
}

__global__ void missing_lane(const float* in, float* out) {
  if (lane() > 0) out[global_index()] = shuffle_xor(in[threadIdx.x], 1);
}

__global__ void read_beyond(const float* in, float* out) {
  out[global_index()] = in[threadIdx.x + 1];
}

__global__ void write_beyond_part(const float*, float* out) {
  SharedParts shared;
  float* all = shared.take<float>(kThreads);
  all[threadIdx.x + 1] = 0;
  out[global_index()] = 0;
}

__global__ void colliding_blocks(const float*, float* out) {
  out[blockIdx.x * (kThreads - 1) + threadIdx.x] = static_cast<float>(blockIdx.x);
}

__global__ void read_uninitialised(const float*, float* out) {
  SharedParts shared;
  out[global_index()] = shared.take<float>(kThreads)[threadIdx.x];
}

__global__ void more_than_launched(const float*, float* out) {
  SharedParts shared;
  shared.take<float>(kThreads + 8);
  out[global_index()] = 0;
}

__global__ void misaligned(const float* in, float* out) {
  out[global_index()] = load_pack(in + threadIdx.x % 2).at[0];
}

// The first 16 threads copy four floats each, all threads read.
template <bool commit, bool wait, bool barrier>
__global__ void copy(const float* in, float* out) {
  SharedParts shared;
  float* all = shared.take<float>(kThreads);
  const int start = 4 * (threadIdx.x % 16);
  if (threadIdx.x < 16) copy_async16(all + start, in + start, start < 32);
  if (commit) copy_async_commit();
  if (wait) copy_async_wait<0>();
  if (barrier) sync_block();
  out[global_index()] = all[threadIdx.x];
}

__global__ void copy_of_what_changes(const float*, float* out) {
  SharedParts shared;
  float* all = shared.take<float>(kThreads);
  const int start = 4 * (threadIdx.x % 16);
  copy_async16(all + start, out + start);
  copy_async_commit();
  out[start] = 0;
  copy_async_wait<0>();
}

// One warp: out [16, 8] = 2 a [16, 16] b [16, 8], by row; b_transposed is [8, 16].
__global__ void multiply(const __nv_bfloat16* a, const __nv_bfloat16* b,
                         const __nv_bfloat16* b_transposed, float* out) {
  SharedParts shared;
  __nv_bfloat16* as = shared.take<__nv_bfloat16>(16 * 16);
  __nv_bfloat16* bs = shared.take<__nv_bfloat16>(16 * 8);
  __nv_bfloat16* bts = shared.take<__nv_bfloat16>(8 * 16);
  for (int i = lane(); i < 256; i += 32) as[i] = a[i];
  for (int i = lane(); i < 128; i += 32) bs[i] = b[i], bts[i] = b_transposed[i];
  sync_warp();
  uint32_t fa[4], fb[4], fbt[4];  // of the latter, two matrices twice
  load_matrix_x4(fa, as + lane() % 16 * 16 + lane() / 16 * 8);
  load_matrix_x4_trans(fb, bs + lane() % 16 * 8);
  load_matrix_x4<16>(fbt, bts + lane() % 8 * 16 + lane() / 8 % 2 * 8 - 8);
  float d[4] = {};
  mma_bf16(d, fa, {fb[0], fb[1]});
  mma_bf16(d, fa, {fbt[2], fbt[3]});
  const int row = lane() / 4, column = lane() % 4 * 2;
  for (int i = 0; i < 4; ++i) out[(row + i / 2 * 8) * 8 + column + i % 2] = d[i];
}

}  // namespace planted
