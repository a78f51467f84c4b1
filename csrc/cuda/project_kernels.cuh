// SPDX-License-Identifier: Apache-2.0
// All kernels of the project family, by their plans (project_plan.h).
#pragma once
#include "project_float_kernel.cuh"
#include "project_half_kernel.cuh"
#include "project_kernel.cuh"
#include "project_wide_kernel.cuh"

namespace clipproj {

using Kernel = void (*)(ProjectParams<float>);

template <class T>
constexpr Type kType = Type::kFloat;
template <>
constexpr Type kType<__nv_bfloat16> = Type::kBFloat16;
template <>
constexpr Type kType<__half> = Type::kHalf;

template <class T, bool banked>
Kernel project_half_kernel_of(int pieces, int blocks) {
  if constexpr (kType<T> == Type::kBFloat16) {
    if (pieces == 2 && blocks == 2) return project_half_kernel<T, 2, 2, banked>;
    if (pieces == 3 && blocks == 2) return project_half_kernel<T, 3, 2, banked>;
  }
  switch (pieces) {
    case 2: return project_half_kernel<T, 2, 1, banked>;
    case 3: return project_half_kernel<T, 3, 1, banked>;
    case 4: return project_half_kernel<T, 4, 1, banked>;
    default: return project_half_kernel<T, 5, 1, banked>;
  }
}

template <class T>
Kernel project_kernel_of(const Plan& plan, int64_t d, bool banked) {
  if constexpr (kType<T> == Type::kFloat) {
    switch (plan.rows) {
      case 16: return banked ? project_float_kernel<16, true> : project_float_kernel<16, false>;
      case 32: return banked ? project_float_kernel<32, true> : project_float_kernel<32, false>;
      default: return banked ? project_kernel<float, true> : project_kernel<float, false>;
    }
  } else {
    switch (plan.rows) {
      case 16:
        return banked ? project_half_kernel_of<T, true>(half_pieces(d), plan.beside)
                      : project_half_kernel_of<T, false>(half_pieces(d), plan.beside);
      case 32: return project_wide_kernel<T, 32>;
      case 48: return project_wide_kernel<T, 48>;
      default: return banked ? project_kernel<T, true> : project_kernel<T, false>;
    }
  }
}

}  // namespace clipproj
