// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>

#include "../logits.h"
#include "launch.cuh"
#include "multiply.cuh"

namespace clipproj {

STABLE_TORCH_LIBRARY_IMPL(clipproj, CUDA, m) {
  m.impl("logits", TORCH_BOX((&logits_unflagged<launch_cuda, multiply_cuda, chunk_cuda, false>)));
  m.impl("logits.flag",
         TORCH_BOX((&logits_flagged<launch_cuda, multiply_cuda, chunk_cuda, false>)));
}

}  // namespace clipproj
