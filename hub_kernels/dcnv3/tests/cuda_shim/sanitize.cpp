// Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
//
// Runs the CUDA kernels over awkward shapes and offsets, for the sanitizers to look at: every
// tensor has exactly its size.

#include "shim_ops.cpp"

#include <random>

namespace {

struct Shape {
  int64_t batch_size, height, width, groups, group_channels, kernel_size, stride, padding, dilation;
  bool remove_center;
};

// Numbers that are mostly ordinary, and sometimes what must not lead a kernel astray.
template <typename scalar_t>
std::vector<scalar_t> numbers(int64_t count, bool awkward, std::mt19937& generator) {
  constexpr float kAwkward[] = {
      NAN, INFINITY, -INFINITY, 1e6f, -1e6f, 1e30f, -1e30f, 2147483648.0f, 1.0f, -1.0f};
  std::normal_distribution<float> normal(0.0f, 2.0f);
  std::vector<scalar_t> result;
  for (int64_t i = 0; i < count; ++i) {
    float const x =
        awkward && generator() % 4 == 0 ? kAwkward[generator() % 10] : normal(generator);
    result.push_back(dcnv3::from_float<scalar_t>(x));
  }
  result.shrink_to_fit();
  return result;
}

template <typename scalar_t>
void run(
    Shape const& s, bool gated, bool softmax, int num_multiprocessors, std::mt19937& generator) {
  int64_t const extent = s.dilation * (s.kernel_size - 1) + 1;
  int64_t const out_height = (s.height + 2 * s.padding - extent) / s.stride + 1;
  int64_t const out_width = (s.width + 2 * s.padding - extent) / s.stride + 1;
  gated = gated && out_height == s.height && out_width == s.width;
  int64_t const points = s.kernel_size * s.kernel_size - s.remove_center;
  int64_t const channels = s.groups * s.group_channels;
  int64_t const pixels = s.batch_size * out_height * out_width;
  int64_t const sizes[4] = {channels, s.groups * points * 2, s.groups * points, s.groups};

  auto const value =
      numbers<scalar_t>(s.batch_size * s.height * s.width * channels, false, generator);
  auto const offset = numbers<scalar_t>(pixels * sizes[1], true, generator);
  auto const mask = numbers<scalar_t>(pixels * sizes[2], true, generator);
  auto const center_scale = numbers<scalar_t>(pixels * sizes[3], true, generator);
  auto const grad_output = numbers<scalar_t>(pixels * channels, false, generator);
  std::vector<scalar_t> output(pixels * channels);
  std::vector<float> grad_value(value.size());
  std::vector<scalar_t> grad_offset(offset.size()), grad_mask(mask.size()),
      grad_center_scale(center_scale.size());

  auto const strides = [](int64_t height, int64_t width, int64_t size) {
    return Strides{height * width * size, width * size, size};
  };
  Inputs<scalar_t> const inputs = {value.data(), offset.data(), mask.data(),
      gated ? center_scale.data() : nullptr, strides(s.height, s.width, sizes[0]),
      strides(out_height, out_width, sizes[1]), strides(out_height, out_width, sizes[2]),
      strides(out_height, out_width, sizes[3])};
  int64_t const geometry_numbers[14] = {s.batch_size, s.height, s.width, out_height, out_width,
      s.groups, s.group_channels, s.kernel_size, points, s.stride, s.padding, s.dilation,
      s.remove_center, softmax};
  Geometry const geometry = make_geometry(geometry_numbers, 1.5);
  dcnv3::run_forward<scalar_t>(
      inputs, geometry, output.data(), num_multiprocessors, dcnv3::ShimLauncher{});
  dcnv3::run_backward<scalar_t>(grad_output.data(), inputs, geometry, grad_value.data(),
      Gradients<scalar_t>{nullptr, grad_offset.data(), grad_mask.data(),
          gated ? grad_center_scale.data() : nullptr},
      num_multiprocessors, dcnv3::ShimLauncher{});
}

// The fused operators, with every kernel that is compiled.
template <typename scalar_t>
void run_fused(int64_t height, int64_t width, int64_t channels, int64_t kernel_size,
    std::mt19937& generator) {
  auto const vector = [&] {
    return numbers<scalar_t>(channels, true, generator);
  };
  int64_t const pixels = 2 * height * width;
  auto const input = numbers<scalar_t>(pixels * channels, true, generator);
  auto const branch = numbers<scalar_t>(pixels * channels, true, generator);
  auto const weight = numbers<scalar_t>(kernel_size * kernel_size * channels, true, generator);
  auto const bias = vector(), norm_weight = vector(), norm_bias = vector(), scale = vector();
  std::vector<scalar_t> output(pixels * channels);

  dcnv3::DepthwiseParams<scalar_t> depthwise = {};
  depthwise.input = input.data();
  depthwise.weight = weight.data();
  depthwise.bias = bias.data();
  depthwise.norm = {norm_weight.data(), norm_bias.data(), 1e-6f};
  depthwise.output = output.data();
  depthwise.strides = {height * width * channels, width * channels, channels};
  depthwise.weight_row = kernel_size * channels;
  depthwise.weight_column = channels;
  depthwise.batch_size = 2;
  depthwise.height = static_cast<int>(height);
  depthwise.width = static_cast<int>(width);
  depthwise.channels = static_cast<int>(channels);
  depthwise.kernel_size = static_cast<int>(kernel_size);
  dcnv3::run_depthwise_norm_gelu(depthwise, dcnv3::ShimLauncher{});

  dcnv3::ResidualParams<scalar_t> residual = {};
  residual.residual = input.data();
  residual.branch = branch.data();
  residual.bias = bias.data();
  residual.norm = depthwise.norm;
  residual.scale = scale.data();
  residual.output = output.data();
  residual.channels = depthwise.channels;
  residual.num_groups = static_cast<uint32_t>(pixels);
  dcnv3::run_norm_residual(residual, dcnv3::ShimLauncher{});
}

}  // namespace

