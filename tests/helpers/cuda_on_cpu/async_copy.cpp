// SPDX-License-Identifier: Apache-2.0
// cp.async at its least helpful: from the issue on the target holds NaN, and the bytes arrive in
// the wait, neither earlier nor for other threads without a barrier. Their source may be read at
// any time between, so it must not change.
#include <cstring>

#include "block.h"
#include "sanitizers.h"

void clipproj::copy_async16(void* shared, const void* global, bool pred, Where where) {
  using namespace cuda_on_cpu;
  check_aligned(shared, where);
  if (!block->is_shared(shared, 16)) block->fail("cp.async to what is not shared memory", where);
  Copy copy{shared, pred ? global : nullptr, {}, where};
  if (pred) {
    check_aligned(global, where);
    note_read(global, 16);
    std::memcpy(copy.seen, global, 16);
  }
  note_write(shared, 16);
  std::memset(shared, 0xff, 16);
  block->thread().open.push_back(copy);
}

void clipproj::copy_async_commit() {
  auto& thread = cuda_on_cpu::block->thread();
  thread.groups.push_back(std::move(thread.open));
  thread.open.clear();
}

void cuda_on_cpu::wait_for_groups(int pending, Where where) {
  if (is_removed(where)) return;
  auto& groups = block->thread().groups;
  for (; groups.size() > static_cast<size_t>(pending); groups.pop_front()) {
    for (const Copy& copy : groups.front()) {
      if (copy.from) {
        note_read(copy.from, 16);
        if (std::memcmp(copy.from, copy.seen, 16) != 0) {
          block->fail("the source of cp.async changes before the wait", copy.where);
        }
      }
      note_write(copy.to, 16);
      std::memcpy(copy.to, copy.seen, 16);
    }
  }
}
