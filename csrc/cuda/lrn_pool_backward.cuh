// Backward kernel and the sum of its partial dbias; formulas and mapping in lrn_pool.cuh.
#pragma once
#include "lrn_pool_values.cuh"

namespace lrn_pool {

LRN_POOL_D void read_eight(const float4* from, int stride, float (&v)[8]) {
    const float4 low = from[0], high = from[stride];
    v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
    v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
}

// g += scale dy in the channels where the window's argmax is CELL. dy is scaled already at the FIRST window, where g begins.
template <int CELL, int NORM, bool FIRST = false>
LRN_POOL_D void collect(uint2 codes, const float (&dy)[8], float scale, float (&g)[8]) {
    const uint32_t low = flip(codes.x, CELL * 0x01010101u), high = flip(codes.y, CELL * 0x01010101u);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const bool hit = ((i < 4 ? low : high) & (0xffu << (8 * (i % 4)))) == 0;
        if (FIRST) {
            g[i] = hit ? dy[i] : 0.f;
        } else if (hit) {
            g[i] = NORM == kNormLrn ? fmaf(scale, dy[i], g[i]) : g[i] + dy[i];
        }
    }
}

// One row of partial sums: dbias of the block's threads, slot by slot.
LRN_POOL_D void sum_block(const BackwardArguments& p, const float (&dbias)[8], int slot, int group) {
    float* sums = reinterpret_cast<float*>(lrn_pool_shared);  // (slots, C)
    const int channels = p.shape.channels;
    __syncthreads();
    if (slot < p.quads_per_block) {
#pragma unroll
        for (int i = 0; i < 8; ++i) sums[slot * channels + group * 8 + i] = dbias[i];
    }
    __syncthreads();
    for (int c = threadIdx.x; c < channels; c += kBackwardThreads) {
        float sum = 0.f;
        for (int i = 0; i < p.quads_per_block; ++i) sum += sums[i * channels + c];
        p.partial[static_cast<int64_t>(blockIdx.x) * channels + c] = sum;
    }
}

