// Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
//
// The CUDA kernels behind plain C functions that run them on the CPU.

#include "cuda_shim.h"

#include "../../dcnv3_cuda/dcnv3_launch.cuh"
#include "../../dcnv3_cuda/fused_kernels.cuh"

namespace {

using dcnv3::Geometry;
using dcnv3::Gradients;
using dcnv3::Inputs;
using dcnv3::Strides;

// Calls run(scalar_t{}) for 0: float, 1: half, 2: bfloat16.
template <typename Function>
void dispatch_dtype(int dtype, Function const& run) {
  if (dtype == 0) {
    run(float{});
  } else if (dtype == 1) {
    run(__half{});
  } else {
    run(__nv_bfloat16{});
  }
}

template <typename scalar_t>
Inputs<scalar_t> make_inputs(void const* const* inputs, int64_t const* strides) {
  auto const pointer = [&](int i) {
    return static_cast<scalar_t const*>(inputs[i]);
  };
  auto const stride = [&](int i) {
    return Strides{strides[3 * i], strides[3 * i + 1], strides[3 * i + 2]};
  };
  return {
      pointer(0), pointer(1), pointer(2), pointer(3), stride(0), stride(1), stride(2), stride(3)};
}

// numbers: batch_size, height, width, out_height, out_width, groups, group_channels, kernel_size,
// num_points, stride, padding, dilation, remove_center, softmax.
Geometry make_geometry(int64_t const* numbers, double offset_scale) {
  auto const integer = [&](int i) {
    return static_cast<int>(numbers[i]);
  };
  return {numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5], numbers[6],
      integer(7), integer(8), integer(9), integer(10), integer(11), offset_scale, numbers[12] != 0,
      numbers[13] != 0};
}

}  // namespace

extern "C" {

// inputs: value, offset, mask, center_scale (or null); strides: batch, row and column of each.
void dcnv3_shim_forward(int dtype, void const* const* inputs, int64_t const* strides,
    int64_t const* numbers, double offset_scale, int num_multiprocessors, void* output) {
  dispatch_dtype(dtype, [&](auto zero) {
    using scalar_t = decltype(zero);
    dcnv3::run_forward<scalar_t>(make_inputs<scalar_t>(inputs, strides),
        make_geometry(numbers, offset_scale), static_cast<scalar_t*>(output), num_multiprocessors,
        dcnv3::ShimLauncher{});
  });
}

// gradients: offset, mask, center_scale (or null). grad_value is float32 and starts as zeros.
void dcnv3_shim_backward(int dtype, void const* grad_output, void const* const* inputs,
    int64_t const* strides, int64_t const* numbers, double offset_scale, int num_multiprocessors,
    float* grad_value, void* const* gradients) {
  dispatch_dtype(dtype, [&](auto zero) {
    using scalar_t = decltype(zero);
    auto const pointer = [&](int i) {
      return static_cast<scalar_t*>(gradients[i]);
    };
    dcnv3::run_backward<scalar_t>(static_cast<scalar_t const*>(grad_output),
        make_inputs<scalar_t>(inputs, strides), make_geometry(numbers, offset_scale), grad_value,
        Gradients<scalar_t>{nullptr, pointer(0), pointer(1), pointer(2)}, num_multiprocessors,
        dcnv3::ShimLauncher{});
  });
}

// tensors: input, weight, bias, norm weight, norm bias, output; numbers: batch_size, height, width,
// channels, kernel_size, then the input's strides of batch, row and column, and the weight's of row
// and column.
void dcnv3_shim_depthwise_norm_gelu(
    int dtype, void* const* tensors, int64_t const* numbers, double eps) {
  dispatch_dtype(dtype, [&](auto zero) {
    using scalar_t = decltype(zero);
    auto const pointer = [&](int i) {
      return static_cast<scalar_t*>(tensors[i]);
    };
    dcnv3::DepthwiseParams<scalar_t> params = {};
    params.input = pointer(0);
    params.weight = pointer(1);
    params.bias = pointer(2);
    params.norm = {pointer(3), pointer(4), static_cast<float>(eps)};
    params.output = pointer(5);
    params.batch_size = numbers[0];
    params.height = static_cast<int>(numbers[1]);
    params.width = static_cast<int>(numbers[2]);
    params.channels = static_cast<int>(numbers[3]);
    params.kernel_size = static_cast<int>(numbers[4]);
    params.strides = {numbers[5], numbers[6], numbers[7]};
    params.weight_row = numbers[8];
    params.weight_column = numbers[9];
    dcnv3::run_depthwise_norm_gelu(params, dcnv3::ShimLauncher{});
  });
}

// tensors: residual, branch, bias, norm weight, norm bias, scale, output, those that are absent null.
void dcnv3_shim_norm_residual(
    int dtype, void* const* tensors, int64_t rows, int64_t channels, double eps) {
  dispatch_dtype(dtype, [&](auto zero) {
    using scalar_t = decltype(zero);
    auto const pointer = [&](int i) {
      return static_cast<scalar_t*>(tensors[i]);
    };
    dcnv3::ResidualParams<scalar_t> params = {};
    params.residual = pointer(0);
    params.branch = pointer(1);
    params.bias = pointer(2);
    params.norm = {pointer(3), pointer(4), static_cast<float>(eps)};
    params.scale = pointer(5);
    params.output = pointer(6);
    params.channels = static_cast<int>(channels);
    params.num_groups = static_cast<uint32_t>(rows);
    dcnv3::run_norm_residual(params, dcnv3::ShimLauncher{});
  });
}

}  // extern "C"
