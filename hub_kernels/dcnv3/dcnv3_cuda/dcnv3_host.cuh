// Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
//
// What the host sides of all CUDA operators share: launching kernels through the stable ABI of Torch.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <limits>
#include <type_traits>

#include "dcnv3_launch.cuh"

// The stable headers of a Torch without CUDA leave this out.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(
    int32_t device_index, void** ret_stream);

namespace dcnv3 {

using torch::headeronly::ScalarType;

inline void check_cuda(cudaError_t error, char const* what) {
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
void dispatch_dtype(torch::stable::Tensor const& value, Function const& run) {
  switch (value.scalar_type()) {
    case ScalarType::Float:
      return run(float{});
    case ScalarType::Half:
      return run(__half{});
    default:  // the checks of arguments let no other dtype through
      return run(__nv_bfloat16{});
  }
}

}  // namespace dcnv3
