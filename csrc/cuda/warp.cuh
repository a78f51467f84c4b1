// SPDX-License-Identifier: Apache-2.0
// One value of each lane of a warp, combined; every lane gets the result.
#pragma once
#include <cmath>

#include "device.cuh"

namespace clipproj {

__device__ inline float warp_sum(float value) {
  for (int step = 16; step > 0; step /= 2) value += shuffle_xor(value, step);
  return value;
}

__device__ inline float warp_max(float value) {
  for (int step = 16; step > 0; step /= 2) value = fmaxf(value, shuffle_xor(value, step));
  return value;
}

}  // namespace clipproj
