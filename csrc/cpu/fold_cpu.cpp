// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>

#include "launch_cpu.h"

namespace clipproj {

STABLE_TORCH_LIBRARY_IMPL(clipproj, CPU, m) { m.impl("fold_", TORCH_BOX(&fold_<launch_cpu>)); }

}  // namespace clipproj
