// Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
//
// Inner loops of the fused operators (see `Branch` and `Sampling` in dcnv3_cpu.h): an InternImage layer in inference;
// and GELU with its gradient (see `GeluRows`), for training. Included by one source file per instruction set.
//
// Pixels are taken in panels of 2 * kLanes. A panel is stored channel by channel, `panel[channel][pixel]`, so that a
// linear layer is a product of its weights, as they are, with a panel: nothing is packed. All that happens between two
// tensors happens in panels, which stay in the cache: bias and GELU in the registers of the product, LayerNorm with a
// pixel per lane. With AVX512-BF16, panels that products of bfloat16 take are `panel[pair of channels][pixel]`.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "dcnv3_cpu_vectors.h"

namespace dcnv3 {
namespace DCNV3_CPU_ARCH {

constexpr int kPanel = 2 * kLanes;            // pixels
constexpr int kRows = kLanes >= 16 ? 12 : 6;  // output channels of a tile, whose sums are registers
constexpr int64_t kDepth = 256;               // input channels that a tile takes at a time: they fit the nearest cache
constexpr int64_t kSumDepth = 64;
#if defined(__AVX512BF16__)
constexpr bool kHasPairs = true;
#else
constexpr bool kHasPairs = false;
#endif

template <typename T>
using Lanes = Vec<T, kLanes>;

inline Lanes<float> square_root(Lanes<float> x) {
#if defined(__AVX512F__)
  return bit_cast<Lanes<float>>(_mm512_maskz_sqrt_ps(0xffff, bit_cast<__m512>(x)));
#elif defined(__AVX2__)
  return bit_cast<Lanes<float>>(_mm256_sqrt_ps(bit_cast<__m256>(x)));
#else
  for (int lane = 0; lane < kLanes; ++lane) {
    x[lane] = __builtin_sqrtf(x[lane]);
  }
  return x;
#endif
}

inline Lanes<double> square_root(Lanes<double> x) {
  for (int lane = 0; lane < kLanes; ++lane) {
    x[lane] = __builtin_sqrt(x[lane]);
  }
  return x;
}

// The smaller of |x| and 10, where `Tail::probability` is 1e-23: numbers stay normal, infinity is gone.
inline Lanes<float> limited_magnitude(Lanes<float> x) {
  Lanes<float> const magnitude = bit_cast<Lanes<float>>(bit_cast<Vec<int32_t, kLanes>>(x) & 0x7fffffff);
  return magnitude > 10.0f ? Lanes<float>{} + 10.0f : magnitude;
}

struct Tail {
  Lanes<float> exponential;  // e^(-x^2 / 2)
  Lanes<float> probability;  // that a standard normal variable is greater than |x|
};

// The probability is e^(-x^2 / 2) * t * P(t) with t = 1 / (1 + 0.325 |x|). P and the polynomial of 2^f, |f| <= 1/2, are
// minimax fits: the probability is exact to 4e-9 of its root.
inline Tail normal_tail(Lanes<float> magnitude) {
  using F = Lanes<float>;
  using I = Vec<int32_t, kLanes>;
  F const t = 1.0f / (magnitude * 0.325f + 1.0f);
  F p = t * 0.04632710665464401f - 0.23363015055656433f;
  p = p * t + 0.3743670582771301f;
  p = p * t - 0.13151054084300995f;
  p = p * t + 0.20158667862415314f;
  p = p * t + 0.11159353703260422f;
  p = p * t + 0.13126631081104279f;
  F const exponent = magnitude * magnitude * -0.72134752044448170f;  // of 2
  F const shifted = exponent + 12582912.0f;  // 1.5 * 2^23: the lowest bits are the nearest integer
  F const f = exponent - (shifted - 12582912.0f);
  F e = f * 0.001327646430581808f + 0.009675540961325169f;
  e = e * f + 0.05550713464617729f;
  e = e * f + 0.24022120237350464f;
  e = e * f + 0.6931469440460205f;
  e = e * f + 1.0000001192092896f;
  e = bit_cast<F>(bit_cast<I>(e) + (bit_cast<I>(shifted) << 23));
  return {e, e * (p * t)};
}

inline Lanes<float> gelu(Lanes<float> x) {
  Lanes<float> const magnitude = limited_magnitude(x);
  return (x > 0.0f ? x : Lanes<float>{}) - magnitude * normal_tail(magnitude).probability;
}

inline Lanes<float> gelu(Lanes<float> x, Lanes<float>& derivative) {
  Lanes<float> const magnitude = limited_magnitude(x);
  Tail const tail = normal_tail(magnitude);
  Lanes<float> const of_negative = tail.probability - magnitude * tail.exponential * 0.3989422804014327f;  // at -|x|
  derivative = x > 0.0f ? 1.0f - of_negative : of_negative;
  return (x > 0.0f ? x : Lanes<float>{}) - magnitude * tail.probability;
}

#if defined(__AVX512BF16__)
// GELU with a relative error of 3e-4, a tenth of what rounding to bfloat16 adds.
inline Lanes<float> rough_gelu(Lanes<float> x_) {
  __m512 const x = bit_cast<__m512>(x_), zero = _mm512_setzero_ps();
  auto const constant = [](float number) { return _mm512_set1_ps(number); };
  __m512 const magnitude = _mm512_min_ps(constant(10.0f), _mm512_abs_ps(x));  // NaN stays NaN
  __m512 const t = _mm512_rcp14_ps(_mm512_fmadd_ps(magnitude, constant(0.49f), constant(1.0f)));
  __m512 p = _mm512_fmadd_ps(t, constant(-0.12459228f), constant(0.25718288f));
  p = _mm512_fmadd_ps(p, t, constant(0.16975879f));
  p = _mm512_fmadd_ps(p, t, constant(0.19757499f));
  __m512 const exponent = _mm512_mul_ps(_mm512_mul_ps(magnitude, magnitude), constant(-0.72134752f));
  __m512 const shifted = _mm512_add_ps(exponent, constant(12582912.0f));
  __m512 const f = _mm512_sub_ps(exponent, _mm512_sub_ps(shifted, constant(12582912.0f)));
  __m512 e = _mm512_fmadd_ps(f, constant(0.05517177f), constant(0.24261123f));
  e = _mm512_fmadd_ps(e, f, constant(0.69326098f));
  e = _mm512_fmadd_ps(e, f, constant(0.99992807f));
  e = _mm512_castsi512_ps(
      _mm512_add_epi32(_mm512_castps_si512(e), _mm512_slli_epi32(_mm512_castps_si512(shifted), 23)));
  __m512 const probability = _mm512_mul_ps(_mm512_mul_ps(e, t), p);
  return bit_cast<Lanes<float>>(_mm512_fnmadd_ps(magnitude, probability, _mm512_max_ps(x, zero)));
}
#endif

inline Lanes<double> gelu(Lanes<double> x) {
  for (int lane = 0; lane < kLanes; ++lane) {
    x[lane] *= 0.5 * __builtin_erfc(x[lane] * -0.70710678118654752440);
  }
  return x;
}

inline Lanes<double> gelu(Lanes<double> x, Lanes<double>& derivative) {
  for (int lane = 0; lane < kLanes; ++lane) {
    double const density = 0.39894228040143267794 * __builtin_exp(-0.5 * x[lane] * x[lane]);
    double const probability = 0.5 * __builtin_erfc(x[lane] * -0.70710678118654752440);
    derivative[lane] = probability + x[lane] * density;
    x[lane] *= probability;
  }
  return x;
}

// --- Between rows of pixels in memory and panels ------------------------------------------------------------------------

template <int Step, typename V, int... I>
inline void swap_blocks(V& x, V& y, std::integer_sequence<int, I...>) {
  V const first = __builtin_shufflevector(x, y, ((I & Step) == 0 ? I : kLanes + I - Step)...);
  y = __builtin_shufflevector(x, y, ((I & Step) == 0 ? I + Step : kLanes + I)...);
  x = first;
}

// Rows become columns: log2(kLanes) rounds, each of which exchanges blocks of `Step` elements.
template <int Step = 1, typename V>
inline void transpose(V (&rows)[kLanes]) {
  if constexpr (Step < kLanes) {
    for (int i = 0; i < kLanes; ++i) {
      if ((i & Step) == 0) {
        swap_blocks<Step>(rows[i], rows[i + Step], std::make_integer_sequence<int, kLanes>{});
      }
    }
    transpose<2 * Step>(rows);
  }
}

#if defined(__AVX512BF16__)
// Pairs of the numbers of two channels, rounded to bfloat16.
inline Lanes<Pair> join(Lanes<float> even, Lanes<float> odd) {
  auto const both = bit_cast<__m512i>(_mm512_cvtne2ps_pbh(bit_cast<__m512>(odd), bit_cast<__m512>(even)));
  Vec<uint16_t, 32> const order = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                   8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return bit_cast<Lanes<Pair>>(_mm512_maskz_permutexvar_epi16(~0u, bit_cast<__m512i>(order), both));
}

inline Lanes<float> even_of(Lanes<Pair> pairs) {
  return bit_cast<Lanes<float>>(pairs << 16);
}

inline Lanes<float> odd_of(Lanes<Pair> pairs) {
  return bit_cast<Lanes<float>>(pairs & 0xffff0000u);
}

// 2 * kLanes channels of `count` <= kLanes rows -> block[pair of channels][pixel].
inline void load_pairs(BFloat16 const* rows, int64_t channels, int64_t count, Lanes<Pair> (&block)[kLanes]) {
  for (int64_t i = 0; i < kLanes; ++i) {
    block[i] = load<kLanes>(reinterpret_cast<Pair const*>(rows + std::min(i, count - 1) * channels));
  }
  transpose(block);
}

// These two do most of what `load_pixels` and `store_pixels` do, in half of the steps, and return how many channels.
inline int64_t load_by_pairs(BFloat16 const* rows, int64_t channels, int64_t count, float* panel) {
  int64_t channel = 0;
  for (; channel + 2 * kLanes <= channels; channel += 2 * kLanes) {
    Lanes<Pair> block[kLanes];
    load_pairs(rows + channel, channels, count, block);
    for (int i = 0; i < kLanes; ++i) {
      float* const pixels = panel + (channel + 2 * i) * kPanel;
      store<kLanes>(pixels, even_of(block[i]));
      store<kLanes>(pixels + kPanel, odd_of(block[i]));
    }
  }
  return channel;
}

inline int64_t store_by_pairs(
    float const* panel, int64_t channels, int64_t count, BFloat16 const* residual, BFloat16* rows) {
  int64_t channel = 0;
  for (; channel + 2 * kLanes <= channels; channel += 2 * kLanes) {
    Lanes<Pair> block[kLanes] = {};
    if (residual != nullptr) {
      load_pairs(residual + channel, channels, count, block);
    }
    for (int i = 0; i < kLanes; ++i) {
      float const* const pixels = panel + (channel + 2 * i) * kPanel;
      block[i] = join(load<kLanes>(pixels) + even_of(block[i]), load<kLanes>(pixels + kPanel) + odd_of(block[i]));
    }
    transpose(block);
    for (int64_t i = 0; i < count; ++i) {
      store<kLanes>(reinterpret_cast<Pair*>(rows + i * channels + channel), block[i]);
    }
  }
  return channel;
}
#endif

template <typename scalar_t, typename T>
inline int64_t load_by_pairs(scalar_t const*, int64_t, int64_t, T*) {
  return 0;
}

template <typename scalar_t, typename T>
inline int64_t store_by_pairs(T const*, int64_t, int64_t, scalar_t const*, scalar_t*) {
  return 0;
}

// `count` <= kLanes rows of `channels` numbers -> `panel[channel][0 .. kLanes)`. Lanes without a pixel repeat the last.
template <typename scalar_t, typename T>
inline void load_pixels(scalar_t const* rows, int64_t channels, int64_t count, T* panel) {
  int64_t channel = load_by_pairs(rows, channels, count, panel);
  for (; channel + kLanes <= channels; channel += kLanes) {
    Lanes<T> block[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) {
      block[i] = load<kLanes>(rows + std::min(i, count - 1) * channels + channel);
    }
    transpose(block);
    for (int i = 0; i < kLanes; ++i) {
      store<kLanes>(panel + (channel + i) * kPanel, block[i]);
    }
  }
  for (; channel < channels; ++channel) {
    for (int64_t i = 0; i < kLanes; ++i) {
      panel[channel * kPanel + i] = load_one(rows + std::min(i, count - 1) * channels + channel);
    }
  }
}

// The way back: the first `count` lanes -> rows, with `residual` (rows of the same kind, or null) added.
template <typename scalar_t, typename T>
inline void store_pixels(
    T const* panel, int64_t channels, int64_t count, scalar_t const* residual, scalar_t* rows) {
  int64_t channel = store_by_pairs(panel, channels, count, residual, rows);
  for (; channel + kLanes <= channels; channel += kLanes) {
    Lanes<T> block[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      block[i] = load<kLanes>(panel + (channel + i) * kPanel);
    }
    transpose(block);
    for (int64_t i = 0; i < count; ++i) {
      int64_t const index = i * channels + channel;
      store<kLanes>(rows + index, residual == nullptr ? block[i] : load<kLanes>(residual + index) + block[i]);
    }
  }
  for (; channel < channels; ++channel) {
    for (int64_t i = 0; i < count; ++i) {
      int64_t const index = i * channels + channel;
      T const number = panel[channel * kPanel + i];
      store_one(rows + index, residual == nullptr ? number : load_one(residual + index) + number);
    }
  }
}

// Where the pixel with this number, a multiple of kLanes, is in consecutive panels.
template <typename T>
inline T* panel_of(T* panels, int64_t channels, int64_t pixel) {
  return panels + pixel / kPanel * kPanel * channels + pixel % kPanel;
}

// Pixels [first, first + count) of a tensor, whole panels and perhaps the first half of one more.
template <typename scalar_t, typename T>
inline void load_panels(scalar_t const* tensor, int64_t channels, int64_t first, int64_t count, T* panels) {
  for (int64_t pixel = 0; pixel < count; pixel += kLanes) {
    load_pixels(
        tensor + (first + pixel) * channels, channels, std::min<int64_t>(kLanes, count - pixel),
        panel_of(panels, channels, pixel));
  }
}

template <typename scalar_t, typename T>
inline void store_panels(
    T const* panels, int64_t channels, int64_t first, int64_t count, scalar_t const* residual, scalar_t* tensor) {
  for (int64_t pixel = 0; pixel < count; pixel += kLanes) {
    int64_t const index = (first + pixel) * channels;
    store_pixels(
        panel_of(panels, channels, pixel), channels, std::min<int64_t>(kLanes, count - pixel),
        residual == nullptr ? nullptr : residual + index, tensor + index);
  }
}

// Asks for pixels [first, first + count) of a tensor, to be written after the next product (or read, of `residual`).
template <bool kWrite, typename scalar_t>
inline void prefetch_pixels(scalar_t const* tensor, int64_t channels, int64_t first, int64_t count) {
  char const* const begin = reinterpret_cast<char const*>(tensor + first * channels);
  int64_t const size = count * channels * static_cast<int64_t>(sizeof(scalar_t));
  for (int64_t byte = 0; byte < size; byte += 64) {
    __builtin_prefetch(begin + byte, kWrite, 2);
  }
}

// --- What happens in panels -------------------------------------------------------------------------------------------

// Every function below takes `units`, the number of kLanes pixels in its panels.

template <typename T>
inline void multiply_add(T weight, Lanes<T> pixels, Lanes<T>& sum) {
  sum += weight * pixels;
}

#if defined(__AVX512BF16__)
inline void multiply_add(Pair weight, Lanes<Pair> pixels, Lanes<float>& sum) {
  auto const weights = bit_cast<__m512bh>(Lanes<Pair>{} + weight);
  sum = bit_cast<Lanes<float>>(_mm512_dpbf16_ps(bit_cast<__m512>(sum), weights, bit_cast<__m512bh>(pixels)));
}
#endif

// What a product takes: `panels` themselves, or pairs of their channels, in their place.
template <typename Number, typename T>
inline Number* input_of_product(T* panels, int64_t channels, int64_t units) {
  if constexpr (std::is_same_v<Number, T>) {
    return panels;
  } else {
    Number* const pairs = reinterpret_cast<Number*>(panels);
    for (int64_t unit = 0; unit < units; ++unit) {
      T const* const source = panel_of(panels, channels, unit * kLanes);
      Number* const target = panel_of(pairs, channels / 2, unit * kLanes);
      for (int64_t pair = 0; pair < channels / 2; ++pair) {
        T const* const even = source + 2 * pair * kPanel;
        store<kLanes>(target + pair * kPanel, join(load<kLanes>(even), load<kLanes>(even + kPanel)));
      }
    }
    return pairs;
  }
}

// The same, of pixels of a tensor.
template <typename Number, typename scalar_t, typename T>
inline Number* load_input_of_product(
    scalar_t const* tensor, int64_t channels, int64_t first, int64_t count, T* panels) {
  Number* const numbers = reinterpret_cast<Number*>(panels);
  if constexpr (std::is_same_v<Number, T>) {
    load_panels(tensor, channels, first, count, numbers);
  } else {
    load_panels(reinterpret_cast<Number const*>(tensor), channels / 2, first, count, numbers);
  }
  return numbers;
}

// How many channels one number of a panel holds.
template <typename Number>
constexpr int64_t kChannels = std::is_same_v<Number, Pair> ? 2 : 1;

// R output channels of V * kLanes pixels: output[n][pixel] = sum over k of weight[n][k] * input[k][pixel], added to
// `bias`, or to what is there without one. Sums of kSumDepth products are added up on their own, as they round less.
// Products of pairs are added up at once: their sums are rounded to bfloat16.
template <int R, int V, typename Number, typename T, typename Output, typename Finish>
inline void tile(
    Number const* weight, int64_t weight_stride, Number const* input, int64_t depth, T const* bias, Output* output,
    bool is_last, Finish const& finish) {
  int64_t const sum_depth = kChannels<Number> == 2 ? depth : kSumDepth;
  for (int64_t start = 0; start < depth; start += sum_depth) {
    int64_t const end = std::min(depth, start + sum_depth);
    Lanes<T> sums[R][V] = {};  // registers, as long as every loop over them is unrolled
    for (int64_t k = start; k < end; ++k) {
      Lanes<Number> pixels[V];
      for (int v = 0; v < V; ++v) {
        pixels[v] = load<kLanes>(input + k * kPanel + v * kLanes);
      }
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        for (int v = 0; v < V; ++v) {
          multiply_add(weight[r * weight_stride + k], pixels[v], sums[r][v]);
        }
      }
    }
    bool const is_finished = is_last && end == depth;
    if constexpr (kChannels<Output> == 2) {
#pragma GCC unroll 16
      for (int r = 0; r + 1 < R; r += 2) {
        for (int v = 0; v < V; ++v) {
          store<kLanes>(
              output + r / 2 * kPanel + v * kLanes,
              join(finish(sums[r][v] + bias[r]), finish(sums[r + 1][v] + bias[r + 1])));
        }
      }
    } else {
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        for (int v = 0; v < V; ++v) {
          T* const target = output + r * kPanel + v * kLanes;
          Lanes<T> const sum =
              sums[r][v] + (start == 0 && bias != nullptr ? Lanes<T>{} + bias[r] : load<kLanes>(target));
          store<kLanes>(target, is_finished ? finish(sum) : sum);
        }
      }
    }
  }
}

