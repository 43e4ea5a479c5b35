// Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
//
// The baseline of gpu_report.py: DCNv3 forward (3x3, stride 1, padding 1, softmax inside) written in the obvious way.
// One thread owns one channel of one output pixel. It reads single numbers and shares nothing: every thread of a group
// computes the same softmax, positions, weights and addresses again.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

namespace {

constexpr int kPoints = 9;
constexpr int kThreads = 256;

__device__ float to_float(float x) {
  return x;
}

__device__ float to_float(__half x) {
  return __half2float(x);
}

__device__ float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}

__device__ void store(float* to, float x) {
  *to = x;
}

__device__ void store(__half* to, float x) {
  *to = __float2half_rn(x);
}

__device__ void store(__nv_bfloat16* to, float x) {
  *to = __float2bfloat16_rn(x);
}

template <typename scalar_t>
__device__ float pixel(
    scalar_t const* image, int y, int x, int height, int width, int channels, int channel) {
  if (y < 0 || y >= height || x < 0 || x >= width) {
    return 0.0f;
  }
  return to_float(image[(y * width + x) * channels + channel]);
}

template <typename scalar_t>
__global__ void naive_forward_kernel(
    scalar_t const* value, scalar_t const* offset, scalar_t const* mask, scalar_t* output, int total,
    int height, int width, int groups, int group_channels) {
  int const index = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (index >= total) {
    return;
  }
  int const channels = groups * group_channels;
  int const channel = index % channels;
  int const group = channel / group_channels;
  int const position = index / channels;  // of the output pixel in the batch
  int const out_x = position % width;
  int const out_y = position / width % height;
  scalar_t const* const image = value + position / (height * width) * height * width * channels;
  scalar_t const* const offsets = offset + (position * groups + group) * (2 * kPoints);
  scalar_t const* const logits = mask + (position * groups + group) * kPoints;

  float largest = -INFINITY;
  for (int point = 0; point < kPoints; ++point) {
    largest = fmaxf(largest, to_float(logits[point]));
  }
  float total_weight = 0.0f;
  for (int point = 0; point < kPoints; ++point) {
    total_weight += expf(to_float(logits[point]) - largest);
  }

  float sum = 0.0f;
  for (int point = 0; point < kPoints; ++point) {
    float const x = static_cast<float>(out_x + point / 3 - 1) + to_float(offsets[2 * point]);
    float const y = static_cast<float>(out_y + point % 3 - 1) + to_float(offsets[2 * point + 1]);
    if (!(x > -1.0f && x < static_cast<float>(width) && y > -1.0f && y < static_cast<float>(height))) {
      continue;
    }
    float const left = floorf(x);
    float const top = floorf(y);
    float const a = x - left;
    float const b = y - top;
    int const x0 = static_cast<int>(left);
    int const y0 = static_cast<int>(top);
    float const sample = (1.0f - b) * (1.0f - a) * pixel(image, y0, x0, height, width, channels, channel) +
                         (1.0f - b) * a * pixel(image, y0, x0 + 1, height, width, channels, channel) +
                         b * (1.0f - a) * pixel(image, y0 + 1, x0, height, width, channels, channel) +
                         b * a * pixel(image, y0 + 1, x0 + 1, height, width, channels, channel);
    sum += expf(to_float(logits[point]) - largest) / total_weight * sample;
  }
  store(output + index, sum);
}

template <typename scalar_t>
int launch(
    void const* value, void const* offset, void const* mask, void* output, int64_t batch_size, int height,
    int width, int groups, int group_channels, void* stream) {
  int64_t const total = batch_size * height * width * groups * group_channels;
  if (total >= int64_t{1} << 30) {
    return static_cast<int>(cudaErrorInvalidValue);  // counted in 32 bits, as is quickest
  }
  int64_t const blocks = (total + kThreads - 1) / kThreads;
  naive_forward_kernel<scalar_t><<<static_cast<unsigned int>(blocks), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      static_cast<scalar_t const*>(value), static_cast<scalar_t const*>(offset), static_cast<scalar_t const*>(mask),
      static_cast<scalar_t*>(output), static_cast<int>(total), height, width, groups, group_channels);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace

// All tensors are contiguous: value and output (batch, height, width, groups * group_channels), offset (batch, height,
// width, groups, 9, 2), mask (batch, height, width, groups, 9). `dtype`: 0 float32, 1 float16, 2 bfloat16. Returns a
// cudaError_t.
extern "C" int naive_dcnv3_forward(
    void const* value, void const* offset, void const* mask, void* output, int64_t batch_size, int height,
    int width, int groups, int group_channels, int dtype, void* stream) {
  switch (dtype) {
    case 0:
      return launch<float>(value, offset, mask, output, batch_size, height, width, groups, group_channels, stream);
    case 1:
      return launch<__half>(value, offset, mask, output, batch_size, height, width, groups, group_channels, stream);
    case 2:
      return launch<__nv_bfloat16>(
          value, offset, mask, output, batch_size, height, width, groups, group_channels, stream);
    default:
      return static_cast<int>(cudaErrorInvalidValue);
  }
}
