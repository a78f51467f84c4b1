// SPDX-License-Identifier: Apache-2.0
// Which instruction set the CPU kernels use: found once, lowered on request, never raised.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "../params.h"

namespace clipproj {

// Rows [begin, end) of one problem, on one thread.
template <class A>
using ProjectFn = void (*)(const ProjectParams<A>& p, int64_t begin, int64_t end);

struct CpuKernels {
  const char* isa;
  ProjectFn<float> project_f32, project_bf16, project_f16;
};

const CpuKernels& cpu_kernels();            // the table in force
std::string cpu_isa();                      // its name
std::vector<std::string> cpu_isas();        // what this machine runs, lowest first
void set_cpu_isa(const std::string& name);  // throws std::invalid_argument for anything else

namespace scalar {
extern const CpuKernels kernels;
extern const ProjectFn<double> project_f64;  // gradcheck and float64 models need no other
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
