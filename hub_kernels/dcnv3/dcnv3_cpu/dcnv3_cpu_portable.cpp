// Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
#define DCNV3_CPU_ARCH portable
#define DCNV3_CPU_LANES 4
#include "dcnv3_cpu_fused.h"
#include "dcnv3_cpu_kernels.h"

namespace dcnv3::portable {
DCNV3_CPU_INSTANTIATE_ALL(int32_t)
DCNV3_CPU_INSTANTIATE_ALL(int64_t)
DCNV3_CPU_INSTANTIATE_ALL_FUSED
}  // namespace dcnv3::portable
