// SPDX-License-Identifier: Apache-2.0
// The lengths of the rows of project_half_kernel, which wait in registers.
#pragma once
#include "half_rows.cuh"
#include "warp.cuh"

namespace clipproj {

// Of this size, squares are summed at a smaller scale as well, in case their sum leaves float's
// range; the scale loses nothing that matters beside them.
constexpr float kLarge = 0x1p100f, kScale = 0x1p-96f;

// Adds up this warp's part of each row's squares into shared.squares, and where it is large, times
// kScale^2, into shared.far.
template <int P>
__device__ void store_squares(const HalfShared<P>& shared, const float (&y)[P][4][4]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int at = HalfRows<P>::row(half) * kWarps + team_warp();
    auto sum_of_squares = [&](float scale) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < P * 8; ++i) {
        const float v = y[i / 8][i % 8 / 2][2 * half + i % 2] * scale;
        sum = fmaf(v, v, sum);
      }
      sum += shuffle_xor(sum, 1);
      return sum + shuffle_xor(sum, 2);
    };
    const float sum = sum_of_squares(1.0f);
    if (lane() % 4 == 0) shared.squares[at] = sum;
    if (ballot(!(sum < kLarge)) == 0) continue;
    const float far = sum_of_squares(kScale);
    if (lane() % 4 == 0) shared.far[at] = far;
  }
}

struct RowLength {
  float norm, inverse;
};

// From what the warps have summed; relative error 2^-21.
template <int P>
__device__ RowLength length_of_row(const HalfShared<P>& shared, int row) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kWarps; i += 4) {
    const Pack<float> pack = load_pack(shared.squares + row * kWarps + i);
#pragma unroll
    for (int t = 0; t < 4; ++t) sum += pack.at[t];
  }
  if (!isinf(sum)) return {near_sqrt(sum), sum < 1e-24f ? 1e12f : near_rsqrt(sum)};  // NaN stays
  sum = 0;
#pragma unroll 1
  for (int w = 0; w < kWarps; ++w) {
    const float part = shared.squares[row * kWarps + w];
    sum += part < kLarge ? part * kScale * kScale : shared.far[row * kWarps + w];
  }
  const float norm = sqrtf(sum);
  if (isinf(norm)) return {norm, 0.0f};  // inf * 0 is NaN where the inf is, 0 elsewhere
  return {norm / kScale, kScale / norm};
}

}  // namespace clipproj
