// SPDX-License-Identifier: Apache-2.0
// Runs a block: fibres that take turns, their barriers, and what they may not do.
#include "block.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "sanitizers.h"

namespace cuda_on_cpu {

Block* block = nullptr;
Removed removed;

namespace {

constexpr size_t kRedZone = 128;  // bytes before, between and behind the parts of shared memory
constexpr int kMaxParts = 32;
constexpr unsigned char kPoison = 0xff;  // NaN in every type

std::string text_of(Where where) {
  std::string file = where.file_name();
  file.erase(0, file.rfind('/') + 1);
  return file + ":" + std::to_string(where.line());
}

// Threads are kept for later launches: ThreadSanitizer knows a fibre by its stack.
std::vector<std::unique_ptr<Thread>> spare;

}  // namespace

bool is_removed(Where where) {
  return where.line() == removed.line && std::string(where.file_name()).ends_with(removed.file);
}

Block::Block(unsigned threads, size_t shared_bytes, uint64_t seed)
    : size{threads}, shared_bytes_(shared_bytes), state_(seed), one_warp_ahead_(seed % 2 == 1) {
  if (threads == 0 || threads > 1024 || threads % kWarpSize != 0) {
    throw std::runtime_error("a block must have 32, 64, ... 1024 threads, got " +
                             std::to_string(threads));
  }
  while (spare.size() < threads) {
    spare.push_back(std::make_unique<Thread>(static_cast<unsigned>(spare.size())));
  }
  std::move(spare.begin(), spare.begin() + threads, std::back_inserter(threads_));
  spare.erase(spare.begin(), spare.begin() + threads);
  const unsigned warps = threads / kWarpSize;
  ready_.resize(warps);
  warps_.resize(warps);
  for (unsigned w = 0; w < warps; ++w) order_.push_back(w);
  arena_bytes_ = shared_bytes + kRedZone * (kMaxParts + 1);
}

Block::~Block() {
  acquire(&ended_);  // only here, so that blocks are in no order with one another
  for (const auto& arena : arenas_) open_bytes(arena.get(), arena_bytes_ + kRedZone);
  std::move(threads_.begin(), threads_.end(), std::inserter(spare, spare.begin()));
}

void Block::new_arena() {
  arenas_.emplace_back(new unsigned char[arena_bytes_ + kRedZone]);
  unsigned char* const start = arenas_.back().get();
  shared_ = start + (kRedZone - reinterpret_cast<uintptr_t>(start) % kRedZone);
  std::memset(shared_, kPoison, arena_bytes_);
  close_bytes(shared_, arena_bytes_);
}

uint64_t Block::random() {  // splitmix64
  uint64_t z = state_ += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

void Block::shuffle_warps() {
  for (size_t i = order_.size(); i > 1; --i) std::swap(order_[i - 1], order_[random() % i]);
}

void Block::run(unsigned of, unsigned blocks, const std::function<void()>& body) {
  index = {of};
  grid = {blocks};
  body_ = &body;
  error_.clear();
  parts_.clear();
  new_arena();

  all_ = {.size = size.x};
  for (Meeting& warp : warps_) warp = {.size = kWarpSize};
  parts_of_block_.clear();
  for (auto& ready : ready_) ready.clear();
  for (auto& thread : threads_) {
    thread->waits = nullptr;
    thread->done = false;
    thread->open.clear();
    thread->groups.clear();
    thread->fibre.restart(&thread_main);
    ready_[thread->index.x / kWarpSize].push_back(thread.get());
  }
  shuffle_warps();

  block = this;
  release(&started_);
  thread_ = next();
  main_.switch_to(thread_->fibre);
  thread_ = nullptr;
  block = nullptr;
  check_end();
}

void Block::thread_main() {
  acquire(&block->started_);
  (*block->body_)();
  Thread& thread = block->thread();
  if (!thread.open.empty()) block->fail("cp.async is never committed", thread.open[0].where);
  for (const auto& group : thread.groups) {  // none of it may be, in the end
    if (!group.empty()) block->fail("cp.async is never waited for", group[0].where);
  }
  thread.groups.clear();  // here, where their memory comes from
  thread.done = true;
  release(&block->ended_);
  block->pause(true);
}

void Block::check_end() const {
  if (!error_.empty()) throw std::runtime_error(error_);
  const Thread *waiting = nullptr, *other = nullptr;
  for (const auto& t : threads_) {
    if (t->waits && !waiting) waiting = t.get();
  }
  if (waiting) {
    for (const auto& t : threads_) {
      if (t->done || t->waits != waiting->waits) other = t.get();
    }
    std::string text = "thread " + std::to_string(waiting->index.x) + " waits for ever in " +
                       waiting->waits + " at " + text_of(waiting->where);
    if (other) {
      text += ", thread " + std::to_string(other->index.x);
      text += other->done
                  ? " has left the kernel"
                  : std::string(" waits in ") + other->waits + " at " + text_of(other->where);
    }
    throw std::runtime_error(text);
  }
  open_bytes(shared_, arena_bytes_);
  for (size_t i = 0, part = 0; i < arena_bytes_; ++i) {
    if (part < parts_.size() && i == parts_[part].start) i += parts_[part++].bytes;
    if (i < arena_bytes_ && shared_[i] != kPoison) {
      throw std::runtime_error("shared memory is written beyond part " +
                               std::to_string(static_cast<int>(part) - 1));
    }
  }
}

Thread* Block::next() {
  const size_t warps = order_.size(), first = one_warp_ahead_ ? 0 : random() % warps;
  for (size_t i = 0; i < warps; ++i) {
    auto& ready = ready_[order_[(first + i) % warps]];
    if (ready.empty()) continue;
    std::swap(ready.back(), ready[random() % ready.size()]);
    Thread* thread = ready.back();
    ready.pop_back();
    return thread;
  }
  return nullptr;
}

void Block::pause(bool last) {
  Thread* const me = thread_;
  thread_ = next();
  if (thread_ != me) me->fibre.switch_to(thread_ ? thread_->fibre : main_, last);
}

void Block::fail(const std::string& text, Where where) {
  error_ = text + ": thread " + std::to_string(thread_->index.x) + " at " + text_of(where);
  release(&ended_);
  thread_->fibre.switch_to(main_, true);
  __builtin_unreachable();
}

bool Block::arrive(Meeting& meeting, const char* what, Where where) {
  if (meeting.arrived == 0) {
    meeting.what = what;
    meeting.where = where;
  } else if (meeting.what != what || meeting.where.line() != where.line() ||
             std::strcmp(meeting.where.file_name(), where.file_name()) != 0) {
    fail(std::string(what) + " meets " + meeting.what + " at " + text_of(meeting.where), where);
  }
  thread_->waits = what;
  thread_->where = where;
  return ++meeting.arrived == meeting.size;
}

void Block::part(Meeting& meeting, unsigned first) {
  meeting.arrived = 0;
  meeting.phase ^= 1;
  for (unsigned t = first; t < first + meeting.size; ++t) {
    threads_[t]->waits = nullptr;
    ready_[t / kWarpSize].push_back(threads_[t].get());
  }
}

void Block::meet_block(Where where) {
  char* const tag = &all_.phases[all_.phase];
  release(tag);
  if (arrive(all_, "sync_block", where)) {
    shuffle_warps();
    part(all_, 0);
  }
  pause();
  acquire(tag);
}

void Block::meet_part(unsigned which, unsigned threads, Where where) {
  if (thread_->index.x / threads != which || size.x % threads != 0) {
    fail("sync_part of another part", where);
  }
  if (parts_of_block_.empty()) parts_of_block_.resize(size.x / threads, {.size = threads});
  Meeting& meeting = parts_of_block_[which];
  char* const tag = &meeting.phases[meeting.phase];
  release(tag);
  if (arrive(meeting, "sync_part", where)) {
    shuffle_warps();
    part(meeting, which * threads);
  }
  pause();
  acquire(tag);
}

void Block::meet_warp(const char* what, void* operands, Act act, Where where) {
  const unsigned warp = thread_->index.x / kWarpSize, first = warp * kWarpSize;
  Meeting& meeting = warps_[warp];
  char* const tag = act ? nullptr : &meeting.phases[meeting.phase];
  if (tag) release(tag);
  thread_->operands = operands;
  if (arrive(meeting, what, where)) {
    if (act) {
      void* all[kWarpSize];
      for (int i = 0; i < kWarpSize; ++i) all[i] = threads_[first + i]->operands;
      act(all);
    }
    part(meeting, first);
  }
  pause();
  if (tag) acquire(tag);
}

void* Block::shared_part(int i, size_t start, size_t bytes, Where where) {
  const Part part{kRedZone * (i + 1) + start, bytes};
  if (i >= kMaxParts || start + bytes > shared_bytes_) {
    fail("part " + std::to_string(i) + " ends at byte " + std::to_string(start + bytes) + " of " +
             std::to_string(shared_bytes_) + " that the launch gives",
         where);
  }
  if (static_cast<size_t>(i) == parts_.size()) parts_.push_back(part);
  const Part& known = parts_.at(i);
  if (known.start != part.start || known.bytes != bytes) {
    fail("part " + std::to_string(i) + " differs between threads", where);
  }
  open_bytes(shared_ + part.start, bytes);
  return shared_ + part.start;
}

bool Block::is_shared(const void* p, size_t bytes) const {
  return std::any_of(parts_.begin(), parts_.end(), [&](const Part& part) {
    const unsigned char *start = shared_ + part.start, *at = static_cast<const unsigned char*>(p);
    return at >= start && at + bytes <= start + part.bytes;
  });
}

void launch_blocks(unsigned grid, unsigned threads, size_t shared_bytes, uint64_t seed,
                   const std::function<void()>& body) {
  Block one(threads, shared_bytes, seed);
  std::vector<unsigned> order(grid);
  for (unsigned i = 0; i < grid; ++i) {
    order[i] = i;
    std::swap(order[i], order[one.random() % (i + 1)]);
  }
  for (unsigned i : order) one.run(i, grid, body);
}

const Index& thread_index() { return block->thread().index; }
const Index& block_index() { return block->index; }
const Index& block_size() { return block->size; }
const Index& grid_size() { return block->grid; }

void* shared_part(int index, size_t start, size_t bytes, Where where) {
  return block->shared_part(index, start, bytes, where);
}

void check_aligned(const void* p, Where where) {
  if (reinterpret_cast<uintptr_t>(p) % 16 != 0) {
    block->fail("the address must be a multiple of 16 bytes", where);
  }
}

}  // namespace cuda_on_cpu

size_t clipproj::launched_shared_bytes() { return cuda_on_cpu::block->shared_bytes(); }

void clipproj::sync_block(Where where) {
  if (!cuda_on_cpu::is_removed(where)) cuda_on_cpu::block->meet_block(where);
}

void clipproj::sync_part(int which, unsigned threads, Where where) {
  if (cuda_on_cpu::is_removed(where)) return;
  cuda_on_cpu::block->meet_part(static_cast<unsigned>(which), threads, where);
}
