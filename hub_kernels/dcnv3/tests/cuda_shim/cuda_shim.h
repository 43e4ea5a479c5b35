// Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
//
// As much of CUDA as the headers in dcnv3_cuda use, in ordinary C++, to run their kernels on the
// CPU.
//
// The lanes of a warp are fibers (ucontext) of one thread. Each runs until it needs the others (a
// shuffle, a vote, __syncwarp), then the next one runs; when all of them are there, all go on. So a
// lane that reads what another one has not written yet reads the wrong thing every time, not now
// and then: even warps run their lanes in ascending order, odd warps in descending order, to see it
// from both sides. Lanes that do not meet at the same place end the program.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __shared__
#define __launch_bounds__(...)

// ---- Types ----

struct uint2 {
  unsigned int x, y;
};

struct alignas(16) uint4 {
  unsigned int x, y, z, w;
};

struct alignas(16) float4 {
  float x, y, z, w;
};

inline float4 make_float4(float x, float y, float z, float w) {
  return {x, y, z, w};
}

template <typename to_t, typename from_t>
inline to_t shim_bits(from_t from) {
  static_assert(sizeof(to_t) == sizeof(from_t));
  to_t to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

inline float __uint_as_float(uint32_t bits) {
  return shim_bits<float>(bits);
}

struct __nv_bfloat16 {
  uint16_t bits;
};

struct __half {
  uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 x) {
  return shim_bits<float>(static_cast<uint32_t>(x.bits) << 16);
}

inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  uint32_t const bits = shim_bits<uint32_t>(x);
  if (std::isnan(x)) {
    return {0x7fff};
  }
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

inline float __half2float(__half x) {
  int const exponent = (x.bits >> 10) & 31;
  int const mantissa = x.bits & 1023;
  float magnitude;
  if (exponent == 31) {
    magnitude = mantissa ? NAN : INFINITY;
  } else {
    magnitude =
        exponent ? std::ldexp(1024.0f + mantissa, exponent - 25) : std::ldexp(1.0f * mantissa, -24);
  }
  return x.bits & 0x8000 ? -magnitude : magnitude;
}

inline __half __float2half_rn(float x) {
  uint16_t const sign = std::signbit(x) ? 0x8000 : 0;
  if (std::isnan(x)) {
    return {0x7fff};
  }
  float const magnitude = std::fabs(x);
  if (magnitude == 0.0f) {
    return {sign};
  }
  if (magnitude >= 65520.0f) {
    return {static_cast<uint16_t>(sign | 0x7c00)};
  }
  // In units of the last place. A carry into the next exponent is right as it is.
  int exponent = 0;
  std::frexp(magnitude, &exponent);
  exponent = std::max(exponent + 14, 1);
  auto const units = static_cast<uint16_t>(std::nearbyint(std::ldexp(magnitude, 25 - exponent)));
  return {static_cast<uint16_t>(sign | (units + (exponent - 1) * 1024))};
}

// ---- Arithmetic ----

using std::max;
using std::min;

inline float __fdividef(float x, float y) {
  return x / y;
}

inline uint32_t __umulhi(uint32_t x, uint32_t y) {
  return static_cast<uint32_t>((static_cast<uint64_t>(x) * y) >> 32);
}

inline int __float2int_rd(float x) {
  double const floor = std::floor(static_cast<double>(x));
  return std::isnan(floor)
             ? 0
             : static_cast<int>(std::min(std::max(floor, -2147483648.0), 2147483647.0));
}

// ---- Memory ----

template <typename word_t>
inline word_t __ldg(word_t const* address) {
  if (reinterpret_cast<uintptr_t>(address) % sizeof(word_t) !=
      0) {  // what the GPU requires, beyond C++
    std::fprintf(stderr, "cuda_shim: a load of %zu bytes is misaligned\n", sizeof(word_t));
    std::abort();
  }
  word_t word;
  std::memcpy(&word, address, sizeof(word));
  return word;
}

inline float atomicAdd(float* address, float value) {
  float const before = *address;
  *address = before + value;
  return before;
}

// ---- Threads ----

struct ShimIndex {
  unsigned int x;
};

inline ShimIndex threadIdx, blockIdx;

class ShimWarp {
 public:
  static constexpr int kLanes = 32;

  static ShimWarp& instance() {
    static ShimWarp warp;
    return warp;
  }

  // Runs `body` once per lane.
  template <typename Body>
  void run(unsigned int first_thread, bool descending, Body const& body) {
    call_ = [](void const* body) {
      (*static_cast<Body const*>(body))();
    };
    body_ = &body;
    meetings_ = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
      Fiber& fiber = fibers_[lane];
      fiber.place = kStart;
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStackBytes;
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, &ShimWarp::fiber_main, 0);
    }
    while (true) {
      for (int i = 0; i < kLanes; ++i) {
        current_ = descending ? kLanes - 1 - i : i;
        threadIdx.x = first_thread + current_;
        resume();
      }
      for (Fiber const& fiber : fibers_) {
        if (fiber.place != fibers_[0].place) {
          std::fprintf(stderr, "cuda_shim: the lanes of a warp do not meet\n");
          std::abort();
        }
      }
      if (fibers_[0].place == kEnd) {
        return;
      }
      ++meetings_;
    }
  }

  // Waits for the other lanes, then returns what `lane` gave.
  template <typename value_t>
  value_t exchange(value_t value, int lane_mask, char const* place) {
    int const parity =
        meetings_ % 2;  // a slot is used again only when all lanes have left the meeting in between
    int const lane = current_;
    slots_[parity][lane] = shim_bits<uint32_t>(value);
    meet(place);
    return shim_bits<value_t>(slots_[parity][lane ^ lane_mask]);
  }

  bool any(bool value) {
    int const parity = meetings_ % 2;
    slots_[parity][current_] = value;
    meet("any");
    return std::any_of(
        slots_[parity], slots_[parity] + kLanes, [](uint32_t slot) { return slot != 0; });
  }

  void meet(char const* place) {
    fibers_[current_].place = place;
    suspend(false);
  }

 private:
  static constexpr size_t kStackBytes = 256 * 1024;
  static constexpr char const* kStart = "start";
  static constexpr char const* kEnd = "end";

  struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack = std::make_unique<char[]>(kStackBytes);
    char const* place = kStart;
    void* fake_stack = nullptr;
  };

  static void fiber_main() {
    ShimWarp& warp = instance();
    warp.arrived(nullptr);
    warp.call_(warp.body_);
    warp.fibers_[warp.current_].place = kEnd;
    warp.suspend(true);
  }

