// SPDX-License-Identifier: Apache-2.0
// All kernels of the project family, by their plans (project_plan.h).
#pragma once
#include "project_float_kernel.cuh"
#include "project_half_kernel.cuh"
#include "project_kernel.cuh"
#include "project_wide_kernel.cuh"

namespace clipproj {

using Kernel = void (*)(ProjectParams<float>);

template <class T, bool banked>
Kernel project_half_kernel_of(int pieces, int teams) {
  if constexpr (half_teams(8, kType<T>, 2, banked) == 2) {
    if (teams == 2) {
      return pieces == 2 ? project_half_kernel<T, 2, 2, banked>
                         : project_half_kernel<T, 3, 2, banked>;
    }
  }
  switch (pieces) {
    case 2: return project_half_kernel<T, 2, 1, banked>;
    case 3: return project_half_kernel<T, 3, 1, banked>;
    case 4: return project_half_kernel<T, 4, 1, banked>;
    default: return project_half_kernel<T, 5, 1, banked>;
  }
}

template <class T, bool banked, bool solved>
Kernel project_kernel_of(const Plan& plan, int64_t d) {
  if (plan.kernel == KernelKind::kPlain) return project_kernel<T, banked, solved>;
  if constexpr (kType<T> == Type::kFloat) {
    return plan.rows == 16 ? project_float_kernel<16, banked, solved>
                           : project_float_kernel<32, banked, solved>;
  } else {
    if (plan.kernel == KernelKind::kHalf) {
      return project_half_kernel_of<T, banked>(half_pieces(d), plan.teams);
    }
    switch (plan.rows) {
      case 16: return project_wide_kernel<T, 16, solved>;
      case 32: return project_wide_kernel<T, 32, solved>;
      default: return project_wide_kernel<T, 48, solved>;
    }
  }
}
template <class T>
Kernel project_kernel_of(const Plan& plan, const ProjectParams<float>& p) {
  if (is_solved(p)) {
    return p.index ? project_kernel_of<T, true, true>(plan, p.d)
                   : project_kernel_of<T, false, true>(plan, p.d);
  }
  return p.index ? project_kernel_of<T, true, false>(plan, p.d)
                 : project_kernel_of<T, false, false>(plan, p.d);
}

}  // namespace clipproj
