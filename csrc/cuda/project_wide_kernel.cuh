// SPDX-License-Identifier: Apache-2.0
// x' = x - s (x R^T - c) W and its length for bfloat16 and float16, by tensor cores, where factors
// or rows are too large for project_half_kernel: a block holds M whole rows in shared memory, so
// that x is read once, and takes the factors from the second-level cache once a tile. The products
// are those of project_half_kernel.
//
// Fragments of m16n8k16 are filled with 16-byte accesses by choosing which column, or direction,
// stands for which index of the instruction: with q = lane % 4, the instruction's inner indices
// 2q, 2q+1, 2q+8, 2q+9 are four neighbours, and column i of the t-th of four 8-column results is
// column 4i + t. So a lane owns 8 neighbouring columns of rows lane / 4 and lane / 4 + 8.
#pragma once
#include <type_traits>

#include "solve.cuh"
#include "wide_tile.cuh"

namespace clipproj {

// Whether a step's factors are fetched while the step before is multiplied: where registers allow.
template <int M>
constexpr bool kAhead = M <= 32;

// c <- s (x R^T - offset): each warp sums over its pieces of every row, kGroup directions at once,
// then each thread adds up the warps' parts of two neighbouring directions of a row. If `solved`
// they stay whole, even directions where high parts would be, odd ones in the place of low parts.
template <class T, int M, bool solved, bool packs>
__device__ void coefficients(const ProjectParams<float>& p, const Factor<packs>& read,
                             const WideTile& tile, int64_t first) {
  constexpr bool exact = std::is_same_v<T, __nv_bfloat16>;
  const int row = lane() / 4, quad = lane() % 4;
  const int j_first = warp() * kPiece + 8 * quad;
  float v[2][2][4];  // the factors of a step: [direction g0 + 8 n + row][half of the 8 columns]
  auto fetch = [&](int g0, int j) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        read.load(v[n][half], g0 + 8 * n + row, j + 4 * half);
      }
    }
  };
  if (kAhead<M>) fetch(0, j_first);
  for (int g0 = 0; g0 < read.k; g0 += kGroup) {
    float dot[M / 16][2][4] = {};
#pragma unroll 1
    for (int j = j_first; j < tile.width; j += kWarps * kPiece) {
      if (!kAhead<M>) fetch(g0, j);
      Split r[2][4];  // [directions g0 + 8 n + row][pair of columns from j]
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float* pair = v[i / 4][i % 4 / 2] + i % 2 * 2;
        r[i / 4][i % 4] = split(pair[0], pair[1]);
      }
      const bool more = j + kWarps * kPiece < tile.width;
      if (kAhead<M>) fetch(more ? g0 : g0 + kGroup, more ? j + kWarps * kPiece : j_first);
#pragma unroll
      for (int m = 0; m < M / 16; ++m) {
        const uint16_t* at = tile.x + (16 * m + row) * tile.pitch + j;
        auto words = [](const uint16_t* of) {
          return load_pack(reinterpret_cast<const uint32_t*>(of));
        };
        const Pack<uint32_t> upper = words(at), lower = words(at + 8 * tile.pitch);
#pragma unroll
        for (int s = 0; s < 2; ++s) {  // 16 columns of the piece
          uint32_t x_high[4], x_low[4];
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const Split u = split_x<T>(upper.at[2 * s + i]), l = split_x<T>(lower.at[2 * s + i]);
            x_high[2 * i] = u.high, x_high[2 * i + 1] = l.high;
            x_low[2 * i] = u.low, x_low[2 * i + 1] = l.low;
          }
#pragma unroll
          for (int product = 0; product < (exact ? 2 : 3); ++product) {
#pragma unroll
            for (int n = 0; n < 2; ++n) {
              const Split &u = r[n][2 * s], &l = r[n][2 * s + 1];
              const uint32_t b[2] = {product == 1 ? u.low : u.high, product == 1 ? l.low : l.high};
              mma_bf16(dot[m][n], product == 2 ? x_low : x_high, b);
            }
          }
        }
      }
    }
