// Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
//
// DCNv3 on the GPU: what both passes share. Device code includes no Torch header: the same source
// is also compiled as ordinary C++ and run on the CPU by tests/cuda_shim.
//
// An *item* is one group of one output pixel. It has up to 49 points to sample and 1 to 256
// channels to produce. A fixed power of two of neighbouring lanes of a warp owns an item, in two
// phases:
//   1. points:   lane l prepares points l, l + lanes, ...: softmax, position, and the four weights
//                and the address of the 2x2 patch of pixels around it. They are computed here only,
//                and left in shared memory.
//   2. channels: lane l owns a vector of channels, reads what phase 1 left, and visits the patches
//                of all points.
// Warps are independent of each other: a warp has its own piece of shared memory, and nothing waits
// for a block.
//
// A block owns a small rectangle of output pixels for a few neighbouring groups, so that the pixels
// which its items share are still in the L1 cache; within it groups come first, so that a warp
// reads runs of `offset` and `mask` and its gathers spread over the sectors of a cache line.
#pragma once

#include <cmath>

#include "../dcnv3_common/dcnv3_params.h"
#include "dcnv3_memory.cuh"

namespace dcnv3 {

constexpr int kWarpSize = 32;
constexpr unsigned kWholeWarp = 0xffffffffu;

// ---- Parameters ----

// Division by a number known when the kernel is launched. Exact for dividends below 2^31.
struct Divisor {
  uint32_t divisor = 1, multiplier = 1, shift = 0;

  Divisor() = default;

  explicit Divisor(uint32_t by) : divisor(by), shift(0) {
    while (shift < 31 && (uint32_t{1} << shift) < by) {
      ++shift;
    }
    multiplier = static_cast<uint32_t>((((uint64_t{1} << shift) - by) << 32) / by + 1);
  }

  __device__ uint32_t quotient(uint32_t dividend) const {
    return (__umulhi(dividend, multiplier) + dividend) >> shift;
  }
};

// A tensor whose channels are contiguous. Positions within one image are counted with `index_t`.
template <typename scalar_t, typename index_t>
struct View {
  scalar_t const* data;
  int64_t batch;
  index_t row, column;

  __device__ scalar_t const* image(int64_t n) const {
    return data + n * batch;
  }
};

template <typename scalar_t, typename index_t>
struct Params {
  View<scalar_t, index_t> value, offset, mask, center_scale;  // center_scale.data may be null
  scalar_t* output;                                           // forward

  scalar_t const* grad_output;  // backward; contiguous, as are `value` and the gradients
  float* grad_value;  // in float32 for every element type: rounding 36 additions each would show
  scalar_t *grad_offset, *grad_mask, *grad_center_scale;

  int height, width, out_height, out_width;
  int groups, group_channels;
  int kernel_size, num_points;
  int stride;
  int origin;                   // position of the kernel's centre for output pixel 0
  float grid_start, grid_step;  // from there to the first row of points, and from row to row
  float offset_scale;
  bool remove_center, softmax;
  uint32_t bfloat16_shift;  // 2^16, see `to_floats`
  uint32_t value_bytes;     // per element, see `load_patch`

  // What a block owns: tile_height x tile_width output pixels, for tile_groups groups.
  int tile_groups, tile_width, tile_height;
  int items_per_block;
  int lanes_log2;  // lanes per item
  int pitch;       // points per item in shared memory: odd, so that items use different banks
  Divisor by_blocks_per_image, by_blocks_per_tile_row, by_blocks_per_tile, by_tile_groups,
      by_tile_width;
};

// What is known when the kernel is compiled. Zeros are known when it is launched: the general
// kernel.
template <typename scalar_type, typename index_type, int kVectorSize, int kLanesPerItem,
    int kKernelWidth>
struct Config {
  using scalar_t = scalar_type;
  using index_t = index_type;
  using params_t = Params<scalar_t, index_t>;

