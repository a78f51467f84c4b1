// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>

#include "../linear.h"
#include "launch.cuh"
#include "multiply.cuh"

namespace clipproj {

STABLE_TORCH_LIBRARY_IMPL(clipproj, CUDA, m) {
  m.impl("linear", TORCH_BOX((&linear<launch_cuda, multiply_cuda, chunk_cuda>)));
}

}  // namespace clipproj
