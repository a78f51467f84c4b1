// SPDX-License-Identifier: Apache-2.0
// The kernel of the dtype and instruction set, split over torch's threads; with a bank each row by
// its own projector.
#pragma once
#include "../host.h"
#include "bank.h"
#include "float_mode.h"
#include "isa.h"
#include "kernel.h"

namespace clipproj {

// All threads compute in the mode of the calling one, so that a row's bits don't tell whose it was.
inline void run_parallel(int64_t threads, int64_t units, void (*body)(void*, int64_t, int64_t),
                         void* context) {
  const int64_t grain = std::max<int64_t>(1, (units + threads - 1) / threads);
  const FloatControl control = float_control();
  torch::stable::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) {
    const FloatModeOf caller(control);
    body(context, begin, end);
  });
}

// body(begin, end) over all of [0, units).
template <class F>
void run_parallel(int64_t threads, int64_t units, F body) {
  run_parallel(
      threads, units,
      [](void* f, int64_t begin, int64_t end) { (*static_cast<F*>(f))(begin, end); }, &body);
}

// How many threads a problem is worth: one for some ten microseconds of work.
inline int64_t threads_for(int64_t work) {
  constexpr int64_t kWorkPerThread = 1 << 19;
  const int64_t worth = work / kWorkPerThread;
  return worth <= 1 ? 1 : std::min<int64_t>(worth, torch::stable::get_num_threads());
}

template <class A>
int64_t threads_for(const ProjectParams<A>& p) {
  return threads_for(p.n * p.d * row_work(p.k));
}

template <class A>
void launch_range(const ProjectKernel<A>& kernel, const ProjectParams<A>& given) {
  const ProjectParams<A> p = with_clamps(given);
  const int64_t threads = threads_for(p), blocks = (p.n + kernel.block - 1) / kernel.block;
  if (threads == 1) return kernel.range(p, 0, p.n);
  if (blocks < threads) return kernel.split(p, threads, run_parallel);
  run_parallel(threads, blocks, [&](int64_t begin, int64_t end) {
    kernel.range(p, begin * kernel.block, std::min(end * kernel.block, p.n));
  });
}

// Vectors of a weight, in place. Those that lie side by side in memory have a kernel of their own;
// what a thread gets of them is a multiple of a cache line.
template <class A>
void launch_vectors(const ProjectKernel<A>& kernel, const ProjectParams<A>& p) {
  if (p.out_row != 1) return launch_range(kernel, p);
  constexpr int64_t kLine = 64;
  run_parallel(threads_for(p), (p.n + kLine - 1) / kLine, [&](int64_t begin, int64_t end) {
    kernel.columns(p, begin * kLine, std::min(end * kLine, p.n));
  });
}

// Rows of a bank. A batch is grouped as a whole, so that threads share no projector but those at
// their ends; of a large one each thread groups its own rows, a few thousand at a time. Too few
// rows of many projectors are not split within a row, however high their ranks.
template <class A>
void launch_bank(const ProjectKernel<A>& kernel, const ProjectParams<A>& p) {
  constexpr int64_t kGroup = 4096;  // rows that are grouped together
  const auto work = [&](int64_t i) { return row_work(rank_of(p, i)); };
  int64_t total = 0;
  bool one = true;
  for (int64_t i = 0; i < p.n; ++i) {
    total += work(i);
    one = one && p.index[i] == p.index[0];
  }
  if (one) {
    const Span span = span_of(p, 0);
    if (!is_copy(p, span.rank)) return launch_range(kernel, projector(p, span));
  }
  const int64_t threads = threads_for(total * p.d);
  const auto in_parallel = [&](auto row, auto body) {
    if (threads == 1) return body(int64_t{0}, p.n);
    const auto cuts = equal_shares(threads, p.n, total, [&](int64_t i) { return work(row(i)); });
    run_parallel(threads, threads, [&](int64_t begin, int64_t end) {
      if (cuts[begin] < cuts[end]) body(cuts[begin], cuts[end]);
    });
  };
  if (p.n <= kGroup) {
    RowOrder order(p.n);
    order.group(p, 0, p.n);
    const int64_t* rows = order.rows();
    return in_parallel([&](int64_t i) { return rows[i]; },
                       [&](int64_t begin, int64_t end) {
                         kernel.rows(p, rows + begin, order.spans() + begin, end - begin);
                       });
  }
  in_parallel([](int64_t i) { return i; },
              [&](int64_t begin, int64_t end) {
                RowOrder order(std::min(end - begin, kGroup));
                for (; begin < end; begin += kGroup) {
                  const int64_t count = std::min(end - begin, kGroup);
                  order.group(p, begin, begin + count);
                  kernel.rows(p, order.rows(), order.spans(), count);
                }
              });
}

// launch(kernel, params) with the kernel of the dtype.
template <class Launch>
void for_dtype(ScalarType type, const Factors& f, const LaunchArgs& args, Launch launch) {
  if (args.from.n == 0) return;
  if (type == ScalarType::Double) {
    return launch(scalar::project_f64, make_params<double>(f, args));
  }
  const CpuKernels& kernels = cpu_kernels();
  const auto p = make_params<float>(f, args);
  switch (type) {
    case ScalarType::Float: return launch(kernels.project_f32, p);
    case ScalarType::BFloat16: return launch(kernels.project_bf16, p);
    default: return launch(kernels.project_f16, p);
  }
}

}  // namespace clipproj
