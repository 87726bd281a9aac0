// What the CPU kernels are asked to compute, and the three builds of them. No torch headers: see instructions.h.
#pragma once

#include <stdint.h>

namespace alexnet_mp {

enum Norm { NO_NORM = 0, LRN = 1, SPATIAL = 2 };
enum Relu { NO_RELU = 0, BEFORE = 1, AFTER = 2 };
enum Storage { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2, FLOAT64 = 3 };

struct Problem {
    int64_t images, channels, height, width, out_height, out_width;
    bool channels_last;  // of every tensor
    int64_t norm, size;
    double alpha, beta, k;
    int64_t relu, pool, stride;  // pool 0: no pooling
    bool all_ties;
    int64_t images_a_sum;  // consecutive images that share a row of partial sums

    int64_t channel_window() const { return norm == LRN ? size : 1; }
};

// Where N crops come from, and what is done to their pixels.
struct Crops {
    const uint8_t* const* pictures;  // (N,) addresses of (side, side, 3)
    const int64_t *top, *left;       // (N,)
    const bool* flip;                // (N,)
    const float *mean, *shift;       // (side, side, 3), (N, 3)
    float scale;
    int64_t side, crop;
    bool mean_follows_crop, channels_last;  // else the mean's centre window, for every crop; the memory format of y
};

// What a dropout mask depends on; a word below the threshold drops its element (kernels/reference.py).
struct Dropout {
    uint32_t threshold, key[2], step, layer, tower;
    int64_t before;  // elements of the minibatch before the first here
};
constexpr int64_t DROPOUT_BLOCK = 64;  // elements whose words are drawn together

// Images [begin, end) of a batch. bias: float (double for FLOAT64) or null; argmax: null where nobody needs it.
// dbias: (sums, channels) partial sums, zeros at first, or null; begin is a multiple of images_a_sum.
using Forward = void (*)(const Problem&, const void* x, const void* bias, void* y, uint8_t* argmax, int64_t begin, int64_t end);
using Backward = void (*)(const Problem&, const void* dy, const void* x, const void* bias, const uint8_t* argmax, void* dx,
                          double* dbias, int64_t begin, int64_t end);
// Elements [begin, end) of one tensor.
using Sgd = void (*)(void* w, const void* g, void* v, double rate, double momentum, double decay, int64_t begin, int64_t end);
// Blocks [begin, end) of DROPOUT_BLOCK elements, of `count` in their logical order.
using ReluDropout = void (*)(const Dropout&, const void* x, void* y, int64_t count, int64_t begin, int64_t end);
// Crops [begin, end) of y.
using Augment = void (*)(const Crops&, void* y, int64_t begin, int64_t end);

struct Kernels {
    Forward forward[4];  // by Storage
    Backward backward[4];
    Sgd sgd[4];
    ReluDropout relu_dropout[4];
    Augment augment[3];  // not FLOAT64
};

extern const Kernels portable_kernels, avx2_kernels, avx512_kernels;
constexpr uint8_t NOBODY = 255;  // argmax code of an output whose gradient goes nowhere

}  // namespace alexnet_mp
