// SPDX-License-Identifier: Apache-2.0
// The operators up to the launch, the same for every device: checks, strides, the result. Each
// takes its device's launch as a template parameter,
//   launch(x, factors, from data, from rows, to data, to rows, norm data, normalize)
// which projects rows from one place to another (may be the same), or only measures them.
#pragma once
#include "check.h"
#include "layout.h"
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

// Projects the rows of x into those of `out`, which may be x itself.
template <auto launch>
void project_into(Tensor out, Rows to, const Tensor& x, const Factors& f, bool normalize) {
  const auto from = rows_of(x, to.n, to.d);
  void* data = out.mutable_data_ptr();
  const bool in_place = data == x.const_data_ptr();
  const bool identity = is_identity(f, normalize);
  if ((identity && !in_place) || !from) torch::stable::copy_(out, x);
  if (identity) return;
  // Leading dims that are no single stride have been copied: project the copy.
  launch(x, f, from ? x.const_data_ptr() : data, from.value_or(to), data, to, nullptr, normalize);
}

// `make` is new_dense or the device's own.
template <auto launch, auto make = new_dense>
Tensor project(const Tensor& x, const Tensor& read, const Tensor& write,
               const std::optional<Tensor>& offset, const std::optional<Tensor>& strength,
               bool normalize) {
  const int64_t d = check_features("project", x), n = x.numel() / d;
  const Factors f = check_factors("project", "x", x, read, write, offset, strength, d, n);
  Tensor out = make(x, x.sizes());
  project_into<launch>(out, {n, d, d, 1}, x, f, normalize);
  return out;
}

template <auto launch>
void project_(const Tensor& x, const Tensor& read, const Tensor& write,
              const std::optional<Tensor>& offset, const std::optional<Tensor>& strength,
              bool normalize) {
  const int64_t d = check_features("project_", x), n = x.numel() / d;
  const Factors f = check_factors("project_", "x", x, read, write, offset, strength, d, n);
  check_writable("project_", "x", x, f);
  const Rows rows = check_flat("project_", "x", x, n, d);
  project_into<launch>(x, rows, x, f, normalize);
}

template <auto launch>
void project_out(const Tensor& x, const Tensor& read, const Tensor& write,
                 const std::optional<Tensor>& offset, const std::optional<Tensor>& strength,
                 bool normalize, const Tensor& out) {
  const int64_t d = check_features("project_out", x), n = x.numel() / d;
  const Factors f = check_factors("project_out", "x", x, read, write, offset, strength, d, n);
  check_out("project_out", out, x);
  check_writable("project_out", "out", out, f);
  const Rows rows = check_flat("project_out", "out", out, n, d);
  check_apart("project_out", out, rows, x);
  project_into<launch>(out, rows, x, f, normalize);
}

// Folding is projecting the weight's own vectors: its rows for x @ A heads, its columns for
// nn.Linear, the one row that is a bias. Kernels take strides, so nothing is transposed.
template <auto launch>
void fold_(const Tensor& weight, const Tensor& read, const Tensor& write,
           const std::optional<Tensor>& offset, const std::optional<Tensor>& strength,
           int64_t dim) {
  const Rows rows = check_weight("fold_", weight, offset, strength, dim);
  const Factors f =
      check_factors("fold_", "weight", weight, read, write, offset, strength, rows.d, rows.n);
  check_writable("fold_", "weight", weight, f);
  if (is_identity(f, false)) return;
  void* data = weight.mutable_data_ptr();
  launch(weight, f, data, rows, data, rows, nullptr, false);
}

template <auto launch>
Tensor projected_norm(const Tensor& x, const Tensor& read, const Tensor& write,
                      const std::optional<Tensor>& offset, const std::optional<Tensor>& strength) {
  const int64_t d = check_features("projected_norm", x), n = x.numel() / d;
  const Factors f = check_factors("projected_norm", "x", x, read, write, offset, strength, d, n);
  Tensor norm = new_dense(f.read, {x.sizes().data(), x.sizes().size() - 1});
  const auto flat = rows_of(x, n, d);
  // The one case with a copy of x: leading dims without a common stride.
  const Tensor from = flat ? x : dense(x);
  const Rows rows = flat.value_or(Rows{n, d, d, 1});
  launch(x, f, from.const_data_ptr(), rows, nullptr, rows, norm.mutable_data_ptr(), false);
  return norm;
}

}  // namespace clipproj
