// SPDX-License-Identifier: Apache-2.0
// The coefficients of a one-sided projector: of all a >= 0 the one with the least
//     1/2 a G a^T - a c        c = x read^T - offset, G = gram
// so that x - a write is the row nearest to x, in the metric of what is kept, with no excess left:
// c - G a <= 0. Coordinate ascent in a fixed order from a = 0, a row a lane; what a lane does
// depends on that lane alone. Hildreth's method (A quadratic programming procedure, Naval Research
// Logistics Quarterly 1957). Included by project_kernel.inl.
//
// Sweeps that only raise end it (solve.h says when). They leave no excess: to raise a coefficient
// lowers all excess beside it but where gram is negative.

// Vectors of rows that are solved together, so that each element of gram serves them all.
template <class V>
constexpr int kSolveVectors = std::max<int>(V::kRows / V::kLanes, V::kSums / 8);
template <class V>
constexpr int64_t kSolveRows = kSolveVectors<V> * V::kLanes;

// One step of each of the B coefficients from i on, in order; `excess` [k, U vectors] follows, and
// `moved` keeps the longest step. A step raises a coefficient by its excess, or lowers it, but to 0
// at most, and not at all if `raise`; in lanes that are `on` alone, which is 1 there, else 0.
template <class V, int U, bool raise, int B>
CLIPPROJ_INLINE void solve_steps(const typename V::A* gram, int64_t row, int64_t k, int64_t i,
                                 typename V::A* excess, typename V::A* a, const V* on, V* moved) {
  constexpr int64_t L = V::kLanes;
  V own[B * U], down[B * U], longest = V::zero();
  CLIPPROJ_UNROLL for (int b = 0; b < B * U; ++b) own[b] = V::load(excess + i * U * L + b * L);
  CLIPPROJ_UNROLL for (int b = 0; b < B; ++b) {
    V g[B];
    CLIPPROJ_UNROLL for (int c = 0; c < B; ++c) g[c] = V::set1(gram[(i + b) * row + i + c]);
    CLIPPROJ_UNROLL for (int u = 0; u < U; ++u) {
      typename V::A* at = a + ((i + b) * U + u) * L;
      const V now = V::load(at);
      // max returns its second operand where one is NaN.
      const V step = V::max(raise ? V::zero() : V::zero() - now, own[b * U + u]) * on[u];
      (now + step).store(at);
      const V back = V::zero() - step, length = V::max(back, step);
      moved[u] = V::max(moved[u], length);
      longest = V::max(longest, length);
      down[b * U + u] = back;
      CLIPPROJ_UNROLL for (int c = 0; c < B; ++c) {
        own[c * U + u] = V::fma(back, g[c], own[c * U + u]);
      }
    }
  }
  if (!longest.any()) return;
  CLIPPROJ_UNROLL for (int b = 0; b < B * U; ++b) own[b].store(excess + i * U * L + b * L);
  const auto others = [&](int64_t j, int64_t end) __attribute__((always_inline)) {
    for (; j < end; ++j) {
      V e[U];
      CLIPPROJ_UNROLL for (int u = 0; u < U; ++u) e[u] = V::load(excess + (j * U + u) * L);
      CLIPPROJ_UNROLL for (int b = 0; b < B; ++b) {
        const V g = V::set1(gram[(i + b) * row + j]);
        CLIPPROJ_UNROLL for (int u = 0; u < U; ++u) e[u] = V::fma(down[b * U + u], g, e[u]);
      }
      CLIPPROJ_UNROLL for (int u = 0; u < U; ++u) e[u].store(excess + (j * U + u) * L);
    }
  };
  others(0, i);
  others(i + B, k);
}

// One step of every coefficient in the lanes that are on; the longest of each lane is `moved`.
template <class V, int U, bool raise>
CLIPPROJ_NOINLINE void solve_sweep(const typename V::A* gram, int64_t row, int64_t k,
                                   typename V::A* excess, typename V::A* a, const typename V::A* on,
                                   typename V::A* moved) {
  constexpr int B = 4;
  V most[U], lanes[U];
  CLIPPROJ_UNROLL for (int u = 0; u < U; ++u) {
    most[u] = V::zero();
    lanes[u] = V::load(on + u * V::kLanes);
  }
  int64_t i = 0;
  for (; i + B <= k; i += B) {
    solve_steps<V, U, raise, B>(gram, row, k, i, excess, a, lanes, most);
  }
  for (; i < k; ++i) solve_steps<V, U, raise, 1>(gram, row, k, i, excess, a, lanes, most);
  CLIPPROJ_UNROLL for (int u = 0; u < U; ++u) most[u].store(moved + u * V::kLanes);
}

