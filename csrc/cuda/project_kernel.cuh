// SPDX-License-Identifier: Apache-2.0
// x' = x - s (x R^T - c) W and its length, one block a row, no torch headers.
//
// The row is widened to float in shared memory once; each warp takes every kWarps-th direction for
// the dot products; then each thread owns every kThreads-th column, sums over k in order,
// subtracts, squares, and stores once. Sums have one order, so a row's bits do not depend on n, nor
// on what else is in a bank.
// Where directions look at each other (`solved`) the first warp then makes a solution of the row's
// dot products (solve.cuh).
// Plain and right: for rows too wide for a tile (project_plan.h), and for what the kernels over
// tiles are held against.
#pragma once
#include <cmath>

#include "../params.h"
#include "bank.cuh"
#include "device.cuh"
#include "project_plan.h"
#include "solve.cuh"
#include "warp.cuh"

namespace clipproj {

// The sum over the block, in every thread; slots is [kWarps] of shared memory.
__device__ inline float block_sum(float value, float* slots) {
  value = warp_sum(value);
  sync_block();  // slots may still be read from an earlier sum
  if (lane() == 0) slots[warp()] = value;
  sync_block();
  float total = 0;
  for (int w = 0; w < kWarps; ++w) total += slots[w];
  return total;
}

__device__ inline float block_max(float value, float* slots) {
  value = warp_max(value);
  sync_block();
  if (lane() == 0) slots[warp()] = value;
  sync_block();
  float most = 0;
  for (int w = 0; w < kWarps; ++w) most = fmaxf(most, slots[w]);
  return most;
}

// Blocks of a multiprocessor, some of which compute while others wait: registers for as many.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr int kResident = 4;  // has threads for no more
#else
constexpr int kResident = 5;
#endif

// What a row without a known projector becomes.
template <class T>
__device__ void fill_nan(const ProjectParams<float>& p, int64_t i) {
  if (p.norm && threadIdx.x == 0) p.norm[i] = NAN;
  if (!p.out) return;
  T* out = static_cast<T*>(p.out) + i * p.out_row;
  for (int64_t j = threadIdx.x; j < p.d; j += kThreads) out[j * p.out_col] = from_float<T>(NAN);
}

template <class T, bool banked, bool solved>
__global__ void __launch_bounds__(kThreads, !solved  ? kResident
                                            : banked ? 3
                                                     : 4) project_kernel(ProjectParams<float> p) {
  const int64_t room = coef_room(p, solved);
  SharedParts shared;
  float* row = shared.take<float>(p.d);
  float* coef = shared.take<float>(room);
  float* partly = shared.take<float>(room < p.k ? p.d : 0);  // what is taken, until all is known
  float* slots = shared.take<float>(kWarps);
  Span* spans = shared.take<Span>(2);  // of this row and the next, which one thread asks for

  for (int64_t i = blockIdx.x, turn = 0; i < p.n; i += gridDim.x, turn = 1 - turn) {
    const T* x = static_cast<const T*>(p.x) + i * p.x_row;
    if (banked && threadIdx.x == 0) spans[turn] = span_of<solved>(p, i);
    for (int64_t j = threadIdx.x; j < p.d; j += kThreads) {
      row[j] = to_float(x[j * p.x_col]);
    }
    sync_block();
    int64_t start = 0, k = p.k;
    bool one_sided = solved;
    if constexpr (banked) {
      const Span span = spans[turn];
      if (solved ? !is_known(span) : span.rank < 0) {
        fill_nan<T>(p, i);
        continue;
      }
      one_sided = solved && span.rank < 0;
      start = span.start, k = solved ? rank_of(span) : span.rank;
    }

    const float s = p.strength ? p.strength[i * p.strength_row] : 1.0f;
    float squares = 0;
    for (int64_t done = 0, now;; done += now) {  // directions; those of one projector all at once
      now = banked && k - done > room ? room : k - done;
      const float* read = p.read + (start + done) * p.d;
      const float* write = p.write + (start + done) * p.d;
      for (int64_t g = warp(); g < now; g += kWarps) {
        float dot = 0;
        for (int64_t j = lane(); j < p.d; j += 32) dot = fmaf(row[j], read[g * p.d + j], dot);
        dot = warp_sum(dot);
        if (lane() != 0) continue;
        const float excess = dot - (p.offset ? p.offset[start + done + g] : 0.0f);
        coef[g] = one_sided ? excess : s * (banked ? excess : clamped(p, excess));
      }
      sync_block();  // the coefficients are complete
      if (one_sided) {
        if (warp() == 0) {
          solve_row(p, p.gram + start * p.gram_row, static_cast<int>(k), i, coef);
        }
        sync_block();  // the coefficients are solved for
      }

      const bool last = !banked || done + now == k;
      for (int64_t j = threadIdx.x; j < p.d; j += kThreads) {
        // Summed by itself: k steps round at its size, only the last at that of x.
        float taken = banked && done > 0 ? partly[j] : 0;
        for (int64_t g = 0; g < now; ++g) taken = fmaf(coef[g], write[g * p.d + j], taken);
        if (last) {
          const float y = row[j] - taken;
          row[j] = y;  // read again below by this thread only
          squares = fmaf(y, y, squares);
        } else {
          partly[j] = taken;
        }
      }
      if (last) break;
      sync_block();  // the next coefficients overwrite what slow warps may still read
    }

    float factor = 1.0f;
    if (p.normalize || p.norm) {
      float norm = sqrtf(block_sum(squares, slots));
      if (isinf(norm)) {  // out of float's range: measure relative to the largest element
        float most = 0;
        for (int64_t j = threadIdx.x; j < p.d; j += kThreads) most = fmaxf(most, fabsf(row[j]));
        most = block_max(most, slots);
        if (!isinf(most)) {
          squares = 0;
          for (int64_t j = threadIdx.x; j < p.d; j += kThreads) {
            const float y = row[j] / most;
            if (p.normalize) row[j] = y;
            squares = fmaf(y, y, squares);
          }
          const float relative = sqrtf(block_sum(squares, slots));
          factor = 1.0f / relative;
          norm = relative * most;
        } else {
          factor = 0.0f;  // inf * 0 is NaN where the inf is, 0 elsewhere: as torch normalizes
        }
      } else {
        factor = 1.0f / (norm < 1e-12f ? 1e-12f : norm);  // NaN stays NaN
      }
      if (p.norm && threadIdx.x == 0) p.norm[i] = norm;
    }
    if (p.out) {
      T* out = static_cast<T*>(p.out) + i * p.out_row;
      const bool left_alone = banked && k == 0 && !p.normalize && !p.scale;  // NaN payloads too
      const float scale = p.scale ? *p.scale : 1.0f;
      for (int64_t j = threadIdx.x; j < p.d; j += kThreads) {
        const float y = (p.normalize ? row[j] * factor : row[j]) * scale;
        out[j * p.out_col] = left_alone ? x[j * p.x_col] : from_float<T>(y);
      }
    }
  }
}

}  // namespace clipproj
