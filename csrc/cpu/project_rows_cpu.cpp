// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>

#include "launch_cpu.h"
#include "pages.h"

namespace clipproj {
namespace {

// The part of p for rows [begin, end), all of the projector `span` (-1: none).
template <class A>
ProjectParams<A> part(ProjectParams<A> p, int64_t span, int64_t begin, int64_t end) {
  const int64_t start = span < 0 ? 0 : p.spans[2 * span], item = p.d;
  p.k = span < 0 ? 0 : p.spans[2 * span + 1];
  p.read += start * item;
  p.write += start * item;
  if (p.offset) p.offset += start;
  (void)begin, (void)end;
  return p;
}

template <class A>
void check_rows(const ProjectParams<A>& p) {
  for (int64_t i = 0; i < p.n; ++i) {
    const int64_t j = p.index[i];
    require(-1 <= j && j < p.m, "project_rows", "index must be in [-1, ", p.m - 1, "], got ", j,
            " in row ", i);
    if (j < 0) continue;
    const int64_t start = p.spans[2 * j], rank = p.spans[2 * j + 1];
    require(start >= 0 && rank >= 0 && start + rank <= p.k, "project_rows",
            "spans must lie within the ", p.k, " directions of the bank, got start ", start,
            " and rank ", rank, " in span ", j);
  }
}

void launch_rows_cpu(const Tensor& x, const Factors& f, const Pass& pass) {
  for_dtype(x.scalar_type(), f, pass, [](const auto& kernel, const auto& p) {
    check_rows(p);
    for (int64_t i = 0; i < p.n;) {
      int64_t end = i + 1;
      while (end < p.n && p.index[end] == p.index[i]) ++end;
      kernel.rows(part(p, p.index[i], i, end), i, end);
      i = end;
    }
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(clipproj, CPU, m) {
  m.impl("project_rows", TORCH_BOX((&project_rows_unflagged<launch_rows_cpu, new_result>)));
  m.impl("project_rows.flag", TORCH_BOX((&project_rows_flagged<launch_rows_cpu, new_result>)));
}

}  // namespace clipproj
