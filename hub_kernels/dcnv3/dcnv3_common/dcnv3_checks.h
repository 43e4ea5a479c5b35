// Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
//
// Host side, shared by the backends: refuse bad arguments with a sentence, describe good ones.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>
#include <string>

#include "dcnv3_params.h"

namespace dcnv3 {

using torch::stable::Tensor;

constexpr int64_t kMaxKernelSize = 7;
constexpr int64_t kMaxGroupChannels = 256;

inline std::string shape_string(int64_t const* sizes, int64_t rank) {
  std::string text = "(";
  for (int64_t i = 0; i < rank; ++i) {
    text += (i ? ", " : "") + std::to_string(sizes[i]);
  }
  return text + ")";
}

inline void check_companion(
    char const* name, Tensor const& tensor, Tensor const& value, Geometry const& g, int64_t last_size) {
  STD_TORCH_CHECK(
      tensor.device() == value.device(), "`", name, "` and `value` must be on the same device.");
  STD_TORCH_CHECK(
      tensor.scalar_type() == value.scalar_type(), "`", name, "` and `value` must have the same dtype.");
  int64_t const expected[4] = {g.batch_size, g.out_height, g.out_width, last_size};
  bool same = tensor.dim() == 4;
  for (int64_t i = 0; same && i < 4; ++i) {
    same = tensor.size(i) == expected[i];
  }
  STD_TORCH_CHECK(
      same, "`", name, "` must have shape ", shape_string(expected, 4), ", got ",
      shape_string(tensor.sizes().data(), tensor.dim()), ".");
}

// Checks all arguments of the operator and returns its geometry.
inline Geometry check_arguments(
    Tensor const& value, Tensor const& offset, Tensor const& mask,
    std::optional<Tensor> const& center_scale, int64_t kernel_size, int64_t stride, int64_t padding,
    int64_t dilation, int64_t num_groups, double offset_scale, bool remove_center, bool softmax) {
  STD_TORCH_CHECK(
      value.dim() == 4, "`value` must have shape (batch_size, height, width, channels), got ",
      shape_string(value.sizes().data(), value.dim()), ".");
  STD_TORCH_CHECK(
      kernel_size >= 1 && kernel_size <= kMaxKernelSize, "`kernel_size` must be between 1 and ",
      kMaxKernelSize, ", got ", kernel_size, ".");
  STD_TORCH_CHECK(stride >= 1, "`stride` must be at least 1, got ", stride, ".");
  STD_TORCH_CHECK(dilation >= 1, "`dilation` must be at least 1, got ", dilation, ".");
  STD_TORCH_CHECK(padding >= 0, "`padding` must not be negative, got ", padding, ".");
  STD_TORCH_CHECK(
      num_groups >= 1 && value.size(3) % num_groups == 0, "`value` has ", value.size(3),
      " channels, which `num_groups=", num_groups, "` does not divide.");
  STD_TORCH_CHECK(
      value.size(3) / num_groups >= 1 && value.size(3) / num_groups <= kMaxGroupChannels,
      "A group must have between 1 and ", kMaxGroupChannels, " channels, `value` has ", value.size(3),
      " in `num_groups=", num_groups, "`.");
  STD_TORCH_CHECK(
      !remove_center || kernel_size % 2 == 1,
      "`remove_center` needs a kernel with a centre: `kernel_size` must be odd, got ", kernel_size, ".");
  STD_TORCH_CHECK(
      !remove_center || kernel_size > 1, "`remove_center` with `kernel_size=1` leaves no point to sample.");

  Geometry g;
  g.batch_size = value.size(0);
  g.height = value.size(1);
  g.width = value.size(2);
  int64_t const extent = dilation * (kernel_size - 1) + 1;
  STD_TORCH_CHECK(
      g.height + 2 * padding >= extent && g.width + 2 * padding >= extent, "`value` of ", g.height, "x",
      g.width, " pixels with `padding=", padding, "` is smaller than the kernel, which spans ", extent,
      " pixels (`kernel_size=", kernel_size, "`, `dilation=", dilation, "`).");
  g.out_height = (g.height + 2 * padding - extent) / stride + 1;
  g.out_width = (g.width + 2 * padding - extent) / stride + 1;
  g.groups = num_groups;
  g.group_channels = value.size(3) / num_groups;
  g.kernel_size = static_cast<int>(kernel_size);
  g.num_points = static_cast<int>(kernel_size * kernel_size - (remove_center ? 1 : 0));
  g.stride = static_cast<int>(stride);
  g.padding = static_cast<int>(padding);
  g.dilation = static_cast<int>(dilation);
  g.offset_scale = offset_scale;
  g.remove_center = remove_center;
  g.softmax = softmax;
  check_companion("offset", offset, value, g, num_groups * g.num_points * 2);
  check_companion("mask", mask, value, g, num_groups * g.num_points);
  if (center_scale.has_value()) {
    STD_TORCH_CHECK(
        stride == 1 && g.out_height == g.height && g.out_width == g.width,
        "`center_scale` blends the output with `value` pixel by pixel, so `stride` must be 1 and `padding` "
        "must keep the size; got stride=", stride, " and an output of ", g.out_height, "x", g.out_width,
        " for ", g.height, "x", g.width, ".");
    check_companion("center_scale", *center_scale, value, g, num_groups);
  }
  return g;
}

// The tensor itself if its channels are contiguous, as kernels need; else a copy.
inline Tensor with_contiguous_channels(Tensor const& tensor) {
  return tensor.size(3) <= 1 || tensor.stride(3) == 1 ? tensor : torch::stable::contiguous(tensor);
}

inline Strides strides_of(Tensor const& tensor) {
  return {tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

// `center_scale` may be absent. The tensors must outlive the result.
template <typename scalar_t>
Inputs<scalar_t> make_inputs(
    Tensor const& value, Tensor const& offset, Tensor const& mask, std::optional<Tensor> const& center_scale) {
  auto const pointer = [](Tensor const& tensor) { return static_cast<scalar_t const*>(tensor.const_data_ptr()); };
  return {
      pointer(value),
      pointer(offset),
      pointer(mask),
      center_scale.has_value() ? pointer(*center_scale) : nullptr,
      strides_of(value),
      strides_of(offset),
      strides_of(mask),
      center_scale.has_value() ? strides_of(*center_scale) : Strides{0, 0, 0},
  };
}

}  // namespace dcnv3
