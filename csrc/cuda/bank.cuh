// SPDX-License-Identifier: Apache-2.0
// Banks: factors that hold the directions of many projectors, and each row's own among them.
#pragma once
#include "../params.h"
#include "device.cuh"

namespace clipproj {

// A projector's directions among those of the factors.
struct Span {
  int start;
  int rank;  // -1: none that is known, and the row becomes NaN

  __device__ bool operator==(const Span& other) const {
    return start == other.start && rank == other.rank;
  }
};

// The span of row i, of rank 0 where there is nothing to do.
__device__ inline Span span_of(const ProjectParams<float>& p, int64_t i) {
  const int which = p.index[i];
  if (which == -1) return {0, 0};
  if (0 <= which && which < p.m) {
    const Span span{p.spans[2 * int64_t{which}], p.spans[2 * int64_t{which} + 1]};
    if (span.start >= 0 && span.rank >= 0 && int64_t{span.start} + span.rank <= p.k) {
      return span;
    }
  }
  if (p.flag) raise_flag(p.flag);
  return {0, -1};
}

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