// a [k, U vectors] <- the solution for an excess [k, U vectors], which is used up.
template <class V, int U>
void solve_lanes(const typename V::A* gram, int64_t row, int64_t k, typename V::A* excess,
                 typename V::A* a) {
  using A = typename V::A;
  using Limits = SolveLimits<A>;
  constexpr int64_t L = V::kLanes, lanes = U * L;
  V highest[U];
  CLIPPROJ_UNROLL for (int u = 0; u < U; ++u) highest[u] = V::zero();
  for (int64_t i = 0; i < k; ++i) {
    CLIPPROJ_UNROLL for (int u = 0; u < U; ++u) {
      highest[u] = V::max(highest[u], V::load(excess + (i * U + u) * L));
      V::zero().store(a + (i * U + u) * L);
    }
  }
  A largest[lanes], moved[lanes], on[lanes], open[lanes];
  CLIPPROJ_UNROLL for (int u = 0; u < U; ++u) highest[u].store(largest + u * L);
  for (int64_t l = 0; l < lanes; ++l) open[l] = 1;
  // Lanes stay on that moved further than `least` of their largest excess; false: none did.
  const auto go_on = [&](A least) {
    bool any = false;
    for (int64_t l = 0; l < lanes; ++l) {
      const bool further = moved[l] > least * largest[l];
      on[l] = further ? A(1) : A(0);
      any |= further;
    }
    return any;
  };
  A move = Limits::kMove;
  for (int round = 0; round < Limits::kRounds; ++round, move /= 16) {
    std::copy(open, open + lanes, on);
    for (int s = 0; s < Limits::kSweeps; ++s) {
      solve_sweep<V, U, false>(gram, row, k, excess, a, on, moved);
      if (!go_on(move)) break;
    }
    std::copy(open, open + lanes, on);
    bool more = true;
    for (int s = 0; more && s < Limits::kRaises; ++s) {
      solve_sweep<V, U, true>(gram, row, k, excess, a, on, moved);
      more = go_on(Limits::kLeft);
    }
    if (!more) return;
    std::copy(on, on + lanes, open);
  }
  for (int64_t l = 0; l < lanes; ++l) {
    for (int64_t i = 0; open[l] != 0 && i < k; ++i) {
      a[i * lanes + l] = std::numeric_limits<A>::quiet_NaN();
    }
  }
}

// Elements of scratch memory for a problem of k directions.
template <class V>
constexpr int64_t solve_scratch(int64_t k) {
  return 2 * k * kSolveRows<V>;
}

// coef <- strength times the solution for up to U vectors of rows, from `row` of the problem on.
// Coefficients lie as dot_blocks leaves those of for_blocks<V::kRows>(0, rows), which are turned
// round to one row a lane and back.
template <class V, int U>
void solve_block(const ProjectParams<typename V::A>& p, int64_t row, int64_t rows,
                 typename V::A* coef, typename V::A* scratch) {
  using A = typename V::A;
  constexpr int64_t L = V::kLanes, lanes = U * L;
  A *excess = scratch, *a = scratch + p.k * lanes;
  A strength[lanes];
  for (int64_t l = 0; l < lanes; ++l) {
    strength[l] = p.strength && l < rows ? p.strength[(row + l) * p.strength_row] : A(1);
  }
  if (rows < lanes) std::fill(excess, excess + p.k * lanes, A(0));
  V some = V::zero();
  for_blocks<V::kRows>(0, rows, [&](auto size, int64_t r) {
    constexpr int64_t R = decltype(size)::value, part = std::min(R, L);
    for (int64_t i = 0; i < p.k; ++i) {
      const V c = V::set1(p.offset ? p.offset[i] : A(0));
      CLIPPROJ_UNROLL for (int64_t q = 0; q < R; q += part) {
        const V e = V::load(coef + r * p.k + i * R + q, part) - c;
        e.store(excess + i * lanes + r + q, part);
        some = some + V::max(V::zero(), part < L ? V::load(excess + i * lanes + r + q, part) : e);
      }
    }
  });
  const bool any = some.any();
  if (any) solve_lanes<V, U>(p.gram, p.gram_row, p.k, excess, a);
  for_blocks<V::kRows>(0, rows, [&](auto size, int64_t r) {
    constexpr int64_t R = decltype(size)::value, part = std::min(R, L);
    for (int64_t i = 0; i < p.k; ++i) {
      CLIPPROJ_UNROLL for (int64_t q = 0; q < R; q += part) {
        const V s = V::load(strength + r + q, part);
        // A strength that is no number makes a row of none, whatever its neighbours need.
        const V found = any ? V::load(a + i * lanes + r + q, part) : V::zero();
        (found * s).store(coef + r * p.k + i * R + q, part);
      }
    }
  });
}

// The same for up to kSolveRows.
template <class V>
void solve_rows(const ProjectParams<typename V::A>& p, int64_t row, int64_t rows,
                typename V::A* coef, typename V::A* scratch) {
  constexpr int few = std::max<int>(1, V::kRows / V::kLanes);
  if (rows <= few * V::kLanes) {
    solve_block<V, few>(p, row, rows, coef, scratch);
  } else {
    solve_block<V, kSolveVectors<V>>(p, row, rows, coef, scratch);
  }
}
