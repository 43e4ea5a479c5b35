// Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
//
// On the host, in plain C++: which kernel serves a call, and what a block of it owns.
#pragma once

#include "dcnv3_backward.cuh"
#include "dcnv3_forward.cuh"

namespace dcnv3 {

constexpr int kMaxSharedBytes = 48 * 1024;  // what every architecture grants without asking

struct LaunchShape {
  int64_t blocks;
  int threads, shared_bytes;
};

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// The number of groups per block: about 256 bytes of channels, so that the runs of `offset` and
// `mask` that a block reads are long enough. Of the numbers near that, the one that leaves the
// fewest threads of the last block idle.
inline int choose_tile_groups(int groups, int group_bytes, int items_per_block) {
  int const target = group_bytes >= 128 ? 2 : group_bytes <= 32 ? 8 : 256 / group_bytes;
  int best = 1;
  int64_t best_cost = INT64_MAX;
  for (int candidate = (target + 1) / 2; candidate <= 2 * target; ++candidate) {
    int const count = candidate < groups ? candidate : groups;
    if (count > items_per_block) {
      break;
    }
    int64_t const idle = ceil_div(groups, count) * count - groups;
    int64_t const cost = idle * 64 + (count < target ? target - count : count - target);
    if (cost < best_cost) {
      best_cost = cost;
      best = count;
    }
  }
  return best;
}

// Fills in what a block owns. Larger blocks share more pixels, smaller ones spread little work over
// the GPU.
template <class Config>
inline LaunchShape plan(typename Config::params_t& params, Geometry const& g,
    int num_multiprocessors, int max_threads, int arrays) {
  int lanes = Config::kLanes;
  params.lanes_log2 = 0;
  if constexpr (Config::kGeneral) {
    // At least four, because shared memory has to hold up to 49 points of every item of a warp.
    lanes = 4;
    while (lanes < kWarpSize && lanes * Config::kVec < g.group_channels) {
      lanes *= 2;
    }
  }
  while ((1 << params.lanes_log2) < lanes) {
    ++params.lanes_log2;
  }
  int const items_per_warp = kWarpSize / lanes;
  params.pitch = g.num_points | 1;
  int const bytes_per_point = static_cast<int>(sizeof(float4) + sizeof(typename Config::index_t) +
                                               (Config::kGeneral ? arrays : 0) * sizeof(float));
  int const warp_bytes = items_per_warp * params.pitch * bytes_per_point;

  int warps = max_threads / kWarpSize;
  while (warps > 1 && warps * warp_bytes > kMaxSharedBytes) {
    warps /= 2;
  }
  int64_t const all_items = g.batch_size * g.out_height * g.out_width * g.groups;
  while (warps > 1 && all_items < int64_t{2} * num_multiprocessors * warps * items_per_warp) {
    warps /= 2;
  }

  int const items_per_block = params.items_per_block = warps * items_per_warp;
  int const group_bytes = static_cast<int>(g.group_channels * sizeof(typename Config::scalar_t));
  params.tile_groups = choose_tile_groups(params.groups, group_bytes, items_per_block);
  int64_t const capacity = items_per_block / params.tile_groups;
  double best_cost = INFINITY;  // a floating point number, as strides may be large
  for (int64_t height = 1; height <= capacity && height <= g.out_height; ++height) {
    int64_t const widest = capacity / height < g.out_width ? capacity / height : g.out_width;
    int64_t const width = ceil_div(g.out_width, ceil_div(g.out_width, widest));
    int64_t const tiles = ceil_div(g.out_height, height) * ceil_div(g.out_width, width);
    // Threads, and pixels that a block reads: its own and about three beyond.
    double const pixels = static_cast<double>(height * g.stride + 3) * (width * g.stride + 3);
    double const cost = tiles * (4 * capacity + pixels);
    if (cost < best_cost) {
      best_cost = cost;
      params.tile_height = static_cast<int>(height);
      params.tile_width = static_cast<int>(width);
    }
  }

  int64_t const group_tiles = ceil_div(g.groups, params.tile_groups);
  int64_t const row_tiles = group_tiles * ceil_div(g.out_width, params.tile_width);
  int64_t const image_tiles = row_tiles * ceil_div(g.out_height, params.tile_height);
  int64_t const blocks = g.batch_size * image_tiles;
  if (blocks <= INT32_MAX) {  // else the launcher refuses
    params.by_blocks_per_image = Divisor(static_cast<uint32_t>(image_tiles));
    params.by_blocks_per_tile_row = Divisor(static_cast<uint32_t>(row_tiles));
    params.by_blocks_per_tile = Divisor(static_cast<uint32_t>(group_tiles));
    params.by_tile_groups = Divisor(static_cast<uint32_t>(params.tile_groups));
    params.by_tile_width = Divisor(static_cast<uint32_t>(params.tile_width));
  }
  return {blocks, warps * kWarpSize, warps * warp_bytes};
}

// The strides that matter: a dimension of size one may have any.
inline Strides effective_strides(Strides s, int64_t batch_size, int64_t height, int64_t width) {
  return {batch_size > 1 ? s.batch : 0, height > 1 ? s.row : 0, width > 1 ? s.column : 0};
}

template <typename scalar_t>
inline bool is_aligned(scalar_t const* data, Strides const& s, int vector) {
  return reinterpret_cast<uintptr_t>(data) % (vector * sizeof(scalar_t)) == 0 &&
         s.batch % vector == 0 && s.row % vector == 0 && s.column % vector == 0;
}

// Whether positions within one image fit 32 bits, counted in bytes of at most float32.
inline bool is_narrow(Strides const& s, int64_t height, int64_t width, int64_t channels) {
  return (height - 1) * s.row + (width - 1) * s.column + channels < int64_t{1} << 30;
}

template <class Config>
inline typename Config::params_t make_params(
    Inputs<typename Config::scalar_t> const& inputs, Geometry const& g) {
  using index_t = typename Config::index_t;
  auto const view = [](auto const* data, Strides const& s) {
    return View<typename Config::scalar_t, index_t>{
        data, s.batch, static_cast<index_t>(s.row), static_cast<index_t>(s.column)};
  };
  typename Config::params_t params = {};
  params.value = view(inputs.value, inputs.value_strides);
  params.offset = view(inputs.offset, inputs.offset_strides);
  params.mask = view(inputs.mask, inputs.mask_strides);
  params.center_scale = view(inputs.center_scale, inputs.center_scale_strides);
  params.height = static_cast<int>(g.height);
  params.width = static_cast<int>(g.width);
  params.out_height = static_cast<int>(g.out_height);
  params.out_width = static_cast<int>(g.out_width);
  params.groups = static_cast<int>(g.groups);
  params.group_channels = static_cast<int>(g.group_channels);
  params.kernel_size = g.kernel_size;
  params.num_points = g.num_points;
  params.stride = g.stride;
  int const center = g.dilation * (g.kernel_size - 1) / 2;
  params.origin = center - g.padding;
  params.grid_start = static_cast<float>(-center * g.offset_scale);
  params.grid_step = static_cast<float>(g.dilation * g.offset_scale);
  params.offset_scale = static_cast<float>(g.offset_scale);
  params.remove_center = g.remove_center;
  params.softmax = g.softmax;
  params.bfloat16_shift = 1u << 16;
  params.value_bytes = sizeof(typename Config::scalar_t);
  return params;
}

// Calls run(Config{}) with what fits the arguments: 3x3 points and 8, 16, 32 or 64 channels per
// group are compiled for; the rest is general, with vectors of kVec channels where they divide the
// group and the addresses, else one by one.
template <typename scalar_t, int kVec, typename Function>
inline void dispatch(
    Inputs<scalar_t> const& inputs, Geometry const& g, bool aligned, Function const& run) {
  bool const vectors = aligned && g.group_channels % kVec == 0;
  bool const common =
      g.kernel_size == 3 && !g.remove_center && g.height > 1 && g.width > 1 &&
      is_aligned(inputs.offset, inputs.offset_strides, 2) &&
      is_narrow(inputs.value_strides, g.height, g.width, g.groups * g.group_channels) &&
      is_narrow(inputs.offset_strides, g.out_height, g.out_width, g.groups * g.num_points * 2) &&
      is_narrow(inputs.mask_strides, g.out_height, g.out_width, g.groups * g.num_points) &&
      is_narrow(inputs.center_scale_strides, g.out_height, g.out_width, g.groups) &&
      g.out_height * g.out_width * g.groups * g.group_channels < int64_t{1} << 30 &&
      g.out_height * g.out_width * g.groups * g.num_points * 2 < int64_t{1} << 30;
  if (vectors && common) {
    switch (g.group_channels) {
      case 8:
        return run(Config<scalar_t, uint32_t, kVec, 8 / kVec, 3>{});
      case 16:
        return run(Config<scalar_t, uint32_t, kVec, 16 / kVec, 3>{});
      case 32:
        return run(Config<scalar_t, uint32_t, kVec, 32 / kVec, 3>{});
      case 64:
        return run(Config<scalar_t, uint32_t, kVec, 64 / kVec, 3>{});
      default:
        break;
    }
  }
  if (vectors) {
    return run(Config<scalar_t, uint64_t, kVec, 0, 0>{});
  }
  run(Config<scalar_t, uint64_t, 1, 0, 0>{});
}

template <typename scalar_t>
inline void drop_unused_strides(Inputs<scalar_t>& inputs, Geometry const& g) {
  inputs.value_strides = effective_strides(inputs.value_strides, g.batch_size, g.height, g.width);
  for (Strides* strides :
      {&inputs.offset_strides, &inputs.mask_strides, &inputs.center_scale_strides}) {
    *strides = effective_strides(*strides, g.batch_size, g.out_height, g.out_width);
  }
}

// `launch(kernel, shape, params)` starts a kernel. `output` is contiguous and aligned to 16 bytes;
// nothing is empty.
template <typename scalar_t, typename Launcher>
inline void run_forward(Inputs<scalar_t> inputs, Geometry const& g, scalar_t* output,
    int num_multiprocessors, Launcher const& launch) {
  constexpr int kVec = 16 / sizeof(scalar_t);
  drop_unused_strides(inputs, g);
  bool const aligned = is_aligned(inputs.value, inputs.value_strides, kVec);
  dispatch<scalar_t, kVec>(inputs, g, aligned, [&](auto config) {
    using config_t = decltype(config);
    auto params = make_params<config_t>(inputs, g);
    params.output = output;
    LaunchShape const shape =
        plan<config_t>(params, g, num_multiprocessors, kMaxForwardThreads, kOwnedInForward);
    launch(&forward_kernel<config_t>, shape, params);
  });
}

// As `run_forward`. Here `value` is contiguous too, as are `grad_output` and the gradients;
// `grad_value` starts as zeros and takes the place of `gradients.value`.
template <typename scalar_t, typename Launcher>
inline void run_backward(scalar_t const* grad_output, Inputs<scalar_t> inputs, Geometry const& g,
    float* grad_value, Gradients<scalar_t> const& gradients, int num_multiprocessors,
    Launcher const& launch) {
  // Four channels for every element type: the sixteen bytes of one vector addition in float32.
  constexpr int kVec = 4;
  drop_unused_strides(inputs, g);
  bool const aligned =
      is_aligned(inputs.value, inputs.value_strides, kVec) && is_aligned(grad_output, {}, kVec);
  dispatch<scalar_t, kVec>(inputs, g, aligned, [&](auto config) {
    using config_t = decltype(config);
    auto params = make_params<config_t>(inputs, g);
    params.grad_output = grad_output;
    params.grad_value = grad_value;
    params.grad_offset = gradients.offset;
    params.grad_mask = gradients.mask;
    params.grad_center_scale = gradients.center_scale;
    LaunchShape const shape =
        plan<config_t>(params, g, num_multiprocessors, kMaxBackwardThreads, kOwnedInBackward);
    launch(&backward_kernel<config_t>, shape, params);
  });
}

}  // namespace dcnv3
