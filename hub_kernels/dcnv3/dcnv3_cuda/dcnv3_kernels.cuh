// Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
//
// DCNv3 on the GPU: the two kernels, and the plain C++ that decides how to launch them. No Torch
// header: the same source is also compiled as ordinary C++ and run on the CPU by tests/cuda_shim.
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

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../dcnv3_common/dcnv3_params.h"

namespace dcnv3 {

constexpr int kWarpSize = 32;
constexpr unsigned kWholeWarp = 0xffffffffu;
constexpr int kMaxForwardThreads = 256;
// The backward pass needs more registers: smaller blocks fill a multiprocessor better.
constexpr int kMaxBackwardThreads = 128;
constexpr int kMaxSharedBytes = 48 * 1024;  // what every architecture grants without asking

#if defined(__CUDA_ARCH__)
constexpr int kArchitecture = __CUDA_ARCH__;
#elif defined(DCNV3_SHIM_ARCHITECTURE)  // on the CPU, to run what is chosen for one
constexpr int kArchitecture = DCNV3_SHIM_ARCHITECTURE;
#else
constexpr int kArchitecture = 0;
#endif

// ---- Numbers ----

__device__ inline float to_float(float x) {
  return x;
}

__device__ inline float to_float(__half x) {
  return __half2float(x);
}

__device__ inline float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}

template <typename scalar_t>
__device__ inline scalar_t from_float(float x);

template <>
__device__ inline float from_float<float>(float x) {
  return x;
}

template <>
__device__ inline __half from_float<__half>(float x) {
  return __float2half_rn(x);
}

template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// exp2(x), 0 where that is denormal: one instruction, for which CUDA has no function without
// compiler flags.
__device__ inline float exp2_approximate(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}

constexpr float kLog2E = 1.4426950408889634f;

__device__ inline float sigmoid(float x) {
  return __fdividef(1.0f, 1.0f + exp2_approximate(-kLog2E * x));
}

// ---- Memory ----

template <typename scalar_t, int kVec>
struct alignas(kVec * sizeof(scalar_t)) Vector {
  scalar_t elements[kVec];
};

template <int kBytes>
struct Word;
template <>
struct Word<2> {
  using type = unsigned short;
};
template <>
struct Word<4> {
  using type = unsigned int;
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<16> {
  using type = uint4;
};

// One load of `kVec` elements through the read-only path: the compiler may then move it ahead of
// any store.
template <int kVec, typename scalar_t>
__device__ inline Vector<scalar_t, kVec> load(scalar_t const* address) {
  using word_t = typename Word<kVec * sizeof(scalar_t)>::type;
  word_t const word = __ldg(reinterpret_cast<word_t const*>(address));
  Vector<scalar_t, kVec> vector;
  memcpy(&vector, &word, sizeof(word));
  return vector;
}

// One store. An assignment of structures the compiler may turn into one for every member.
template <typename word_t>
__device__ inline void store_word(word_t* address, word_t word) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(word_t) == 16) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(word.x),
        "r"(word.y), "r"(word.z), "r"(word.w)
        : "memory");
    return;
  }
  if constexpr (sizeof(word_t) == 8) {
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(address), "r"(word.x), "r"(word.y)
                 : "memory");
    return;
  }
#endif
  *address = word;
}

// `shift` is 2^16.
template <int kVec, typename scalar_t>
__device__ inline void to_floats(
    float (&to)[kVec], Vector<scalar_t, kVec> const& vector, [[maybe_unused]] uint32_t shift) {
  if constexpr (std::is_same_v<scalar_t, __nv_bfloat16> && kVec % 2 == 0) {
    // A bfloat16 is the upper half of a float. Taken from words of two, each costs one instruction;
    // alone, two. One of them multiplies by a number that the compiler does not know: it would make
    // a shift of it, for which the other one's unit is needed.
    uint32_t words[kVec / 2];
    memcpy(words, &vector, sizeof(words));
#pragma unroll
    for (int i = 0; i < kVec; i += 2) {
      to[i] = __uint_as_float(words[i / 2] * shift);
      to[i + 1] = __uint_as_float(words[i / 2] & 0xffff0000u);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      to[i] = to_float(vector.elements[i]);
    }
  }
}

template <int kVec, typename scalar_t>
__device__ inline void load_as_float(float (&to)[kVec], scalar_t const* address) {
  to_floats(to, load<kVec>(address), 1u << 16);
}

template <int kVec, typename scalar_t>
__device__ inline void store_from_float(scalar_t* address, float const (&from)[kVec]) {
  Vector<scalar_t, kVec> vector;
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    vector.elements[i] = from_float<scalar_t>(from[i]);
  }
  using word_t = typename Word<kVec * sizeof(scalar_t)>::type;
  word_t word;
  memcpy(&word, &vector, sizeof(word));
  store_word(reinterpret_cast<word_t*>(address), word);
}

