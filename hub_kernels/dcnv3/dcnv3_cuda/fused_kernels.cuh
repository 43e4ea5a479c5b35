// Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
//
// Inference only: the operations around DCNv3 in a layer, fused so that intermediate results do not
// go through memory.
//
// A group of 1 to 32 neighbouring lanes owns some pixels with all their channels. It keeps them in
// registers as float32, so each pixel is read once, normalised, and rounded only when it is stored.
#pragma once

#include <initializer_list>

#include "dcnv3_launch.cuh"

namespace dcnv3 {

constexpr int kFusedThreads = 128;

// Null pointers stand for absent tensors.
template <typename scalar_t>
struct Norm {
  scalar_t const* weight;
  scalar_t const* bias;
  float eps;
};

// gelu(layer_norm(depthwise_convolution(input))), (batch_size, height, width, channels) -> the same.
template <typename scalar_t>
struct DepthwiseParams {
  scalar_t const* input;
  scalar_t const* weight;  // (kernel_size, kernel_size, channels) with the strides below
  scalar_t const* bias;
  Norm<scalar_t> norm;
  scalar_t* output;  // contiguous
  Strides strides;   // of the input
  int64_t weight_row, weight_column;
  int64_t batch_size;
  int height, width, channels, kernel_size;
  int lanes_log2;          // of the lanes in a group
  uint32_t num_groups;     // a group owns up to `kPixels` pixels of a row
  uint32_t groups_per_row;
  Divisor by_groups_per_row, by_height;
};

// residual + scale * layer_norm(branch + bias), (rows, channels) -> the same, all contiguous.
template <typename scalar_t>
struct ResidualParams {
  scalar_t const* residual;
  scalar_t const* branch;
  scalar_t const* bias;   // or null
  Norm<scalar_t> norm;    // without a weight: no LayerNorm
  scalar_t const* scale;  // or null
  scalar_t* output;
  int channels;
  int lanes_log2;
  uint32_t num_groups;  // a group owns one row
};

// What is known when a kernel is compiled. A lane holds up to `kValues` channels of each of
// `kPixels` pixels, in vectors of `kVec`. `kKernel` of zero is known at run time.
template <typename scalar_type, int kVectorSize, int kValues, int kPixelsPerGroup = 1,
    int kKernelWidth = 0>
struct FusedConfig {
  using scalar_t = scalar_type;

  static constexpr int kVec = kVectorSize;
  static constexpr int kSteps = kValues / kVec;
  static constexpr int kPixels = kPixelsPerGroup;
  static constexpr int kKernel = kKernelWidth;
  // More would make too much code. Then arrays lie in local memory: for more than 1024 channels, and
  // for numbers of channels and addresses that vectors do not divide.
  static constexpr int kUnrolled = kSteps <= 8 ? kSteps : 1;
};

// The place of this thread.
struct GroupLane {
  int lane, lanes_log2;
  uint32_t group;

  __device__ explicit GroupLane(int lanes_log2)
      : lane(threadIdx.x & ((1 << lanes_log2) - 1)),
        lanes_log2(lanes_log2),
        group(blockIdx.x * (kFusedThreads >> lanes_log2) + (threadIdx.x >> lanes_log2)) {
  }

  // The first channel of a vector.
  template <int kVec>
  __device__ int channel(int step) const {
    return ((step << lanes_log2) + lane) * kVec;
  }

  // All lanes of the warp have to call it.
  __device__ float sum(float x) const {
    for (int distance = (1 << lanes_log2) / 2; distance > 0; distance /= 2) {
      x += __shfl_xor_sync(kWholeWarp, x, distance);
    }
    return x;
  }
};

// Normalises each pixel over its channels, which the lanes of a group hold together. All lanes of
// the warp have to call it.
template <class Config, typename scalar_t>
__device__ inline void layer_norm(
    float (&values)[Config::kSteps][Config::kPixels][Config::kVec], Norm<scalar_t> const& norm,
    GroupLane const& place, int channels) {
  constexpr int kVec = Config::kVec, kPixels = Config::kPixels, kSteps = Config::kSteps;
  float mean[kPixels], factor[kPixels];
#pragma unroll
  for (int pixel = 0; pixel < kPixels; ++pixel) {
    float sum = 0.0f;
#pragma unroll Config::kUnrolled
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        sum += values[step][pixel][i];  // zeros beyond the last channel
      }
    }
    mean[pixel] = place.sum(sum) / channels;
    float squares = 0.0f;
#pragma unroll Config::kUnrolled
    for (int step = 0; step < kSteps; ++step) {
      if (place.channel<kVec>(step) < channels) {
#pragma unroll
        for (int i = 0; i < kVec; ++i) {
          float const centered = values[step][pixel][i] - mean[pixel];
          squares = fmaf(centered, centered, squares);
        }
      }
    }
    factor[pixel] = 1.0f / sqrtf(place.sum(squares) / channels + norm.eps);
  }
