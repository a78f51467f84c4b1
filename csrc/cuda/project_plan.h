// SPDX-License-Identifier: Apache-2.0
// How a launch covers its rows: code without CUDA, so that tests without a GPU plan alike.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "../params.h"

#ifdef __CUDACC__
#define CLIPPROJ_HOST_DEVICE __host__ __device__
#else
#define CLIPPROJ_HOST_DEVICE
#endif

namespace clipproj {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kPiece = 32;        // columns of one step of a warp; tiles are padded to whole pieces
constexpr int kGroup = 16;        // directions of one step
constexpr int kLeastSplit = 256;  // columns from which on split factors serve
constexpr int kPanel = 128;       // columns of a warp that subtracts in float32
constexpr int kWidest = 4096;     // columns of a float32 tile
constexpr int kRoom = 128;        // directions of one projector of a bank that a block holds

template <class Int>
CLIPPROJ_HOST_DEVICE constexpr Int whole(Int count, int step) {
  return (count + step - 1) / step * step;
}

// Elements between the rows of a tile, chosen so that a warp's 16-byte accesses, two rows at a time
// for halves and eight for floats, touch each bank once.
CLIPPROJ_HOST_DEVICE constexpr int64_t tile_pitch(int element_bytes, int64_t d) {
  return element_bytes == 2 ? (d + kPiece - 1) / kPiece / 2 * 64 + 32 : whole(d, kPiece) + 4;
}

// Words between the rows of the coefficients: eight hold sixteen bfloat16. Odd multiples of eight
// keep rows off each other's banks.
CLIPPROJ_HOST_DEVICE constexpr int64_t coef_pitch(int64_t k) {
  return (whole(k, kGroup) / 16 | 1) * 8;
}

// Directions whose coefficients a block holds at a time: all there are; of a bank, whose ranks only
// the device knows, so many that few projectors have more.
CLIPPROJ_HOST_DEVICE constexpr int64_t coef_room(const ProjectParams<float>& p) {
  return p.index && p.k > kRoom ? kRoom : p.k;
}

// The shared memory of a tile of m rows, part by part.
struct TileShared {
  int64_t tile;     // elements
  int64_t scratch;  // bytes: partial dot products, then the low bytes of projected rows
  int64_t coef;     // words
  int64_t slots;    // floats: parts of the rows' sums of squares

  CLIPPROJ_HOST_DEVICE constexpr TileShared(int element_bytes, int m, int64_t d, int64_t k,
                                            bool measured)
      : tile(m * tile_pitch(element_bytes, d)),
        scratch(int64_t{4} * kWarps * m * kGroup),
        coef(element_bytes == 2 ? 2 * m * coef_pitch(k) : m * whole(k, kGroup)),
        slots(m * (element_bytes == 2 ? kWarps : (d + kPanel - 1) / kPanel)) {
    if (measured && element_bytes == 2 && scratch < tile) scratch = tile;
  }

  constexpr size_t bytes(int element_bytes) const {
    auto up = [](int64_t size) { return static_cast<size_t>(whole(size, 16)); };
    return up(tile * element_bytes) + up(scratch) + up(coef * 4) + up(slots * 4);
  }
};

// What the kernel over tiles of so many rows, or the plain one, takes of shared memory.
inline size_t project_shared(int element_bytes, int rows, const ProjectParams<float>& p) {
  const int64_t room = coef_room(p);
  if (rows == 0) {
    const int64_t taken = room < p.k ? p.d : 0;
    return whole(4 * p.d, 16) + whole(4 * room, 16) + whole(4 * taken, 16) + whole(4 * kWarps, 16);
  }
  return TileShared(element_bytes, rows, p.d, room, p.normalize || p.norm).bytes(element_bytes);
}

// What a plan must know of the device.
struct Device {
  int major;  // of its compute capability
  int64_t multiprocessors;
  int64_t shared_of_block;  // bytes that a block may ask for
  int64_t shared_of_multiprocessor;
};

struct Plan {
  int rows;  // of a tile; 0: the plain kernel, one row a block
  int64_t blocks;
  size_t shared;
};

// Tiles as large as leave two blocks to a multiprocessor, one computing while the other's rows come
// and go; but no larger than what occupies the device. The plain kernel takes rows that are too
// wide for any tile, and rows of halves so narrow that split factors are not as good as float32.
inline Plan plan_project(int element_bytes, const ProjectParams<float>& p, const Device& device) {
  constexpr int64_t kMostBlocks = 2147483647;  // of a grid; blocks stride over what is beyond
  constexpr int64_t kReserved = 1024;          // bytes of each block that the driver keeps
  const int64_t half = device.shared_of_multiprocessor / 2 - kReserved;
  Plan plan{0, std::min(p.n, kMostBlocks), project_shared(element_bytes, 0, p)};
  if (device.major < 8 || (element_bytes == 2 && p.d < kLeastSplit)) return plan;
  if (element_bytes == 2 && (p.index || p.scale)) return plan;
  if (element_bytes == 4) {
    // Whatever the rank, so that a row of a bank goes the way of its projector by itself.
    const TileShared least(4, 16, p.d, std::max<int64_t>(coef_room(p), kRoom), true);
    if (p.d > kWidest || static_cast<int64_t>(least.bytes(4)) > device.shared_of_block) return plan;
  }
  for (int rows = 16; rows <= (element_bytes == 2 ? 48 : 32); rows += 16) {
    const int64_t tiles = (p.n + rows - 1) / rows;
    const size_t shared = project_shared(element_bytes, rows, p);
    const int64_t limit =
        rows == 16 ? device.shared_of_block : std::min(half, device.shared_of_block);
    if (static_cast<int64_t>(shared) > limit) break;
    if (rows > 16 && tiles < 2 * device.multiprocessors) break;
    plan = {rows, std::min(tiles, kMostBlocks), shared};
  }
  return plan;
}

}  // namespace clipproj
