// SPDX-License-Identifier: Apache-2.0
// x' = x - s (x R^T - c) W, then x' / max(|x'|, 1e-12) when asked. Included once per instruction
// set, after that set's `Vec` (lanes of the accumulator type), inside that set's namespace.
//
// A tile of rows is widened to the accumulator type once, stays in the first-level cache through
// both products and the norm, and is rounded once, at the store: x is read once and written once.
// `project`, `project_`, `fold_` and `projected_norm` all come through here, so a weight folded
// along either dim and a feature projected on the fly get the same arithmetic.
//
// Each row's sums run over d in one order (lane by lane, then across lanes) and over k in one
// order, whatever rows share its tile: the bits of a row depend neither on n nor on the thread
// count.

constexpr int64_t kRowsPerBlock = 4;  // rows that share each loaded factor
constexpr int64_t kUnitTile = 4;      // rows a tile when features are adjacent in memory
constexpr int64_t kStridedTile = 16;  // and when they are not: one cache line of neighbouring rows
constexpr double kNormEps = 1e-12;    // as torch.nn.functional.normalize

// Cache-line aligned scratch of one thread.
template <class A>
class Scratch {
 public:
  explicit Scratch(int64_t size)
      : data_(static_cast<A*>(::operator new(sizeof(A) * (size + 1), std::align_val_t{64}))) {}
  ~Scratch() { ::operator delete(data_, std::align_val_t{64}); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  A* get() { return data_; }

 private:
  A* data_;
};

// tile [rows, ld] <- x, widened; columns d..ld are zero, so that later loops need no tail for it.
template <class V, class T>
void load_tile(const T* x, int64_t x_row, int64_t x_col, int64_t rows, int64_t d,
               typename V::A* tile, int64_t ld) {
  if (x_col == 1) {
    for (int64_t r = 0; r < rows; ++r) {
      int64_t j = 0;
      for (; j + V::kLanes <= d; j += V::kLanes)
        V::load(x + r * x_row + j).store(tile + r * ld + j);
      if (j < d) V::load(x + r * x_row + j, d - j).store(tile + r * ld + j);
    }
    return;
  }
  for (int64_t j = 0; j < d; ++j) {
    for (int64_t r = 0; r < rows; ++r) {
      tile[r * ld + j] = static_cast<typename V::A>(x[r * x_row + j * x_col]);
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = d; j < ld; ++j) tile[r * ld + j] = 0;
  }
}

template <class V, class T>
void store_tile(const typename V::A* tile, int64_t ld, int64_t rows, int64_t d, T* out,
                int64_t out_row, int64_t out_col) {
  if (out_col == 1) {
    for (int64_t r = 0; r < rows; ++r) {
      int64_t j = 0;
      for (; j + V::kLanes <= d; j += V::kLanes) {
        V::load(tile + r * ld + j).store(out + r * out_row + j);
      }
      if (j < d) V::load(tile + r * ld + j).store(out + r * out_row + j, d - j);
    }
    return;
  }
  for (int64_t j = 0; j < d; ++j) {
    for (int64_t r = 0; r < rows; ++r) {
      out[r * out_row + j * out_col] = static_cast<T>(tile[r * ld + j]);
    }
  }
}

// dots[r, g] <- tile[r] . read[g] for R rows and G directions; dots has row pitch k.
template <class V, int R, int G>
void dot_block(const typename V::A* tile, int64_t ld, const typename V::A* read, int64_t d,
               typename V::A* dots, int64_t k) {
  V sum[R][G];
  for (int r = 0; r < R; ++r) {
    for (int g = 0; g < G; ++g) sum[r][g] = V::zero();
  }
  int64_t j = 0;
  for (; j + V::kLanes <= d; j += V::kLanes) {
    for (int g = 0; g < G; ++g) {
      const V f = V::load(read + g * d + j);
      for (int r = 0; r < R; ++r) sum[r][g] = V::fma(V::load(tile + r * ld + j), f, sum[r][g]);
    }
  }
  if (j < d) {
    for (int g = 0; g < G; ++g) {
      const V f = V::load(read + g * d + j, d - j);
      for (int r = 0; r < R; ++r) sum[r][g] = V::fma(V::load(tile + r * ld + j), f, sum[r][g]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int g = 0; g < G; ++g) dots[r * k + g] = sum[r][g].sum();
  }
}

// tile[r, j..j + C lanes) -= coef[r] . write[:, j..]; `count` is how many of the columns exist.
// What is taken out is summed by itself: k steps round at its size, only the last at that of x.
template <class V, int R, int C>
void update_block(typename V::A* tile, int64_t ld, const typename V::A* write, int64_t d, int64_t k,
                  const typename V::A* coef, int64_t j, int64_t count) {
  V sum[R][C];
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) sum[r][c] = V::zero();
  }
  for (int64_t i = 0; i < k; ++i) {
    V w[C];
    for (int c = 0; c < C; ++c) {
      const typename V::A* from = write + i * d + j + c * V::kLanes;
      w[c] = count < V::kLanes ? V::load(from, count) : V::load(from);
    }
    for (int r = 0; r < R; ++r) {
      const V s = V::set1(coef[r * k + i]);
      for (int c = 0; c < C; ++c) sum[r][c] = V::fma(s, w[c], sum[r][c]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) {
      typename V::A* at = tile + r * ld + j + c * V::kLanes;
      (V::load(at) - sum[r][c]).store(at);
    }
  }
}

// Rows row..row+R of the problem, already in the tile.
template <class V, int R>
void project_block(const ProjectParams<typename V::A>& p, int64_t row, typename V::A* tile,
                   int64_t ld, typename V::A* coef) {
  using A = typename V::A;
  constexpr int G = V::kDirections, C = V::kColumns;
  int64_t g = 0;
  for (; g + G <= p.k; g += G) dot_block<V, R, G>(tile, ld, p.read + g * p.d, p.d, coef + g, p.k);
  for (; g < p.k; ++g) dot_block<V, R, 1>(tile, ld, p.read + g * p.d, p.d, coef + g, p.k);
  for (int r = 0; r < R; ++r) {
    const A s = p.strength ? p.strength[(row + r) * p.strength_row] : A(1);
    for (int64_t i = 0; i < p.k; ++i) {
      const A c = p.offset ? p.offset[i] : A(0);
      coef[r * p.k + i] = s * (coef[r * p.k + i] - c);
    }
  }
  int64_t j = 0;
  for (; j + C * V::kLanes <= p.d; j += C * V::kLanes) {
    update_block<V, R, C>(tile, ld, p.write, p.d, p.k, coef, j, C * V::kLanes);
  }
  for (; j < p.d; j += V::kLanes) {
    update_block<V, R, 1>(tile, ld, p.write, p.d, p.k, coef, j, p.d - j);
  }
}

// The length of one projected row of the tile. A sum of squares that leaves the type's range is
// taken again relative to the largest element; `row` is then left divided by it and `scale` says
// so.
template <class V>
typename V::A row_norm(typename V::A* row, int64_t ld, typename V::A* scale) {
  using A = typename V::A;
  *scale = 1;
  V sum = V::zero();
  for (int64_t j = 0; j < ld; j += V::kLanes) {
    const V y = V::load(row + j);
    sum = V::fma(y, y, sum);
  }
  const A total = sum.sum();
  if (!(total > std::numeric_limits<A>::max())) return std::sqrt(total);  // NaN stays NaN
  A largest = 0;
  for (int64_t j = 0; j < ld; ++j) largest = std::max(largest, std::abs(row[j]));
  if (std::isinf(largest)) return largest;
  A rest = 0;
  for (int64_t j = 0; j < ld; ++j) {
    row[j] /= largest;
    rest += row[j] * row[j];
  }
  *scale = largest;
  return std::sqrt(rest);
}

template <class V, class T>
void project_rows(const ProjectParams<typename V::A>& p, int64_t begin, int64_t end) {
  using A = typename V::A;
  const T* x = static_cast<const T*>(p.x);
  T* out = static_cast<T*>(p.out);
  const bool adjacent = p.x_col == 1 && (!out || p.out_col == 1);
  const int64_t tile_rows = std::min(end - begin, adjacent ? kUnitTile : kStridedTile);
  const int64_t ld = (p.d + V::kLanes - 1) / V::kLanes * V::kLanes;
  Scratch<A> tile_memory(tile_rows * ld), coef_memory(kRowsPerBlock * p.k);
  A *tile = tile_memory.get(), *coef = coef_memory.get();

  for (int64_t first = begin; first < end; first += tile_rows) {
    const int64_t rows = std::min(tile_rows, end - first);
    load_tile<V>(x + first * p.x_row, p.x_row, p.x_col, rows, p.d, tile, ld);
    for (int64_t r = 0; r < rows; r += kRowsPerBlock) {
      A* block = tile + r * ld;
      switch (std::min(kRowsPerBlock, rows - r)) {
        case 1: project_block<V, 1>(p, first + r, block, ld, coef); break;
        case 2: project_block<V, 2>(p, first + r, block, ld, coef); break;
        case 3: project_block<V, 3>(p, first + r, block, ld, coef); break;
        default: project_block<V, 4>(p, first + r, block, ld, coef); break;
      }
    }
    if (p.normalize || p.norm) {
      for (int64_t r = 0; r < rows; ++r) {
        A* row = tile + r * ld;
        A scale;
        const A norm = row_norm<V>(row, ld, &scale);
        if (p.norm) p.norm[first + r] = norm * scale;
        if (!p.normalize) continue;
        const V inverse = V::set1(1 / (norm > A(kNormEps) || norm != norm ? norm : A(kNormEps)));
        for (int64_t j = 0; j < ld; j += V::kLanes) (V::load(row + j) * inverse).store(row + j);
      }
    }
    if (out) store_tile<V>(tile, ld, rows, p.d, out + first * p.out_row, p.out_row, p.out_col);
  }
}
