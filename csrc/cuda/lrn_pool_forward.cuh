// Forward kernel; formulas and mapping in lrn_pool.cuh.
#pragma once
#include "lrn_pool_values.cuh"

namespace lrn_pool {

// The bits of a response as a signed integer of the same order; NaN is the largest. Its own inverse.
template <int RELU> LRN_POOL_D int ordered(int bits) { return RELU == kReluNone ? bits ^ ((bits >> 31) & 0x7fffffff) : bits; }

// Responses u of 8 channels, as ordered bits.
template <typename T, int NORM, int RELU>
LRN_POOL_D void respond(const Row<T>& row, const float (&bias)[12], float alpha, float k, int (&u)[8]) {
    float a[12], sums[8];
    lift(row.eight, a + 2);
    if (NORM == kNormLrn) {
        lift_two<T>(row.before, a);
        lift_two<T>(row.after, a + 10);
    }
#pragma unroll
    for (int i = NORM == kNormLrn ? 0 : 2; i < (NORM == kNormLrn ? 12 : 10); ++i) {
        a[i] += bias[i];
        if (RELU == kReluBefore) a[i] = max_nan(a[i], 0.f);
    }
    if (NORM == kNormLrn) {
        four_sums_of_squares(a, sums);
        four_sums_of_squares(a + 4, sums + 4);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        float response = a[i + 2];
        if (NORM == kNormLrn) {
            const float r = reciprocal_root(fmaf(alpha, sums[i], k));
            response = RELU == kReluNone ? fmaf(response, r * root(r), 0.f) : response * (r * root(r));  // -0 + 0 = +0
        } else if (RELU == kReluNone) {
            response += 0.f;
        }
        if (RELU == kReluAfter) response = max_nan(response, 0.f);  // relu(max) = max(relu): same y, same place where y > 0
        u[i] = ordered<RELU>(__float_as_int(response));
    }
}

// One output of one channel cell by cell, with the last NaN as argmax: for the few windows whose maximum is not finite.
template <typename T, int NORM, int RELU>
__device__ void exact_output(const ForwardArguments& p, const float* bias, int output) {
    const Shape& s = p.shape;
    constexpr int REACH = NORM == kNormLrn ? 2 : 0;
    const int64_t image = quotient(quotient(blockIdx.x, p.by_tiles), p.by_strips);
    const int out_row = output / p.out_pitch, out_column = output % p.out_pitch / s.channels, channel = output % s.channels;
    const T* x = static_cast<const T*>(p.x) + image * s.height * s.width * s.channels;
    float best = -INFINITY;
    int code = 0;
#pragma unroll 1
    for (int cell = 0; cell < 9; ++cell) {
        const int row = 2 * out_row + cell / 3, column = 2 * out_column + cell % 3;
        if (row >= s.height || column >= s.width) continue;
        const T* position = x + (row * s.width + column) * s.channels;
        float center = 0.f, sum = 0.f;
#pragma unroll 1
        for (int c = channel - REACH; c <= channel + REACH; ++c) {
            if (c < 0 || c >= s.channels) continue;
            float a = to_float(position[c]) + bias[c];
            if (RELU == kReluBefore) a = max_nan(a, 0.f);
            if (c == channel) center = a;
            sum = fmaf(a, a, sum);
        }
        if (NORM == kNormLrn) {
            const float r = reciprocal_root(fmaf(p.alpha, sum, p.k));
            center *= r * root(r);
        }
        if (center > best || center != center) {
            best = center;
            code = cell;
        }
    }
    if (RELU == kReluAfter) best = max_nan(best, 0.f);
    const int64_t index = image * s.out_height * p.out_pitch + output;
    static_cast<T*>(p.y)[index] = from_float<T>(best);
    if (p.argmax != nullptr) p.argmax[index] = RELU == kReluAfter && best <= 0.f ? 255 : code;
}

LRN_POOL_D void read_bias(const float* from, float (&bias)[12]) {
#pragma unroll
    for (int i = 0; i < 3; ++i) {
        const float4 four = reinterpret_cast<const float4*>(from)[i];
        bias[4 * i] = four.x, bias[4 * i + 1] = four.y, bias[4 * i + 2] = four.z, bias[4 * i + 3] = four.w;
    }
}

LRN_POOL_D uint32_t four_bytes(int a, int b, int c, int d) {
    return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
}

LRN_POOL_D void put(uint4* cells, int stride, const int (&v)[8]) {
    cells[0] = make_uint4(v[0], v[1], v[2], v[3]);
    cells[stride] = make_uint4(v[4], v[5], v[6], v[7]);
}

LRN_POOL_D void take_four(const uint4* cell, int* v) {
    const uint4 four = *cell;
    v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
}

// Horizontal maxima of the vertical ones that three threads passed in: 8 channels at `output` among the outputs of an image,
// which begin at `outputs`.
template <typename T, int NORM, int RELU, bool CODES>
LRN_POOL_D void give_output(const ForwardArguments& p, const uint4* window, const float* bias, int64_t outputs, int output) {
    constexpr bool PACKED = CODES && packs_code(sizeof(T), NORM);
    constexpr int STRIDE = kForwardThreads;
    const int groups = p.groups;
    int most[8];
    uint32_t codes[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        int left[4], center[4], right[4], code[4];
        take_four(window + half * STRIDE, left);
        take_four(window + half * STRIDE + groups, center);
        take_four(window + half * STRIDE + 2 * groups, right);
        if (CODES && !PACKED) {
            int code_left[4], code_center[4], code_right[4];
            take_four(window + (half + 2) * STRIDE, code_left);
            take_four(window + (half + 2) * STRIDE + groups, code_center);
            take_four(window + (half + 2) * STRIDE + 2 * groups, code_right);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                most[4 * half + i] = __vimax3_s32(left[i], center[i], right[i]);
                const int later = __viaddmax_s32(center[i] == most[4 * half + i] ? code_center[i] : -8, 1,
                                                 right[i] == most[4 * half + i] ? code_right[i] : -8);
                code[i] = __viaddmax_s32(left[i] == most[4 * half + i] ? code_left[i] : -8, 2, later);
            }
        } else {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                code[i] = PACKED ? __viaddmax_s32(left[i], 2, __viaddmax_s32(center[i], 1, right[i]))
                                 : __vimax3_s32(left[i], center[i], right[i]);
                most[4 * half + i] = code[i];
            }
        }
        codes[half] = 0x08080808u - (four_bytes(code[0], code[1], code[2], code[3]) & 0x0f0f0f0fu);
        if (RELU == kReluAfter) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                if (most[4 * half + i] <= (PACKED ? 15 : 0)) codes[half] |= 0xffu << (8 * i);
            }
        }
    }
    float value[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) value[i] = __int_as_float(ordered<RELU>(most[i]));
    store_eight(static_cast<T*>(p.y) + outputs + output, value);
    if (CODES) {
        *reinterpret_cast<uint2*>(p.argmax + outputs + output) = make_uint2(codes[0], codes[1]);
        int largest = max(most[6], most[7]);
#pragma unroll
        for (int i = 0; i < 6; i += 2) largest = __vimax3_s32(largest, most[i], most[i + 1]);
        if (largest >= 0x7f800000) {
#pragma unroll 1
            for (int i = 0; i < 8; ++i) exact_output<T, NORM, RELU>(p, bias, output + i);
        }
    }
}