// Calls `body` with the number of rows of a tile as a constant.
template <int R = kRows, typename Body>
inline void with_rows(int64_t rows, Body const& body) {
  if constexpr (R > 1) {
    if (rows < R) {
      return with_rows<R - 1>(rows, body);
    }
  }
  body.template operator()<R>();
}

// Copies numbers and converts them.
template <typename Source, typename Number>
inline void copy(Source const* source, int64_t count, Number* target) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    store<kLanes>(target + i, load<kLanes>(source + i));
  }
  for (; i < count; ++i) {
    store_one(target + i, load_one(source + i));
  }
}

// Panels plus the bias, and `finish`, an elementwise function.
template <typename scalar_t, typename T, typename Finish>
inline void add_bias(Linear<scalar_t> const& linear, T const* input, int64_t units, T* output, Finish const& finish) {
  for (int64_t unit = 0; unit < units; ++unit) {
    for (int64_t channel = 0; channel < linear.out_features; ++channel) {
      int64_t const index = channel * kPanel;
      Lanes<T> const pixels = load<kLanes>(panel_of(input, linear.in_features, unit * kLanes) + index);
      T const bias = linear.bias == nullptr ? 0 : load_one(linear.bias + channel);
      store<kLanes>(panel_of(output, linear.out_features, unit * kLanes) + index, finish(pixels + bias));
    }
  }
}

