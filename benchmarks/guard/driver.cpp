// SPDX-License-Identifier: Apache-2.0
// How many instructions a kernel call executes, for a few small problems on each instruction set of
// this machine. The count is taken by letting the kernel run one instruction at a time (ptrace), so
// it needs no counters, which virtual machines hide, and knows every instruction set, which
// simulators do not. Load, clock and cache of the machine do not enter.
//
//   driver steps   one line a problem: instruction set, problem, instructions
//   driver pids    the same with the id of the process that made the call, for callgrind to count
//
// The first line names the compiler. Exit status 3: this system lets no process step another.
#include <sched.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>

#include "../../csrc/cpu/isa.h"

namespace {

using clipproj::CpuKernels;
using Kernel = decltype(clipproj::ProjectKernel<float>::range);
using Params = clipproj::ProjectParams<float>;

enum Dtype { kFloat32, kBFloat16, kFloat16 };
constexpr const char* kDtypeNames[] = {"float32", "bfloat16", "float16"};

enum Trait : unsigned {
  kNormalize = 1,  // divided by their length
  kNorms = 2,      // lengths only, no rows: projected_norm
  kColumns = 4,    // columns of a matrix, in place: fold_ of a Linear, a kernel of its own
  kOblique = 8,    // write is not read
  kAffine = 16,    // with an offset, and a strength per row
  kTurned = 32,    // the transpose of a matrix, in place
  kBank = 64,      // the k directions of each of three projectors, rows by turns
  kClamps = 128,   // one-sided, its gram diagonal
  kSolved = 256,   // one-sided, half-spaces that are not independent
};
constexpr const char* kTraitNames[] = {"normalize", "norms", "columns", "oblique", "affine",
                                       "turned",    "bank",  "clamps",  "solved"};

struct Problem {
  Dtype dtype;
  int64_t n, d, k;
  unsigned traits;
};

// Sizes are those of AVX-512. AVX2 gets half of d, scalar a quarter of d and half of n: steps are
// slow, and this leaves about as many for each, in the same mix of whole blocks and rests.
constexpr Problem kProblems[] = {
    {kFloat32, 1, 512, 0, kNormalize},
    {kFloat32, 1, 512, 1, kNormalize},
    {kFloat32, 1, 512, 16, kNormalize},
    {kFloat32, 16, 128, 0, kNormalize},
    {kFloat32, 16, 256, 1, kNormalize},
    {kFloat32, 16, 128, 16, 0},
    {kFloat32, 16, 256, 16, kNormalize},
    {kFloat32, 16, 128, 16, kNorms},
    {kFloat32, 16, 128, 17, kNormalize | kOblique | kAffine},
    {kFloat32, 13, 125, 16, kNormalize},
    {kFloat32, 64, 32, 8, kNormalize},
    {kFloat32, 8, 128, 64, kNormalize},
    {kFloat32, 32, 64, 1, kColumns},
    {kFloat32, 32, 32, 16, kColumns},
    {kFloat32, 13, 50, 17, kColumns | kOblique},
    {kFloat32, 32, 32, 16, kTurned | kNormalize},
    {kFloat32, 8, 256, 8, kBank},
    {kFloat32, 16, 128, 8, kBank | kNormalize | kAffine},
    {kBFloat16, 16, 128, 8, kBank | kNormalize},
    {kBFloat16, 1, 512, 16, kNormalize},
    {kBFloat16, 16, 128, 16, kNormalize},
    {kBFloat16, 13, 125, 1, kNormalize},
    {kBFloat16, 32, 32, 16, kColumns},
    {kFloat16, 16, 128, 16, kNormalize},
    {kFloat16, 13, 125, 1, kNormalize},
    {kFloat32, 16, 256, 1, kNormalize | kClamps},
    {kFloat32, 16, 128, 16, kNormalize | kClamps | kOblique | kAffine},
    {kFloat32, 16, 256, 16, kNormalize | kSolved | kOblique},
    {kBFloat16, 16, 128, 16, kNormalize | kSolved},
    {kFloat32, 16, 128, 8, kBank | kNormalize | kSolved},
};

// Aligned as torch aligns, so that addresses are the same in every run as far as kernels can see.
constexpr int64_t kMost = 1 << 14;
alignas(64) float g_read[kMost], g_write[kMost], g_offset[kMost], g_strength[kMost], g_norm[kMost];
alignas(64) float g_gram[kMost];
alignas(64) unsigned char g_x[kMost * sizeof(float)], g_out[kMost * sizeof(float)];

constexpr int64_t kProjectors = 3;
int32_t g_index[kMost];
int64_t g_order[kMost];
clipproj::Span g_spans[kMost];  // of the rows in that order
decltype(clipproj::ProjectKernel<float>::rows) g_rows;

// The kernel of a bank's rows as any other.
void bank_rows(const Params& p, int64_t begin, int64_t end) {
  g_rows(p, g_order + begin, g_spans + begin, end - begin);
}

// What operator new gives: malloc's own steps depend on the C library and on the heap's past.
alignas(64) unsigned char g_arena[1 << 22];
size_t g_used = 0;

void* take(size_t bytes) {
  void* at = g_arena + g_used;
  g_used += (bytes + 63) / 64 * 64;
  if (g_used > sizeof g_arena) std::abort();
  return at;
}

[[noreturn]] void fail(int status, const char* what) {
  std::fprintf(stderr, "%s: %s\n", what, std::strerror(errno));
  std::exit(status);
}

template <class T>
void fill(T* to, int64_t count, uint32_t state) {
  for (int64_t i = 0; i < count; ++i) {
    state = state * 1664525u + 1013904223u;
    to[i] = static_cast<T>(static_cast<float>(state >> 8) / (1 << 24) - 0.5f);
  }
}

void fill_x(Dtype dtype, int64_t count) {
  switch (dtype) {
    case kFloat32: return fill(reinterpret_cast<float*>(g_x), count, 1);
    case kBFloat16: return fill(reinterpret_cast<c10::BFloat16*>(g_x), count, 1);
    case kFloat16: return fill(reinterpret_cast<c10::Half*>(g_x), count, 1);
  }
}

Params prepare(const Problem& problem) {
  const auto [dtype, n, d, k, traits] = problem;
  const int64_t all = traits & kBank ? kProjectors * k : k;
  if (n * d > kMost || all * d > kMost) std::abort();
  fill_x(dtype, n * d);
  fill(g_read, all * d, 2);
  fill(g_write, all * d, 3);
  fill(g_offset, all, 4);
  fill(g_strength, n, 5);
  const bool columns = traits & (kColumns | kTurned);
  Params p{};
  p.x = g_x;
  p.out = traits & kNorms ? nullptr : columns ? g_x : g_out;
  p.norm = traits & kNorms ? g_norm : nullptr;
  p.read = g_read;
  p.write = traits & kOblique ? g_write : g_read;
  p.offset = traits & kAffine ? g_offset : nullptr;
  p.strength = traits & kAffine ? g_strength : nullptr;
  p.strength_row = traits & kAffine ? 1 : 0;
  p.n = n;
  p.d = d;
  p.k = all;
  p.x_row = p.out_row = columns ? 1 : d;
  p.x_col = p.out_col = columns ? n : 1;
  p.normalize = traits & kNormalize;
  const bool one_sided = traits & (kClamps | kSolved);
  if (one_sided) {
    if (all * k > kMost) std::abort();
    for (int64_t i = 0; i < all * k; ++i) {
      const int64_t apart = std::abs(i / k % k - i % k);
      g_gram[i] = apart == 0 ? 1.0f : traits & kSolved ? 0.25f / static_cast<float>(apart) : 0.0f;
    }
    p.gram = g_gram;
    p.gram_row = k;
    p.clamps = traits & kClamps;
  }
  if (traits & kBank) {
    int64_t place = 0;
    for (int64_t j = 0; j < kProjectors; ++j) {
      const clipproj::Span span{static_cast<int32_t>(j * k),
                                static_cast<int32_t>(one_sided ? -k : k)};
      for (int64_t i = j; i < n; i += kProjectors) {
        g_index[i] = static_cast<int32_t>(j);
        g_spans[place] = span;
        g_order[place++] = i;
      }
    }
    p.index = g_index;
    p.m = kProjectors;
  }
  return p;
}

std::string describe(const Problem& problem) {
  std::string text = kDtypeNames[problem.dtype];
  text += " n=" + std::to_string(problem.n) + " d=" + std::to_string(problem.d) +
          " k=" + std::to_string(problem.k);
  for (int bit = 0; bit < 9; ++bit) {
    if (problem.traits >> bit & 1) text += std::string(" ") + kTraitNames[bit];
  }
  return text;
}

void nothing(const Params&, int64_t, int64_t) {}  // what is counted besides the kernel

}  // namespace

