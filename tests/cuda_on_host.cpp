// csrc/cuda/lrn_pool.cuh on a CPU: the CUDA names that the device code uses, and a launcher that runs every thread of a block as
// a coroutine. A barrier hands the processor to the next thread; blocks run one after the other. Built and driven by
// tests/kernels/test_cuda_source.py.
//
// Stricter than a GPU where that finds faults: shared memory starts as NaN and has a guard behind it, all threads must reach the
// same number of barriers, and the threads of a block can run in reverse order (a missing barrier then changes the result).
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

struct uint2 { uint32_t x, y; };
struct alignas(16) uint4 { uint32_t x, y, z, w; };
struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct __nv_bfloat16 { uint16_t bits; };
struct __half { uint16_t bits; };
struct Index { int x; };

#define __global__ inline
#define __device__ inline
#define __launch_bounds__(...)
#define LRN_POOL_HD inline
#define LRN_POOL_D inline

static Index threadIdx, blockIdx, blockDim, gridDim;
static uint4* lrn_pool_shared;

inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
template <typename V> inline V __ldg(const V* pointer) { return *pointer; }
template <typename To, typename From> inline To bits_as(From from) {
    To to;
    std::memcpy(&to, &from, sizeof(to));
    return to;
}
inline float __uint_as_float(uint32_t bits) { return bits_as<float>(bits); }
inline float __int_as_float(int bits) { return bits_as<float>(bits); }
// Arithmetic on a GPU returns one NaN, 0x7fffffff (PTX ISA, "Floating Point Instructions"); x86 has others.
inline int __float_as_int(float value) { return std::isnan(value) ? 0x7fffffff : bits_as<int>(value); }
inline int __viaddmax_s32(int a, int b, int c) { return std::max(a + b, c); }
inline int __vimax3_s32(int a, int b, int c) { return std::max({a, b, c}); }
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
    uint32_t result = 0;
    for (int i = 0; i < 4; ++i) {
        const uint32_t byte = selector >> (4 * i) & 7;
        result |= ((byte < 4 ? a >> (8 * byte) : b >> (8 * (byte - 4))) & 0xff) << (8 * i);
    }
    return result;
}
using std::max;
using std::min;

