// SPDX-License-Identifier: Apache-2.0
// The operators up to the launch, the same for every backend (operators.h): checks, strides, the
// result. linear.h and logits.h have those with a product.
#pragma once
#include "check.h"
#include "layout.h"
#include "params.h"

namespace clipproj {

// What one launch does: projects rows from one place to another, which may be the same, or only
// measures them.
struct LaunchArgs {
  const void* x;
  StridedRows from;
  void* out;  // null: only lengths are wanted
  StridedRows to;
  void* norm;  // null: only rows are wanted
  bool normalize;
  int64_t first = 0;  // the place of the first row in the factors' strength and index
};

// What a kernel is told, for factors of type A.
template <class A>
ProjectParams<A> make_params(const Factors& f, const LaunchArgs& args) {
  auto data = [](const std::optional<Tensor>& t, auto type) {
    return t ? static_cast<const decltype(type)*>(t->const_data_ptr()) : nullptr;
  };
  ProjectParams<A> p{};
  p.x = args.x;
  p.out = args.out;
  p.norm = static_cast<A*>(args.norm);
  p.read = data(f.read, A());
  p.write = data(f.write, A());
  p.offset = data(f.offset, A());
  p.gram = data(f.gram, A());
  p.strength = data(f.strength, A());
  p.scale = data(f.scale, A());
  p.spans = data(f.spans, int32_t());
  p.index = data(f.index, int32_t());
  p.flag = f.flag ? static_cast<int32_t*>(f.flag->mutable_data_ptr()) : nullptr;
  p.n = args.from.n;
  p.d = args.from.d;
  p.k = f.k;
  p.m = f.spans ? f.spans->size(0) : 0;
  p.x_row = args.from.row;
  p.x_col = args.from.col;
  p.out_row = args.to.row;
  p.out_col = args.to.col;
  p.gram_row = f.gram ? f.gram->size(1) : 0;
  p.strength_row = f.strength && f.strength->dim() == 1 ? 1 : 0;
  p.normalize = args.normalize;
  if (p.strength) p.strength += args.first * p.strength_row;
  if (p.index) p.index += args.first;
  return p;
}

// Projects the rows of x into those of `out`, which may be x itself.
template <class Backend>
void project_into(Tensor out, StridedRows to, const Tensor& x, const Factors& f, bool normalize) {
  const auto from = rows_of(x, to.n, to.d);
  void* data = out.mutable_data_ptr();
  const bool in_place = data == x.const_data_ptr();
  const bool identity = is_identity(f, normalize);
  if ((identity && !in_place) || !from) torch::stable::copy_(out, x);
  if (identity) return;
  // Leading dims that are no single stride have been copied: project the copy.
  Backend::launch(x, f,
                  LaunchArgs{from ? x.const_data_ptr() : data, from.value_or(to), data, to, nullptr,
                             normalize});
}

template <class Backend>
Tensor project(const Tensor& x, const Tensor& read, const Tensor& write,
               const std::optional<Tensor>& offset, const std::optional<Tensor>& strength,
               bool normalize, const std::optional<Tensor>& gram) {
  const int64_t d = check_features("project", x), n = x.numel() / d;
  const Factors f =
      check_factors("project", "x", x, read, write, offset, strength, gram, false, d, n);
  Tensor out = Backend::new_result(x, x.sizes());
  project_into<Backend>(out, {n, d, d, 1}, x, f, normalize);
  return out;
}

// Each row by the projector of its index; the device raises the flag for rows without one that
// there is.
template <class Backend>
Tensor project_rows(const Tensor& x, const Tensor& read, const Tensor& write,
                    const std::optional<Tensor>& offset, const Tensor& spans, const Tensor& index,
                    const std::optional<Tensor>& strength, bool normalize,
                    const std::optional<Tensor>& gram, const std::optional<Tensor>& flag) {
  [[maybe_unused]] const typename Backend::Reader reading{};
  const int64_t d = check_features("project_rows", x), n = x.numel() / d;
  Factors f =
      check_factors("project_rows", "x", x, read, write, offset, strength, gram, true, d, n);
  check_bank("project_rows", x, spans, index, flag, n, &f);
  Tensor out = Backend::new_result(x, x.sizes());
  project_into<Backend>(out, {n, d, d, 1}, x, f, normalize);
  return out;
}

template <class Backend>
void project_(const Tensor& x, const Tensor& read, const Tensor& write,
              const std::optional<Tensor>& offset, const std::optional<Tensor>& strength,
              bool normalize, const std::optional<Tensor>& gram) {
  const int64_t d = check_features("project_", x), n = x.numel() / d;
  const Factors f =
      check_factors("project_", "x", x, read, write, offset, strength, gram, false, d, n);
  check_writable("project_", "x", x, f);
  const StridedRows rows = check_flat("project_", "x", x, n, d);
  project_into<Backend>(x, rows, x, f, normalize);
}

template <class Backend>
void project_out(const Tensor& x, const Tensor& read, const Tensor& write,
                 const std::optional<Tensor>& offset, const std::optional<Tensor>& strength,
                 bool normalize, const std::optional<Tensor>& gram, const Tensor& out) {
  const int64_t d = check_features("project_out", x), n = x.numel() / d;
  const Factors f =
      check_factors("project_out", "x", x, read, write, offset, strength, gram, false, d, n);
  check_out("project_out", out, x);
  check_writable("project_out", "out", out, f);
  const StridedRows rows = check_flat("project_out", "out", out, n, d);
  check_apart("project_out", out, rows, x);
  project_into<Backend>(out, rows, x, f, normalize);
}

// Folding is projecting the weight's own vectors: its rows for x @ A heads, its columns for
// nn.Linear, the one row that is a bias. Kernels take strides, so nothing is transposed.
template <class Backend>
void fold_(const Tensor& weight, const Tensor& read, const Tensor& write,
           const std::optional<Tensor>& offset, const std::optional<Tensor>& strength,
           int64_t dim) {
  const StridedRows rows = check_weight("fold_", weight, offset, strength, dim);
  const Factors f = check_factors("fold_", "weight", weight, read, write, offset, strength, {},
                                  false, rows.d, rows.n);
  check_writable("fold_", "weight", weight, f);
  if (is_identity(f, false)) return;
  void* data = weight.mutable_data_ptr();
  Backend::launch_fold(weight, f, LaunchArgs{data, rows, data, rows, nullptr, false});
}

template <class Backend>
Tensor projected_norm(const Tensor& x, const Tensor& read, const Tensor& write,
                      const std::optional<Tensor>& offset, const std::optional<Tensor>& strength,
                      const std::optional<Tensor>& gram) {
  const int64_t d = check_features("projected_norm", x), n = x.numel() / d;
  const Factors f =
      check_factors("projected_norm", "x", x, read, write, offset, strength, gram, false, d, n);
  Tensor norm = new_dense(f.read, {x.sizes().data(), x.sizes().size() - 1});
  const auto flat = rows_of(x, n, d);
  // The one case with a copy of x: leading dims without a common stride.
  const Tensor from = flat ? x : dense(x);
  const StridedRows rows = flat.value_or(StridedRows{n, d, d, 1});
  Backend::launch(
      x, f, LaunchArgs{from.const_data_ptr(), rows, nullptr, rows, norm.mutable_data_ptr(), false});
  return norm;
}

}  // namespace clipproj
