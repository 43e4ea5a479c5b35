// Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
//
// Host side, shared by the backends: refuse bad arguments with a sentence, describe good ones.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>

#include "dcnv3_params.h"

namespace dcnv3 {

using torch::stable::Tensor;

constexpr int64_t kMaxKernelSize = 7;
constexpr int64_t kMaxGroupChannels = 256;
constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();  // what kernels count with 32 bits

inline std::string shape_string(int64_t const* sizes, int64_t rank) {
  std::string text = "(";
  for (int64_t i = 0; i < rank; ++i) {
    text += (i ? ", " : "") + std::to_string(sizes[i]);
  }
  return text + ")";
}

inline void check_defined(char const* name, Tensor const& tensor) {
  STD_TORCH_CHECK(tensor.defined(), "`", name, "` must be a tensor, got None.");
}

inline void check_between(char const* name, int64_t number, int64_t low, int64_t high) {
  STD_TORCH_CHECK(
      number >= low && number <= high, "`", name, "` must be between ", low, " and ", high, ", got ", number, ".");
}

inline void check_companion(
    char const* name, Tensor const& tensor, Tensor const& value, Geometry const& g, int64_t last_size) {
  check_defined(name, tensor);
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

// Checks all arguments of the operator and returns its geometry. `_check_fake` of torch-ext/dcnv3/__init__.py does the
// same for tensors without data.
inline Geometry check_arguments(
    Tensor const& value, Tensor const& offset, Tensor const& mask,
    std::optional<Tensor> const& center_scale, int64_t kernel_size, int64_t stride, int64_t padding,
    int64_t dilation, int64_t num_groups, double offset_scale, bool remove_center, bool softmax) {
  using torch::headeronly::ScalarType;
  check_defined("value", value);
  ScalarType const dtype = value.scalar_type();
  STD_TORCH_CHECK(
      dtype == ScalarType::Float || dtype == ScalarType::Half || dtype == ScalarType::BFloat16 ||
          (dtype == ScalarType::Double && !value.is_cuda()),
      "`value` must have dtype float32, float16 or bfloat16, or on a CPU float64.");
  STD_TORCH_CHECK(
      value.dim() == 4, "`value` must have shape (batch_size, height, width, channels), got ",
      shape_string(value.sizes().data(), value.dim()), ".");
  check_between("kernel_size", kernel_size, 1, kMaxKernelSize);
  check_between("stride", stride, 1, kMaxInt);
  check_between("padding", padding, 0, kMaxInt);
  check_between("dilation", dilation, 1, kMaxInt);
  STD_TORCH_CHECK(
      std::abs(offset_scale) <= kMaxInt, "`offset_scale` must be between ", -kMaxInt, " and ", kMaxInt, ", got ",
      offset_scale, ".");
  STD_TORCH_CHECK(
      value.size(3) <= kMaxInt, "`value` must have at most ", kMaxInt, " channels, got ", value.size(3), ".");
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
  STD_TORCH_CHECK(
      g.height <= kMaxInt - 2 * padding && g.width <= kMaxInt - 2 * padding, "`value` of ", g.height, "x", g.width,
      " pixels with `padding=", padding, "` is too large: a padded side may have at most ", kMaxInt, " pixels.");
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

// Whether there is nothing to read: no images, or images without pixels (in wide padding, where every output is zero).
inline bool is_empty(Geometry const& g) {
  return g.batch_size == 0 || g.height == 0 || g.width == 0;
}

// Runs what allocates memory on the device of `tensor`. The stable ABI does not hand on torch's reason for a failure,
// which is only logged. The message repeats torch's words: code that tries a smaller batch looks for them.
template <typename Function>
auto with_memory(Tensor const& tensor, Function const& run) {
  try {
    return run();
  } catch (std::runtime_error const& error) {
    STD_TORCH_CHECK(
        false, tensor.is_cuda() ? "CUDA out of memory." : "DefaultCPUAllocator: can't allocate memory.",
        " DCNv3 could not allocate a tensor or a buffer: ", error.what());
  }
}

inline Tensor make_empty(Tensor const& like, torch::headeronly::IntHeaderOnlyArrayRef sizes) {
  return with_memory(like, [&] { return torch::stable::new_empty(like, sizes); });
}

inline Tensor make_zeros(
    Tensor const& like, torch::headeronly::IntHeaderOnlyArrayRef sizes,
    std::optional<torch::headeronly::ScalarType> dtype = std::nullopt) {
  return with_memory(like, [&] { return torch::stable::new_zeros(like, sizes, dtype); });
}

// Memory for the gradient of an input: zeros where no kernel will run.
inline Tensor make_gradient(Tensor const& input, Geometry const& g) {
  return is_empty(g) ? make_zeros(input, input.sizes()) : make_empty(input, input.sizes());
}

inline Tensor make_contiguous(Tensor const& tensor) {
  return with_memory(tensor, [&] { return torch::stable::contiguous(tensor); });
}

// The tensor itself if its channels are contiguous, as kernels need; else a copy.
inline Tensor with_contiguous_channels(Tensor const& tensor) {
  return tensor.size(3) <= 1 || tensor.stride(3) == 1 ? tensor : make_contiguous(tensor);
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
