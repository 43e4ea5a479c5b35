// Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
//
// Runs the inner loops of the CPU backend over random geometries, with exactly sized buffers and wild offsets, for the
// sanitizers to watch. Prints the number of runs.
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>
#include <type_traits>
#include <vector>

#include "../../dcnv3_cpu/dcnv3_cpu.h"

using namespace dcnv3;

namespace {

std::mt19937 engine(0);

int between(int low, int high) { return std::uniform_int_distribution<int>(low, high)(engine); }

template <typename scalar_t>
scalar_t number(double value) {
  if constexpr (sizeof(scalar_t) == 2) {
    float const single = static_cast<float>(value);
    uint32_t bits;
    __builtin_memcpy(&bits, &single, sizeof(bits));
    return {static_cast<uint16_t>(bits >> 16)};  // a valid number in both 16-bit formats, if not the same
  } else {
    return static_cast<scalar_t>(value);
  }
}

// malloc gives every tensor its own allocation: reading one element too far is an error.
template <typename scalar_t>
std::unique_ptr<scalar_t[]> random_tensor(int64_t size, bool wild) {
  std::unique_ptr<scalar_t[]> tensor(new scalar_t[size]);
  std::normal_distribution<double> normal(0.0, 2.0);
  double const extremes[] = {1e6, -1e6, 1e30, std::numeric_limits<double>::infinity(),
                             -std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()};
  for (int64_t i = 0; i < size; ++i) {
    tensor[i] = number<scalar_t>(wild && between(0, 19) == 0 ? extremes[between(0, 5)] : normal(engine));
  }
  return tensor;
}

template <typename scalar_t, typename Forward, typename Backward>
void run(Forward const& forward, Backward const& backward) {
  Geometry g;
  g.batch_size = between(1, 2);
  g.height = between(1, 9);
  g.width = between(1, 9);
  g.groups = between(1, 5);
  g.group_channels = between(0, 1) ? between(1, 40) : 16;
  g.kernel_size = between(1, 7);
  g.remove_center = g.kernel_size % 2 == 1 && g.kernel_size > 1 && between(0, 1);
  g.num_points = g.kernel_size * g.kernel_size - g.remove_center;
  constexpr int kMaxInt = std::numeric_limits<int>::max();  // of a side with its padding: see check_arguments
  g.dilation = g.kernel_size > 1 && between(0, 9) == 0 ? (kMaxInt - 10) / (g.kernel_size - 1) : between(1, 2);
  int const extent = g.dilation * (g.kernel_size - 1) + 1;
  g.padding = extent / 2;
  g.stride = extent % 2 == 1 && between(0, 1) ? 1 : between(0, 9) == 0 ? kMaxInt : between(1, 3);
  g.out_height = (g.height + 2 * g.padding - extent) / g.stride + 1;
  g.out_width = (g.width + 2 * g.padding - extent) / g.stride + 1;
  g.offset_scale = 1.5;
  g.softmax = between(0, 1);
  bool const gate = g.stride == 1 && g.out_height == g.height && g.out_width == g.width && between(0, 1);
  int64_t const channels = g.groups * g.group_channels;
  int64_t const pixels = g.batch_size * g.height * g.width, out_pixels = g.batch_size * g.out_height * g.out_width;
  int64_t const points = out_pixels * g.groups * g.num_points;

  auto const value = random_tensor<scalar_t>(pixels * channels, false);
  auto const offset = random_tensor<scalar_t>(points * 2, true);
  auto const mask = random_tensor<scalar_t>(points, true);
  auto const center_scale = random_tensor<scalar_t>(out_pixels * g.groups, true);
  auto const grad_output = random_tensor<scalar_t>(out_pixels * channels, false);
  std::unique_ptr<scalar_t[]> output(new scalar_t[out_pixels * channels]), grad_value(new scalar_t[pixels * channels]),
      grad_offset(new scalar_t[points * 2]), grad_mask(new scalar_t[points]),
      grad_center_scale(new scalar_t[out_pixels * g.groups]);
  auto const dense = [](int64_t height, int64_t width, int64_t last) {
    return Strides{height * width * last, width * last, last};
  };
  Inputs<scalar_t> const inputs = {
      value.get(), offset.get(), mask.get(), gate ? center_scale.get() : nullptr, dense(g.height, g.width, channels),
      dense(g.out_height, g.out_width, g.groups * g.num_points * 2),
      dense(g.out_height, g.out_width, g.groups * g.num_points), dense(g.out_height, g.out_width, g.groups)};
  Gradients<scalar_t> const gradients = {
      grad_value.get(), grad_offset.get(), grad_mask.get(), gate ? grad_center_scale.get() : nullptr};
  std::unique_ptr<typename ScratchType<scalar_t>::type[]> scratch(
      new typename ScratchType<scalar_t>::type[2 * g.height * g.width * g.group_channels]);
  forward(inputs, g, output.get(), scratch.get(), 0, g.batch_size * g.out_height);
  backward(inputs, g, grad_output.get(), gradients, scratch.get(), 0, g.batch_size * g.groups);
}

// Random fused operators. The memory of every tensor lives as long as this.
template <typename scalar_t>
class Fused {
 public:
  template <typename Function>
  void run_branch(Function const& function) {
    int64_t const pixels = between(1, 70), channels = between(1, 40), hidden = between(0, 1) * between(1, 90);
    Branch<scalar_t> b;
    b.hidden = {nullptr, nullptr, channels, 0};
    if (hidden > 0) {
      b.hidden = linear(channels, hidden);
    }
    b.output = linear(hidden > 0 ? hidden : channels, between(1, 40));
    if (between(0, 3) == 0) {  // products are done already
      b.hidden = {nullptr, tensor(channels), channels, hidden > 0 ? channels : 0};
      b.output = {nullptr, tensor(channels), channels, channels};
    }
    int64_t const out = b.output.out_features;
    b.norm_in = norm(channels);
    b.norm_out = norm(out);
    b.scale = between(0, 1) ? tensor(out) : nullptr;
    b.input = tensor(pixels * channels);
    b.residual = between(0, 1) ? tensor(pixels * out) : nullptr;
    b.result = tensor(pixels * out);
    call(function, b, pixels);
  }

