// SPDX-License-Identifier: Apache-2.0
// Huge pages for large new results.
#pragma once
#include "../layout.h"

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace clipproj {

// Asks for huge pages, as numpy does for its large arrays and torch with THP_MEM_ALLOC_ENABLE=1:
// where Linux gives them on request only (transparent_hugepage = madvise, the usual setting), the
// first touch of 4 KiB pages takes a large result several times as long as its arithmetic. It is
// advice: a kernel without huge pages may say no.
inline void ask_for_huge_pages(const Tensor& made) {
#ifdef MADV_HUGEPAGE
  static const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  constexpr size_t kLarge = 4 << 20;
  const size_t bytes = made.numel() * made.element_size();
  if (bytes < kLarge) return;
  const auto first = reinterpret_cast<uintptr_t>(made.mutable_data_ptr());
  const uintptr_t begin = (first + page - 1) / page * page;
  madvise(reinterpret_cast<void*>(begin), first + bytes - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace clipproj