void* operator new(size_t bytes) { return take(bytes); }
void* operator new(size_t bytes, std::align_val_t) { return take(bytes); }
void operator delete(void*) noexcept {}
void operator delete(void*, size_t) noexcept {}
void operator delete(void*, std::align_val_t) noexcept {}
void operator delete(void*, size_t, std::align_val_t) noexcept {}

// The call whose instructions count: callgrind finds it by its name.
extern "C" [[gnu::noinline]] void counted_call(Kernel kernel, const Params& p) {
  kernel(p, 0, p.n);
}

namespace {

// In a process of its own, so that every call finds the same memory. The first call is not counted:
// it binds symbols and leaves whatever the kernel keeps as later calls find it.
pid_t start(Kernel kernel, const Problem& problem, bool traced) {
  const pid_t child = fork();
  if (child < 0) fail(1, "fork");
  if (child > 0) return child;
  const Params p = prepare(problem);
  kernel(p, 0, p.n);
  if (traced) {
    if (ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) _exit(errno);
    raise(SIGSTOP);
  }
  counted_call(kernel, p);
  if (traced) raise(SIGSTOP);
  _exit(0);
}

int wait_for(pid_t child) {
  int status = 0;
  if (waitpid(child, &status, 0) != child) fail(1, "waitpid");
  return status;
}

bool stopped_by(int status, int signal) { return WIFSTOPPED(status) && WSTOPSIG(status) == signal; }

[[noreturn]] void fail_kernel(pid_t child, const Problem& problem, int status) {
  if (WIFSTOPPED(status)) kill(child, SIGKILL);
  std::fprintf(stderr, "%s: the kernel did not return (wait status %#x)\n",
               describe(problem).c_str(), static_cast<unsigned>(status));
  std::exit(1);
}

long count_steps(Kernel kernel, const Problem& problem) {
  const pid_t child = start(kernel, problem, true);
  int status = wait_for(child);
  if (WIFEXITED(status)) {
    errno = WEXITSTATUS(status);
    fail(3, "ptrace(PTRACE_TRACEME)");
  }
  if (!stopped_by(status, SIGSTOP)) fail_kernel(child, problem, status);
  long steps = 0;
  do {
    if (ptrace(PTRACE_SINGLESTEP, child, nullptr, nullptr) != 0) {
      const int reason = errno;
      kill(child, SIGKILL);
      errno = reason;
      fail(3, "ptrace(PTRACE_SINGLESTEP)");
    }
    status = wait_for(child);
    ++steps;
  } while (stopped_by(status, SIGTRAP));
  if (!stopped_by(status, SIGSTOP)) fail_kernel(child, problem, status);
  kill(child, SIGKILL);
  wait_for(child);
  return steps;
}

pid_t just_call(Kernel kernel, const Problem& problem) {
  const pid_t child = start(kernel, problem, false);
  const int status = wait_for(child);
  if (status != 0) fail_kernel(child, problem, status);
  return child;
}

Kernel kernel_for(const CpuKernels& kernels, const Problem& problem) {
  const auto& kernel = problem.dtype == kFloat32    ? kernels.project_f32
                       : problem.dtype == kBFloat16 ? kernels.project_bf16
                                                    : kernels.project_f16;
  g_rows = kernel.rows;
  if (problem.traits & kBank) return bank_rows;
  return problem.traits & kColumns ? kernel.columns : kernel.range;
}

// Parent and child take turns at every step: on one core that is some three times faster than
// across two. Only the speed depends on it, so a refusal is none of our business.
void stay_on_this_core() {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(sched_getcpu(), &set);
  sched_setaffinity(0, sizeof set, &set);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc == 2 ? argv[1] : "";
  if (what != "steps" && what != "pids") {
    std::fprintf(stderr, "usage: driver steps|pids\n");
    return 1;
  }
  const auto call = [&](Kernel kernel, const Problem& problem) -> long {
    return what == "steps" ? count_steps(kernel, problem) : just_call(kernel, problem);
  };
  stay_on_this_core();
#if defined(__clang__)
  std::printf("clang++ %d.%d.%d\n", __clang_major__, __clang_minor__, __clang_patchlevel__);
#else
  std::printf("g++ %d.%d.%d\n", __GNUC__, __GNUC_MINOR__, __GNUC_PATCHLEVEL__);
#endif
  const Problem none{kFloat32, 1, 1, 0, 0};
  std::printf("none\tnothing\t%ld\n", call(nothing, none));
  for (const std::string& isa : clipproj::cpu_isas()) {
    clipproj::set_cpu_isa(isa);
    for (Problem problem : kProblems) {
      if (isa == "avx2") problem.d /= 2;
      if (isa == "scalar") problem.d /= 4, problem.n = (problem.n + 1) / 2;
      const long result = call(kernel_for(clipproj::cpu_kernels(), problem), problem);
      std::printf("%s\t%s\t%ld\n", isa.c_str(), describe(problem).c_str(), result);
    }
  }
}
