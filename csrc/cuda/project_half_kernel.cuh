// SPDX-License-Identifier: Apache-2.0
// x' = x - s (x R^T - c) W and its length for bfloat16 and float16, by tensor cores, with rows in
// registers and factors in shared memory: x is read once, and each factor once a block.
//
// Factors, coefficients and, of float16, x are split into bfloat16 (split.cuh):
//   x R^T = x R_high + x R_low                             x of bfloat16 is exact
//   x R^T = x_high R_high + x_high R_low + x_low R_high    float16 is x_high + x_low
//   c W   = c_high W_high + c_high W_low + c_low W_high
// What is left out is of size 2^-17. Accumulators, offset, strength, the subtraction and the length
// are float32; the store rounds.
//
// A tile is 16 rows. Warp w takes pieces w, w + 8, ... of every row, 32 columns each; of a piece a
// lane owns 8 neighbouring columns of rows lane / 4 and lane / 4 + 8, from the load to the store.
// Rows of the next tiles are fetched meanwhile, each lane's own into slots of its own.
//
// Of a bank, the projectors of a tile's rows take their turns: a turn is for all rows, with the
// coefficients of other projectors' rows zero.
#pragma once
#include "half_bank.cuh"
#include "half_length.cuh"
#include "half_products.cuh"
#include "half_rows.cuh"

