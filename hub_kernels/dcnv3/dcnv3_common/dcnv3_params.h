// Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
//
// The arguments of DCNv3 as device code sees them: raw pointers, sizes and strides, no Torch header.
#pragma once

#include <cstdint>

namespace dcnv3 {

// Strides of a (batch, height, width, channels) tensor in elements. Channels are contiguous.
struct Strides {
  int64_t batch;
  int64_t row;
  int64_t column;
};

// One call. Everything that does not depend on the element type.
struct Geometry {
  int64_t batch_size;
  int64_t height, width;          // of `value`
  int64_t out_height, out_width;  // of the output, `offset`, `mask` and `center_scale`
  int64_t groups;
  int64_t group_channels;  // channels == groups * group_channels
  int kernel_size;
  int num_points;  // kernel_size^2, one less with remove_center
  int stride, padding, dilation;
  double offset_scale;
  bool remove_center;
  bool softmax;  // `mask` holds logits; else weights that are used as they are
};

// The inputs. `offset` is (..., groups, num_points, 2) with x before y, `mask` (..., groups, num_points),
// `center_scale` (..., groups) or null. Points are ordered column by column.
template <typename scalar_t>
struct Inputs {
  scalar_t const* value;
  scalar_t const* offset;
  scalar_t const* mask;
  scalar_t const* center_scale;
  Strides value_strides, offset_strides, mask_strides, center_scale_strides;
};

// The outputs of the backward pass, all contiguous. `center_scale` is null when the input is.
template <typename scalar_t>
struct Gradients {
  scalar_t* value;
  scalar_t* offset;
  scalar_t* mask;
  scalar_t* center_scale;
};

}  // namespace dcnv3
