// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>

#include "../linear.h"
#include "launch_cpu.h"
#include "multiply_cpu.h"
#include "pages.h"
#include "readers.h"

namespace clipproj {

STABLE_TORCH_LIBRARY_IMPL(clipproj, CPU, m) {
  m.impl("linear",
         TORCH_BOX((&Reading<&linear<launch_cpu, multiply_cpu, chunk_cpu, new_result>>::call)));
}

}  // namespace clipproj
