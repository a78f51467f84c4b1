// SPDX-License-Identifier: Apache-2.0
// The launch that the operators share (launch.cu).
#pragma once
#include "../host.h"

namespace clipproj {

void launch_cuda(const Tensor& x, const Factors& f, const Pass& pass);

}  // namespace clipproj
