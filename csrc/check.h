// SPDX-License-Identifier: Apache-2.0
// Every refusal of the operators, in one place. clipproj/ops.py repeats the ones that metadata
// allow, with the same words, for fake tensors; tests/test_errors.py holds the two together.
#pragma once
#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cctype>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace clipproj {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// STD_TORCH_CHECK would put this header's name and line before the text; users get the text alone.
template <class... Parts>
void require(bool ok, const char* op, const Parts&... parts) {
  if (ok) return;
  std::ostringstream text;
  text << op << ": ";
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

// As Python prints it, without "torch.".
inline std::string dtype_name(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::Half: return "float16";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Char: return "int8";
    case ScalarType::Short: return "int16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::ComplexFloat: return "complex64";
    case ScalarType::ComplexDouble: return "complex128";
    default: break;  // BFloat16, Bool, Float8_e4m3fn, ...: C++ differs by capitals only
  }
  std::string name = torch::headeronly::toString(type);
  for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return name;
}

inline std::string shape_text(const Tensor& t) {
  std::ostringstream text;
  text << '[';
  for (int64_t i = 0; i < t.dim(); ++i) text << (i ? ", " : "") << t.size(i);
  text << ']';
  return text.str();
}

inline std::string device_text(const Tensor& t) {
  return t.is_cpu() ? "cpu" : "cuda:" + std::to_string(t.get_device_index());
}

// The factors that one call works with, contiguous and kept alive for the length of the call.
struct Factors {
  Tensor read, write;  // the same handle when the projector is symmetric
  std::optional<Tensor> offset, strength;
  int64_t k;
};

namespace detail {

inline void check_factor(const char* op, const char* name, const Tensor& t, const Tensor& x,
                         ScalarType want) {
  require(t.scalar_type() == want, op, name, " must be ", dtype_name(want), " for ",
          dtype_name(x.scalar_type()), " features, got ", dtype_name(t.scalar_type()));
  require(device_text(t) == device_text(x), op, name, " must be on ", device_text(x), ", got ",
          device_text(t));
}

inline bool same_memory(const Tensor& a, const Tensor& b) {
  return a.const_data_ptr() == b.const_data_ptr() && a.stride(0) == b.stride(0) &&
         a.stride(1) == b.stride(1);
}

// [first byte, one past the last byte) that a tensor can touch.
inline std::pair<uintptr_t, uintptr_t> extent(const Tensor& t, int64_t item) {
  int64_t last = 0;
  for (int64_t i = 0; i < t.dim(); ++i) {
    if (t.size(i) == 0) return {0, 0};
    last += (t.size(i) - 1) * t.stride(i);  // torch has no negative strides
  }
  auto first = reinterpret_cast<uintptr_t>(t.const_data_ptr());
  return {first, first + static_cast<uintptr_t>((last + 1) * item)};
}

inline int64_t item_size(ScalarType type) {
  return type == ScalarType::Double ? 8 : type == ScalarType::Float ? 4 : 2;
}

}  // namespace detail

// Checks x against the factors; d is the embedding dimension and n the number of rows. The name of
// the tensor that is projected differs between the operators, hence `subject`.
inline Factors check_factors(const char* op, const char* subject, const Tensor& x,
                             const Tensor& read, const Tensor& write,
                             const std::optional<Tensor>& offset,
                             const std::optional<Tensor>& strength, int64_t d, int64_t n) {
  const ScalarType type = x.scalar_type();
  require(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half ||
              (type == ScalarType::Double && x.is_cpu()),
          op, subject, " must be float32, bfloat16 or float16 (float64 on the CPU), got ",
          dtype_name(type));
  const ScalarType want = type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  require(read.dim() == 2 && read.size(1) == d, op, "read must be [k, d] with d=", d, ", got ",
          shape_text(read));
  const int64_t k = read.size(0);
  require(write.dim() == 2 && write.size(0) == k && write.size(1) == d, op,
          "write must be [k, d] with k=", k, " and d=", d, ", got ", shape_text(write));
  detail::check_factor(op, "read", read, x, want);
  detail::check_factor(op, "write", write, x, want);
  if (offset) {
    require(offset->dim() == 1 && offset->size(0) == k, op, "offset must be [k] with k=", k,
            ", got ", shape_text(*offset));
    detail::check_factor(op, "offset", *offset, x, want);
  }
  if (strength) {
    require(strength->dim() == 0 || (strength->dim() == 1 && strength->size(0) == n), op,
            "strength must be 0-dim or [n] with n=", n, ", got ", shape_text(*strength));
    detail::check_factor(op, "strength", *strength, x, want);
  }
  const bool symmetric = detail::same_memory(read, write);
  Factors f{torch::stable::contiguous(read), read, std::nullopt, std::nullopt, k};
  f.write = symmetric ? f.read : torch::stable::contiguous(write);
  if (offset) f.offset = torch::stable::contiguous(*offset);
  if (strength) f.strength = torch::stable::contiguous(*strength);
  return f;
}

