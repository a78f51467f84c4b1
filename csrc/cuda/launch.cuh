// SPDX-License-Identifier: Apache-2.0
// Device guard, torch's current stream, launch, launch check.
#pragma once
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "../host.h"
#include "project_kernel.cuh"

namespace clipproj {

template <class T>
void launch_rows(const ProjectParams<float>& p, const Tensor& x, cudaStream_t stream) {
  // One block a row: grid.x reaches 2^31 - 1 rows, beyond that blocks stride over the rest.
  const int64_t blocks = std::min<int64_t>(p.n, 2147483647);
  const size_t shared = project_shared_bytes(p.d, p.k);
  int limit = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                        x.get_device_index()));
  require(shared <= static_cast<size_t>(limit), "project", "d + k must fit ", limit,
          " bytes of shared memory, got d=", p.d, ", k=", p.k);
  if (shared > 48 * 1024) {
    STD_CUDA_CHECK(cudaFuncSetAttribute(
        project_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
  }
  project_kernel<T><<<static_cast<unsigned>(blocks), kThreads, shared, stream>>>(p);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

inline void launch_cuda(const Tensor& x, const Factors& f, const void* from_data, Rows from,
                        void* out, Rows to, void* norm, bool normalize) {
  if (from.n == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  const auto p = make_params<float>(f, from_data, from, out, to, norm, normalize);
  switch (x.scalar_type()) {
    case ScalarType::Float: return launch_rows<float>(p, x, (cudaStream_t)stream);
    case ScalarType::BFloat16: return launch_rows<__nv_bfloat16>(p, x, (cudaStream_t)stream);
    default: return launch_rows<__half>(p, x, (cudaStream_t)stream);
  }
}

}  // namespace clipproj
