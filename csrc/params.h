// SPDX-License-Identifier: Apache-2.0
// What a kernel is told: plain pointers and strides, no torch types. All strides are in elements.
#pragma once
#include <cstdint>

namespace clipproj {

// x' = x - s (x read^T - offset) write, row by row; A is the type of factors and accumulators.
template <class A>
struct ProjectParams {
  const void* x;      // [n, d], element (i, j) at i * x_row + j * x_col
  void* out;          // [n, d] as x; the same memory when in place; null when only norms are wanted
  A* norm;            // [n], the length of each projected row; null when rows are wanted
  const A* read;      // [k, d], contiguous
  const A* write;     // [k, d], contiguous; equal to read when the projector is symmetric
  const A* offset;    // [k] or null
  const A* strength;  // element i * strength_row for row i; null means 1
  int64_t n, d, k;
  int64_t x_row, x_col;
  int64_t out_row, out_col;
  int64_t strength_row;  // 0: one strength for all rows, 1: one per row
  bool normalize;        // divide each projected row by max(its length, 1e-12)
};

}  // namespace clipproj
