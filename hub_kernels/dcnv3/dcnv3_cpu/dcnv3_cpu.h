// Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
//
// What the host side of the CPU backend and its inner loops share: the loops, once per instruction set.
#pragma once

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

// What gradients of `value` are summed in.
template <typename scalar_t>
struct ScratchType {
  using type = float;
};
template <>
struct ScratchType<double> {
  using type = double;
};

// `forward` computes output rows [begin, end) of batch_size * out_height, `backward` the gradients of groups
// [begin, end) of batch_size * groups. `grad_output` is contiguous; `scratch` has 2 * height * width * group_channels
// elements. index_t counts the elements of one image of `value`: int32_t where they fit, else int64_t, which only the
// portable loops are compiled for.
#define DCNV3_CPU_DECLARE(arch)                                                                               \
  namespace arch {                                                                                            \
  template <typename scalar_t, typename index_t>                                                              \
  void forward(                                                                                               \
      Inputs<scalar_t> const& inputs, Geometry const& g, scalar_t* output, int64_t begin, int64_t end);       \
  template <typename scalar_t, typename index_t>                                                              \
  void backward(                                                                                              \
      Inputs<scalar_t> const& inputs, Geometry const& g, scalar_t const* grad_output,                         \
      Gradients<scalar_t> const& gradients, typename ScratchType<scalar_t>::type* scratch, int64_t begin,     \
      int64_t end);                                                                                           \
  }
DCNV3_CPU_DECLARE(portable)
DCNV3_CPU_DECLARE(avx2)
DCNV3_CPU_DECLARE(avx512)
#undef DCNV3_CPU_DECLARE

}  // namespace dcnv3
