// SPDX-License-Identifier: Apache-2.0
// Banks: factors that hold the directions of many projectors, and each row's own among them.
#pragma once
#include "../params.h"
#include "device.cuh"

namespace clipproj {

__device__ inline bool operator==(const Span& a, const Span& b) {
  return a.start == b.start && a.rank == b.rank;
}

constexpr int kUnknown = -2147483647 - 1;  // the rank of a span that there is not

// The span of row i: of rank 0 where there is nothing to do, kUnknown where none is known and the
// row becomes NaN; below 0 else only where the bank's projectors may be `solved`. To be asked once:
// whoever changes the bank may switch it from another stream, by one store of its 8 bytes.
template <bool solved = false>
__device__ inline Span span_of(const ProjectParams<float>& p, int64_t i) {
  const int which = p.index[i];
  if (which == -1) return {0, 0};
  if (0 <= which && which < p.m) {
    Span span;
    load_pair(p.spans + 2 * int64_t{which}, span.start, span.rank);
    int64_t rank = span.rank;
    if (solved && rank < 0 && -rank <= p.gram_row) rank = -rank;
    if (span.start >= 0 && rank >= 0 && span.start + rank <= p.k) return span;
  }
  if (p.flag) raise_flag(p.flag);
  return {0, kUnknown};
}

// The coefficient of an excess that is looked at by itself; NaN stays NaN.
__device__ inline float clamped(const ProjectParams<float>& p, float excess) {
  return p.clamps && excess < 0 ? 0.0f : excess;
}

__device__ inline bool is_known(Span span) { return span.rank != kUnknown; }

// How many directions a known one has.
__device__ inline int rank_of(Span span) { return span.rank < 0 ? -span.rank : span.rank; }

// p for `rank` directions from `start` on.
__device__ inline ProjectParams<float> part_of(ProjectParams<float> p, int64_t start,
                                               int64_t rank) {
  p.k = rank;
  p.read += start * p.d;
  p.write += start * p.d;
  if (p.offset) p.offset += start;
  return p;
}

}  // namespace clipproj
