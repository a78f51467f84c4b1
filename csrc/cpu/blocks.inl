// SPDX-License-Identifier: Apache-2.0
// The two products of the update and the norm, for a block of R rows that shares every factor it
// loads, with sums in registers. Each row's sums run over d lane by lane, then across lanes, and
// over k in order, whatever R is: the bits of a row do not depend on the rows beside it.
//
// Register plan: R x G sums of the first product, R x C of the second, V::kSums of either, with R
// from V::kRows down to one. Sizes that do not fill a block go on with half of it.

// coef[g, r] <- x[r] . read[g] for R rows and G directions.
template <class V, int R, int G>
CLIPPROJ_NOINLINE void dot_block(const typename V::A* x, int64_t x_ld, const typename V::A* read,
                                 int64_t d, typename V::A* coef) {
  V sum[G * R];
  CLIPPROJ_UNROLL for (int i = 0; i < G * R; ++i) sum[i] = V::zero();
  auto step = [&](int64_t j, auto... lanes) __attribute__((always_inline)) {
    if constexpr (G <= R) {  // keep the fewer, stream the more
      V f[G];
      CLIPPROJ_UNROLL for (int g = 0; g < G; ++g) f[g] = V::load(read + g * d + j, lanes...);
      CLIPPROJ_UNROLL for (int r = 0; r < R; ++r) {
        const V v = V::load(x + r * x_ld + j, lanes...).held();
        CLIPPROJ_UNROLL for (int g = 0; g < G; ++g) sum[g * R + r] =
            V::fma(v, f[g], sum[g * R + r]);
      }
    } else {
      V v[R];
      CLIPPROJ_UNROLL for (int r = 0; r < R; ++r) v[r] = V::load(x + r * x_ld + j, lanes...);
      CLIPPROJ_UNROLL for (int g = 0; g < G; ++g) {
        const V f = V::load(read + g * d + j, lanes...);
        CLIPPROJ_UNROLL for (int r = 0; r < R; ++r) sum[g * R + r] =
            V::fma(v[r], f, sum[g * R + r]);
      }
    }
  };
  int64_t j = 0;
  for (; j + V::kLanes <= d; j += V::kLanes) step(j);
  if (j < d) step(j, d - j);
  V::template sums<G * R>(sum, coef);
}

// Directions [g, end).
template <class V, int R, int G = std::min(V::kSums / R, V::kRows)>
void dot_blocks(const typename V::A* x, int64_t x_ld, const typename V::A* read, int64_t d,
                typename V::A* coef, int64_t g, int64_t end) {
  for (; g + G <= end; g += G) dot_block<V, R, G>(x, x_ld, read + g * d, d, coef + g * R);
  if constexpr (G > 1) {
    if (g < end) dot_blocks<V, R, G / 2>(x, x_ld, read, d, coef, g, end);
  }
}

// y[r, 0..C lanes) <- x - coef[:, r] . write[:, 0..); `lanes` when the columns end before that.
// What is taken out is summed by itself: k steps round at its size, only the last at that of x.
template <class V, int R, int C, class... Lanes>
CLIPPROJ_INLINE void update_block(const typename V::A* x, int64_t x_ld, const typename V::A* write,
                                  int64_t d, int64_t k, const typename V::A* coef, typename V::A* y,
                                  int64_t y_ld, V* square, Lanes... lanes) {
  V sum[R * C];
  CLIPPROJ_UNROLL for (int i = 0; i < R * C; ++i) sum[i] = V::zero();
  for (int64_t i = 0; i < k; ++i) {
    const typename V::A* from = write + i * d;
    if constexpr (C <= R) {
      V w[C];
      CLIPPROJ_UNROLL for (int c = 0; c < C; ++c) w[c] = V::load(from + c * V::kLanes, lanes...);
      CLIPPROJ_UNROLL for (int r = 0; r < R; ++r) {
        const V s = C > 1 ? V::set1(coef[i * R + r]).held() : V::set1(coef[i * R + r]);
        CLIPPROJ_UNROLL for (int c = 0; c < C; ++c) {
          sum[r * C + c] = V::fma(s, w[c], sum[r * C + c]);
        }
      }
    } else {
      V s[R];
      CLIPPROJ_UNROLL for (int r = 0; r < R; ++r) s[r] = V::set1(coef[i * R + r]);
      CLIPPROJ_UNROLL for (int c = 0; c < C; ++c) {
        const V w = V::load(from + c * V::kLanes, lanes...);
        CLIPPROJ_UNROLL for (int r = 0; r < R; ++r) {
          sum[r * C + c] = V::fma(s[r], w, sum[r * C + c]);
        }
      }
    }
  }
  CLIPPROJ_UNROLL for (int r = 0; r < R; ++r) {
    CLIPPROJ_UNROLL for (int c = 0; c < C; ++c) {
      const V v = V::load(x + c * V::kLanes, lanes...) - sum[r * C + c];
      v.store(y + c * V::kLanes, lanes...);
      if (square) {
        // Lanes that do not exist hold inf * 0 when a coefficient is inf.
        const V kept = sizeof...(lanes) ? V::load(y + c * V::kLanes, lanes...) : v;
        square[r] = V::fma(kept, kept, square[r]);
      }
    }
    x = opaque(x + x_ld);
    y = opaque(y + y_ld);
  }
}

