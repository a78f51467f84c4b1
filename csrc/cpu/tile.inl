// SPDX-License-Identifier: Apache-2.0
// Rows between memory of any dtype and stride and a tile [rows, ld] of the accumulator type.
// Columns d.. of a tile are zero up to a whole vector, so that later loops need no tail for them.

// Rows that fill a cache line when neighbouring rows, not columns, are adjacent in memory.
template <class V>
constexpr int64_t kStridedRows = 64 / sizeof(typename V::A);

// The pitch of a tile's rows: whole vectors, and off the powers of two at which the rows of a tile
// would compete for the same sets of the first-level cache.
template <class V>
int64_t tile_pitch(int64_t d) {
  return (d + V::kLanes - 1) / V::kLanes * V::kLanes + 64 / sizeof(typename V::A);
}

// Neighbouring rows adjacent in memory: lanes x lanes at a time, turned round in registers. The
// rows of the next tile are fetched meanwhile: their lines lie far apart, where no prefetcher
// looks.
template <class V, class T>
void load_columns(const T* x, int64_t x_col, int64_t rows, int64_t d, typename V::A* tile,
                  int64_t ld) {
  constexpr int64_t L = V::kLanes;
  for (int64_t j = 0; j < d; j += L) {
    const int64_t columns = std::min(L, d - j);
    for (int64_t c = 0; c < columns; ++c) {
      __builtin_prefetch(x + (j + c) * x_col + kStridedRows<V>, 0, 2);
    }
    for (int64_t r = 0; r < rows; r += L) {
      const int64_t left = std::min(L, rows - r);
      const T* from = x + j * x_col + r;
      typename V::A* to = tile + r * ld + j;
      V v[L];
      if (columns == L && left == L) {
        CLIPPROJ_UNROLL for (int64_t c = 0; c < L; ++c) v[c] = V::load(from + c * x_col);
        V::transpose(v);
        CLIPPROJ_UNROLL for (int64_t i = 0; i < L; ++i) v[i].store(to + i * ld);
      } else {
        for (int64_t c = 0; c < L; ++c) {
          v[c] = c < columns ? V::load(from + c * x_col, left) : V::zero();
        }
        V::transpose(v);
        for (int64_t i = 0; i < left; ++i) v[i].store(to + i * ld);
      }
    }
  }
}

template <class V, class T>
void store_columns(const typename V::A* tile, int64_t ld, int64_t rows, int64_t d,
                   const typename V::A* scale, T* out, int64_t out_col) {
  constexpr int64_t L = V::kLanes;
  for (int64_t j = 0; j < d; j += L) {
    const int64_t columns = std::min(L, d - j);
    for (int64_t r = 0; r < rows; r += L) {
      const int64_t left = std::min(L, rows - r);
      const typename V::A* from = tile + r * ld + j;
      T* to = out + j * out_col + r;
      V v[L];
      if (columns == L && left == L) {
        CLIPPROJ_UNROLL for (int64_t i = 0; i < L; ++i) {
          v[i] = V::load(from + i * ld) * V::set1(scale[r + i]);
        }
        V::transpose(v);
        CLIPPROJ_UNROLL for (int64_t c = 0; c < L; ++c) v[c].store(to + c * out_col);
      } else {
        for (int64_t i = 0; i < L; ++i) {
          v[i] = i < left ? V::load(from + i * ld) * V::set1(scale[r + i]) : V::zero();
        }
        V::transpose(v);
        for (int64_t c = 0; c < columns; ++c) v[c].store(to + c * out_col, left);
      }
    }
  }
}

// tile <- x, widened.
template <class V, class T>
void load_tile(const T* x, int64_t x_row, int64_t x_col, int64_t rows, int64_t d,
               typename V::A* tile, int64_t ld) {
  if (x_col == 1) {
    for (int64_t r = 0; r < rows; ++r) {
      const T* from = x + r * x_row;
      typename V::A* to = tile + r * ld;
      int64_t j = 0;
      for (; j + V::kLanes <= d; j += V::kLanes) V::load(from + j).store(to + j);
      if (j < d) V::load(from + j, d - j).store(to + j);
    }
  } else if (x_row == 1) {
    load_columns<V>(x, x_col, rows, d, tile, ld);
  } else {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t j = 0; j < d; ++j) {
        tile[r * ld + j] = static_cast<typename V::A>(x[r * x_row + j * x_col]);
      }
      for (int64_t j = d; j % V::kLanes != 0; ++j) tile[r * ld + j] = 0;
    }
  }
}

// One row times its scale, rounded. `stream` goes past the caches.
template <class V, class T>
void store_row(const typename V::A* y, int64_t d, typename V::A scale, T* out, bool stream) {
  const V s = V::set1(scale);
  int64_t j = 0;
  if (stream) {
    for (; j + V::kLanes <= d; j += V::kLanes) (V::load(y + j) * s).stream(out + j);
  } else {
    for (; j + V::kLanes <= d; j += V::kLanes) (V::load(y + j) * s).store(out + j);
  }
  if (j < d) (V::load(y + j, d - j) * s).store(out + j, d - j);
}

// out <- tile, each row times its scale, rounded once. `out` may be the tile.
template <class V, class T>
void store_tile(const typename V::A* tile, int64_t ld, int64_t rows, int64_t d,
                const typename V::A* scale, T* out, int64_t out_row, int64_t out_col, bool stream) {
  if (out_col == 1) {
    for (int64_t r = 0; r < rows; ++r) {
      store_row<V>(tile + r * ld, d, scale[r], out + r * out_row, stream);
    }
  } else if (out_row == 1) {
    store_columns<V>(tile, ld, rows, d, scale, out, out_col);
  } else {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t j = 0; j < d; ++j) {
        out[r * out_row + j * out_col] = static_cast<T>(tile[r * ld + j] * scale[r]);
      }
    }
  }
}
