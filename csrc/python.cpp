// SPDX-License-Identifier: Apache-2.0
// What is not a tensor and no operator schema can carry: which build this is and which instruction
// set it runs. Tensor functions are never bound here: torch.compile and autograd would not see
// them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/isa.h"
#include "cpu/readers.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Host introspection of clipproj; the operators are torch.ops.clipproj.*";
  m.def(
      "build_info",
      [] {
        py::dict info;
        info["version"] = CLIPPROJ_VERSION;
        info["compiler"] = __VERSION__;
        info["torch_built"] = CLIPPROJ_TORCH_BUILT;    // headers this was compiled against
        info["torch_target"] = CLIPPROJ_TORCH_TARGET;  // oldest torch that can load it
        info["cuda_built"] = CLIPPROJ_CUDA_BUILT;  // toolkit of the CUDA library, "" without one
        info["cpu_isas"] = clipproj::cpu_isas();
        return info;
      },
      "What this library was built with: version, compiler, torch, CUDA, instruction sets.");
  m.def("cpu_isa", &clipproj::cpu_isa, "Instruction set the CPU kernels use now.");
  m.def("set_cpu_isa", &clipproj::set_cpu_isa, py::arg("name"),
        "Use a lower instruction set of this machine (or go back up). Raises ValueError for any "
        "other name. CLIPPROJ_CPU_ISA does the same before import.");
  m.def("wait_for_bank_readers", &clipproj::wait_for_bank_readers,
        py::call_guard<py::gil_scoped_release>(),
        "Returns when all CPU operators that were reading a bank at the call have ended.");
  m.def("release_fence", &clipproj::release_fence,
        "What was written to memory before is seen by whoever sees what is written after.");
}
