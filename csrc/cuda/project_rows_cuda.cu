// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>

#include "launch.cuh"

namespace clipproj {

STABLE_TORCH_LIBRARY_IMPL(clipproj, CUDA, m) {
  m.impl("project_rows", TORCH_BOX(&project_rows_unflagged<launch_cuda>));
  m.impl("project_rows.flag", TORCH_BOX(&project_rows_flagged<launch_cuda>));
}

}  // namespace clipproj
