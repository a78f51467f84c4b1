// SPDX-License-Identifier: Apache-2.0
// x' = x - s (x R^T - c) W, then x' / max(|x'|, 1e-12) when asked. Included once per instruction
// set, after that set's `Vec` (lanes of the accumulator type), inside that set's namespace.
//
// A block of rows stays in the first-level cache through both products and the norm, and is rounded
// once, at the store: x is read once and written once. float32 rows that lie in memory as a tile
// would are read, and in the end scaled, where they are; others go through a tile.
// All operators come through here but fold_ along dim 0 (fold_kernel.inl).
#include "blocks.inl"
#include "tile.inl"

constexpr double kNormEps = 1e-12;  // as torch.nn.functional.normalize

// A result of this size would push everything else out of the last-level cache on its way to
// memory: it is written past it, unless it is written over x.
constexpr int64_t kStreamBytes = int64_t{8} << 20;

// f(R, first row) for blocks of kRows rows, then of half as many, down to one.
template <int R, class F>
void for_blocks(int64_t row, int64_t rows, F f) {
  for (; row + R <= rows; row += R) f(std::integral_constant<int, R>{}, row);
  if constexpr (R > 1) {
    if (row < rows) for_blocks<R / 2>(row, rows, f);
  }
}

// Whether coefficients are more than their own affair: those of solve.inl.
template <class A>
bool is_solved(const ProjectParams<A>& p) {
  return p.gram && !p.clamps;
}

// coef <- strength max(coef - offset, 0), for directions [g, end) of rows row..row+R of the
// problem; NaN stays NaN.
template <class V, int R>
void clamp_coef(const ProjectParams<typename V::A>& p, int64_t row, typename V::A* coef, int64_t g,
                int64_t end) {
  using A = typename V::A;
  A s[R];
  for (int r = 0; r < R; ++r) s[r] = p.strength ? p.strength[(row + r) * p.strength_row] : A(1);
  for (; g < end; ++g) {
    const A c = p.offset ? p.offset[g] : A(0);
    for (int r = 0; r < R; ++r) {
      const A excess = coef[g * R + r] - c;
      coef[g * R + r] = s[r] * (A(0) > excess ? A(0) : excess);
    }
  }
}

// coef <- strength (coef - offset), or where gram is diagonal clamp_coef.
template <class V, int R>
void scale_coef(const ProjectParams<typename V::A>& p, int64_t row, typename V::A* coef, int64_t g,
                int64_t end) {
  using A = typename V::A;
  if (p.clamps) return clamp_coef<V, R>(p, row, coef, g, end);
  if (!p.strength && !p.offset) return;
  A s[R];
  for (int r = 0; r < R; ++r) s[r] = p.strength ? p.strength[(row + r) * p.strength_row] : A(1);
  for (; g < end; ++g) {
    const A c = p.offset ? p.offset[g] : A(0);
    for (int r = 0; r < R; ++r) coef[g * R + r] = s[r] * (coef[g * R + r] - c);
  }
}

#include "solve.inl"

// From the sum of squares of a projected row to its length, which is returned, and the factor that
// normalises it. A sum that leaves the type's range is taken again relative to the largest element;
// `y` is then left divided by that.
template <class A>
A row_norm(A square, A* y, int64_t d, A* scale) {
  A unit = 1;
  if (square > std::numeric_limits<A>::max()) {  // NaN stays NaN
    for (int64_t j = 0; j < d; ++j) unit = std::max(unit, std::abs(y[j]));
    square = unit;
    if (!std::isinf(unit)) {
      square = 0;
      for (int64_t j = 0; j < d; ++j) {
        y[j] /= unit;
        square += y[j] * y[j];
      }
    }
  }
  const A norm = std::sqrt(square);
  *scale = 1 / (norm > A(kNormEps) || norm != norm ? norm : A(kNormEps));
  return norm * unit;
}

// Whether rows are written past the caches, which whole vectors at their own alignment allow.
template <class V, class T>
bool streams(const ProjectParams<typename V::A>& p) {
  const int64_t row = p.out_row * static_cast<int64_t>(sizeof(T));
  const bool aligned = (reinterpret_cast<uintptr_t>(p.out) | row) % (V::kLanes * sizeof(T)) == 0;
  return p.out && p.out != p.x && p.out_col == 1 && aligned &&
         p.n * p.d * static_cast<int64_t>(sizeof(T)) >= kStreamBytes;
}