namespace lrn_pool {

inline float flushed(float value) { return std::fabs(value) < 1.17549435e-38f ? std::copysign(0.f, value) : value; }
// A GPU's approximations are off by up to 2^-22.9 and 2^-23 (PTX ISA, rsqrt.approx.ftz.f32 and sqrt.approx.ftz.f32). Here the
// exact result moves by one last place, 2^-23 at most, up or down with the bits of the argument.
inline float approximate(double exact, float argument) {
    const float rounded = static_cast<float>(exact);
    if (!std::isfinite(rounded) || rounded == 0) return rounded;
    return std::nextafter(rounded, bits_as<uint32_t>(argument) * 2654435761u >> 31 ? INFINITY : 0.f);
}
inline float reciprocal_root(float d) { return approximate(1 / std::sqrt(static_cast<double>(flushed(d))), d); }
inline float root(float d) { return approximate(std::sqrt(static_cast<double>(flushed(d))), d); }
inline float max_nan(float a, float b) {
    if (std::isnan(a) || std::isnan(b)) return NAN;
    return a > b ? a : b == 0 && a == 0 ? a + b : b;
}
inline void load_if(uint32_t& word, const void* pointer, int condition) {
    if (condition) std::memcpy(&word, pointer, 4);
}
inline void load_if(uint2& pair, const void* pointer, int condition) {
    if (condition) std::memcpy(&pair, pointer, 8);
}
inline uint32_t flip(uint32_t word, uint32_t mask) { return word ^ mask; }

inline float half_to_float(uint16_t half) {
    const int exponent = half >> 10 & 31, mantissa = half & 1023;
    const float size = exponent == 31 ? (mantissa ? NAN : INFINITY)
                       : exponent     ? std::ldexp(1024.f + mantissa, exponent - 25)
                                      : std::ldexp(static_cast<float>(mantissa), -24);
    return half & 0x8000 ? -size : size;
}

inline uint16_t float_to_half(float value) {
    const uint16_t sign = bits_as<uint32_t>(value) >> 16 & 0x8000;
    const float size = std::fabs(value);
    if (std::isnan(value)) return 0x7fff;
    if (size >= 65520.f) return sign | 0x7c00;
    int exponent = -24;
    if (size > 0) std::frexp(size, &exponent);
    const int unit = std::max(exponent - 11, -24);  // the last place is worth 2^unit
    const int steps = static_cast<int>(std::nearbyint(std::ldexp(size, -unit)));  // to even at ties
    return sign | static_cast<uint16_t>(steps + ((unit + 24) << 10));  // a carry out of the mantissa raises the exponent
}

inline uint16_t float_to_bfloat16(float value) {
    if (std::isnan(value)) return 0x7fff;
    const uint32_t bits = bits_as<uint32_t>(value);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float2 unpack(uint32_t word, __half) { return {half_to_float(word & 0xffff), half_to_float(word >> 16)}; }
inline uint32_t pack(float low, float high, __half) { return float_to_half(low) | uint32_t{float_to_half(high)} << 16; }
inline uint32_t pack(float low, float high, __nv_bfloat16) {
    return float_to_bfloat16(low) | uint32_t{float_to_bfloat16(high)} << 16;
}

}  // namespace lrn_pool

static void __syncthreads();
#include "../csrc/cuda/lrn_pool.cuh"

namespace {

constexpr int kStackBytes = 32 * 1024, kGuardWords = 64;

struct Thread {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(kStackBytes);
    bool finished;
};

std::vector<Thread> threads;
ucontext_t scheduler;
int running;
void (*body)();

void enter() {
    body();
    threads[running].finished = true;
    swapcontext(&threads[running].context, &scheduler);
}

// Runs all threads of a block from barrier to barrier. False if some ended while others waited.
bool run_block(int count, bool reversed) {
    if (static_cast<int>(threads.size()) < count) threads.resize(count);
    for (int i = 0; i < count; ++i) {
        Thread& thread = threads[i];
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = thread.stack.data();
        thread.context.uc_stack.ss_size = kStackBytes;
        thread.context.uc_link = nullptr;
        thread.finished = false;
        makecontext(&thread.context, enter, 0);
    }
    for (int finished = 0; finished < count;) {
        finished = 0;
        for (int i = 0; i < count; ++i) {
            running = reversed ? count - 1 - i : i;
            threadIdx.x = running;
            swapcontext(&scheduler, &threads[running].context);
            finished += threads[running].finished;
        }
        if (finished && finished < count) return false;
    }
    return true;
}

template <typename Arguments> struct Call {
    static void (*kernel)(Arguments);
    static Arguments arguments;
    static void run() { kernel(arguments); }
};
template <typename Arguments> void (*Call<Arguments>::kernel)(Arguments);
template <typename Arguments> Arguments Call<Arguments>::arguments;

enum Failure { kFine = 0, kNoKernel = 1, kBarrier = 2, kSharedMemory = 3 };

template <typename Arguments>
int launch(void (*kernel)(Arguments), const lrn_pool::Plan& plan, const Arguments& arguments, bool reversed) {
    Call<Arguments>::kernel = kernel;
    Call<Arguments>::arguments = arguments;
    body = Call<Arguments>::run;
    std::vector<uint4> shared(plan.shared_bytes / 16 + 1 + kGuardWords);
    lrn_pool_shared = shared.data();
    blockDim.x = plan.threads;
    gridDim.x = static_cast<int>(plan.blocks);
    for (int block = 0; block < plan.blocks; ++block) {
        std::memset(shared.data(), 0xff, shared.size() * 16);
        blockIdx.x = block;
        if (!run_block(plan.threads, reversed)) return kBarrier;
        const char* guard = reinterpret_cast<const char*>(shared.data());
        for (size_t i = plan.shared_bytes; i < shared.size() * 16; ++i) {
            if (guard[i] != static_cast<char>(0xff)) return kSharedMemory;
        }
    }
    return kFine;
}

lrn_pool::Shape shape_of(const int64_t* sizes) {
    const int height = static_cast<int>(sizes[2]), width = static_cast<int>(sizes[3]);
    return {sizes[0], static_cast<int>(sizes[1]), height, width, (height - 2) / 2 + 1, (width - 2) / 2 + 1};
}

}  // namespace

static void __syncthreads() { swapcontext(&threads[running].context, &scheduler); }

// sizes: N, C, H, W. slots: blocks that run at once on the imagined device. Both return a Failure.
extern "C" int lrn_pool_forward_on_host(const void* x, const void* bias, void* y, uint8_t* argmax, const int64_t* sizes, int type,
                                        int bias_type, int norm, int relu, float alpha, float k, int64_t slots, int reversed) {
    lrn_pool::ForwardArguments p{};
    p.x = x, p.bias = bias, p.y = y, p.argmax = argmax;
    p.shape = shape_of(sizes);
    p.bias_type = bias_type, p.alpha = alpha, p.k = k;
    const lrn_pool::Plan plan = lrn_pool::plan_forward(p, type == lrn_pool::kFloat ? 4 : 2, norm, slots);
    int failure = kNoKernel;
    lrn_pool::with_forward(type, norm, relu, argmax != nullptr,
                           [&](auto kernel) { failure = launch(kernel, plan, p, reversed); });
    return failure;
}

extern "C" int lrn_pool_backward_on_host(const void* dy, const void* x, const void* bias, const uint8_t* argmax, void* dx,
                                         float* dbias, const int64_t* sizes, int type, int bias_type, int norm, int relu,
                                         float alpha, float k, int64_t slots, int reversed) {
    lrn_pool::BackwardArguments p{};
    p.dy = dy, p.x = x, p.bias = bias, p.argmax = argmax, p.dx = dx;
    p.shape = shape_of(sizes);
    p.bias_type = bias_type, p.alpha = alpha, p.k = k;
    const lrn_pool::Plan plan = lrn_pool::plan_backward(p, type == lrn_pool::kFloat ? 4 : 2, slots);
    std::vector<float> partial(plan.blocks * p.shape.channels, NAN);
    p.partial = dbias != nullptr ? partial.data() : nullptr;
    int failure = kNoKernel;
    lrn_pool::with_backward(type, norm, relu, [&](auto kernel) { failure = launch(kernel, plan, p, reversed); });
    if (failure != kFine || dbias == nullptr) return failure;
    const lrn_pool::SumArguments sum{partial.data(), dbias, static_cast<int>(plan.blocks), p.shape.channels};
    return launch(lrn_pool::sum_rows, lrn_pool::plan_sum_rows(p.shape.channels), sum, reversed);
}

// Blocks, threads of a block and bytes of shared memory of a launch; slots as above.
extern "C" void lrn_pool_plan_on_host(const int64_t* sizes, int type, int norm, int codes, int backward, int64_t slots,
                                      int64_t* numbers) {
    const int bytes = type == lrn_pool::kFloat ? 4 : 2;
    uint8_t argmax;
    lrn_pool::ForwardArguments f{};
    lrn_pool::BackwardArguments b{};
    f.argmax = codes ? &argmax : nullptr;
    f.shape = b.shape = shape_of(sizes);
    const lrn_pool::Plan plan =
        backward ? lrn_pool::plan_backward(b, bytes, slots) : lrn_pool::plan_forward(f, bytes, norm, slots);
    numbers[0] = plan.blocks, numbers[1] = plan.threads, numbers[2] = plan.shared_bytes;
}
