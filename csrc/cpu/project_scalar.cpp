// SPDX-License-Identifier: Apache-2.0
// Any machine, and float64 everywhere. 128-bit vectors of the compiler's own, which turns
// them into whatever the target's baseline has.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "isa.h"
#include "kernel.h"

namespace clipproj::scalar {
namespace {

using c10::BFloat16;
using c10::Half;

template <class Accumulator>
struct Vec {
  using A = Accumulator;
  static constexpr int64_t kLanes = 16 / sizeof(A);
  static constexpr int kRows = 4, kSums = 8;
  typedef A Lanes __attribute__((vector_size(16)));
  Lanes v;

  static Vec set1(A value) { return {Lanes{} + value}; }
  static Vec zero() { return {Lanes{}}; }
  static Vec load(const A* p) {
    Vec out;
    std::memcpy(&out.v, p, sizeof(out.v));
    return out;
  }
  template <class T>
  static Vec load(const T* p, int64_t lanes = kLanes) {
    Vec out = zero();
    for (int64_t i = 0; i < lanes; ++i) out.v[i] = static_cast<A>(p[i]);
    return out;
  }
  void store(A* p) const { std::memcpy(p, &v, sizeof(v)); }
  template <class T>
  void store(T* p, int64_t lanes = kLanes) const {
    for (int64_t i = 0; i < lanes; ++i) p[i] = static_cast<T>(v[i]);
  }
  template <class T>
  void stream(T* p) const {
    store(p);
  }
  static void fence() {}

  Vec held() const { return *this; }
  static Vec fma(Vec a, Vec b, Vec c) { return {c.v + a.v * b.v}; }
  Vec operator+(Vec b) const { return {v + b.v}; }
  Vec operator-(Vec b) const { return {v - b.v}; }
  Vec operator*(Vec b) const { return {v * b.v}; }

  static Vec max(Vec a, Vec b) { return {a.v > b.v ? a.v : b.v}; }  // b where one is NaN
  bool any() const {                                                // is not 0
    bool found = false;
    for (int64_t i = 0; i < kLanes; ++i) found |= v[i] != 0;
    return found;
  }

  // out[i] <- the sum of the lanes of v[i], halves first.
  template <int N>
  static void sums(const Vec* v, A* out) {
    for (int i = 0; i < N; ++i) {
      Vec t = v[i];
      for (int64_t half = kLanes / 2; half > 0; half /= 2) {
        for (int64_t lane = 0; lane < half; ++lane) t.v[lane] = t.v[lane] + t.v[lane + half];
      }
      out[i] = t.v[0];
    }
  }

  // kLanes vectors as the rows of a matrix.
  static void transpose(Vec* v) {
    for (int64_t i = 0; i < kLanes; ++i) {
      for (int64_t j = 0; j < i; ++j) {
        const A upper = v[j].v[i];
        v[j].v[i] = v[i].v[j];
        v[i].v[j] = upper;
      }
    }
  }
};

#include "fold_kernel.inl"
#include "project_kernel.inl"
#include "project_rows_kernel.inl"

template <class A, class T>
constexpr ProjectKernel<A> kProject{project_range<Vec<A>, T>, project_split<Vec<A>, T>,
                                    project_rows<Vec<A>, T>, fold_columns<Vec<A>, T>,
                                    Vec<A>::kRows};

}  // namespace

const CpuKernels kernels{"scalar", kProject<float, float>, kProject<float, BFloat16>,
                         kProject<float, Half>};
const ProjectKernel<double> project_f64 = kProject<double, double>;

}  // namespace clipproj::scalar
