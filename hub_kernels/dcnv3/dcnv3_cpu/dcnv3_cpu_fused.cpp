// Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
//
// Host side of the fused operators: checks, threads.
#include <algorithm>
#include <array>
#include <initializer_list>
#include <optional>
#include <tuple>
#include <type_traits>

#include "../dcnv3_common/dcnv3_checks.h"
#include "../dcnv3_common/dcnv3_ops.h"
#include "dcnv3_cpu_dispatch.h"

namespace dcnv3 {
namespace {

// Reads the tensors of one call, all of the dtype of the first: checks them and keeps contiguous copies alive.
template <typename scalar_t>
class Reader {
 public:
  explicit Reader(Tensor const& hidden_states) : like_(hidden_states) {}

  scalar_t const* read(char const* name, Tensor const& tensor, std::initializer_list<int64_t> shape) {
    check_defined(name, tensor);
    STD_TORCH_CHECK(
        tensor.device() == like_.device() && tensor.scalar_type() == like_.scalar_type(), "`", name,
        "` and `hidden_states` must have the same dtype and be on the same device.");
    bool const same = tensor.dim() == static_cast<int64_t>(shape.size()) &&
        std::equal(shape.begin(), shape.end(), tensor.sizes().data());
    STD_TORCH_CHECK(
        same, "`", name, "` must have shape ", shape_string(shape.begin(), shape.size()), ", got ",
        shape_string(tensor.sizes().data(), tensor.dim()), ".");
    Tensor const& contiguous = tensors_[count_++].emplace(tensor.is_contiguous() ? tensor : make_contiguous(tensor));
    return static_cast<scalar_t const*>(contiguous.const_data_ptr());
  }

  // Null if the tensor is absent.
  scalar_t const* read(char const* name, std::optional<Tensor> const& tensor, std::initializer_list<int64_t> shape) {
    return tensor.has_value() ? read(name, *tensor, shape) : nullptr;
  }

  scalar_t const* read_pixels(char const* name, std::optional<Tensor> const& tensor, int64_t channels) {
    return read(name, tensor, {like_.size(0), like_.size(1), like_.size(2), channels});
  }

  Linear<scalar_t> linear(
      char const* weight_name, char const* bias_name, std::optional<Tensor> const& weight,
      std::optional<Tensor> const& bias, int64_t in_features) {
    if (!weight.has_value()) {
      return {nullptr, read(bias_name, bias, {in_features}), in_features, in_features};
    }
    STD_TORCH_CHECK(
        weight->dim() == 2, "`", weight_name, "` must have two dimensions, got ",
        shape_string(weight->sizes().data(), weight->dim()), ".");
    int64_t const out_features = weight->size(0);
    return {
        read(weight_name, *weight, {out_features, in_features}), read(bias_name, bias, {out_features}), in_features,
        out_features};
  }

  Norm<scalar_t> norm(
      char const* weight_name, char const* bias_name, std::optional<Tensor> const& weight,
      std::optional<Tensor> const& bias, double eps, int64_t channels) {
    STD_TORCH_CHECK(
        weight.has_value() == bias.has_value(), "`", weight_name, "` and `", bias_name,
        "` go together: give both or neither.");
    return {read(weight_name, weight, {channels}), read(bias_name, bias, {channels}), eps};
  }

