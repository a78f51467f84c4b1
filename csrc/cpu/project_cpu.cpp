// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>

#include "launch_cpu.h"
#include "pages.h"

namespace clipproj {

STABLE_TORCH_LIBRARY_IMPL(clipproj, CPU, m) {
  m.impl("project", TORCH_BOX((&project<launch_cpu, new_result>)));
  m.impl("project_", TORCH_BOX(&project_<launch_cpu>));
  m.impl("project_out", TORCH_BOX(&project_out<launch_cpu>));
}

}  // namespace clipproj
