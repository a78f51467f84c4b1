// SPDX-License-Identifier: Apache-2.0
// torch's product on the CPU, and how many rows of it to do at a time.
#pragma once
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include "../gemm.h"

namespace clipproj {

inline void multiply_cpu(const Tensor& out, const std::optional<Tensor>& bias, const Tensor& a,
                         const Tensor& b) {
  TORCH_ERROR_CODE_CHECK(
      bias ? aoti_torch_cpu_addmm_out(out.get(), bias->get(), a.get(), b.get(), 1, 1)
           : aoti_torch_cpu_mm_out(out.get(), a.get(), b.get()));
}

// Half the second-level cache of common server cores for each thread.
inline int64_t chunk_cpu(int64_t n, int64_t bytes_of_row) {
  constexpr int64_t kBytesOfThread = 512 << 10;
  return even_chunk(n, bytes_of_row, kBytesOfThread * torch::stable::get_num_threads());
}

}  // namespace clipproj
