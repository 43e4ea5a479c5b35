// Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
//
// The backward pass on the GPU: phase 2, and the kernel.
#pragma once

#include "dcnv3_points.cuh"

namespace dcnv3 {

// The backward pass needs more registers: smaller blocks fill a multiprocessor better.
constexpr int kMaxBackwardThreads = 128;

// As `min_forward_blocks`.
template <class Config>
constexpr int min_backward_blocks() {
  bool const narrow = sizeof(typename Config::scalar_t) == 2;
  if (narrow && (Config::kLanes == 4 || Config::kLanes == 8)) {
    return kArchitecture >= 900 && kArchitecture < 1000 ? 6 : 5;
  }
  return Config::kGeneral ? 4 : 0;
}

// Sums each of `dots` over the lanes of an item, so that lane l has the sums for point l % kCount
// in dots[0]: halving what is left to sum takes fewer exchanges than to sum everything in every
// lane.
template <class Config, int kCount>
__device__ inline void sum_dots(float (&dots)[kCount][4], Item const& item) {
  int const lanes = Config::kGeneral ? item.lanes : Config::kLanes;
#pragma unroll
  for (int half = kCount / 2; half > 0; half /= 2) {
    bool const upper = item.lane & half;
#pragma unroll
    for (int r = 0; r < half; ++r) {
#pragma unroll
      for (int corner = 0; corner < 4; ++corner) {
        float const send = upper ? dots[r][corner] : dots[r + half][corner];
        float const keep = upper ? dots[r + half][corner] : dots[r][corner];
        dots[r][corner] = keep + __shfl_xor_sync(kWholeWarp, send, half);
      }
    }
  }
#pragma unroll
  for (int distance = kCount; distance < lanes; distance *= 2) {
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      dots[0][corner] += __shfl_xor_sync(kWholeWarp, dots[0][corner], distance);
    }
  }
}

// The step between the channels that a lane adds to the gradient of `value`. Where one instruction
// adds four numbers, a lane adds the channels that it reads. Elsewhere it adds every kLanes-th
// channel, so that the lanes of a warp add to neighbouring addresses.
template <class Config>
constexpr int kAddStep = Config::kGeneral || kArchitecture >= 900 ? 1 : Config::kLanes;

// Everything about one item that the backward pass needs at every point.
template <class Config>
struct BackwardItem {
  using scalar_t = typename Config::scalar_t;

  Item const& item;
  Slab<Config> const& slab;
  Corners<scalar_t const> values;  // from the lane's first channel on
  Corners<float> grad_values;      // from the first on that it adds to
  scalar_t const* grad_output;  // of this item
  scalar_t* grad_offset;
  float ungated;  // 1 - gate
};

// Points first, ..., first + kCount - 1 of an item: adds to the gradient of `value`, and stores
// that of `offset`. The lane which owns a point keeps the derivative by its weight in
// `weight_grad`.
template <class Config, int kCount>
__device__ inline void backward_points(typename Config::params_t const& params,
    BackwardItem<Config> const& to, int first, float const (&grad_output)[Config::kVec],
    [[maybe_unused]] float const (&addend)[Config::kVec], Owned<Config::kPointsPerLane>& weight,
    Owned<Config::kPointsPerLane>& weight_grad, Owned<Config::kPointsPerLane>& x,
    Owned<Config::kPointsPerLane>& y) {
  using index_t = typename Config::index_t;
  constexpr int kVec = Config::kVec;
  Item const& item = to.item;
  int const group_channels = Config::kGeneral ? params.group_channels : kVec * Config::kLanes;

  float dots[kCount][4] = {};  // of the four pixels with the gradient of the output
  if (item.valid) {
#pragma unroll
    for (int r = 0; r < kCount; ++r) {
      float4 const weights = to.slab.weights[first + r];
      index_t const offset = to.slab.offsets[first + r];
      index_t const bytes = offset * static_cast<index_t>(sizeof(typename Config::scalar_t));
      index_t const grad_bytes = offset * static_cast<index_t>(sizeof(float));
      for (int channel = item.lane * kVec; channel < group_channels; channel += item.lanes * kVec) {
        int const further = channel - item.lane * kVec;  // from the lane's first channel on
        float grad[kVec];
        if constexpr (Config::kGeneral) {
          load_as_float(grad, to.grad_output + channel);
        } else {
#pragma unroll
          for (int i = 0; i < kVec; ++i) {
            grad[i] = grad_output[i];
          }
        }
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
          float pixel[kVec];
          to_floats(pixel, load<kVec>(advance(to.values.images[corner], bytes) + further),
              params.bfloat16_shift);
#pragma unroll
          for (int i = 0; i < kVec; ++i) {
            dots[r][corner] = fmaf(grad[i], pixel[i], dots[r][corner]);
          }
          float* const grad_start = advance(to.grad_values.images[corner], grad_bytes) + further;
          if constexpr (kAddStep<Config> == 1) {
            add_to_memory<1>(grad_start, component(weights, corner), grad);
          } else {
            add_to_memory<kAddStep<Config>>(grad_start, component(weights, corner), addend);
          }
        }
        if constexpr (!Config::kGeneral) {
          break;
        }
      }
    }
  }
  sum_dots<Config, kCount>(dots, item);

  // From here on one point per lane: first + lane % kCount, if this lane owns it.
  int const point = first + item.lane % kCount;
  if (point % item.lanes == item.lane) {
    int const k = first / item.lanes;
    Pair const horizontal = neighbor_weights<Config>(x[k], params.width);
    Pair const vertical = neighbor_weights<Config>(y[k], params.height);
    Pair const slope_x = neighbor_slopes<Config>(x[k], params.width);
    Pair const slope_y = neighbor_slopes<Config>(y[k], params.height);
    float const above = horizontal.first * dots[0][0] + horizontal.second * dots[0][1];
    float const below = horizontal.first * dots[0][2] + horizontal.second * dots[0][3];
    float const slope_above = slope_x.first * dots[0][0] + slope_x.second * dots[0][1];
    float const slope_below = slope_x.first * dots[0][2] + slope_x.second * dots[0][3];
    weight_grad[k] = vertical.first * above + vertical.second * below;
    float const scale = to.ungated * params.offset_scale * weight[k];
    float const grad[2] = {scale * (vertical.first * slope_above + vertical.second * slope_below),
        scale * (slope_y.first * above + slope_y.second * below)};
    if (item.valid) {
      store_from_float(to.grad_offset + 2 * point, grad);
    }
  }
}

