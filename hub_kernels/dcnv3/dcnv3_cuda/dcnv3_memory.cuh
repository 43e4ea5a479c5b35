// Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
//
// Numbers and memory on the GPU: conversions, vector loads and stores, reductions.
#pragma once

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace dcnv3 {

#if defined(__CUDA_ARCH__)
constexpr int kArchitecture = __CUDA_ARCH__;
#elif defined(DCNV3_SHIM_ARCHITECTURE)  // on the CPU, to run what is chosen for one
constexpr int kArchitecture = DCNV3_SHIM_ARCHITECTURE;
#else
constexpr int kArchitecture = 0;
#endif

// ---- Numbers ----

__device__ inline float to_float(float x) {
  return x;
}

__device__ inline float to_float(__half x) {
  return __half2float(x);
}

__device__ inline float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}

template <typename scalar_t>
__device__ inline scalar_t from_float(float x);

template <>
__device__ inline float from_float<float>(float x) {
  return x;
}

template <>
__device__ inline __half from_float<__half>(float x) {
  return __float2half_rn(x);
}

template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// exp2(x), 0 where that is denormal: one instruction, for which CUDA has no function without
// compiler flags.
__device__ inline float exp2_approximate(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}

constexpr float kLog2E = 1.4426950408889634f;

__device__ inline float sigmoid(float x) {
  return __fdividef(1.0f, 1.0f + exp2_approximate(-kLog2E * x));
}

// ---- Memory ----

template <typename scalar_t, int kVec>
struct alignas(kVec * sizeof(scalar_t)) Vector {
  scalar_t elements[kVec];
};

template <int kBytes>
struct Word;
template <>
struct Word<2> {
  using type = unsigned short;
};
template <>
struct Word<4> {
  using type = unsigned int;
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<16> {
  using type = uint4;
};

// One load of `kVec` elements through the read-only path: the compiler may then move it ahead of
// any store.
template <int kVec, typename scalar_t>
__device__ inline Vector<scalar_t, kVec> load(scalar_t const* address) {
  using word_t = typename Word<kVec * sizeof(scalar_t)>::type;
  word_t const word = __ldg(reinterpret_cast<word_t const*>(address));
  Vector<scalar_t, kVec> vector;
  memcpy(&vector, &word, sizeof(word));
  return vector;
}

// One store. The compiler may split an assignment of structures into one store per member.
template <typename word_t>
__device__ inline void store_word(word_t* address, word_t word) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(word_t) == 16) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(word.x),
        "r"(word.y), "r"(word.z), "r"(word.w)
        : "memory");
    return;
  }
  if constexpr (sizeof(word_t) == 8) {
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(address), "r"(word.x), "r"(word.y)
                 : "memory");
    return;
  }
#endif
  *address = word;
}

// `shift` is 2^16.
template <int kVec, typename scalar_t>
__device__ inline void to_floats(
    float (&to)[kVec], Vector<scalar_t, kVec> const& vector, [[maybe_unused]] uint32_t shift) {
  if constexpr (std::is_same_v<scalar_t, __nv_bfloat16> && kVec % 2 == 0) {
    // A bfloat16 is the upper half of a float. Read in words of two, each conversion takes one
    // instruction instead of two. The lower half is multiplied by a run-time 2^16: the compiler
    // would turn a constant into a shift, and shifts run on the unit that serves the upper half.
    uint32_t words[kVec / 2];
    memcpy(words, &vector, sizeof(words));
#pragma unroll
    for (int i = 0; i < kVec; i += 2) {
      to[i] = __uint_as_float(words[i / 2] * shift);
      to[i + 1] = __uint_as_float(words[i / 2] & 0xffff0000u);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      to[i] = to_float(vector.elements[i]);
    }
  }
}

template <int kVec, typename scalar_t>
__device__ inline void load_as_float(float (&to)[kVec], scalar_t const* address) {
  to_floats(to, load<kVec>(address), 1u << 16);
}

template <int kVec, typename scalar_t>
__device__ inline void store_from_float(scalar_t* address, float const (&from)[kVec]) {
  Vector<scalar_t, kVec> vector;
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    vector.elements[i] = from_float<scalar_t>(from[i]);
  }
  using word_t = typename Word<kVec * sizeof(scalar_t)>::type;
  word_t word;
  memcpy(&word, &vector, sizeof(word));
  store_word(reinterpret_cast<word_t*>(address), word);
}

// The address `bytes` after `start`.
template <typename scalar_t, typename index_t>
__device__ inline scalar_t* advance(scalar_t* start, index_t bytes) {
  using byte_t = std::conditional_t<std::is_const_v<scalar_t>, char const, char>;
  return reinterpret_cast<scalar_t*>(reinterpret_cast<byte_t*>(start) + bytes);
}

// Adds value i, times `scale`, to memory that other threads add to as well, at address + i * kStep.
// Nothing to do if `scale` is zero, as it often is at the border and at integer positions.
template <int kStep, int kVec>
__device__ inline void add_to_memory(float* address, float scale, float const (&values)[kVec]) {
  if (scale != 0.0f) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if constexpr (kVec == 4 && kStep == 1) {
      asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(address),
          "f"(scale * values[0]), "f"(scale * values[1]), "f"(scale * values[2]),
          "f"(scale * values[3]));
    } else
#endif
    {
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        atomicAdd(address + i * kStep, scale * values[i]);
      }
    }
  }
}

}  // namespace dcnv3
