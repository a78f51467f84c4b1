// SPDX-License-Identifier: Apache-2.0
// What the lanes of a warp do together: shuffles, ldmatrix, mma.sync, after the PTX ISA.
#include <cstring>

#include "block.h"
#include "sanitizers.h"

namespace cuda_on_cpu {

namespace {

struct Exchange {
  uint32_t value;
  int source;
  uint32_t result;
};

struct Vote {
  bool value;
  uint32_t result;
};

struct Matrices {
  uint32_t* r;
  bool transposed;
  const void* row;
};

struct Product {
  float* d;
  const uint32_t *a, *b;
};

uint32_t pair(uint32_t low, uint32_t high) { return low | high << 16; }

// The element in a fragment register's lower or upper half.
float element(uint32_t r, int half) {
  return clipproj::to_float(__nv_bfloat16{static_cast<uint16_t>(r >> 16 * half)});
}

void multiply_fragments(void* (&lanes)[kWarpSize]) {
  auto at = [&](int i) { return static_cast<Product*>(lanes[i]); };
  float a[16][16], b[16][8];
  for (int l = 0; l < kWarpSize; ++l) {
    const Product& p = *at(l);
    const int g = l / 4, t = 2 * (l % 4);
    for (int h = 0; h < 2; ++h) {
      a[g][t + h] = element(p.a[0], h);
      a[g + 8][t + h] = element(p.a[1], h);
      a[g][t + 8 + h] = element(p.a[2], h);
      a[g + 8][t + 8 + h] = element(p.a[3], h);
      b[t + h][g] = element(p.b[0], h);
      b[t + 8 + h][g] = element(p.b[1], h);
    }
  }
  // Products of halves are exact in float; the order of the sums is the hardware's affair, and
  // this one is no better than that.
  float sums[16][8] = {};
  for (int i = 0; i < 16; ++i) {
    for (int k = 0; k < 16; ++k) {
      for (int j = 0; j < 8; ++j) sums[i][j] += a[i][k] * b[k][j];
    }
  }
  for (int l = 0; l < kWarpSize; ++l) {
    const int g = l / 4, t = 2 * (l % 4);
    for (int i = 0; i < 4; ++i) at(l)->d[i] += sums[g + 8 * (i / 2)][t + i % 2];
  }
}

}  // namespace

uint32_t exchange(uint32_t value, int source, Where where) {
  if (source < 0 || source >= kWarpSize) block->fail("shuffle from outside the warp", where);
  Exchange mine{value, source, 0};
  const Act act = [](void*(&lanes)[kWarpSize]) {
    auto at = [&](int i) { return static_cast<Exchange*>(lanes[i]); };
    for (int i = 0; i < kWarpSize; ++i) at(i)->result = at(at(i)->source)->value;
  };
  block->meet_warp("shuffle", &mine, act, where);
  return mine.result;
}

uint32_t ballot(bool value, Where where) {
  Vote mine{value, 0};
  const Act act = [](void*(&lanes)[kWarpSize]) {
    auto at = [&](int i) { return static_cast<Vote*>(lanes[i]); };
    uint32_t all = 0;
    for (int i = 0; i < kWarpSize; ++i) all |= uint32_t{at(i)->value} << i;
    for (int i = 0; i < kWarpSize; ++i) at(i)->result = all;
  };
  block->meet_warp("ballot", &mine, act, where);
  return mine.result;
}

void load_matrices(uint32_t (&r)[4], bool transposed, const void* row, Where where) {
  check_aligned(row, where);
  if (!block->is_shared(row, 16)) block->fail("ldmatrix of what is not shared memory", where);
  note_read(row, 16);
  Matrices mine{r, transposed, row};
  const Act act = [](void*(&lanes)[kWarpSize]) {
    auto at = [&](int i) { return static_cast<Matrices*>(lanes[i]); };
    auto element = [&](int matrix, int i, int j) {
      uint16_t bits;
      const void* start = at(8 * matrix + i)->row;
      std::memcpy(&bits, static_cast<const char*>(start) + 2 * j, 2);
      return bits;
    };
    for (int l = 0; l < kWarpSize; ++l) {
      const int i = l / 4, j = 2 * (l % 4);
      for (int m = 0; m < 4; ++m) {
        at(l)->r[m] = at(l)->transposed ? pair(element(m, j, i), element(m, j + 1, i))
                                        : pair(element(m, i, j), element(m, i, j + 1));
      }
    }
  };
  block->meet_warp("load_matrix", &mine, act, where);
}

void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Where where) {
  Product mine{d, a, b};
  block->meet_warp("mma", &mine, &multiply_fragments, where);
}

}  // namespace cuda_on_cpu

void clipproj::sync_warp(Where where) {
  using namespace cuda_on_cpu;
  if (!is_removed(where)) block->meet_warp("sync_warp", nullptr, nullptr, where);
}
