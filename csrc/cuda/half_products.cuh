// SPDX-License-Identifier: Apache-2.0
// The two products of project_half_kernel, by tensor cores, and the coefficients between them.
#pragma once
#include <type_traits>
#include <utility>

#include "half_rows.cuh"

namespace clipproj {

// body(i) for i of 0..count-1, each a constant.
template <int... i, class Body>
__device__ void unrolled(std::integer_sequence<int, i...>, Body body) {
  (body(std::integral_constant<int, i>()), ...);
}
template <int count, class Body>
__device__ void unrolled(Body body) {
  unrolled(std::make_integer_sequence<int, count>(), body);
}

// dot <- R x^T of this warp's pieces for the directions of a slot: rows lane / 4 and, as mma lays
// out 16 x 8, of eight rows of x, twice. This way round, words of x are operands as they lie.
template <class T, int P>
__device__ void multiply_read(float (&dot)[2][4], const HalfRows<P>& x, const HalfFactor<P>& read,
                              int slot) {
  constexpr bool exact = std::is_same_v<T, __nv_bfloat16>;
  float rest[2][4] = {};  // products of low parts: summed where they are not rounded away
#pragma unroll
  for (int i = 0; i < 8; ++i) dot[i / 4][i % 4] = 0;
  const uint16_t* at[2] = {read.at(slot, lane() % 16, lane() / 16),
                           read.at(slot, lane() % 16, lane() / 16 + 2)};
  unrolled<2 * P>([&](auto step) {  // two chunks of a piece
    constexpr int i = decltype(step)::value / 2, n = decltype(step)::value % 2;
    constexpr int from = i * HalfFactor<P>::kToNext;
    uint32_t high[4], low[4];  // [chunk, eight directions]
    load_matrix_x4<from>(high, at[n]);
    load_matrix_x4<from + HalfFactor<P>::kToLow>(low, at[n]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t x_high[2], x_low[2];
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        const uint32_t word = x.words[i][half][2 * n + b];
        // Split anew for each slot: all of x, split ahead, would fill the registers.
        const Split both = split_x<T>(exact ? word : opaque(word));
        x_high[b] = both.high;
        x_low[b] = both.low;
      }
      mma_bf16(dot[half], high, x_high);
      mma_bf16(rest[half], low, x_high);
      if (!exact) mma_bf16(rest[half], high, x_low);
    }
  });
#pragma unroll
  for (int i = 0; i < 8; ++i) dot[i / 4][i % 4] += rest[i / 4][i % 4];
}

// taken += c W for the directions of a slot, in this warp's pieces.
template <int P>
__device__ void multiply_write(float (&taken)[P][4][4], const HalfShared<P>& shared, int slot) {
  uint32_t c_high[4], c_low[4];
  const int c_at = lane() % 16 * kHalfCoefPitch + lane() / 16 * 8;
  load_matrix_x4(c_high, shared.c_high + c_at);
  load_matrix_x4(c_low, shared.c_low + c_at);
  const uint16_t* at[2] = {shared.write.at(slot, lane() % 16, lane() / 16),
                           shared.write.at(slot, lane() % 16, lane() / 16 + 2)};
  unrolled<2 * P>([&](auto step) {  // two chunks of a piece
    constexpr int i = decltype(step)::value / 2, n = decltype(step)::value % 2;
    constexpr int from = i * HalfFactor<P>::kToNext;
    uint32_t high[4], low[4];  // [chunk, eight directions]
    load_matrix_x4_trans<from>(high, at[n]);
    load_matrix_x4_trans<from + HalfFactor<P>::kToLow>(low, at[n]);
#pragma unroll
    for (int product = 0; product < 3; ++product) {
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        const uint32_t* of = product == 1 ? low : high;
        const uint32_t b[2] = {of[2 * t], of[2 * t + 1]};
        mma_bf16(taken[i][2 * n + t], product == 2 ? c_low : c_high, b);
      }
    }
  });
}

// The strength of the row whose coefficients this thread adds up.
__device__ inline float strength_of(const ProjectParams<float>& p, int64_t first) {
  const int64_t i = first + team_thread() % kHalfRows;
  return p.strength && i < p.n ? p.strength[i * p.strength_row] : 1.0f;
}

// The coefficient of this thread's row and direction, from what the warps have summed: zero of
// directions beyond [start, start + count) and of rows that are not the leader's.
template <int P>
__device__ void store_coefficient(const ProjectParams<float>& p, const HalfShared<P>& shared,
                                  float strength, int64_t start, int count, const int* leaders,
                                  int leader) {
  static_assert(kThreads == kHalfRows * kGroup);
  const int r = team_thread() % kHalfRows, g = team_thread() / kHalfRows;
  float parts[kWarps], c = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) parts[w] = shared.sums[w * kThreads + team_thread()];
#pragma unroll
  for (int w = 0; w < kWarps; ++w) c += parts[w];
  const bool own = !leaders || leaders[r] == leader;
  c = g < count && own ? strength * clamped(p, c - (p.offset ? p.offset[start + g] : 0.0f)) : 0.0f;
  const Split both = split(c, 0.0f);
  shared.c_high[r * kHalfCoefPitch + g] = static_cast<uint16_t>(both.high);
  shared.c_low[r * kHalfCoefPitch + g] = static_cast<uint16_t>(both.low);
}

template <int P>
__device__ void store_sums(const HalfShared<P>& shared, const float (&dot)[2][4]) {
  const int direction = lane() / 4, row = lane() % 4 * 2;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float* at = shared.sums + (team_warp() * kGroup + direction) * kHalfRows + 8 * half + row;
    *reinterpret_cast<Pair*>(at) = {dot[half][0], dot[half][1]};
    *reinterpret_cast<Pair*>(at + 8 * kHalfRows) = {dot[half][2], dot[half][3]};
  }
}

}  // namespace clipproj
