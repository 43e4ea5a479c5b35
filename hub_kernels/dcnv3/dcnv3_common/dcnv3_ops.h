// Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
//
// The four functions behind the two operators; torch-ext/torch_binding.cpp registers them.
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

}  // namespace dcnv3
