// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>

#include "launch.cuh"

namespace clipproj {
namespace {

Tensor projected_norm_cuda(Tensor x, Tensor read, Tensor write, std::optional<Tensor> offset,
                           std::optional<Tensor> strength) {
  const int64_t d = check_features("projected_norm", x), n = x.numel() / d;
  const Factors f = check_factors("projected_norm", "x", x, read, write, offset, strength, d, n);
  Tensor norm = torch::stable::new_empty(x, leading_sizes(x), ScalarType::Float);
  auto stride = row_stride(x);
  if (!stride) {
    x = torch::stable::contiguous(x);
    stride = d;
  }
  const Rows rows{n, d, *stride, x.stride(x.dim() - 1)};
  launch_cuda(f, x, x.const_data_ptr(), rows, nullptr, rows,
              static_cast<float*>(norm.mutable_data_ptr()), false);
  return norm;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(clipproj, CUDA, m) {
  m.impl("projected_norm", TORCH_BOX(&projected_norm_cuda));
}

}  // namespace clipproj
