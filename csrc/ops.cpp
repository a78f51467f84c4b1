// SPDX-License-Identifier: Apache-2.0
// The schemas of torch.ops.clipproj, once. Kernels for the CPU and for CUDA are registered in cpu/
// and cuda/; fake kernels and derivatives in Python, in clipproj/ops/.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(clipproj, m) {
  m.def(
      "project(Tensor x, Tensor read, Tensor write, Tensor? offset=None, Tensor? strength=None, *, "
      "bool normalize=False) -> Tensor");
  m.def(
      "project_(Tensor(a!) x, Tensor read, Tensor write, Tensor? offset=None, "
      "Tensor? strength=None, *, bool normalize=False) -> ()");
  m.def(
      "project_out(Tensor x, Tensor read, Tensor write, Tensor? offset=None, "
      "Tensor? strength=None, *, bool normalize=False, Tensor(a!) out) -> ()");
  m.def(
      "project_rows(Tensor x, Tensor read, Tensor write, Tensor? offset, Tensor spans, "
      "Tensor index, Tensor? strength=None, *, bool normalize=False) -> Tensor");
  m.def(
      "project_rows.flag(Tensor x, Tensor read, Tensor write, Tensor? offset, Tensor spans, "
      "Tensor index, Tensor? strength=None, *, bool normalize=False, Tensor(a!) flag) -> Tensor");
  m.def(
      "linear(Tensor x, Tensor weight, Tensor? bias, Tensor read, Tensor write, "
      "Tensor? offset=None, Tensor? strength=None, *, bool normalize=False, Tensor? spans=None, "
      "Tensor? index=None) -> Tensor");
  m.def(
      "linear.flag(Tensor x, Tensor weight, Tensor? bias, Tensor read, Tensor write, "
      "Tensor? offset=None, Tensor? strength=None, *, bool normalize=False, Tensor? spans=None, "
      "Tensor? index=None, Tensor(a!) flag) -> Tensor");
  m.def(
      "logits(Tensor x, Tensor classes, Tensor read, Tensor write, Tensor? offset, "
      "Tensor? strength, Tensor scale, Tensor? bias=None, *, Tensor? spans=None, "
      "Tensor? index=None, ScalarType? dtype=None) -> Tensor");
  m.def(
      "logits.flag(Tensor x, Tensor classes, Tensor read, Tensor write, Tensor? offset, "
      "Tensor? strength, Tensor scale, Tensor? bias=None, *, Tensor? spans=None, "
      "Tensor? index=None, ScalarType? dtype=None, Tensor(a!) flag) -> Tensor");
  m.def(
      "fold_(Tensor(a!) weight, Tensor read, Tensor write, Tensor? offset=None, "
      "Tensor? strength=None, *, int dim) -> ()");
  m.def(
      "projected_norm(Tensor x, Tensor read, Tensor write, Tensor? offset=None, "
      "Tensor? strength=None) -> Tensor");
}
