// SPDX-License-Identifier: Apache-2.0
// Every refusal of the operators, in one place. clipproj/ops/_checks.py repeats those that need no
// data, in the same words, for fake tensors; tests/ops/test_errors.py holds the two together.
#pragma once
#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "layout.h"
#include "params.h"

namespace clipproj {

// STD_TORCH_CHECK would put this header's name and line before the text; users get the text alone.
template <class... Parts>
[[noreturn]] void refuse(const char* op, const Parts&... parts) {
  std::ostringstream text;
  text << op << ": ";
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

template <class... Parts>
void require(bool ok, const char* op, const Parts&... parts) {
  if (!ok) refuse(op, parts...);
}

// Parts of a refusal's text, written only when it is made: every call passes some twenty of them.

struct Dtype {  // as Python prints it, without "torch."
  ScalarType type;
};

struct Shape {
  const Tensor& t;
};

inline std::ostream& operator<<(std::ostream& text, Dtype dtype) {
  switch (dtype.type) {
    case ScalarType::Float: return text << "float32";
    case ScalarType::Double: return text << "float64";
    case ScalarType::Half: return text << "float16";
    case ScalarType::Byte: return text << "uint8";
    case ScalarType::Char: return text << "int8";
    case ScalarType::Short: return text << "int16";
    case ScalarType::Int: return text << "int32";
    case ScalarType::Long: return text << "int64";
    case ScalarType::ComplexFloat: return text << "complex64";
    case ScalarType::ComplexDouble: return text << "complex128";
    default: break;  // BFloat16, Bool, Float8_e4m3fn, ...: C++ differs by capitals only
  }
  std::string name = torch::headeronly::toString(dtype.type);
  for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text << name;
}

inline std::ostream& operator<<(std::ostream& text, Shape shape) {
  text << '[';
  const char* comma = "";
  for (const int64_t size : shape.t.sizes()) text << std::exchange(comma, ", ") << size;
  return text << ']';
}

inline std::ostream& operator<<(std::ostream& text, const Device& device) {
  return device.is_cpu() ? text << "cpu" : text << "cuda:" << device.index;
}

// The factors that one call works with, contiguous and kept alive for the length of the call.
struct Factors {
  Tensor read, write;  // the same handle when the projector is symmetric
  std::optional<Tensor> offset, strength, gram;
  int64_t k;
  std::optional<Tensor> spans, index, flag;  // of a bank: see ProjectParams
  std::optional<Tensor> scale;
};

inline void check_dtype(const char* op, const char* name, const Tensor& t, ScalarType type,
                        ScalarType want) {
  const ScalarType got = t.scalar_type();
  require(got == want, op, name, " must be ", Dtype{want}, " for ", Dtype{type}, " features, got ",
          Dtype{got});
}

inline void check_device(const char* op, const char* name, const Tensor& t, const Device& want) {
  const Device got(t);
  require(got == want, op, name, " must be on ", want, ", got ", got);
}

constexpr int64_t kMostOneSided = 256;  // directions: beyond it a row's solution costs too much

// The Gram matrix of a one-sided projector; of a bank, [k, g], that of each beside its directions.
inline void check_gram(const char* op, const Tensor& x, const Tensor& gram, bool banked,
                       Factors* f) {
  const int64_t k = f->k, columns = gram.dim() == 2 ? gram.size(1) : -1;
  if (banked) {
    require(gram.dim() == 2 && gram.size(0) == k, op, "gram must be [k, g] with k=", k, ", got ",
            Shape{gram});
  } else {
    require(gram.dim() == 2 && gram.size(0) == k && columns == k, op,
            "gram must be [k, k] with k=", k, ", got ", Shape{gram});
  }
  require(columns <= kMostOneSided, op, "gram must have at most ", kMostOneSided, " columns, got ",
          columns);
  const ScalarType type = x.scalar_type();
  check_dtype(op, "gram", gram, type,
              type == ScalarType::Double ? ScalarType::Double : ScalarType::Float);
  check_device(op, "gram", gram, Device(x));
  f->gram = dense(gram);
}

// Checks x against the factors; d is the embedding dimension and n the number of rows. The name of
// the tensor that is projected differs between the operators, hence `subject`.
inline Factors check_factors(const char* op, const char* subject, const Tensor& x,
                             const Tensor& read, const Tensor& write,
                             const std::optional<Tensor>& offset,
                             const std::optional<Tensor>& strength,
                             const std::optional<Tensor>& gram, bool banked, int64_t d, int64_t n) {
  const ScalarType type = x.scalar_type();
  const Device device(x);
  require(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half ||
              (type == ScalarType::Double && device.is_cpu()),
          op, subject, " must be float32, bfloat16 or float16 (float64 on the CPU), got ",
          Dtype{type});
  const ScalarType want = type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  require(read.dim() == 2 && read.size(1) == d, op, "read must be [k, d] with d=", d, ", got ",
          Shape{read});
  const int64_t k = read.size(0);
  require(write.dim() == 2 && write.size(0) == k && write.size(1) == d, op,
          "write must be [k, d] with k=", k, " and d=", d, ", got ", Shape{write});
  check_dtype(op, "read", read, type, want);
  check_device(op, "read", read, device);
  check_dtype(op, "write", write, type, want);
  check_device(op, "write", write, device);
  if (offset) {
    require(offset->dim() == 1 && offset->size(0) == k, op, "offset must be [k] with k=", k,
            ", got ", Shape{*offset});
    check_dtype(op, "offset", *offset, type, want);
    check_device(op, "offset", *offset, device);
  }
  if (strength) {
    require(strength->dim() == 0 || (strength->dim() == 1 && strength->size(0) == n), op,
            "strength must be 0-dim or [n] with n=", n, ", got ", Shape{*strength});
    check_dtype(op, "strength", *strength, type, want);
    check_device(op, "strength", *strength, device);
  }
  Factors f{dense(read), read, {}, {}, {}, k, {}, {}, {}, {}};
  f.write = same_memory(read, write) ? f.read : dense(write);
  if (offset) f.offset = dense(*offset);
  if (strength) f.strength = dense(*strength);
  if (gram) check_gram(op, x, *gram, banked, &f);
  return f;
}

// Spans are loaded as they are stored, by 8 bytes at once: a bank may be changed meanwhile.
inline Span load_span(const int32_t* spans, int64_t j) {
  using Both __attribute__((may_alias)) = int64_t;
  const int64_t both =
      __atomic_load_n(reinterpret_cast<const Both*>(spans + 2 * j), __ATOMIC_ACQUIRE);
  Span span;
  std::memcpy(&span, &both, sizeof(span));
  return span;
}

// `gram_columns`: how many directions a one-sided projector may have.
inline void check_span(const char* op, Span span, int64_t j, int64_t k, int64_t gram_columns) {
  const int64_t rank = std::abs(int64_t{span.rank});
  require(span.start >= 0 && (span.rank >= 0 || gram_columns > 0) && span.start + rank <= k, op,
          "spans must lie within the ", k, " directions of the bank, got start ", span.start,
          " and rank ", span.rank, " in span ", j,
          span.start == -1 && span.rank == -1 ? ", whose projector was removed" : "");
  require(span.rank >= 0 || rank <= gram_columns, op,
          "gram must have a column for each direction of a one-sided projector, got ", gram_columns,
          " for the ", rank, " of span ", j);
}

// On the CPU, whose kernels trust what they are told: every row's index, and the spans in use.
inline void check_rows_of_bank(const char* op, const Tensor& spans, const Tensor& index, int64_t k,
                               int64_t gram_columns) {
  const auto* all = static_cast<const int32_t*>(spans.const_data_ptr());
  const auto* row = static_cast<const int32_t*>(index.const_data_ptr());
  const int64_t n = index.size(0), m = spans.size(0);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t j = row[i];
    require(-1 <= j && j < m, op, "index must be in [-1, ", m - 1, "], got ", j, " in row ", i);
    if (j >= 0) check_span(op, load_span(all, j), j, k, gram_columns);
  }
}

// The projectors of a bank: which of the factors' k directions are whose, and each row's own.
inline void check_bank(const char* op, const Tensor& x, const std::optional<Tensor>& spans,
                       const std::optional<Tensor>& index, const std::optional<Tensor>& flag,
                       int64_t n, Factors* f) {
  require(spans.has_value() == index.has_value(), op, "spans and index must come together, got ",
          spans ? "spans" : "index", " alone");
  require(spans || !flag, op, "flag must come with spans and index, got it alone");
  if (!spans) return;
  const Device device(x);
  auto check = [&](const char* name, const Tensor& t) {
    require(t.scalar_type() == ScalarType::Int, op, name, " must be int32, got ",
            Dtype{t.scalar_type()});
    check_device(op, name, t, device);
  };
  require(spans->dim() == 2 && spans->size(1) == 2, op, "spans must be [m, 2], got ",
          Shape{*spans});
  check("spans", *spans);
  require(index->dim() == 1 && index->size(0) == n, op, "index must be [n] with n=", n, ", got ",
          Shape{*index});
  check("index", *index);
  f->spans = aligned(*spans);
  f->index = dense(*index);
  if (device.is_cpu()) {
    check_rows_of_bank(op, *f->spans, *f->index, f->k, f->gram ? f->gram->size(1) : 0);
  }
  if (!flag) return;
  require(flag->numel() == 1, op, "flag must have one element, got ", Shape{*flag});
  check("flag", *flag);
  f->flag = *flag;
}

// The operands of a product other than the factors. n, the rows of x [..., in], is returned.
inline int64_t check_linear(const char* op, const Tensor& x, const Tensor& weight,
                            const std::optional<Tensor>& bias) {
  require(x.dim() >= 1, op, "x must be [..., in], got ", Shape{x});
  const int64_t in = x.size(x.dim() - 1);
  require(weight.dim() == 2 && weight.size(0) >= 1 && weight.size(1) == in, op,
          "weight must be [d, in] with d >= 1 and in=", in, ", got ", Shape{weight});
  const ScalarType type = x.scalar_type();
  const Device device(x);
  check_dtype(op, "weight", weight, type, type);
  check_device(op, "weight", weight, device);
  if (bias) {
    const int64_t d = weight.size(0);
    require(bias->dim() == 1 && bias->size(0) == d, op, "bias must be [d] with d=", d, ", got ",
            Shape{*bias});
    check_dtype(op, "bias", *bias, type, type);
    check_device(op, "bias", *bias, device);
  }
  int64_t n = 1;
  for (int64_t i = 0; i < x.dim() - 1; ++i) n *= x.size(i);
  return n;
}

inline void check_logits(const char* op, const Tensor& x, const Tensor& classes,
                         const Tensor& scale, const std::optional<Tensor>& bias,
                         const std::optional<ScalarType>& dtype) {
  const ScalarType type = x.scalar_type();
  const ScalarType want = type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const Device device(x);
  const int64_t d = x.size(x.dim() - 1);
  require(classes.dim() == 2 && classes.size(1) == d, op, "classes must be [C, d] with d=", d,
          ", got ", Shape{classes});
  const int64_t c = classes.size(0);
  check_dtype(op, "classes", classes, type, type);
  check_device(op, "classes", classes, device);
  require(scale.dim() == 0, op, "scale must be 0-dim, got ", Shape{scale});
  check_dtype(op, "scale", scale, type, want);
  check_device(op, "scale", scale, device);
  if (bias) {
    require(bias->dim() == 0 || (bias->dim() == 1 && bias->size(0) == c), op,
            "bias must be 0-dim or [C] with C=", c, ", got ", Shape{*bias});
    check_dtype(op, "bias", *bias, type, want);
    check_device(op, "bias", *bias, device);
  }
  require(!dtype || *dtype == type || *dtype == want, op, "dtype must be None, ", Dtype{type},
          " or ", Dtype{want}, " for ", Dtype{type}, " features, got ",
          Dtype{dtype.value_or(type)});
}

inline int64_t check_features(const char* op, const Tensor& x) {
  require(x.dim() >= 1 && x.size(x.dim() - 1) >= 1, op, "x must be [..., d] with d >= 1, got ",
          Shape{x});
  return x.size(x.dim() - 1);
}

// The vectors of a weight along `dim`, its embedding dimension: [in, d] dim 1, [d, in] dim 0, or a
// bias [d]. An offset moves every vector by the same amount, which only a bias can hold.
inline StridedRows check_weight(const char* op, const Tensor& weight,
                                const std::optional<Tensor>& offset,
                                const std::optional<Tensor>& strength, int64_t dim) {
  const int64_t dims = weight.dim();
  require(dims == 1 || dims == 2, op, "weight must be [in, d], [d, in] or a bias [d], got ",
          Shape{weight});
  require(-dims <= dim && dim < dims, op, "dim must be in [", -dims, ", ", dims - 1, "], got ",
          dim);
  require(!offset || dims == 1, op, "offset must come with a bias [d] to hold it, got a weight ",
          Shape{weight});
  if (strength) {
    require(strength->dim() == 0, op, "strength must be 0-dim, got ", Shape{*strength});
  }
  dim = dim < 0 ? dim + dims : dim;
  require(weight.size(dim) >= 1, op, "weight must have d >= 1 at dim ", dim, ", got ",
          Shape{weight});
  if (dims == 1) return {1, weight.size(0), 0, weight.stride(0)};
  return {weight.size(1 - dim), weight.size(dim), weight.stride(1 - dim), weight.stride(dim)};
}

// Nothing to take out and nothing to scale: rows keep their bits, NaN payloads too.
inline bool is_identity(const Factors& f, bool normalize) {
  return f.k == 0 && !normalize && !f.index && !f.scale;
}

// What is written must own each of its elements: no two at one address, none shared with a factor
// that later rows still read.
inline void check_writable(const char* op, const char* subject, const Tensor& x, const Factors& f) {
  const auto sizes = x.sizes(), strides = x.strides();
  std::vector<std::pair<int64_t, int64_t>> dims;  // (stride, size), smallest stride first
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] == 0) return;
    if (sizes[i] > 1) dims.emplace_back(strides[i], sizes[i]);
  }
  std::sort(dims.begin(), dims.end());
  int64_t reach = 1;
  for (auto [stride, size] : dims) {
    require(stride >= reach, op, subject,
            " must not overlap itself to be written, got strides that repeat elements");
    reach += stride * (size - 1);
  }
  auto apart = [&](const char* name, const Tensor& t) {
    require(!extents_meet(x, t), op, name, " must not share memory with ", subject,
            ", got overlapping storage");
  };
  apart("read", f.read);
  apart("write", f.write);
  if (f.offset) apart("offset", *f.offset);
  if (f.strength) apart("strength", *f.strength);
  if (f.gram) apart("gram", *f.gram);
}

inline StridedRows check_flat(const char* op, const char* subject, const Tensor& x, int64_t n,
                              int64_t d) {
  const auto rows = rows_of(x, n, d);
  require(rows.has_value(), op, subject,
          " must have leading dims that flatten to one stride, got strides of a permuted view; "
          "use project()");
  return *rows;
}

// A place for the result of x: of the same shape, dtype and device.
inline void check_out(const char* op, const Tensor& out, const Tensor& x) {
  require(same_sizes(out, x), op, "out must be ", Shape{x}, " as x is, got ", Shape{out});
  const ScalarType want = x.scalar_type(), got = out.scalar_type();
  require(got == want, op, "out must be ", Dtype{want}, " as x is, got ", Dtype{got});
  check_device(op, "out", out, Device(x));
}

// Rows that are written must not be rows of x still to be read, unless each is its own.
inline void check_apart(const char* op, const Tensor& out, const StridedRows& rows,
                        const Tensor& x) {
  require(!extents_meet(out, x) || same_memory(out, x) || side_by_side(out, rows, x), op,
          "out must be x itself or share no memory with it, got overlapping storage");
}

}  // namespace clipproj
