// Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
#define DCNV3_CPU_ARCH avx512_bf16
#define DCNV3_CPU_LANES 16
#include "dcnv3_cpu_fused.h"

namespace dcnv3::avx512_bf16 {
DCNV3_CPU_INSTANTIATE_FUSED(BFloat16)
}  // namespace dcnv3::avx512_bf16
