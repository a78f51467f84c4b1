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
CLIPPROJ_HOST_DEVICE constexpr Int round_up(Int count, int step) {
  return (count + step - 1) / step * step;
}

// Elements between the rows of a tile, chosen so that a warp's 16-byte accesses, two rows at a time
// for halves and eight for floats, touch each bank once.
CLIPPROJ_HOST_DEVICE constexpr int64_t tile_pitch(int element_bytes, int64_t d) {
  return element_bytes == 2 ? (d + kPiece - 1) / kPiece / 2 * 64 + 32 : round_up(d, kPiece) + 4;
}

// Words between the rows of the coefficients: eight hold sixteen bfloat16. Odd multiples of eight
// keep rows off each other's banks.
CLIPPROJ_HOST_DEVICE constexpr int64_t coef_pitch(int64_t k) {
  return (round_up(k, kGroup) / 16 | 1) * 8;
}

// Whether coefficients may be more than their own affair: those of solve.cuh. Of a bank each row's
// span says.
CLIPPROJ_HOST_DEVICE constexpr bool is_solved(const ProjectParams<float>& p) {
  return p.gram && !p.clamps;
}

// Directions whose coefficients a block holds at a time: all there are; of a bank, whose ranks only
// the device knows, so many that few projectors have more, and no one-sided one.
CLIPPROJ_HOST_DEVICE constexpr int64_t coef_room(const ProjectParams<float>& p, bool solved) {
  const int64_t room = solved && p.gram_row > kRoom ? p.gram_row : kRoom;
  return p.index && p.k > room ? room : p.k;
}

// The shared memory of a tile of m rows, part by part.
struct TileShared {
  int64_t tile;     // elements
  int64_t scratch;  // bytes: partial dot products, then the low bytes of projected rows
  int64_t coef;     // words
  int64_t slots;    // floats: parts of the rows' sums of squares
  int64_t spans;    // words: of float rows in a bank, and room for them without one, so that a row
                    // of a bank goes the way of its projector by itself

  CLIPPROJ_HOST_DEVICE constexpr TileShared(int element_bytes, int m, int64_t d, int64_t k,
                                            bool measured)
      : tile(m * tile_pitch(element_bytes, d)),
        scratch(int64_t{4} * kWarps * m * kGroup),
        coef(element_bytes == 2 ? 2 * m * coef_pitch(k) : m * round_up(k, kGroup)),
        slots(m * (element_bytes == 2 ? kWarps : (d + kPanel - 1) / kPanel)),
        spans(element_bytes == 2 ? 0 : 2 * m) {
    if (measured && element_bytes == 2 && scratch < tile) scratch = tile;
  }

  constexpr size_t bytes(int element_bytes) const {
    auto up = [](int64_t size) { return static_cast<size_t>(round_up(size, 16)); };
    return up(tile * element_bytes) + up(scratch) + up(coef * 4) + up(slots * 4) + up(spans * 4);
  }
};

constexpr int kHalfRows = 16;       // of a tile of project_half_kernel
constexpr int kHalfCoefPitch = 24;  // elements; rows of 48 bytes keep off each other's banks
constexpr int kMostPieces = 5;      // of a warp: registers for 1280 columns

enum class Type { kFloat, kBFloat16, kHalf };  // of x

// Teams of a block of project_half_kernel that 128 registers of a thread allow, and blocks that
// share a multiprocessor: two of either. Teams share the factors; of a bank each has its own, so
// there blocks do as well, with shorter barriers. From sm_100 on ptxas wants more registers.
CLIPPROJ_HOST_DEVICE constexpr int half_teams(int major, Type type, int pieces, bool banked) {
  return type == Type::kBFloat16 && pieces <= (major < 10 ? 3 : 2) && !banked ? 2 : 1;
}
CLIPPROJ_HOST_DEVICE constexpr int half_blocks(Type type, int pieces, bool banked) {
  return type == Type::kBFloat16 && pieces <= 3 && banked ? 2 : 1;
}

// Pieces of a warp of project_half_kernel.
CLIPPROJ_HOST_DEVICE constexpr int half_pieces(int64_t d) {
  const int64_t pieces = (d + kPiece * kWarps - 1) / (kPiece * kWarps);
  return pieces < 2 ? 2 : static_cast<int>(pieces);
}

// Groups of directions that its shared memory has slots for: all; of a bank one, filled in turns.
CLIPPROJ_HOST_DEVICE constexpr int64_t half_groups(const ProjectParams<float>& p) {
  return p.index ? 1 : (p.k + kGroup - 1) / kGroup;
}

// The shared memory of a block of project_half_kernel, in elements, part by part; all but the
// factors for each team.
struct HalfParts {
  int matrices;    // 1 when read is write
  int64_t factor;  // of a matrix, high and low parts
  int64_t stage;   // rows of one tile
  int64_t sums, coef, squares, bank;

  CLIPPROJ_HOST_DEVICE constexpr HalfParts(int pieces, int64_t groups, bool symmetric, bool banked)
      : matrices(symmetric ? 1 : 2),
        factor(2 * groups * kGroup * pieces * kWarps * kPiece),
        stage(int64_t{kHalfRows} * pieces * kWarps * kPiece),
        sums(int64_t{kWarps} * kHalfRows * kGroup),
        coef(kHalfRows * kHalfCoefPitch),
        squares(kHalfRows * kWarps),
        bank(banked ? 2 * kHalfRows : 0) {}