int main() {
  Shape const shapes[] = {
      {1, 1, 1, 1, 1, 1, 1, 0, 1, false},
      {2, 1, 7, 3, 5, 3, 1, 1, 1, false},
      {1, 9, 1, 2, 16, 3, 1, 1, 1, false},
      {2, 5, 6, 7, 8, 3, 1, 1, 1, false},
      {1, 6, 5, 5, 16, 3, 2, 1, 1, false},
      {1, 4, 5, 3, 32, 3, 1, 2, 2, false},
      {1, 3, 4, 2, 64, 3, 1, 1, 1, false},
      {1, 7, 7, 2, 8, 7, 1, 3, 1, false},
      {1, 5, 5, 1, 24, 5, 1, 2, 1, true},
      {1, 5, 4, 2, 3, 3, 1, 1, 1, true},
      {1, 2, 3, 1, 131, 3, 1, 1, 1, false},
      // The largest numbers that `check_arguments` lets through.
      {1, 5, 6, 2, 16, 3, 1, (1 << 30) - 8, (1 << 30) - 8, false},
      {1, 5, 6, 2, 3, 7, 2, (1 << 30) - 8, ((1 << 30) - 8) / 3, false},
      {1, 5, 6, 2, 16, 3, 2147483647, 1, 1, false},
  };
  std::mt19937 generator(0);
  for (int64_t channels : {1, 5, 64, 136, 264, 520, 1032, 4096}) {
    for (int64_t kernel_size : {1, 3, 7}) {
      int64_t const side = channels < 1000 ? 5 : 2;
      run_fused<float>(side, side, channels, kernel_size, generator);
      run_fused<__half>(1, side, channels, kernel_size, generator);
      run_fused<__nv_bfloat16>(side, 1, channels, kernel_size, generator);
    }
  }
  for (Shape const& shape : shapes) {
    for (int num_multiprocessors : {1, 100}) {
      bool const some = generator() % 2;
      run<float>(shape, true, some, num_multiprocessors, generator);
      run<__half>(shape, some, !some, num_multiprocessors, generator);
      run<__nv_bfloat16>(shape, !some, true, num_multiprocessors, generator);
    }
  }
}
