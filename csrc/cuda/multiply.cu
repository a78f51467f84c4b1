// SPDX-License-Identifier: Apache-2.0
// Products of linear and logits on the GPU: torch's own, and for halves into float32 what it lacks.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <array>

#include "backend.cuh"

namespace clipproj {
namespace {

constexpr int kBlock = 256;

// out [n, c] += bias, element j at j * step.
__global__ void add_bias(float* out, const float* bias, int64_t n, int64_t c, int64_t step) {
  for (int64_t i = blockIdx.x; i < n; i += gridDim.x) {
    for (int64_t j = threadIdx.x; j < c; j += kBlock) out[i * c + j] += bias[j * step];
  }
}

// torch's own addmm.dtype_out would add the bias, but takes numbers that the stable ABI cannot
// hand to the dispatcher.
void multiply_wide(const Tensor& out, const std::optional<Tensor>& bias, const Tensor& a,
                   const Tensor& b) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(a), from(b), from(ScalarType::Float), from(out)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::mm", "dtype_out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // takes over the reference to out
  if (!bias) return;
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(out.get_device_index(), &stream));
  constexpr int64_t kMostBlocks = 1 << 16;
  add_bias<<<static_cast<unsigned>(std::min(out.size(0), kMostBlocks)), kBlock, 0,
             static_cast<cudaStream_t>(stream)>>>(static_cast<float*>(out.mutable_data_ptr()),
                                                  static_cast<const float*>(bias->const_data_ptr()),
                                                  out.size(0), out.size(1),
                                                  bias->dim() ? bias->stride(0) : 0);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

void Cuda::multiply(const Tensor& out, const std::optional<Tensor>& bias, const Tensor& a,
                    const Tensor& b) {
  const torch::stable::accelerator::DeviceGuard guard(out.get_device_index());
  if (out.scalar_type() != a.scalar_type()) return multiply_wide(out, bias, a, b);
  TORCH_ERROR_CODE_CHECK(
      bias ? aoti_torch_cuda_addmm_out(out.get(), bias->get(), a.get(), b.get(), 1, 1)
           : aoti_torch_cuda_mm_out(out.get(), a.get(), b.get()));
}

}  // namespace clipproj