  template <typename Function>
  void run_sampling(Function const& function) {
    Sampling<scalar_t> s = {};
    s.batch_size = between(1, 2);
    s.height = between(1, 7);
    s.width = between(1, 7);
    s.channels = between(1, 40);
    int64_t const pixels = s.batch_size * s.height * s.width;
    s.input = tensor(pixels * s.channels);
    s.kernel_size = 1;
    if (between(0, 1)) {
      s.kernel_size = 2 * between(0, 3) + 1;
      s.convolution_weight = tensor(s.channels * s.kernel_size * s.kernel_size);
      s.convolution_bias = between(0, 1) ? tensor(s.channels) : nullptr;
      s.norm = norm(s.channels);
    }
    s.num_heads = between(0, kMaxParameters);
    s.projection = linear(s.channels, s.channels);
    s.value = tensor(pixels * s.channels);
    for (int i = 0; i < s.num_heads; ++i) {
      s.heads[i] = linear(s.channels, between(1, 70));
      s.parameters[i] = tensor(pixels * s.heads[i].out_features);
    }
    call(function, s, pixels);
  }

  template <typename Function>
  void run_gelu(Function const& function) {
    int64_t const rows = between(1, 9), channels = between(1, 70), middle = between(0, static_cast<int>(rows));
    bool const has_gradient = between(0, 1);
    GeluRows<scalar_t> const g = {
        tensor(rows * channels), between(0, 1) ? tensor(channels) : nullptr,
        has_gradient ? tensor(rows * channels) : nullptr, tensor(rows * channels),
        has_gradient ? tensor(rows * channels) : nullptr, channels};
    function(g, 0, middle);
    function(g, middle, rows);
  }

