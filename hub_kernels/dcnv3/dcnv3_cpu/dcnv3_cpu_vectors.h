// Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
//
// Vectors of numbers: loads and stores that convert, the exponential. Included by dcnv3_cpu_kernels.h.
#pragma once

#include <cstdint>

#include "dcnv3_cpu.h"
#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace dcnv3 {
namespace DCNV3_CPU_ARCH {

constexpr int kLanes = DCNV3_CPU_LANES;

template <typename T, int N>
struct VectorOf {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <typename T, int N>
using Vec = typename VectorOf<T, N>::type;

template <typename To, typename From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

// The type sums are taken in, and integers of its size.
template <typename scalar_t>
struct OpMath {
  using type = float;
  using integer = int32_t;
};
template <>
struct OpMath<double> {
  using type = double;
  using integer = int64_t;
};
template <typename scalar_t>
using opmath_of = typename OpMath<scalar_t>::type;

// --- Loads and stores of N values as float or double, any alignment -------------------------------------------------

template <int N>
inline Vec<float, N> load(float const* pointer) {
  Vec<float, N> values;
  __builtin_memcpy(&values, pointer, sizeof(values));
  return values;
}

template <int N>
inline Vec<double, N> load(double const* pointer) {
  Vec<double, N> values;
  __builtin_memcpy(&values, pointer, sizeof(values));
  return values;
}

template <int N>
inline Vec<Pair, N> load(Pair const* pointer) {
  Vec<Pair, N> pairs;
  __builtin_memcpy(&pairs, pointer, sizeof(pairs));
  return pairs;
}

// Intrinsics for the 16-bit types, because GCC converts them piece by piece.
template <int N>
inline Vec<float, N> load(BFloat16 const* pointer) {
#if defined(__AVX512F__)
  if constexpr (N == 16) {
    __m256i bits;
    __builtin_memcpy(&bits, pointer, sizeof(bits));
    return bit_cast<Vec<float, N>>(bit_cast<Vec<uint32_t, N>>(_mm512_maskz_cvtepu16_epi32(0xffff, bits)) << 16);
  }
#endif
#if defined(__AVX2__)
  if constexpr (N == 8) {
    __m128i bits;
    __builtin_memcpy(&bits, pointer, sizeof(bits));
    return bit_cast<Vec<float, N>>(bit_cast<Vec<uint32_t, N>>(_mm256_cvtepu16_epi32(bits)) << 16);
  }
#endif
  Vec<uint16_t, N> bits;
  __builtin_memcpy(&bits, pointer, sizeof(bits));
  if constexpr (N == 4) {  // the upper halves of floats whose lower halves are zero
    return bit_cast<Vec<float, N>>(__builtin_shufflevector(Vec<uint16_t, N>{}, bits, 0, 4, 1, 5, 2, 6, 3, 7));
  }
  return bit_cast<Vec<float, N>>(__builtin_convertvector(bits, Vec<uint32_t, N>) << 16);
}

template <int N>
inline Vec<float, N> load(Half const* pointer) {
#if defined(__AVX512F__)
  if constexpr (N == 16) {
    __m256i bits;
    __builtin_memcpy(&bits, pointer, sizeof(bits));
    return bit_cast<Vec<float, N>>(_mm512_maskz_cvtph_ps(0xffff, bits));
  }
#endif
#if defined(__F16C__)
  if constexpr (N == 8) {
    __m128i bits;
    __builtin_memcpy(&bits, pointer, sizeof(bits));
    return bit_cast<Vec<float, N>>(_mm256_cvtph_ps(bits));
  }
#endif
  using Bits = Vec<uint32_t, N>;
  Vec<uint16_t, N> narrow;
  __builtin_memcpy(&narrow, pointer, sizeof(narrow));
  Bits const bits = __builtin_convertvector(narrow, Bits);
  Bits const sign = (bits & 0x8000u) << 16;
  Bits const magnitude = (bits & 0x7fffu) << 13;
  // Scaling by 2^112 moves the exponent bias and makes denormals normal; infinity and NaN are not reached by it.
  Bits const scaled = bit_cast<Bits>(bit_cast<Vec<float, N>>(magnitude) * 0x1p112f);
  Bits const special = bit_cast<Bits>((bits & 0x7c00u) == 0x7c00u);
  return bit_cast<Vec<float, N>>(sign | (special & (magnitude | 0x7f800000u)) | (~special & scaled));
}

template <int N>
inline void store(float* pointer, Vec<float, N> values) {
  __builtin_memcpy(pointer, &values, sizeof(values));
}

template <int N>
inline void store(double* pointer, Vec<double, N> values) {
  __builtin_memcpy(pointer, &values, sizeof(values));
}

template <int N>
inline void store(Pair* pointer, Vec<Pair, N> pairs) {
  __builtin_memcpy(pointer, &pairs, sizeof(pairs));
}

// Round to nearest even, as PyTorch does.
template <int N>
inline void store(BFloat16* pointer, Vec<float, N> values) {
#if defined(__AVX512BF16__)
  if constexpr (N == 16) {
    __m256bh const bits = _mm512_cvtneps_pbh(bit_cast<__m512>(values));
    __builtin_memcpy(pointer, &bits, sizeof(bits));
    return;
  }
#endif
  using Bits = Vec<uint32_t, N>;
  Bits const bits = bit_cast<Bits>(values);
  Bits const rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  Bits const nan = bit_cast<Bits>(values != values);
  Vec<uint16_t, N> const narrow = __builtin_convertvector((nan & 0x7fc0u) | (~nan & rounded), Vec<uint16_t, N>);
  __builtin_memcpy(pointer, &narrow, sizeof(narrow));
}

template <int N>
inline void store(Half* pointer, Vec<float, N> values) {
#if defined(__AVX512F__)
  if constexpr (N == 16) {
    __m256i const bits = _mm512_maskz_cvtps_ph(0xffff, bit_cast<__m512>(values), _MM_FROUND_TO_NEAREST_INT);
    __builtin_memcpy(pointer, &bits, sizeof(bits));
    return;
  }
#endif
#if defined(__F16C__)
  if constexpr (N == 8) {
    __m128i const bits = _mm256_cvtps_ph(bit_cast<__m256>(values), _MM_FROUND_TO_NEAREST_INT);
    __builtin_memcpy(pointer, &bits, sizeof(bits));
    return;
  }
#endif
  using Bits = Vec<uint32_t, N>;
  Bits const bits = bit_cast<Bits>(values);
  Bits const sign = (bits >> 16) & 0x8000u;
  Bits const magnitude = bits & 0x7fffffffu;
  // Normal results: move the bias, round to nearest even at bit 13. Denormal ones: let a float addition round.
  Bits const normal = (magnitude + 0xc8000fffu + ((magnitude >> 13) & 1u)) >> 13;
  Bits const denormal = bit_cast<Bits>(bit_cast<Vec<float, N>>(magnitude) + 0.5f) - 0x3f000000u;
  Bits const tiny = bit_cast<Bits>(magnitude < 0x38800000u);
  Bits const large = bit_cast<Bits>(magnitude >= 0x47800000u);  // 2^16 and up; less may still round up to infinity
  Bits const nan = bit_cast<Bits>(magnitude > 0x7f800000u);
  Bits result = (tiny & denormal) | (~tiny & normal);
  result = (large & 0x7c00u) | (~large & result);
  result = (nan & 0x7e00u) | (~nan & result);
  Vec<uint16_t, N> const narrow = __builtin_convertvector(sign | result, Vec<uint16_t, N>);
  __builtin_memcpy(pointer, &narrow, sizeof(narrow));
}

template <typename scalar_t>
inline opmath_of<scalar_t> load_one(scalar_t const* pointer) {
  if constexpr (sizeof(scalar_t) == sizeof(opmath_of<scalar_t>)) {
    return *pointer;
  } else {
    return load<1>(pointer)[0];
  }
}

inline Pair load_one(Pair const* pointer) {
  return load<1>(pointer)[0];
}

inline void store_one(Pair* pointer, Pair pair) {
  store<1>(pointer, Vec<Pair, 1>{pair});
}

template <typename scalar_t>
inline void store_one(scalar_t* pointer, opmath_of<scalar_t> value) {
  if constexpr (sizeof(scalar_t) == sizeof(opmath_of<scalar_t>)) {
    *pointer = value;
  } else {
    store<1>(pointer, Vec<float, 1>{value});
  }
}

// --- exp --------------------------------------------------------------------------------------------------------------

// e^x for |x| <= 104, to two units in the last place; less than that gives 0, NaN stays NaN. (Cephes' polynomial.)
inline Vec<float, kLanes> exponential(Vec<float, kLanes> x) {
  using F = Vec<float, kLanes>;
  using I = Vec<int32_t, kLanes>;
  x = x < -104.0f ? F{} - 104.0f : x;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding and subtracting it rounds to an integer
  F const whole = (x * 1.44269504088896341f + kRound) - kRound;
  I const n = __builtin_convertvector(whole, I);
  F const r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  F p = F{} + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // 2^n in two factors, each a normal number: the result may be denormal.
  I const half = n >> 1;
  return p * bit_cast<F>((half + 127) << 23) * bit_cast<F>((n - half + 127) << 23);
}

inline Vec<double, kLanes> exponential(Vec<double, kLanes> x) {
  for (int lane = 0; lane < kLanes; ++lane) {
    x[lane] = __builtin_exp(x[lane]);
  }
  return x;
}

template <typename V>
inline V sigmoid(V x) {
  V const e = exponential(x < 0 ? x : -x);  // e^-|x|
  return (x < 0 ? e : V{} + 1) / (1 + e);
}

}  // namespace DCNV3_CPU_ARCH
}  // namespace dcnv3
