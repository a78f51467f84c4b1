// SPDX-License-Identifier: Apache-2.0
// Whose turn it is among the projectors of a bank, in project_half_kernel.
#pragma once
#include "half_rows.cuh"
#include "warp.cuh"

namespace clipproj {

// Whose projector each row of a tile takes, for all warps to see after a barrier.
__device__ inline void read_bank(const ProjectParams<float>& p, const HalfBank& bank,
                                 int64_t first) {
  if (team_warp() != 0) return;
  const int r = lane() % kHalfRows;
  const Span span = first + r < p.n ? span_of(p, first + r) : Span{0, 0};
  int leader = r;
  for (int other = kHalfRows - 1; other >= 0; --other) {
    const Span theirs{shuffle(span.start, other), shuffle(span.rank, other)};
    if (other < r && theirs == span) leader = other;
  }
  if (lane() >= kHalfRows) return;
  bank.span[r] = span;
  bank.leader[r] = leader;
}

// What the slot of a bank holds.
struct Slice {
  int start = -1;
  int count = 0;
  bool flawed = false;  // some number of it can't be split: its rows become NaN
};

// Whether any thread says so; complete with all that was written before.
template <int teams>
__device__ bool any_flawed(int* flawed, bool here) {
  const float any = warp_max(here ? 1.0f : 0.0f);
  if (lane() == 0) flawed[team_warp()] = any > 0;
  sync_part<kThreads>(team<teams>());  // the slice and what is said of it are complete
  int all = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) all |= flawed[w];
  return all;
}

}  // namespace clipproj
