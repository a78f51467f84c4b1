// SPDX-License-Identifier: Apache-2.0
// The kernel of the dtype and instruction set, split over torch's threads.
#pragma once
#include "../host.h"
#include "isa.h"

namespace clipproj {

inline void run_parallel(int64_t threads, int64_t units, void (*body)(void*, int64_t, int64_t),
                         void* context) {
  const int64_t grain = std::max<int64_t>(1, (units + threads - 1) / threads);
  torch::stable::parallel_for(0, units, grain,
                              [&](int64_t begin, int64_t end) { body(context, begin, end); });
}

template <class A>
void launch_threads(const ProjectKernel<A>& kernel, const ProjectParams<A>& p) {
  // A thread is worth waking for some ten microseconds of work; bits do not depend on the split.
  constexpr int64_t kWorkPerThread = 1 << 19;
  const int64_t worth = p.n * p.d * (p.k + 2) / kWorkPerThread;
  if (worth <= 1) return kernel.rows(p, 0, p.n);
  const int64_t threads = std::min<int64_t>(worth, torch::stable::get_num_threads());
  const int64_t blocks = (p.n + kernel.block - 1) / kernel.block;
  if (blocks < threads) return kernel.split(p, threads, run_parallel);
  auto range = [&](int64_t begin, int64_t end) {
    kernel.rows(p, begin * kernel.block, std::min(end * kernel.block, p.n));
  };
  run_parallel(
      threads, blocks,
      [](void* f, int64_t begin, int64_t end) { (*static_cast<decltype(range)*>(f))(begin, end); },
      &range);
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
