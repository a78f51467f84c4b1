// SPDX-License-Identifier: Apache-2.0
// float32 in parts of fewer bits. Tensor cores multiply bfloat16, so what is float32 is split into
// a high part, the nearest bfloat16, and a low part, the nearest to what is left: together 2^-17.
// bfloat16 has float's range, so nothing needs scaling; parts in float16 would.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "device.cuh"

namespace clipproj {

__device__ inline float as_float(uint32_t bits) {
  float v;
  std::memcpy(&v, &bits, sizeof(v));
  return v;
}
__device__ inline uint32_t as_bits(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof(v));
  return bits;
}

template <class T>
__device__ inline T from_bits(uint16_t bits) {
  T v;
  std::memcpy(&v, &bits, sizeof(v));
  return v;
}
template <class T>
__device__ inline uint16_t to_bits(T v) {
  uint16_t bits;
  std::memcpy(&bits, &v, sizeof(v));
  return bits;
}

constexpr float kMostSplit = 0x1.fep127f;  // the largest bfloat16

// Two numbers as bfloat16 high and low parts, the first in the lower halves of the words.
struct Split {
  uint32_t high, low;
};

__device__ inline Split split(float a, float b) {
  const uint32_t high = pack_bf16(a, b);
  return {high, pack_bf16(a - as_float(high << 16), b - as_float(high & 0xffff0000u))};
}

// Two neighbours of x, which is bfloat16 already or float16.
template <class T>
__device__ inline Split split_x(uint32_t pair);
template <>
__device__ inline Split split_x<__nv_bfloat16>(uint32_t pair) {
  return {pair, 0};
}
template <>
__device__ inline Split split_x<__half>(uint32_t pair) {
  return split(to_float(from_bits<__half>(static_cast<uint16_t>(pair))),
               to_float(from_bits<__half>(static_cast<uint16_t>(pair >> 16))));
}

// Two numbers rounded to T, as bits in one word.
template <class T>
__device__ inline uint32_t round_pair(float a, float b) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return pack_bf16(a, b);
  } else {
    return static_cast<uint32_t>(to_bits(from_float<T>(b))) << 16 | to_bits(from_float<T>(a));
  }
}

// A projected row waits for its length as the upper 24 bits of float32, rounded: 2^-17, as good as
// the products. The length itself is summed before, and is NaN where these bits may lose a NaN.
__device__ inline uint32_t keep(float y) { return as_bits(y) + 0x80; }
__device__ inline float kept(uint16_t high, uint32_t low) {
  return as_float(static_cast<uint32_t>(high) << 16 | low << 8);
}

}  // namespace clipproj
