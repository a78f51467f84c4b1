// SPDX-License-Identifier: Apache-2.0
// CUDA devices as a backend of the operators (operators.h).
#pragma once
#include "../gemm.h"
#include "../host.h"

namespace clipproj {

struct Cuda {
  struct Reader {};  // whoever changes a bank waits on the stream (readers.h is for the CPU)

  static void launch(const Tensor& x, const Factors& f, const LaunchArgs& args);  // launch.cu
  static void launch_fold(const Tensor& weight, const Factors& f, const LaunchArgs& args) {
    launch(weight, f, args);
  }

  static Tensor new_result(const Tensor& like, IntHeaderOnlyArrayRef sizes) {
    return new_dense(like, sizes);
  }

  static constexpr bool kHalvesIntoFloat = true;
  static void multiply(const Tensor& out, const std::optional<Tensor>& bias, const Tensor& a,
                       const Tensor& b);  // multiply.cu

  // A part of the second-level cache (40 MB on A100, 50 MB on H100), which the operands and the
  // result share: at d = 768, 10880 rows of halves, two waves of 128 x 256 tiles on 132 processors.
  static int64_t chunk(int64_t n, int64_t bytes_of_row) {
    return even_chunk(n, bytes_of_row, 16 << 20);
  }
};

}  // namespace clipproj
