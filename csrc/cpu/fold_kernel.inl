// SPDX-License-Identifier: Apache-2.0
// A' = A - W^T (s R A) in place for a weight [d, n] of which whole columns are projected (fold_ of
// an nn.Linear). As in blocks.inl each factor that is loaded serves a block of sums in registers,
// but lanes run along the n columns, as memory does. Included once per instruction set.
//
// A panel of columns goes through both products in turn; each reads it along memory, which strides
// that are a power of two would otherwise turn into cache misses. Sums run over kChunk rows in
// registers, then over chunks: the bits of a column depend neither on n nor on the thread count.

constexpr int64_t kPanelBytes = 512;  // of one row of a panel
constexpr int64_t kChunk = 32;        // rows summed in registers
constexpr int kFoldFactors = 4;       // that share each vector loaded

// Vectors of columns that share each factor loaded.
template <class V>
constexpr int kFoldVectors = V::kSums / kFoldFactors;

// dots[g, v] (+)= read[g, j..end) . a[j..end), for G directions and `lanes` of U vectors.
template <class V, int G, int U, class T, class... Lanes>
CLIPPROJ_NOINLINE void fold_dots(const T* a, int64_t a_row, const typename V::A* read, int64_t d,
                                 int64_t count, typename V::A* dots, int64_t dots_row, bool add,
                                 Lanes... lanes) {
  V sum[G * U];
  CLIPPROJ_UNROLL for (int i = 0; i < G * U; ++i) sum[i] = V::zero();
  for (int64_t j = 0; j < count; ++j) {
    V v[U];
    CLIPPROJ_UNROLL for (int u = 0; u < U; ++u) v[u] = V::load(a + u * V::kLanes, lanes...).held();
    CLIPPROJ_UNROLL for (int g = 0; g < G; ++g) {
      const V f = V::set1(read[g * d + j]).held();
      CLIPPROJ_UNROLL for (int u = 0; u < U; ++u) sum[g * U + u] = V::fma(v[u], f, sum[g * U + u]);
    }
    a += a_row;
  }
  CLIPPROJ_UNROLL for (int g = 0; g < G; ++g) {
    CLIPPROJ_UNROLL for (int u = 0; u < U; ++u) {
      typename V::A* to = dots + g * dots_row + u * V::kLanes;
      (add ? V::load(to) + sum[g * U + u] : sum[g * U + u]).store(to);
    }
  }
}

// a[j] -= write[:, j] . dots for J rows of the weight and `lanes` of U vectors.
template <class V, int J, int U, class T, class... Lanes>
CLIPPROJ_NOINLINE void fold_update(T* a, int64_t a_row, const typename V::A* write, int64_t d,
                                   int64_t k, const typename V::A* dots, int64_t dots_row,
                                   Lanes... lanes) {
  V sum[J * U];
  CLIPPROJ_UNROLL for (int i = 0; i < J * U; ++i) sum[i] = V::zero();
  for (int64_t g = 0; g < k; ++g) {
    V v[U];
    CLIPPROJ_UNROLL for (int u = 0; u < U; ++u) v[u] = V::load(dots + u * V::kLanes).held();
    CLIPPROJ_UNROLL for (int j = 0; j < J; ++j) {
      const V f = V::set1(write[j]).held();
      CLIPPROJ_UNROLL for (int u = 0; u < U; ++u) sum[j * U + u] = V::fma(v[u], f, sum[j * U + u]);
    }
    dots += dots_row;
    write += d;
  }
  CLIPPROJ_UNROLL for (int j = 0; j < J; ++j) {
    CLIPPROJ_UNROLL for (int u = 0; u < U; ++u) {
      T* at = a + u * V::kLanes;
      (V::load(at, lanes...) - sum[j * U + u]).store(at, lanes...);
    }
    a = opaque(a + a_row);
  }
}

// f(U, first column, lanes...) for blocks of U vectors of columns, then for single ones,
// the last of which may be cut short.
template <class V, class F>
void for_vectors(int64_t columns, F f) {
  constexpr int U = kFoldVectors<V>;
  constexpr int64_t wide = U * V::kLanes;
  int64_t c = 0;
  for (; c + wide <= columns; c += wide) f(std::integral_constant<int, U>{}, c);
  for (; c + V::kLanes <= columns; c += V::kLanes) f(std::integral_constant<int, 1>{}, c);
  if (c < columns) f(std::integral_constant<int, 1>{}, c, columns - c);
}

// Columns [begin, end) of the weight, on one thread.
template <class V, class T>
void fold_columns(const ProjectParams<typename V::A>& p, int64_t begin, int64_t end) {
  using A = typename V::A;
  constexpr int B = kFoldFactors;
  constexpr int64_t kPanel = kPanelBytes / sizeof(A);
  const int64_t d = p.d, k = p.k;
  Scratch<A> scratch(k * kPanel);
  A* dots = scratch.get();
  for (int64_t first = begin; first < end; first += kPanel) {
    T* a = static_cast<T*>(p.out) + first;
    const int64_t columns = std::min(kPanel, end - first);
    for (int64_t j = 0; j < d; j += kChunk) {
      const int64_t count = std::min(kChunk, d - j);
      for_vectors<V>(columns, [&](auto vectors, int64_t c, auto... lanes) {
        constexpr int U = decltype(vectors)::value;
        const T* from = a + j * p.x_col + c;
        int64_t g = 0;
        for (; g + B <= k; g += B) {
          fold_dots<V, B, U>(from, p.x_col, p.read + g * d + j, d, count, dots + g * kPanel + c,
                             kPanel, j > 0, lanes...);
        }
        for (; g < k; ++g) {
          fold_dots<V, 1, U>(from, p.x_col, p.read + g * d + j, d, count, dots + g * kPanel + c,
                             kPanel, j > 0, lanes...);
        }
      });
    }
    for (int64_t g = 0; p.strength && g < k; ++g) {
      A* row = dots + g * kPanel;
      for (int64_t c = 0; c < columns; c += V::kLanes) {
        (V::load(row + c) * V::set1(*p.strength)).store(row + c);
      }
    }
    int64_t j = 0;
    for (; j + B <= d; j += B) {
      for_vectors<V>(columns, [&](auto vectors, int64_t c, auto... lanes) {
        fold_update<V, B, decltype(vectors)::value>(a + j * p.x_col + c, p.x_col, p.write + j, d, k,
                                                    dots + c, kPanel, lanes...);
      });
    }
    for (; j < d; ++j) {
      for_vectors<V>(columns, [&](auto vectors, int64_t c, auto... lanes) {
        fold_update<V, 1, decltype(vectors)::value>(a + j * p.x_col + c, p.x_col, p.write + j, d, k,
                                                    dots + c, kPanel, lanes...);
      });
    }
  }
}
