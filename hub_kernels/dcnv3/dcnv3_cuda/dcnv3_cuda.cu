// Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
//
// Host side of DCNv3 on CUDA, against the stable ABI of Torch.

#include <array>
#include <cstdint>
#include <optional>
#include <tuple>

#include "../dcnv3_common/dcnv3_checks.h"
#include "../dcnv3_common/dcnv3_ops.h"
#include "dcnv3_host.cuh"
#include "dcnv3_launch.cuh"

namespace dcnv3 {
namespace {

std::optional<Tensor> with_contiguous_channels(std::optional<Tensor> const& tensor) {
  return tensor.has_value() ? std::optional<Tensor>(dcnv3::with_contiguous_channels(*tensor))
                            : std::nullopt;
}

}  // namespace

Tensor forward_cuda(Tensor const& value, Tensor const& offset, Tensor const& mask,
    std::optional<Tensor> const& center_scale, int64_t kernel_size, int64_t stride, int64_t padding,
    int64_t dilation, int64_t num_groups, double offset_scale, bool remove_center, bool softmax) {
  Geometry const g = check_arguments(value, offset, mask, center_scale, kernel_size, stride,
      padding, dilation, num_groups, offset_scale, remove_center, softmax);
  STD_TORCH_CHECK(value.is_cuda(), "`value` must be on a CUDA device.");
  std::array<int64_t, 4> const shape = {g.batch_size, g.out_height, g.out_width, value.size(3)};
  if (is_empty(g)) {
    return make_zeros(value, shape);
  }
  Tensor output = make_empty(value, shape);
  torch::stable::accelerator::DeviceGuard const guard(value.get_device_index());
  Launcher const launcher(value.get_device_index());
  Tensor const value_ = dcnv3::with_contiguous_channels(value);
  Tensor const offset_ = dcnv3::with_contiguous_channels(offset);
  Tensor const mask_ = dcnv3::with_contiguous_channels(mask);
  std::optional<Tensor> const center_scale_ = with_contiguous_channels(center_scale);
  dispatch_dtype(value, [&](auto zero) {
    using scalar_t = decltype(zero);
    run_forward<scalar_t>(make_inputs<scalar_t>(value_, offset_, mask_, center_scale_), g,
        static_cast<scalar_t*>(output.mutable_data_ptr()), launcher.num_multiprocessors(),
        launcher);
  });
  return output;
}

// The gradient of `value` is a sum of atomic additions, so its last bits differ from run to run.
// Those of `offset`, `mask` and `center_scale` are deterministic. A caller who wants all to be must
// not call this function.
std::tuple<Tensor, Tensor, Tensor, Tensor> backward_cuda(Tensor const& grad_output,
    Tensor const& value, Tensor const& offset, Tensor const& mask,
    std::optional<Tensor> const& center_scale, int64_t kernel_size, int64_t stride, int64_t padding,
    int64_t dilation, int64_t num_groups, double offset_scale, bool remove_center, bool softmax) {
  Geometry const g = check_arguments(value, offset, mask, center_scale, kernel_size, stride,
      padding, dilation, num_groups, offset_scale, remove_center, softmax);
  STD_TORCH_CHECK(value.is_cuda(), "`value` must be on a CUDA device.");
  check_companion("grad_output", grad_output, value, g, value.size(3));
  Tensor const grad_value = make_zeros(value, value.sizes(), ScalarType::Float);
  Tensor const grad_offset = make_gradient(offset, g);
  Tensor const grad_mask = make_gradient(mask, g);
  Tensor const grad_center_scale = center_scale.has_value()
                                       ? make_gradient(*center_scale, g)
                                       : make_empty(value, std::array<int64_t, 1>{0});
  if (!is_empty(g)) {
    torch::stable::accelerator::DeviceGuard const guard(value.get_device_index());
    Launcher const launcher(value.get_device_index());
    Tensor const grad_output_ = make_contiguous(grad_output);
    Tensor const value_ = make_contiguous(value);
    Tensor const offset_ = dcnv3::with_contiguous_channels(offset);
    Tensor const mask_ = dcnv3::with_contiguous_channels(mask);
    std::optional<Tensor> const center_scale_ = with_contiguous_channels(center_scale);
    dispatch_dtype(value, [&](auto zero) {
      using scalar_t = decltype(zero);
      auto const pointer = [](Tensor const& tensor) {
        return static_cast<scalar_t*>(tensor.mutable_data_ptr());
      };
      Gradients<scalar_t> const gradients = {nullptr, pointer(grad_offset), pointer(grad_mask),
          center_scale.has_value() ? pointer(grad_center_scale) : nullptr};
      run_backward<scalar_t>(static_cast<scalar_t const*>(grad_output_.const_data_ptr()),
          make_inputs<scalar_t>(value_, offset_, mask_, center_scale_), g,
          static_cast<float*>(grad_value.mutable_data_ptr()), gradients,
          launcher.num_multiprocessors(), launcher);
    });
  }
  auto const convert = [&] { return torch::stable::to(grad_value, value.scalar_type()); };
  return {with_memory(value, convert), grad_offset, grad_mask, grad_center_scale};
}

}  // namespace dcnv3
