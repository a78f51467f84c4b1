// SPDX-License-Identifier: Apache-2.0
// AVX-512 (F, BW, DQ, VL). Headers before the pragma, for the reason given in project_avx2.cpp.
#if defined(__x86_64__)
// GCC 12 warns of the undefined operands that its own AVX-512 intrinsics pass on purpose (bug
// 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
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
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")
#endif

namespace clipproj::avx512 {
namespace {

using c10::BFloat16;
using c10::Half;

struct Vec {
  using A = float;
  static constexpr int64_t kLanes = 16;
  static constexpr int kRows = 8, kSums = 16;  // 16 sums, 8 norms and operands in 32 registers
  __m512 v;

  static Vec zero() { return {_mm512_setzero_ps()}; }
  static Vec set1(float value) { return {_mm512_set1_ps(value)}; }

  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vec load(const BFloat16* p) { return widen_bf16(_mm256_loadu_si256((const __m256i*)p)); }
  static Vec load(const Half* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))};
  }
  static Vec load(const float* p, int64_t lanes) { return {_mm512_maskz_loadu_ps(mask(lanes), p)}; }
  static Vec load(const BFloat16* p, int64_t lanes) {
    return widen_bf16(_mm256_maskz_loadu_epi16(mask(lanes), p));
  }
  static Vec load(const Half* p, int64_t lanes) {
    return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask(lanes), p))};
  }

  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store(BFloat16* p) const { _mm256_storeu_si256((__m256i*)p, to_bf16()); }
  void store(Half* p) const { _mm256_storeu_si256((__m256i*)p, to_f16()); }
  void store(float* p, int64_t lanes) const { _mm512_mask_storeu_ps(p, mask(lanes), v); }
  void store(BFloat16* p, int64_t lanes) const {
    _mm256_mask_storeu_epi16(p, mask(lanes), to_bf16());
  }
  void store(Half* p, int64_t lanes) const { _mm256_mask_storeu_epi16(p, mask(lanes), to_f16()); }

  // In a register: an operand of several instructions is to be loaded once.
  Vec held() const {
    Vec out = *this;
    asm("" : "+v"(out.v));
    return out;
  }
  // Past the caches; p is aligned to a vector.
  void stream(float* p) const { _mm512_stream_ps(p, v); }
  void stream(BFloat16* p) const { _mm256_stream_si256((__m256i*)p, to_bf16()); }
  void stream(Half* p) const { _mm256_stream_si256((__m256i*)p, to_f16()); }
  static void fence() { _mm_sfence(); }

  static Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  Vec operator+(Vec b) const { return {_mm512_add_ps(v, b.v)}; }
  Vec operator-(Vec b) const { return {_mm512_sub_ps(v, b.v)}; }
  Vec operator*(Vec b) const { return {_mm512_mul_ps(v, b.v)}; }

  static Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }  // b where one is NaN
  bool any() const {                                                  // is not 0
    return _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_NEQ_UQ) != 0;
  }

  // out[i] <- the sum of the lanes of v[i], halves first.
  template <int N>
  static void sums(const Vec* v, float* out) {
    static_assert(N <= 16);
    __m512 t[16];
    CLIPPROJ_UNROLL for (int i = 0; i < 16; ++i) {
      const int from = i % 4 * 4 + i / 4;  // where shuffles leave the sum of t[i]
      t[i] = from < N ? v[from].v : _mm512_setzero_ps();
    }
    CLIPPROJ_UNROLL for (int i = 0; i < 8; ++i) {
      t[i] = _mm512_add_ps(_mm512_shuffle_f32x4(t[2 * i], t[2 * i + 1], 0x44),
                           _mm512_shuffle_f32x4(t[2 * i], t[2 * i + 1], 0xee));
    }
    CLIPPROJ_UNROLL for (int i = 0; i < 4; ++i) {
      t[i] = _mm512_add_ps(_mm512_shuffle_f32x4(t[2 * i], t[2 * i + 1], 0x88),
                           _mm512_shuffle_f32x4(t[2 * i], t[2 * i + 1], 0xdd));
    }
    CLIPPROJ_UNROLL for (int i = 0; i < 2; ++i) {
      t[i] = _mm512_add_ps(_mm512_shuffle_ps(t[2 * i], t[2 * i + 1], 0x44),
                           _mm512_shuffle_ps(t[2 * i], t[2 * i + 1], 0xee));
    }
    const Vec all{
        _mm512_add_ps(_mm512_shuffle_ps(t[0], t[1], 0x88), _mm512_shuffle_ps(t[0], t[1], 0xdd))};
    N == 16 ? all.store(out) : all.store(out, N);
  }

  // Sixteen vectors as the rows of a matrix.
  static void transpose(Vec* v) {
    __m512 t[16], u[16];
    CLIPPROJ_UNROLL for (int i = 0; i < 16; i += 4) {
      const __m512 a = _mm512_unpacklo_ps(v[i].v, v[i + 1].v);
      const __m512 b = _mm512_unpackhi_ps(v[i].v, v[i + 1].v);
      const __m512 c = _mm512_unpacklo_ps(v[i + 2].v, v[i + 3].v);
      const __m512 d = _mm512_unpackhi_ps(v[i + 2].v, v[i + 3].v);
      t[i] = _mm512_shuffle_ps(a, c, 0x44);
      t[i + 1] = _mm512_shuffle_ps(a, c, 0xee);
      t[i + 2] = _mm512_shuffle_ps(b, d, 0x44);
      t[i + 3] = _mm512_shuffle_ps(b, d, 0xee);
    }
    CLIPPROJ_UNROLL for (int i = 0; i < 4; ++i) {
      u[i] = _mm512_shuffle_f32x4(t[i], t[i + 4], 0x88);
      u[i + 4] = _mm512_shuffle_f32x4(t[i], t[i + 4], 0xdd);
      u[i + 8] = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0x88);
      u[i + 12] = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0xdd);
    }
    CLIPPROJ_UNROLL for (int i = 0; i < 8; ++i) {
      v[i].v = _mm512_shuffle_f32x4(u[i], u[i + 8], 0x88);
      v[i + 8].v = _mm512_shuffle_f32x4(u[i], u[i + 8], 0xdd);
    }
  }

 private:
  static __mmask16 mask(int64_t lanes) { return static_cast<__mmask16>((1u << lanes) - 1); }
  static Vec widen_bf16(__m256i bits) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
  }
  // Round to nearest even by hand: vcvtneps2bf16 would flush denormals. NaN as c10::BFloat16 has
  // it.
  __m256i to_bf16() const {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, bias), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_set1_epi32(rounded, nan, 0x7fc0));
  }
  __m256i to_f16() const {
    return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
};

#include "fold_kernel.inl"
#include "project_kernel.inl"
#include "project_rows_kernel.inl"

template <class T>
constexpr ProjectKernel<float> kProject{project_range<Vec, T>, project_split<Vec, T>,
                                        project_rows<Vec, T>, fold_columns<Vec, T>, Vec::kRows};

}  // namespace

const CpuKernels kernels{"avx512", kProject<float>, kProject<BFloat16>, kProject<Half>};

}  // namespace clipproj::avx512

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif  // __x86_64__
