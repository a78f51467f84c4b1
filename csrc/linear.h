// SPDX-License-Identifier: Apache-2.0
// project(x @ weight.T + bias): a chunk of the library's product straight into the result's rows,
// then the rows are projected where they lie, while they are in cache.
#pragma once
#include "gemm.h"
#include "host.h"

namespace clipproj {

template <class Backend>
Tensor linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
              const Tensor& read, const Tensor& write, const std::optional<Tensor>& offset,
              const std::optional<Tensor>& strength, bool normalize,
              const std::optional<Tensor>& spans, const std::optional<Tensor>& index,
              const std::optional<Tensor>& gram, const std::optional<Tensor>& flag) {
  [[maybe_unused]] const typename Backend::Reader reading{};
  const int64_t n = check_linear("linear", x, weight, bias);
  const int64_t in = weight.size(1), d = weight.size(0);
  Factors f =
      check_factors("linear", "x", x, read, write, offset, strength, gram, spans.has_value(), d, n);
  check_bank("linear", x, spans, index, flag, n, &f);
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = d;
  const Tensor out = Backend::new_result(x, sizes);
  if (n == 0) return out;

  const auto flat = rows_of(x, n, in);
  const Tensor from = flat ? x : dense(x);  // leading dims without a common stride
  const StridedRows left = flat.value_or(StridedRows{n, in, in, 1}), rows{n, d, d, 1};
  const Tensor right = right_operand(weight);
  const bool plain = is_identity(f, normalize);
  const int64_t chunk = plain ? n : Backend::chunk(n, d * item_size(x.scalar_type()));
  for_chunks(n, chunk, [&](int64_t first, int64_t count) {
    Backend::multiply(matrix(out, rows, first, count), bias, matrix(from, left, first, count),
                      right);
    if (plain) return;
    const StridedRows part{count, d, d, 1};
    void* data = row_data(out, rows, first);
    Backend::launch(out, f, LaunchArgs{data, part, data, part, nullptr, normalize, first});
  });
  return out;
}

}  // namespace clipproj