constexpr int64_t kLine = 64;  // bytes

// Where the rows that come next lie in memory, to be fetched while these are computed.
struct Ahead {
  const char* at;
  int64_t row, item;  // in bytes
};

inline Ahead nothing_ahead(const void* anywhere) {
  return {static_cast<const char*>(anywhere), 0, 0};
}

// Columns [j, end). `square`, unless null, gathers the squares of each row.
template <class V, int R, int C = V::kSums / R>
CLIPPROJ_INLINE void update_blocks(const typename V::A* x, int64_t x_ld, const typename V::A* write,
                                   int64_t d, int64_t k, const typename V::A* coef,
                                   typename V::A* y, int64_t y_ld, int64_t j, int64_t end,
                                   V* square, const Ahead& ahead) {
  for (; j + C * V::kLanes <= end; j += C * V::kLanes) {
    if constexpr (R >= 4) {
      const char* next = opaque(ahead.at + j * ahead.item);
      CLIPPROJ_UNROLL for (int r = 0; r < R; ++r) {
        for (int64_t b = 0; b < C * V::kLanes * ahead.item; b += kLine) {
          __builtin_prefetch(next + b, 0, 2);
        }
        next = opaque(next + ahead.row);
      }
    }
    update_block<V, R, C>(x + j, x_ld, write + j, d, k, coef, y + j, y_ld, square);
  }
  if (j >= end) return;
  if constexpr (C > 1) {
    update_blocks<V, R, C / 2>(x, x_ld, write, d, k, coef, y, y_ld, j, end, square, ahead);
  } else {
    update_block<V, R, 1>(x + j, x_ld, write + j, d, k, coef, y + j, y_ld, square, end - j);
  }
}

// As above, without squares.
template <class V, int R>
CLIPPROJ_NOINLINE void update_rows(const typename V::A* x, int64_t x_ld, const typename V::A* write,
                                   int64_t d, int64_t k, const typename V::A* coef,
                                   typename V::A* y, int64_t y_ld, int64_t j, int64_t end,
                                   const Ahead& ahead) {
  update_blocks<V, R>(x, x_ld, write, d, k, coef, y, y_ld, j, end, static_cast<V*>(nullptr), ahead);
}

// All columns; squares[r] <- y[r] . y[r].
template <class V, int R>
CLIPPROJ_NOINLINE void update_and_measure_rows(const typename V::A* x, int64_t x_ld,
                                               const typename V::A* write, int64_t d, int64_t k,
                                               const typename V::A* coef, typename V::A* y,
                                               int64_t y_ld, typename V::A* squares,
                                               const Ahead& ahead) {
  V sum[R];
  CLIPPROJ_UNROLL for (int r = 0; r < R; ++r) sum[r] = V::zero();
  update_blocks<V, R>(x, x_ld, write, d, k, coef, y, y_ld, 0, d, sum, ahead);
  V::template sums<R>(sum, squares);
}

// sums[r] <- y[r] . y[r], with the bits of the squares that update_blocks gathers.
template <class V, int R>
void square_rows(const typename V::A* y, int64_t ld, int64_t d, typename V::A* sums) {
  V square[R];
  CLIPPROJ_UNROLL for (int r = 0; r < R; ++r) square[r] = V::zero();
  for (int64_t j = 0; j < d; j += V::kLanes) {
    CLIPPROJ_UNROLL for (int r = 0; r < R; ++r) {
      const V v = V::load(y + r * ld + j);
      square[r] = V::fma(v, v, square[r]);
    }
  }
  V::template sums<R>(square, sums);
}
