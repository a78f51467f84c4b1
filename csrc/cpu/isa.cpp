// SPDX-License-Identifier: Apache-2.0
// Finds the instruction sets of this machine and keeps the one in force.
#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace clipproj {
namespace {

// __builtin_cpu_supports also asks whether the operating system saves the wide registers.
std::vector<const CpuKernels*> detect() {
  std::vector<const CpuKernels*> found{&scalar::kernels};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    found.push_back(&avx2::kernels);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      found.push_back(&avx512::kernels);
    }
  }
#endif
  return found;
}

const std::vector<const CpuKernels*>& available() {
  static const auto found = detect();
  return found;
}

const CpuKernels* lookup(const std::string& name, const char* who) {
  std::string names;
  for (const CpuKernels* kernels : available()) {
    if (name == kernels->isa) return kernels;
    names += (names.empty() ? "" : ", ") + std::string(kernels->isa);
  }
  throw std::invalid_argument(std::string(who) + " must be one of " + names +
                              " on this machine, got '" + name + "'");
}

const CpuKernels* initial() {
  const char* wanted = std::getenv("CLIPPROJ_CPU_ISA");
  return wanted && *wanted ? lookup(wanted, "CLIPPROJ_CPU_ISA") : available().back();
}

std::atomic<const CpuKernels*>& current() {
  static std::atomic<const CpuKernels*> table{initial()};
  return table;
}

}  // namespace

const CpuKernels& cpu_kernels() { return *current().load(std::memory_order_relaxed); }

std::string cpu_isa() { return cpu_kernels().isa; }

std::vector<std::string> cpu_isas() {
  std::vector<std::string> names;
  for (const CpuKernels* kernels : available()) names.emplace_back(kernels->isa);
  return names;
}

void set_cpu_isa(const std::string& name) {
  current().store(lookup(name, "set_cpu_isa: name"), std::memory_order_relaxed);
}

}  // namespace clipproj
