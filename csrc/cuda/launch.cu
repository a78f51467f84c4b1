// SPDX-License-Identifier: Apache-2.0
// Launches the kernels of the project family: device guard, torch's current stream, the kernel of
// the plan, launch, launch check. The one place that instantiates kernels.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "backend.cuh"
#include "project_kernels.cuh"

namespace clipproj {
namespace {

int64_t attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&value, which, device));
  return value;
}

// Some host time, asked anew at each call: no state to go stale.
DeviceProperties describe(int device) {
  return {static_cast<int>(attribute(cudaDevAttrComputeCapabilityMajor, device)),
          attribute(cudaDevAttrMultiProcessorCount, device),
          attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
          attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device)};
}

template <class T>
void launch_rows(const ProjectParams<float>& p, int index, cudaStream_t stream) {
  const DeviceProperties device = describe(index);
  const Plan plan = plan_project(kType<T>, p, device);
  require(static_cast<int64_t>(plan.shared) <= device.shared_of_block, "project",
          "a row and its coefficients must fit ", device.shared_of_block,
          " bytes of shared memory, got d=", p.d, " and k=", coef_room(p, is_solved(p)));
  const Kernel kernel = project_kernel_of<T>(plan, p);
  if (plan.shared > 48 * 1024) {
    STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(plan.shared)));
  }
  kernel<<<static_cast<unsigned>(plan.blocks), kThreads * plan.teams, plan.shared, stream>>>(p);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

void Cuda::launch(const Tensor& x, const Factors& f, const LaunchArgs& args) {
  if (args.from.n == 0) return;
  const int index = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(index);
  void* current = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &current));
  const auto stream = static_cast<cudaStream_t>(current);
  auto p = make_params<float>(f, args);
  p.clamps = p.gram && !p.index && p.k == 1;  // more elements of gram only the device can look at
  switch (x.scalar_type()) {
    case ScalarType::Float: return launch_rows<float>(p, index, stream);
    case ScalarType::BFloat16: return launch_rows<__nv_bfloat16>(p, index, stream);
    default: return launch_rows<__half>(p, index, stream);
  }
}

}  // namespace clipproj
