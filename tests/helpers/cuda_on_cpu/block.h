// SPDX-License-Identifier: Apache-2.0
// A launch: blocks one after the other, the threads of a block as fibres that run until they must
// wait. Who runs next is drawn by the seed: with even seeds any thread, with odd ones a thread of
// the warp that comes first in an order drawn anew at every barrier, so that one warp runs as far
// ahead of the others as barriers let it. What CUDA leaves undefined throws.
#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "fibre.h"
#include "runtime.h"

namespace cuda_on_cpu {

constexpr int kWarpSize = 32;

// A cp.async under way.
struct Copy {
  void* to;
  const void* from;        // null: zeros
  unsigned char seen[16];  // what `from` held at issue
  Where where;
};

struct Thread {
  explicit Thread(unsigned index) : index{index}, fibre(256 << 10) {}

  Index index;
  Fibre fibre;
  const char* waits = nullptr;  // for whom, null while it may run
  Where where;                  // and since which line
  bool done = false;
  void* operands = nullptr;              // of the warp's operation that it waits for
  std::vector<Copy> open;                // copies not committed yet
  std::deque<std::vector<Copy>> groups;  // committed
};

// Threads that wait for each other, at one line.
struct Meeting {
  unsigned size = 0, arrived = 0;
  const char* what = nullptr;
  Where where{};
  // Tags for ThreadSanitizer, in turn: who is slow to leave one meeting must not come to be in
  // order with who is fast to reach the next.
  char phases[2]{};
  unsigned phase = 0;
};

// Carries out a warp's operation on the operands of its lanes.
using Act = void (*)(void* (&operands)[kWarpSize]);

struct Part {
  size_t start, bytes;
};

class Block {
 public:
  Block(unsigned threads, size_t shared_bytes, uint64_t seed);
  ~Block();

  // Runs `body` once in each thread.
  void run(unsigned index, unsigned grid, const std::function<void()>& body);

  // For the running thread.
  Thread& thread() { return *thread_; }
  // Waits until all have come to this line.
  void meet_block(Where where);
  // The same for `threads` of them, part `which` of the block.
  void meet_part(unsigned which, unsigned threads, Where where);
  // The same for its warp; the last to come acts. Without an act it is a barrier.
  void meet_warp(const char* what, void* operands, Act act, Where where);
  void* shared_part(int index, size_t start, size_t bytes, Where where);
  bool is_shared(const void* p, size_t bytes) const;
  [[noreturn]] void fail(const std::string& text, Where where);

  size_t shared_bytes() const { return shared_bytes_; }

  uint64_t random();

  Index index{0}, size{0}, grid{0};

 private:
  static void thread_main();
  bool arrive(Meeting& meeting, const char* what, Where where);
  void part(Meeting& meeting, unsigned first);
  Thread* next();
  void pause(bool last = false);
  void check_end() const;
  void shuffle_warps();
  void new_arena();

  std::vector<std::unique_ptr<Thread>> threads_;
  std::vector<std::vector<Thread*>> ready_;  // of each warp
  std::vector<unsigned> order_;              // of the warps
  std::vector<Meeting> warps_, parts_of_block_;
  Meeting all_;
  Fibre main_;
  Thread* thread_ = nullptr;
  const std::function<void()>* body_ = nullptr;
  // Shared memory, of each block its own till the end: in memory used again, ThreadSanitizer would
  // take one block's accesses for races with another's.
  std::vector<std::unique_ptr<unsigned char[]>> arenas_;
  unsigned char* shared_ = nullptr;
  size_t shared_bytes_, arena_bytes_;
  std::vector<Part> parts_;
  uint64_t state_;
  bool one_warp_ahead_;
  std::string error_;
  char started_ = 0, ended_ = 0;  // tags
};

extern Block* block;  // the one that runs

// The barrier that launches leave out, by where it is called: how a test removes it.
struct Removed {
  std::string file;
  unsigned line = 0;
};
extern Removed removed;
bool is_removed(Where where);

void launch_blocks(unsigned grid, unsigned threads, size_t shared_bytes, uint64_t seed,
                   const std::function<void()>& body);

// kernel<<<grid, threads, shared_bytes>>>(arguments...)
template <class... P, class... A>
void launch(void (*kernel)(P...), unsigned grid, unsigned threads, size_t shared_bytes,
            uint64_t seed, A... arguments) {
  launch_blocks(grid, threads, shared_bytes, seed, [=] { kernel(arguments...); });
}

}  // namespace cuda_on_cpu
