// SPDX-License-Identifier: Apache-2.0
// AVX2 with FMA and F16C. Every header comes before the target pragma: an inline function of a
// header compiled as AVX2 here could be the copy that the linker keeps for everybody.
#if defined(__x86_64__)
#include <immintrin.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "isa.h"
#include "kernel.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

namespace clipproj::avx2 {
namespace {

using c10::BFloat16;
using c10::Half;

struct Vec {
  using A = float;
  static constexpr int64_t kLanes = 8;
  static constexpr int kRows = 4, kSums = 8;  // 8 sums, 4 norms and operands in 16 registers
  __m256 v;

  static Vec zero() { return {_mm256_setzero_ps()}; }
  static Vec set1(float value) { return {_mm256_set1_ps(value)}; }

  static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Vec load(const BFloat16* p) { return widen_bf16(load_16bit(p)); }
  static Vec load(const Half* p) { return {_mm256_cvtph_ps(load_16bit(p))}; }
  static Vec load(const float* p, int64_t lanes) { return {_mm256_maskload_ps(p, mask(lanes))}; }
  static Vec load(const BFloat16* p, int64_t lanes) { return widen_bf16(load_16bit(p, lanes)); }
  static Vec load(const Half* p, int64_t lanes) { return {_mm256_cvtph_ps(load_16bit(p, lanes))}; }

  void store(float* p) const { _mm256_storeu_ps(p, v); }
  void store(BFloat16* p) const { store_16bit(p, to_bf16()); }
  void store(Half* p) const { store_16bit(p, to_f16()); }
  void store(float* p, int64_t lanes) const { _mm256_maskstore_ps(p, mask(lanes), v); }
  void store(BFloat16* p, int64_t lanes) const { store_16bit(p, to_bf16(), lanes); }
  void store(Half* p, int64_t lanes) const { store_16bit(p, to_f16(), lanes); }

  // Past the caches; p is aligned to a vector.
  void stream(float* p) const { _mm256_stream_ps(p, v); }
  void stream(BFloat16* p) const { _mm_stream_si128(reinterpret_cast<__m128i*>(p), to_bf16()); }
  void stream(Half* p) const { _mm_stream_si128(reinterpret_cast<__m128i*>(p), to_f16()); }
  static void fence() { _mm_sfence(); }

  // In a register: an operand of several instructions is to be loaded once.
  Vec held() const {
    Vec out = *this;
    asm("" : "+x"(out.v));
    return out;
  }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  Vec operator+(Vec b) const { return {_mm256_add_ps(v, b.v)}; }
  Vec operator-(Vec b) const { return {_mm256_sub_ps(v, b.v)}; }
  Vec operator*(Vec b) const { return {_mm256_mul_ps(v, b.v)}; }

  static Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }  // b where one is NaN
  bool any() const {                                                  // is not 0
    return _mm256_movemask_ps(_mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_NEQ_UQ)) != 0;
  }

  // out[i] <- the sum of the lanes of v[i], halves first.
  template <int N>
  static void sums(const Vec* v, float* out) {
    static_assert(N <= 8);
    __m256 t[8];
    CLIPPROJ_UNROLL for (int i = 0; i < 8; ++i) {
      const int from = i % 2 * 4 + i / 2;  // where shuffles leave the sum of t[i]
      t[i] = from < N ? v[from].v : _mm256_setzero_ps();
    }
    CLIPPROJ_UNROLL for (int i = 0; i < 4; ++i) {
      t[i] = _mm256_add_ps(_mm256_permute2f128_ps(t[2 * i], t[2 * i + 1], 0x20),
                           _mm256_permute2f128_ps(t[2 * i], t[2 * i + 1], 0x31));
    }
    CLIPPROJ_UNROLL for (int i = 0; i < 2; ++i) {
      t[i] = _mm256_add_ps(_mm256_shuffle_ps(t[2 * i], t[2 * i + 1], 0x44),
                           _mm256_shuffle_ps(t[2 * i], t[2 * i + 1], 0xee));
    }
    const Vec all{
        _mm256_add_ps(_mm256_shuffle_ps(t[0], t[1], 0x88), _mm256_shuffle_ps(t[0], t[1], 0xdd))};
    N == 8 ? all.store(out) : all.store(out, N);
  }

  // Eight vectors as the rows of a matrix.
  static void transpose(Vec* v) {
    __m256 t[8];
    CLIPPROJ_UNROLL for (int i = 0; i < 8; i += 4) {
      const __m256 a = _mm256_unpacklo_ps(v[i].v, v[i + 1].v);
      const __m256 b = _mm256_unpackhi_ps(v[i].v, v[i + 1].v);
      const __m256 c = _mm256_unpacklo_ps(v[i + 2].v, v[i + 3].v);
      const __m256 d = _mm256_unpackhi_ps(v[i + 2].v, v[i + 3].v);
      t[i] = _mm256_shuffle_ps(a, c, 0x44);
      t[i + 1] = _mm256_shuffle_ps(a, c, 0xee);
      t[i + 2] = _mm256_shuffle_ps(b, d, 0x44);
      t[i + 3] = _mm256_shuffle_ps(b, d, 0xee);
    }
    CLIPPROJ_UNROLL for (int i = 0; i < 4; ++i) {
      v[i].v = _mm256_permute2f128_ps(t[i], t[i + 4], 0x20);
      v[i + 4].v = _mm256_permute2f128_ps(t[i], t[i + 4], 0x31);
    }
  }

 private:
  static __m256i mask(int64_t lanes) {
    const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(lanes)), index);
  }
  template <class T>
  static __m128i load_16bit(const T* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  }
  template <class T>
  static __m128i load_16bit(const T* p, int64_t lanes) {
    __m128i out = _mm_setzero_si128();
    std::memcpy(&out, p, sizeof(T) * lanes);
    return out;
  }
  template <class T>
  static void store_16bit(T* p, __m128i bits, int64_t lanes = kLanes) {
    std::memcpy(static_cast<void*>(p), &bits, sizeof(T) * lanes);
  }
  static Vec widen_bf16(__m128i bits) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
  }
  // Round to nearest even; a NaN becomes the quiet NaN 0x7fc0, as c10::BFloat16 makes it.
  __m128i to_bf16() const {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, bias), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i wide = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  }
  __m128i to_f16() const {
    return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
};

#include "fold_kernel.inl"
#include "project_kernel.inl"
#include "project_rows_kernel.inl"

template <class T>
constexpr ProjectKernel<float> kProject{project_range<Vec, T>, project_split<Vec, T>,
                                        project_rows<Vec, T>, fold_columns<Vec, T>, Vec::kRows};

}  // namespace

const CpuKernels kernels{"avx2", kProject<float>, kProject<BFloat16>, kProject<Half>};

}  // namespace clipproj::avx2

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif  // __x86_64__
