// SPDX-License-Identifier: Apache-2.0
// What the kernels over tiles of rows share: tiles between global and shared memory, factors from
// global memory, the coefficients of a group of directions, the length of a row.
//
// A tile is M rows, whole, in shared memory. The order of every sum depends on d and k alone, not
// on M, on n, or on where in a tile a row lies: a row's bits are its own.
#pragma once
#include <cmath>
#include <cstring>

#include "bank.cuh"
#include "project_plan.h"
#include "warp.cuh"

namespace clipproj {

static_assert(kWarps == 8 && kGroup == 16);

// As plans name the type of x.
template <class T>
constexpr Type kType = Type::kFloat;
template <>
constexpr Type kType<__nv_bfloat16> = Type::kBFloat16;
template <>
constexpr Type kType<__half> = Type::kHalf;

// What a tile needs to know of the memory it comes from or goes to.
struct Memory {
  int64_t row, col;
  bool packs;  // rows of whole packs at multiples of 16 bytes
};

template <class T>
__device__ inline Memory memory_of(const void* data, int64_t row, int64_t col, int64_t d) {
  constexpr int size = Pack<T>::size;
  const bool aligned = reinterpret_cast<uintptr_t>(data) % 16 == 0;
  return {row, col, aligned && col == 1 && row % size == 0 && d % size == 0};
}

// tile [m, pitch] <- `left` rows of x, zeros in the rows below them and in columns d..width.
// Complete after copy_async_wait<0> and a barrier. E is T, or its bits.
template <class E, class T>
__device__ inline void load_tile(const T* x, Memory from, int left, int m, int d, int width,
                                 E* tile, int pitch) {
  static_assert(sizeof(E) == sizeof(T));
  auto element = [&](int r, int j) {
    T v{};
    if (r < left && j < d) v = x[r * from.row + j * from.col];
    E bits;
    std::memcpy(&bits, &v, sizeof(bits));
    return bits;
  };
  if (from.packs) {
    constexpr int size = Pack<E>::size;
    for (int r = warp(); r < m; r += kWarps) {
      const bool inside = r < left;
      const T* row = inside ? x + r * from.row : x;
      for (int j = lane() * size; j < width; j += 32 * size) {
        const bool some = inside && j < d;
        copy_async16(tile + r * pitch + j, some ? row + j : x, some);
      }
    }
  } else if (from.row == 1) {  // neighbouring rows are adjacent: columns of a weight
    for (int j = warp(); j < width; j += kWarps) {
#pragma unroll 1
      for (int r = lane(); r < m; r += 32) tile[r * pitch + j] = element(r, j);
    }
  } else {
    for (int r = warp(); r < m; r += kWarps) {
#pragma unroll 1
      for (int j = lane(); j < width; j += 32) tile[r * pitch + j] = element(r, j);
    }
  }
  copy_async_commit();
}

// A factor [k, d], contiguous; `packs` as Memory::packs.
template <bool packs>
struct Factor {
  const float* data;
  int k, d;

  __device__ Factor(const float* data, const ProjectParams<float>& p)
      : data(data), k(static_cast<int>(p.k)), d(static_cast<int>(p.d)) {}

  // Columns j..j+3 of direction g, zeros outside.
  __device__ void load(float (&v)[4], int g, int j) const {
    if constexpr (packs) {
      Pack<float> pack{};
      if (g < k && j < d) pack = load_pack(data + (g * d + j));
#pragma unroll
      for (int t = 0; t < 4; ++t) v[t] = pack.at[t];
    } else {
#pragma unroll
      for (int t = 0; t < 4; ++t) v[t] = g < k && j + t < d ? data[g * d + j + t] : 0;
    }
  }
};

// run(factor) for the factor at data.
template <class Run>
__device__ inline void with_factor(const float* data, const ProjectParams<float>& p, Run run) {
  if (p.d % 4 == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0) {
    run(Factor<true>(data, p));
  } else {
    run(Factor<false>(data, p));
  }
}

// s (dot - offset), clamped where that is asked for, of direction g in row r of the tile that
// starts with row `first`; `raw`: dot - offset, to be solved for. Parts of the dot product lie in
// sums [kWarps, m, kGroup]. Directions beyond k get 0, whatever the row holds.
__device__ inline float coefficient(const ProjectParams<float>& p, const float* sums, int m, int r,
                                    int g, int64_t first, bool raw) {
  float dot = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) dot += sums[(w * m + r) * kGroup + g % kGroup];
  if (g >= p.k || first + r >= p.n) return 0;
  const float excess = dot - (p.offset ? p.offset[g] : 0.0f);
  if (raw) return excess;
  const float s = p.strength ? p.strength[(first + r) * p.strength_row] : 1.0f;
  return s * clamped(p, excess);
}

struct Length {
  float norm;
  float scale, factor;  // times both, the row is of length 1

  __device__ float unit(float y) const { return y * scale * factor; }
};

// The length of a row whose squares sum to `squares`; y(j) is its element. One warp a row.
template <class Y>
__device__ inline Length length_of(float squares, int d, Y y) {
  const float norm = sqrtf(squares);
  if (!isinf(norm)) return {norm, 1.0f, 1.0f / (norm < 1e-12f ? 1e-12f : norm)};  // NaN stays NaN
  // Out of float's range: measure at a smaller scale, exact for all that matters beside 2^60.
  constexpr float scale = 0x1p-96f;
  float sum = 0;
#pragma unroll 1
  for (int j = lane(); j < d; j += 32) sum = fmaf(y(j) * scale, y(j) * scale, sum);
  const float scaled = sqrtf(warp_sum(sum));
  if (isinf(scaled)) return {norm, 1.0f, 0.0f};  // inf * 0 is NaN where the inf is, 0 elsewhere
  return {scaled / scale, scale, 1.0f / scaled};
}

}  // namespace clipproj