// Rows of a tile, at most.
template <class V>
constexpr int64_t kMostRows = std::max(kStridedRows<V>, kSolveRows<V>);

// The end of every path: lengths, and rows `y` scaled and rounded to their place.
template <class V, class T>
void finish(const ProjectParams<typename V::A>& p, int64_t first, int64_t rows, typename V::A* y,
            int64_t ld, const typename V::A* square, bool stream) {
  using A = typename V::A;
  A scale[kMostRows<V>];
  for (int64_t r = 0; r < rows; ++r) {
    scale[r] = 1;
    if (p.normalize || p.norm) {
      const A norm = row_norm(square[r], y + r * ld, p.d, &scale[r]);
      if (p.norm) p.norm[first + r] = norm;
    }
    if (p.scale) scale[r] *= *p.scale;
  }
  T* out = static_cast<T*>(p.out) + first * p.out_row;
  const bool there = static_cast<void*>(y) == static_cast<void*>(out);
  if (!p.out || (there && !p.normalize && !p.scale)) return;
  store_tile<V>(y, ld, rows, p.d, scale, out, p.out_row, p.out_col, stream);
}

// How many rows go through both products together: a whole block, which loads the factors least
// often, or half of one where that leaves room for the factors beside it in the first-level cache.
template <class V, class T>
int64_t block_rows(const ProjectParams<typename V::A>& p) {
  if (is_solved(p)) return kSolveRows<V>;
  constexpr int64_t kFactorBytes = 32 << 10, kTileBytes = 32 << 10;
  using A = typename V::A;
  const int64_t row = p.d * static_cast<int64_t>(sizeof(A));
  const bool light = p.k * row <= kFactorBytes;
  const bool large = std::is_same_v<T, A> || V::kRows * row > kTileBytes;
  return light && large ? std::min(V::kRows, 4) : V::kRows;
}

// Rows [begin, end) by one projector, on one thread.
template <class V, class T>
void project_range(const ProjectParams<typename V::A>& p, int64_t begin, int64_t end) {
  using A = typename V::A;
  const T* x = static_cast<const T*>(p.x);
  T* out = static_cast<T*>(p.out);
  const bool stream = streams<V, T>(p), measured = p.normalize || p.norm;
  const bool adjacent = p.x_col == 1 && (!out || p.out_col == 1);
  const bool from_x = std::is_same_v<T, A> && p.x_col == 1;
  const bool to_out = std::is_same_v<T, A> && out && p.out_col == 1 && !stream;
  const int64_t step =
      std::min<int64_t>(end - begin, adjacent ? block_rows<V, T>(p) : kStridedRows<V>);
  const int64_t ld = tile_pitch<V>(p.d);
  const bool solved = is_solved(p);
  Scratch<A> tile_memory(from_x && to_out ? 0 : step * ld);
  Scratch<A> coef_memory((solved ? step : V::kRows) * p.k);
  Scratch<A> solve_memory(solved ? solve_scratch<V>(p.k) : 0);
  A *tile = tile_memory.get(), square[kMostRows<V>];

  for (int64_t first = begin; first < end; first += step) {
    const int64_t rows = std::min(step, end - first);
    const T* from = x + first * p.x_row;
    const A* source = from_x ? reinterpret_cast<const A*>(from) : tile;
    A* target = to_out ? reinterpret_cast<A*>(out + first * p.out_row) : tile;
    const int64_t source_ld = from_x ? p.x_row : ld, target_ld = to_out ? p.out_row : ld;
    if (!from_x) load_tile<V>(from, p.x_row, p.x_col, rows, p.d, tile, ld);
    const auto dots = [&](auto block, int64_t r, A* coef) {
      constexpr int R = decltype(block)::value;
      dot_blocks<V, R>(source + r * source_ld, source_ld, p.read, p.d, coef, 0, p.k);
    };
    if (solved) {
      A* coef = coef_memory.get();
      for_blocks<V::kRows>(0, rows, [&](auto block, int64_t r) { dots(block, r, coef + r * p.k); });
      solve_rows<V>(p, first, rows, coef, solve_memory.get());
    }
    for_blocks<V::kRows>(0, rows, [&](auto block, int64_t r) {
      constexpr int R = decltype(block)::value;
      const A* rows_of_x = source + r * source_ld;
      A* y = target + r * target_ld;
      A* coef = coef_memory.get() + (solved ? r * p.k : 0);
      if (!solved) {
        dots(block, r, coef);
        scale_coef<V, R>(p, first + r, coef, 0, p.k);
      }
      const Ahead ahead = adjacent
                              ? Ahead{reinterpret_cast<const char*>(from + (r + step) * p.x_row),
                                      p.x_row * static_cast<int64_t>(sizeof(T)), sizeof(T)}
                              : nothing_ahead(y);
      if (measured) {
        update_and_measure_rows<V, R>(rows_of_x, source_ld, p.write, p.d, p.k, coef, y, target_ld,
                                      square + r, ahead);
      } else {
        update_rows<V, R>(rows_of_x, source_ld, p.write, p.d, p.k, coef, y, target_ld, 0, p.d,
                          ahead);
      }
    });
    finish<V, T>(p, first, rows, target, target_ld, square, stream);
  }
  if (stream) V::fence();
}

