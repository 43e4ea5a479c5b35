// Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
//
// Host side of the fused operators on CUDA, against the stable ABI of Torch.

#include "fused_kernels.cuh"

#include <cstdint>
#include <optional>

#include "../dcnv3_common/dcnv3_ops.h"
#include "../dcnv3_common/fused_checks.h"
#include "dcnv3_host.cuh"

namespace dcnv3 {
namespace {

template <typename scalar_t>
scalar_t const* pointer(Tensor const& tensor) {
  return static_cast<scalar_t const*>(tensor.const_data_ptr());
}

template <typename scalar_t>
scalar_t const* pointer(std::optional<Tensor> const& tensor) {
  return tensor.has_value() ? pointer<scalar_t>(*tensor) : nullptr;
}

std::optional<Tensor> make_contiguous(std::optional<Tensor> const& tensor) {
  return tensor.has_value() ? std::optional<Tensor>(dcnv3::make_contiguous(*tensor)) : std::nullopt;
}

void check_groups(int64_t groups) {
  STD_TORCH_CHECK(groups <= kMaxInt, "The CUDA kernel counts at most ", kMaxInt,
      " rows of channels, got ", groups, ": split the batch.");
}

// (channels, 1, kernel_size, kernel_size) with contiguous channels, as kernels need; else a copy.
Tensor with_channels_last(Tensor const& weight) {
  if (weight.stride(0) == 1 || weight.size(0) == 1) {
    return weight;
  }
  return torch::stable::transpose(
      dcnv3::make_contiguous(torch::stable::transpose(weight, 0, 3)), 0, 3);
}

}  // namespace

Tensor depthwise_norm_gelu_cuda(Tensor const& hidden_states, Tensor const& weight,
    Tensor const& bias, Tensor const& norm_weight, Tensor const& norm_bias, double eps) {
  check_depthwise_norm_gelu(hidden_states, weight, bias, norm_weight, norm_bias);
  STD_TORCH_CHECK(hidden_states.is_cuda(), "`hidden_states` must be on a CUDA device.");
  Tensor output = make_empty(hidden_states, hidden_states.sizes());
  if (hidden_states.numel() == 0) {
    return output;
  }
  torch::stable::accelerator::DeviceGuard const guard(hidden_states.get_device_index());
  Launcher const launcher(hidden_states.get_device_index());
  Tensor const input_ = with_contiguous_channels(hidden_states);
  Tensor const weight_ = with_channels_last(weight);
  Tensor const bias_ = dcnv3::make_contiguous(bias);
  Tensor const norm_weight_ = dcnv3::make_contiguous(norm_weight);
  Tensor const norm_bias_ = dcnv3::make_contiguous(norm_bias);
  check_groups(count_groups(input_.size(0), input_.size(1), input_.size(2)));
  dispatch_dtype(hidden_states, [&](auto zero) {
    using scalar_t = decltype(zero);
    DepthwiseParams<scalar_t> params = {};
    params.input = pointer<scalar_t>(input_);
    params.weight = pointer<scalar_t>(weight_);
    params.bias = pointer<scalar_t>(bias_);
    params.norm = {pointer<scalar_t>(norm_weight_), pointer<scalar_t>(norm_bias_),
        static_cast<float>(eps)};
    params.output = static_cast<scalar_t*>(output.mutable_data_ptr());
    params.strides = strides_of(input_);
    params.weight_row = weight_.stride(2);
    params.weight_column = weight_.stride(3);
    params.batch_size = input_.size(0);
    params.height = static_cast<int>(input_.size(1));
    params.width = static_cast<int>(input_.size(2));
    params.channels = static_cast<int>(input_.size(3));
    params.kernel_size = static_cast<int>(weight_.size(2));
    run_depthwise_norm_gelu(params, launcher);
  });
  return output;
}

Tensor norm_residual_cuda(Tensor const& residual, Tensor const& branch,
    std::optional<Tensor> const& bias, std::optional<Tensor> const& norm_weight,
    std::optional<Tensor> const& norm_bias, std::optional<Tensor> const& scale, double eps) {
  check_norm_residual(residual, branch, bias, norm_weight, norm_bias, scale);
  STD_TORCH_CHECK(residual.is_cuda(), "`residual` must be on a CUDA device.");
  Tensor output = make_empty(residual, residual.sizes());
  if (residual.numel() == 0) {
    return output;
  }
  torch::stable::accelerator::DeviceGuard const guard(residual.get_device_index());
  Launcher const launcher(residual.get_device_index());
  Tensor const residual_ = dcnv3::make_contiguous(residual);
  Tensor const branch_ = dcnv3::make_contiguous(branch);
  std::optional<Tensor> const bias_ = make_contiguous(bias);
  std::optional<Tensor> const norm_weight_ = make_contiguous(norm_weight);
  std::optional<Tensor> const norm_bias_ = make_contiguous(norm_bias);
  std::optional<Tensor> const scale_ = make_contiguous(scale);
  int64_t const channels = residual.size(residual.dim() - 1);
  int64_t const rows = residual.numel() / channels;
  check_groups(rows);
  dispatch_dtype(residual, [&](auto zero) {
    using scalar_t = decltype(zero);
    ResidualParams<scalar_t> params = {};
    params.residual = pointer<scalar_t>(residual_);
    params.branch = pointer<scalar_t>(branch_);
    params.bias = pointer<scalar_t>(bias_);
    params.norm = {pointer<scalar_t>(norm_weight_), pointer<scalar_t>(norm_bias_),
        static_cast<float>(eps)};
    params.scale = pointer<scalar_t>(scale_);
    params.output = static_cast<scalar_t*>(output.mutable_data_ptr());
    params.channels = static_cast<int>(channels);
    params.num_groups = static_cast<uint32_t>(rows);
    run_norm_residual(params, launcher);
  });
  return output;
}

}  // namespace dcnv3
