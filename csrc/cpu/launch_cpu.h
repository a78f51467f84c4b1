// SPDX-License-Identifier: Apache-2.0
// The kernel of the dtype and instruction set, split over torch's threads.
#pragma once
#include "../host.h"
#include "isa.h"

namespace clipproj {

template <class A>
void launch_threads(ProjectFn<A> kernel, const ProjectParams<A>& p) {
  // A thread is worth waking for some ten microseconds of work; bits do not depend on the split.
  constexpr int64_t kWorkPerThread = 1 << 17;
  const int64_t grain = std::max<int64_t>(1, kWorkPerThread / (p.d * (p.k + 2)));
  torch::stable::parallel_for(0, p.n, grain,
                              [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

inline void launch_cpu(const Tensor& x, const Factors& f, const void* from_data, Rows from,
                       void* out, Rows to, void* norm, bool normalize) {
  if (from.n == 0) return;
  if (x.scalar_type() == ScalarType::Double) {
    return launch_threads(scalar::project_f64,
                          make_params<double>(f, from_data, from, out, to, norm, normalize));
  }
  const CpuKernels& kernels = cpu_kernels();
  const auto p = make_params<float>(f, from_data, from, out, to, norm, normalize);
  switch (x.scalar_type()) {
    case ScalarType::Float: return launch_threads(kernels.project_f32, p);
    case ScalarType::BFloat16: return launch_threads(kernels.project_bf16, p);
    default: return launch_threads(kernels.project_f16, p);
  }
}

}  // namespace clipproj
