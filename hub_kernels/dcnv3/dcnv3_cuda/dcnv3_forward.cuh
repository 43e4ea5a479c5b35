// Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
//
// The forward pass on the GPU: phase 2, and the kernel.
#pragma once

#include "dcnv3_points.cuh"

namespace dcnv3 {

constexpr int kMaxForwardThreads = 256;

// How many blocks a multiprocessor should hold, for `__launch_bounds__`; 0 leaves it to the
// compiler, which mostly chooses well. Where it does not, it saves the last few registers by
// spilling: these numbers stop that (one register of float16 for compute capability 8 remains).
template <class Config>
constexpr int min_forward_blocks() {
  bool const half_on_ampere = kArchitecture >= 800 && kArchitecture < 900 &&
                              std::is_same_v<typename Config::scalar_t, __half>;
  return Config::kGeneral || kArchitecture < 800 ? 2 : half_on_ampere ? 3 : 0;
}

// What a lane needs of a patch's four pixels, as it lies in memory.
template <typename scalar_t, int kVec>
struct Patch {
  Vector<scalar_t, kVec> pixels[4];
};

// Offsets are multiplied by a size known at run time only: multiplication and addition are then one
// instruction. A constant would become a shift and a 64-bit addition, which are several.
template <int kVec, typename scalar_t, typename index_t>
__device__ inline Patch<scalar_t, kVec> load_patch(
    Corners<scalar_t const> const& corners, index_t offset, uint32_t value_bytes) {
  Patch<scalar_t, kVec> patch;
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    patch.pixels[corner] = load<kVec>(
        advance(corners.images[corner], static_cast<uint64_t>(offset) * value_bytes));
  }
  return patch;
}

template <int kVec, typename scalar_t>
__device__ inline void add_patch(float (&sum)[kVec], Patch<scalar_t, kVec> const& patch,
    float4 const& weights, uint32_t bfloat16_shift) {
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    float pixel[kVec];
    to_floats(pixel, patch.pixels[corner], bfloat16_shift);
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      sum[i] = fmaf(component(weights, corner), pixel[i], sum[i]);
    }
  }
}

// A lane owns `kVec` channels of one item (in turn several vectors, in the general kernel), a warp
// 32 / lanes items, a block a tile of pixels and groups.
template <class Config>
__global__ void __launch_bounds__(kMaxForwardThreads, min_forward_blocks<Config>())
    forward_kernel(typename Config::params_t const params) {
  using scalar_t = typename Config::scalar_t;
  using index_t = typename Config::index_t;
  constexpr int kVec = Config::kVec;
  extern __shared__ float4 dynamic_shared[];

  Item const item = locate_item<Config>(params);
  if (!__any_sync(kWholeWarp, item.valid)) {
    return;
  }
  int const num_points = Config::kGeneral ? params.num_points : Config::kPoints;
  int const group_channels = Config::kGeneral ? params.group_channels : kVec * Config::kLanes;
  bool const gated = params.center_scale.data != nullptr;
  float const gate = gated ? read_gate<Config>(params, item) : 0.0f;

  Slab<Config> const slab(dynamic_shared, params, item);
  {
    auto weight = slab.owned_array(0, item);
    auto x = slab.owned_array(1, item);
    auto y = slab.owned_array(2, item);
    prepare_points<Config>(params, item, 1.0f - gate, slab, weight, x, y);
  }
  if (!item.valid) {
    return;
  }

  scalar_t const* const image = params.value.image(item.n);
  index_t const group_start = static_cast<index_t>(item.group) * group_channels;
  int64_t const pixels = static_cast<int64_t>(params.out_height) * params.out_width;
  index_t const channels = static_cast<index_t>(params.groups) * group_channels;
  scalar_t* const output =
      params.output + item.n * pixels * channels +
      ((item.y * static_cast<index_t>(params.out_width) + item.x) * channels + group_start);

  for (int channel = item.lane * kVec; channel < group_channels; channel += item.lanes * kVec) {
    Corners<scalar_t const> const corners = corners_of<Config>(params, image + channel);
    float sum[kVec] = {};
    // The pixels of a point are loaded while those of the previous one are summed. The loop is not
    // unrolled: to save registers, the compiler would delay loads until they are needed.
    auto const patch_of = [&](int point) {
      return load_patch<kVec>(corners, slab.offsets[point], params.value_bytes);
    };
    auto const add = [&](Patch<scalar_t, kVec> const& patch, int point) {
      add_patch(sum, patch, slab.weights[point], params.bfloat16_shift);
    };
    Patch<scalar_t, kVec> even = patch_of(0), odd;
    int point = 0;
#pragma unroll 1
    for (; point + 2 < num_points; point += 2) {
      odd = patch_of(point + 1);
      add(even, point);
      even = patch_of(point + 2);
      add(odd, point + 1);
    }
    if (point + 1 < num_points) {
      odd = patch_of(point + 1);
    }
    add(even, point);
    if (point + 1 < num_points) {
      add(odd, point + 1);
    }
    if (gated) {
      index_t const here =
          item.y * params.value.row + item.x * params.value.column + group_start + channel;
      float pixel[kVec];
      load_as_float(pixel, image + here);
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        sum[i] = fmaf(gate, pixel[i], sum[i]);
      }
    }
    store_from_float(output + channel, sum);
    if constexpr (!Config::kGeneral) {
      break;
    }
  }
}

}  // namespace dcnv3
