// SPDX-License-Identifier: Apache-2.0
// The CPU as a backend of the operators (operators.h): kernels of the instruction set in force,
// split over torch's threads, and torch's products.
#pragma once
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include "../gemm.h"
#include "launch.h"
#include "pages.h"
#include "readers.h"

namespace clipproj {

struct Cpu {
  using Reader = BankReader;

  static void launch(const Tensor& x, const Factors& f, const LaunchArgs& args) {
    for_dtype(x.scalar_type(), f, args, [](const auto& kernel, const auto& p) {
      p.index ? launch_bank(kernel, p) : launch_range(kernel, p);
    });
  }

  static void launch_fold(const Tensor& weight, const Factors& f, const LaunchArgs& args) {
    for_dtype(weight.scalar_type(), f, args,
              [](const auto& kernel, const auto& p) { launch_vectors(kernel, p); });
  }

  static Tensor new_result(const Tensor& like, IntHeaderOnlyArrayRef sizes) {
    const Tensor made = new_dense(like, sizes);
    ask_for_huge_pages(made);
    return made;
  }

  static constexpr bool kHalvesIntoFloat = false;
  static void multiply(const Tensor& out, const std::optional<Tensor>& bias, const Tensor& a,
                       const Tensor& b) {
    TORCH_ERROR_CODE_CHECK(
        bias ? aoti_torch_cpu_addmm_out(out.get(), bias->get(), a.get(), b.get(), 1, 1)
             : aoti_torch_cpu_mm_out(out.get(), a.get(), b.get()));
  }

  // Half the second-level cache of common server cores for each thread.
  static int64_t chunk(int64_t n, int64_t bytes_of_row) {
    constexpr int64_t kBytesOfThread = 512 << 10;
    return even_chunk(n, bytes_of_row, kBytesOfThread * torch::stable::get_num_threads());
  }
};

}  // namespace clipproj
