// SPDX-License-Identifier: Apache-2.0
// The coefficients of a one-sided projector: of all a >= 0 the one with the least
//     1/2 a G a^T - a c        c = x read^T - offset, G = gram
// so that x - a write is the row nearest to x, in the metric of what is kept, with no excess left:
// c - G a <= 0. Coordinate ascent in a fixed order from a = 0, a row a lane. Included by
// project_kernel.inl.
//
// A row's sweeps end when none of its coefficients moved by more than kTolerance of its largest
// excess, or after kSweeps. Then sweeps that only raise coefficients take out what excess is left,
// until none raises one by more than kLeft of the largest excess. One is enough where no element of
// G is negative, for then to raise one coefficient lowers the excess of the others. What the last
// one leaves is at most q kLeft of the largest excess, q the largest sum of a row's negative
// elements: it is proven (clipproj/certificates), so a row that kRaises do not bring there, which
// has not been seen, becomes NaN. What a lane does depends on that lane alone. Hildreth's method (A
// quadratic programming procedure, Naval Research Logistics Quarterly 1957).

template <class A>
struct SolveLimits {
  static constexpr int kSweeps = 32, kRaises = 256;
  static constexpr A kTolerance = A(1) / (1 << 12), kLeft = A(1) / (1 << 20);
};
template <>
struct SolveLimits<double> {
  static constexpr int kSweeps = 4096, kRaises = 4096;
  static constexpr double kTolerance = 1e-14, kLeft = 1e-14;
};

// One step of each of the B coefficients from i on, in order; `excess` [k, lanes] follows. Returns
// how far the one that moved most did. A step raises a coefficient by its excess, or lowers it, but
// to 0 at most, and not at all if `raise`; in lanes that are `on` alone, which is 1 there, else 0.
template <class V, bool raise, int B>
CLIPPROJ_INLINE V solve_steps(const typename V::A* gram, int64_t row, int64_t k, int64_t i,
                              typename V::A* excess, typename V::A* a, V on) {
  constexpr int64_t L = V::kLanes;
  V own[B], down[B], moved = V::zero();
  CLIPPROJ_UNROLL for (int b = 0; b < B; ++b) own[b] = V::load(excess + (i + b) * L);
  CLIPPROJ_UNROLL for (int b = 0; b < B; ++b) {
    const V now = V::load(a + (i + b) * L);
    // The second operand, where it is NaN, is what max returns.
    const V step = V::max(raise ? V::zero() : V::zero() - now, own[b]) * on;
    (now + step).store(a + (i + b) * L);
    down[b] = V::zero() - step;
    moved = V::max(moved, V::max(down[b], step));
    CLIPPROJ_UNROLL for (int c = 0; c < B; ++c) {
      own[c] = V::fma(down[b], V::set1(gram[(i + b) * row + i + c]), own[c]);
    }
  }
  if (!moved.any()) return moved;
  CLIPPROJ_UNROLL for (int b = 0; b < B; ++b) own[b].store(excess + (i + b) * L);
  const auto others = [&](int64_t j, int64_t end) __attribute__((always_inline)) {
    for (; j < end; ++j) {
      V e = V::load(excess + j * L);
      CLIPPROJ_UNROLL for (int b = 0; b < B; ++b) {
        e = V::fma(down[b], V::set1(gram[(i + b) * row + j]), e);
      }
      e.store(excess + j * L);
    }
  };
  others(0, i);
  others(i + B, k);
  return moved;
}

// One step of every coefficient.
template <class V, bool raise>
CLIPPROJ_NOINLINE V solve_sweep(const typename V::A* gram, int64_t row, int64_t k,
                                typename V::A* excess, typename V::A* a, V on) {
  constexpr int B = 4;
  V most = V::zero();
  int64_t i = 0;
  for (; i + B <= k; i += B) {
    most = V::max(most, solve_steps<V, raise, B>(gram, row, k, i, excess, a, on));
  }
  for (; i < k; ++i) {
    most = V::max(most, solve_steps<V, raise, 1>(gram, row, k, i, excess, a, on));
  }
  return most;
}

// a [k, lanes] <- the solution for an excess [k, lanes], which is used up.
template <class V>
void solve_lanes(const typename V::A* gram, int64_t row, int64_t k, typename V::A* excess,
                 typename V::A* a) {
  using A = typename V::A;
  using Limits = SolveLimits<A>;
  constexpr int64_t L = V::kLanes;
  V largest = V::zero();
  for (int64_t i = 0; i < k; ++i) {
    largest = V::max(largest, V::load(excess + i * L));
    V::zero().store(a + i * L);
  }
  A least[L], moved[L], on[L];
  (largest * V::set1(Limits::kTolerance)).store(least);
  // Lanes that moved further than `least`; false when there are none.
  const auto go_on = [&](V by) {
    by.store(moved);
    bool any = false;
    for (int64_t l = 0; l < L; ++l) {
      on[l] = moved[l] > least[l] ? A(1) : A(0);
      any |= moved[l] > least[l];
    }
    return any;
  };
  for (int64_t l = 0; l < L; ++l) on[l] = 1;
  for (int i = 0; i < Limits::kSweeps; ++i) {
    if (!go_on(solve_sweep<V, false>(gram, row, k, excess, a, V::load(on)))) break;
  }
  (largest * V::set1(Limits::kLeft)).store(least);
  for (int64_t l = 0; l < L; ++l) on[l] = 1;
  for (int i = 0; i < Limits::kRaises; ++i) {
    if (!go_on(solve_sweep<V, true>(gram, row, k, excess, a, V::load(on)))) return;
  }
  for (int64_t l = 0; l < L; ++l) {
    for (int64_t i = 0; on[l] == 1 && i < k; ++i)
      a[i * L + l] = std::numeric_limits<A>::quiet_NaN();
  }
}

// Elements of scratch memory for a problem of k directions.
template <class V>
constexpr int64_t solve_scratch(int64_t k) {
  return 2 * k * V::kLanes;
}

// coef <- strength times the solution for `rows` rows from `row` of the problem on. Coefficients
// lie as dot_blocks leaves those of for_blocks<V::kRows>(0, rows).
template <class V>
void solve_rows(const ProjectParams<typename V::A>& p, int64_t row, int64_t rows,
                typename V::A* coef, typename V::A* scratch) {
  using A = typename V::A;
  constexpr int64_t L = V::kLanes;
  A *excess = scratch, *a = scratch + p.k * L;
  for (int64_t first = 0; first < rows; first += L) {
    const int64_t count = std::min(L, rows - first);
    A* at[L];
    int64_t step[L];
    for_blocks<V::kRows>(0, rows, [&](auto size, int64_t begin) {
      constexpr int R = decltype(size)::value;
      for (int64_t r = std::max(begin, first); r < std::min(begin + R, first + count); ++r) {
        at[r - first] = coef + begin * p.k + (r - begin);
        step[r - first] = R;
      }
    });
    bool some = false;
    for (int64_t i = 0; i < p.k; ++i) {
      const A c = p.offset ? p.offset[i] : A(0);
      for (int64_t l = 0; l < L; ++l) {
        const A e = l < count ? at[l][i * step[l]] - c : A(0);
        some |= !(e <= 0);
        excess[i * L + l] = e;
      }
    }
    if (some) solve_lanes<V>(p.gram, p.gram_row, p.k, excess, a);
    for (int64_t l = 0; l < count; ++l) {
      const A s = p.strength ? p.strength[(row + first + l) * p.strength_row] : A(1);
      for (int64_t i = 0; i < p.k; ++i) at[l][i * step[l]] = some ? s * a[i * L + l] : A(0);
    }
  }
}
