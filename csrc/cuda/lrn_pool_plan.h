// Arguments of the lrn_pool kernels, and how they are cut into blocks. Plain C++, shared by the launchers and the tests.
#pragma once
#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define LRN_POOL_HD __host__ __device__ __forceinline__
#endif

namespace lrn_pool {

enum Norm { kNormNone = 0, kNormLrn = 1 };
enum Relu { kReluNone = 0, kReluBefore = 1, kReluAfter = 2 };
enum BiasType { kBiasNone = 0, kBiasFloat = 1, kBiasStorage = 2 };

constexpr int kForwardThreads = 448;   // at most; 2 blocks of them fit a multiprocessor at 72 registers
constexpr int kBackwardThreads = 256;  // 2 blocks at 128 registers
constexpr int kSumThreads = 1024;
constexpr int kMostChannels = 1024;

struct Shape {
    int64_t images;
    int channels, height, width, out_height, out_width;
};

struct Divider {  // quotient = value * multiplier >> shift, exact for value < 2^31 (Granlund and Montgomery 1994, section 4)
    uint32_t multiplier, shift;
};

struct ForwardArguments {
    const void* x;      // (N, H, W, C) T
    const void* bias;   // (C,) float or T, or null
    void* y;            // (N, OH, OW, C) T
    uint8_t* argmax;    // (N, OH, OW, C), or null
    Shape shape;
    int bias_type;
    float alpha, k;
    int groups, pitch, out_pitch;  // C / 8; values in a row of x and of y
    int columns, tiles;  // output columns of a tile, tiles of a row
    int rows, strips;    // output rows of a strip, strips of an image
    Divider by_groups, by_tiles, by_strips;
};

struct BackwardArguments {
    const void* dy;         // (N, OH, OW, C) T
    const void* x;          // (N, H, W, C) T
    const void* bias;       // (C,) float or T, or null
    const uint8_t* argmax;  // (N, OH, OW, C)
    void* dx;               // (N, H, W, C) T
    float* partial;         // (blocks, C), or null without a bias
    Shape shape;
    int bias_type;
    float alpha, k;
    float scale_alpha, scale_k, scale_dy;  // see plan_backward
    Divider by_groups, by_row, by_image;  // by C / 8 and by the quads of a row and of an image
    int groups, pitch, out_pitch;  // C / 8; values in a row of x and of y
    int across, down;              // quads of a row and of a column: ceil(W / 2), ceil(H / 2)
    int quads_per_block;
    uint32_t quads;            // N down across, less than 2^31
};

struct SumArguments {
    const float* partial;  // (blocks, C)
    float* dbias;          // (C,)
    int blocks, channels;
};

struct Plan {  // how a kernel is launched
    int64_t blocks;
    int threads;
    int shared_bytes;
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline Divider divider(uint32_t divisor) {
    uint32_t bits = 0;
    while ((uint64_t{1} << bits) < divisor) ++bits;
    return {static_cast<uint32_t>(((uint64_t{1} << (31 + bits)) + divisor - 1) / divisor), 31 + bits};
}

// Words of 16 bytes a thread passes to the horizontal maximum: 8 maxima, and 8 codes where they travel apart.
LRN_POOL_HD constexpr int planes(bool packed, bool codes) { return codes && !packed ? 4 : 2; }

LRN_POOL_HD constexpr bool packs_code(int bytes, int norm) { return bytes == 2 && norm == kNormLrn; }

// Whether the forward kernel is short of registers: then it reads the bias from shared memory for every row, lets the top row
// wait there (private to its thread), and asks for the next rows later; with rows twice as long enough bytes stay in flight.
LRN_POOL_HD constexpr bool is_lean(int bytes, int norm, bool codes) { return bytes == 4 || (codes && !packs_code(bytes, norm)); }

// Fills in the tiling. `slots`: blocks that run at once on the device, which decides how many strips an image is cut into
// (and nothing about the result).
inline Plan plan_forward(ForwardArguments& p, int bytes, int norm, int64_t slots) {
    const Shape& s = p.shape;
    p.groups = s.channels / 8;
    p.pitch = s.width * s.channels;
    p.out_pitch = s.out_width * s.channels;
    const int most = (kForwardThreads / p.groups - 1) / 2;
    p.tiles = static_cast<int>(ceil_div(s.out_width, most));
    p.columns = static_cast<int>(ceil_div(s.out_width, p.tiles));
    p.tiles = static_cast<int>(ceil_div(s.out_width, p.columns));
    int64_t least = INT64_MAX;
    for (int strips = 1; strips <= s.out_height && strips <= 64; ++strips) {  // the fewest input rows one after the other
        const int rows = static_cast<int>(ceil_div(s.out_height, strips));
        const int64_t time = ceil_div(s.images * p.tiles * ceil_div(s.out_height, rows), slots) * (2 * rows + 2);
        if (time < least) {
            least = time;
            p.rows = rows;
        }
    }
    p.strips = static_cast<int>(ceil_div(s.out_height, p.rows));
    p.by_groups = divider(p.groups);
    p.by_tiles = divider(p.tiles);
    p.by_strips = divider(p.strips);
    const int threads = static_cast<int>(ceil_div((2 * p.columns + 1) * p.groups, 32) * 32);
    const bool codes = p.argmax != nullptr;
    const int passed = 2 * planes(packs_code(bytes, norm), codes) * kForwardThreads * 16;
    const int kept = is_lean(bytes, norm, codes) ? 2 * kForwardThreads * 16 : 0;
    return {s.images * p.strips * p.tiles, threads, passed + kept + (s.channels + 4) * 4};
}

// The grid is what runs at once, so the order in which dbias is added up depends on the shape and on the GPU's size.
inline Plan plan_backward(BackwardArguments& p, int bytes, int64_t slots) {
    const Shape& s = p.shape;
    // With d scaled by c = 1 / (2 alpha 3/4) and dy by c^(3/4) the factor of the second sum is 1: d^(-7/4) then carries it.
    // alpha = 0 is taken as 7e-25, whose effect is below float32's rounding for |a| < 1e8.
    const double factor = 1.5 * p.alpha, c = 1 / (factor > 1e-24 ? factor : 1e-24);
    p.scale_alpha = static_cast<float>(c * p.alpha);
    p.scale_k = static_cast<float>(c * p.k);
    p.scale_dy = static_cast<float>(std::pow(c, 0.75));
    p.groups = s.channels / 8;
    p.pitch = s.width * s.channels;
    p.out_pitch = s.out_width * s.channels;
    p.across = (s.width + 1) / 2;
    p.down = (s.height + 1) / 2;
    p.by_groups = divider(p.groups);
    p.by_row = divider(p.across);
    p.by_image = divider(p.across * p.down);
    p.quads = static_cast<uint32_t>(s.images * p.down * p.across);
    p.quads_per_block = kBackwardThreads / p.groups;
    const int64_t steps = ceil_div(s.images * p.down * p.across, p.quads_per_block);
    const int dbias = bytes == 4 ? 2 * kBackwardThreads * 16 : 0;
    return {steps < slots ? steps : slots, kBackwardThreads, 8 * (kBackwardThreads + 1) * 16 + dbias + s.channels * 4};
}

inline Plan plan_sum_rows(int channels) { return {ceil_div(channels, 32), kSumThreads, kSumThreads * 4}; }

}  // namespace lrn_pool
