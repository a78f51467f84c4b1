// SPDX-License-Identifier: Apache-2.0
// From checked tensors to the kernel of the dtype and instruction set, split over torch's threads.
#pragma once
#include <torch/csrc/stable/ops.h>

#include "../check.h"
#include "isa.h"

namespace clipproj {

template <class A>
void launch_rows(ProjectFn<A> kernel, const Factors& f, const void* x, Rows from, void* out,
                 Rows to, void* norm, bool normalize) {
  const ProjectParams<A> p{
      x,
      out,
      static_cast<A*>(norm),
      static_cast<const A*>(f.read.const_data_ptr()),
      static_cast<const A*>(f.write.const_data_ptr()),
      f.offset ? static_cast<const A*>(f.offset->const_data_ptr()) : nullptr,
      f.strength ? static_cast<const A*>(f.strength->const_data_ptr()) : nullptr,
      from.n,
      from.d,
      f.k,
      from.row,
      from.col,
      to.row,
      to.col,
      f.strength && f.strength->dim() == 1 ? 1 : 0,
      normalize};
  // A thread is worth waking for some ten microseconds of work; bits do not depend on the split.
  constexpr int64_t kWorkPerThread = 1 << 17;
  const int64_t grain = std::max<int64_t>(1, kWorkPerThread / (p.d * (p.k + 2)));
  torch::stable::parallel_for(0, p.n, grain,
                              [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

// Projects rows of `type` from x to out (may be the same), or only measures them into norm.
inline void launch_cpu(ScalarType type, const Factors& f, const void* x, Rows from, void* out,
                       Rows to, void* norm, bool normalize) {
  if (from.n == 0) return;
  const CpuKernels& kernels = cpu_kernels();
  switch (type) {
    case ScalarType::Float:
      return launch_rows(kernels.project_f32, f, x, from, out, to, norm, normalize);
    case ScalarType::BFloat16:
      return launch_rows(kernels.project_bf16, f, x, from, out, to, norm, normalize);
    case ScalarType::Half:
      return launch_rows(kernels.project_f16, f, x, from, out, to, norm, normalize);
    default: return launch_rows(scalar::project_f64, f, x, from, out, to, norm, normalize);
  }
}

}  // namespace clipproj
