// What both lrn_pool kernels do with 8 channels of a position: load, widen, add up, narrow, store; and the instructions that C++
// has no name for.
#pragma once
#include "lrn_pool_plan.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define LRN_POOL_D __device__ __forceinline__
extern __shared__ uint4 lrn_pool_shared[];
#endif

namespace lrn_pool {

// The host's versions of these are in tests/cuda_on_host.cpp.
#ifdef __CUDACC__
LRN_POOL_D float reciprocal_root(float d) {
    float r;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(d));
    return r;
}

LRN_POOL_D float root(float d) {
    float r;
    asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(d));
    return r;
}

LRN_POOL_D float max_nan(float a, float b) {  // NaN wins, unlike fmaxf; and max_nan(-0, +0) = +0
    float m;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(m) : "f"(a), "f"(b));
    return m;
}

// word = *pointer where `condition`, else word stays: no instruction to set it again in every row.
LRN_POOL_D void load_if(uint32_t& word, const void* pointer, int condition) {
    asm("{\n.reg .pred p;\nsetp.ne.s32 p, %2, 0;\n@p ld.global.nc.b32 %0, [%1];\n}"
        : "+r"(word) : "l"(pointer), "r"(condition));
}

LRN_POOL_D void load_if(uint2& pair, const void* pointer, int condition) {
    asm("{\n.reg .pred p;\nsetp.ne.s32 p, %3, 0;\n@p ld.global.nc.v2.b32 {%0, %1}, [%2];\n}"
        : "+r"(pair.x), "+r"(pair.y) : "l"(pointer), "r"(condition));
}

// word ^ mask, hidden from the compiler, which would otherwise take each byte out before comparing it.
LRN_POOL_D uint32_t flip(uint32_t word, uint32_t mask) {
    uint32_t flipped;
    asm("xor.b32 %0, %1, %2;" : "=r"(flipped) : "r"(word), "r"(mask));
    return flipped;
}

LRN_POOL_D float2 unpack(uint32_t word, __half) {
    __half2 pair;
    *reinterpret_cast<uint32_t*>(&pair) = word;
    return __half22float2(pair);
}

LRN_POOL_D uint32_t pack(float low, float high, __half) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
}

LRN_POOL_D uint32_t pack(float low, float high, __nv_bfloat16) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
}
#endif

LRN_POOL_D float2 unpack(uint32_t word, __nv_bfloat16) {
    float2 pair;
    pair.x = __uint_as_float(word << 16);
    pair.y = __uint_as_float(word & 0xffff0000u);
    return pair;
}

template <typename T> struct Eight {  // 8 channels of one position
    uint4 words[sizeof(T) / 2];
};

template <typename T> struct TwoType { using Words = uint32_t; };
template <> struct TwoType<float> { using Words = uint2; };

template <typename T> struct Row {  // 8 channels of one position and the two on either side
    Eight<T> eight;
    typename TwoType<T>::Words before, after;
};

template <typename T> LRN_POOL_D Eight<T> load_eight(const T* pointer) {
    Eight<T> eight;
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(T)) / 2; ++i) {
        eight.words[i] = __ldg(reinterpret_cast<const uint4*>(pointer) + i);
    }
    return eight;
}

template <typename T, int NORM> LRN_POOL_D void load_row(Row<T>& row, const T* pointer, int has_before, int has_after) {
    row.eight = load_eight(pointer);
    if (NORM == kNormLrn) {
        load_if(row.before, pointer - 2, has_before);
        load_if(row.after, pointer + 8, has_after);
    }
}

template <typename T> LRN_POOL_D void lift(const Eight<T>& eight, float* v) {
    const uint4 w = eight.words[0];
    const uint32_t words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float2 pair = unpack(words[i], T());
        v[2 * i] = pair.x;
        v[2 * i + 1] = pair.y;
    }
}

template <> LRN_POOL_D void lift<float>(const Eight<float>& eight, float* v) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        v[4 * i] = __uint_as_float(eight.words[i].x);
        v[4 * i + 1] = __uint_as_float(eight.words[i].y);
        v[4 * i + 2] = __uint_as_float(eight.words[i].z);
        v[4 * i + 3] = __uint_as_float(eight.words[i].w);
    }
}

template <typename T> LRN_POOL_D void lift_two(uint32_t word, float* v) {
    const float2 pair = unpack(word, T());
    v[0] = pair.x;
    v[1] = pair.y;
}

template <typename T> LRN_POOL_D void lift_two(uint2 words, float* v) {
    v[0] = __uint_as_float(words.x);
    v[1] = __uint_as_float(words.y);
}

template <typename T> LRN_POOL_D void store_eight(T* pointer, const float* v) {
    uint4 words;
    words.x = pack(v[0], v[1], T());
    words.y = pack(v[2], v[3], T());
    words.z = pack(v[4], v[5], T());
    words.w = pack(v[6], v[7], T());
    *reinterpret_cast<uint4*>(pointer) = words;
}

template <> LRN_POOL_D void store_eight<float>(float* pointer, const float* v) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        reinterpret_cast<float4*>(pointer)[i] = make_float4(v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]);
    }
}

template <typename T> LRN_POOL_D float to_float(T value) { return unpack(reinterpret_cast<const uint16_t&>(value), T()).x; }
template <> LRN_POOL_D float to_float<float>(float value) { return value; }

template <typename T> LRN_POOL_D T from_float(float value) {
    const uint16_t bits = static_cast<uint16_t>(pack(value, 0.f, T()));
    return reinterpret_cast<const T&>(bits);
}
template <> LRN_POOL_D float from_float<float>(float value) { return value; }

// Four neighbouring windows of five share their middle: 9 additions for 4 sums. The sums of e[0..4], e[1..5], e[2..6], e[3..7],
// where e[i] = a[i]^2 for squares; two of the squares on their own, the others inside multiply-adds.
LRN_POOL_D void four_sums_of_squares(const float* a, float* sums) {
    const float middle = fmaf(a[3], a[3], a[4] * a[4]), left = fmaf(a[2], a[2], middle), lefts = fmaf(a[1], a[1], left);
    const float square = a[5] * a[5], right = fmaf(a[6], a[6], square);
    sums[0] = fmaf(a[0], a[0], lefts);
    sums[1] = lefts + square;
    sums[2] = left + right;
    sums[3] = middle + fmaf(a[7], a[7], right);
}

LRN_POOL_D void four_sums(const float* e, float* sums) {
    const float middle = e[3] + e[4], left = e[2] + middle, lefts = e[1] + left, right = e[5] + e[6];
    sums[0] = e[0] + lefts;
    sums[1] = lefts + e[5];
    sums[2] = left + right;
    sums[3] = middle + (right + e[7]);
}

LRN_POOL_D uint32_t quotient(uint32_t value, Divider by) {
    return static_cast<uint32_t>(static_cast<uint64_t>(value) * by.multiplier >> by.shift);
}

// shared[i] = bias of channel first + i, zero outside [0, C); then a barrier.
template <typename T> LRN_POOL_D void share_bias(float* shared, int count, int first, const void* bias, int type, int channels) {
#pragma unroll 1
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        const int channel = first + i;
        float value = 0.f;
        if (type != kBiasNone && channel >= 0 && channel < channels) {
            value = type == kBiasFloat ? static_cast<const float*>(bias)[channel]
                                       : to_float(static_cast<const T*>(bias)[channel]);
        }
        shared[i] = value;
    }
    __syncthreads();
}

}  // namespace lrn_pool
