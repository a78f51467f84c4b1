// SPDX-License-Identifier: Apache-2.0
// Folding is projecting the weight's own vectors: its rows for x @ A heads, its columns for
// nn.Linear, the one row that is a bias. The kernel takes strides, so nothing is transposed.
#include <torch/csrc/stable/library.h>

#include "launch_cpu.h"

namespace clipproj {
namespace {

void fold_cpu_(Tensor weight, Tensor read, Tensor write, std::optional<Tensor> offset,
               std::optional<Tensor> strength, int64_t dim) {
  const Rows rows = check_weight("fold_", weight, offset, strength, dim);
  const Factors f =
      check_factors("fold_", "weight", weight, read, write, offset, strength, rows.d, rows.n);
  check_writable("fold_", "weight", weight, f);
  if (is_identity(f, false)) return;
  void* data = weight.mutable_data_ptr();
  launch_cpu(weight.scalar_type(), f, data, rows, data, rows, nullptr, false);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(clipproj, CPU, m) { m.impl("fold_", TORCH_BOX(&fold_cpu_)); }

}  // namespace clipproj
