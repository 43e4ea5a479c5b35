// Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
//
// Which inner loops run: the choice of instruction set and dtype.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>

#include "dcnv3_cpu.h"

namespace dcnv3 {

enum class Arch { portable, avx2, avx512, avx512_bf16 };  // the last one is avx512 with products of bfloat16

// The widest instruction set of this processor, or a narrower one named by DCNV3_CPU_ARCH (for tests).
inline Arch detect_arch() {
#if defined(__x86_64__)
  Arch best = Arch::portable;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    best = Arch::avx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      best = __builtin_cpu_supports("avx512bf16") ? Arch::avx512_bf16 : Arch::avx512;
    }
  }
  char const* const wanted = std::getenv("DCNV3_CPU_ARCH");
  if (wanted != nullptr) {
    Arch const limit = std::strcmp(wanted, "portable") == 0 ? Arch::portable
        : std::strcmp(wanted, "avx2") == 0                  ? Arch::avx2
        : std::strcmp(wanted, "avx512") == 0                ? Arch::avx512
                                                            : best;
    best = std::min(best, limit);
  }
  return best;
#else
  return Arch::portable;
#endif
}

inline Arch arch() {
  static Arch const detected = detect_arch();
  return detected;
}

// Calls `body` with a null pointer of the storage type of a dtype.
template <typename Body>
void dispatch(torch::headeronly::ScalarType dtype, Body const& body) {
  using torch::headeronly::ScalarType;
  switch (dtype) {
    case ScalarType::Float:
      return body(static_cast<float*>(nullptr));
    case ScalarType::Double:
      return body(static_cast<double*>(nullptr));
    case ScalarType::Half:
      return body(static_cast<Half*>(nullptr));
    default:  // `check_arguments` lets no other dtype through
      return body(static_cast<BFloat16*>(nullptr));
  }
}

struct Part {
  int64_t begin, end;
};

// Shares [0, size) among all threads. `work(take)` runs on each, and `take(part)` gives it one part after the other, of
// `unit` or a multiple of it, until there is none. Parts become smaller: threads finish together, also where one of them is
// slower than another.
template <typename Work>
void share_out(int64_t size, int64_t unit, Work const& work) {
  int64_t const units = (size + unit - 1) / unit, threads = torch::stable::get_num_threads();
  std::atomic<int64_t> next{0};
  auto const take = [&](Part& part) {
    int64_t first = next.load(), count = 0;
    do {
      if (first >= units) {
        return false;
      }
      count = std::max<int64_t>(1, (units - first) / (2 * threads));
    } while (!next.compare_exchange_weak(first, first + count));
    part = {first * unit, std::min((first + count) * unit, size)};
    return true;
  };
  torch::stable::parallel_for(0, std::min(units, threads), 1, [&](int64_t, int64_t) { work(take); });
}

// Memory of one thread that begins at a cache line, so that no vector spans two.
template <typename T>
class Scratch {
 public:
  explicit Scratch(int64_t size) : memory_(static_cast<T*>(::operator new(size * sizeof(T), kLine))) {}
  ~Scratch() {
    ::operator delete(memory_, kLine);
  }
  Scratch(Scratch const&) = delete;
  Scratch& operator=(Scratch const&) = delete;
  T* data() const {
    return memory_;
  }

 private:
  static constexpr std::align_val_t kLine{64};
  T* const memory_;
};

}  // namespace dcnv3
