// SPDX-License-Identifier: Apache-2.0
// What a machine can do at most: float32 fused multiply-adds, and a scaled copy in place.
//
// Compiled by roofline.py with -march=native; the vector is the widest that the compiler then has.
// Both functions run `threads` threads at once and return the rate of all of them together.

#include <time.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr size_t kBytes = 64;
#elif defined(__AVX__)
constexpr size_t kBytes = 32;
#else
constexpr size_t kBytes = 16;
#endif
constexpr size_t kLanes = kBytes / sizeof(float);
// Two units with a latency of four to five need eight to ten sums in flight; AVX2 has 16 registers.
constexpr int kSums = 12;
constexpr int kPasses = 25;  // the best of them counts: a bound is what the machine can do

using Vector __attribute__((vector_size(kBytes), may_alias)) = float;

double seconds(clockid_t clock) {
  timespec time;
  clock_gettime(clock, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

struct Span {
  double begin, end;
};

// Runs work() on all threads at once; when each began and ended by `clock`.
template <typename Work>
std::vector<Span> together(int threads, clockid_t clock, const Work& work) {
  std::vector<Span> spans(threads);
  std::atomic<int> ready{0};
  const auto body = [&](int thread) {
    ++ready;
    while (ready.load() < threads) std::this_thread::yield();
    spans[thread].begin = seconds(clock);
    work(thread);
    spans[thread].end = seconds(clock);
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(body, thread);
  body(0);
  for (std::thread& other : others) other.join();
  return spans;
}

void multiply_add(int64_t steps) {
  Vector sums[kSums] = {};
  Vector factor = Vector{} + 0.999f;
  Vector term = Vector{} + 0.001f;
  // Unknown to the optimiser, which would else compute equal sums once.
  asm volatile("" : "+x"(factor), "+x"(term));
  for (int i = 0; i < kSums; ++i) asm volatile("" : "+x"(sums[i]));
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i) sums[i] = sums[i] * factor + term;
  }
  for (int i = 0; i < kSums; ++i) asm volatile("" ::"x"(sums[i]));
}

void scale(float* data, size_t size, int64_t passes) {
  Vector factor = Vector{} + 1.0f;
  for (int64_t pass = 0; pass < passes; ++pass) {
    asm volatile("" : "+x"(factor)::"memory");  // each pass anew
    for (size_t i = 0; i < size; i += 4 * kLanes) {
      Vector* at = reinterpret_cast<Vector*>(data + i);
      for (int j = 0; j < 4; ++j) at[j] *= factor;
    }
  }
}

}  // namespace

// Floating-point operations per second (a fused multiply-add is two); a pass takes `length`
// seconds. By the processor time of each thread, so that other work on the machine does not lower
// it.
extern "C" double fma_peak(int threads, double length) {
  constexpr int64_t kProbe = 1'000'000;
  const double start = seconds(CLOCK_MONOTONIC);
  multiply_add(kProbe);
  const double elapsed = seconds(CLOCK_MONOTONIC) - start;
  const int64_t steps = static_cast<int64_t>(length / elapsed * kProbe) + 1;
  double best = 0;
  for (int pass = 0; pass < kPasses; ++pass) {
    double rate = 0;
    for (const Span& span :
         together(threads, CLOCK_THREAD_CPUTIME_ID, [&](int) { multiply_add(steps); })) {
      rate += 2.0 * kSums * kLanes * static_cast<double>(steps) / (span.end - span.begin);
    }
    best = std::max(best, rate);
  }
  return best;
}

// Bytes read and written per second by x *= 1 over `bytes` in all, a slice for each thread. By the
// clock on the wall: threads that do not overlap do not share the memory's bandwidth.
extern "C" double copy_rate(int64_t bytes, int threads, double length) {
  constexpr size_t kStep = 4 * kBytes;
  const size_t slice = std::max<size_t>(bytes / threads / kStep, 1) * kStep;
  const std::unique_ptr<float, decltype(&std::free)> data(
      static_cast<float*>(std::aligned_alloc(kStep, slice * threads)), &std::free);
  if (!data) return 0;
  std::fill_n(data.get(), slice * threads / sizeof(float), 1.0f);
  const auto scale_slice = [&](int thread, int64_t passes) {
    scale(data.get() + thread * slice / sizeof(float), slice / sizeof(float), passes);
  };
  scale_slice(0, 1);
  const double start = seconds(CLOCK_MONOTONIC);
  scale_slice(0, 1);
  const double elapsed = std::max(seconds(CLOCK_MONOTONIC) - start, 1e-8);
  const int64_t passes = static_cast<int64_t>(length / elapsed) + 1;
  double best = 0;
  for (int pass = 0; pass < kPasses; ++pass) {
    const std::vector<Span> spans =
        together(threads, CLOCK_MONOTONIC, [&](int thread) { scale_slice(thread, passes); });
    double begin = spans[0].begin, end = spans[0].end;
    for (const Span& span : spans) {
      begin = std::min(begin, span.begin);
      end = std::max(end, span.end);
    }
    best = std::max(best, 2.0 * static_cast<double>(slice * threads * passes) / (end - begin));
  }
  return best;
}
