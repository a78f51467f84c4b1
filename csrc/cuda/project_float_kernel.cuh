// SPDX-License-Identifier: Apache-2.0
// x' = x - s (x R^T - c) W and its length for float32, in float32: a block holds M whole rows in
// shared memory, and rows of a tile share each factor that a thread loads. Of a bank, it goes
// through the spans of its rows one by one. Where directions look at each other (`solved`) warps
// take a row each between the products (solve.cuh).
#pragma once
#include "bank.cuh"
#include "solve.cuh"
#include "tile.cuh"

namespace clipproj {

struct FloatTile {
  float* x;      // [M, pitch] x, then x'
  float* sums;   // [kWarps, M, kGroup]
  float* coef;   // [M, coef_pitch], the columns for whole groups of directions
  float* slots;  // [panels, M]
  int pitch, coef_pitch;
};

// c <- s (x R^T - offset): each warp sums over its pieces of every row, a lane those of the rows
// lane % 8 + 8 i and the directions lane / 8 + 4 n; then each thread adds up the warps' parts.
// What comes out for rows that are not wanted means nothing. `raw`: x R^T - offset.
template <int M, bool packs>
__device__ void coefficients(const ProjectParams<float>& p, const Factor<packs>& read,
                             const FloatTile& tile, uint32_t wanted, int64_t first, bool raw) {
  const int row = lane() % 8, direction = lane() / 8;
  for (int g0 = 0; g0 < read.k; g0 += kGroup) {
    float dot[M / 8][4] = {};
    for (int j0 = warp() * kPiece; j0 < read.d; j0 += kWarps * kPiece) {
#pragma unroll 2
      for (int j = j0; j < j0 + kPiece; j += 4) {
        float r[4][4];
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          read.load(r[n], g0 + direction + 4 * n, j);
        }
#pragma unroll
        for (int i = 0; i < M / 8; ++i) {
          if ((wanted >> 8 * i & 0xff) == 0) continue;
          const Pack<float> x = load_pack(tile.x + (row + 8 * i) * tile.pitch + j);
#pragma unroll
          for (int n = 0; n < 4; ++n) {
#pragma unroll
            for (int t = 0; t < 4; ++t) dot[i][n] = fmaf(x.at[t], r[n][t], dot[i][n]);
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < M / 8; ++i) {
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        tile.sums[(warp() * M + row + 8 * i) * kGroup + direction + 4 * n] = dot[i][n];
      }
    }
    sync_block();  // the sums are complete
    for (int i = threadIdx.x; i < M * kGroup; i += kThreads) {
      const int r = i / kGroup;
      const int g = g0 + i % kGroup;
      tile.coef[r * tile.coef_pitch + g] = coefficient(p, tile.sums, M, r, g, first, raw);
    }
    sync_block();  // the coefficients are complete, the sums free
  }
}

// x <- x - taken in one row, four columns of a panel a lane. Where the length is wanted, the
// squares in the panel are summed.
template <int M>
__device__ void subtract_from(const FloatTile& tile, int r, int panel, const float (&taken)[4],
                              int d, bool measured) {
  const int j = panel * kPanel + 4 * lane();
  float squares = 0;
  if (j < d) {
    float* at = tile.x + r * tile.pitch + j;
    Pack<float> x = load_pack(at);
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      x.at[t] -= taken[t];
      squares = fmaf(x.at[t], x.at[t], squares);
    }
    store_pack(at, x);
  }
  if (measured) {
    squares = warp_sum(squares);
    if (lane() == 0) tile.slots[panel * M + r] = squares;
  }
}

// x <- x - c W in the rows that are wanted: warps take panels of 16 rows and kPanel columns.
template <int M, bool packs>
__device__ void subtract(const Factor<packs>& write, const FloatTile& tile, uint32_t wanted,
                         bool measured) {
  const int panels = (write.d + kPanel - 1) / kPanel;
  for (int i = warp(); i < M / 16 * panels; i += kWarps) {
    const int panel = i % panels, j = panel * kPanel + 4 * lane();
    const int r0 = static_cast<int>(i / panels) * 16;
    const uint32_t of = wanted >> r0 & 0xffff;
    if (of == 0) continue;
    float taken[16][4] = {};  // summed by itself: only the last step rounds at the size of x
#pragma unroll 1
    for (int g = 0; g < write.k; g += 4) {
      float w[4][4];
#pragma unroll
      for (int u = 0; u < 4; ++u) write.load(w[u], g + u, j);
#pragma unroll
      for (int r = 0; r < 16; ++r) {
        if ((of >> r / 4 * 4 & 0xf) == 0) continue;
        const Pack<float> c = load_pack(tile.coef + (r0 + r) * tile.coef_pitch + g);
#pragma unroll
        for (int u = 0; u < 4; ++u) {
#pragma unroll
          for (int t = 0; t < 4; ++t) taken[r][t] = fmaf(c.at[u], w[u][t], taken[r][t]);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < 16; ++r) {
      if (of >> r & 1) subtract_from<M>(tile, r0 + r, panel, taken[r], write.d, measured);
    }
  }
}

// Of the rows that are wanted: s times the solution for the excess of k directions, whose gram
// begins with row `start`.
template <int M>
__device__ void solve(const ProjectParams<float>& p, int start, int k, const FloatTile& tile,
                      uint32_t wanted, int64_t first) {
#pragma unroll 1
  for (int r = warp(); r < M && first + r < p.n; r += kWarps) {
    if ((wanted >> r & 1) == 0) continue;
    solve_row(p, p.gram + start * p.gram_row, k, first + r, tile.coef + r * tile.coef_pitch);
  }
  sync_block();  // the coefficients are solved for
}

// The rows that are wanted, all of the projector of this span.
template <int M, bool banked, bool solved>
__device__ void project_span(const ProjectParams<float>& p, Span span, const FloatTile& tile,
                             uint32_t wanted, int64_t first, bool measured) {
  const bool raw = solved && span.rank < 0;
  const ProjectParams<float> own =
      banked ? part_of(p, span.start, solved ? rank_of(span) : span.rank) : p;
  with_factor(own.read, own,
              [&](auto read) { coefficients<M>(own, read, tile, wanted, first, raw); });
  if (raw) solve<M>(p, span.start, rank_of(span), tile, wanted, first);
  with_factor(own.write, own, [&](auto write) { subtract<M>(write, tile, wanted, measured); });
}

// One row, of a projector with more directions than there is room for: what is taken waits in
// registers until the last are known. The same sums in the same order.
template <int M>
__device__ void project_long_row(const ProjectParams<float>& p, const FloatTile& tile, int r,
                                 int64_t first, bool measured) {
  constexpr int kPanels = kWidest / kPanel / kWarps;    // of a warp
  const int d = static_cast<int>(p.d), beside = r % 8;  // rows before it in a tile of eight
  FloatTile eight = tile;
  eight.x += (r - beside) * tile.pitch;
  float taken[kPanels][4] = {};
  for (int64_t g0 = 0; g0 < p.k; g0 += kRoom) {
    const ProjectParams<float> part = part_of(p, g0, p.k - g0 < kRoom ? p.k - g0 : kRoom);
    with_factor(part.read, part, [&](auto read) {
      coefficients<8>(part, read, eight, 1u << beside, first + r - beside, false);
    });
    with_factor(part.write, part, [&](auto write) {
#pragma unroll
      for (int i = 0; i < kPanels; ++i) {
        const int j = (warp() + i * kWarps) * kPanel + 4 * lane();
        if (j >= d) continue;
#pragma unroll 1
        for (int g = 0; g < round_up(write.k, 4); ++g) {  // the steps of `subtract`
          float w[4];
          write.load(w, g, j);
          const float c = tile.coef[beside * tile.coef_pitch + g];
#pragma unroll
          for (int t = 0; t < 4; ++t) taken[i][t] = fmaf(c, w[t], taken[i][t]);
        }
      }
    });
  }
#pragma unroll
  for (int i = 0; i < kPanels; ++i) {
    const int panel = warp() + i * kWarps;
    if (panel * kPanel < d) subtract_from<M>(tile, r, panel, taken[i], d, measured);
  }
}

// The tile's rows, one at a time by a warp, to their lengths and to out. Lane r knows the span of
// row r.
template <int M, bool banked>
__device__ void finish(const ProjectParams<float>& p, const FloatTile& tile, Span span,
                       int64_t first, int left, bool measured) {
  const int d = static_cast<int>(p.d);
  float* out = p.out ? static_cast<float*>(p.out) + first * p.out_row : nullptr;
  const Memory to = memory_of<float>(p.out, p.out_row, p.out_col, p.d);
  const float scale = p.scale ? *p.scale : 1.0f;
  if (!measured && to.row == 1) {  // neighbouring rows are adjacent: columns of a weight
    for (int j = warp(); j < d; j += kWarps) {
#pragma unroll 1
      for (int r = lane(); r < left; r += 32) {
        const float y = tile.x[r * tile.pitch + j];
        out[r + j * to.col] = banked && !is_known(span) ? NAN : p.scale ? y * scale : y;
      }
    }
    return;
  }
  for (int r = warp(); r < left; r += kWarps) {
    const float* y = tile.x + r * tile.pitch;
    const bool unknown = banked && shuffle(span.rank, r) == kUnknown;
    Length length{NAN, 1, 1};
    if (measured && !unknown) {
      float squares = 0;
      for (int i = 0; i < (d + kPanel - 1) / kPanel; ++i) squares += tile.slots[i * M + r];
      length = length_of(squares, d, [&](int j) { return y[j]; });
    }
    if (p.norm && lane() == 0) p.norm[first + r] = length.norm;
    if (!out) continue;
    auto result = [&](float v) {
      if (unknown) return NAN;
      if (p.normalize) v = length.unit(v);
      return p.scale ? v * scale : v;
    };
    float* row = out + r * to.row;
    if (to.packs) {
      for (int j = 4 * lane(); j < d; j += 4 * 32) {
        Pack<float> pack = load_pack(y + j);
#pragma unroll
        for (int t = 0; t < 4; ++t) pack.at[t] = result(pack.at[t]);
        store_pack(row + j, pack);
      }
    } else {
#pragma unroll 1
      for (int j = lane(); j < d; j += 32) row[j * to.col] = result(y[j]);
    }
  }
}

template <int M, bool banked, bool solved>
__global__ void __launch_bounds__(kThreads, banked&& solved ? 1 : 2)
    project_float_kernel(ProjectParams<float> p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  static_assert(M <= 32);  // one row a lane
  // Both fit shared memory, so they and their product fit an int.
  const int d = static_cast<int>(p.d), room = static_cast<int>(coef_room(p, solved));
  const bool measured = p.normalize || p.norm;
  const TileShared parts(4, M, d, room, measured);
  SharedParts shared;
  FloatTile tile;
  tile.x = shared.take<float>(parts.tile);
  tile.sums = reinterpret_cast<float*>(shared.take<unsigned char>(parts.scratch));
  tile.coef = shared.take<float>(parts.coef);
  tile.slots = shared.take<float>(parts.slots);
  Span* spans = shared.take<Span>(M);  // one warp asks for them, and all agree
  tile.pitch = static_cast<int>(tile_pitch(4, d));
  tile.coef_pitch = round_up(room, kGroup);

  const Memory from = memory_of<float>(p.x, p.x_row, p.x_col, p.d);
  const int64_t tiles = (p.n + M - 1) / M;
  for (int64_t i = blockIdx.x; i < tiles; i += gridDim.x) {
    const int64_t first = i * M;
    const int left = p.n - first < M ? static_cast<int>(p.n - first) : M;
    load_tile(static_cast<const float*>(p.x) + first * p.x_row, from, left, M, d,
              round_up(d, kPiece), tile.x, tile.pitch);
    if (banked && warp() == 0 && lane() < left) spans[lane()] = span_of<solved>(p, first + lane());
    copy_async_wait<0>();
    sync_block();
    // Of row lane().
    const Span span = banked && lane() < left ? spans[lane()] : Span{0, kUnknown};
    // Rows to be projected, or only measured; all warps agree on them.
    const bool some = is_known(span) && (measured || span.rank != 0);
    uint32_t open = banked ? ballot(some && span.rank <= kRoom) : ~0u;
    while (open != 0) {
      uint32_t rows = ~0u;
      Span next{0, static_cast<int>(solved ? -p.k : p.k)};
      if constexpr (banked) {
        const int r = first_of(open);
        next = {shuffle(span.start, r), shuffle(span.rank, r)};
        rows = ballot(span == next);
      }
      project_span<M, banked, solved>(p, next, tile, rows, first, measured);
      sync_block();  // the projected rows are complete
      open &= ~rows;
    }
    if constexpr (banked) {
      for (open = ballot(span.rank > kRoom); open != 0; open &= open - 1) {
        const int r = first_of(open);
        project_long_row<M>(part_of(p, shuffle(span.start, r), shuffle(span.rank, r)), tile, r,
                            first, measured);
        sync_block();  // the projected row is complete
      }
    }
    finish<M, banked>(p, tile, span, first, left, measured);
    sync_block();  // the next tile overwrites what slow warps may still read
  }
#else
  __trap();  // a plan for another architecture than the code is for
#endif
}

}  // namespace clipproj
