// SPDX-License-Identifier: Apache-2.0
// What linear and logits share: rows in chunks, and matrices for a backend's product
//     multiply(out, bias, a, b)        out = a @ b + bias, bias null or whatever broadcasts to out
//     chunk(n, bytes of a row)         how many of n rows to multiply at a time
//     kHalvesIntoFloat                 whether a and b of half precision may have a float32 out
// which is torch's own, called below autograd and autocast, on the current stream.
#pragma once
#include "layout.h"

namespace clipproj {

// `count` rows of t from `first` on as a matrix; shares and keeps t's storage, and skips the
// dispatcher.
inline Tensor matrix(const Tensor& t, const StridedRows& rows, int64_t first, int64_t count) {
  // One row has no stride of its own (rows_of says 0), but the product looks for a leading dim.
  const int64_t row = count == 1 ? std::max<int64_t>(rows.d, 1) : rows.row;
  const int64_t sizes[] = {count, rows.d}, strides[] = {row, rows.col};
  AtenTensorHandle made = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch__reinterpret_tensor(t.get(), 2, sizes, strides, first * rows.row, &made));
  return Tensor(made);
}

// t [rows, columns] as the right operand of many products, [columns, rows]: where the library would
// copy it for its strides, it is copied once.
inline Tensor right_operand(const Tensor& t) {
  const int64_t rows = t.size(0), columns = t.size(1);
  const auto fits = [](int64_t inner, int64_t outer, int64_t size) {
    return inner == 1 && outer >= std::max<int64_t>(size, 1);
  };
  const bool plain =
      fits(t.stride(1), t.stride(0), columns) || fits(t.stride(0), t.stride(1), rows);
  const Tensor from = plain ? t : dense(t);
  return matrix(from, {columns, rows, from.stride(1), from.stride(0)}, 0, columns);
}

// t in the dtype of `like`, contiguous.
inline Tensor convert(const Tensor& t, const Tensor& like) {
  const Tensor made = new_dense(like, t.sizes());
  TORCH_ERROR_CODE_CHECK(aoti_torch_copy_(made.get(), t.get(), 0));
  return made;
}

inline std::optional<Tensor> in_dtype_of(const Tensor& like, const std::optional<Tensor>& t) {
  if (!t || t->scalar_type() == like.scalar_type()) return t;
  return convert(*t, like);
}

// How many rows a chunk of n has, for at most `bytes` of them: what lies between two steps is to
// stay in cache. Chunks are alike and whole tiles of a product, so that none is a remainder.
inline int64_t even_chunk(int64_t n, int64_t bytes_of_row, int64_t bytes) {
  constexpr int64_t kTile = 128;
  const int64_t most = std::max(kTile, bytes / bytes_of_row / kTile * kTile);
  if (n <= most) return n;
  const int64_t chunks = (n + most - 1) / most, rows = (n + chunks - 1) / chunks;
  return (rows + kTile - 1) / kTile * kTile;
}

// body(first, count) for each chunk.
template <class F>
void for_chunks(int64_t n, int64_t chunk, F body) {
  for (int64_t first = 0; first < n; first += chunk) body(first, std::min(chunk, n - first));
}

// Where row `first` begins.
inline char* row_data(const Tensor& t, const StridedRows& rows, int64_t first) {
  return static_cast<char*>(t.mutable_data_ptr()) + first * rows.row * item_size(t.scalar_type());
}

}  // namespace clipproj
