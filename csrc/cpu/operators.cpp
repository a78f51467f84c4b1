// SPDX-License-Identifier: Apache-2.0
// Defines the operators for every device, and registers the kernels of the CPU.
#include "../operators.h"

#include "backend.h"

namespace clipproj {

STABLE_TORCH_LIBRARY(clipproj, m) {
  for_operators<Cpu>([&m](const std::string& schema, auto*) { m.def(schema.c_str()); });
}

STABLE_TORCH_LIBRARY_IMPL(clipproj, CPU, m) { register_kernels<Cpu>(m); }

}  // namespace clipproj