// Owners as in the forward pass. A lane adds what its channels contribute to the gradient of
// `value` (other items do the same: the order of the additions, hence the rounding, changes from
// run to run). The gradients of `offset`, `mask` and `center_scale` belong to one item each; they
// are summed over its lanes in a fixed order, and are deterministic.
template <class Config>
__global__ void __launch_bounds__(kMaxBackwardThreads, min_backward_blocks<Config>())
    backward_kernel(typename Config::params_t const params) {
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
  int64_t const pixels = static_cast<int64_t>(params.out_height) * params.out_width;
  index_t const channels = static_cast<index_t>(params.groups) * group_channels;
  index_t const group_start = static_cast<index_t>(item.group) * group_channels;
  index_t const pixel_index = item.y * static_cast<index_t>(params.out_width) + item.x;
  index_t const item_index = pixel_index * params.groups + item.group;
  int64_t const first_item = item.n * pixels * params.groups;
  bool const gated = params.center_scale.data != nullptr;
  float const gate = gated ? read_gate<Config>(params, item) : 0.0f;

  Slab<Config> const slab(dynamic_shared, params, item);
  auto weight = slab.owned_array(0, item);
  auto x = slab.owned_array(1, item);
  auto y = slab.owned_array(2, item);
  auto weight_grad = slab.owned_array(3, item);
  prepare_points<Config>(params, item, 1.0f - gate, slab, weight, x, y);

  scalar_t const* const image = params.value.image(item.n);
  float* const grad_image = params.grad_value + item.n * params.value.batch;
  BackwardItem<Config> const to = {
      item,
      slab,
      corners_of<Config>(params, image + item.lane * kVec),
      corners_of<Config>(params, grad_image + item.lane * (kAddStep<Config> == 1 ? kVec : 1)),
      params.grad_output + item.n * pixels * channels + (pixel_index * channels + group_start),
      params.grad_offset + first_item * (2 * num_points) + item_index * (2 * num_points),
      1.0f - gate,
  };
  float grad_output[kVec], addend[kVec];
  if constexpr (Config::kGeneral) {
    for (int point = 0; point < num_points; ++point) {
      backward_points<Config, 1>(
          params, to, point, grad_output, addend, weight, weight_grad, x, y);
    }
  } else {
    load_as_float(grad_output, to.grad_output + item.lane * kVec);
    if constexpr (kAddStep<Config> != 1) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        addend[i] = to_float(load<1>(to.grad_output + item.lane + i * Config::kLanes).elements[0]);
      }
    }
    // Two points at a time share their sums over lanes. More would take registers that keep other
    // warps from running.
    static_assert(Config::kLanes % 2 == 0);
    constexpr int kCount = 2;
    constexpr int kRest = Config::kPoints / kCount * kCount;
#pragma unroll
    for (int point = 0; point < kRest; point += kCount) {
      backward_points<Config, kCount>(
          params, to, point, grad_output, addend, weight, weight_grad, x, y);
    }
#pragma unroll
    for (int point = kRest; point < Config::kPoints; ++point) {
      backward_points<Config, 1>(
          params, to, point, grad_output, addend, weight, weight_grad, x, y);
    }
  }

  // The derivative by a factor on all weights, which both the softmax and the gate need.
  float product = 0.0f;
  if (params.softmax || gated) {
    for_each_owned_point<Config>(
        item, num_points, [&](int k, int) { product += weight[k] * weight_grad[k]; });
    product = sum_over_item<Config>(product, item);
  }
  if (item.valid) {
    scalar_t* const grad_mask =
        params.grad_mask + first_item * num_points + item_index * num_points;
    for_each_owned_point<Config>(item, num_points, [&](int k, int point) {
      float const grad = params.softmax ? weight[k] * (weight_grad[k] - product) : weight_grad[k];
      grad_mask[point] = from_float<scalar_t>(to.ungated * grad);
    });
  }

  if (gated) {
    float dot = 0.0f;
    if (item.valid) {
      for (int channel = item.lane * kVec; channel < group_channels; channel += item.lanes * kVec) {
        // `value` has the shape of the output.
        index_t const here = pixel_index * channels + group_start + channel;
        float grad[kVec], pixel[kVec];
        load_as_float(grad, to.grad_output + channel);
        load_as_float(pixel, image + here);
#pragma unroll
        for (int i = 0; i < kVec; ++i) {
          dot = fmaf(grad[i], pixel[i], dot);
        }
        add_to_memory<1>(grad_image + here, gate, grad);
      }
    }
    dot = sum_over_item<Config>(dot, item);
    if (item.valid && item.lane == 0) {
      params.grad_center_scale[first_item + item_index] =
          from_float<scalar_t>(gate * to.ungated * (dot - product));
    }
  }
}

}  // namespace dcnv3
