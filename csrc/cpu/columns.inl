// SPDX-License-Identifier: Apache-2.0
// Rows that are adjacent in memory (fold_ along dim 0), when there are too few directions to pay
// for turning them round: each lane is a row. The sums are those of blocks.inl, one after another:
// a sum has V::kLanes parts there, lane by lane, and V::kLanes vectors here, so bits are the same.

// The sum of N vectors, halves first, as V::sums adds up the lanes of one.
template <class V, int N>
CLIPPROJ_INLINE V add_up(V* v) {
  if constexpr (N == 1) return v[0];
  CLIPPROJ_UNROLL for (int i = 0; i < N / 2; ++i) v[i] = v[i] + v[i + N / 2];
  return add_up<V, std::max(N / 2, 1)>(v);
}

// coef[g, 0..L) <- strength (x . read[g] - offset) for `rows` <= L rows from `first` on.
template <class V, class T>
void dot_columns(const ProjectParams<typename V::A>& p, int64_t first, int64_t rows,
                 typename V::A* tile, typename V::A* coef, int64_t coef_ld) {
  using A = typename V::A;
  constexpr int64_t L = V::kLanes;
  const int64_t d = p.d, whole = d / L * L;
  const T* from = static_cast<const T*>(p.x) + first;
  for (int64_t j = 0; j < d; ++j) {
    __builtin_prefetch(from + L, 0, 2);  // for the next call: no prefetcher follows such strides
    (rows == L ? V::load(from) : V::load(from, rows)).store(tile + j * L);
    from += p.x_col;
  }
  for (int64_t j = d; j < whole + L; ++j) V::zero().store(tile + j * L);

  A strength[L] = {};
  for (int64_t r = 0; r < rows && p.strength; ++r) {
    strength[r] = p.strength[(first + r) * p.strength_row];
  }
  for (int64_t g = 0; g < p.k; ++g) {
    const A* read = p.read + g * d;
    A rest[L] = {};  // of `read`, after whole vectors
    for (int64_t j = whole; j < d; ++j) rest[j - whole] = read[j];
    V sum[L];
    CLIPPROJ_UNROLL for (int64_t c = 0; c < L; ++c) sum[c] = V::zero();
    for (int64_t j = 0; j < d; j += L) {
      const A* f = j < whole ? read + j : rest;
      CLIPPROJ_UNROLL for (int64_t c = 0; c < L; ++c) {
        sum[c] = V::fma(V::load(tile + (j + c) * L), V::set1(f[c]), sum[c]);
      }
    }
    V dot = add_up<V, L>(sum);
    if (p.offset) dot = dot - V::set1(p.offset[g]);
    if (p.strength) dot = V::load(strength) * dot;
    dot.store(coef + g * coef_ld);
  }
}

// Columns j..j+C of the result for `rows` rows, which share each loaded coefficient.
template <class V, int C, class T>
void update_columns(const ProjectParams<typename V::A>& p, int64_t first, int64_t rows, int64_t j,
                    const typename V::A* coef, int64_t coef_ld) {
  for (int64_t r = 0; r < rows; r += V::kLanes) {
    const int64_t left = std::min<int64_t>(V::kLanes, rows - r);
    V sum[C];
    CLIPPROJ_UNROLL for (int c = 0; c < C; ++c) sum[c] = V::zero();
    for (int64_t g = 0; g < p.k; ++g) {
      const typename V::A* write = p.write + g * p.d + j;
      const V v = V::load(coef + g * coef_ld + r).held();
      CLIPPROJ_UNROLL for (int c = 0; c < C; ++c) sum[c] = V::fma(v, V::set1(write[c]), sum[c]);
    }
    const T* x = static_cast<const T*>(p.x) + first + r + j * p.x_col;
    T* out = static_cast<T*>(p.out) + first + r + j * p.out_col;
    CLIPPROJ_UNROLL for (int c = 0; c < C; ++c) {
      if (left == V::kLanes) {
        (V::load(x) - sum[c]).store(out);
      } else {
        (V::load(x, left) - sum[c]).store(out, left);
      }
      x = opaque(x + p.x_col);
      out = opaque(out + p.out_col);
    }
  }
}

// Rows [begin, end). The first product takes a vector of rows at a time, all columns; the second
// takes columns, along which memory runs, for as many rows as the coefficients are kept of.
template <class V, class T>
void project_columns(const ProjectParams<typename V::A>& p, int64_t begin, int64_t end) {
  using A = typename V::A;
  constexpr int64_t kRowsKept = 256, kColumns = 8;
  const int64_t step = std::min(end - begin, kRowsKept);
  const int64_t ld = (step + V::kLanes - 1) / V::kLanes * V::kLanes;
  Scratch<A> tile((p.d + V::kLanes) * V::kLanes), coef(p.k * ld);
  for (int64_t first = begin; first < end; first += step) {
    const int64_t rows = std::min(step, end - first);
    for (int64_t r = 0; r < rows; r += V::kLanes) {
      dot_columns<V, T>(p, first + r, std::min<int64_t>(V::kLanes, rows - r), tile.get(),
                        coef.get() + r, ld);
    }
    int64_t j = 0;
    for (; j + kColumns <= p.d; j += kColumns) {
      update_columns<V, kColumns, T>(p, first, rows, j, coef.get(), ld);
    }
    for (; j < p.d; ++j) update_columns<V, 1, T>(p, first, rows, j, coef.get(), ld);
  }
}
