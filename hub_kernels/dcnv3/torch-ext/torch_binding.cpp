// Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
//
// Operator schemas and their registration per backend. The builder generates registration.h and defines
// TORCH_EXTENSION_NAME, the operators' namespace, which is unique to the build.
#include <torch/csrc/stable/library.h>

#include "dcnv3_ops.h"
#include "registration.h"

STABLE_TORCH_LIBRARY_FRAGMENT(TORCH_EXTENSION_NAME, ops) {
  ops.def(
      "dcnv3_forward(Tensor value, Tensor offset, Tensor mask, Tensor? center_scale, int kernel_size, "
      "int stride, int padding, int dilation, int num_groups, float offset_scale, bool remove_center, "
      "bool softmax) -> Tensor");
  ops.def(
      "dcnv3_backward(Tensor grad_output, Tensor value, Tensor offset, Tensor mask, Tensor? center_scale, "
      "int kernel_size, int stride, int padding, int dilation, int num_groups, float offset_scale, "
      "bool remove_center, bool softmax) -> (Tensor, Tensor, Tensor, Tensor)");
  ops.def(
      "internimage_branch(Tensor hidden_states, Tensor? residual, Tensor? norm_in_weight, Tensor? norm_in_bias, "
      "float norm_in_eps, Tensor? hidden_weight, Tensor? hidden_bias, Tensor? output_weight, Tensor? output_bias, "
      "Tensor? norm_out_weight, Tensor? norm_out_bias, float norm_out_eps, Tensor? scale) -> Tensor");
  ops.def(
      "internimage_features(Tensor hidden_states, Tensor convolution_weight, Tensor? convolution_bias, "
      "Tensor? norm_weight, Tensor? norm_bias, float norm_eps) -> Tensor");
  ops.def(
      "internimage_sampling(Tensor hidden_states, Tensor? norm_in_weight, Tensor? norm_in_bias, float norm_in_eps, "
      "Tensor? convolution_weight, Tensor? convolution_bias, Tensor? norm_weight, Tensor? norm_bias, float norm_eps, "
      "Tensor value_weight, Tensor? value_bias, Tensor offset_weight, Tensor? offset_bias, "
      "Tensor mask_weight, Tensor? mask_bias, "
      "Tensor? center_scale_weight, Tensor? center_scale_bias) -> (Tensor, Tensor, Tensor, Tensor)");
  ops.def(
      "internimage_gelu(Tensor hidden_states, Tensor? bias, Tensor? grad_output) -> (Tensor, Tensor)");
  ops.def(
      "depthwise_norm_gelu(Tensor hidden_states, Tensor weight, Tensor bias, Tensor norm_weight, Tensor norm_bias, "
      "float eps) -> Tensor");
  ops.def(
      "norm_residual(Tensor residual, Tensor branch, Tensor? bias, Tensor? norm_weight, Tensor? norm_bias, "
      "Tensor? scale, float eps) -> Tensor");
}

// The CUDA build carries the CPU operators too: see build.toml.
#if defined(CPU_KERNEL) || defined(CUDA_KERNEL)
STABLE_TORCH_LIBRARY_IMPL(TORCH_EXTENSION_NAME, CPU, ops) {
  ops.impl("dcnv3_forward", TORCH_BOX(&dcnv3::forward_cpu));
  ops.impl("dcnv3_backward", TORCH_BOX(&dcnv3::backward_cpu));
  ops.impl("internimage_branch", TORCH_BOX(&dcnv3::branch_cpu));
  ops.impl("internimage_features", TORCH_BOX(&dcnv3::features_cpu));
  ops.impl("internimage_gelu", TORCH_BOX(&dcnv3::gelu_cpu));
  ops.impl("internimage_sampling", TORCH_BOX(&dcnv3::sampling_cpu));
}
#endif

#if defined(CUDA_KERNEL)
STABLE_TORCH_LIBRARY_IMPL(TORCH_EXTENSION_NAME, CUDA, ops) {
  ops.impl("dcnv3_forward", TORCH_BOX(&dcnv3::forward_cuda));
  ops.impl("dcnv3_backward", TORCH_BOX(&dcnv3::backward_cuda));
  ops.impl("depthwise_norm_gelu", TORCH_BOX(&dcnv3::depthwise_norm_gelu_cuda));
  ops.impl("norm_residual", TORCH_BOX(&dcnv3::norm_residual_cuda));
}
#endif

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
