// SPDX-License-Identifier: Apache-2.0
// Any machine, and float64 everywhere. Eight lanes written as plain loops: the compiler turns them
// into whatever the target's baseline has.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <new>

#include "isa.h"

namespace clipproj::scalar {
namespace {

using c10::BFloat16;
using c10::Half;

template <class Accumulator>
struct Vec {
  using A = Accumulator;
  static constexpr int64_t kLanes = 8;
  static constexpr int kDirections = 1, kColumns = 1;
  A v[kLanes];

  static Vec set1(A value) {
    Vec out;
    for (A& lane : out.v) lane = value;
    return out;
  }
  static Vec zero() { return set1(0); }
  template <class T>
  static Vec load(const T* p) {
    Vec out;
    for (int64_t i = 0; i < kLanes; ++i) out.v[i] = static_cast<A>(p[i]);
    return out;
  }
  template <class T>
  static Vec load(const T* p, int64_t lanes) {
    Vec out = zero();
    for (int64_t i = 0; i < lanes; ++i) out.v[i] = static_cast<A>(p[i]);
    return out;
  }
  template <class T>
  void store(T* p, int64_t lanes = kLanes) const {
    for (int64_t i = 0; i < lanes; ++i) p[i] = static_cast<T>(v[i]);
  }
  static Vec fma(Vec a, Vec b, Vec c) {
    for (int64_t i = 0; i < kLanes; ++i) c.v[i] += a.v[i] * b.v[i];
    return c;
  }
  Vec operator-(Vec b) const {
    for (int64_t i = 0; i < kLanes; ++i) b.v[i] = v[i] - b.v[i];
    return b;
  }
  Vec operator*(Vec b) const {
    for (int64_t i = 0; i < kLanes; ++i) b.v[i] *= v[i];
    return b;
  }
  A sum() const { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }
};

#include "project_kernel.inl"

}  // namespace

const CpuKernels kernels{"scalar", project_rows<Vec<float>, float>,
                         project_rows<Vec<float>, BFloat16>, project_rows<Vec<float>, Half>};
const ProjectFn<double> project_f64 = project_rows<Vec<double>, double>;

}  // namespace clipproj::scalar
