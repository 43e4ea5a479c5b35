// Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
//
// What the host side of the CPU backend and its inner loops share: the loops, once per instruction set.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../dcnv3_common/dcnv3_params.h"

namespace dcnv3 {

// Storage of the 16-bit types; arithmetic is in float.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};
// Two neighbouring BFloat16: what AVX512-BF16 multiplies by two others at a time.
using Pair = uint32_t;

// What sums are taken in.
template <typename scalar_t>
struct ScratchType {
  using type = float;
};
template <>
struct ScratchType<double> {
  using type = double;
};
template <typename scalar_t>
using scratch_of = typename ScratchType<scalar_t>::type;

// --- Parts of an InternImage layer in inference ------------------------------------------------------------------------

// out_features x in_features weights; `bias` may be null. Without weights, the product is done already.
template <typename scalar_t>
struct Linear {
  scalar_t const* weight;
  scalar_t const* bias;
  int64_t in_features, out_features;
};

// LayerNorm over channels; there is none if `weight` is null.
template <typename scalar_t>
struct Norm {
  scalar_t const* weight;
  scalar_t const* bias;
  double eps;
};

// result = residual + scale * norm_out(output(GELU(hidden(norm_in(input))))) for every pixel. Residual, scale and norms
// may be null pointers; without `hidden`, which has 0 features then, there is no GELU.
template <typename scalar_t>
struct Branch {
  scalar_t const* input;
  scalar_t const* residual;
  scalar_t const* scale;
  scalar_t* result;
  Norm<scalar_t> norm_in, norm_out;
  Linear<scalar_t> hidden, output;

  int64_t in_features() const {
    return hidden.out_features == 0 ? output.in_features : hidden.in_features;
  }
  int64_t channels_per_pixel() const {
    return in_features() + hidden.out_features + output.out_features;
  }
  int64_t fixed_size() const {
    return 0;
  }
};

// result = LayerNorm(input) for rows of `channels` numbers.
template <typename scalar_t>
struct NormRows {
  scalar_t const* input;
  scalar_t* result;
  Norm<scalar_t> norm;
  int64_t channels;
};

constexpr int kMaxLanes = 16;      // the widest vector
constexpr int kMaxParameters = 3;  // offsets, masks, gates

// value = projection(input) and parameters[i] = heads[i](features) for every pixel, where the features are
// GELU(norm(convolution(input))), with a depthwise convolution of an odd kernel. Convolution and norm (which goes with
// GELU) may be null pointers. Without heads, `value` becomes the features.
template <typename scalar_t>
struct Sampling {
  scalar_t const* input;
  scalar_t* value;
  scalar_t* parameters[kMaxParameters];
  int64_t batch_size, height, width, channels;
  scalar_t const* convolution_weight;  // channels x kernel_size^2
  scalar_t const* convolution_bias;    // may be null
  int64_t kernel_size;
  Norm<scalar_t> norm;
  Linear<scalar_t> projection;
  Linear<scalar_t> heads[kMaxParameters];
  int num_heads;

  int64_t widest() const {
    int64_t widest = projection.out_features;
    for (int i = 0; i < num_heads; ++i) {
      widest = std::max(widest, heads[i].out_features);
    }
    return widest;
  }
  int64_t channels_per_pixel() const {
    return channels + widest();
  }
  int64_t fixed_size() const {  // the convolution's weights and bias, and some of its results
    return (kernel_size * kernel_size + 1 + kMaxLanes) * channels;
  }
};

// --- In training --------------------------------------------------------------------------------------------------------

// result = GELU(input + bias) for rows of `channels` numbers, and grad_input = grad_output * GELU'(input + bias) unless
// `grad_output` is null. `bias` may be null.
template <typename scalar_t>
struct GeluRows {
  scalar_t const* input;
  scalar_t const* bias;
  scalar_t const* grad_output;
  scalar_t* result;
  scalar_t* grad_input;
  int64_t channels;
};

// `forward` computes output rows [begin, end) of batch_size * out_height, `backward` the gradients of groups
// [begin, end) of batch_size * groups. `grad_output` is contiguous; `scratch` has height * width * group_channels
// elements for `forward`, twice as many for `backward`. index_t counts the elements of one group of an image: int32_t,
// or int64_t for large images, for which only the portable loops are compiled; `forward` needs no `scratch` then.
// `branch` and `sampling` compute pixels [begin, end), `run` of them at a time, a multiple of 2 * kMaxLanes; their
// `scratch` has run * channels_per_pixel() + fixed_size() elements.
// `norm_rows` and `gelu_rows` compute rows [begin, end).
#define DCNV3_CPU_DECLARE(arch)                                                                               \
  namespace arch {                                                                                            \
  template <typename scalar_t, typename index_t>                                                              \
  void forward(                                                                                               \
      Inputs<scalar_t> const& inputs, Geometry const& g, scalar_t* output, scratch_of<scalar_t>* scratch,     \
      int64_t begin, int64_t end);                                                                            \
  template <typename scalar_t, typename index_t>                                                              \
  void backward(                                                                                              \
      Inputs<scalar_t> const& inputs, Geometry const& g, scalar_t const* grad_output,                         \
      Gradients<scalar_t> const& gradients, scratch_of<scalar_t>* scratch, int64_t begin,     \
      int64_t end);                                                                                           \
  template <typename scalar_t>                                                                                \
  void branch(                                                                                                \
      Branch<scalar_t> const& branch, scratch_of<scalar_t>* scratch, int64_t run, int64_t begin, int64_t end); \
  template <typename scalar_t>                                                                                \
  void sampling(                                                                                              \
      Sampling<scalar_t> const& sampling, scratch_of<scalar_t>* scratch, int64_t run, int64_t begin,          \
      int64_t end);                                                                                           \
  template <typename scalar_t>                                                                                \
  void norm_rows(NormRows<scalar_t> const& rows, int64_t begin, int64_t end);                                 \
  template <typename scalar_t>                                                                                \
  void gelu_rows(GeluRows<scalar_t> const& rows, int64_t begin, int64_t end);                                 \
  }
DCNV3_CPU_DECLARE(portable)
DCNV3_CPU_DECLARE(avx2)
DCNV3_CPU_DECLARE(avx512)
DCNV3_CPU_DECLARE(avx512_bf16)  // fused operators in bfloat16
#undef DCNV3_CPU_DECLARE

}  // namespace dcnv3