// A linear layer and `finish`, an elementwise function.
template <typename scalar_t, typename Number, typename Output, typename Finish>
inline void product(
    Linear<scalar_t> const& linear, Number const* input, int64_t units, Output* output, Finish const& finish) {
  using T = scratch_of<scalar_t>;
  if constexpr (std::is_same_v<Number, T>) {
    if (linear.weight == nullptr) {
      return add_bias(linear, input, units, output, finish);
    }
  }
  using Stored = std::conditional_t<kChannels<Number> == 2, Number, scalar_t>;
  constexpr bool kConverts = !std::is_same_v<Stored, Number>;
  alignas(64) Number converted[kConverts ? kRows * kDepth : 1];
  T bias[kRows];
  auto const* const stored = reinterpret_cast<Stored const*>(linear.weight);
  int64_t const in = linear.in_features / kChannels<Number>, out = linear.out_features;
  int64_t const max_depth = kChannels<Number> == 2 ? in : kDepth;
  for (int64_t start = 0; start < in; start += max_depth) {
    int64_t const depth = std::min(max_depth, in - start);
    bool const is_last = start + depth == in;
    for (int64_t row = 0; row < out; row += kRows) {
      int64_t const rows = std::min<int64_t>(kRows, out - row);
      Number const* weight = converted;
      int64_t weight_stride = kDepth;
      if constexpr (kConverts) {
        for (int64_t r = 0; r < rows; ++r) {
          copy(stored + (row + r) * in + start, depth, converted + r * kDepth);
        }
      } else {
        weight = stored + row * in + start;
        weight_stride = in;
      }
      for (int64_t r = 0; r < rows; ++r) {
        bias[r] = linear.bias == nullptr ? 0 : load_one(linear.bias + row + r);
      }
      for (int64_t r = row + rows; r < std::min(out, row + rows + kRows); ++r) {  // the next tile's
        for (int64_t k = 0; k < depth; k += 64 / static_cast<int64_t>(sizeof(Stored))) {
          __builtin_prefetch(stored + r * in + start + k, 0, 2);
        }
      }
      auto const multiply = [&]<int R, int V>(int64_t unit) {
        tile<R, V>(
            weight, weight_stride, input + unit * in * kLanes + start * kPanel, depth, start == 0 ? bias : nullptr,
            output + (unit * out * kLanes + row * kPanel) / kChannels<Output>, is_last, finish);
      };
      with_rows(rows, [&]<int R>() {
        int64_t unit = 0;
        for (; unit + 2 <= units; unit += 2) {
          multiply.template operator()<R, 2>(unit);
        }
        if (unit < units) {
          multiply.template operator()<R, 1>(unit);
        }
      });
    }
  }
}

