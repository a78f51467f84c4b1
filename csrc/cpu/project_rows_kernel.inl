// SPDX-License-Identifier: Apache-2.0
// Each row by its own projector, for project_rows and banks in linear and logits. Included after
// project_kernel.inl, with whose steps a row gets the bits that its own projector would give it
// alone.

// How many of the rows order[0..most) lie at one distance from each other: they are a block of rows
// as any. One or two always are.
inline int64_t evenly_spaced(const int64_t* order, int64_t most) {
  int64_t rows = std::min<int64_t>(most, 2);
  while (rows < most && order[rows] - order[rows - 1] == order[1] - order[0]) ++rows;
  return rows;
}

// Rows that keep their bits, whatever they hold.
template <class V, class T>
void copy_rows(const ProjectParams<typename V::A>& p, const int64_t* order, int64_t count) {
  if (p.out == p.x && p.out_row == p.x_row && p.out_col == p.x_col) return;
  for (int64_t i = 0; i < count; ++i) {
    const T* from = static_cast<const T*>(p.x) + order[i] * p.x_row;
    T* to = static_cast<T*>(p.out) + order[i] * p.out_row;
    if (p.x_col == 1 && p.out_col == 1) {
      std::memcpy(static_cast<void*>(to), from, p.d * sizeof(T));
    } else {
      for (int64_t j = 0; j < p.d; ++j) to[j * p.out_col] = from[j * p.x_col];
    }
  }
}

// Towards the second-level cache: the row of a later block.
template <class T, class A>
void fetch_row(const ProjectParams<A>& p, int64_t row) {
  const char* at = reinterpret_cast<const char*>(static_cast<const T*>(p.x) + row * p.x_row);
  for (int64_t b = 0; b < p.d * static_cast<int64_t>(sizeof(T)); b += kLine) {
    __builtin_prefetch(at + b, 0, 2);
  }
}

// Rows order[0..count) of a bank, on one thread; those of a projector follow each other.
template <class V, class T>
void project_rows(const ProjectParams<typename V::A>& bank, const int64_t* order, const Span* spans,
                  int64_t count) {
  using A = typename V::A;
  const bool stream = streams<V, T>(bank), measured = bank.normalize || bank.norm;
  const bool without_tile =
      std::is_same_v<T, A> && bank.x_col == 1 && bank.out && bank.out_col == 1 && !stream;
  const bool far = stream && bank.x_col == 1;  // rows come from memory, where no prefetcher looks
  const int64_t ld = tile_pitch<V>(bank.d);
  int64_t rank = 0;
  for (int64_t i = 0; i < count; ++i)
    rank = std::max<int64_t>(rank, std::abs(int64_t{spans[i].rank}));
  Scratch<A> tile_memory(V::kRows * ld), coef_memory(V::kRows * rank);
  Scratch<A> solve_memory(bank.gram ? solve_scratch<V>(rank) : 0);
  A *tile = tile_memory.get(), *coef = coef_memory.get(), square[V::kRows], strength[V::kRows];

  for (int64_t i = 0, end = 0; i < count; i = end) {
    const int32_t j = bank.index[order[i]];
    while (end < count && bank.index[order[end]] == j) ++end;
    const ProjectParams<A> p = with_clamps(projector(bank, spans[i]));
    if (p.k == 0 && !measured && !p.scale) {
      copy_rows<V, T>(p, order + i, end - i);
      continue;
    }
    const bool light = block_rows<V, T>(p) < V::kRows;
    for (int64_t rows = 0; i < end; i += rows) {
      const int64_t* row = order + i;
      rows = 1;
      while (i + rows < end && row[rows] == row[0] + rows) ++rows;
      if (rows >= kStridedRows<V>) {  // neighbours
        project_range<V, T>(p, row[0], row[0] + rows);
        continue;
      }
      rows = std::min<int64_t>(end - i, V::kRows);
      const int64_t even = evenly_spaced(row, rows);
      const bool there = without_tile && (even == rows || light);
      const A* source = tile;
      A* target = tile;
      int64_t source_ld = ld, target_ld = ld;
      if (there) {
        rows = even;
        source = static_cast<const A*>(p.x) + row[0] * p.x_row;
        target = static_cast<A*>(p.out) + row[0] * p.out_row;
        source_ld = rows > 1 ? (row[1] - row[0]) * p.x_row : 0;
        target_ld = rows > 1 ? (row[1] - row[0]) * p.out_row : 0;
      } else {
        for (int64_t r = 0; r < rows; ++r) {
          if (far && i + rows + r < count) fetch_row<T>(bank, row[rows + r]);
          load_tile<V>(static_cast<const T*>(p.x) + row[r] * p.x_row, p.x_row, p.x_col, 1, p.d,
                       tile + r * ld, ld);
        }
      }
      ProjectParams<A> block = p;  // rows 0, 1, ..
      if (p.strength) {
        for (int64_t r = 0; r < rows; ++r) strength[r] = p.strength[row[r] * p.strength_row];
        block.strength = strength;
        block.strength_row = 1;
      }
      for_blocks<V::kRows>(0, rows, [&](auto size, int64_t r) {
        constexpr int R = decltype(size)::value;
        dot_blocks<V, R>(source + r * source_ld, source_ld, p.read, p.d, coef + r * p.k, 0, p.k);
        if (!is_solved(p)) scale_coef<V, R>(block, r, coef + r * p.k, 0, p.k);
      });
      if (is_solved(p)) solve_rows<V>(block, 0, rows, coef, solve_memory.get());
      for_blocks<V::kRows>(0, rows, [&](auto size, int64_t r) {
        constexpr int R = decltype(size)::value;
        const A *x = source + r * source_ld, *c = coef + r * p.k;
        A* y = target + r * target_ld;
        if (measured) {
          update_and_measure_rows<V, R>(x, source_ld, p.write, p.d, p.k, c, y, target_ld,
                                        square + r, nothing_ahead(y));
        } else {
          update_rows<V, R>(x, source_ld, p.write, p.d, p.k, c, y, target_ld, 0, p.d,
                            nothing_ahead(y));
        }
      });
      for (int64_t r = 0; r < rows; ++r) {
        finish<V, T>(p, row[r], 1, target + r * target_ld, ld, square + r, stream);
      }
    }
  }
  if (stream) V::fence();
}