#pragma unroll Config::kUnrolled
  for (int step = 0; step < kSteps; ++step) {
    int const channel = place.channel<kVec>(step);
    if (channel < channels) {
      float weight[kVec], bias[kVec];
      load_as_float(weight, norm.weight + channel);
      load_as_float(bias, norm.bias + channel);
#pragma unroll
      for (int pixel = 0; pixel < kPixels; ++pixel) {
#pragma unroll
        for (int i = 0; i < kVec; ++i) {
          float const normalized = (values[step][pixel][i] - mean[pixel]) * factor[pixel];
          values[step][pixel][i] = fmaf(normalized, weight[i], bias[i]);
        }
      }
    }
  }
}

// With the error function, not its approximation by tanh.
__device__ inline float gelu(float x) {
  constexpr float kSqrtHalf = 0.70710678118654752440f;
  return 0.5f * x * (1.0f + erff(x * kSqrtHalf));
}

template <int kVec>
__device__ inline void add_product(
    float (&sums)[kVec], float const (&weights)[kVec], float const (&pixel)[kVec]) {
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    sums[i] = fmaf(weights[i], pixel[i], sums[i]);
  }
}

// Adds the convolution of one row of the image with one row of the kernel, for `kVec` channels of
// the pixels from `x` on. `pixels` and `taps` point at the first column. Outside of the image
// everything is zero.
template <class Config, typename scalar_t>
__device__ inline void convolve_row(float (&sums)[Config::kPixels][Config::kVec],
    DepthwiseParams<scalar_t> const& params, scalar_t const* pixels, scalar_t const* taps, int x) {
  constexpr int kVec = Config::kVec;
  auto const load_pixel = [&](float(&pixel)[kVec], int column) {
    load_as_float(pixel, pixels + column * params.strides.column);
  };
  if constexpr (Config::kKernel > 0) {
    // Neighbouring pixels share the columns and the weights that are loaded.
    float weights[Config::kKernel][kVec];
#pragma unroll
    for (int tap = 0; tap < Config::kKernel; ++tap) {
      load_as_float(weights[tap], taps + tap * params.weight_column);
    }
#pragma unroll
    for (int i = 0; i < Config::kPixels + Config::kKernel - 1; ++i) {
      int const column = x + i - Config::kKernel / 2;
      float pixel[kVec] = {};
      if (column >= 0 && column < params.width) {
        load_pixel(pixel, column);
      }
#pragma unroll
      for (int tap = 0; tap < Config::kKernel; ++tap) {
        if (i - tap >= 0 && i - tap < Config::kPixels) {
          add_product(sums[i - tap], weights[tap], pixel);
        }
      }
    }
  } else {
    static_assert(Config::kPixels == 1);
    for (int tap = 0; tap < params.kernel_size; ++tap) {
      int const column = x + tap - params.kernel_size / 2;
      if (column >= 0 && column < params.width) {
        float weights[kVec], pixel[kVec];
        load_as_float(weights, taps + tap * params.weight_column);
        load_pixel(pixel, column);
        add_product(sums[0], weights, pixel);
      }
    }
  }
}

