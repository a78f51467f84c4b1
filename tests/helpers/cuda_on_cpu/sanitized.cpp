// SPDX-License-Identifier: Apache-2.0
// What runs under AddressSanitizer and ThreadSanitizer: `sanitized kernels [file line]`, all
// kernels at a few shapes (without the barrier at that line), or `sanitized NAME`, one of
// planted.cuh. Values are checked elsewhere; here the sanitizer has its say. 0: nothing found.
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "../../csrc/params.h"

using Params = clipproj::ProjectParams<float>;

extern "C" {
int run_project(const Params* p, char dtype, int rows, unsigned blocks, uint64_t seed, char* error,
                size_t size);
int run_planted(const char* name, const float* in, float* out, uint64_t seed, char* error,
                size_t size);
void remove_barrier(const char* file, unsigned line);

const char* __asan_default_options() { return "detect_leaks=0"; }
const char* __tsan_default_options() { return "halt_on_error=1"; }
}

namespace {

std::vector<float> random_floats(size_t count) {
  static std::mt19937 engine(0);
  std::normal_distribution<float> normal;
  std::vector<float> out(count);
  for (float& v : out) v = normal(engine);
  return out;
}

enum Layout { kDense, kStep, kColumns };  // elements of a row adjacent, every other, rows adjacent

// x and out as raw memory, of whatever type: bits of floats are good halves, too. Every second run
// is in place and normalises, every fourth measures no lengths. In a bank, rows take turns among
// all directions, the last ones, none, and what there is not. Every third is one-sided where the
// kernel solves, in a bank the last directions.
int run_shape(int64_t n, int64_t d, int64_t k, char dtype, int rows, Layout layout, bool banked,
              int run) {
  auto x = random_floats(2 * n * d), out = x;
  const auto read = random_floats(k * d), write = random_floats(k * d), offset = random_floats(k),
             strength = random_floats(n);
  std::vector<float> norm(n);
  Params p{};
  p.x = x.data();
  p.out = run % 2 ? x.data() : out.data();
  p.norm = run % 4 ? norm.data() : nullptr;
  p.read = read.data();
  p.write = write.data();
  p.offset = offset.data();
  p.strength = strength.data();
  p.n = n, p.d = d, p.k = k;
  const bool solved = run % 3 == 0 && rows != 17;
  p.gram_row = banked ? k / 3 : k;
  std::vector<float> gram(k * p.gram_row, 0.3f);
  for (int64_t i = 0; i < k; ++i) {
    const int64_t own = banked ? i - (k - k / 3) : i;
    if (own >= 0) gram[i * p.gram_row + own] = 1;
  }
  if (solved) p.gram = gram.data();
  const auto some = static_cast<int32_t>(k), last = some / 3;
  const int32_t spans[] = {0, some, some - last, solved ? -last : last, some, 0, some, 1};
  std::vector<int32_t> index(n);
  for (int64_t i = 0; i < n; ++i) index[i] = static_cast<int32_t>(i % 6) - 1;
  int32_t flag = 0;
  const float scale = 2;
  if (banked) p.spans = spans, p.index = index.data(), p.flag = &flag, p.scale = &scale, p.m = 4;
  const int64_t step = layout == kStep ? 2 : 1;
  p.x_row = p.out_row = layout == kColumns ? 1 : d * step;
  p.x_col = p.out_col = layout == kColumns ? n : step;
  p.strength_row = 1;
  p.normalize = run % 2;
  char error[400];
  const int failed = run_project(&p, dtype, rows, 2, run, error, sizeof error);
  if (failed) {
    std::fprintf(stderr, "%ld %ld %ld %c %d%s: %s\n", n, d, k, dtype, rows, banked ? " banked" : "",
                 error);
  }
  return failed;
}

int run_kernels() {
  const int64_t shapes[][3] = {{1, 1, 0},   {1, 1, 1},    {3, 17, 3},   {17, 96, 8},
                               {3, 500, 9}, {33, 64, 16}, {3, 512, 50}, {65, 40, 0}};
  int failed = 0, run = 0;
  for (const auto& [n, d, k] : shapes) {
    for (const auto layout : {kDense, kStep, kColumns}) {
      for (const int rows : {0, 16, 17, 32, 48}) {
        for (const char dtype : {'f', 'b', 'h'}) {
          if (dtype == 'f' && (rows == 17 || rows == 48)) continue;
          failed |= run_shape(n, d, k, dtype, rows, layout, false, run++);
        }
      }
    }
  }
  const int64_t banks[][3] = {{1, 1, 1}, {7, 17, 3}, {17, 96, 8}, {9, 136, 300}, {33, 64, 16}};
  for (const auto& [n, d, k] : banks) {
    for (const auto layout : {kDense, kStep, kColumns}) {
      for (const int rows : {0, 16, 17, 32}) {
        for (const char dtype : {'f', 'b', 'h'}) {
          if (rows != 0 && (dtype == 'f') != (rows != 17)) continue;  // tiles of float32, or 17
          failed |= run_shape(n, d, k, dtype, rows, layout, true, run++);
        }
      }
    }
  }
  return failed;
}

int run_small(const char* name) {
  const auto in = random_floats(64);
  std::vector<float> out(2 * in.size());
  char error[400];
  for (uint64_t seed = 0; seed < 4; ++seed) {
    if (run_planted(name, in.data(), out.data(), seed, error, sizeof error)) {
      std::fprintf(stderr, "%s\n", error);
      return 1;
    }
  }
  return 0;
}

}  // namespace

int main(int count, char** given) {
  if (count != 2 && count != 4) return 2;
  if (std::string(given[1]) != "kernels") return run_small(given[1]);
  if (count == 4) remove_barrier(given[2], std::strtoul(given[3], nullptr, 10));
  return run_kernels();
}
