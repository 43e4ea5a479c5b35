// Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
//
// The inner loops of the CPU backend, on GCC's vector types. Compiled once per instruction set: the files that include
// this define DCNV3_CPU_ARCH, the namespace that everything here lives in, and DCNV3_CPU_LANES, the number of floats in
// one of its registers (GCC takes wider vectors too, but compiles comparisons of them element by element). Nothing of the
// standard library is used, so that no inline function compiled for one instruction set can be linked into the path for
// another.
//
// Work is done in blocks of 16 units, a unit being one group of one output pixel. First, with the block's points (unit
// by unit) as vector lanes: exponentials, sampling positions, and for each point its window, the 2x2 pixels that are
// interpolated, with a weight for each. Then, one unit after the other and with channels as lanes: the weighted sum.
//
// Windows always lie inside the image. Where a sample hangs over the border, the window is moved inside and the weights
// are moved with it: a pixel that the sample does not see has weight zero. An image of one row or column has windows
// whose second row or column is the first again, with weight zero.
#pragma once

#include <cstdint>

#include "dcnv3_cpu.h"
#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace dcnv3 {
namespace DCNV3_CPU_ARCH {

constexpr int kLanes = DCNV3_CPU_LANES;
constexpr int kUnits = 16;  // per block
constexpr int kCorners = 4;  // of a window: top left, top right, bottom left, bottom right
constexpr int kMaxPoints = 49 * kUnits + kLanes;  // of a block: 7x7 points, and room for one vector too many

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
inline Vec<float, N> load(BFloat16 const* pointer) {
  Vec<uint16_t, N> bits;
  __builtin_memcpy(&bits, pointer, sizeof(bits));
  return bit_cast<Vec<float, N>>(__builtin_convertvector(bits, Vec<uint32_t, N>) << 16);
}

template <int N>
inline Vec<float, N> load(Half const* pointer) {
#if defined(__F16C__)
  if constexpr (N % 8 == 0) {
    Vec<float, N> values;
    for (int i = 0; i < N; i += 8) {
      __m128i bits;
      __builtin_memcpy(&bits, pointer + i, sizeof(bits));
      __m256 const eight = _mm256_cvtph_ps(bits);
      __builtin_memcpy(reinterpret_cast<char*>(&values) + i * sizeof(float), &eight, sizeof(eight));
    }
    return values;
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

// Round to nearest even, as PyTorch does.
template <int N>
inline void store(BFloat16* pointer, Vec<float, N> values) {
  using Bits = Vec<uint32_t, N>;
  Bits const bits = bit_cast<Bits>(values);
  Bits const rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  Bits const nan = bit_cast<Bits>(values != values);
  Vec<uint16_t, N> const narrow = __builtin_convertvector((nan & 0x7fc0u) | (~nan & rounded), Vec<uint16_t, N>);
  __builtin_memcpy(pointer, &narrow, sizeof(narrow));
}

template <int N>
inline void store(Half* pointer, Vec<float, N> values) {
#if defined(__F16C__)
  if constexpr (N % 8 == 0) {
    for (int i = 0; i < N; i += 8) {
      __m256 eight;
      __builtin_memcpy(&eight, reinterpret_cast<char const*>(&values) + i * sizeof(float), sizeof(eight));
      __m128i const bits = _mm256_cvtps_ph(eight, _MM_FROUND_TO_NEAREST_INT);
      __builtin_memcpy(pointer + i, &bits, sizeof(bits));
    }
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

// --- The points of a block as lanes -----------------------------------------------------------------------------------

// Where the units of a block are.
struct Units {
  int count;
  int64_t row[kUnits];  // in the output
  int64_t column[kUnits];
  int64_t group[kUnits];
};

// The regular grid, the same for every unit: repeated for all of a block.
template <typename opmath_t>
struct Grid {
  alignas(64) opmath_t x[kMaxPoints];
  alignas(64) opmath_t y[kMaxPoints];
};

template <typename opmath_t>
inline void make_grid(Geometry const& g, Grid<opmath_t>& grid) {
  int const center = g.dilation * (g.kernel_size - 1) / 2;
  for (int i = 0; i < kUnits * g.num_points + kLanes; ++i) {
    int const q = i % g.num_points;
    int const point = q + (g.remove_center && q >= g.num_points / 2 ? 1 : 0);
    grid.x[i] = static_cast<opmath_t>(g.offset_scale) * (point / g.kernel_size * g.dilation - center);
    grid.y[i] = static_cast<opmath_t>(g.offset_scale) * (point % g.kernel_size * g.dilation - center);
  }
}

// A block: its inputs as floating point numbers, then what the channel loops need of it. Arrays over points are indexed
// unit * num_points + point.
template <typename opmath_t, typename index_t>
struct Block {
  Units units;
  alignas(64) opmath_t offset[2 * kMaxPoints];
  alignas(64) opmath_t mask[kMaxPoints];  // with softmax: not yet divided by the unit's total
  alignas(64) opmath_t origin_x[kMaxPoints];
  alignas(64) opmath_t origin_y[kMaxPoints];
  alignas(64) index_t index[kMaxPoints];  // of the window's first value, relative to the image
  alignas(64) opmath_t weight[kCorners][kMaxPoints];
  alignas(64) opmath_t gate[kUnits];
  alignas(64) opmath_t normalizer[kUnits];  // 1 / total
  alignas(64) opmath_t scale[kUnits];       // of the weights: normalizer * (1 - gate)
};

// What the backward pass needs beside: factors of the chain rule, and the products of the incoming gradient with every
// pixel of the windows.
template <typename opmath_t>
struct BlockGradients {
  alignas(64) opmath_t weight_x[2][kMaxPoints];  // of the window's columns
  alignas(64) opmath_t weight_y[2][kMaxPoints];  // of its rows
  alignas(64) opmath_t slope_x[2][kMaxPoints];   // their derivatives with respect to the offset
  alignas(64) opmath_t slope_y[2][kMaxPoints];
  alignas(64) opmath_t dots[kMaxPoints * kCorners];  // point by point
  alignas(64) opmath_t own_dots[kUnits];  // products with the unit's own pixel
  alignas(64) opmath_t sample_dots[kMaxPoints];
  alignas(64) opmath_t offset[2 * kMaxPoints];  // results
  alignas(64) opmath_t mask[kMaxPoints];
};

// Copies `count` values, converting them. No loop over single values: compilers make a call of memcpy out of it, which
// costs more than these few values.
template <int N, typename Source, typename Target>
inline __attribute__((always_inline)) void convert_up_to(Source const* source, Target* target, int64_t count) {
  if (count >= N) {
    store<N>(target, load<N>(source));
    source += N;
    target += N;
    count -= N;
  }
  if constexpr (N > 1) {
    convert_up_to<N / 2>(source, target, count);
  }
}

template <typename Source, typename Target>
inline __attribute__((always_inline)) void convert(Source const* source, Target* target, int64_t count) {
  for (; count >= kLanes; count -= kLanes) {
    store<kLanes>(target, load<kLanes>(source));
    source += kLanes;
    target += kLanes;
  }
  convert_up_to<kLanes / 2>(source, target, count);
}

// Asks for `count` values, at most two lines of the cache at their ends, of the unit kUnits further on. One group's
// values lie too far apart for the processor to foresee them.
template <typename T>
inline void prefetch_ahead(T const* values, int64_t stride, int64_t count) {
  __builtin_prefetch(values + kUnits * stride);
  __builtin_prefetch(values + kUnits * stride + count - 1);
}

// Copies the offsets and masks of `count` neighbouring units. A single unit of 3x3 points needs no loop.
template <typename Source, typename Target>
inline void convert_points(
    Source const* offset, Target* offset_target, Source const* mask, Target* mask_target, int num_points, int count) {
  if (num_points == 9 && count == 1) {
    convert(offset, offset_target, 18);
    convert(mask, mask_target, 9);
  } else {
    convert(offset, offset_target, static_cast<int64_t>(num_points) * count * 2);
    convert(mask, mask_target, static_cast<int64_t>(num_points) * count);
  }
}

// Reads the inputs of `block.units`, which lie in image `image`. Neighbouring units are read together where they are
// neighbours in memory. With `kOneGroup`, all are of the same group, and the next block is asked for.
template <bool kOneGroup, typename scalar_t, typename index_t>
inline void read_block(
    Inputs<scalar_t> const& inputs, Geometry const& g, int64_t image, Block<opmath_of<scalar_t>, index_t>& block) {
  using opmath_t = opmath_of<scalar_t>;
  Units const& units = block.units;
  int const points = g.num_points, center = g.dilation * (g.kernel_size - 1) / 2 - g.padding;
  scalar_t const* const offset = inputs.offset + image * inputs.offset_strides.batch;
  scalar_t const* const mask = inputs.mask + image * inputs.mask_strides.batch;
  for (int first = 0; first < units.count;) {
    int end = first + 1;
    while (end < units.count && units.row[end] == units.row[first] && units.column[end] == units.column[first] &&
           units.group[end] == units.group[end - 1] + 1) {
      ++end;
    }
    scalar_t const* const first_offset = offset + units.row[first] * inputs.offset_strides.row +
        units.column[first] * inputs.offset_strides.column + units.group[first] * points * 2;
    scalar_t const* const first_mask = mask + units.row[first] * inputs.mask_strides.row +
        units.column[first] * inputs.mask_strides.column + units.group[first] * points;
    if constexpr (kOneGroup) {
      prefetch_ahead(first_offset, inputs.offset_strides.column, points * 2);
      prefetch_ahead(first_mask, inputs.mask_strides.column, points);
    }
    convert_points(
        first_offset, block.offset + first * points * 2, first_mask, block.mask + first * points, points, end - first);
    auto const x = Vec<opmath_t, kLanes>{} + static_cast<opmath_t>(units.column[first] * g.stride + center);
    auto const y = Vec<opmath_t, kLanes>{} + static_cast<opmath_t>(units.row[first] * g.stride + center);
    for (int i = 0; i < (end - first) * points; i += kLanes) {  // what is written too much belongs to the next units
      store<kLanes>(block.origin_x + first * points + i, x);
      store<kLanes>(block.origin_y + first * points + i, y);
    }
    first = end;
  }
  if (inputs.center_scale != nullptr) {
    scalar_t const* const center_scale = inputs.center_scale + image * inputs.center_scale_strides.batch;
    for (int unit = 0; unit < units.count; ++unit) {
      block.gate[unit] = load_one(
          center_scale + units.row[unit] * inputs.center_scale_strides.row +
          units.column[unit] * inputs.center_scale_strides.column + units.group[unit]);
    }
    for (int unit = 0; unit < kUnits; unit += kLanes) {
      store<kLanes>(block.gate + unit, sigmoid(load<kLanes>(block.gate + unit)));
    }
  } else {
    __builtin_memset(block.gate, 0, sizeof(block.gate));
  }
}

// Replaces the logits of a block by their exponentials and computes the units' normalizers.
template <typename opmath_t, typename index_t>
inline void exponentiate(Geometry const& g, Block<opmath_t, index_t>& block) {
  using F = Vec<opmath_t, kLanes>;
  int const points = g.num_points, count = block.units.count * points;
  for (int unit = 0; unit < kUnits; ++unit) {
    block.normalizer[unit] = 1;
  }
  if (g.softmax) {
    for (int i = count; i < (count + kLanes - 1) / kLanes * kLanes; ++i) {
      block.mask[i] = 0;
    }
    // The largest logit is subtracted only if some are so large that their exponentials could overflow or vanish.
    F largest{};
    for (int i = 0; i < count; i += kLanes) {
      F const logits = load<kLanes>(block.mask + i);
      F const magnitude = logits < 0 ? -logits : logits;
      largest = magnitude > largest ? magnitude : largest;
    }
    bool moderate = true;
    for (int lane = 0; lane < kLanes; ++lane) {
      moderate = moderate && largest[lane] <= 40;
    }
    if (!moderate) {
      for (int unit = 0; unit < block.units.count; ++unit) {
        opmath_t* const logits = block.mask + unit * points;
        opmath_t top = logits[0];
        for (int q = 1; q < points; ++q) {
          top = logits[q] > top ? logits[q] : top;
        }
        for (int q = 0; q < points; ++q) {
          logits[q] -= top;
        }
      }
    }
    for (int i = 0; i < count; i += kLanes) {
      store<kLanes>(block.mask + i, exponential(load<kLanes>(block.mask + i)));
    }
    for (int unit = 0; unit < block.units.count; ++unit) {
      opmath_t total = 0;
      for (int q = 0; q < points; ++q) {
        total += block.mask[unit * points + q];
      }
      block.normalizer[unit] = 1 / total;
    }
  }
  for (int unit = 0; unit < kUnits; ++unit) {
    block.scale[unit] = block.normalizer[unit] * (1 - block.gate[unit]);
  }
}

// Splits pairs.
template <typename T>
inline void deinterleave(T const* pairs, Vec<T, kLanes>& x, Vec<T, kLanes>& y) {
  auto const low = load<kLanes>(pairs), high = load<kLanes>(pairs + kLanes);
  if constexpr (kLanes == 16) {
    x = __builtin_shufflevector(low, high, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    y = __builtin_shufflevector(low, high, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  } else if constexpr (kLanes == 8) {
    x = __builtin_shufflevector(low, high, 0, 2, 4, 6, 8, 10, 12, 14);
    y = __builtin_shufflevector(low, high, 1, 3, 5, 7, 9, 11, 13, 15);
  } else {
    x = __builtin_shufflevector(low, high, 0, 2, 4, 6);
    y = __builtin_shufflevector(low, high, 1, 3, 5, 7);
  }
}

// Joins pairs.
template <typename T>
inline void interleave(Vec<T, kLanes> x, Vec<T, kLanes> y, T* pairs) {
  if constexpr (kLanes == 16) {
    store<16>(pairs, __builtin_shufflevector(x, y, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23));
    store<16>(
        pairs + 16, __builtin_shufflevector(x, y, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31));
  } else if constexpr (kLanes == 8) {
    store<8>(pairs, __builtin_shufflevector(x, y, 0, 8, 1, 9, 2, 10, 3, 11));
    store<8>(pairs + 8, __builtin_shufflevector(x, y, 4, 12, 5, 13, 6, 14, 7, 15));
  } else {
    store<4>(pairs, __builtin_shufflevector(x, y, 0, 4, 1, 5));
    store<4>(pairs + 4, __builtin_shufflevector(x, y, 2, 6, 3, 7));
  }
}

// Splits groups of four.
template <typename opmath_t>
inline void deinterleave_corners(opmath_t const* groups, Vec<opmath_t, kLanes> (&corners)[kCorners]) {
  alignas(64) opmath_t even[2 * kLanes], odd[2 * kLanes];  // corners 0 and 2, corners 1 and 3
  for (int half = 0; half < 2; ++half) {
    Vec<opmath_t, kLanes> first, second;
    deinterleave(groups + half * 2 * kLanes, first, second);
    store<kLanes>(even + half * kLanes, first);
    store<kLanes>(odd + half * kLanes, second);
  }
  deinterleave(even, corners[0], corners[2]);
  deinterleave(odd, corners[1], corners[3]);
}

// One axis of the windows of kLanes points: where they start, the weights of their two pixels, and, up to the factor
// offset_scale, the derivatives of these.
template <typename F, typename I>
struct Axis {
  I start;
  F weight[2];
  F slope[2];
};

// The larger and the smaller of two values; NaN stays NaN if it comes first.
template <typename F>
inline F at_least(F x, F low) {
  return x < low ? low : x;
}
template <typename F>
inline F at_most(F x, F high) {
  return x > high ? high : x;
}

// Interpolation between pixels -1, 0, ..., size, of which the outer two are zeros, as weights of two neighbours that
// exist (of one if there is but one). A pixel's weight is 1 less its distance, and nothing from one pixel on.
template <bool kSlopes, typename F, typename I>
inline Axis<F, I> place_windows(F position, int64_t size) {
  using opmath_t = decltype(position[0] + 0);
  using integer_t = decltype(I{}[0] + 0);
  F const zero{}, one = zero + 1;
  int64_t const last = size > 1 ? size - 2 : 0;
  auto last_start = static_cast<opmath_t>(last);
  if (static_cast<int64_t>(last_start) > last) {  // rounded up, as sizes from 2^24 on may be: the number below
    last_start = bit_cast<opmath_t>(static_cast<integer_t>(bit_cast<integer_t>(last_start) - 1));
  }
  opmath_t const has_second = size > 1 ? 1 : 0;
  Axis<F, I> axis;
  F const start = position > zero ? position : zero;  // of NaN 0: any pixel will do
  axis.start = __builtin_convertvector(at_most(start, zero + last_start), I);
  F const t = position - __builtin_convertvector(axis.start, F);
  axis.weight[0] = at_least(at_most(one - t, one + t), zero);
  axis.weight[1] = at_least(at_most(t, one + one - t), zero) * has_second;
  if constexpr (kSlopes) {  // at a kink that to the right
    axis.slope[0] = (t >= -one) & (t < one) ? (t < zero ? one : -one) : zero;
    axis.slope[1] = ((t >= zero) & (t < one + one) ? (t < one ? one : -one) : zero) * has_second;
  }
  return axis;
}

// Computes the window of every point, in an image with these strides, and the factors in `gradients` if it is not
// null. `first_channel`, if it is not null, is that of each point's group.
template <bool kGradients, typename opmath_t, typename index_t>
inline void locate_windows(
    Geometry const& g, int64_t row_stride_, int64_t column_stride_, Grid<opmath_t> const& grid,
    index_t const* first_channel, Block<opmath_t, index_t>& block, BlockGradients<opmath_t>* gradients) {
  using F = Vec<opmath_t, kLanes>;
  using I = Vec<typename OpMath<opmath_t>::integer, kLanes>;
  using Index = Vec<index_t, kLanes>;
  opmath_t const scale = static_cast<opmath_t>(g.offset_scale);
  index_t const row_stride = static_cast<index_t>(row_stride_), column_stride = static_cast<index_t>(column_stride_);
  int const count = block.units.count * g.num_points;
  for (int i = 0; i < count; i += kLanes) {
    F x, y;
    deinterleave(block.offset + 2 * i, x, y);
    x = (load<kLanes>(block.origin_x + i) + load<kLanes>(grid.x + i)) + scale * x;
    y = (load<kLanes>(block.origin_y + i) + load<kLanes>(grid.y + i)) + scale * y;
    auto const columns = place_windows<kGradients, F, I>(x, g.width);
    auto const rows = place_windows<kGradients, F, I>(y, g.height);
    F const mask = load<kLanes>(block.mask + i);
    F const weight_top = mask * rows.weight[0], weight_bottom = mask * rows.weight[1];
    store<kLanes>(block.weight[0] + i, weight_top * columns.weight[0]);
    store<kLanes>(block.weight[1] + i, weight_top * columns.weight[1]);
    store<kLanes>(block.weight[2] + i, weight_bottom * columns.weight[0]);
    store<kLanes>(block.weight[3] + i, weight_bottom * columns.weight[1]);
    Index index = __builtin_convertvector(rows.start, Index) * row_stride +
        __builtin_convertvector(columns.start, Index) * column_stride;
    if (first_channel != nullptr) {
      Index channel;
      __builtin_memcpy(&channel, first_channel + i, sizeof(channel));
      index += channel;
    }
    __builtin_memcpy(block.index + i, &index, sizeof(index));
    if constexpr (kGradients) {
      for (int side = 0; side < 2; ++side) {
        store<kLanes>(gradients->weight_x[side] + i, columns.weight[side]);
        store<kLanes>(gradients->weight_y[side] + i, rows.weight[side]);
        store<kLanes>(gradients->slope_x[side] + i, columns.slope[side] * scale);
        store<kLanes>(gradients->slope_y[side] + i, rows.slope[side] * scale);
      }
    }
  }
}

// Distances between the pixels of a window, in elements: to the second column and to the second row.
struct WindowSteps {
  int64_t column;
  int64_t row;

  int64_t operator[](int corner) const { return (corner % 2) * column + (corner / 2) * row; }
};

inline WindowSteps window_steps(Geometry const& g, int64_t column_stride, int64_t row_stride) {
  return {g.width > 1 ? column_stride : 0, g.height > 1 ? row_stride : 0};
}

// --- One unit at a time, channels as lanes ----------------------------------------------------------------------------

// Calls `body(point)` for the points of a unit, unrolled for the 3x3 of every InternImage.
template <typename Body>
inline __attribute__((always_inline)) void for_points(int num_points, Body const& body) {
  if (num_points == 9) {
#pragma GCC unroll 9
    for (int q = 0; q < 9; ++q) {
      body(q);
    }
  } else {
    for (int q = 0; q < num_points; ++q) {
      body(q);
    }
  }
}

// Sums N channels of one unit, whose first point is `first`. `image` points to the image's first value plus the first of
// these channels.
template <int N, typename scalar_t, typename index_t>
inline Vec<opmath_of<scalar_t>, N> sum_windows(
    Block<opmath_of<scalar_t>, index_t> const& block, int first, int num_points, scalar_t const* image,
    WindowSteps steps) {
  using F = Vec<opmath_of<scalar_t>, N>;
  F sums[kCorners] = {};  // four chains of additions, which the processor overlaps
  for_points(num_points, [&](int q) __attribute__((always_inline)) {
    scalar_t const* const window = image + block.index[first + q];
    for (int corner = 0; corner < kCorners; ++corner) {
      sums[corner] += block.weight[corner][first + q] * load<N>(window + steps[corner]);
    }
  });
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

template <typename V>
inline auto sum_of_lanes(V values) {
  constexpr int lanes = sizeof(V) / sizeof(values[0]);
  using T = decltype(values[0] + 0);
  if constexpr (lanes == 1) {
    return static_cast<T>(values[0]);
  } else {
    Vec<T, lanes / 2> halves[2];
    __builtin_memcpy(halves, &values, sizeof(values));
    return sum_of_lanes(halves[0] + halves[1]);
  }
}

// Adds the two halves until four lanes are left.
template <int N, typename T>
inline Vec<T, kCorners> fold_to_four(Vec<T, N> values) {
  if constexpr (N == kCorners) {
    return values;
  } else {
    Vec<T, N / 2> halves[2];
    __builtin_memcpy(halves, &values, sizeof(values));
    return fold_to_four<N / 2, T>(halves[0] + halves[1]);
  }
}

// The sums over the lanes of each of four vectors: first within every four lanes, for all vectors at once.
template <int N, typename T>
inline Vec<T, kCorners> sums_of_lanes(Vec<T, N> const (&v)[kCorners]) {
  if constexpr (N == 1) {
    return Vec<T, kCorners>{v[0][0], v[1][0], v[2][0], v[3][0]};
  } else {
    auto const add_pairs = [](Vec<T, N> x, Vec<T, N> y) {  // x0+x2, y0+y2, x1+x3, y1+y3 of every four lanes
      if constexpr (N == 16) {
        return __builtin_shufflevector(x, y, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29) +
            __builtin_shufflevector(x, y, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
      } else if constexpr (N == 8) {
        return __builtin_shufflevector(x, y, 0, 8, 1, 9, 4, 12, 5, 13) +
            __builtin_shufflevector(x, y, 2, 10, 3, 11, 6, 14, 7, 15);
      } else {
        return __builtin_shufflevector(x, y, 0, 4, 1, 5) + __builtin_shufflevector(x, y, 2, 6, 3, 7);
      }
    };
    auto const add_halves = [](Vec<T, N> x, Vec<T, N> y) {  // x0+x2, x1+x3, y0+y2, y1+y3 of every four lanes
      if constexpr (N == 16) {
        return __builtin_shufflevector(x, y, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
            __builtin_shufflevector(x, y, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
      } else if constexpr (N == 8) {
        return __builtin_shufflevector(x, y, 0, 1, 8, 9, 4, 5, 12, 13) +
            __builtin_shufflevector(x, y, 2, 3, 10, 11, 6, 7, 14, 15);
      } else {
        return __builtin_shufflevector(x, y, 0, 1, 4, 5) + __builtin_shufflevector(x, y, 2, 3, 6, 7);
      }
    };
    return fold_to_four<N, T>(add_halves(add_pairs(v[0], v[1]), add_pairs(v[2], v[3])));
  }
}

// Adds to `gradients.dots` (or sets it to) the products of the incoming gradient with each pixel of the windows in
// `value`, and adds to `grad_value` the gradients of these pixels.
template <int N, typename opmath_t, typename index_t>
inline void window_gradients(
    Block<opmath_t, index_t> const& block, int unit, int num_points, opmath_t const* value, opmath_t* grad_value,
    WindowSteps steps, Vec<opmath_t, N> grad, bool is_first, BlockGradients<opmath_t>& gradients) {
  auto const scaled = grad * block.scale[unit];
  for_points(num_points, [&](int q) __attribute__((always_inline)) {
    int const i = unit * num_points + q;
    auto const index = block.index[i];
    Vec<opmath_t, N> products[kCorners];
    for (int corner = 0; corner < kCorners; ++corner) {
      products[corner] = grad * load<N>(value + index + steps[corner]);
      auto* const pixel = grad_value + index + steps[corner];
      store<N>(pixel, load<N>(pixel) + block.weight[corner][i] * scaled);
    }
    auto* const dots = gradients.dots + i * kCorners;
    auto const sums = sums_of_lanes<N, opmath_t>(products);
    store<kCorners>(dots, is_first ? sums : load<kCorners>(dots) + sums);
  });
}

// The chain rule from the products of the incoming gradient with the windows to offset, mask and gate.
template <typename scalar_t, typename index_t>
inline void finish_gradients(
    Geometry const& g, int64_t image, Block<opmath_of<scalar_t>, index_t> const& block,
    BlockGradients<opmath_of<scalar_t>>& gradients, Gradients<scalar_t> const& results) {
  using opmath_t = opmath_of<scalar_t>;
  using F = Vec<opmath_t, kLanes>;
  Units const& units = block.units;
  int const points = g.num_points, count = units.count * points;
  alignas(64) opmath_t scale[kMaxPoints], total[kMaxPoints];
  for (int unit = 0; unit < units.count; ++unit) {
    for (int q = 0; q < points; q += kLanes) {
      store<kLanes>(scale + unit * points + q, F{} + block.scale[unit]);
    }
  }
  for (int i = 0; i < count; i += kLanes) {
    F dot[kCorners], weight_x[2], weight_y[2];
    deinterleave_corners(gradients.dots + i * kCorners, dot);
    for (int side = 0; side < 2; ++side) {
      weight_x[side] = load<kLanes>(gradients.weight_x[side] + i);
      weight_y[side] = load<kLanes>(gradients.weight_y[side] + i);
    }
    F const slope_left = load<kLanes>(gradients.slope_x[0] + i), slope_right = load<kLanes>(gradients.slope_x[1] + i);
    F const slope_top = load<kLanes>(gradients.slope_y[0] + i), slope_bottom = load<kLanes>(gradients.slope_y[1] + i);
    F const top = weight_x[0] * dot[0] + weight_x[1] * dot[1], bottom = weight_x[0] * dot[2] + weight_x[1] * dot[3];
    store<kLanes>(gradients.sample_dots + i, weight_y[0] * top + weight_y[1] * bottom);
    F const factor = load<kLanes>(block.mask + i) * load<kLanes>(scale + i);
    F const grad_x = factor * (weight_y[0] * (slope_left * dot[0] + slope_right * dot[1]) +
                               weight_y[1] * (slope_left * dot[2] + slope_right * dot[3]));
    F const grad_y = factor * (slope_top * top + slope_bottom * bottom);
    interleave<opmath_t>(grad_x, grad_y, gradients.offset + 2 * i);
  }
  for (int unit = 0; unit < units.count; ++unit) {
    opmath_t sum = 0;  // the incoming gradient times the unit's output before the gate
    for (int i = unit * points; i < (unit + 1) * points; ++i) {
      sum += block.mask[i] * gradients.sample_dots[i];
    }
    sum *= block.normalizer[unit];
    gradients.own_dots[unit] = (gradients.own_dots[unit] - sum) * block.gate[unit] * (1 - block.gate[unit]);
    for (int q = 0; q < points; q += kLanes) {
      store<kLanes>(total + unit * points + q, F{} + sum);
    }
  }
  for (int i = 0; i < count; i += kLanes) {
    F const sample = load<kLanes>(gradients.sample_dots + i), factor = load<kLanes>(scale + i);
    F const grad = g.softmax ? load<kLanes>(block.mask + i) * factor * (sample - load<kLanes>(total + i))
                             : factor * sample;
    store<kLanes>(gradients.mask + i, grad);
  }
  for (int unit = 0; unit < units.count; ++unit) {
    int64_t const index =
        ((image * g.out_height + units.row[unit]) * g.out_width + units.column[unit]) * g.groups + units.group[unit];
    prefetch_ahead(results.offset + 2 * index * points, 2 * g.groups * points, 2 * points);
    prefetch_ahead(results.mask + index * points, g.groups * points, points);
    convert_points(
        gradients.offset + 2 * unit * points, results.offset + 2 * index * points, gradients.mask + unit * points,
        results.mask + index * points, points, 1);
    if (results.center_scale != nullptr) {
      store_one(results.center_scale + index, gradients.own_dots[unit]);
    }
  }
}

// Calls `body(lanes, first_channel)` for the channels of a group in the widest vectors that fit.
template <typename Body>
inline void for_channels(int64_t group_channels, Body const& body) {
  int64_t channel = 0;
  if constexpr (kLanes >= 16) {
    for (; channel + 16 <= group_channels; channel += 16) {
      body.template operator()<16>(channel);
    }
  }
  if constexpr (kLanes >= 8) {
    for (; channel + 8 <= group_channels; channel += 8) {
      body.template operator()<8>(channel);
    }
  }
  for (; channel + 4 <= group_channels; channel += 4) {
    body.template operator()<4>(channel);
  }
  for (; channel < group_channels; ++channel) {
    body.template operator()<1>(channel);
  }
}

// First channel of the group of each point of a block.
template <typename index_t>
inline void set_first_channels(Units const& units, Geometry const& g, index_t* first_channel) {
  for (int unit = 0; unit < units.count; ++unit) {
    Vec<index_t, kLanes> const channel =
        Vec<index_t, kLanes>{} + static_cast<index_t>(units.group[unit] * g.group_channels);
    for (int q = 0; q < g.num_points; q += kLanes) {
      __builtin_memcpy(first_channel + unit * g.num_points + q, &channel, sizeof(channel));
    }
  }
}

// Output rows [begin, end), counted through the batch: batch_size * out_height in all.
template <typename scalar_t, typename index_t>
void forward(Inputs<scalar_t> const& inputs, Geometry const& g, scalar_t* output, int64_t begin, int64_t end) {
  using opmath_t = opmath_of<scalar_t>;
  Block<opmath_t, index_t> block;
  Grid<opmath_t> grid;
  alignas(64) index_t first_channel[kMaxPoints];
  Units& units = block.units;
  make_grid(g, grid);
  int64_t const channels = g.groups * g.group_channels;
  WindowSteps const steps = window_steps(g, inputs.value_strides.column, inputs.value_strides.row);
  for (int64_t batch_row = begin; batch_row < end; ++batch_row) {
    int64_t const image = batch_row / g.out_height, row = batch_row % g.out_height;
    scalar_t const* const value = inputs.value + image * inputs.value_strides.batch;
    scalar_t* target = output + batch_row * g.out_width * channels;
    for (int64_t column = 0, group = 0; column < g.out_width;) {
      for (units.count = 0; units.count < kUnits && column < g.out_width; ++units.count) {
        units.row[units.count] = row;
        units.column[units.count] = column;
        units.group[units.count] = group;
        if (++group == g.groups) {
          group = 0;
          ++column;
        }
      }
      read_block<false, scalar_t>(inputs, g, image, block);
      exponentiate(g, block);
      set_first_channels(units, g, first_channel);
      locate_windows<false, opmath_t>(
          g, inputs.value_strides.row, inputs.value_strides.column, grid, first_channel, block, nullptr);
      for (int unit = 0; unit < units.count; ++unit) {
        scalar_t const* const own = value + row * inputs.value_strides.row +
            units.column[unit] * inputs.value_strides.column + units.group[unit] * g.group_channels;
        for_channels(g.group_channels, [&]<int N>(int64_t channel) {
          auto sum = block.scale[unit] *
              sum_windows<N>(block, unit * g.num_points, g.num_points, value + channel, steps);
          if (inputs.center_scale != nullptr) {
            sum += block.gate[unit] * load<N>(own + channel);
          }
          store<N>(target + channel, sum);
        });
        target += g.group_channels;
      }
    }
  }
}

// Copies one group of `value`'s channels, as sums are taken of it, or back.
template <typename Source, typename Target>
inline void copy_group(
    Geometry const& g, Source const* source, int64_t source_row, int64_t source_column, Target* target,
    int64_t target_row, int64_t target_column) {
  for (int64_t row = 0; row < g.height; ++row) {
    for (int64_t column = 0; column < g.width; ++column) {
      for_channels(g.group_channels, [&]<int N>(int64_t channel) {
        store<N>(
            target + row * target_row + column * target_column + channel,
            load<N>(source + row * source_row + column * source_column + channel));
      });
    }
  }
}

// Gradients of groups [begin, end), counted through the batch: batch_size * groups in all. Each task alone writes the
// gradients of its groups, so no atomics are needed and results do not depend on the number of threads. `scratch` has
// room for one group of `value` and for its gradient, 2 * height * width * group_channels elements: pixels that are
// neighbours there do not compete for the same lines of the cache, and are converted once.
template <typename scalar_t, typename index_t>
void backward(
    Inputs<scalar_t> const& inputs, Geometry const& g, scalar_t const* grad_output,
    Gradients<scalar_t> const& results, typename ScratchType<scalar_t>::type* scratch, int64_t begin, int64_t end) {
  using opmath_t = opmath_of<scalar_t>;
  Block<opmath_t, index_t> block;
  BlockGradients<opmath_t> gradients;
  Grid<opmath_t> grid;
  Units& units = block.units;
  make_grid(g, grid);
  int64_t const pixels = g.out_height * g.out_width, channels = g.groups * g.group_channels;
  int64_t const column_stride = g.group_channels, row_stride = g.width * column_stride;
  WindowSteps const steps = window_steps(g, column_stride, row_stride);
  opmath_t* const value = scratch;
  opmath_t* const grad_value = scratch + g.height * row_stride;
  for (int64_t batch_group = begin; batch_group < end; ++batch_group) {
    int64_t const image = batch_group / g.groups, group = batch_group % g.groups;
    copy_group(
        g, inputs.value + image * inputs.value_strides.batch + group * g.group_channels, inputs.value_strides.row,
        inputs.value_strides.column, value, row_stride, column_stride);
    __builtin_memset(grad_value, 0, g.height * row_stride * sizeof(opmath_t));
    scalar_t const* const incoming = grad_output + image * pixels * channels + group * g.group_channels;
    for (int64_t next_row = 0, next_column = 0; next_row < g.out_height;) {
      scalar_t const* const block_incoming = incoming + (next_row * g.out_width + next_column) * channels;
      for (units.count = 0; units.count < kUnits && next_row < g.out_height; ++units.count) {
        units.row[units.count] = next_row;
        units.column[units.count] = next_column;
        units.group[units.count] = group;
        if (++next_column == g.out_width) {
          next_column = 0;
          ++next_row;
        }
      }
      read_block<true, scalar_t>(inputs, g, image, block);
      exponentiate(g, block);
      locate_windows<true, opmath_t>(
          g, row_stride, column_stride, grid, static_cast<index_t const*>(nullptr), block, &gradients);
      __builtin_memset(gradients.own_dots, 0, sizeof(gradients.own_dots));
      for (int unit = 0; unit < units.count; ++unit) {
        scalar_t const* const source = block_incoming + unit * channels;
        prefetch_ahead(source, channels, g.group_channels);
        int64_t const own = units.row[unit] * row_stride + units.column[unit] * column_stride;
        for_channels(g.group_channels, [&]<int N>(int64_t channel) {
          auto const grad = load<N>(source + channel);
          window_gradients<N>(
              block, unit, g.num_points, value + channel, grad_value + channel, steps, grad, channel == 0, gradients);
          if (inputs.center_scale != nullptr) {
            gradients.own_dots[unit] += sum_of_lanes(grad * load<N>(value + own + channel));
            opmath_t* const grad_own = grad_value + own + channel;
            store<N>(grad_own, load<N>(grad_own) + block.gate[unit] * grad);
          }
        });
      }
      finish_gradients<scalar_t>(g, image, block, gradients, results);
    }
    copy_group(
        g, grad_value, row_stride, column_stride,
        results.value + image * g.height * g.width * channels + group * g.group_channels, g.width * channels,
        channels);
  }
}

#define DCNV3_CPU_INSTANTIATE(scalar_t, index_t)                                                                  \
  template void forward<scalar_t, index_t>(                                                                      \
      Inputs<scalar_t> const&, Geometry const&, scalar_t*, int64_t, int64_t);                                    \
  template void backward<scalar_t, index_t>(                                                                     \
      Inputs<scalar_t> const&, Geometry const&, scalar_t const*, Gradients<scalar_t> const&,                     \
      ScratchType<scalar_t>::type*, int64_t, int64_t);
#define DCNV3_CPU_INSTANTIATE_ALL(index_t)  \
  DCNV3_CPU_INSTANTIATE(float, index_t)     \
  DCNV3_CPU_INSTANTIATE(double, index_t)    \
  DCNV3_CPU_INSTANTIATE(Half, index_t)      \
  DCNV3_CPU_INSTANTIATE(BFloat16, index_t)

}  // namespace DCNV3_CPU_ARCH
}  // namespace dcnv3