namespace clipproj {

constexpr float kNaN = __builtin_nanf("");

// Directions [start, start + count) into a slot of both factors, and zeros up to `end`: by a team
// of a bank, where other rows must not see what can't be split, else by the block.
template <bool banked, int P>
__device__ bool fill(const ProjectParams<float>& p, const HalfShared<P>& shared, int slot,
                     int64_t start, int count, int end) {
  const int d = static_cast<int>(p.d);
  auto one = [&](const HalfFactor<P>& factor, const float* data) {
    const float* from = data + start * d;
    return d % 2 == 0 && reinterpret_cast<uintptr_t>(from) % 8 == 0
               ? factor.template fill<true, banked>(slot, from, count, end, d)
               : factor.template fill<false, banked>(slot, from, count, end, d);
  };
  bool whole = one(shared.read, p.read);
  if (p.write != p.read) whole &= one(shared.write, p.write);
  return whole;
}

__device__ inline int left_of(int64_t k, int g) {
  return k - g < kGroup ? static_cast<int>(k - g) : kGroup;
}

// Until the oldest of the tiles that were asked for is there.
__device__ inline void wait_for_tile(int stages) {
  switch (stages) {
    case 1: return copy_async_wait<0>();
    case 2: return copy_async_wait<1>();
    default: return copy_async_wait<2>();
  }
}

// Eight columns of a row.
template <class T>
__device__ void store_columns(T* row, Memory to, int j, int d, const Pack<uint32_t>& pack) {
  if (to.packs) {
    if (j < d) store_pack(reinterpret_cast<uint32_t*>(row + j), pack);
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const uint16_t bits = static_cast<uint16_t>(pack.at[i / 2] >> i % 2 * 16);
    if (j + i < d) row[(j + i) * to.col] = from_bits<T>(bits);
  }
}

// The lane's columns of a row, which may be where they are to be.
template <int P, class T>
__device__ void copy_row(const T* from, int64_t from_col, int d, T* to, int64_t to_col) {
#pragma unroll 1
  for (int i = 0; i < 8 * P; ++i) {
    const int j = HalfRows<P>::column(i / 8) + i % 8;
    if (j < d) to[j * to_col] = from[j * from_col];
  }
}

template <class T, int P, int teams, bool banked>
__device__ void project_half_tiles(const ProjectParams<float>& p) {
  const int d = static_cast<int>(p.d);
  const int groups = banked ? 1 : static_cast<int>(half_groups(p));
  const HalfParts parts(P, groups, p.write == p.read, banked);
  const int stages = parts.stages(teams, launched_shared_bytes());
  const HalfShared<P> shared = take_shared<P, teams, banked>(p, parts, stages);

  // Neighbouring tiles, which of a sorted batch have neighbouring projectors. Their number fits an
  // int: no memory holds 2^35 rows.
  const int64_t tiles = (p.n + kHalfRows - 1) / kHalfRows;
  const int64_t all = int64_t{teams} * gridDim.x,
                self = int64_t{teams} * blockIdx.x + team<teams>();
  const int begin = static_cast<int>(tiles * self / all);
  const int end = static_cast<int>(tiles * (self + 1) / all);
  auto rows_of_tile = [&](int tile) {
    const int64_t left = p.n - int64_t{tile} * kHalfRows;
    return left < kHalfRows ? static_cast<int>(left) : kHalfRows;
  };
  // Asked anew wherever it is needed: registers are scarcer than instructions.
  auto source = [&] { return memory_of<T>(p.x, p.x_row, p.x_col, p.d); };
  auto request = [&](int tile, int stage) {
    const Memory from = source();
    if (from.packs && tile < end) {
      const T* x = static_cast<const T*>(p.x) + int64_t{tile} * kHalfRows * p.x_row;
      HalfRows<P>::request(x, from, rows_of_tile(tile), d, shared.slots + stage * parts.stage);
    }
    copy_async_commit();  // a group for each tile, so that the wait can count
  };

  for (int i = 0; i < stages; ++i) request(begin + i, i);
  for (int g = 0; g < groups; ++g) {
    fill<banked>(p, shared, g, g * kGroup, banked ? 0 : left_of(p.k, g * kGroup), kGroup);
  }
  sync_block();  // the factors are complete; of a bank, the slice to come need not fill its slot
  Slice slice;
  int stage = 0;  // whose slots hold the tile

  for (int tile = begin; tile < end; ++tile, stage = stage + 1 < stages ? stage + 1 : 0) {
    const int64_t first = int64_t{tile} * kHalfRows;
    const int left = rows_of_tile(tile);
    HalfRows<P> x;
    const Memory from = source();
    if (from.packs) {
      wait_for_tile(stages);
    } else {
      const T* rows = static_cast<const T*>(p.x) + first * p.x_row;
      HalfRows<P>::copy(rows, from, left, d, shared.slots + stage * parts.stage);
    }
    x.take(shared.slots + stage * parts.stage);
    const float strength = strength_of(p, first);
    float taken[P][4][4] = {};  // summed by itself: only the last step rounds at the size of x
    bool flawed[2] = {};        // rows whose projector has a number that can't be split

    if constexpr (banked) {
      const HalfBank bank = shared.bank.of_tile(tile);
      read_bank(p, bank, first);
      // Known from here on: whose turns these are. Done with: the squares of the tile before.
      sync_part<kThreads>(team<teams>());
      request(tile + stages, stage);
      for (int leader = 0; leader < kHalfRows; ++leader) {
        if (bank.leader[leader] != leader) continue;
        const Span span = bank.span[leader];
        for (int g = 0; g < span.rank; g += kGroup) {
          const int start = span.start + g, count = left_of(span.rank, g);
          if (start != slice.start || count != slice.count) {
            sync_part<kThreads>(team<teams>());  // the slice before is done with
            const bool good = fill<banked>(p, shared, 0, start, count, count);
            slice = {start, count, any_flawed<teams>(shared.flawed, !good)};
          }
          if (slice.flawed) {
            for (int half = 0; half < 2; ++half) {
              flawed[half] |= bank.leader[HalfRows<P>::row(half)] == leader;
            }
          }
          float dot[2][4];
          multiply_read<T>(dot, x, shared.read, 0);
          store_sums(shared, dot);
          sync_part<kThreads>(team<teams>());  // the sums are complete
          store_coefficient(p, shared, strength, start, count, bank.leader, leader);
          sync_part<kThreads>(team<teams>());  // the coefficients are complete, the sums free
          multiply_write(taken, shared, 0);
        }
      }
    } else {
      // A team that is alone sums the next group while this one's sums are added up.
      constexpr bool ahead = teams == 1;
      float dot[2][4];
      if (groups == 0) {
        sync_part<kThreads>(team<teams>());  // the squares of the tile before are done with
        request(tile + stages, stage);
      }
#pragma unroll 1
      for (int g = 0; g < groups; ++g) {
        if (!ahead || g == 0) multiply_read<T>(dot, x, shared.read, g);
        store_sums(shared, dot);
        // Complete: the sums. Done with: the coefficients, slots and squares before.
        sync_part<kThreads>(team<teams>());
        if (g == 0) request(tile + stages, stage);
        store_coefficient(p, shared, strength, g * kGroup, left_of(p.k, g * kGroup), nullptr, 0);
        if (ahead && g + 1 < groups) multiply_read<T>(dot, x, shared.read, g + 1);
        sync_part<kThreads>(team<teams>());  // the coefficients are complete, the sums free
        multiply_write(taken, shared, g);
      }
    }

    float (&y)[P][4][4] = taken;
#pragma unroll
    for (int i = 0; i < P * 16; ++i) {
      const int half = i % 4 / 2, t = i / 4 % 4;
      const uint32_t pair = x.words[i / 16][half][t];
      const uint16_t bits = static_cast<uint16_t>(i % 2 ? pair >> 16 : pair);
      y[i / 16][t][i % 4] = to_float(from_bits<T>(bits)) - taken[i / 16][t][i % 4];
    }
    float factor[2] = {1, 1};
    auto rank = [&](int half) {
      return banked ? shared.bank.of_tile(tile).span[HalfRows<P>::row(half)].rank : groups;
    };
    auto spoiled = [&](int half) { return flawed[half] || rank(half) < 0; };
    if (p.normalize || p.norm) {
      store_squares(shared, y);
      sync_part<kThreads>(team<teams>());  // the squares are complete
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = HalfRows<P>::row(half);
        const RowLength length = length_of_row(shared, row);
        if (p.normalize) factor[half] = length.inverse;
        if (p.norm && team_warp() == 0 && lane() % 4 == 0 && row < left) {
          p.norm[first + row] = spoiled(half) ? kNaN : length.norm;
        }
      }
    }
    if (!p.out) continue;
    const float scale = p.scale ? *p.scale : 1.0f;
    const Memory to = memory_of<T>(p.out, p.out_row, p.out_col, p.d);
    T* out = static_cast<T*>(p.out) + first * p.out_row;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = HalfRows<P>::row(half);
      if (row >= left) continue;
      const float times = spoiled(half) ? kNaN : factor[half] * scale;
      if (rank(half) == 0 && !p.normalize && !p.scale) {  // so that a NaN keeps its payload
        copy_row<P>(static_cast<const T*>(p.x) + (first + row) * p.x_row, p.x_col, d,
                    out + row * to.row, to.col);
        continue;
      }
#pragma unroll
      for (int i = 0; i < P; ++i) {
        Pack<uint32_t> pack;
#pragma unroll
        for (int t = 0; t < 4; ++t) {
          const float* pair = y[i][t] + 2 * half;
          pack.at[t] = round_pair<T>(pair[0] * times, pair[1] * times);
        }
        store_columns<T>(out + row * to.row, to, HalfRows<P>::column(i), d, pack);
      }
    }
  }
}

template <class T, int P, int teams, bool banked>
__global__ void __launch_bounds__(kThreads* teams, half_blocks(kType<T>, P, banked))
    project_half_kernel(ProjectParams<float> p) {
#ifdef __CUDA_ARCH__
  constexpr int major = __CUDA_ARCH__ / 100;
  if constexpr (major < 8 || teams > half_teams(major, kType<T>, P, banked)) {
    __trap();  // a plan for another architecture than the code is for
  } else
#endif
  {
    project_half_tiles<T, P, teams, banked>(p);
  }
}

}  // namespace clipproj
