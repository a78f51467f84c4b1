// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>

#include "launch_cpu.h"
#include "pages.h"
#include "readers.h"

namespace clipproj {

STABLE_TORCH_LIBRARY_IMPL(clipproj, CPU, m) {
  m.impl("project_rows",
         TORCH_BOX((&Reading<&project_rows_unflagged<launch_cpu, new_result>>::call)));
  m.impl("project_rows.flag",
         TORCH_BOX((&Reading<&project_rows_flagged<launch_cpu, new_result>>::call)));
}

}  // namespace clipproj
