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

// body(begin, end) over all of [0, units).
template <class F>
void run_parallel(int64_t threads, int64_t units, F body) {
  run_parallel(
      threads, units,
      [](void* f, int64_t begin, int64_t end) { (*static_cast<F*>(f))(begin, end); }, &body);
}

// How many threads a problem is worth: one for some ten microseconds of work.
template <class A>
int64_t threads_for(const ProjectParams<A>& p) {
  constexpr int64_t kWorkPerThread = 1 << 19;
  const int64_t worth = p.n * p.d * (p.k + 2) / kWorkPerThread;
  return worth <= 1 ? 1 : std::min<int64_t>(worth, torch::stable::get_num_threads());
}

template <class A>
void launch_rows(const ProjectKernel<A>& kernel, const ProjectParams<A>& p) {
  const int64_t threads = threads_for(p), blocks = (p.n + kernel.block - 1) / kernel.block;
  if (threads == 1) return kernel.rows(p, 0, p.n);
  if (blocks < threads) return kernel.split(p, threads, run_parallel);
  run_parallel(threads, blocks, [&](int64_t begin, int64_t end) {
    kernel.rows(p, begin * kernel.block, std::min(end * kernel.block, p.n));
  });
}

// launch(kernel, params) with the kernel of the dtype.
template <class Launch>
void for_dtype(ScalarType type, const Factors& f, const Pass& pass, Launch launch) {
  if (pass.from.n == 0) return;
  if (type == ScalarType::Double) {
    return launch(scalar::project_f64, make_params<double>(f, pass));
  }
  const CpuKernels& kernels = cpu_kernels();
  const auto p = make_params<float>(f, pass);
  switch (type) {
    case ScalarType::Float: return launch(kernels.project_f32, p);
    case ScalarType::BFloat16: return launch(kernels.project_bf16, p);
    default: return launch(kernels.project_f16, p);
  }
}

inline void launch_cpu(const Tensor& x, const Factors& f, const Pass& pass) {
  for_dtype(x.scalar_type(), f, pass,
            [](const auto& kernel, const auto& p) { launch_rows(kernel, p); });
}

}  // namespace clipproj