template <class Config>
__global__ void __launch_bounds__(kFusedThreads)
    depthwise_norm_gelu_kernel(DepthwiseParams<typename Config::scalar_t> const params) {
  using scalar_t = typename Config::scalar_t;
  constexpr int kVec = Config::kVec, kPixels = Config::kPixels, kSteps = Config::kSteps;
  GroupLane const place(params.lanes_log2);
  // What lies beyond the last group takes part in the shuffles and stores nothing.
  bool const valid = place.group < params.num_groups;
  uint32_t const group = valid ? place.group : params.num_groups - 1;
  uint32_t const image_row = params.by_groups_per_row.quotient(group);
  int const x = static_cast<int>(group - image_row * params.groups_per_row) * kPixels;
  uint32_t const n = params.by_height.quotient(image_row);
  int const y = static_cast<int>(image_row - n * params.height);

  float values[kSteps][kPixels][kVec] = {};
#pragma unroll Config::kUnrolled
  for (int step = 0; step < kSteps; ++step) {
    int const channel = place.channel<kVec>(step);
    if (channel < params.channels) {
#pragma unroll
      for (int pixel = 0; pixel < kPixels; ++pixel) {
        load_as_float(values[step][pixel], params.bias + channel);
      }
      int const kernel_size = Config::kKernel > 0 ? Config::kKernel : params.kernel_size;
#pragma unroll(Config::kKernel > 0 ? Config::kKernel : 1)
      for (int tap = 0; tap < kernel_size; ++tap) {
        int const row = y + tap - kernel_size / 2;
        if (row >= 0 && row < params.height) {
          convolve_row<Config>(values[step], params,
              params.input + n * params.strides.batch + row * params.strides.row + channel,
              params.weight + tap * params.weight_row + channel, x);
        }
      }
    }
  }
  layer_norm<Config>(values, params.norm, place, params.channels);
  if (!valid) {
    return;
  }
  scalar_t* const output =
      params.output + (static_cast<int64_t>(image_row) * params.width + x) * params.channels;
#pragma unroll Config::kUnrolled
  for (int step = 0; step < kSteps; ++step) {
    int const channel = place.channel<kVec>(step);
#pragma unroll
    for (int pixel = 0; pixel < kPixels; ++pixel) {
      if (channel < params.channels && x + pixel < params.width) {
#pragma unroll
        for (int i = 0; i < kVec; ++i) {
          values[step][pixel][i] = gelu(values[step][pixel][i]);
        }
        store_from_float(
            output + static_cast<int64_t>(pixel) * params.channels + channel, values[step][pixel]);
      }
    }
  }
}

template <class Config>
__global__ void __launch_bounds__(kFusedThreads)
    norm_residual_kernel(ResidualParams<typename Config::scalar_t> const params) {
  constexpr int kVec = Config::kVec, kSteps = Config::kSteps;
  GroupLane const place(params.lanes_log2);
  bool const valid = place.group < params.num_groups;
  int64_t const row = valid ? place.group : params.num_groups - 1;
  int64_t const start = row * params.channels;

  float values[kSteps][1][kVec] = {};
#pragma unroll Config::kUnrolled
  for (int step = 0; step < kSteps; ++step) {
    int const channel = place.channel<kVec>(step);
    if (channel < params.channels) {
      load_as_float(values[step][0], params.branch + start + channel);
      if (params.bias != nullptr) {
        float bias[kVec];
        load_as_float(bias, params.bias + channel);
#pragma unroll
        for (int i = 0; i < kVec; ++i) {
          values[step][0][i] += bias[i];
        }
      }
    }
  }
  if (params.norm.weight != nullptr) {
    layer_norm<Config>(values, params.norm, place, params.channels);
  }
  if (!valid) {
    return;
  }
#pragma unroll Config::kUnrolled
  for (int step = 0; step < kSteps; ++step) {
    int const channel = place.channel<kVec>(step);
    if (channel < params.channels) {
      float sum[kVec], scale[kVec];
      load_as_float(sum, params.residual + start + channel);
      if (params.scale != nullptr) {
        load_as_float(scale, params.scale + channel);
      }
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        sum[i] = fmaf(params.scale != nullptr ? scale[i] : 1.0f, values[step][0][i], sum[i]);
      }
      store_from_float(params.output + start + channel, sum);
    }
  }
}

// ---- On the host, in plain C++ ----

template <typename scalar_t>
inline bool are_aligned(std::initializer_list<scalar_t const*> pointers) {
  bool aligned = true;
  for (scalar_t const* pointer : pointers) {
    aligned = aligned && reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
  }
  return aligned;
}