// RELU: kReluBefore or kReluNone; after the pool, argmax 255 says where no gradient goes.
template <typename T, int NORM, int RELU>
__global__ void __launch_bounds__(kBackwardThreads, 2) lrn_pool_backward(const BackwardArguments p) {
    const Shape& s = p.shape;
    const int groups = p.groups, thread = threadIdx.x;
    const int slot = quotient(thread, p.by_groups), group = thread - slot * groups;
    float dbias[8] = {};
    // float32 rows take twice the registers: dbias waits in shared memory between quads, private to its thread.
    constexpr bool LEAN = sizeof(T) == 4;
    // The first two and last two of each thread's 8 channels, for its neighbours: [squares, gradients][position][thread], and
    // zeros for the channels outside [0, C).
    float4* edges = reinterpret_cast<float4*>(lrn_pool_shared);
    constexpr int ROW = kBackwardThreads + 1;
    // (C,), read again for every quad: registers are scarce.
    float* bias = reinterpret_cast<float*>(edges + 8 * ROW + 2 * LEAN * kBackwardThreads);
    if (thread < 8) edges[thread * ROW + kBackwardThreads] = make_float4(0.f, 0.f, 0.f, 0.f);
    share_bias<T>(bias, s.channels, 0, p.bias, p.bias_type, s.channels);
    float4* waiting = edges + 8 * ROW + thread;
    if (LEAN) waiting[0] = waiting[kBackwardThreads] = make_float4(0.f, 0.f, 0.f, 0.f);
    const float4* lower = edges + (group > 0 ? thread - 1 : kBackwardThreads);
    const float4* upper = edges + (group < groups - 1 ? thread + 1 : kBackwardThreads);

    for (uint32_t start = blockIdx.x * p.quads_per_block; start < p.quads; start += gridDim.x * p.quads_per_block) {
        // A thread past the last quad repeats it without a gradient, and stores nothing.
        const bool active = slot < p.quads_per_block && start + slot < p.quads;
        const uint32_t quad = active ? start + slot : p.quads - 1;
        const uint32_t image = quotient(quad, p.by_image);
        const int within = static_cast<int>(quad - image * (p.across * p.down));
        const int qy = static_cast<int>(quotient(within, p.by_row)), qx = within - qy * p.across;
        const bool has_right = 2 * qx + 1 < s.width, has_below = 2 * qy + 1 < s.height;

        // Windows (qy, qx), (qy, qx - 1), (qy - 1, qx), (qy - 1, qx - 1).
        const int64_t output = static_cast<int64_t>(image * s.out_height + qy) * p.out_pitch + (qx * s.channels + group * 8);
        const T* dy_window = static_cast<const T*>(p.dy) + output;
        const uint8_t* argmax_window = p.argmax + output;
        Eight<T> dy_x[4] = {};
        uint2 codes[4];
#pragma unroll
        for (int w = 0; w < 4; ++w) {
            codes[w] = make_uint2(0xffffffffu, 0xffffffffu);
            if (active && (w & 1 ? qx > 0 : qx < s.out_width) && (w & 2 ? qy > 0 : qy < s.out_height)) {
                const int away = (w & 1 ? s.channels : 0) + (w & 2 ? p.out_pitch : 0);
                dy_x[w] = load_eight(dy_window - away);
                codes[w] = __ldg(reinterpret_cast<const uint2*>(argmax_window - away));
            }
        }
        float dy[8], g[4][8];
        lift(dy_x[0], dy);
        if (NORM == kNormLrn) {
#pragma unroll
            for (int i = 0; i < 8; ++i) dy[i] *= p.scale_dy;
        }
        collect<0, NORM, true>(codes[0], dy, 1.f, g[0]);
        collect<1, NORM, true>(codes[0], dy, 1.f, g[1]);
        collect<3, NORM, true>(codes[0], dy, 1.f, g[2]);
        collect<4, NORM, true>(codes[0], dy, 1.f, g[3]);
        lift(dy_x[1], dy);
        collect<2, NORM>(codes[1], dy, p.scale_dy, g[0]);
        collect<5, NORM>(codes[1], dy, p.scale_dy, g[2]);
        lift(dy_x[2], dy);
        collect<6, NORM>(codes[2], dy, p.scale_dy, g[0]);
        collect<7, NORM>(codes[2], dy, p.scale_dy, g[1]);
        lift(dy_x[3], dy);
        collect<8, NORM>(codes[3], dy, p.scale_dy, g[0]);

        // Positions (0, 0), (0, 1), (1, 0), (1, 1) of the quad; those past the edge repeat the last column or row, get no
        // gradient and are not stored.
        const int64_t input = static_cast<int64_t>(image * s.height + 2 * qy) * p.pitch + (2 * qx * s.channels + group * 8);
        const int right = has_right ? s.channels : 0, below = has_below ? p.pitch : 0;
        const T* x = static_cast<const T*>(p.x) + input;
        float a[4][8], b[8];
        read_eight(reinterpret_cast<const float4*>(bias + group * 8), 1, b);
#pragma unroll
        for (int q = 0; q < 4; ++q) {
            lift(load_eight(x + (q & 1 ? right : 0) + (q & 2 ? below : 0)), a[q]);
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                a[q][i] += b[i];
                if (RELU == kReluBefore) a[q][i] = max_nan(a[q][i], 0.f);
            }
            if (NORM == kNormLrn) {
                const float* own = a[q];
                edges[q * ROW + thread] = make_float4(own[0] * own[0], own[1] * own[1], own[6] * own[6], own[7] * own[7]);
            }
        }
        if (NORM == kNormLrn) {
            float h[4][8];  // 2 alpha (3/4) g a d^(-7/4)
            __syncthreads();
#pragma unroll
            for (int q = 0; q < 4; ++q) {
                const float4 low = lower[q * ROW], high = upper[q * ROW];
                const float* own = a[q];
                float e[12], sums[8];
                e[0] = low.z, e[1] = low.w, e[10] = high.x, e[11] = high.y;
#pragma unroll
                for (int i = 0; i < 8; ++i) e[i + 2] = own[i] * own[i];
                // As four_sums, twice, with the squares that no neighbour needs inside multiply-adds.
                const float middle = fmaf(own[1], own[1], e[4]), left = fmaf(own[0], own[0], middle), lefts = e[1] + left;
                const float right = fmaf(own[4], own[4], e[5]);
                sums[0] = e[0] + lefts;
                sums[1] = lefts + e[5];
                sums[2] = left + right;
                sums[3] = middle + fmaf(own[5], own[5], right);
                const float middle2 = fmaf(own[5], own[5], e[8]), left2 = fmaf(own[4], own[4], middle2);
                const float lefts2 = fmaf(own[3], own[3], left2), right2 = e[9] + e[10];
                sums[4] = fmaf(own[2], own[2], lefts2);
                sums[5] = lefts2 + e[9];
                sums[6] = left2 + right2;
                sums[7] = middle2 + (right2 + e[11]);
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    const float r = reciprocal_root(fmaf(p.scale_alpha, sums[i], p.scale_k));
                    g[q][i] *= r * root(r);
                    h[q][i] = g[q][i] * (a[q][i] * (r * r));
                }
                edges[(4 + q) * ROW + thread] = make_float4(h[q][0], h[q][1], h[q][6], h[q][7]);
            }
            __syncthreads();
#pragma unroll
            for (int q = 0; q < 4; ++q) {
                const float4 low = lower[(4 + q) * ROW], high = upper[(4 + q) * ROW];
                const float e[12] = {low.z, low.w, h[q][0], h[q][1], h[q][2], h[q][3],
                                     h[q][4], h[q][5], h[q][6], h[q][7], high.x, high.y};
                float sums[8];
                four_sums(e, sums);
                four_sums(e + 4, sums + 4);
#pragma unroll
                for (int i = 0; i < 8; ++i) g[q][i] = fmaf(-a[q][i], sums[i], g[q][i]);
            }
        }
