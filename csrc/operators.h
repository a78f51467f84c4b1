// SPDX-License-Identifier: Apache-2.0
// Every operator of torch.ops.clipproj, once: its schema, and its kernel on a backend. Python makes
// fake kernels and derivatives of these schemas (clipproj/ops/).
//
// A backend is what differs between devices (cpu/backend.h, cuda/backend.cuh):
//     launch(x, factors, args)        projects rows, or measures them, on the device of x
//     launch_fold(weight, factors, args)                      the vectors of a weight, in place
//     new_result(like, sizes)                                 memory for a result
//     multiply, chunk, kHalvesIntoFloat                       the library's product: see gemm.h
//     Reader                                                  lives as long as a call reads a bank
#pragma once
#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>
#include <utility>

#include "host.h"
#include "linear.h"
#include "logits.h"

namespace clipproj {

// An operator whose last argument is a flag or nothing, as the two that a schema can tell: one
// without it, and an overload that writes it.
template <auto f, class Function, class Rest>
struct FlagForms;
template <auto f, class Result, class... Args, size_t... i>
struct FlagForms<f, Result (*)(Args...), std::index_sequence<i...>> {
  template <size_t at>
  using Arg = std::tuple_element_t<at, std::tuple<Args...>>;
  static Result without(Arg<i>... args) { return f(args..., std::nullopt); }
  static Result with(Arg<i>... args, const Tensor& flag) { return f(args..., flag); }
};
template <class Result, class... Args>
constexpr size_t arity(Result (*)(Args...)) {
  return sizeof...(Args);
}
template <auto f>
using Flagged = FlagForms<f, decltype(f), std::make_index_sequence<arity(f) - 1>>;

inline std::string with_flag(std::string schema) {
  schema.insert(schema.find(") ->"), ", Tensor(a!) flag");
  return schema.insert(schema.find('('), ".flag");
}

template <auto f, class Define>
void define_flagged(Define& define, const std::string& schema) {
  define(schema, TORCH_BOX((&Flagged<f>::without)));
  define(with_flag(schema), TORCH_BOX((&Flagged<f>::with)));
}

// define(schema, kernel) for each operator.
template <class Backend, class Define>
void for_operators(Define define) {
  define(
      "project(Tensor x, Tensor read, Tensor write, Tensor? offset=None, Tensor? strength=None, *, "
      "bool normalize=False, Tensor? gram=None) -> Tensor",
      TORCH_BOX(&project<Backend>));
  define(
      "project_(Tensor(a!) x, Tensor read, Tensor write, Tensor? offset=None, "
      "Tensor? strength=None, *, bool normalize=False, Tensor? gram=None) -> ()",
      TORCH_BOX(&project_<Backend>));
  define(
      "project_out(Tensor x, Tensor read, Tensor write, Tensor? offset=None, "
      "Tensor? strength=None, *, bool normalize=False, Tensor? gram=None, Tensor(a!) out) -> ()",
      TORCH_BOX(&project_out<Backend>));
  define_flagged<&project_rows<Backend>>(
      define,
      "project_rows(Tensor x, Tensor read, Tensor write, Tensor? offset, Tensor spans, "
      "Tensor index, Tensor? strength=None, *, bool normalize=False, Tensor? gram=None) -> Tensor");
  define_flagged<&linear<Backend>>(
      define,
      "linear(Tensor x, Tensor weight, Tensor? bias, Tensor read, Tensor write, "
      "Tensor? offset=None, Tensor? strength=None, *, bool normalize=False, Tensor? spans=None, "
      "Tensor? index=None, Tensor? gram=None) -> Tensor");
  define_flagged<&logits<Backend>>(
      define,
      "logits(Tensor x, Tensor classes, Tensor read, Tensor write, Tensor? offset, "
      "Tensor? strength, Tensor scale, Tensor? bias=None, *, Tensor? spans=None, "
      "Tensor? index=None, ScalarType? dtype=None, Tensor? gram=None) -> Tensor");
  define(
      "fold_(Tensor(a!) weight, Tensor read, Tensor write, Tensor? offset=None, "
      "Tensor? strength=None, *, int dim) -> ()",
      TORCH_BOX(&fold_<Backend>));
  define(
      "projected_norm(Tensor x, Tensor read, Tensor write, Tensor? offset=None, "
      "Tensor? strength=None, *, Tensor? gram=None) -> Tensor",
      TORCH_BOX(&projected_norm<Backend>));
}

template <class Backend, class Library>
void register_kernels(Library& m) {
  for_operators<Backend>([&m](const std::string& schema, auto* kernel) {
    m.impl(schema.substr(0, schema.find('(')).c_str(), kernel);
  });
}

}  // namespace clipproj
