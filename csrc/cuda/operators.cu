// SPDX-License-Identifier: Apache-2.0
// Registers the kernels of CUDA devices.
#include "../operators.h"
#include "backend.cuh"

namespace clipproj {

STABLE_TORCH_LIBRARY_IMPL(clipproj, CUDA, m) { register_kernels<Cuda>(m); }

}  // namespace clipproj