#pragma unroll
        for (int q = 0; q < 4; ++q) {
            if (LEAN && q == 0) read_eight(waiting, kBackwardThreads, dbias);
            if (RELU == kReluBefore) {
#pragma unroll
                for (int i = 0; i < 8; ++i) g[q][i] = a[q][i] <= 0.f ? 0.f : g[q][i];
            }
#pragma unroll
            for (int i = 0; i < 8; ++i) dbias[i] += g[q][i];
            if (active && (!(q & 1) || has_right) && (!(q & 2) || has_below)) {
                store_eight(static_cast<T*>(p.dx) + input + (q & 1 ? right : 0) + (q & 2 ? below : 0), g[q]);
            }
        }
        if (LEAN) {
            waiting[0] = make_float4(dbias[0], dbias[1], dbias[2], dbias[3]);
            waiting[kBackwardThreads] = make_float4(dbias[4], dbias[5], dbias[6], dbias[7]);
        }
    }

    if (p.partial != nullptr) sum_block(p, dbias, slot, group);
}

// dbias_c = sum over blocks of partial[block][c], in an order that depends on nothing but their number.
__global__ void __launch_bounds__(kSumThreads) sum_rows(const SumArguments p) {
    float* sums = reinterpret_cast<float*>(lrn_pool_shared);  // (32, 32)
    const int lane = threadIdx.x % 32, stripe = threadIdx.x / 32, c = blockIdx.x * 32 + lane;
    float sum = 0.f;
    if (c < p.channels) {
        for (int b = stripe; b < p.blocks; b += 32) sum += p.partial[static_cast<int64_t>(b) * p.channels + c];
    }
    sums[stripe * 32 + lane] = sum;
    __syncthreads();
    if (stripe == 0 && c < p.channels) {
        for (int i = 1; i < 32; ++i) sum += sums[i * 32 + lane];
        p.dbias[c] = sum;
    }
}

}  // namespace lrn_pool
