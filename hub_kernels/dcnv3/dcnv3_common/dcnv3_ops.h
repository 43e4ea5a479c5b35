// Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
//
// The functions behind the operators; torch-ext/torch_binding.cpp registers them.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

namespace dcnv3 {

using torch::stable::Tensor;

// value, offset, mask, center_scale -> output. See dcnv3_params.h for the shapes.
Tensor forward_cpu(
    Tensor const& value, Tensor const& offset, Tensor const& mask,
    std::optional<Tensor> const& center_scale, int64_t kernel_size, int64_t stride, int64_t padding,
    int64_t dilation, int64_t num_groups, double offset_scale, bool remove_center, bool softmax);

// Gradients of value, offset, mask and center_scale, contiguous; the last is empty without center_scale.
std::tuple<Tensor, Tensor, Tensor, Tensor> backward_cpu(
    Tensor const& grad_output, Tensor const& value, Tensor const& offset, Tensor const& mask,
    std::optional<Tensor> const& center_scale, int64_t kernel_size, int64_t stride, int64_t padding,
    int64_t dilation, int64_t num_groups, double offset_scale, bool remove_center, bool softmax);

Tensor forward_cuda(
    Tensor const& value, Tensor const& offset, Tensor const& mask,
    std::optional<Tensor> const& center_scale, int64_t kernel_size, int64_t stride, int64_t padding,
    int64_t dilation, int64_t num_groups, double offset_scale, bool remove_center, bool softmax);

std::tuple<Tensor, Tensor, Tensor, Tensor> backward_cuda(
    Tensor const& grad_output, Tensor const& value, Tensor const& offset, Tensor const& mask,
    std::optional<Tensor> const& center_scale, int64_t kernel_size, int64_t stride, int64_t padding,
    int64_t dilation, int64_t num_groups, double offset_scale, bool remove_center, bool softmax);

// Parts of an InternImage layer in inference, without gradients. See torch-ext/dcnv3/fused.py.
Tensor branch_cpu(
    Tensor const& hidden_states, std::optional<Tensor> const& residual, std::optional<Tensor> const& norm_in_weight,
    std::optional<Tensor> const& norm_in_bias, double norm_in_eps, std::optional<Tensor> const& hidden_weight,
    std::optional<Tensor> const& hidden_bias, std::optional<Tensor> const& output_weight,
    std::optional<Tensor> const& output_bias, std::optional<Tensor> const& norm_out_weight,
    std::optional<Tensor> const& norm_out_bias, double norm_out_eps, std::optional<Tensor> const& scale);

std::tuple<Tensor, Tensor, Tensor, Tensor> sampling_cpu(
    Tensor const& hidden_states, std::optional<Tensor> const& norm_in_weight, std::optional<Tensor> const& norm_in_bias,
    double norm_in_eps, std::optional<Tensor> const& convolution_weight,
    std::optional<Tensor> const& convolution_bias, std::optional<Tensor> const& norm_weight,
    std::optional<Tensor> const& norm_bias, double norm_eps, Tensor const& value_weight,
    std::optional<Tensor> const& value_bias, Tensor const& offset_weight, std::optional<Tensor> const& offset_bias,
    Tensor const& mask_weight, std::optional<Tensor> const& mask_bias,
    std::optional<Tensor> const& center_scale_weight, std::optional<Tensor> const& center_scale_bias);

Tensor features_cpu(
    Tensor const& hidden_states, Tensor const& convolution_weight, std::optional<Tensor> const& convolution_bias,
    std::optional<Tensor> const& norm_weight, std::optional<Tensor> const& norm_bias, double norm_eps);

// GELU(hidden_states + bias) of (rows, channels), and with `grad_output` the gradient of hidden_states, else an empty
// tensor. Without autograd: see torch-ext/dcnv3/training.py.
std::tuple<Tensor, Tensor> gelu_cpu(
    Tensor const& hidden_states, std::optional<Tensor> const& bias, std::optional<Tensor> const& grad_output);

// Inference: gelu(layer_norm(depthwise_convolution(hidden_states))) with stride 1 and the padding that keeps the size.
// hidden_states is (batch_size, height, width, channels), weight (channels, 1, kernel_size, kernel_size), the rest
// (channels,).
Tensor depthwise_norm_gelu_cuda(
    Tensor const& hidden_states, Tensor const& weight, Tensor const& bias, Tensor const& norm_weight,
    Tensor const& norm_bias, double eps);

// Inference: residual + scale * layer_norm(branch + bias). residual and branch are (..., channels), the rest
// (channels,); what is absent leaves its part out.
Tensor norm_residual_cuda(
    Tensor const& residual, Tensor const& branch, std::optional<Tensor> const& bias,
    std::optional<Tensor> const& norm_weight, std::optional<Tensor> const& norm_bias,
    std::optional<Tensor> const& scale, double eps);

}  // namespace dcnv3