// LayerNorm over the channels of every pixel, then `finish`, in place.
template <typename scalar_t, typename T, typename Finish>
inline void normalize(Norm<scalar_t> const& norm, int64_t channels, int64_t units, T* panels, Finish const& finish) {
  for (int64_t unit = 0; unit < units; ++unit) {
    T* const panel = panel_of(panels, channels, unit * kLanes);
    Lanes<T> mean{}, variance{};
    for (int64_t channel = 0; channel < channels; ++channel) {
      mean += load<kLanes>(panel + channel * kPanel);
    }
    mean /= static_cast<T>(channels);
    for (int64_t channel = 0; channel < channels; ++channel) {
      Lanes<T> const distance = load<kLanes>(panel + channel * kPanel) - mean;
      variance += distance * distance;
    }
    Lanes<T> const scale = 1 / square_root(variance / static_cast<T>(channels) + static_cast<T>(norm.eps));
    for (int64_t channel = 0; channel < channels; ++channel) {
      T* const pixels = panel + channel * kPanel;
      Lanes<T> normalized = (load<kLanes>(pixels) - mean) * scale;
      normalized = normalized * load_one(norm.weight + channel) + load_one(norm.bias + channel);
      store<kLanes>(pixels, finish(normalized));
    }
  }
}

template <typename scalar_t, typename T>
inline void scale_channels(scalar_t const* scale, int64_t channels, int64_t units, T* panels) {
  for (int64_t unit = 0; unit < units; ++unit) {
    T* const panel = panel_of(panels, channels, unit * kLanes);
    for (int64_t channel = 0; channel < channels; ++channel) {
      T* const pixels = panel + channel * kPanel;
      store<kLanes>(pixels, load<kLanes>(pixels) * load_one(scale + channel));
    }
  }
}

