// The CPU kernels in vectors of sixteen floats: x86-64 with AVX-512 F, BW, DQ and VL.
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif
#define VECTOR_BYTES 64
#define KERNELS avx512_kernels
#include "instructions.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