inline int64_t check_features(const char* op, const Tensor& x) {
  require(x.dim() >= 1 && x.size(x.dim() - 1) >= 1, op, "x must be [..., d] with d >= 1, got ",
          shape_text(x));
  return x.size(x.dim() - 1);
}

// The leading dims of x as one dim with one stride, or nothing when strides do not allow it.
inline std::optional<int64_t> row_stride(const Tensor& x) {
  int64_t stride = 0, rows = 1;
  for (int64_t i = x.dim() - 2; i >= 0; --i) {
    if (x.size(i) == 0) return 0;
    if (x.size(i) == 1) continue;
    if (rows == 1) {
      stride = x.stride(i);
    } else if (x.stride(i) != stride * rows) {
      return std::nullopt;
    }
    rows *= x.size(i);
  }
  return stride;
}

// Where the rows of one tensor lie; strides in elements.
struct Rows {
  int64_t n, d, row, col;
};

// The vectors of a weight along `dim`, its embedding dimension: [in, d] dim 1, [d, in] dim 0, or a
// bias [d]. An offset moves every vector by the same amount, which only a bias can hold.
inline Rows check_weight(const char* op, const Tensor& weight, const std::optional<Tensor>& offset,
                         const std::optional<Tensor>& strength, int64_t dim) {
  const int64_t dims = weight.dim();
  require(dims == 1 || dims == 2, op, "weight must be [in, d], [d, in] or a bias [d], got ",
          shape_text(weight));
  require(-dims <= dim && dim < dims, op, "dim must be in [", -dims, ", ", dims - 1, "], got ",
          dim);
  require(!offset || dims == 1, op, "offset must come with a bias [d] to hold it, got a weight ",
          shape_text(weight));
  require(!strength || strength->dim() == 0, op, "strength must be 0-dim, got ",
          strength ? shape_text(*strength) : "");
  dim = dim < 0 ? dim + dims : dim;
  require(weight.size(dim) >= 1, op, "weight must have d >= 1 at dim ", dim, ", got ",
          shape_text(weight));
  if (dims == 1) return {1, weight.size(0), 0, weight.stride(0)};
  return {weight.size(1 - dim), weight.size(dim), weight.stride(1 - dim), weight.stride(dim)};
}

inline std::vector<int64_t> leading_sizes(const Tensor& x) {
  const auto sizes = x.sizes();
  return {sizes.begin(), sizes.end() - 1};
}

// Nothing to take out and nothing to scale: rows keep their bits, NaN payloads too.
inline bool is_identity(const Factors& f, bool normalize) { return f.k == 0 && !normalize; }

// An in-place result must own each of its elements: no two at one address, none shared with a
// factor that later rows still read.
inline void check_writable(const char* op, const char* subject, const Tensor& x, const Factors& f) {
  std::vector<std::pair<int64_t, int64_t>> dims;  // (stride, size), smallest stride first
  for (int64_t i = 0; i < x.dim(); ++i) {
    if (x.size(i) == 0) return;
    if (x.size(i) > 1) dims.emplace_back(x.stride(i), x.size(i));
  }
  std::sort(dims.begin(), dims.end());
  int64_t reach = 1;
  for (auto [stride, size] : dims) {
    require(stride >= reach, op, subject,
            " must not overlap itself to be written in place, got strides that repeat elements");
    reach += stride * (size - 1);
  }
  const auto mine = detail::extent(x, detail::item_size(x.scalar_type()));
  auto apart = [&](const char* name, const Tensor& t) {
    const auto other = detail::extent(t, detail::item_size(t.scalar_type()));
    require(mine.second <= other.first || other.second <= mine.first, op, name,
            " must not share memory with ", subject, ", got overlapping storage");
  };
  apart("read", f.read);
  apart("write", f.write);
  if (f.offset) apart("offset", *f.offset);
  if (f.strength) apart("strength", *f.strength);
}

}  // namespace clipproj