  CLIPPROJ_HOST_DEVICE constexpr size_t bytes(int teams, int stages) const {
    const int64_t factors = 2 * matrices * factor;
    const int64_t rest = 2 * (stages * stage + 2 * coef) +
                         4 * (sums + 2 * squares + 3 * bank + (bank > 0 ? kWarps : 0));
    return bank > 0 ? teams * (factors + rest) : factors + teams * rest;
  }
  // How many tiles' rows so much shared memory holds, up to three; 0: the rest does not fit.
  CLIPPROJ_HOST_DEVICE constexpr int stages(int teams, size_t shared) const {
    int found = 0;
    while (found < 3 && bytes(teams, found + 1) <= shared) ++found;
    return found;
  }
};

// What a plan must know of the device.
struct DeviceProperties {
  int major;  // of its compute capability
  int64_t multiprocessors;
  int64_t shared_of_block;  // bytes that a block may ask for
  int64_t shared_of_multiprocessor;
};

enum class KernelKind {
  kPlain,  // project_kernel, a row a block
  kTiles,  // project_float_kernel of 16 or 32 rows, project_wide_kernel of 16, 32 or 48
  kHalf,   // project_half_kernel, 16 rows a team
};

struct Plan {
  KernelKind kernel;
  int rows;   // of a tile
  int teams;  // of kThreads threads in a block
  int64_t blocks;
  size_t shared;
};

constexpr int64_t kMostBlocks = 2147483647;  // of a grid; blocks stride over what is beyond
constexpr int64_t kReserved = 1024;          // bytes of each block that the driver keeps

// What a kernel takes of shared memory; stages of project_half_kernel.
inline size_t project_shared(int element_bytes, KernelKind kernel, int rows,
                             const ProjectParams<float>& p, int teams = 1, int stages = 1) {
  const int64_t room = coef_room(p, is_solved(p));
  if (kernel == KernelKind::kPlain) {
    const int64_t taken = room < p.k ? p.d : 0;
    return round_up(4 * p.d, 16) + round_up(4 * room, 16) + round_up(4 * taken, 16) +
           round_up(4 * kWarps, 16) + 2 * sizeof(Span);
  }
  if (kernel == KernelKind::kHalf) {
    return HalfParts(half_pieces(p.d), half_groups(p), p.write == p.read, p.index)
        .bytes(teams, stages);
  }
  return TileShared(element_bytes, rows, p.d, room, p.normalize || p.norm).bytes(element_bytes);
}

// As many blocks and teams as registers allow and shared memory holds the rows of, with as many
// tiles on their way as fit. Whether this kernel serves, which it does where the factors fit,
// depends on d and k, not on n. No blocks: it does not.
inline Plan plan_half(Type type, const ProjectParams<float>& p, const DeviceProperties& device) {
  const int pieces = half_pieces(p.d);
  if (pieces > kMostPieces) return {};
  const int64_t tiles = (p.n + kHalfRows - 1) / kHalfRows;
  const HalfParts parts(pieces, half_groups(p), p.write == p.read, p.index);
  for (int blocks = half_blocks(type, pieces, p.index); blocks > 0; --blocks) {
    const int64_t room =
        std::min(device.shared_of_multiprocessor / blocks - kReserved, device.shared_of_block);
    for (int teams = half_teams(device.major, type, pieces, p.index); teams > 0; --teams) {
      const int stages = parts.stages(teams, room);
      if (stages == 0) continue;
      return {KernelKind::kHalf, kHalfRows, teams, std::min(tiles, blocks * device.multiprocessors),
              parts.bytes(teams, stages)};
    }
  }
  return {};
}

// Tiles as large as leave two blocks to a multiprocessor, one computing while the other's rows come
// and go; but no larger than what occupies the device. The plain kernel takes rows that are too
// wide for any tile, and rows of halves so narrow that split factors are not as good as float32.
// project_half_kernel holds too few coefficients at a time to solve for them.
inline Plan plan_project(Type type, const ProjectParams<float>& p, const DeviceProperties& device) {
  const int64_t half = device.shared_of_multiprocessor / 2 - kReserved;
  const bool halves = type != Type::kFloat;
  const int element_bytes = halves ? 2 : 4;
  Plan plan{KernelKind::kPlain, 1, 1, std::min(p.n, kMostBlocks),
            project_shared(element_bytes, KernelKind::kPlain, 1, p)};
  if (device.major < 8 || (halves && p.d < kLeastSplit)) return plan;
  if (halves) {
    const Plan best = is_solved(p) ? Plan{} : plan_half(type, p, device);
    if (best.blocks > 0) return best;
    if (p.index || (p.scale && !p.normalize)) return plan;
  } else {
    // Whatever the rank, so that a row of a bank goes the way of its projector by itself.
    const TileShared least(4, 16, p.d, std::max<int64_t>(coef_room(p, is_solved(p)), kRoom), true);
    if (p.d > kWidest || static_cast<int64_t>(least.bytes(4)) > device.shared_of_block) return plan;
  }
  for (int rows = 16; rows <= (halves ? 48 : 32); rows += 16) {
    const int64_t tiles = (p.n + rows - 1) / rows;
    const size_t shared = project_shared(element_bytes, KernelKind::kTiles, rows, p);
    const int64_t limit =
        rows == 16 ? device.shared_of_block : std::min(half, device.shared_of_block);
    if (static_cast<int64_t>(shared) > limit) break;
    if (rows > 16 && tiles < 2 * device.multiprocessors) break;
    plan = {KernelKind::kTiles, rows, 1, std::min(tiles, kMostBlocks), shared};
  }
  return plan;
}

}  // namespace clipproj