// N channels of the depthwise convolution at one pixel. `weight` is (kernel_size^2, channels).
template <int N, typename scalar_t, typename T>
inline Vec<T, N> convolve(
    Sampling<scalar_t> const& s, T const* weight, T const* bias, scalar_t const* image, int64_t row, int64_t column) {
  int64_t const padding = s.kernel_size / 2;
  int64_t const top = std::max<int64_t>(0, row - padding), bottom = std::min(s.height, row + padding + 1);
  int64_t const left = std::max<int64_t>(0, column - padding), right = std::min(s.width, column + padding + 1);
  auto sum = load<N>(bias);
  for (int64_t y = top; y < bottom; ++y) {
    for (int64_t x = left; x < right; ++x) {
      int64_t const tap = (y - row + padding) * s.kernel_size + x - column + padding;
      sum += load<N>(weight + tap * s.channels) * load<N>(image + (y * s.width + x) * s.channels);
    }
  }
  return sum;
}

// The depthwise convolution at `count` pixels, from `first` on -> rows of `channels` numbers. The weights of kLanes
// channels stay in registers if they are 3x3.
template <typename scalar_t, typename T>
inline void convolve_rows(
    Sampling<scalar_t> const& s, T const* weight, T const* bias, int64_t first, int64_t count, T* rows) {
  int64_t const channels = s.channels, image_size = s.height * s.width;
  auto const convolve_channels = [&]<int N>(int64_t channel) {
    bool const is_3x3 = s.kernel_size == 3;
    Vec<T, N> weights[9];
    for (int tap = 0; tap < 9; ++tap) {
      weights[tap] = load<N>(weight + (is_3x3 ? tap : 0) * channels + channel);
    }
    int64_t row = first % image_size / s.width, column = first % s.width;
    scalar_t const* image = s.input + first / image_size * image_size * channels + channel;
    for (int64_t i = 0; i < count; ++i) {
      Vec<T, N> sum;
      if (is_3x3 && row > 0 && row + 1 < s.height && column > 0 && column + 1 < s.width) {
        scalar_t const* const corner = image + ((row - 1) * s.width + column - 1) * channels;
        sum = load<N>(bias + channel);
        for (int tap = 0; tap < 9; ++tap) {
          sum += weights[tap] * load<N>(corner + (tap / 3 * s.width + tap % 3) * channels);
        }
      } else {
        sum = convolve<N>(s, weight + channel, bias + channel, image, row, column);
      }
      store<N>(rows + i * channels + channel, sum);
      if (++column == s.width) {
        column = 0;
        if (++row == s.height) {
          row = 0;
          image += image_size * channels;
        }
      }
    }
  };
  int64_t channel = 0;
  for (; channel + kLanes <= channels; channel += kLanes) {
    convolve_channels.template operator()<kLanes>(channel);
  }
  for (; channel < channels; ++channel) {
    convolve_channels.template operator()<1>(channel);
  }
}

