// SPDX-License-Identifier: Apache-2.0
// Where the elements of a tensor lie: rows, what memory they reach, who shares it.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

namespace clipproj {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The device of a tensor.
struct Device {
  explicit Device(const Tensor& t) : index(t.get_device_index()) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &type));
  }
  bool operator==(const Device& other) const { return type == other.type && index == other.index; }
  bool is_cpu() const { return type == aoti_torch_device_type_cpu(); }

  int32_t type, index;
};

// Where the rows of one tensor lie; strides in elements.
struct StridedRows {
  int64_t n, d, row, col;
};

// The leading dims of x [..., d] as one dim of n, or nothing when they have no common stride.
inline std::optional<StridedRows> rows_of(const Tensor& x, int64_t n, int64_t d) {
  const auto sizes = x.sizes(), strides = x.strides();
  const size_t last = sizes.size() - 1;
  int64_t stride = 0, rows = 1;
  for (size_t i = last; n > 0 && i-- > 0;) {
    if (sizes[i] == 1) continue;
    if (rows == 1) {
      stride = strides[i];
    } else if (strides[i] != stride * rows) {
      return std::nullopt;
    }
    rows *= sizes[i];
  }
  return StridedRows{n, d, stride, strides[last]};
}

// torch looks its operators up by name, which costs as much as projecting a row: hence the next
// two, which ask only when they must, and a function of the ABI.

inline Tensor dense(const Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

// A new contiguous tensor with the dtype and device of `like`.
inline Tensor new_dense(const Tensor& like, IntHeaderOnlyArrayRef sizes) {
  std::vector<int64_t> strides(sizes.size());
  int64_t step = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = step;
    step *= std::max<int64_t>(sizes[i], 1);
  }
  int32_t dtype = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  const Device device(like);
  AtenTensorHandle made = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                                  strides.data(), dtype, device.type, device.index,
                                                  &made));
  return Tensor(made);
}

// Contiguous, and at an address that 8 bytes can be loaded from at once.
inline Tensor aligned(const Tensor& t) {
  if (t.is_contiguous() && reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 8 == 0) return t;
  Tensor copy = new_dense(t, t.sizes());
  torch::stable::copy_(copy, t);
  return copy;
}

inline bool same_sizes(const Tensor& a, const Tensor& b) {
  const auto s = a.sizes(), t = b.sizes();
  return std::equal(s.begin(), s.end(), t.begin(), t.end());
}

// Whether a and b, of the same sizes, are one block of memory under two names.
inline bool same_memory(const Tensor& a, const Tensor& b) {
  if (a.const_data_ptr() != b.const_data_ptr()) return false;
  const auto sizes = a.sizes(), s = a.strides(), t = b.strides();
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] > 1 && s[i] != t[i]) return false;
  }
  return true;
}

inline int64_t item_size(ScalarType type) {
  return type == ScalarType::Double ? 8 : type == ScalarType::Float ? 4 : 2;
}

// [first byte, one past the last byte) that a tensor can touch.
inline std::pair<uintptr_t, uintptr_t> extent(const Tensor& t) {
  const auto sizes = t.sizes(), strides = t.strides();
  int64_t last = 0;
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] == 0) return {0, 0};
    last += (sizes[i] - 1) * strides[i];  // torch has no negative strides
  }
  const auto first = reinterpret_cast<uintptr_t>(t.const_data_ptr());
  return {first, first + static_cast<uintptr_t>((last + 1) * item_size(t.scalar_type()))};
}

inline bool extents_meet(const Tensor& a, const Tensor& b) {
  const auto x = extent(a), y = extent(b);
  return x.first < y.second && y.first < x.second;
}

// Whether a and b lie side by side in one buffer, as buf[:, :d] and buf[:, d:] do: their extents
// meet, but each run of elements ends before the other's begins. `rows` are those of a.
inline bool side_by_side(const Tensor& a, const StridedRows& rows, const Tensor& b) {
  const auto other = rows_of(b, rows.n, rows.d);
  if (!other || other->row != rows.row || other->col != rows.col) return false;
  const int64_t item = item_size(a.scalar_type()), period = std::max(rows.row, rows.col) * item;
  if (period == 0) return false;
  const int64_t reach = rows.row > rows.col ? (rows.d - 1) * rows.col : (rows.n - 1) * rows.row;
  const auto first = reinterpret_cast<intptr_t>(a.const_data_ptr());
  const auto second = reinterpret_cast<intptr_t>(b.const_data_ptr());
  const int64_t run = (reach + 1) * item, shift = ((second - first) % period + period) % period;
  return run <= shift && shift + run <= period;
}

}  // namespace clipproj
