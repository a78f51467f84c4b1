// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>

#include "launch.cuh"

namespace clipproj {
namespace {

void fold_cuda_(Tensor weight, Tensor read, Tensor write, std::optional<Tensor> offset,
                std::optional<Tensor> strength, int64_t dim) {
  const Rows rows = check_weight("fold_", weight, offset, strength, dim);
  const Factors f =
      check_factors("fold_", "weight", weight, read, write, offset, strength, rows.d, rows.n);
  check_writable("fold_", "weight", weight, f);
  if (is_identity(f, false)) return;
  void* data = weight.mutable_data_ptr();
  launch_cuda(f, weight, data, rows, data, rows, nullptr, false);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(clipproj, CUDA, m) { m.impl("fold_", TORCH_BOX(&fold_cuda_)); }

}  // namespace clipproj