#pragma unroll
    for (int m = 0; m < M / 16; ++m) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        float* at = tile.sums + (warp() * M + 16 * m + row) * kGroup + 8 * n + 2 * quad;
        at[0] = dot[m][n][0];
        at[1] = dot[m][n][1];
        at[8 * kGroup] = dot[m][n][2];
        at[8 * kGroup + 1] = dot[m][n][3];
      }
    }
    sync_block();  // the sums are complete
    for (int i = threadIdx.x; i < M * kGroup / 2; i += kThreads) {
      const int r = i / (kGroup / 2);
      const int pair = i % (kGroup / 2), g = g0 + 2 * pair;
      const float even = coefficient(p, tile.sums, M, r, g, first, solved),
                  odd = coefficient(p, tile.sums, M, r, g + 1, first, solved);
      const Split c = solved ? Split{as_bits(even), as_bits(odd)} : split(even, odd);
      tile.c_high[r * tile.coef_pitch + g0 / 2 + pair] = c.high;
      tile.c_low[r * tile.coef_pitch + g0 / 2 + pair] = c.low;
    }
    sync_block();  // the coefficients are complete, the sums free
  }
}

// c <- s times the solution for the excess there, split: a row a warp.
template <int M>
__device__ void solve(const ProjectParams<float>& p, const WideTile& tile, int64_t first) {
  const int k = static_cast<int>(p.k);
#pragma unroll 1
  for (int r = warp(); r < M && first + r < p.n; r += kWarps) {
    const float strength = p.strength ? p.strength[(first + r) * p.strength_row] : 1.0f;
    uint32_t* const own = (lane() % 2 ? tile.c_low : tile.c_high) + r * tile.coef_pitch;
    solve_row(
        p.gram, p.gram_row, k, [&](int j) { return as_float(own[j / 2]); },
        [&](int j, float a) {
          const float mine = strength * a, other = shuffle_xor(mine, 1);
          const Split c = lane() % 2 ? split(other, mine) : split(mine, other);
          if (j / 2 * 2 < k) own[j / 2] = lane() % 2 ? c.low : c.high;
        });
  }
  sync_block();  // the coefficients are solved for
}

// The fragment of four directions of a row, and of the row 8 below it.
__device__ inline void load_coefficients(uint32_t (&c)[4], const uint32_t* upper, int pitch) {
  const Words u = *reinterpret_cast<const Words*>(upper);
  const Words l = *reinterpret_cast<const Words*>(upper + 8 * pitch);
  c[0] = u.at[0], c[1] = l.at[0], c[2] = u.at[1], c[3] = l.at[1];
}

// x <- x - c W: each warp takes its pieces of every row. Unless measured, the result is rounded;
// else it is kept, and the squares of each row are summed.
template <class T, int M, bool packs>
__device__ void subtract(const Factor<packs>& write, const WideTile& tile, bool measured) {
  const int row = lane() / 4, quad = lane() % 4;
  float squares[M / 16][2] = {};
  float v[4][4];  // the factors of a step: [direction g0 + 4 quad + i][column j0 + 4 row + t]
  auto fetch = [&](int g0, int j0) {
#pragma unroll
    for (int i = 0; i < 4; ++i) write.load(v[i], g0 + 4 * quad + i, j0 + 4 * row);
  };
  if (kAhead<M>) fetch(0, warp() * kPiece);
#pragma unroll 1
  for (int j0 = warp() * kPiece; j0 < tile.width; j0 += kWarps * kPiece) {
    float taken[M / 16][4][4] = {};  // summed by itself: only the last step rounds at the size of x
#pragma unroll 1
    for (int g0 = 0; g0 < write.k; g0 += kGroup) {
      if (!kAhead<M>) fetch(g0, j0);
      uint32_t w_high[4][2], w_low[4][2];
#pragma unroll
      for (int t = 0; t < 4; ++t) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const Split w = split(v[2 * half][t], v[2 * half + 1][t]);
          w_high[t][half] = w.high;
          w_low[t][half] = w.low;
        }
      }
      const bool more = g0 + kGroup < write.k;
      if (kAhead<M>) fetch(more ? g0 + kGroup : 0, more ? j0 : j0 + kWarps * kPiece);
#pragma unroll
      for (int m = 0; m < M / 16; ++m) {
        const int at = (16 * m + row) * tile.coef_pitch + g0 / 2 + 2 * quad;
        uint32_t c_high[4], c_low[4];
        load_coefficients(c_high, tile.c_high + at, tile.coef_pitch);
        load_coefficients(c_low, tile.c_low + at, tile.coef_pitch);
#pragma unroll
        for (int product = 0; product < 3; ++product) {
#pragma unroll
          for (int t = 0; t < 4; ++t) {  // independent of one another
            mma_bf16(taken[m][t], product == 2 ? c_low : c_high,
                     product == 1 ? w_low[t] : w_high[t]);
          }
        }
      }
    }
