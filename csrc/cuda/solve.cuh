// SPDX-License-Identifier: Apache-2.0
// The coefficients of a one-sided projector, as cpu/solve.inl finds them, a row a warp: lane l has
// those of directions l, l + 32, ... The steps are the CPU's in the CPU's order, so that the same
// excess gives the same bits; only those that would be of length 0 are passed over. All lanes agree
// on what comes next, and on nothing but the row.
#pragma once
#include <cmath>

#include "../params.h"
#include "../solve.h"
#include "warp.cuh"

namespace clipproj {

// A step of every coefficient in turn: up by its excess or, unless `raise`, down, but to 0 at most.
// The longest is returned. A NaN makes steps of NaN, of each coefficient one as of any.
template <bool raise, int K>
__device__ float solve_sweep(const float* gram, int64_t row, int k, float (&excess)[K],
                             float (&a)[K]) {
  float moved = 0;
#pragma unroll
  for (int t = 0; t < K; ++t) {
    for (uint32_t left = ~0u;;) {
      const float low = raise ? 0.0f : -a[t];
      const float step = low > excess[t] ? low : excess[t];
      const uint32_t open = ballot(step != 0) & left;
      if (open == 0) break;
      const int next = first_of(open);
      const float* beside = gram + (32 * t + next) * row;
      const float back = -shuffle(step, next);
      if (lane() == next) a[t] += step;
#pragma unroll
      for (int u = 0; u < K; ++u) {
        const int j = lane() + 32 * u;
        if (j < k) excess[u] = fmaf(back, beside[j], excess[u]);
      }
      moved = fmaxf(moved, fabsf(back));
      left = ~1u << next;
    }
  }
  return moved;
}

// a <- the solution for an excess, which is used up: 0 in lanes from k on.
template <int K>
__device__ void solve_lanes(const float* gram, int64_t row, int k, float (&excess)[K],
                            float (&a)[K]) {
  using Limits = SolveLimits<float>;
  float highest = 0;
#pragma unroll
  for (int t = 0; t < K; ++t) {
    highest = fmaxf(highest, excess[t]);
    a[t] = 0;
  }
  const float largest = warp_max(highest);
  float move = Limits::kMove;
#pragma unroll 1
  for (int round = 0; round < Limits::kRounds; ++round, move /= 16) {
#pragma unroll 1
    for (int s = 0; s < Limits::kSweeps; ++s) {
      if (!(solve_sweep<false>(gram, row, k, excess, a) > move * largest)) break;
    }
#pragma unroll 1
    for (int s = 0; s < Limits::kRaises; ++s) {
      if (!(solve_sweep<true>(gram, row, k, excess, a) > Limits::kLeft * largest)) return;
    }
  }
#pragma unroll
  for (int t = 0; t < K; ++t) a[t] = NAN;
}

// put(j, coefficient) of the solution for the excess get(j): get of directions j < k, put by all
// lanes at once, of 0 or NaN beyond k. A direction is always the same lane's.
template <int K, class Get, class Put>
__device__ void solve_row(const float* gram, int64_t row, int k, Get get, Put put) {
  float excess[K], a[K];
#pragma unroll
  for (int t = 0; t < K; ++t) {
    const int j = lane() + 32 * t;
    excess[t] = j < k ? get(j) : 0;
  }
  solve_lanes(gram, row, k, excess, a);
#pragma unroll
  for (int t = 0; t < K; ++t) put(lane() + 32 * t, a[t]);
}

// The same for any k that is allowed.
template <class Get, class Put>
__device__ inline void solve_row(const float* gram, int64_t row, int k, Get get, Put put) {
  if (k <= 32) return solve_row<1>(gram, row, k, get, put);
  if (k <= 128) return solve_row<4>(gram, row, k, get, put);
  solve_row<8>(gram, row, k, get, put);
}

// coef [k] <- the strength of row i times the solution for the excess there.
__device__ inline void solve_row(const ProjectParams<float>& p, const float* gram, int k, int64_t i,
                                 float* coef) {
  const float strength = p.strength ? p.strength[i * p.strength_row] : 1.0f;
  solve_row(
      gram, p.gram_row, k, [&](int j) { return coef[j]; },
      [&](int j, float a) {
        if (j < k) coef[j] = strength * a;
      });
}

}  // namespace clipproj