// --- The operators ----------------------------------------------------------------------------------------------------

struct Identity {
  template <typename V>
  V operator()(V x) const {
    return x;
  }
};
template <typename Number>
struct Gelu {
  template <typename V>
  V operator()(V x) const {
    return gelu(x);
  }
};
#if defined(__AVX512BF16__)
template <>
struct Gelu<Pair> {
  Lanes<float> operator()(Lanes<float> x) const {
    return rough_gelu(x);
  }
};
#endif

// `Number` is what products take: scratch_of<scalar_t> or Pair.
template <typename Number, typename scalar_t>
inline void branch_of(
    Branch<scalar_t> const& b, scratch_of<scalar_t>* scratch, int64_t run, int64_t begin, int64_t end) {
  using T = scratch_of<scalar_t>;
  int64_t const in = b.in_features(), hidden = b.hidden.out_features, out = b.output.out_features;
  T *const input = scratch, *const output = input + run * in;
  Number* const between = reinterpret_cast<Number*>(output + run * out);
  for (int64_t first = begin; first < end; first += run) {
    int64_t const count = std::min(run, end - first), units = (count + kLanes - 1) / kLanes;
    Number const* numbers;
    if (b.norm_in.weight != nullptr) {
      load_panels(b.input, in, first, count, input);
      normalize(b.norm_in, in, units, input, Identity{});
      numbers = input_of_product<Number>(input, in, units);
    } else {
      numbers = load_input_of_product<Number>(b.input, in, first, count, input);
    }
    if (hidden > 0) {
      product(b.hidden, numbers, units, between, Gelu<Number>{});
      numbers = between;
    }
    prefetch_pixels<true>(b.result, out, first, count);
    if (b.residual != nullptr) {
      prefetch_pixels<false>(b.residual, out, first, count);
    }
    product(b.output, numbers, units, output, Identity{});
    if (b.norm_out.weight != nullptr) {
      normalize(b.norm_out, out, units, output, Identity{});
    }
    if (b.scale != nullptr) {
      scale_channels(b.scale, out, units, output);
    }
    store_panels(output, out, first, count, b.residual, b.result);
  }
}

