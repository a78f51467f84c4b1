// SPDX-License-Identifier: Apache-2.0
// How a thread rounds and what it makes of denormals: torch.set_flush_denormal and fesetround set
// it for their own thread alone, and a row's bits hang on it.
#pragma once
#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace clipproj {

#if defined(__x86_64__)
using FloatControl = uint32_t;
inline FloatControl float_control() { return _mm_getcsr(); }
inline void set_float_control(FloatControl control) { _mm_setcsr(control); }
constexpr FloatControl kFloatMode = 0x8000 | 0x6000 | 0x0040;  // flush to zero, rounding, daz
#elif defined(__aarch64__)
using FloatControl = uint64_t;
inline FloatControl float_control() {
  FloatControl control;
  asm volatile("mrs %0, fpcr" : "=r"(control));
  return control;
}
inline void set_float_control(FloatControl control) { asm volatile("msr fpcr, %0" ::"r"(control)); }
constexpr FloatControl kFloatMode = 1 << 24 | 3 << 22 | 1 << 19;  // flush, rounding, flush halves
#else
using FloatControl = uint32_t;
inline FloatControl float_control() { return 0; }
inline void set_float_control(FloatControl) {}
constexpr FloatControl kFloatMode = 0;
#endif

// Gives this thread the mode of another, for as long as it lives. Flags and traps stay its own.
class FloatModeOf {
 public:
  explicit FloatModeOf(FloatControl other) : own_(float_control()) {
    const FloatControl wanted = (own_ & ~kFloatMode) | (other & kFloatMode);
    changed_ = wanted != own_;
    if (changed_) set_float_control(wanted);
  }
  ~FloatModeOf() {
    if (changed_) set_float_control(own_);
  }
  FloatModeOf(const FloatModeOf&) = delete;
  FloatModeOf& operator=(const FloatModeOf&) = delete;

 private:
  FloatControl own_;
  bool changed_;
};

}  // namespace clipproj
