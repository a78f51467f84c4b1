// SPDX-License-Identifier: Apache-2.0
// What project_half_kernel holds: the rows of a tile in registers, the rest in shared memory; and
// the rows' way from and to global memory.
#pragma once
#include "bank.cuh"
#include "half_factors.cuh"

namespace clipproj {

// What a lane owns of x: words[piece][row lane / 4, or 8 below][two columns].
template <int P>
struct HalfRows {
  uint32_t words[P][2][4];

  static constexpr int kPacks = 2 * P;  // of 16 bytes

  // The first of the 8 columns of a piece.
  __device__ static int column(int piece) {
    return (team_warp() + kWarps * piece) * kPiece + 8 * (lane() % 4);
  }
  __device__ static int row(int half) { return lane() / 4 + 8 * half; }

  // Asks for the lane's part of a tile that starts at x and of which `left` rows exist; the slots
  // [kPacks, kThreads] hold it from copy_async_wait on. Columns d.. and rows left.. are zero.
  template <class T>
  __device__ static void request(const T* x, Memory from, int left, int d, uint16_t* slots) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = row(half);
      const T* lane_of_row = x + r * from.row + column(0);
#pragma unroll
      for (int i = 0; i < P; ++i) {
        copy_async16(slots + ((2 * i + half) * kThreads + team_thread()) * 8,
                     lane_of_row + i * kWarps * kPiece, r < left && column(i) < d);
      }
    }
  }

  __device__ void take(const uint16_t* slots) {
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const Pack<uint32_t> pack =
          load_pack(reinterpret_cast<const uint32_t*>(slots + (i * kThreads + team_thread()) * 8));
#pragma unroll
      for (int t = 0; t < 4; ++t) words[i / 2][i % 2][t] = pack.at[t];
    }
  }

  // Fills the slots at once, from rows that are no whole packs.
  template <class T>
  __device__ static void copy(const T* x, Memory from, int left, int d, uint16_t* slots) {
#pragma unroll 1
    for (int i = 0; i < kPacks; ++i) {
      const int r = row(i % 2), j = column(i / 2);
      uint16_t* slot = slots + (i * kThreads + team_thread()) * 8;
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        const bool some = r < left && j + c < d;
        slot[c] = some ? to_bits(x[r * from.row + (j + c) * from.col]) : uint16_t{0};
      }
    }
  }
};

// Whose turn a tile's rows wait for, of a bank. Twice, for tiles in turn: warps that are ahead
// write the next tile's.
struct HalfBank {
  Span* span;   // [rows]
  int* leader;  // [rows] the first row with the same span

  __device__ HalfBank of_tile(int tile) const {
    const int at = tile % 2 * kHalfRows;
    return {span + at, leader + at};
  }
};

template <int P>
struct HalfShared {
  HalfFactor<P> read, write;
  uint16_t* slots;           // [stages, HalfRows::kPacks, kThreads, 8] rows that come next
  float* sums;               // [kWarps, kGroup, rows]
  uint16_t *c_high, *c_low;  // [rows, kHalfCoefPitch]
  float *squares, *far;      // [rows, kWarps]; far ones at a smaller scale
  int* flawed;               // [kWarps] of a slice: whether some number can't be split
  HalfBank bank;
};

// The part of this thread's team. Factors are the block's, of a bank the team's.
template <int P, int teams, bool banked>
__device__ HalfShared<P> take_shared(const ProjectParams<float>& p, const HalfParts& parts,
                                     int stages) {
  SharedParts shared;
  auto of_team = [&](auto type, int64_t count) {
    return shared.take<decltype(type)>(teams * count) + team<teams>() * count;
  };
  auto factor = [&] {
    return HalfFactor<P>{banked ? of_team(uint16_t(), parts.factor)
                                : shared.take<uint16_t>(parts.factor)};
  };
  HalfShared<P> all{};
  all.sums = of_team(float(), parts.sums);  // first what is of known size: constants, not registers
  all.c_high = of_team(uint16_t(), parts.coef);
  all.c_low = of_team(uint16_t(), parts.coef);
  all.squares = of_team(float(), parts.squares);
  all.far = of_team(float(), parts.squares);
  if (banked) {
    all.bank = {of_team(Span(), parts.bank), of_team(int(), parts.bank)};
    all.flawed = of_team(int(), kWarps);
  }
  all.slots = of_team(uint16_t(), stages * parts.stage);
  all.read = factor();
  all.write = p.write == p.read ? all.read : factor();
  return all;
}

}  // namespace clipproj
