// SPDX-License-Identifier: Apache-2.0
// scale * normalize(project(x)) @ classes.T + bias: a chunk of rows is projected, normalised and
// scaled (one rounding) into a workspace that stays in cache, and multiplied from there.
//
// The identity x'.t = x.t - s c.(W t) would make logits of the unprojected rows and correct them.
// It needs the length of x' all the same, which comes from the projected row itself, for
// x.x - 2 s c.(W x) + ... cancels where most of a row is taken out. So it would save nothing.
#pragma once
#include "gemm.h"
#include "host.h"

namespace clipproj {

template <class Backend>
Tensor logits(const Tensor& x, const Tensor& classes, const Tensor& read, const Tensor& write,
              const std::optional<Tensor>& offset, const std::optional<Tensor>& strength,
              const Tensor& scale, const std::optional<Tensor>& bias,
              const std::optional<Tensor>& spans, const std::optional<Tensor>& index,
              std::optional<ScalarType> dtype, const std::optional<Tensor>& gram,
              const std::optional<Tensor>& flag) {
  [[maybe_unused]] const typename Backend::Reader reading{};
  const int64_t d = check_features("logits", x), n = x.numel() / d;
  Factors f =
      check_factors("logits", "x", x, read, write, offset, strength, gram, spans.has_value(), d, n);
  check_bank("logits", x, spans, index, flag, n, &f);
  check_logits("logits", x, classes, scale, bias, dtype);
  f.scale = scale;
  const ScalarType type = x.scalar_type(), result = dtype.value_or(type);
  const int64_t c = classes.size(0);
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = c;
  const Tensor& accurate = f.read;  // has the dtype of scale and bias
  const Tensor out = Backend::new_result(result == type ? x : accurate, sizes);
  if (n == 0 || c == 0) return out;

  // Without a product of halves into float32 both operands are made float32.
  const bool wide = !Backend::kHalvesIntoFloat && result != type;
  const auto flat = rows_of(x, n, d);
  const Tensor from = flat ? x : dense(x);  // leading dims without a common stride
  const StridedRows rows = flat.value_or(StridedRows{n, d, d, 1}), to{n, c, c, 1};
  const Tensor right = right_operand(wide ? convert(classes, accurate) : classes);
  // The product takes a bias of the result's dtype: one of half precision rounds it once.
  const auto shift = in_dtype_of(out, bias);

  const Tensor& like = wide ? accurate : x;
  const int64_t chunk = Backend::chunk(n, d * item_size(like.scalar_type()));
  const Tensor work = new_dense(like, {chunk, d});
  for_chunks(n, chunk, [&](int64_t first, int64_t count) {
    const StridedRows part{count, d, d, 1};
    const Tensor left = matrix(work, part, 0, count);
    LaunchArgs args{row_data(from, rows, first),
                    {count, d, rows.row, rows.col},
                    work.mutable_data_ptr(),
                    part,
                    nullptr,
                    true,
                    first};
    if (wide) {
      const Tensor chunk_of_x = matrix(from, rows, first, count);
      TORCH_ERROR_CODE_CHECK(aoti_torch_copy_(left.get(), chunk_of_x.get(), 0));
      args.x = args.out;
      args.from = part;
    }
    Backend::launch(work, f, args);
    Backend::multiply(matrix(out, to, first, count), shift, left, right);
  });
  return out;
}

}  // namespace clipproj
