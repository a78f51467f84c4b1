// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>

#include "../linear.h"
#include "launch.cuh"
#include "multiply.cuh"

namespace clipproj {

STABLE_TORCH_LIBRARY_IMPL(clipproj, CUDA, m) {
  m.impl("linear", TORCH_BOX((&linear_unflagged<launch_cuda, multiply_cuda, chunk_cuda>)));
  m.impl("linear.flag", TORCH_BOX((&linear_flagged<launch_cuda, multiply_cuda, chunk_cuda>)));
}

}  // namespace clipproj