template <typename scalar_t>
void branch(
    Branch<scalar_t> const& b, scratch_of<scalar_t>* scratch, int64_t run, int64_t begin, int64_t end) {
  if constexpr (kHasPairs && std::is_same_v<scalar_t, BFloat16>) {
    bool const has_products = b.output.weight != nullptr && (b.hidden.out_features == 0 || b.hidden.weight != nullptr);
    if (has_products && b.in_features() % 2 == 0 && b.hidden.out_features % 2 == 0) {
      return branch_of<Pair>(b, scratch, run, begin, end);
    }
  }
  branch_of<scratch_of<scalar_t>>(b, scratch, run, begin, end);
}

template <typename Number, typename scalar_t>
inline void sampling_of(
    Sampling<scalar_t> const& s, scratch_of<scalar_t>* scratch, int64_t run, int64_t begin, int64_t end) {
  using T = scratch_of<scalar_t>;
  int64_t const channels = s.channels, taps = s.kernel_size * s.kernel_size;
  T *const input = scratch, *const output = input + run * channels;
  T *const weight = output + run * s.widest(), *const bias = weight + taps * channels;
  T* const rows = bias + channels;
  bool const has_convolution = s.convolution_weight != nullptr;
  for (int64_t channel = 0; has_convolution && channel < channels; ++channel) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      weight[tap * channels + channel] = load_one(s.convolution_weight + channel * taps + tap);
    }
    bias[channel] = s.convolution_bias == nullptr ? 0 : load_one(s.convolution_bias + channel);
  }
  for (int64_t first = begin; first < end; first += run) {
    int64_t const count = std::min(run, end - first), units = (count + kLanes - 1) / kLanes;
    Number const* numbers = nullptr;
    if (s.num_heads > 0) {
      numbers = load_input_of_product<Number>(s.input, channels, first, count, input);
      prefetch_pixels<true>(s.value, s.projection.out_features, first, count);
      product(s.projection, numbers, units, output, Identity{});
      store_panels<scalar_t, T>(output, s.projection.out_features, first, count, nullptr, s.value);
    } else if (!has_convolution) {
      load_panels(s.input, channels, first, count, input);
    }
    if (has_convolution) {
      for (int64_t pixel = 0; pixel < count; pixel += kLanes) {
        int64_t const pixels = std::min<int64_t>(kLanes, count - pixel);
        convolve_rows(s, weight, bias, first + pixel, pixels, rows);
        load_pixels(rows, channels, pixels, panel_of(input, channels, pixel));
      }
      if (s.norm.weight != nullptr) {
        normalize(s.norm, channels, units, input, Gelu<Number>{});
      }
    }
    if (s.num_heads == 0) {
      store_panels<scalar_t, T>(input, channels, first, count, nullptr, s.value);
      continue;
    }
    if (has_convolution) {
      numbers = input_of_product<Number>(input, channels, units);
    }
    for (int i = 0; i < s.num_heads; ++i) {
      prefetch_pixels<true>(s.parameters[i], s.heads[i].out_features, first, count);
      product(s.heads[i], numbers, units, output, Identity{});
      store_panels<scalar_t, T>(output, s.heads[i].out_features, first, count, nullptr, s.parameters[i]);
    }
  }
}

