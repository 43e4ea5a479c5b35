// Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
//
// Host side of the CUDA backend, against the stable ABI of Torch.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <tuple>

#include "../dcnv3_common/dcnv3_checks.h"
#include "../dcnv3_common/dcnv3_ops.h"
#include "dcnv3_launch.cuh"

// The stable headers of a Torch without CUDA leave this out.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(
    int32_t device_index, void** ret_stream);

namespace dcnv3 {
namespace {

using torch::headeronly::ScalarType;

void check_cuda(cudaError_t error, char const* what) {
  STD_TORCH_CHECK(
      error == cudaSuccess, "DCNv3 could not ", what, ": ", cudaGetErrorString(error), ".");
}

// Starts kernels on the current stream of a device.
class Launcher {
 public:
  explicit Launcher(int32_t device_index) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_index, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
    check_cuda(
        cudaDeviceGetAttribute(&num_multiprocessors_, cudaDevAttrMultiProcessorCount, device_index),
        "read the number of multiprocessors");
  }

  int num_multiprocessors() const {
    return num_multiprocessors_;
  }

  template <typename params_t>
  void operator()(void (*kernel)(params_t), LaunchShape const& shape,
      std::type_identity_t<params_t> const& params) const {
    STD_TORCH_CHECK(shape.blocks <= std::numeric_limits<int32_t>::max(),
        "The output is too large for one launch of the CUDA kernel, which would need ", shape.blocks,
        " blocks of threads: split the batch.");
    kernel<<<static_cast<unsigned int>(shape.blocks), shape.threads, shape.shared_bytes, stream_>>>(
        params);
    check_cuda(cudaGetLastError(), "launch its CUDA kernel");
  }

 private:
  cudaStream_t stream_;
  int num_multiprocessors_;
};

// Calls run(scalar_t{}) with the element type of `value`.
template <typename Function>
void dispatch_dtype(Tensor const& value, Function const& run) {
  switch (value.scalar_type()) {
    case ScalarType::Float:
      return run(float{});
    case ScalarType::Half:
      return run(__half{});
    default:  // `check_arguments` lets no other dtype through
      return run(__nv_bfloat16{});
  }
}

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
