// Bias, ReLU, local response normalisation and overlapping max-pool, forward and backward: device code.
//
// No torch header is included, so that the same text is compiled by nvcc for GPUs and by any C++17 compiler for the tests
// (tests/cuda_on_host.cpp supplies the CUDA names there). Everything is channels_last: x and dx are (N, H, W, C) in memory,
// y, dy and argmax (N, OH, OW, C) with OH = ceil((H - 3) / 2) + 1. T: float, __nv_bfloat16 or __half; arithmetic in float32.
//
// Forward, for one position and channel c, v = x + bias:
//   a_c = relu(v_c) for relu "before", v_c otherwise
//   d_c = k + alpha * sum of a_j^2 over |j - c| <= 2, channels outside [0, C) left out
//   u_c = a_c d_c^(-3/4), computed as a r sqrt(r) with r = d^(-1/2): d = inf gives r = 0 and hence exactly 0, as pow does
//   y = maximum of u over a 3x3 window, stride 2, cells outside the map left out; relu(y) for relu "after"
// Backward, with g_c = sum of dy over the windows whose saved argmax is this position (ties "first"):
//   da_c = g_c d_c^(-3/4) - 2 alpha (3/4) a_c * sum of g_j a_j d_j^(-7/4) over |j - c| <= 2
//   dx_c = da_c, but 0 where relu is "before" and a_c <= 0;  dbias_c = sum of dx_c over images and positions, in float32
// Norm "none" (layer 5): u = a, da = g.
//
// argmax = 3 i + j, the cell (row i, column j) of the window that gets the gradient: the first maximum in scan order, or the
// last NaN where there is one (PyTorch); 255 where relu "after" gives y <= 0.
//
// Forward, threads: a block owns a tile of `columns` outputs by a strip of output rows of one image; thread = one input column
// times 8 channels, lanes run along channels (16- or 32-byte accesses). It marches down the rows, so each response is computed
// once (but for one row a strip and one column a tile), takes the vertical maximum of 3 in registers and passes it through
// double-buffered shared memory, one barrier an output row, to the thread that takes the horizontal maximum of 3. The four
// neighbouring channels come from two short loads that hit L1. Columns and rows past the map's edge repeat its last column or
// row, which changes neither a maximum nor, being later in scan order, its first place.
//   Maxima are integer maxima of the bits: responses are >= 0 (for relu "none" they are mapped to integers of the same order),
//   NaN, canonical 0x7fffffff after any arithmetic, wins for free, and Hopper has three-input and add-then-max forms.
//   The code travels as 8 - argmax, so that the first place is the largest. For the 16-bit types it replaces the 4 lowest
//   bits of the float32 response (2^-19 of its size; rounding to bfloat16 is 2^-9, to half 2^-12) and one maximum yields both;
//   two responses closer than that are a tie. float32 and norm "none" compare all bits and carry the code in a second word.
//   Windows whose maximum is not finite are rare: they are computed again, cell by cell, to find the last NaN.
//
// Backward, threads: thread = 2x2 positions times 8 channels; they meet exactly 4 windows, whose dy and argmax are loaded once,
// and 9 (window, position) pairs known at compile time. Squares, and then g a d^(-7/4), of the two channels on either side come
// from the neighbouring threads through shared memory. Each block walks over many quads, keeps dbias in registers and writes
// one row of partial sums; a second kernel adds the rows in a fixed order. No atomics: the same bits every run on one model of
// GPU (the number of rows follows from its multiprocessors).
#pragma once
#include <type_traits>

#include "lrn_pool_backward.cuh"
#include "lrn_pool_forward.cuh"

namespace lrn_pool {

// launch(kernel) with the kernel that run-time values name; both calls return false where there is none.
enum Type { kFloat = 0, kBFloat16 = 1, kHalf = 2 };

template <typename T, int NORM, int RELU, typename Launch> void pick_codes(bool codes, Launch launch) {
    codes ? launch(lrn_pool_forward<T, NORM, RELU, true>) : launch(lrn_pool_forward<T, NORM, RELU, false>);
}

template <typename T, int NORM, typename Launch> bool pick_forward(int relu, bool codes, Launch launch) {
    switch (relu) {
        case kReluNone: pick_codes<T, NORM, kReluNone>(codes, launch); return true;
        case kReluBefore: pick_codes<T, NORM, kReluBefore>(codes, launch); return true;
        case kReluAfter: pick_codes<T, NORM, kReluAfter>(codes, launch); return true;
        default: return false;
    }
}

// Relu "after" differs from "none" in the forward pass only: argmax 255 already says where no gradient goes.
template <typename T, int NORM, typename Launch> bool pick_backward(int relu, Launch launch) {
    switch (relu) {
        case kReluNone:
        case kReluAfter: launch(lrn_pool_backward<T, NORM, kReluNone>); return true;
        case kReluBefore: launch(lrn_pool_backward<T, NORM, kReluBefore>); return true;
        default: return false;
    }
}

template <typename T, typename Pick> bool pick_norm(int norm, Pick pick) {
    switch (norm) {
        case kNormNone: return pick(T(), std::integral_constant<int, kNormNone>());
        case kNormLrn: return pick(T(), std::integral_constant<int, kNormLrn>());
        default: return false;
    }
}

template <typename Pick> bool pick_type(int type, int norm, Pick pick) {
    switch (type) {
        case kFloat: return pick_norm<float>(norm, pick);
        case kBFloat16: return pick_norm<__nv_bfloat16>(norm, pick);
        case kHalf: return pick_norm<__half>(norm, pick);
        default: return false;
    }
}

template <typename Launch> bool with_forward(int type, int norm, int relu, bool codes, Launch launch) {
    return pick_type(type, norm, [=](auto value, auto norm_constant) {
        return pick_forward<decltype(value), decltype(norm_constant)::value>(relu, codes, launch);
    });
}

template <typename Launch> bool with_backward(int type, int norm, int relu, Launch launch) {
    return pick_type(type, norm, [=](auto value, auto norm_constant) {
        return pick_backward<decltype(value), decltype(norm_constant)::value>(relu, launch);
    });
}

}  // namespace lrn_pool