template <typename T, int NORM, int RELU, bool CODES>
__global__ void __launch_bounds__(kForwardThreads, NORM == kNormLrn ? 2 : 1) lrn_pool_forward(const ForwardArguments p) {
    constexpr bool PACKED = CODES && packs_code(sizeof(T), NORM);
    constexpr int PLANES = planes(packs_code(sizeof(T), NORM), CODES);
    constexpr bool LEAN = is_lean(sizeof(T), NORM, CODES);
    const Shape& s = p.shape;
    constexpr int STRIDE = kForwardThreads;
    const int groups = p.groups, thread = threadIdx.x;
    const int column = thread / groups, group = thread - column * groups;
    const int stripe = quotient(blockIdx.x, p.by_tiles), tile = blockIdx.x - stripe * p.tiles;
    const int64_t image = quotient(stripe, p.by_strips);
    const int strip = stripe - static_cast<int>(image) * p.strips;
    const int first = strip * p.rows, rows = min(p.rows, s.out_height - first);
    const int out_column = tile * p.columns + column;
    const bool gives_output = column < p.columns && out_column < s.out_width;
    const int has_before = group > 0, has_after = group < groups - 1;

    float bias[12];
    float* shared_bias = reinterpret_cast<float*>(lrn_pool_shared + (2 * PLANES + 2 * LEAN) * STRIDE);  // channels -2 .. C + 1
    share_bias<T>(shared_bias, s.channels + 4, -2, p.bias, p.bias_type, s.channels);
    read_bias(shared_bias + group * 8, bias);

    // Middle rows are always inside (2 OH <= H for even H); the row below may not be, and then repeats the middle one.
    const T* source = static_cast<const T*>(p.x) + (image * s.height + 2 * first) * p.pitch +
                      (min(2 * tile * p.columns + column, s.width - 1) * s.channels + group * 8);
    int below = 2 * first + 2;
    Row<T> middle_x{}, bottom_x{};
    int top[8];
    load_row<T, NORM>(bottom_x, source, has_before, has_after);
    respond<T, NORM, RELU>(bottom_x, bias, p.alpha, p.k, top);
    source += p.pitch;
    load_row<T, NORM>(middle_x, source, has_before, has_after);
    source += below < s.height ? p.pitch : 0;
    load_row<T, NORM>(bottom_x, source, has_before, has_after);

    // The code 8 - argmax = 3 (2 - row) + (2 - column) of a response grows by 3 with every row that it moves up in the window;
    // the columns are added in give_output. It replaces the lowest bits, or travels in a second word.
    if (PACKED) {
#pragma unroll
        for (int i = 0; i < 8; ++i) top[i] &= ~15;
    }
    const int64_t outputs = image * s.out_height * p.out_pitch;
    int output = first * p.out_pitch + out_column * s.channels + group * 8;
    uint4* passed = lrn_pool_shared + thread;
    uint4* kept = lrn_pool_shared + 2 * PLANES * STRIDE + thread;
    if (LEAN) put(kept, STRIDE, top);
    const uint4* window = lrn_pool_shared + 2 * column * groups + group;
    int other = PLANES * STRIDE;  // to the other of the two buffers

    for (int row = first;; ++row) {
        int middle[8], bottom[8], code[8];
        const bool more = row + 1 < first + rows;
        if (LEAN) read_bias(shared_bias + group * 8, bias);
        respond<T, NORM, RELU>(middle_x, bias, p.alpha, p.k, middle);
        if (!LEAN && more) {
            source += p.pitch;
            load_row<T, NORM>(middle_x, source, has_before, has_after);
        }
        if (PACKED) {
#pragma unroll
            for (int i = 0; i < 8; ++i) middle[i] = __viaddmax_s32(top[i], 3, middle[i] & ~15);
        }
        respond<T, NORM, RELU>(bottom_x, bias, p.alpha, p.k, bottom);
        below += 2;
        if (!LEAN && more) {
            source += below < s.height ? p.pitch : 0;
            load_row<T, NORM>(bottom_x, source, has_before, has_after);
        }
        if (LEAN) {
            take_four(kept, top);
            take_four(kept + STRIDE, top + 4);
            put(kept, STRIDE, bottom);
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            if (PACKED) {
                bottom[i] &= ~15;
                middle[i] = __viaddmax_s32(middle[i], 3, bottom[i]);
            } else {
                const int most = __vimax3_s32(top[i], middle[i], bottom[i]);
                if (CODES) code[i] = top[i] == most ? 6 : middle[i] == most ? 3 : 0;
                middle[i] = most;
            }
            if (!LEAN) top[i] = bottom[i];
        }
        put(passed, STRIDE, middle);
        if (PLANES == 4) put(passed + 2 * STRIDE, STRIDE, code);
        if (LEAN && more) {
            source += p.pitch;
            load_row<T, NORM>(middle_x, source, has_before, has_after);
            source += below < s.height ? p.pitch : 0;
            load_row<T, NORM>(bottom_x, source, has_before, has_after);
        }
        __syncthreads();

        if (gives_output) give_output<T, NORM, RELU, CODES>(p, window, shared_bias + 2, outputs, output);
        if (!more) break;
        output += p.out_pitch;
        passed += other;
        window += other;
        other = -other;
    }
}

}  // namespace lrn_pool
