// SPDX-License-Identifier: Apache-2.0
// The operators up to the launch, the same for every device: checks, strides, the result. Each
// takes its device's launch as a template parameter,
//   launch(x, factors, from data, from rows, to data, to rows, norm data, normalize)
// which projects rows from one place to another (may be the same), or only measures them.
#pragma once
#include <torch/csrc/stable/ops.h>

#include "check.h"
#include "params.h"

namespace clipproj {

// What a kernel is told, for factors of type A.
template <class A>
ProjectParams<A> make_params(const Factors& f, const void* x, Rows from, void* out, Rows to,
                             void* norm, bool normalize) {
  auto data = [](const std::optional<Tensor>& t) {
    return t ? static_cast<const A*>(t->const_data_ptr()) : nullptr;
  };
  ProjectParams<A> p{};
  p.x = x;
  p.out = out;
  p.norm = static_cast<A*>(norm);
  p.read = data(f.read);
  p.write = data(f.write);
  p.offset = data(f.offset);
  p.strength = data(f.strength);
  p.n = from.n;
  p.d = from.d;
  p.k = f.k;
  p.x_row = from.row;
  p.x_col = from.col;
  p.out_row = to.row;
  p.out_col = to.col;
  p.strength_row = f.strength && f.strength->dim() == 1 ? 1 : 0;
  p.normalize = normalize;
  return p;
}

template <auto launch>
Tensor project(Tensor x, Tensor read, Tensor write, std::optional<Tensor> offset,
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
  launch(x, f, stride ? x.const_data_ptr() : out.const_data_ptr(), from, out.mutable_data_ptr(), to,
         nullptr, normalize);
  return out;
}

template <auto launch>
void project_(Tensor x, Tensor read, Tensor write, std::optional<Tensor> offset,
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
  launch(x, f, data, rows, data, rows, nullptr, normalize);
}

// Folding is projecting the weight's own vectors: its rows for x @ A heads, its columns for
// nn.Linear, the one row that is a bias. Kernels take strides, so nothing is transposed.
template <auto launch>
void fold_(Tensor weight, Tensor read, Tensor write, std::optional<Tensor> offset,
           std::optional<Tensor> strength, int64_t dim) {
  const Rows rows = check_weight("fold_", weight, offset, strength, dim);
  const Factors f =
      check_factors("fold_", "weight", weight, read, write, offset, strength, rows.d, rows.n);
  check_writable("fold_", "weight", weight, f);
  if (is_identity(f, false)) return;
  void* data = weight.mutable_data_ptr();
  launch(weight, f, data, rows, data, rows, nullptr, false);
}

template <auto launch>
Tensor projected_norm(Tensor x, Tensor read, Tensor write, std::optional<Tensor> offset,
                      std::optional<Tensor> strength) {
  const int64_t d = check_features("projected_norm", x), n = x.numel() / d;
  const Factors f = check_factors("projected_norm", "x", x, read, write, offset, strength, d, n);
  const auto type = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Tensor norm = torch::stable::new_empty(x, leading_sizes(x), type);
  auto stride = row_stride(x);
  if (!stride) {  // the one case with a copy of x: leading dims without a common stride
    x = torch::stable::contiguous(x);
    stride = d;
  }
  const Rows rows{n, d, *stride, x.stride(x.dim() - 1)};
  launch(x, f, x.const_data_ptr(), rows, nullptr, rows, norm.mutable_data_ptr(), false);
  return norm;
}

}  // namespace clipproj