 private:
  Tensor const& like_;
  std::array<std::optional<Tensor>, 16> tensors_;  // more than an operator has
  int64_t count_ = 0;
};

void check_dtype(Tensor const& hidden_states) {
  using torch::headeronly::ScalarType;
  check_defined("hidden_states", hidden_states);
  ScalarType const dtype = hidden_states.scalar_type();
  STD_TORCH_CHECK(
      dtype == ScalarType::Float || dtype == ScalarType::Half || dtype == ScalarType::BFloat16 ||
          dtype == ScalarType::Double,
      "`hidden_states` must have dtype float32, float64, float16 or bfloat16.");
}

// (batch_size, height, width, channels) of a dtype that the operators have.
void check_hidden_states(Tensor const& hidden_states) {
  check_dtype(hidden_states);
  STD_TORCH_CHECK(
      hidden_states.dim() == 4 && hidden_states.size(3) > 0,
      "`hidden_states` must have shape (batch_size, height, width, channels), got ",
      shape_string(hidden_states.sizes().data(), hidden_states.dim()), ".");
}

// Pixels (batch_size, height, width) of `tensor` with another number of channels.
Tensor make_pixels(Tensor const& tensor, int64_t channels) {
  return make_empty(tensor, std::array<int64_t, 4>{tensor.size(0), tensor.size(1), tensor.size(2), channels});
}

// Calls a fused operator in the inner loops for this processor.
#if defined(__x86_64__)
#define DCNV3_CPU_RUN(function, ...)                      \
  if constexpr (std::is_same_v<scalar_t, BFloat16>) {     \
    if (arch() == Arch::avx512_bf16) {                    \
      return avx512_bf16::function(__VA_ARGS__);          \
    }                                                     \
  }                                                       \
  return arch() >= Arch::avx512 ? avx512::function(__VA_ARGS__) \
      : arch() == Arch::avx2    ? avx2::function(__VA_ARGS__)   \
                                : portable::function(__VA_ARGS__)
#else
#define DCNV3_CPU_RUN(function, ...) return portable::function(__VA_ARGS__)
#endif

template <typename scalar_t>
void run(Branch<scalar_t> const& b, scratch_of<scalar_t>* scratch, int64_t run, int64_t begin, int64_t end) {
  DCNV3_CPU_RUN(branch, b, scratch, run, begin, end);
}

template <typename scalar_t>
void run(Sampling<scalar_t> const& s, scratch_of<scalar_t>* scratch, int64_t run, int64_t begin, int64_t end) {
  DCNV3_CPU_RUN(sampling, s, scratch, run, begin, end);
}

template <typename scalar_t>
void run(NormRows<scalar_t> const& n, int64_t begin, int64_t end) {
  DCNV3_CPU_RUN(norm_rows, n, begin, end);
}

template <typename scalar_t>
void run(GeluRows<scalar_t> const& g, int64_t begin, int64_t end) {
  DCNV3_CPU_RUN(gelu_rows, g, begin, end);
}

constexpr int64_t kScratchBytes = 768 << 10;  // of a thread: about the second-level cache
constexpr int64_t kMinRun = 32, kMaxRun = 128;  // pixels: with fewer, the weights would be read too often

constexpr int64_t kMinShare = 512;  // pixels: threads that have fewer take them at once
constexpr int64_t kMinNumbers = 1 << 14;  // of a thread, where they are taken one by one

int64_t lanes() {
  return arch() >= Arch::avx512 ? 16 : arch() == Arch::avx2 ? 8 : 4;
}

int64_t round_up(int64_t number, int64_t unit) {
  return (number + unit - 1) / unit * unit;
}

// Shares the pixels among threads.
template <typename scalar_t, typename Operator>
void run_all(Tensor const& hidden_states, Operator const& op) {
  using T = scratch_of<scalar_t>;
  int64_t const pixels = hidden_states.size(0) * hidden_states.size(1) * hidden_states.size(2);
  if (pixels == 0) {
    return;
  }
  int64_t const channels = op.channels_per_pixel(), threads = torch::stable::get_num_threads();
  int64_t const fitting = kScratchBytes / static_cast<int64_t>(sizeof(T)) / channels / kMinRun * kMinRun;
  int64_t const share = round_up((pixels + threads - 1) / threads, lanes());
  int64_t const size = std::min(std::clamp(fitting, kMinRun, kMaxRun), round_up(share, kMinRun));
  with_memory(hidden_states, [&] {
    share_out(pixels, share < kMinShare ? share : size, [&](auto const& take) {
      Scratch<T> const scratch(size * channels + op.fixed_size());
      for (Part part; take(part);) {
        run(op, scratch.data(), size, part.begin, part.end);
      }
    });
  });
}

int64_t grain_of_rows(int64_t channels) {
  return kMinNumbers / std::max<int64_t>(1, channels) + 1;
}

// LayerNorm over the channels of `hidden_states`.
template <typename scalar_t>
Tensor normalize(Tensor const& hidden_states, Norm<scalar_t> const& norm) {
  int64_t const channels = hidden_states.size(3);
  Tensor const input = hidden_states.is_contiguous() ? hidden_states : make_contiguous(hidden_states);
  Tensor const result = make_pixels(hidden_states, channels);
  NormRows<scalar_t> const n = {
      static_cast<scalar_t const*>(input.const_data_ptr()), static_cast<scalar_t*>(result.mutable_data_ptr()), norm,
      channels};
  int64_t const rows = hidden_states.size(0) * hidden_states.size(1) * hidden_states.size(2);
  torch::stable::parallel_for(
      0, rows, grain_of_rows(channels), [&](int64_t begin, int64_t end) { run(n, begin, end); });
  return result;
}

template <typename scalar_t>
Sampling<scalar_t> read_features(
    Reader<scalar_t>& reader, Tensor const& hidden_states, std::optional<Tensor> const& convolution_weight,
    std::optional<Tensor> const& convolution_bias, std::optional<Tensor> const& norm_weight,
    std::optional<Tensor> const& norm_bias, double norm_eps) {
  Sampling<scalar_t> s = {};
  s.batch_size = hidden_states.size(0);
  s.height = hidden_states.size(1);
  s.width = hidden_states.size(2);
  s.channels = hidden_states.size(3);
  s.input = reader.read_pixels("hidden_states", hidden_states, s.channels);
  s.kernel_size = 1;
  if (convolution_weight.has_value()) {
    s.kernel_size = convolution_weight->dim() == 4 ? convolution_weight->size(3) : 0;
    STD_TORCH_CHECK(
        s.kernel_size % 2 == 1,
        "`convolution_weight` must have shape (channels, 1, kernel_size, kernel_size) with an odd `kernel_size`, got ",
        shape_string(convolution_weight->sizes().data(), convolution_weight->dim()), ".");
  }
  s.convolution_weight =
      reader.read("convolution_weight", convolution_weight, {s.channels, 1, s.kernel_size, s.kernel_size});
  s.convolution_bias = reader.read("convolution_bias", convolution_bias, {s.channels});
  s.norm = reader.norm("norm_weight", "norm_bias", norm_weight, norm_bias, norm_eps, s.channels);
  STD_TORCH_CHECK(
      s.convolution_weight != nullptr || (s.convolution_bias == nullptr && s.norm.weight == nullptr),
      "`convolution_bias` and `norm_weight` need `convolution_weight`, which is None.");
  return s;
}

}  // namespace

Tensor branch_cpu(
    Tensor const& hidden_states, std::optional<Tensor> const& residual, std::optional<Tensor> const& norm_in_weight,
    std::optional<Tensor> const& norm_in_bias, double norm_in_eps, std::optional<Tensor> const& hidden_weight,
    std::optional<Tensor> const& hidden_bias, std::optional<Tensor> const& output_weight,
    std::optional<Tensor> const& output_bias, std::optional<Tensor> const& norm_out_weight,
    std::optional<Tensor> const& norm_out_bias, double norm_out_eps, std::optional<Tensor> const& scale) {
  check_hidden_states(hidden_states);
  Tensor result;
  dispatch(hidden_states.scalar_type(), [&]<typename scalar_t>(scalar_t*) {
    Reader<scalar_t> reader(hidden_states);
    int64_t const channels = hidden_states.size(3);
    Branch<scalar_t> b;
    b.hidden = {nullptr, nullptr, channels, 0};
    if (hidden_weight.has_value() || hidden_bias.has_value()) {
      b.hidden = reader.linear("hidden_weight", "hidden_bias", hidden_weight, hidden_bias, channels);
    }
    b.output = reader.linear(
        "output_weight", "output_bias", output_weight, output_bias,
        b.hidden.out_features == 0 ? channels : b.hidden.out_features);
    int64_t const out = b.output.out_features;
    b.norm_in = reader.norm("norm_in_weight", "norm_in_bias", norm_in_weight, norm_in_bias, norm_in_eps, channels);
    b.norm_out = reader.norm("norm_out_weight", "norm_out_bias", norm_out_weight, norm_out_bias, norm_out_eps, out);
    b.scale = reader.read("scale", scale, {out});
    b.input = reader.read_pixels("hidden_states", hidden_states, channels);
    b.residual = reader.read_pixels("residual", residual, out);
    result = make_pixels(hidden_states, out);
    b.result = static_cast<scalar_t*>(result.mutable_data_ptr());
    run_all<scalar_t>(hidden_states, b);
  });
  return result;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> sampling_cpu(
    Tensor const& hidden_states_, std::optional<Tensor> const& norm_in_weight,
    std::optional<Tensor> const& norm_in_bias, double norm_in_eps, std::optional<Tensor> const& convolution_weight,
    std::optional<Tensor> const& convolution_bias, std::optional<Tensor> const& norm_weight,
    std::optional<Tensor> const& norm_bias, double norm_eps, Tensor const& value_weight,
    std::optional<Tensor> const& value_bias, Tensor const& offset_weight, std::optional<Tensor> const& offset_bias,
    Tensor const& mask_weight, std::optional<Tensor> const& mask_bias,
    std::optional<Tensor> const& center_scale_weight, std::optional<Tensor> const& center_scale_bias) {
  check_hidden_states(hidden_states_);
  std::array<Tensor, 4> results;
  dispatch(hidden_states_.scalar_type(), [&]<typename scalar_t>(scalar_t*) {
    Reader<scalar_t> reader(hidden_states_);
    Norm<scalar_t> const norm_in = reader.norm(
        "norm_in_weight", "norm_in_bias", norm_in_weight, norm_in_bias, norm_in_eps, hidden_states_.size(3));
    Tensor const hidden_states = norm_in.weight == nullptr ? hidden_states_ : normalize(hidden_states_, norm_in);
    Sampling<scalar_t> s = read_features(
        reader, hidden_states, convolution_weight, convolution_bias, norm_weight, norm_bias, norm_eps);
    s.projection = reader.linear("value_weight", "value_bias", value_weight, value_bias, s.channels);
    s.heads[0] = reader.linear("offset_weight", "offset_bias", offset_weight, offset_bias, s.channels);
    s.heads[1] = reader.linear("mask_weight", "mask_bias", mask_weight, mask_bias, s.channels);
    s.num_heads = 2;
    if (center_scale_weight.has_value()) {
      s.heads[s.num_heads++] = reader.linear(
          "center_scale_weight", "center_scale_bias", center_scale_weight, center_scale_bias, s.channels);
    }
    results[0] = make_pixels(hidden_states, s.projection.out_features);
    s.value = static_cast<scalar_t*>(results[0].mutable_data_ptr());
    for (int i = 0; i < kMaxParameters; ++i) {
      results[i + 1] = make_pixels(hidden_states, s.heads[i].out_features);
      s.parameters[i] = static_cast<scalar_t*>(results[i + 1].mutable_data_ptr());
    }
    run_all<scalar_t>(hidden_states, s);
  });
  return {results[0], results[1], results[2], results[3]};
}

Tensor features_cpu(
    Tensor const& hidden_states, Tensor const& convolution_weight, std::optional<Tensor> const& convolution_bias,
    std::optional<Tensor> const& norm_weight, std::optional<Tensor> const& norm_bias, double norm_eps) {
  check_hidden_states(hidden_states);
  check_defined("convolution_weight", convolution_weight);
  Tensor features = make_pixels(hidden_states, hidden_states.size(3));
  dispatch(hidden_states.scalar_type(), [&]<typename scalar_t>(scalar_t*) {
    Reader<scalar_t> reader(hidden_states);
    Sampling<scalar_t> s = read_features(
        reader, hidden_states, std::optional<Tensor>(convolution_weight), convolution_bias, norm_weight, norm_bias,
        norm_eps);
    s.value = static_cast<scalar_t*>(features.mutable_data_ptr());
    run_all<scalar_t>(hidden_states, s);
  });
  return features;
}

std::tuple<Tensor, Tensor> gelu_cpu(
    Tensor const& hidden_states, std::optional<Tensor> const& bias, std::optional<Tensor> const& grad_output) {
  check_dtype(hidden_states);
  STD_TORCH_CHECK(
      hidden_states.dim() == 2, "`hidden_states` must have shape (rows, channels), got ",
      shape_string(hidden_states.sizes().data(), hidden_states.dim()), ".");
  int64_t const rows = hidden_states.size(0), channels = hidden_states.size(1);
  Tensor const result = make_empty(hidden_states, {rows, channels});
  Tensor const grad_input = make_empty(hidden_states, {grad_output.has_value() ? rows : 0, channels});
  dispatch(hidden_states.scalar_type(), [&]<typename scalar_t>(scalar_t*) {
    Reader<scalar_t> reader(hidden_states);
    GeluRows<scalar_t> const g = {
        reader.read("hidden_states", hidden_states, {rows, channels}),
        reader.read("bias", bias, {channels}),
        reader.read("grad_output", grad_output, {rows, channels}),
        static_cast<scalar_t*>(result.mutable_data_ptr()),
        static_cast<scalar_t*>(grad_input.mutable_data_ptr()),
        channels};
    torch::stable::parallel_for(
        0, rows, grain_of_rows(channels), [&](int64_t begin, int64_t end) { run(g, begin, end); });
  });
  return {result, grad_input};
}

}  // namespace dcnv3