// All rows, when they are too few to occupy the threads: each step of the work is split along the
// directions or the columns too. Every sum is made whole by one thread, in the order of
// project_range.
template <class V, class T>
void project_split(const ProjectParams<typename V::A>& p, int64_t threads,
                   ParallelFor parallel_for) {
  using A = typename V::A;
  constexpr int64_t kDirections = 2 * V::kRows, kColumns = V::kSums * V::kLanes;  // of one piece
  const int64_t blocks = (p.n + V::kRows - 1) / V::kRows, ld = tile_pitch<V>(p.d);
  const int64_t groups = (p.k + kDirections - 1) / kDirections;
  const int64_t panels = (p.d + kColumns - 1) / kColumns;
  const bool solved = is_solved(p);
  Scratch<A> tile_memory(p.n * ld), coef_memory(p.n * p.k);
  A *tile = tile_memory.get(), *coef = coef_memory.get();

  // body(block, piece) for all pieces of all blocks of rows.
  auto in_pieces = [&](int64_t pieces, auto body) {
    auto range = [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) body(i / pieces, i % pieces);
    };
    parallel_for(
        threads, blocks * pieces,
        [](void* f, int64_t begin, int64_t end) {
          (*static_cast<decltype(range)*>(f))(begin, end);
        },
        &range);
  };
  // Rows row..row+R of a block, with their place in the tile and among the coefficients.
  auto for_rows = [&](int64_t block, auto body) {
    const int64_t first = block * V::kRows;
    for_blocks<V::kRows>(
        first, std::min<int64_t>(first + V::kRows, p.n),
        [&](auto size, int64_t row) { body(size, row, tile + row * ld, coef + row * p.k); });
  };

  in_pieces(1, [&](int64_t block, int64_t) {
    const int64_t first = block * V::kRows, rows = std::min<int64_t>(V::kRows, p.n - first);
    load_tile<V>(static_cast<const T*>(p.x) + first * p.x_row, p.x_row, p.x_col, rows, p.d,
                 tile + first * ld, ld);
  });
  in_pieces(groups, [&](int64_t block, int64_t group) {
    const int64_t g = group * kDirections, end = std::min(g + kDirections, p.k);
    for_rows(block, [&](auto size, int64_t row, A* y, A* c) {
      constexpr int R = decltype(size)::value;
      dot_blocks<V, R>(y, ld, p.read, p.d, c, g, end);
      if (!solved) scale_coef<V, R>(p, row, c, g, end);
    });
  });
  if (solved) {
    in_pieces(1, [&](int64_t block, int64_t) {
      Scratch<A> scratch(solve_scratch<V>(p.k));
      const int64_t first = block * V::kRows, rows = std::min<int64_t>(V::kRows, p.n - first);
      solve_rows<V>(p, first, rows, coef + first * p.k, scratch.get());
    });
  }
  in_pieces(panels, [&](int64_t block, int64_t panel) {
    const int64_t j = panel * kColumns, end = std::min(j + kColumns, p.d);
    for_rows(block, [&](auto size, int64_t, A* y, A* c) {
      constexpr int R = decltype(size)::value;
      update_rows<V, R>(y, ld, p.write, p.d, p.k, c, y, ld, j, end, nothing_ahead(y));
    });
  });
  in_pieces(1, [&](int64_t block, int64_t) {
    for_rows(block, [&](auto size, int64_t row, A* y, A*) {
      constexpr int R = decltype(size)::value;
      A square[R];
      square_rows<V, R>(y, ld, p.d, square);
      finish<V, T>(p, row, R, y, ld, square, false);
    });
  });
}
