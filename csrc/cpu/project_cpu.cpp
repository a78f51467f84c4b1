// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>

#include "launch_cpu.h"

namespace clipproj {
namespace {

Tensor project_cpu(Tensor x, Tensor read, Tensor write, std::optional<Tensor> offset,
                   std::optional<Tensor> strength, bool normalize) {
  const int64_t d = check_features("project", x), n = x.numel() / d;
  const Factors f = check_factors("project", "x", x, read, write, offset, strength, d, n);
  Tensor out = torch::stable::new_empty(x, x.sizes());
  const Rows to{n, d, d, 1};
  const auto stride = row_stride(x);
  if (!stride || is_identity(f, normalize)) torch::stable::copy_(out, x);
  if (is_identity(f, normalize)) return out;
  // Leading dims that are no single stride have been copied into the result: project them there.
  const Rows from = stride ? Rows{n, d, *stride, x.stride(x.dim() - 1)} : to;
  launch_cpu(x.scalar_type(), f, stride ? x.const_data_ptr() : out.const_data_ptr(), from,
             out.mutable_data_ptr(), to, nullptr, normalize);
  return out;
}

void project_cpu_(Tensor x, Tensor read, Tensor write, std::optional<Tensor> offset,
                  std::optional<Tensor> strength, bool normalize) {
  const int64_t d = check_features("project_", x), n = x.numel() / d;
  const Factors f = check_factors("project_", "x", x, read, write, offset, strength, d, n);
  check_writable("project_", "x", x, f);
  const auto stride = row_stride(x);
  require(stride.has_value(), "project_",
          "x must have leading dims that flatten to one stride, got strides of a permuted view; "
          "use project()");
  if (is_identity(f, normalize)) return;
  const Rows rows{n, d, *stride, x.stride(x.dim() - 1)};
  void* data = x.mutable_data_ptr();
  launch_cpu(x.scalar_type(), f, data, rows, data, rows, nullptr, normalize);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(clipproj, CPU, m) {
  m.impl("project", TORCH_BOX(&project_cpu));
  m.impl("project_", TORCH_BOX(&project_cpu_));
}

}  // namespace clipproj
