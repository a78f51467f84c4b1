// SPDX-License-Identifier: Apache-2.0
// All kernels of the project family, by the rows of their tiles (project_plan.h).
#pragma once
#include "project_float_kernel.cuh"
#include "project_half_kernel.cuh"
#include "project_kernel.cuh"
#include "project_wide_kernel.cuh"

namespace clipproj {

using Kernel = void (*)(ProjectParams<float>);

template <class T, bool banked>
Kernel project_half_kernel_of(int pieces) {
  switch (pieces) {
    case 2: return project_half_kernel<T, 2, banked>;
    case 3: return project_half_kernel<T, 3, banked>;
    case 4: return project_half_kernel<T, 4, banked>;
    default: return project_half_kernel<T, 5, banked>;
  }
}

template <class T>
Kernel project_kernel_of(int rows, int64_t d, bool banked) {
  switch (rows) {
    case 16:
      return banked ? project_half_kernel_of<T, true>(half_pieces(d))
                    : project_half_kernel_of<T, false>(half_pieces(d));
    case 32: return project_wide_kernel<T, 32>;
    case 48: return project_wide_kernel<T, 48>;
    default: return project_kernel<T>;
  }
}
template <>
inline Kernel project_kernel_of<float>(int rows, int64_t, bool) {
  switch (rows) {
    case 16: return project_float_kernel<16>;
    case 32: return project_float_kernel<32>;
    default: return project_kernel<float>;
  }
}

}  // namespace clipproj
