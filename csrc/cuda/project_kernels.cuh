// SPDX-License-Identifier: Apache-2.0
// All kernels of the project family, by the rows of their tiles (project_plan.h).
#pragma once
#include "project_float_kernel.cuh"
#include "project_half_kernel.cuh"
#include "project_kernel.cuh"

namespace clipproj {

using Kernel = void (*)(ProjectParams<float>);

template <class T>
Kernel project_kernel_of(int rows, bool banked) {
  switch (rows) {
    case 16: return project_half_kernel<T, 16>;
    case 32: return project_half_kernel<T, 32>;
    case 48: return project_half_kernel<T, 48>;
    default: return banked ? project_kernel<T, true> : project_kernel<T, false>;
  }
}
template <>
inline Kernel project_kernel_of<float>(int rows, bool banked) {
  switch (rows) {
    case 16: return banked ? project_float_kernel<16, true> : project_float_kernel<16, false>;
    case 32: return banked ? project_float_kernel<32, true> : project_float_kernel<32, false>;
    default: return banked ? project_kernel<float, true> : project_kernel<float, false>;
  }
}

}  // namespace clipproj
