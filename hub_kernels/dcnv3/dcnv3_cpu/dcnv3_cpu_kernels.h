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

#include "dcnv3_cpu_points.h"

namespace dcnv3 {
namespace DCNV3_CPU_ARCH {

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

// Sums N channels of one unit, whose first point is `first`. `value` points to the first of these channels of the group's
// first pixel.
template <int N, typename source_t, typename index_t>
inline Vec<opmath_of<source_t>, N> sum_windows(
    Block<opmath_of<source_t>, index_t> const& block, int first, int num_points, source_t const* value,
    WindowSteps steps) {
  Vec<opmath_of<source_t>, N> sums[kCorners] = {};  // four chains of additions, which the processor overlaps
  for_points(num_points, [&](int q) __attribute__((always_inline)) {
    source_t const* const window = value + block.index[first + q];
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
  if (g.softmax || results.center_scale != nullptr) {
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
        results.mask + index * points, points);
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

// Copies the channels of one group in rows [first, last) and converts them to the type of the sums, or the other way round.
template <typename Source, typename Target>
inline void copy_rows(
    Geometry const& g, int64_t first, int64_t last, Source const* source, int64_t source_row, int64_t source_column,
    Target* target, int64_t target_row, int64_t target_column) {
  for (int64_t row = first; row < last; ++row) {
    for (int64_t column = 0; column < g.width; ++column) {
      __builtin_prefetch(source + (row + 1) * source_row + column * source_column);
      for_channels(g.group_channels, [&]<int N>(int64_t channel) {
        store<N>(
            target + row * target_row + column * target_column + channel,
            load<N>(source + row * source_row + column * source_column + channel));
      });
    }
  }
}

// Output rows [begin, end), counted through the batch: batch_size * out_height in all. The units of a block belong to one
// group. `scratch` has room for one group of `value`, height * width * group_channels elements, of which the rows that
// windows lie in are copied: pixels that are neighbours there do not compete for the same lines of the cache, and are
// converted once. Images that need 64 bits are not copied.
template <typename scalar_t, typename index_t>
void forward(
    Inputs<scalar_t> const& inputs, Geometry const& g, scalar_t* output, scratch_of<scalar_t>* scratch, int64_t begin,
    int64_t end) {
  using opmath_t = opmath_of<scalar_t>;
  Block<opmath_t, index_t> block;
  Grid<opmath_t> grid;
  Units& units = block.units;
  make_grid(g, grid);
  constexpr bool kCopies = sizeof(index_t) == sizeof(int32_t);
  int64_t const channels = g.groups * g.group_channels;
  int64_t const column_stride = kCopies ? g.group_channels : inputs.value_strides.column;
  int64_t const row_stride = kCopies ? g.width * column_stride : inputs.value_strides.row;
  WindowSteps const steps = window_steps(g, column_stride, row_stride);
  for (int64_t batch_row = begin; batch_row < end;) {  // the rows of one image
    int64_t const image = batch_row / g.out_height, first_row = batch_row % g.out_height;
    int64_t const last_row = at_most(first_row + end - batch_row, g.out_height);
    for (int64_t group = 0; group < g.groups; ++group) {
      scalar_t const* const value = inputs.value + image * inputs.value_strides.batch + group * g.group_channels;
      scalar_t* target = output + batch_row * g.out_width * channels + group * g.group_channels;
      Rows copied = {0, 0};
      for (int64_t row = first_row, column = 0; row < last_row;) {
        for (units.count = 0; units.count < kUnits && row < last_row; ++units.count) {
          units.row[units.count] = row;
          units.column[units.count] = column;
          units.group[units.count] = group;
          if (++column == g.out_width) {
            column = 0;
            ++row;
          }
        }
        read_block<scalar_t>(inputs, g, image, block);
        exponentiate(g, block);
        Rows const needed = locate_windows<false, opmath_t>(g, row_stride, column_stride, grid, block, nullptr);
        if constexpr (kCopies) {
          Rows const there = copied.begin == copied.end ? Rows{needed.begin, needed.begin} : copied;
          copied = {at_most(there.begin, needed.begin), at_least(there.end, needed.end)};
          auto const copy = [&](int64_t first, int64_t last) {
            copy_rows(
                g, first, last, value, inputs.value_strides.row, inputs.value_strides.column, scratch, row_stride,
                column_stride);
          };
          copy(copied.begin, there.begin);
          copy(there.end, copied.end);
        }
        for (int unit = 0; unit < units.count; ++unit) {
          scalar_t const* const own = value + units.row[unit] * inputs.value_strides.row +
              units.column[unit] * inputs.value_strides.column;
          __builtin_prefetch(target + kUnits * channels, 1);
          for_channels(g.group_channels, [&]<int N>(int64_t channel) {
            auto const sum_of = [&](auto const* source) {
              return sum_windows<N>(block, unit * g.num_points, g.num_points, source + channel, steps);
            };
            auto sum = block.scale[unit] * (kCopies ? sum_of(scratch) : sum_of(value));
            if (inputs.center_scale != nullptr) {
              sum += block.gate[unit] * load<N>(own + channel);
            }
            store<N>(target + channel, sum);
          });
          target += channels;
        }
      }
    }
    batch_row += last_row - first_row;
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
    copy_rows(
        g, 0, g.height, inputs.value + image * inputs.value_strides.batch + group * g.group_channels, inputs.value_strides.row,
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
      read_block<scalar_t>(inputs, g, image, block);
      exponentiate(g, block);
      locate_windows<true, opmath_t>(g, row_stride, column_stride, grid, block, &gradients);
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
    copy_rows(
        g, 0, g.height, grad_value, row_stride, column_stride,
        results.value + image * g.height * g.width * channels + group * g.group_channels, g.width * channels,
        channels);
  }
}

#define DCNV3_CPU_INSTANTIATE(scalar_t, index_t)                                                                  \
  template void forward<scalar_t, index_t>(                                                                      \
      Inputs<scalar_t> const&, Geometry const&, scalar_t*, ScratchType<scalar_t>::type*, int64_t, int64_t);       \
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
