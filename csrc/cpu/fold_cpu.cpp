// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>

#include "launch_cpu.h"

namespace clipproj {
namespace {

// Vectors that lie side by side in memory have a kernel of their own; what a thread gets of them is
// a multiple of a cache line.
template <class A>
void launch_fold(const ProjectKernel<A>& kernel, const ProjectParams<A>& p) {
  if (p.out_row != 1) return launch_rows(kernel, p);
  constexpr int64_t kLine = 64;
  run_parallel(threads_for(p), (p.n + kLine - 1) / kLine, [&](int64_t begin, int64_t end) {
    kernel.columns(p, begin * kLine, std::min(end * kLine, p.n));
  });
}

void launch_fold_cpu(const Tensor& weight, const Factors& f, const Pass& pass) {
  for_dtype(weight.scalar_type(), f, pass,
            [](const auto& kernel, const auto& p) { launch_fold(kernel, p); });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(clipproj, CPU, m) { m.impl("fold_", TORCH_BOX(&fold_<launch_fold_cpu>)); }

}  // namespace clipproj