#pragma unroll
    for (int m = 0; m < M / 16; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = (16 * m + 8 * half + row) * tile.pitch + j0 + 8 * quad;
        Pack<uint16_t> x = load_pack(tile.x + at);
        Words low{};
#pragma unroll
        for (int i = 0; i < 8; i += 2) {
          float y[2];
#pragma unroll
          for (int u = 0; u < 2; ++u) {
            const int t = (i + u) % 4;
            y[u] = to_float(from_bits<T>(x.at[i + u])) - taken[m][t][2 * half + i / 4];
          }
          uint32_t pair;
          if (measured) {
            squares[m][half] = fmaf(y[1], y[1], fmaf(y[0], y[0], squares[m][half]));
            const uint32_t a = keep(y[0]), b = keep(y[1]);
            pair = (b & 0xffff0000u) | a >> 16;
            low.at[i / 4] |= ((a >> 8 & 0xff) | (b & 0xff00)) << 8 * (i % 4);
          } else {
            pair = round_pair<T>(y[0], y[1]);
          }
          std::memcpy(&x.at[i], &pair, sizeof(pair));
        }
        store_pack(tile.x + at, x);
        if (measured) *reinterpret_cast<Words*>(tile.low + at) = low;
      }
    }
  }
  if (!measured) return;
#pragma unroll
  for (int m = 0; m < M / 16; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = squares[m][half];
      sum += shuffle_xor(sum, 1);
      sum += shuffle_xor(sum, 2);
      if (quad == 0) tile.slots[warp() * M + 16 * m + 8 * half + row] = sum;
    }
  }
}

template <class T, int M, bool solved>
__global__ void __launch_bounds__(kThreads, 2) project_wide_kernel(ProjectParams<float> p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  // Both fit shared memory, so they and k d fit an int.
  const int d = static_cast<int>(p.d), k = static_cast<int>(p.k);
  const bool measured = p.normalize || p.norm;
  const TileShared parts(2, M, d, p.k, measured);
  SharedParts shared;
  WideTile tile;
  tile.x = shared.take<uint16_t>(parts.tile);
  tile.low = shared.take<uint8_t>(parts.scratch);
  tile.sums = reinterpret_cast<float*>(tile.low);
  tile.c_high = shared.take<uint32_t>(parts.coef);
  tile.c_low = tile.c_high + parts.coef / 2;
  tile.slots = shared.take<float>(parts.slots);
  tile.width = round_up(d, kPiece);
  tile.pitch = static_cast<int>(tile_pitch(2, d));
  tile.coef_pitch = static_cast<int>(coef_pitch(k));

  const Memory from = memory_of<T>(p.x, p.x_row, p.x_col, p.d);
  const int64_t tiles = (p.n + M - 1) / M;
  for (int64_t i = blockIdx.x; i < tiles; i += gridDim.x) {
    const int64_t first = i * M;
    const int left = p.n - first < M ? static_cast<int>(p.n - first) : M;
    load_tile(static_cast<const T*>(p.x) + first * p.x_row, from, left, M, d, tile.width, tile.x,
              tile.pitch);
    copy_async_wait<0>();
    sync_block();
    with_factor(p.read, p, [&](auto read) { coefficients<T, M, solved>(p, read, tile, first); });
    if constexpr (solved) solve<M>(p, tile, first);
    with_factor(p.write, p, [&](auto write) { subtract<T, M>(write, tile, measured); });
    sync_block();  // the projected rows are complete
    finish<T, M>(p, tile, first, left, measured);
    sync_block();  // the next tile overwrites what slow warps may still read
  }
#else
  __trap();  // a plan for another architecture than the code is for
#endif
}

}  // namespace clipproj