  static constexpr int kVec = kVectorSize;
  static constexpr int kLanes = kLanesPerItem;
  static constexpr int kKernelSize = kKernelWidth;
  static constexpr int kPoints = kKernelSize * kKernelSize;
  static constexpr int kPointsPerLane = kPoints > 0 ? (kPoints + kLanes - 1) / kLanes : 0;
  static constexpr bool kGeneral = kPoints == 0;
};

// ---- Who owns what ----

// The place of this thread's item, and of this thread in it.
struct Item {
  bool valid;     // the last tiles reach beyond the image and the last group
  int64_t n;      // image: the same for the whole block
  uint32_t y, x;  // output pixel
  uint32_t group;
  int lane, lanes;
  int in_block;
};

template <class Config>
__device__ inline Item locate_item(typename Config::params_t const& params) {
  int const lanes_log2 = params.lanes_log2;
  Item item;
  item.lanes = Config::kLanes > 0 ? Config::kLanes : 1 << lanes_log2;
  item.lane = static_cast<int>(threadIdx.x) & (item.lanes - 1);

  uint32_t rest = blockIdx.x;
  uint32_t const n = params.by_blocks_per_image.quotient(rest);
  rest -= n * params.by_blocks_per_image.divisor;
  uint32_t const tile_y = params.by_blocks_per_tile_row.quotient(rest);
  rest -= tile_y * params.by_blocks_per_tile_row.divisor;
  uint32_t const tile_x = params.by_blocks_per_tile.quotient(rest);
  uint32_t const tile_group = rest - tile_x * params.by_blocks_per_tile.divisor;

  uint32_t const in_block = Config::kLanes > 0 ? threadIdx.x / static_cast<uint32_t>(Config::kLanes)
                                               : threadIdx.x >> lanes_log2;
  item.in_block = static_cast<int>(in_block);
  uint32_t const pixel = params.by_tile_groups.quotient(in_block);
  uint32_t const group = in_block - pixel * params.by_tile_groups.divisor;
  uint32_t const y = params.by_tile_width.quotient(pixel);
  uint32_t const x = pixel - y * params.by_tile_width.divisor;

  item.n = n;
  item.y = tile_y * params.tile_height + y;
  item.x = tile_x * params.tile_width + x;
  item.group = tile_group * params.tile_groups + group;
  item.valid = y < static_cast<uint32_t>(params.tile_height) &&
               item.y < static_cast<uint32_t>(params.out_height) &&
               item.x < static_cast<uint32_t>(params.out_width) &&
               item.group < static_cast<uint32_t>(params.groups);
  if (!item.valid) {
    item.y = item.x = item.group = 0;  // takes part in the warp's work, on addresses that exist
  }
  return item;
}

// One number for each point that this lane owns: in registers where their count is known, else in
// shared memory.
template <int kCount>
struct Owned {
  float values[kCount];

  __device__ Owned(float*, int) {
  }

  __device__ float& operator[](int k) {
    return values[k];
  }
};

template <>
struct Owned<0> {
  float* values;
  int lanes;

  __device__ Owned(float* values, int lanes) : values(values), lanes(lanes) {
  }

  __device__ float& operator[](int k) {
    return values[k * lanes];
  }
};

// Calls function(k, point) for each point that this lane owns; k counts them.
template <class Config, typename Function>
__device__ inline void for_each_owned_point(Item const& item, int num_points, Function function) {
  if constexpr (Config::kGeneral) {
    for (int k = 0, point = item.lane; point < num_points; ++k, point += item.lanes) {
      function(k, point);
    }
  } else {
#pragma unroll
    for (int k = 0; k < Config::kPointsPerLane; ++k) {
      int const point = item.lane + k * Config::kLanes;
      if ((k + 1) * Config::kLanes <= Config::kPoints || point < Config::kPoints) {
        function(k, point);
      }
    }
  }
}

// The numbers of arrays of `Owned` which the general kernels keep in shared memory.
constexpr int kOwnedInForward = 3;
constexpr int kOwnedInBackward = 4;

// An item's part of shared memory: for each of its points, the patch.
template <class Config>
struct Slab {
  using index_t = typename Config::index_t;

  float4* weights;   // of the four pixels: above left and right, below left and right
  index_t* offsets;  // of the first of them and the item's group, in elements of the image
  float* owned;      // what this lane owns of the first array of `Owned`
  int size;          // of each array, over all items of the block

