// Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
//
// Host side of the CPU backend: checks, threads.
#include <algorithm>
#include <array>

#include "../dcnv3_common/dcnv3_checks.h"
#include "../dcnv3_common/dcnv3_ops.h"
#include "dcnv3_cpu_dispatch.h"

namespace dcnv3 {
namespace {

constexpr int64_t kMaxCopied = int64_t{1} << 27;  // elements of an image's group that `forward` makes room for: 512 MiB

int64_t elements_of_group(Geometry const& g) {
  return g.height * g.width * g.group_channels;
}

template <typename scalar_t>
void forward_rows(
    Inputs<scalar_t> const& inputs, Geometry const& g, scalar_t* output, int64_t begin, int64_t end) {
  int64_t const size = elements_of_group(g);
  if (size > kMaxCopied) {
    return portable::forward<scalar_t, int64_t>(inputs, g, output, nullptr, begin, end);
  }
  Scratch<scratch_of<scalar_t>> const memory(size);
  auto* const scratch = memory.data();
  switch (arch()) {
#if defined(__x86_64__)
    case Arch::avx512_bf16:
    case Arch::avx512:
      return avx512::forward<scalar_t, int32_t>(inputs, g, output, scratch, begin, end);
    case Arch::avx2:
      return avx2::forward<scalar_t, int32_t>(inputs, g, output, scratch, begin, end);
#endif
    default:
      return portable::forward<scalar_t, int32_t>(inputs, g, output, scratch, begin, end);
  }
}

template <typename scalar_t>
void backward_groups(
    Inputs<scalar_t> const& inputs, Geometry const& g, scalar_t const* grad_output,
    Gradients<scalar_t> const& gradients, int64_t begin, int64_t end) {
  Scratch<scratch_of<scalar_t>> const memory(2 * elements_of_group(g));
  auto* const scratch = memory.data();
  if (elements_of_group(g) >= kMaxInt) {
    return portable::backward<scalar_t, int64_t>(inputs, g, grad_output, gradients, scratch, begin, end);
  }
  switch (arch()) {
#if defined(__x86_64__)
    case Arch::avx512_bf16:
    case Arch::avx512:
      return avx512::backward<scalar_t, int32_t>(inputs, g, grad_output, gradients, scratch, begin, end);
    case Arch::avx2:
      return avx2::backward<scalar_t, int32_t>(inputs, g, grad_output, gradients, scratch, begin, end);
#endif
    default:
      return portable::backward<scalar_t, int32_t>(inputs, g, grad_output, gradients, scratch, begin, end);
  }
}

std::optional<Tensor> with_contiguous_channels(std::optional<Tensor> const& tensor) {
  return tensor.has_value() ? std::optional<Tensor>(dcnv3::with_contiguous_channels(*tensor)) : std::nullopt;
}

}  // namespace

Tensor forward_cpu(
    Tensor const& value_, Tensor const& offset_, Tensor const& mask_, std::optional<Tensor> const& center_scale_,
    int64_t kernel_size, int64_t stride, int64_t padding, int64_t dilation, int64_t num_groups, double offset_scale,
    bool remove_center, bool softmax) {
  Geometry const g = check_arguments(
      value_, offset_, mask_, center_scale_, kernel_size, stride, padding, dilation, num_groups, offset_scale,
      remove_center, softmax);
  std::array<int64_t, 4> const shape = {g.batch_size, g.out_height, g.out_width, value_.size(3)};
  if (is_empty(g)) {
    return make_zeros(value_, shape);
  }
  Tensor output = make_empty(value_, shape);
  Tensor const value = dcnv3::with_contiguous_channels(value_);
  Tensor const offset = dcnv3::with_contiguous_channels(offset_), mask = dcnv3::with_contiguous_channels(mask_);
  std::optional<Tensor> const center_scale = with_contiguous_channels(center_scale_);
  dispatch(value.scalar_type(), [&]<typename scalar_t>(scalar_t*) {
    auto const inputs = make_inputs<scalar_t>(value, offset, mask, center_scale);
    scalar_t* const out = static_cast<scalar_t*>(output.mutable_data_ptr());
    // A thread is worth starting for some 4,000 sums of neighbours.
    int64_t const grain = std::max<int64_t>(1, 4096 / (g.out_width * g.groups * g.num_points));
    with_memory(value, [&] {
      torch::stable::parallel_for(0, g.batch_size * g.out_height, grain, [&](int64_t begin, int64_t end) {
        forward_rows(inputs, g, out, begin, end);
      });
    });
  });
  return output;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward_cpu(
    Tensor const& grad_output_, Tensor const& value_, Tensor const& offset_, Tensor const& mask_,
    std::optional<Tensor> const& center_scale_, int64_t kernel_size, int64_t stride, int64_t padding,
    int64_t dilation, int64_t num_groups, double offset_scale, bool remove_center, bool softmax) {
  Geometry const g = check_arguments(
      value_, offset_, mask_, center_scale_, kernel_size, stride, padding, dilation, num_groups, offset_scale,
      remove_center, softmax);
  check_companion("grad_output", grad_output_, value_, g, value_.size(3));
  Tensor grad_value = make_gradient(value_, g), grad_offset = make_gradient(offset_, g);
  Tensor grad_mask = make_gradient(mask_, g);
  Tensor grad_center_scale =
      center_scale_.has_value() ? make_gradient(*center_scale_, g) : make_empty(value_, {0});
  if (is_empty(g)) {
    return {grad_value, grad_offset, grad_mask, grad_center_scale};
  }
  Tensor const grad_output = make_contiguous(grad_output_);
  Tensor const value = dcnv3::with_contiguous_channels(value_);
  Tensor const offset = dcnv3::with_contiguous_channels(offset_), mask = dcnv3::with_contiguous_channels(mask_);
  std::optional<Tensor> const center_scale = with_contiguous_channels(center_scale_);
  dispatch(value.scalar_type(), [&]<typename scalar_t>(scalar_t*) {
    auto const inputs = make_inputs<scalar_t>(value, offset, mask, center_scale);
    auto const pointer = [](Tensor const& tensor) { return static_cast<scalar_t*>(tensor.mutable_data_ptr()); };
    Gradients<scalar_t> const gradients = {
        pointer(grad_value), pointer(grad_offset), pointer(grad_mask),
        center_scale.has_value() ? pointer(grad_center_scale) : nullptr};
    auto const* const grad = static_cast<scalar_t const*>(grad_output.const_data_ptr());
    with_memory(value, [&] {
      torch::stable::parallel_for(0, g.batch_size * g.groups, 1, [&](int64_t begin, int64_t end) {
        backward_groups(inputs, g, grad, gradients, begin, end);
      });
    });
  });
  return {grad_value, grad_offset, grad_mask, grad_center_scale};
}

}  // namespace dcnv3
