// SPDX-License-Identifier: Apache-2.0
// CUDA's two half types with the conversions that kernels use.
#pragma once
#include <cstdint>
#include <cstring>

struct __nv_bfloat16 {
  uint16_t bits;
};
struct __half {
  uint16_t bits;
};

namespace clipproj {

inline float to_float(float v) { return v; }
inline float to_float(__nv_bfloat16 v) {
  const uint32_t wide = uint32_t{v.bits} << 16;
  float out;
  std::memcpy(&out, &wide, 4);
  return out;
}
inline float to_float(__half v) {
  _Float16 half;
  std::memcpy(&half, &v, 2);
  return half;
}

// To nearest even; NaN stays NaN.
template <class T>
T from_float(float v);
template <>
inline float from_float(float v) {
  return v;
}
template <>
inline __nv_bfloat16 from_float(float v) {
  if (v != v) return {0x7fff};
  uint32_t wide;
  std::memcpy(&wide, &v, 4);
  return {static_cast<uint16_t>((wide + 0x7fff + (wide >> 16 & 1)) >> 16)};
}
template <>
inline __half from_float(float v) {
  const _Float16 half = static_cast<_Float16>(v);
  __half out;
  std::memcpy(&out, &half, 2);
  return out;
}

inline uint32_t pack_bf16(float low, float high) {
  return from_float<__nv_bfloat16>(low).bits | uint32_t{from_float<__nv_bfloat16>(high).bits} << 16;
}

}  // namespace clipproj
