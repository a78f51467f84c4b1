// SPDX-License-Identifier: Apache-2.0
// torch's product on the GPU (multiply.cu), and how many rows of it to do at a time.
#pragma once
#include "../gemm.h"

namespace clipproj {

// Operands of half precision may have a float32 result, which then is that of the accumulators.
void multiply_cuda(const Tensor& out, const std::optional<Tensor>& bias, const Tensor& a,
                   const Tensor& b);

// A part of the second-level cache (40 MB on A100, 50 MB on H100), which the operands and the
// result share: at d = 768, 10880 rows of halves, two waves of 128 x 256 tiles on 132 processors.
inline int64_t chunk_cuda(int64_t n, int64_t bytes_of_row) {
  return even_chunk(n, bytes_of_row, 16 << 20);
}

}  // namespace clipproj
