// Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
//
// Host side of the fused operators: refuse bad arguments with a sentence. `_check_depthwise_norm_gelu` and
// `_check_norm_residual` of torch-ext/dcnv3/__init__.py do the same for tensors without data.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "dcnv3_checks.h"

namespace dcnv3 {

constexpr int64_t kMaxFusedChannels = 4096;  // the kernels keep those of a pixel in the registers of a warp

inline void check_fused_dtype(char const* name, Tensor const& tensor) {
  using torch::headeronly::ScalarType;
  check_defined(name, tensor);
  ScalarType const dtype = tensor.scalar_type();
  STD_TORCH_CHECK(
      dtype == ScalarType::Float || dtype == ScalarType::Half || dtype == ScalarType::BFloat16, "`", name,
      "` must have dtype float32, float16 or bfloat16.");
}

// `tensor` has this shape, and device and dtype of `like`.
inline void check_like(
    char const* name, Tensor const& tensor, char const* like_name, Tensor const& like,
    std::vector<int64_t> const& shape) {
  check_defined(name, tensor);
  STD_TORCH_CHECK(
      tensor.device() == like.device(), "`", name, "` and `", like_name, "` must be on the same device.");
  STD_TORCH_CHECK(
      tensor.scalar_type() == like.scalar_type(), "`", name, "` and `", like_name, "` must have the same dtype.");
  bool same = tensor.dim() == static_cast<int64_t>(shape.size());
  for (int64_t i = 0; same && i < tensor.dim(); ++i) {
    same = tensor.size(i) == shape[i];
  }
  STD_TORCH_CHECK(
      same, "`", name, "` must have shape ", shape_string(shape.data(), shape.size()), ", got ",
      shape_string(tensor.sizes().data(), tensor.dim()), ".");
}

inline void check_fused_channels(char const* name, int64_t channels) {
  STD_TORCH_CHECK(
      channels >= 1 && channels <= kMaxFusedChannels, "`", name, "` must have between 1 and ", kMaxFusedChannels,
      " channels, got ", channels, ".");
}

inline void check_depthwise_norm_gelu(
    Tensor const& hidden_states, Tensor const& weight, Tensor const& bias, Tensor const& norm_weight,
    Tensor const& norm_bias) {
  check_fused_dtype("hidden_states", hidden_states);
  STD_TORCH_CHECK(
      hidden_states.dim() == 4, "`hidden_states` must have shape (batch_size, height, width, channels), got ",
      shape_string(hidden_states.sizes().data(), hidden_states.dim()), ".");
  int64_t const channels = hidden_states.size(3);
  check_fused_channels("hidden_states", channels);
  for (int64_t i = 1; i < 3; ++i) {
    STD_TORCH_CHECK(
        hidden_states.size(i) <= kMaxInt, "`hidden_states` must have at most ", kMaxInt, " pixels a side, got ",
        hidden_states.size(i), ".");
  }
  check_defined("weight", weight);
  STD_TORCH_CHECK(
      weight.dim() == 4 && weight.size(2) % 2 == 1 && weight.size(2) < 128,
      "`weight` must have shape (channels, 1, kernel_size, kernel_size) with an odd `kernel_size` below 128, got ",
      shape_string(weight.sizes().data(), weight.dim()), ".");
  check_like("weight", weight, "hidden_states", hidden_states, {channels, 1, weight.size(2), weight.size(2)});
  check_like("bias", bias, "hidden_states", hidden_states, {channels});
  check_like("norm_weight", norm_weight, "hidden_states", hidden_states, {channels});
  check_like("norm_bias", norm_bias, "hidden_states", hidden_states, {channels});
}

inline void check_norm_residual(
    Tensor const& residual, Tensor const& branch, std::optional<Tensor> const& bias,
    std::optional<Tensor> const& norm_weight, std::optional<Tensor> const& norm_bias,
    std::optional<Tensor> const& scale) {
  check_fused_dtype("residual", residual);
  STD_TORCH_CHECK(residual.dim() >= 1, "`residual` must have shape (..., channels), got ().");
  int64_t const channels = residual.size(residual.dim() - 1);
  check_fused_channels("residual", channels);
  auto const sizes = residual.sizes();
  check_like("branch", branch, "residual", residual, std::vector<int64_t>(sizes.begin(), sizes.end()));
  STD_TORCH_CHECK(
      norm_weight.has_value() == norm_bias.has_value(),
      "`norm_weight` and `norm_bias` must both be tensors or both be None.");
  auto const check_vector = [&](char const* name, std::optional<Tensor> const& vector) {
    if (vector.has_value()) {
      check_like(name, *vector, "residual", residual, {channels});
    }
  };
  check_vector("bias", bias);
  check_vector("norm_weight", norm_weight);
  check_vector("norm_bias", norm_bias);
  check_vector("scale", scale);
}

}  // namespace dcnv3
