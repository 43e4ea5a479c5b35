// Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
//
// The points of a block as vector lanes: inputs, exponentials, windows. Included by dcnv3_cpu_kernels.h.
#pragma once

#include "dcnv3_cpu_vectors.h"

namespace dcnv3 {
namespace DCNV3_CPU_ARCH {

constexpr int kUnits = 16;  // per block
constexpr int kCorners = 4;  // of a window: top left, top right, bottom left, bottom right
constexpr int kMaxPoints = 49 * kUnits + kLanes;  // of a block: 7x7 points, and room for one vector too many

struct Rows {  // of an image
  int64_t begin, end;
};

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

// What the backward pass also needs: factors of the chain rule, and the products of the incoming gradient with every
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

// Copies `count` values and converts them. Compilers would turn a loop over single values into a call of memcpy, which
// costs more than copying these few.
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

// Prefetches `count` values of the unit kUnits ahead: the cache lines of the first and of the last one. The values of
// one group lie too far apart for the hardware to prefetch them.
template <typename T>
inline void prefetch_ahead(T const* values, int64_t stride, int64_t count) {
  __builtin_prefetch(values + kUnits * stride);
  __builtin_prefetch(values + kUnits * stride + count - 1);
}

// Copies the offsets and masks of a unit. 3x3 points need no loop.
template <typename Source, typename Target>
inline void convert_points(
    Source const* offset, Target* offset_target, Source const* mask, Target* mask_target, int num_points) {
  if (num_points == 9) {
    convert(offset, offset_target, 18);
    convert(mask, mask_target, 9);
  } else {
    convert(offset, offset_target, 2 * num_points);
    convert(mask, mask_target, num_points);
  }
}

// Reads the inputs of `block.units`, which lie in image `image` and in one group, and prefetches those of the next block.
template <typename scalar_t, typename index_t>
inline void read_block(
    Inputs<scalar_t> const& inputs, Geometry const& g, int64_t image, Block<opmath_of<scalar_t>, index_t>& block) {
  using opmath_t = opmath_of<scalar_t>;
  Units const& units = block.units;
  int const points = g.num_points, center = g.dilation * (g.kernel_size - 1) / 2 - g.padding;
  scalar_t const* const offset = inputs.offset + image * inputs.offset_strides.batch;
  scalar_t const* const mask = inputs.mask + image * inputs.mask_strides.batch;
  for (int unit = 0; unit < units.count; ++unit) {
    scalar_t const* const unit_offset = offset + units.row[unit] * inputs.offset_strides.row +
        units.column[unit] * inputs.offset_strides.column + units.group[unit] * points * 2;
    scalar_t const* const unit_mask = mask + units.row[unit] * inputs.mask_strides.row +
        units.column[unit] * inputs.mask_strides.column + units.group[unit] * points;
    prefetch_ahead(unit_offset, inputs.offset_strides.column, points * 2);
    prefetch_ahead(unit_mask, inputs.mask_strides.column, points);
    convert_points(unit_offset, block.offset + unit * points * 2, unit_mask, block.mask + unit * points, points);
    auto const x = Vec<opmath_t, kLanes>{} + static_cast<opmath_t>(units.column[unit] * g.stride + center);
    auto const y = Vec<opmath_t, kLanes>{} + static_cast<opmath_t>(units.row[unit] * g.stride + center);
    for (int i = 0; i < points; i += kLanes) {  // what is written too much belongs to the next unit
      store<kLanes>(block.origin_x + unit * points + i, x);
      store<kLanes>(block.origin_y + unit * points + i, y);
    }
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

// With softmax, replaces the logits of a block by their exponentials. Computes the units' normalizers and scales.
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
        opmath_t top = logits[0], bottom = logits[0];
        for (int q = 1; q < points; ++q) {
          top = logits[q] > top ? logits[q] : top;
          bottom = logits[q] < bottom ? logits[q] : bottom;
        }
        if (!(top <= 40 && bottom >= -40)) {  // what the other units of the block have does not matter
          for (int q = 0; q < points; ++q) {
            logits[q] -= top;
          }
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

// Linear interpolation between pixels -1, 0, ..., size, where -1 and size are zeros, written as weights of two pixels
// inside the image (of one if the image has only one). The weight of a pixel is max(0, 1 - distance).
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
// null. Returns the rows that the windows lie in.
template <bool kGradients, typename opmath_t, typename index_t>
inline Rows locate_windows(
    Geometry const& g, int64_t row_stride_, int64_t column_stride_, Grid<opmath_t> const& grid,
    Block<opmath_t, index_t>& block, BlockGradients<opmath_t>* gradients) {
  using F = Vec<opmath_t, kLanes>;
  using I = Vec<typename OpMath<opmath_t>::integer, kLanes>;
  using Index = Vec<index_t, kLanes>;
  opmath_t const scale = static_cast<opmath_t>(g.offset_scale);
  index_t const row_stride = static_cast<index_t>(row_stride_), column_stride = static_cast<index_t>(column_stride_);
  int const count = block.units.count * g.num_points;
  I first = I{} + static_cast<typename OpMath<opmath_t>::integer>(g.height), last{};
  for (int i = 0; i < count; i += kLanes) {
    F x, y;
    deinterleave(block.offset + 2 * i, x, y);
    x = (load<kLanes>(block.origin_x + i) + load<kLanes>(grid.x + i)) + scale * x;
    y = (load<kLanes>(block.origin_y + i) + load<kLanes>(grid.y + i)) + scale * y;
    auto const columns = place_windows<kGradients, F, I>(x, g.width);
    auto const rows = place_windows<kGradients, F, I>(y, g.height);
    first = rows.start < first ? rows.start : first;
    last = rows.start > last ? rows.start : last;
    F const mask = load<kLanes>(block.mask + i);
    F const weight_top = mask * rows.weight[0], weight_bottom = mask * rows.weight[1];
    store<kLanes>(block.weight[0] + i, weight_top * columns.weight[0]);
    store<kLanes>(block.weight[1] + i, weight_top * columns.weight[1]);
    store<kLanes>(block.weight[2] + i, weight_bottom * columns.weight[0]);
    store<kLanes>(block.weight[3] + i, weight_bottom * columns.weight[1]);
    Index index = __builtin_convertvector(rows.start, Index) * row_stride +
        __builtin_convertvector(columns.start, Index) * column_stride;
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
  Rows rows = {first[0], last[0]};
  for (int lane = 1; lane < kLanes; ++lane) {
    rows.begin = first[lane] < rows.begin ? first[lane] : rows.begin;
    rows.end = last[lane] > rows.end ? last[lane] : rows.end;
  }
  rows.end += g.height > 1 ? 2 : 1;
  return rows;
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

}  // namespace DCNV3_CPU_ARCH
}  // namespace dcnv3
