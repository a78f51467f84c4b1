// SPDX-License-Identifier: Apache-2.0
// Which instruction set the CPU kernels use: found once, lowered on request, never raised.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "../params.h"

namespace clipproj {

// body(context, begin, end) over all of [0, units), on at most `threads` threads. A plain function,
// because the kernels' files may share no inline code with others (see project_avx2.cpp).
using ParallelFor = void (*)(int64_t threads, int64_t units,
                             void (*body)(void* context, int64_t begin, int64_t end),
                             void* context);

// One dtype of one instruction set. All but `columns` give a row the same bits.
template <class A>
struct ProjectKernel {
  // Rows [begin, end) by one projector: on one thread, or all rows with each split over threads.
  void (*range)(const ProjectParams<A>& p, int64_t begin, int64_t end);
  void (*split)(const ProjectParams<A>& p, int64_t threads, ParallelFor parallel_for);
  // Of a bank, on one thread: rows order[0], .., order[count - 1] of the projectors spans[0], ..,
  // those of a projector together and in ascending order.
  void (*rows)(const ProjectParams<A>& p, const int64_t* order, const Span* spans, int64_t count);
  void (*columns)(const ProjectParams<A>& p, int64_t begin, int64_t end);  // fold_ along dim 0
  int64_t block;  // rows that share the factors they load: what a thread should get a multiple of
};

struct CpuKernels {
  const char* isa;
  ProjectKernel<float> project_f32, project_bf16, project_f16;
};

const CpuKernels& cpu_kernels();            // the table in force
std::string cpu_isa();                      // its name
std::vector<std::string> cpu_isas();        // what this machine runs, lowest first
void set_cpu_isa(const std::string& name);  // throws std::invalid_argument for anything else

namespace scalar {
extern const CpuKernels kernels;
extern const ProjectKernel<double> project_f64;  // gradcheck and float64 models need no other
}  // namespace scalar
#if defined(__x86_64__)
namespace avx2 {
extern const CpuKernels kernels;
}
namespace avx512 {
extern const CpuKernels kernels;
}
#endif

}  // namespace clipproj