// Eight channels for a lane, until a warp is not enough.
inline int choose_lanes_log2(int64_t channels) {
  int lanes_log2 = 0;
  while (lanes_log2 < 5 && (int64_t{8} << lanes_log2) < channels) {
    ++lanes_log2;
  }
  return lanes_log2;
}

inline LaunchShape fused_shape(int64_t num_groups, int lanes_log2) {
  return {ceil_div(num_groups, kFusedThreads >> lanes_log2), kFusedThreads, 0};
}

// How many groups `depthwise_norm_gelu_kernel` starts at most: they are counted with 31 bits.
inline int64_t count_groups(int64_t batch_size, int64_t height, int64_t width, int pixels = 1) {
  return batch_size * height * ceil_div(width, pixels);
}

// `launch(kernel, shape, params)` starts a kernel. Fills in what follows from the sizes. Nothing is
// empty.
template <typename scalar_t, typename Launcher>
inline void run_depthwise_norm_gelu(DepthwiseParams<scalar_t> params, Launcher const& launch) {
  constexpr int kVec = 16 / sizeof(scalar_t);
  params.strides =
      effective_strides(params.strides, params.batch_size, params.height, params.width);
  Strides const& s = params.strides;
  bool const vectors =
      are_aligned<scalar_t>({params.input, params.weight, params.bias, params.norm.weight,
          params.norm.bias, params.output}) &&
      params.channels % kVec == 0 && s.batch % kVec == 0 && s.row % kVec == 0 &&
      s.column % kVec == 0 && params.weight_row % kVec == 0 && params.weight_column % kVec == 0;
  params.lanes_log2 = choose_lanes_log2(params.channels);
  params.by_height = Divisor(static_cast<uint32_t>(params.height));
  auto const run = [&](auto config) {
    using config_t = decltype(config);
    params.groups_per_row = static_cast<uint32_t>(ceil_div(params.width, config_t::kPixels));
    params.by_groups_per_row = Divisor(params.groups_per_row);
    int64_t const groups =
        count_groups(params.batch_size, params.height, params.width, config_t::kPixels);
    params.num_groups = static_cast<uint32_t>(groups);
    launch(&depthwise_norm_gelu_kernel<config_t>, fused_shape(groups, params.lanes_log2), params);
  };
  if (!vectors) {
    run(FusedConfig<scalar_t, 1, 128>{});
  } else if (params.kernel_size == 3 && params.channels <= 256) {
    run(FusedConfig<scalar_t, kVec, 8, 4, 3>{});
  } else if (params.kernel_size == 3 && params.channels <= 512) {
    run(FusedConfig<scalar_t, kVec, 16, 2, 3>{});
  } else if (params.kernel_size == 3 && params.channels <= 1024) {
    run(FusedConfig<scalar_t, kVec, 32, 1, 3>{});
  } else if (params.channels <= 1024) {
    run(FusedConfig<scalar_t, kVec, 32>{});
  } else {
    run(FusedConfig<scalar_t, kVec, 128>{});
  }
}

template <typename scalar_t, typename Launcher>
inline void run_norm_residual(ResidualParams<scalar_t> params, Launcher const& launch) {
  constexpr int kVec = 16 / sizeof(scalar_t);
  bool const vectors = params.channels % kVec == 0 &&
                       are_aligned<scalar_t>({params.residual, params.branch, params.bias,
                           params.norm.weight, params.norm.bias, params.scale, params.output});
  params.lanes_log2 = choose_lanes_log2(params.channels);
  auto const run = [&](auto config) {
    launch(&norm_residual_kernel<decltype(config)>,
        fused_shape(params.num_groups, params.lanes_log2), params);
  };
  if (!vectors) {
    run(FusedConfig<scalar_t, 1, 128>{});
  } else if (params.channels <= 256) {
    run(FusedConfig<scalar_t, kVec, 8>{});
  } else if (params.channels <= 1024) {
    run(FusedConfig<scalar_t, kVec, 32>{});
  } else {
    run(FusedConfig<scalar_t, kVec, 128>{});
  }
}

}  // namespace dcnv3
