// SPDX-License-Identifier: Apache-2.0
// Factors in shared memory for project_half_kernel: split into bfloat16 (split.cuh) and laid out
// once, so that both products get their fragments by ldmatrix from one copy, and a symmetric
// projector needs no second.
//
// A direction is a row of 16-byte chunks, four for each piece of 32 columns. What is the t-th chunk
// of a piece holds its columns 8 q + 2 t and 8 q + 2 t + 1, q = 0..3: a lane that owns columns
// 8 q to 8 q + 7 of the rows, q = lane % 4, then owns the same columns of the products. Chunks are
// swapped about by direction, so that eight directions of one chunk lie in different banks.
#pragma once
#include "split.cuh"
#include "tile.cuh"

namespace clipproj {

// A block is one team of kThreads threads, or two that share the factors. Each has tiles, and
// barriers, of its own.
template <int teams>
__device__ inline int team() {
  return teams == 1 ? 0 : threadIdx.x / kThreads;
}
__device__ inline int team_thread() { return threadIdx.x % kThreads; }
__device__ inline int team_warp() { return warp() % kWarps; }

// Eight bytes in one access.
struct alignas(8) Pair {
  float at[2];
};

// Slots for groups of kGroup directions of P * kWarps pieces.
template <int P>
struct HalfFactor {
  static constexpr int kChunks = P * kWarps * 4;      // of a direction
  static constexpr int kPart = kGroup * kChunks * 8;  // elements of the high or the low parts

  uint16_t* data;  // [slots, high and low, kGroup, kChunks, 8]

  // The high part of a direction in a chunk of piece team_warp(). Constants, in bytes: on to the
  // low part, to piece team_warp() + kWarps.
  static constexpr int kToLow = 2 * kPart, kToNext = kWarps * 64;
  __device__ const uint16_t* at(int slot, int direction, int chunk) const {
    const int place = direction * kChunks + ((team_warp() * 4 + chunk) ^ (direction & 7));
    return data + slot * 2 * kPart + place * 8;
  }

  // The first `end` directions of a slot <- `count` from `from` [count, d], then zeros, by a team
  // or by the block. `guarded`: numbers that can't be split, which would spoil every product,
  // become zeros, and false is returned if this thread has met one.
  template <bool packs, bool guarded>
  __device__ bool fill(int slot, const float* from, int count, int end, int d) const {
    bool whole = true;
    const int first = guarded ? team_thread() : threadIdx.x;
    const int step = guarded ? kThreads : blockDim.x;
#pragma unroll 1
    for (int i = first; i < end * kChunks; i += step) {
      const int g = i / kChunks, chunk = i % kChunks;
      const int j = chunk / 4 * kPiece + chunk % 4 * 2;
      Pack<uint32_t> upper, lower;
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        float v[2] = {};
        if (g < count) load_pair<packs>(v, from + static_cast<int64_t>(g) * d, j + 8 * q, d);
#pragma unroll
        for (float& one : v) {
          if (!guarded || fabsf(one) <= kMostSplit) continue;
          whole = false;
          one = 0;
        }
        const Split both = split(v[0], v[1]);
        upper.at[q] = both.high;
        lower.at[q] = both.low;
      }
      uint16_t* to = data + slot * 2 * kPart + (g * kChunks + (chunk ^ (g & 7))) * 8;
      store_pack(reinterpret_cast<uint32_t*>(to), upper);
      store_pack(reinterpret_cast<uint32_t*>(to + kPart), lower);
    }
    return whole;
  }

 private:
  template <bool packs>
  __device__ static void load_pair(float (&v)[2], const float* row, int j, int d) {
    if constexpr (packs) {
      if (j >= d) return;
      const Pair pair = *reinterpret_cast<const Pair*>(row + j);
      v[0] = pair.at[0], v[1] = pair.at[1];
    } else {
      if (j < d) v[0] = row[j];
      if (j + 1 < d) v[1] = row[j + 1];
    }
  }
};

}  // namespace clipproj