  __device__ Slab(float4* shared, typename Config::params_t const& params, Item const& item) {
    int const pitch = Config::kGeneral ? params.pitch : Config::kPoints | 1;
    int const start = item.in_block * pitch;
    size = params.items_per_block * pitch;
    weights = shared + start;
    index_t* const all_offsets = reinterpret_cast<index_t*>(shared + size);
    offsets = all_offsets + start;
    owned = reinterpret_cast<float*>(all_offsets + size) + start + item.lane;
  }

  __device__ Owned<Config::kPointsPerLane> owned_array(int number, Item const& item) const {
    return Owned<Config::kPointsPerLane>(owned + number * size, item.lanes);
  }
};

template <class Config>
__device__ inline float sum_over_item(float x, Item const& item) {
  int const lanes = Config::kGeneral ? item.lanes : Config::kLanes;
#pragma unroll
  for (int distance = 1; distance < lanes; distance *= 2) {
    x += __shfl_xor_sync(kWholeWarp, x, distance);
  }
  return x;
}

template <class Config>
__device__ inline float max_over_item(float x, Item const& item) {
  int const lanes = Config::kGeneral ? item.lanes : Config::kLanes;
#pragma unroll
  for (int distance = 1; distance < lanes; distance *= 2) {
    x = fmaxf(x, __shfl_xor_sync(kWholeWarp, x, distance));
  }
  return x;
}

template <class Config>
__device__ inline float read_gate(typename Config::params_t const& params, Item const& item) {
  auto const& logits = params.center_scale;
  auto const position = item.y * logits.row + item.x * logits.column + item.group;
  return sigmoid(to_float(load<1>(logits.image(item.n) + position).elements[0]));
}

// ---- Phase 1: points ----

// Linear interpolation between pixels -1, 0, ..., size, where -1 and size are zeros, written as
// weights of two pixels inside the image, `first` and `first` + 1 (of one if the image has only
// one). At the border the weights change, not the addresses.
__device__ inline int first_neighbor(float position, int size) {
  // Converts NaN to 0 and saturates: every position leads into the image.
  return max(min(__float2int_rd(position), size - 2), 0);
}

// Weight of a pixel whose distance to the position is given. NaN stays NaN.
__device__ inline float hat(float distance) {
  float const weight = 1.0f - fabsf(distance);
  return weight <= 0.0f ? 0.0f : weight;
}

// Its derivative: from the right at integers, except that of pixel 0 at -1, as `clamp` and
// `grid_sample` have it.
__device__ inline float hat_slope(float t) {
  return t >= -1.0f && t < 1.0f ? (t < 0.0f ? 1.0f : -1.0f) : 0.0f;
}

struct Pair {
  float first, second;
};

// Images of one row or one column are left to the general kernels.
template <class Config>
__device__ inline bool has_neighbors(int size) {
  return !Config::kGeneral || size > 1;
}

// `t` is the position relative to the first neighbour.
template <class Config>
__device__ inline Pair neighbor_weights(float t, int size) {
  return {hat(t), has_neighbors<Config>(size) ? hat(t - 1.0f) : 0.0f};
}

template <class Config>
__device__ inline Pair neighbor_slopes(float t, int size) {
  return {hat_slope(t), has_neighbors<Config>(size) ? hat_slope(t - 1.0f) : 0.0f};
}

// Fills the slab. Leaves in `weight` the weights of this lane's points before interpolation, in `x`
// and `y` their positions relative to the patch. `scale` multiplies what goes to the slab.
template <class Config>
__device__ inline void prepare_points(typename Config::params_t const& params, Item const& item,
    float scale, Slab<Config> const& slab, Owned<Config::kPointsPerLane>& weight,
    Owned<Config::kPointsPerLane>& x, Owned<Config::kPointsPerLane>& y) {
  using scalar_t = typename Config::scalar_t;
  using index_t = typename Config::index_t;
  int const num_points = Config::kGeneral ? params.num_points : Config::kPoints;
  int const kernel_size = Config::kGeneral ? params.kernel_size : Config::kKernelSize;
  int const group_channels =
      Config::kGeneral ? params.group_channels : Config::kVec * Config::kLanes;

  scalar_t const* const offset =
      params.offset.image(item.n) +
      (item.y * params.offset.row + item.x * params.offset.column +
          static_cast<index_t>(item.group) * (2 * num_points) + 2 * item.lane);
  scalar_t const* const mask =
      params.mask.image(item.n) + (item.y * params.mask.row + item.x * params.mask.column +
                                      static_cast<index_t>(item.group) * num_points + item.lane);
  for_each_owned_point<Config>(item, num_points, [&](int k, int) {
    weight[k] = to_float(load<1>(mask + k * item.lanes).elements[0]);
    scalar_t const* const pair_address = offset + k * (2 * item.lanes);
    if constexpr (Config::kGeneral) {  // a pair may start at any address
      x[k] = to_float(load<1>(pair_address).elements[0]);
      y[k] = to_float(load<1>(pair_address + 1).elements[0]);
    } else {
      Vector<scalar_t, 2> const pair = load<2>(pair_address);
      x[k] = to_float(pair.elements[0]);
      y[k] = to_float(pair.elements[1]);
    }
  });

  if (params.softmax) {
    float largest = -INFINITY;
    for_each_owned_point<Config>(
        item, num_points, [&](int k, int) { largest = fmaxf(largest, weight[k]); });
    largest = max_over_item<Config>(largest, item);
    float total = 0.0f;
    for_each_owned_point<Config>(item, num_points, [&](int k, int) {
      weight[k] = exp2_approximate((weight[k] - largest) * kLog2E);
      total += weight[k];
    });
    float const inverse = __fdividef(1.0f, sum_over_item<Config>(total, item));
    for_each_owned_point<Config>(item, num_points, [&](int k, int) { weight[k] *= inverse; });
  }

  float const origin_x =
      static_cast<float>(static_cast<int>(item.x) * params.stride + params.origin) +
      params.grid_start;
  float const origin_y =
      static_cast<float>(static_cast<int>(item.y) * params.stride + params.origin) +
      params.grid_start;
  index_t const group_start = static_cast<index_t>(item.group) * group_channels;
  for_each_owned_point<Config>(item, num_points, [&](int k, int point) {
    int const cell =
        Config::kGeneral && params.remove_center && point >= num_points / 2 ? point + 1 : point;
    int const column = cell / kernel_size;
    int const row = cell - column * kernel_size;
    float const grid_x = fmaf(static_cast<float>(column), params.grid_step, origin_x);
    float const grid_y = fmaf(static_cast<float>(row), params.grid_step, origin_y);
    float const position_x = fmaf(x[k], params.offset_scale, grid_x);
    float const position_y = fmaf(y[k], params.offset_scale, grid_y);
    int const left = first_neighbor(position_x, params.width);
    int const top = first_neighbor(position_y, params.height);
    x[k] = position_x - static_cast<float>(left);
    y[k] = position_y - static_cast<float>(top);
    Pair const horizontal = neighbor_weights<Config>(x[k], params.width);
    Pair const vertical = neighbor_weights<Config>(y[k], params.height);
    float const scaled = weight[k] * scale;
    float const above = vertical.first * scaled;
    float const below = vertical.second * scaled;
    slab.weights[point] = make_float4(above * horizontal.first, above * horizontal.second,
        below * horizontal.first, below * horizontal.second);
    slab.offsets[point] = top * params.value.row + left * params.value.column + group_start;
  });
  __syncwarp();
}

// Where an image, or a lane's channels of it, start for each of the four pixels of a patch.
template <typename scalar_t>
struct Corners {
  scalar_t* images[4];
};

template <class Config, typename scalar_t>
__device__ inline Corners<scalar_t> corners_of(
    typename Config::params_t const& params, scalar_t* image) {
  typename Config::index_t const right =
      has_neighbors<Config>(params.width) ? params.value.column : 0;
  typename Config::index_t const below =
      has_neighbors<Config>(params.height) ? params.value.row : 0;
  return {{image, image + right, image + below, image + below + right}};
}

__device__ inline float component(float4 const& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

}  // namespace dcnv3
