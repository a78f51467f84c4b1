// SPDX-License-Identifier: Apache-2.0
// Counts the readers of banks, and waits for them.
#include "readers.h"

#include <atomic>
#include <chrono>
#include <mutex>
#include <new>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace clipproj {
namespace {

struct Readers {
  std::atomic<int> phase{0};
  alignas(64) std::atomic<int64_t> count[2]{};
  std::mutex waiting;
};

Readers readers;

#if defined(__unix__) || defined(__APPLE__)
// A forked child has none of its parent's other threads, and would wait for those that were
// reading.
const int fork_handler = pthread_atfork(nullptr, nullptr, [] { new (&readers) Readers; });
#endif

}  // namespace

BankReader::BankReader() : phase_(readers.phase.load(std::memory_order_relaxed)) {
  readers.count[phase_].fetch_add(1, std::memory_order_relaxed);
  // Either the waiting thread sees this count, or this thread the spans from before the wait.
  std::atomic_thread_fence(std::memory_order_seq_cst);
}

BankReader::~BankReader() { readers.count[phase_].fetch_sub(1, std::memory_order_release); }

void wait_for_bank_readers() {
  using namespace std::chrono_literals;
  const std::lock_guard<std::mutex> lock(readers.waiting);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  // Newcomers count in the other phase, so that they can't keep this one from ending. Twice,
  // because those who are there may be counted in either.
  for (int round = 0; round < 2; ++round) {
    const int old = readers.phase.load(std::memory_order_relaxed);
    readers.phase.store(1 - old, std::memory_order_seq_cst);
    while (readers.count[old].load(std::memory_order_acquire) != 0) {
      std::this_thread::sleep_for(20us);
    }
  }
}

void release_fence() { std::atomic_thread_fence(std::memory_order_release); }

}  // namespace clipproj
