// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>

#include "launch.cuh"

namespace clipproj {

STABLE_TORCH_LIBRARY_IMPL(clipproj, CUDA, m) {
  m.impl("projected_norm", TORCH_BOX(&projected_norm<launch_cuda>));
}

}  // namespace clipproj
