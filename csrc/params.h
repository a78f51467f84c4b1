// SPDX-License-Identifier: Apache-2.0
// What a kernel is told: plain pointers and strides, no torch types. All strides are in elements.
#pragma once
#include <cstdint>

namespace clipproj {

// A projector's directions among those of a bank: its entry in `spans`. The rank of a one-sided
// projector is written negative: {start, -k}.
struct Span {
  int32_t start, rank;
};

// x' = x - s (x read^T - offset) write, row by row; A is the type of factors and accumulators. With
// gram = read write^T the coefficients x read^T - offset become the solution of solve.inl first.
// With spans, the factors hold those of many projectors and each row takes the one of its index.
template <class A>
struct ProjectParams {
  const void* x;      // [n, d], element (i, j) at i * x_row + j * x_col
  void* out;          // [n, d] as x; the same memory when in place; null when only norms are wanted
  A* norm;            // [n], the length of each projected row; null when rows are wanted
  const A* read;      // [k, d], contiguous
  const A* write;     // [k, d], contiguous; equal to read when the projector is symmetric
  const A* offset;    // [k] or null
  const A* gram;      // [k, k], element (i, j) at i * gram_row + j; null: linear. With spans [k, g]
  const A* strength;  // element i * strength_row for row i; null means 1
  const A* scale;     // one number, times each row at its end; null means 1
  const int32_t* spans;  // [m, 2], first direction and rank of each projector; null: one, of all k
  const int32_t* index;  // [n], each row's projector, -1 for none; null as spans
  int32_t* flag;  // set to 1 for an index outside -1..m-1 or a span outside 0..k; null: not wanted
  int64_t n, d, k, m;
  int64_t x_row, x_col;
  int64_t out_row, out_col;
  int64_t gram_row;
  int64_t strength_row;  // 0: one strength for all rows, 1: one per row
  bool clamps;           // gram is diagonal: each coefficient is its own max(., 0)
  bool normalize;        // divide each projected row by max(its length, 1e-12)
};

}  // namespace clipproj