template <typename scalar_t>
void sampling(
    Sampling<scalar_t> const& s, scratch_of<scalar_t>* scratch, int64_t run, int64_t begin, int64_t end) {
  if constexpr (kHasPairs && std::is_same_v<scalar_t, BFloat16>) {
    if (s.channels % 2 == 0) {
      return sampling_of<Pair>(s, scratch, run, begin, end);
    }
  }
  sampling_of<scratch_of<scalar_t>>(s, scratch, run, begin, end);
}

// The first `count` numbers, or as many as a vector has.
template <typename scalar_t>
inline Lanes<scratch_of<scalar_t>> load_some(scalar_t const* pointer, int64_t count) {
  if (count >= kLanes) {
    return load<kLanes>(pointer);
  }
  Lanes<scratch_of<scalar_t>> numbers{};
  for (int64_t i = 0; i < count; ++i) {
    numbers[i] = load_one(pointer + i);
  }
  return numbers;
}

template <typename scalar_t>
inline void store_some(scalar_t* pointer, int64_t count, Lanes<scratch_of<scalar_t>> numbers) {
  if (count >= kLanes) {
    return store<kLanes>(pointer, numbers);
  }
  for (int64_t i = 0; i < count; ++i) {
    store_one(pointer + i, numbers[i]);
  }
}

template <typename scalar_t>
void norm_rows(NormRows<scalar_t> const& n, int64_t begin, int64_t end) {
  using T = scratch_of<scalar_t>;
  using V = Lanes<T>;
  T const channels = static_cast<T>(n.channels);
  auto const sum = [&](scalar_t const* row, V shift, auto const& term) {
    V sums{};
    int64_t channel = 0;
    for (; channel + kLanes <= n.channels; channel += kLanes) {
      sums += term(load<kLanes>(row + channel) - shift);
    }
    T total = 0;
    for (; channel < n.channels; ++channel) {
      total += term(load_one(row + channel) - shift[0]);
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      total += sums[lane];
    }
    return total;
  };
  for (int64_t index = begin; index < end; ++index) {
    scalar_t const* const row = n.input + index * n.channels;
    T const mean = sum(row, V{}, [](auto x) { return x; }) / channels;
    T const variance = sum(row, V{} + mean, [](auto x) { return x * x; }) / channels;
    T const scale = 1 / square_root(V{} + variance + static_cast<T>(n.norm.eps))[0];
    for (int64_t channel = 0; channel < n.channels; channel += kLanes) {
      int64_t const count = n.channels - channel;
      V const normalized = (load_some(row + channel, count) - mean) * scale;
      store_some(
          n.result + index * n.channels + channel, count,
          normalized * load_some(n.norm.weight + channel, count) + load_some(n.norm.bias + channel, count));
    }
  }
}

template <typename scalar_t>
void gelu_rows(GeluRows<scalar_t> const& g, int64_t begin, int64_t end) {
  using V = Lanes<scratch_of<scalar_t>>;
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t channel = 0; channel < g.channels; channel += kLanes) {
      int64_t const index = row * g.channels + channel, count = g.channels - channel;
      V const bias = g.bias == nullptr ? V{} : load_some(g.bias + channel, count);
      V const x = load_some(g.input + index, count) + bias;
      if (g.grad_output == nullptr) {
        store_some(g.result + index, count, gelu(x));
      } else {
        V derivative;
        store_some(g.result + index, count, gelu(x, derivative));
        store_some(g.grad_input + index, count, load_some(g.grad_output + index, count) * derivative);
      }
    }
  }
}

#define DCNV3_CPU_INSTANTIATE_FUSED(scalar_t)                               \
  template void branch<scalar_t>(                                                                  \
      Branch<scalar_t> const&, scratch_of<scalar_t>*, int64_t, int64_t, int64_t);                  \
  template void sampling<scalar_t>(                                                                \
      Sampling<scalar_t> const&, scratch_of<scalar_t>*, int64_t, int64_t, int64_t);                \
  template void norm_rows<scalar_t>(NormRows<scalar_t> const&, int64_t, int64_t);                  \
  template void gelu_rows<scalar_t>(GeluRows<scalar_t> const&, int64_t, int64_t);
#define DCNV3_CPU_INSTANTIATE_ALL_FUSED  \
  DCNV3_CPU_INSTANTIATE_FUSED(float)     \
  DCNV3_CPU_INSTANTIATE_FUSED(double)    \
  DCNV3_CPU_INSTANTIATE_FUSED(Half)      \
  DCNV3_CPU_INSTANTIATE_FUSED(BFloat16)

}  // namespace DCNV3_CPU_ARCH
}  // namespace dcnv3
