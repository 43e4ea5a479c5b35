// Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
//
// Inner loops of the fused operators (see `Branch` and `Sampling` in dcnv3_cpu.h): an InternImage layer in inference.
// Included by one source file per instruction set.
//
// Pixels are taken in panels of 2 * kLanes. A panel is stored channel by channel, `panel[channel][pixel]`, so that a
// linear layer is a product of its weights, as they are, with a panel: nothing is packed. All that happens between two
// tensors happens in panels, which stay in the cache: bias and GELU in the registers of the product, LayerNorm with a
// pixel per lane.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "dcnv3_cpu_vectors.h"

namespace dcnv3 {
namespace DCNV3_CPU_ARCH {

constexpr int kPanel = 2 * kLanes;            // pixels
constexpr int kRows = kLanes >= 16 ? 12 : 6;  // output channels of a tile, whose sums are registers
constexpr int64_t kDepth = 256;               // input channels that a tile takes at a time: they fit the nearest cache

template <typename T>
using Lanes = Vec<T, kLanes>;

template <typename V>
inline V square_root(V x) {
  for (int lane = 0; lane < kLanes; ++lane) {
    x[lane] = __builtin_sqrt(x[lane]);
  }
  return x;
}

// x * P(x^2) / Q(x^2), a minimax fit of relative error 2.5e-8 on |x| <= 4. Farther out, erf is 1 in float32.
inline Lanes<float> error_function(Lanes<float> x) {
  x = x < -4.0f ? Lanes<float>{} - 4.0f : x;
  x = x > 4.0f ? Lanes<float>{} + 4.0f : x;
  Lanes<float> const t = x * x;
  Lanes<float> p = t * 1.9869273728454522e-06f + 0.0002845481503754854f;
  p = p * t + 0.003882527584210038f;
  p = p * t + 0.05309918522834778f;
  p = p * t + 0.19352592527866364f;
  p = p * t + 1.1283791065216064f;
  Lanes<float> q = t * 3.742077387869358e-05f + 0.0011853753821924329f;
  q = q * t + 0.015205600298941135f;
  q = q * t + 0.11534206569194794f;
  q = q * t + 0.5048404335975647f;
  q = q * t + 1.0f;
  return x * p / q;
}

inline Lanes<double> error_function(Lanes<double> x) {
  for (int lane = 0; lane < kLanes; ++lane) {
    x[lane] = __builtin_erf(x[lane]);
  }
  return x;
}

template <typename V>
inline V gelu(V x) {
  V const half = x * 0.5f;
  return half + half * error_function(x * static_cast<decltype(x[0] + 0)>(0.70710678118654752440));
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

// `count` <= kLanes rows of `channels` numbers -> `panel[channel][0 .. kLanes)`. Lanes without a pixel repeat the last.
template <typename scalar_t, typename T>
inline void load_pixels(scalar_t const* rows, int64_t channels, int64_t count, T* panel) {
  int64_t channel = 0;
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
  int64_t channel = 0;
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

// --- What happens in panels -------------------------------------------------------------------------------------------

// Every function below takes `units`, the number of kLanes pixels in its panels.

// output[n][pixel] = sum over k of weight[n][k] * input[k][pixel], for R output channels and V * kLanes pixels, added
// to what is there.
template <int R, int V, typename T>
inline void add_tile(T const* weight, int64_t weight_stride, T const* input, int64_t depth, Lanes<T> (&sums)[R][V]) {
  for (int64_t k = 0; k < depth; ++k) {
    Lanes<T> pixels[V];
    for (int v = 0; v < V; ++v) {
      pixels[v] = load<kLanes>(input + k * kPanel + v * kLanes);
    }
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < V; ++v) {
        sums[r][v] += weight[r * weight_stride + k] * pixels[v];
      }
    }
  }
}

template <int R, int V, typename T, typename Finish>
inline void tile(
    T const* weight, int64_t weight_stride, T const* input, int64_t depth, T const* bias, T* output, bool is_first,
    bool is_last, Finish const& finish) {
  Lanes<T> sums[R][V];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) {
      sums[r][v] = is_first ? Lanes<T>{} + bias[r] : load<kLanes>(output + r * kPanel + v * kLanes);
    }
  }
  add_tile<R, V, T>(weight, weight_stride, input, depth, sums);
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) {
      store<kLanes>(output + r * kPanel + v * kLanes, is_last ? finish(sums[r][v]) : sums[r][v]);
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

// A linear layer and `finish`, an elementwise function.
template <typename scalar_t, typename T, typename Finish>
inline void product(
    Linear<scalar_t> const& linear, T const* input, int64_t units, T* output, Finish const& finish) {
  alignas(64) T converted[sizeof(scalar_t) == sizeof(T) ? 1 : kRows * kDepth];
  T bias[kRows];
  for (int64_t start = 0; start < linear.in_features; start += kDepth) {
    int64_t const depth = std::min(kDepth, linear.in_features - start);
    bool const is_first = start == 0, is_last = start + depth == linear.in_features;
    for (int64_t row = 0; row < linear.out_features; row += kRows) {
      int64_t const rows = std::min<int64_t>(kRows, linear.out_features - row);
      scalar_t const* const stored = linear.weight + row * linear.in_features + start;
      T const* weight = converted;
      int64_t weight_stride = kDepth;
      if constexpr (sizeof(scalar_t) == sizeof(T)) {
        weight = stored;
        weight_stride = linear.in_features;
      } else {
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t k = 0; k < depth; ++k) {
            converted[r * kDepth + k] = load_one(stored + r * linear.in_features + k);
          }
        }
      }
      for (int64_t r = 0; r < rows; ++r) {
        bias[r] = linear.bias == nullptr ? 0 : load_one(linear.bias + row + r);
      }
      with_rows(rows, [&]<int R>() {
        int64_t unit = 0;
        for (; unit + 2 <= units; unit += 2) {
          tile<R, 2, T>(
              weight, weight_stride, input + (unit * linear.in_features * kLanes) + start * kPanel, depth, bias,
              output + unit * linear.out_features * kLanes + row * kPanel, is_first, is_last, finish);
        }
        if (unit < units) {
          tile<R, 1, T>(
              weight, weight_stride, input + (unit * linear.in_features * kLanes) + start * kPanel, depth, bias,
              output + unit * linear.out_features * kLanes + row * kPanel, is_first, is_last, finish);
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

// The depthwise convolution at one pixel -> `channels` numbers. `weight` is (kernel_size^2, channels).
template <typename scalar_t, typename T>
inline void convolve(
    Sampling<scalar_t> const& s, T const* weight, T const* bias, scalar_t const* image, int64_t row, int64_t column,
    T* output) {
  int64_t const padding = s.kernel_size / 2, channels = s.channels;
  int64_t const top = std::max<int64_t>(0, row - padding), bottom = std::min(s.height, row + padding + 1);
  int64_t const left = std::max<int64_t>(0, column - padding), right = std::min(s.width, column + padding + 1);
  auto const convolve_lanes = [&]<int N>(int64_t channel) {
    auto sum = load<N>(bias + channel);
    for (int64_t y = top; y < bottom; ++y) {
      for (int64_t x = left; x < right; ++x) {
        int64_t const tap = (y - row + padding) * s.kernel_size + x - column + padding;
        sum += load<N>(weight + tap * channels + channel) * load<N>(image + (y * s.width + x) * channels + channel);
      }
    }
    store<N>(output + channel, sum);
  };
  int64_t channel = 0;
  for (; channel + kLanes <= channels; channel += kLanes) {
    convolve_lanes.template operator()<kLanes>(channel);
  }
  for (; channel < channels; ++channel) {
    convolve_lanes.template operator()<1>(channel);
  }
}

// --- The operators ----------------------------------------------------------------------------------------------------

struct Identity {
  template <typename V>
  V operator()(V x) const {
    return x;
  }
};
struct Gelu {
  template <typename V>
  V operator()(V x) const {
    return gelu(x);
  }
};

template <typename scalar_t>
void branch(
    Branch<scalar_t> const& b, scratch_of<scalar_t>* scratch, int64_t run, int64_t begin, int64_t end) {
  using T = scratch_of<scalar_t>;
  int64_t const in = b.in_features(), hidden = b.hidden.out_features, out = b.output.out_features;
  T *const input = scratch, *const between = input + run * in, *const output = between + run * hidden;
  for (int64_t first = begin; first < end; first += run) {
    int64_t const count = std::min(run, end - first), units = (count + kLanes - 1) / kLanes;
    load_panels(b.input, in, first, count, input);
    if (b.norm_in.weight != nullptr) {
      normalize(b.norm_in, in, units, input, Identity{});
    }
    if (b.hidden.weight != nullptr) {
      product(b.hidden, input, units, between, Gelu{});
    }
    product(b.output, b.hidden.weight != nullptr ? between : input, units, output, Identity{});
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
void sampling(
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
    load_panels(s.input, channels, first, count, input);
    product(s.projection, input, units, output, Identity{});
    store_panels<scalar_t, T>(output, s.projection.out_features, first, count, nullptr, s.value);
    if (has_convolution) {
      for (int64_t pixel = 0; pixel < count; pixel += kLanes) {
        int64_t const pixels = std::min<int64_t>(kLanes, count - pixel);
        for (int64_t i = 0; i < pixels; ++i) {
          int64_t const index = first + pixel + i, image = index / (s.height * s.width);
          convolve(
              s, weight, bias, s.input + image * s.height * s.width * channels, index / s.width % s.height,
              index % s.width, rows + i * channels);
        }
        load_pixels(rows, channels, pixels, panel_of(input, channels, pixel));
      }
      if (s.norm.weight != nullptr) {
        normalize(s.norm, channels, units, input, Gelu{});
      }
    }
    for (int i = 0; i < s.num_heads; ++i) {
      product(s.heads[i], input, units, output, Identity{});
      store_panels<scalar_t, T>(output, s.heads[i].out_features, first, count, nullptr, s.parameters[i]);
    }
  }
}

#define DCNV3_CPU_INSTANTIATE_FUSED(scalar_t)                               \
  template void branch<scalar_t>(                                                                  \
      Branch<scalar_t> const&, scratch_of<scalar_t>*, int64_t, int64_t, int64_t);                  \
  template void sampling<scalar_t>(                                                                \
      Sampling<scalar_t> const&, scratch_of<scalar_t>*, int64_t, int64_t, int64_t);
#define DCNV3_CPU_INSTANTIATE_ALL_FUSED  \
  DCNV3_CPU_INSTANTIATE_FUSED(float)     \
  DCNV3_CPU_INSTANTIATE_FUSED(double)    \
  DCNV3_CPU_INSTANTIATE_FUSED(Half)      \
  DCNV3_CPU_INSTANTIATE_FUSED(BFloat16)

}  // namespace DCNV3_CPU_ARCH
}  // namespace dcnv3
