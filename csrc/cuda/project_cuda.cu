// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>

#include "launch.cuh"

namespace clipproj {

STABLE_TORCH_LIBRARY_IMPL(clipproj, CUDA, m) {
  m.impl("project", TORCH_BOX(&project<launch_cuda>));
  m.impl("project_", TORCH_BOX(&project_<launch_cuda>));
  m.impl("project_out", TORCH_BOX(&project_out<launch_cuda>));
}

}  // namespace clipproj
