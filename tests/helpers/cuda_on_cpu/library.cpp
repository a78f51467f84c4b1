// SPDX-License-Identifier: Apache-2.0
// The kernels on the CPU, for ctypes: each function launches one and gives 0, or 1 and a text.
#include <cstdio>
#include <cstring>
#include <map>
#include <stdexcept>

#include "../../csrc/cuda/project_kernels.cuh"
#include "block.h"
#include "operands.h"
#include "planted.cuh"

namespace cuda_on_cpu {

namespace {

using Params = clipproj::ProjectParams<float>;
using clipproj::KernelKind;
constexpr int kHalfPath = 17;  // project_half_kernel; others are 0 or the rows of a tile

template <class T>
void project(Params p, int path, unsigned blocks, uint64_t seed) {
  const int rows = path == kHalfPath ? clipproj::kHalfRows : path;
  const KernelKind kind = path == 0           ? KernelKind::kPlain
                          : path == kHalfPath ? KernelKind::kHalf
                                              : KernelKind::kTiles;
  if (kind == KernelKind::kHalf && clipproj::is_solved(p)) {
    throw std::runtime_error("project_half_kernel takes no gram but with clamps");
  }
  Operands own;
  auto extent = [&](int64_t row, int64_t column) {
    return p.n == 0 ? 0 : (p.n - 1) * row + (p.d - 1) * column + 1;
  };
  p.x = own.take(static_cast<const T*>(p.x), extent(p.x_row, p.x_col));
  p.out = own.take(static_cast<T*>(p.out), extent(p.out_row, p.out_col));
  p.norm = own.take(p.norm, p.n);
  p.read = own.take(p.read, p.k * p.d);
  p.write = own.take(p.write, p.k * p.d);
  p.offset = own.take(p.offset, p.k);
  p.gram = own.take(p.gram, p.k * p.gram_row);
  p.strength = own.take(p.strength, p.strength_row ? p.n : 1);
  p.scale = own.take(p.scale, 1);
  p.spans = own.take(p.spans, 2 * p.m);
  p.index = own.take(p.index, p.n);
  p.flag = own.take(p.flag, 1);
  // What plans choose by the device, and results must not depend on.
  const int stages = 1 + seed % 3;
  const int most = clipproj::half_teams(9, clipproj::kType<T>, clipproj::half_pieces(p.d), p.index);
  const int teams = kind == KernelKind::kHalf && seed % 2 ? most : 1;
  launch(clipproj::project_kernel_of<T>({kind, rows, teams, 0, 0}, p), blocks,
         teams * clipproj::kThreads,
         clipproj::project_shared(sizeof(T), kind, rows, p, teams, stages), seed, p);
  own.bring_back();
}

using Small = void (*)(const float*, float*);

Small planted_kernel(const std::string& name) {
  static const std::map<std::string, Small> kernels = {
      {"reverse", planted::reverse<true>},
      {"missing barrier", planted::reverse<false>},
      {"sum twice", planted::sum_twice<true>},
      {"missing barrier after read", planted::sum_twice<false>},
      {"reverse warps", planted::reverse_warps<true>},
      {"missing warp barrier", planted::reverse_warps<false>},
      {"divergent barrier", planted::divergent_barrier},
      {"left before barrier", planted::left_before_barrier},
      {"missing lane", planted::missing_lane},
      {"read beyond", planted::read_beyond},
      {"write beyond part", planted::write_beyond_part},
      {"read uninitialised", planted::read_uninitialised},
      {"more than launched", planted::more_than_launched},
      {"colliding blocks", planted::colliding_blocks},
      {"misaligned", planted::misaligned},
      {"copy", planted::copy<true, true, true>},
      {"copy without commit", planted::copy<false, true, true>},
      {"copy without wait", planted::copy<true, false, true>},
      {"copy without barrier", planted::copy<true, true, false>},
      {"copy of what changes", planted::copy_of_what_changes},
  };
  return kernels.at(name);
}

template <class F>
int guarded(char* error, size_t size, F&& run) {
  try {
    run();
    return 0;
  } catch (const std::exception& e) {
    std::snprintf(error, size, "%s", e.what());
    return 1;
  }
}

}  // namespace

}  // namespace cuda_on_cpu

using namespace cuda_on_cpu;

// dtype: 'f' float32, 'b' bfloat16, 'h' float16. rows: of a tile, 0 for the plain kernel, 17 for
// project_half_kernel.
extern "C" int run_project(const Params* p, char dtype, int rows, unsigned blocks, uint64_t seed,
                           char* error, size_t size) {
  return guarded(error, size, [&] {
    if (dtype == 'f') return project<float>(*p, rows, blocks, seed);
    if (dtype == 'b') return project<__nv_bfloat16>(*p, rows, blocks, seed);
    return project<__half>(*p, rows, blocks, seed);
  });
}

// What launches on such a device would do.
extern "C" void plan_project(const Params* p, char dtype, const clipproj::DeviceProperties* device,
                             clipproj::Plan* plan) {
  const auto type = dtype == 'f'   ? clipproj::Type::kFloat
                    : dtype == 'b' ? clipproj::Type::kBFloat16
                                   : clipproj::Type::kHalf;
  *plan = clipproj::plan_project(type, *p, *device);
}

extern "C" int run_planted(const char* name, const float* in, float* out, uint64_t seed,
                           char* error, size_t size) {
  return guarded(error, size, [&] {
    Operands own;
    const float* own_in = own.take(in, planted::kThreads);
    float* own_out = own.take(out, 2 * planted::kThreads);
    launch(planted_kernel(name), 2, planted::kThreads, planted::kShared, seed, own_in, own_out);
    own.bring_back();
  });
}

extern "C" int run_multiply(const __nv_bfloat16* a, const __nv_bfloat16* b, const __nv_bfloat16* bt,
                            float* out, uint64_t seed, char* error, size_t size) {
  return guarded(error, size, [&] {
    launch(planted::multiply, 1, 32, clipproj::shared_bytes<__nv_bfloat16>(512), seed, a, b, bt,
           out);
  });
}

// Launches leave out the barrier at this line from now on; line 0: none.
extern "C" void remove_barrier(const char* file, unsigned line) { removed = {file, line}; }
