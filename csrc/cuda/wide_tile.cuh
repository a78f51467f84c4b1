// SPDX-License-Identifier: Apache-2.0
// The tile of project_wide_kernel, and its way to global memory.
#pragma once
#include "split.cuh"
#include "tile.cuh"

namespace clipproj {

// Eight bytes in one access.
struct alignas(8) Words {
  uint32_t at[2];
};

// The shared memory of a block, in the order of TileShared.
struct WideTile {
  uint16_t* x;       // [M, pitch] bits of x, then of x', or the upper halves of x' in float32
  float* sums;       // [kWarps, M, kGroup]; done with before `low` is written
  uint8_t* low;      // [M, pitch] the bytes below these halves
  uint32_t* c_high;  // [M, coef_pitch] two directions a word
  uint32_t* c_low;
  float* slots;  // [kWarps, M]
  int width, pitch, coef_pitch;

  __device__ float at(int r, int j) const { return kept(x[r * pitch + j], low[r * pitch + j]); }
};

// The tile's rows, one at a time by a warp, to their lengths and to out.
template <class T, int M>
__device__ void finish(const ProjectParams<float>& p, const WideTile& tile, int64_t first, int left,
                       bool measured) {
  const int d = static_cast<int>(p.d);
  T* out = p.out ? static_cast<T*>(p.out) + first * p.out_row : nullptr;
  const Memory to = memory_of<T>(p.out, p.out_row, p.out_col, p.d);
  if (!measured && to.row == 1) {  // neighbouring rows are adjacent: columns of a weight
    for (int j = warp(); j < d; j += kWarps) {
#pragma unroll 1
      for (int r = lane(); r < left; r += 32) {
        out[r + j * to.col] = from_bits<T>(tile.x[r * tile.pitch + j]);
      }
    }
    return;
  }
  for (int r = warp(); r < left; r += kWarps) {
    float factor = 1;
    if (measured) {
      float squares = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) squares += tile.slots[w * M + r];
      const Length length = length_of(squares, d, [&](int j) { return tile.at(r, j); });
      if (p.norm && lane() == 0) p.norm[first + r] = length.norm;
      // Subnormal for lengths that float can hardly hold: 16 bits then, enough for halves.
      if (p.normalize) factor = length.scale * length.factor;
      if (p.scale) factor *= *p.scale;
      if (isnan(length.norm)) factor = length.norm;
    }
    if (!out) continue;
    T* row = out + r * to.row;
    if (to.packs) {
      for (int j = 8 * lane(); j < d; j += 8 * 32) {
        Pack<uint16_t> high = load_pack(tile.x + r * tile.pitch + j);
        if (measured) {
          const Words low = *reinterpret_cast<const Words*>(tile.low + r * tile.pitch + j);
#pragma unroll
          for (int i = 0; i < 8; i += 2) {
            const uint32_t pair = low.at[i / 4] >> 8 * (i % 4);
            const uint32_t bits = round_pair<T>(kept(high.at[i], pair & 0xff) * factor,
                                                kept(high.at[i + 1], pair >> 8 & 0xff) * factor);
            std::memcpy(&high.at[i], &bits, sizeof(bits));
          }
        }
        store_pack(reinterpret_cast<uint16_t*>(row + j), high);
      }
    } else {
#pragma unroll 1
      for (int j = lane(); j < d; j += 32) {
        const uint16_t high = tile.x[r * tile.pitch + j];
        row[j * to.col] = measured
                              ? from_float<T>(kept(high, tile.low[r * tile.pitch + j]) * factor)
                              : from_bits<T>(high);
      }
    }
  }
}

}  // namespace clipproj