  template <typename Function>
  void run_norm(Function const& function) {
    int64_t const rows = between(1, 9), channels = between(1, 70);
    NormRows<scalar_t> const n = {
        tensor(rows * channels), tensor(rows * channels), {tensor(channels), tensor(channels), 1e-6}, channels};
    function(n, 0, rows);
  }

 private:
  template <typename Function, typename Operator>
  void call(Function const& function, Operator const& op, int64_t pixels) {
    using T = scratch_of<scalar_t>;
    int64_t const run = 2 * kMaxLanes * between(1, 2);
    std::unique_ptr<T[]> scratch(new T[run * op.channels_per_pixel() + op.fixed_size()]);
    int64_t const middle = between(0, pixels / kMaxLanes) * kMaxLanes;  // as threads share the pixels
    function(op, scratch.get(), run, 0, middle);
    function(op, scratch.get(), run, middle, pixels);
  }

  scalar_t* tensor(int64_t size) {
    return tensors_.emplace_back(random_tensor<scalar_t>(size, true)).get();
  }
  Linear<scalar_t> linear(int64_t in, int64_t out) {
    return {tensor(out * in), between(0, 1) ? tensor(out) : nullptr, in, out};
  }
  Norm<scalar_t> norm(int64_t channels) {
    return between(0, 1) ? Norm<scalar_t>{tensor(channels), tensor(channels), 1e-6} : Norm<scalar_t>{};
  }

  std::vector<std::unique_ptr<scalar_t[]>> tensors_;
};

template <typename scalar_t>
int run_all() {
  int runs = 0;
  for (int i = 0; i < 60; ++i) {
    run<scalar_t>(portable::forward<scalar_t, int32_t>, portable::backward<scalar_t, int32_t>);
    run<scalar_t>(portable::forward<scalar_t, int64_t>, portable::backward<scalar_t, int64_t>);
    Fused<scalar_t>().run_branch(portable::branch<scalar_t>);
    Fused<scalar_t>().run_sampling(portable::sampling<scalar_t>);
    Fused<scalar_t>().run_gelu(portable::gelu_rows<scalar_t>);
    Fused<scalar_t>().run_norm(portable::norm_rows<scalar_t>);
    runs += 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
      run<scalar_t>(avx2::forward<scalar_t, int32_t>, avx2::backward<scalar_t, int32_t>);
      Fused<scalar_t>().run_branch(avx2::branch<scalar_t>);
      Fused<scalar_t>().run_sampling(avx2::sampling<scalar_t>);
      Fused<scalar_t>().run_gelu(avx2::gelu_rows<scalar_t>);
      Fused<scalar_t>().run_norm(avx2::norm_rows<scalar_t>);
      ++runs;
    }
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      run<scalar_t>(avx512::forward<scalar_t, int32_t>, avx512::backward<scalar_t, int32_t>);
      Fused<scalar_t>().run_branch(avx512::branch<scalar_t>);
      Fused<scalar_t>().run_sampling(avx512::sampling<scalar_t>);
      Fused<scalar_t>().run_gelu(avx512::gelu_rows<scalar_t>);
      Fused<scalar_t>().run_norm(avx512::norm_rows<scalar_t>);
      ++runs;
    }
    if constexpr (std::is_same_v<scalar_t, BFloat16>) {
      if (__builtin_cpu_supports("avx512bf16")) {
        Fused<scalar_t>().run_branch(avx512_bf16::branch<scalar_t>);
        Fused<scalar_t>().run_sampling(avx512_bf16::sampling<scalar_t>);
        Fused<scalar_t>().run_gelu(avx512_bf16::gelu_rows<scalar_t>);
        Fused<scalar_t>().run_norm(avx512_bf16::norm_rows<scalar_t>);
      }
    }
  }
  return runs;
}

}  // namespace

int main() {
  std::printf("%d runs\n", run_all<float>() + run_all<double>() + run_all<Half>() + run_all<BFloat16>());
}