#if defined(__SANITIZE_ADDRESS__)
  void resume() {
    Fiber& fiber = fibers_[current_];
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, fiber.stack.get(), kStackBytes);
    swapcontext(&main_, &fiber.context);
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
  }

  void suspend(bool for_good) {
    Fiber& fiber = fibers_[current_];
    __sanitizer_start_switch_fiber(
        for_good ? nullptr : &fiber.fake_stack, main_stack_, main_stack_bytes_);
    swapcontext(&fiber.context, &main_);
    arrived(fiber.fake_stack);
  }

  void arrived(void* fake_stack) {
    __sanitizer_finish_switch_fiber(fake_stack, &main_stack_, &main_stack_bytes_);
  }

  void const* main_stack_ = nullptr;
  size_t main_stack_bytes_ = 0;
#else
  void resume() {
    swapcontext(&main_, &fibers_[current_].context);
  }

  void suspend(bool) {
    swapcontext(&fibers_[current_].context, &main_);
  }

  void arrived(void*) {
  }
#endif

  ucontext_t main_;
  std::vector<Fiber> fibers_ = std::vector<Fiber>(kLanes);
  uint32_t slots_[2][kLanes];
  int current_ = 0;
  int64_t meetings_ = 0;
  void (*call_)(void const*) = nullptr;
  void const* body_ = nullptr;
};

template <typename value_t>
inline value_t __shfl_xor_sync(unsigned int, value_t value, int lane_mask) {
  return ShimWarp::instance().exchange(value, lane_mask, "shuffle");
}

inline bool __any_sync(unsigned int, bool value) {
  return ShimWarp::instance().any(value);
}

inline void __syncwarp() {
  ShimWarp::instance().meet("syncwarp");
}

// ---- Launching ----

namespace dcnv3 {

// What `extern __shared__` in a kernel refers to. Filled with NaN before each block; what a block
// did not ask for is out of bounds for the address sanitizer.
inline constexpr size_t kShimSharedBytes = 48 * 1024;
float4 dynamic_shared[kShimSharedBytes / sizeof(float4)];

struct ShimLauncher {
  template <typename params_t>
  void operator()(void (*kernel)(params_t), auto const& shape, params_t const& params) const {
    auto* const shared = reinterpret_cast<unsigned char*>(dynamic_shared);
    if (shape.threads % ShimWarp::kLanes != 0 ||
        static_cast<size_t>(shape.shared_bytes) > kShimSharedBytes) {
      std::fprintf(stderr, "cuda_shim: impossible launch\n");
      std::abort();
    }
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(shared, kShimSharedBytes);
    ASAN_POISON_MEMORY_REGION(shared + shape.shared_bytes, kShimSharedBytes - shape.shared_bytes);
#endif
    for (int64_t block = 0; block < shape.blocks; ++block) {
      blockIdx.x = static_cast<unsigned int>(block);
      std::memset(shared, 0xff, shape.shared_bytes);
      for (int thread = 0; thread < shape.threads; thread += ShimWarp::kLanes) {
        bool const descending = thread / ShimWarp::kLanes % 2 == 1;
        ShimWarp::instance().run(thread, descending, [&] { kernel(params); });
      }
    }
  }
};

}  // namespace dcnv3