// The address `bytes` after `start`.
template <typename scalar_t, typename index_t>
__device__ inline scalar_t* advance(scalar_t* start, index_t bytes) {
  using byte_t = std::conditional_t<std::is_const_v<scalar_t>, char const, char>;
  return reinterpret_cast<scalar_t*>(reinterpret_cast<byte_t*>(start) + bytes);
}

// Adds value i, times `scale`, to memory that other threads add to as well, at address + i * kStep.
// Nothing to do if `scale` is zero, as it often is at the border and at integer positions.
template <int kStep, int kVec>
__device__ inline void add_to_memory(float* address, float scale, float const (&values)[kVec]) {
  if (scale != 0.0f) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if constexpr (kVec == 4 && kStep == 1) {
      asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(address),
          "f"(scale * values[0]), "f"(scale * values[1]), "f"(scale * values[2]),
          "f"(scale * values[3]));
    } else
#endif
    {
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        atomicAdd(address + i * kStep, scale * values[i]);
      }
    }
  }
}

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

// How many blocks a multiprocessor should hold, for `__launch_bounds__`; 0 leaves it to the
// compiler, which mostly chooses well. Where it does not, it saves the last few registers by
// spilling: these numbers stop that (one register of float16 for compute capability 8 remains).
template <class Config>
constexpr int min_forward_blocks() {
  bool const half_on_ampere = kArchitecture >= 800 && kArchitecture < 900 &&
                              std::is_same_v<typename Config::scalar_t, __half>;
  return Config::kGeneral || kArchitecture < 800 ? 2 : half_on_ampere ? 3 : 0;
}

template <class Config>
constexpr int min_backward_blocks() {
  bool const narrow = sizeof(typename Config::scalar_t) == 2;
  if (narrow && (Config::kLanes == 4 || Config::kLanes == 8)) {
    return kArchitecture >= 900 && kArchitecture < 1000 ? 6 : 5;
  }
  return Config::kGeneral ? 4 : 0;
}

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

// ---- Phase 1: points ----

// Linear interpolation between pixels -1, 0, ..., size (-1 and size are zeros) as weights of two
// neighbours that exist, `first` and `first` + 1; of one if there is but one. That moves weights at
// the border instead of addresses.
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

// ---- Forward ----

// What a lane needs of a patch's four pixels, as it lies in memory.
template <typename scalar_t, int kVec>
struct Patch {
  Vector<scalar_t, kVec> pixels[4];
};

// Offsets are multiplied by a size that the compiler does not know: that and the addition are one
// instruction then, where a shift and an addition of 64 bits are several.
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
  float gate = 0.0f;
  if (gated) {
    gate = sigmoid(to_float(load<1>(
        params.center_scale.image(item.n) +
        (item.y * params.center_scale.row + item.x * params.center_scale.column + item.group))
            .elements[0]));
  }

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
    // A point's pixels are loaded while the one before is summed. Not unrolled: the compiler would
    // put loads off until they are needed, to save registers.
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

// ---- Backward ----

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
// adds four numbers, they are those that it reads; else every kLanes-th, so that an instruction of
// the warp adds to neighbours.
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
  float gate = 0.0f;
  if (gated) {
    gate = sigmoid(to_float(load<1>(
        params.center_scale.image(item.n) +
        (item.y * params.center_scale.row + item.x * params.center_scale.column + item.group))
            .elements[0]));
  }

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
  for_each_owned_point<Config>(
      item, num_points, [&](int k, int) { product += weight[k] * weight_grad[k]; });
  product = sum_over_item<Config>(product, item);
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

// ---- Launching (host) ----

struct LaunchShape {
  int64_t blocks;
  int threads, shared_bytes;
};

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// How many groups a block takes: about 256 bytes of channels, which also makes the pieces of
// `offset` and `mask` that it reads long enough; the nearest number that leaves the fewest idle in
// the last block.
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
  int64_t best_cost = INT64_MAX;
  for (int64_t height = 1; height <= capacity && height <= g.out_height; ++height) {
    int64_t const widest = capacity / height < g.out_width ? capacity / height : g.out_width;
    int64_t const width = ceil_div(g.out_width, ceil_div(g.out_width, widest));
    int64_t const tiles = ceil_div(g.out_height, height) * ceil_div(g.out_width, width);
    // Threads, and pixels that a block reads: its own and about three beyond.
    int64_t const cost = tiles * (4 * capacity + (height * g.stride + 3) * (width * g.stride + 3));
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
