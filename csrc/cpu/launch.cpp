// The CPU operators: checks, the choice of instructions, and torch's own threads, one image at a time each.
#include <atomic>
#include <cstdint>
#include <optional>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "kernels.h"

namespace alexnet_mp {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t SUMS = 256;  // rows of partial sums of the bias gradient, at most
constexpr int BEST = -1, PORTABLE = 0, AVX2 = 1, AVX512 = 2;

int supported_level() {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return AVX512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return AVX2;  // F16C is older than AVX2
#endif
    return PORTABLE;
}

std::atomic<int> level{BEST};

const Kernels& kernels() {
    static const int supported = supported_level();
    const int wanted = level.load();
    switch (wanted == BEST ? supported : wanted) {
#if defined(__x86_64__)
        case AVX512:
            return avx512_kernels;
        case AVX2:
            return avx2_kernels;
#endif
        default:
            return portable_kernels;
    }
}

int64_t use_cpu_instructions(int64_t wanted) {
    STD_TORCH_CHECK(wanted >= BEST && wanted <= supported_level(), "instruction set ", wanted,
                    " is not there; the best of this processor is ", supported_level());
    return level.exchange((int)wanted);
}

Storage storage(const Tensor& tensor) {
    switch (tensor.scalar_type()) {
        case ScalarType::Float:
            return FLOAT32;
        case ScalarType::BFloat16:
            return BFLOAT16;
        case ScalarType::Half:
            return FLOAT16;
        case ScalarType::Double:
            return FLOAT64;
        default:
            STD_TORCH_CHECK(false, "dtype number ", (int)tensor.scalar_type(), " is none of float32, bfloat16, float16 and float64");
    }
}

Problem problem(const Tensor& x, const Tensor& y, int64_t norm, int64_t size, double alpha, double beta, double k, int64_t relu,
                int64_t pool, int64_t stride, int64_t ties) {
    STD_TORCH_CHECK(x.dim() == 4 && y.dim() == 4 && x.size(0) == y.size(0) && x.size(1) == y.size(1), "x and y must be (N, C, H, W)");
    STD_TORCH_CHECK(pool >= 0 && pool <= 15 && (pool == 0 || (stride >= 1 && stride <= pool && x.size(2) >= pool && x.size(3) >= pool)),
                    "pool ", pool, " and stride ", stride, " do not fit maps of ", x.size(2), "x", x.size(3));
    STD_TORCH_CHECK(norm >= NO_NORM && norm <= SPATIAL && size >= 1 && relu >= NO_RELU && relu <= AFTER, "norm, size or relu");
    STD_TORCH_CHECK(storage(x) == storage(y), "x and y must be of one dtype");
    if (norm == LRN && size > 2 * x.size(1) - 1) size = 2 * x.size(1) - 1;  // wide enough to hold every map, whichever its centre
    const int64_t images_a_sum = x.size(0) > SUMS ? (x.size(0) + SUMS - 1) / SUMS : 1;
    Problem p{x.size(0), x.size(1), x.size(2), x.size(3), y.size(2), y.size(3), !x.is_contiguous(),
              norm, size, alpha, beta, k, relu, pool, stride, ties == 1, images_a_sum};
    const auto out = [&](int64_t side) { return pool ? (side - pool + stride - 1) / stride + 1 : side; };
    STD_TORCH_CHECK(p.out_height == out(p.height) && p.out_width == out(p.width), "y has the wrong size");
    return p;
}

// A bias of either type in the working precision, padded with zeros to whole vectors; empty where there is none.
template <typename A>
std::vector<A> working_bias(const std::optional<Tensor>& bias, int64_t channels) {
    if (!bias) return {};
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == channels && bias->is_contiguous(), "bias must be (", channels, ",)");
    std::vector<A> values(channels + 64);
    const void* from = bias->const_data_ptr();
    for (int64_t c = 0; c < channels; c++) switch (storage(*bias)) {
            case FLOAT32:
                values[c] = (A)((const float*)from)[c];
                break;
            case BFLOAT16:
                values[c] = (A)(float)((const c10::BFloat16*)from)[c];
                break;
            case FLOAT16:
                values[c] = (A)(float)((const c10::Half*)from)[c];
                break;
            case FLOAT64:
                values[c] = (A)((const double*)from)[c];
        }
    return values;
}

template <typename F>
void with_bias(Storage type, const std::optional<Tensor>& bias, int64_t channels, const F& f) {
    if (type == FLOAT64) {
        const auto values = working_bias<double>(bias, channels);
        f(bias ? values.data() : nullptr);
    } else {
        const auto values = working_bias<float>(bias, channels);
        f(bias ? values.data() : nullptr);
    }
}

void forward(const Tensor& x, const std::optional<Tensor>& bias, Tensor& y, Tensor& argmax, int64_t norm, int64_t size, double alpha,
             double beta, double k, int64_t relu, int64_t pool, int64_t stride, int64_t ties) {
    const Problem p = problem(x, y, norm, size, alpha, beta, k, relu, pool, stride, ties);
    const Storage type = storage(x);
    STD_TORCH_CHECK(!argmax.numel() || argmax.numel() == y.numel(), "argmax must be of y's size, or empty");
    uint8_t* codes = argmax.numel() ? (uint8_t*)argmax.mutable_data_ptr() : nullptr;
    with_bias(type, bias, p.channels, [&](const void* values) {
        torch::stable::parallel_for(0, p.images, 1, [&](int64_t begin, int64_t end) {
            kernels().forward[type](p, x.const_data_ptr(), values, y.mutable_data_ptr(), codes, begin, end);
        });
    });
}

void backward(const Tensor& dy, const Tensor& x, const std::optional<Tensor>& bias, const Tensor& argmax, Tensor& dx, Tensor& dbias,
              int64_t norm, int64_t size, double alpha, double beta, double k, int64_t relu, int64_t pool, int64_t stride,
              int64_t ties) {
    const Problem p = problem(dx, dy, norm, size, alpha, beta, k, relu, pool, stride, ties);
    const Storage type = storage(dx);
    const uint8_t* codes = argmax.numel() ? (const uint8_t*)argmax.const_data_ptr() : nullptr;
    STD_TORCH_CHECK(x.numel() == dx.numel() && storage(x) == type, "x and dx must be of one size and dtype");
    STD_TORCH_CHECK(codes || !pool || p.all_ties || !dy.numel(), "ties \"first\" need argmax");
    STD_TORCH_CHECK(!codes || argmax.numel() == dy.numel(), "argmax must be of dy's size");
    STD_TORCH_CHECK(!dbias.numel() || dbias.numel() == p.channels, "dbias must be (", p.channels, ",), or empty");
    // Rows of sums over so many images each, added up in their order: the same bits for every number of threads.
    const int64_t rows = (p.images + p.images_a_sum - 1) / p.images_a_sum;
    std::vector<double> sums(dbias.numel() ? rows * p.channels : 0), total(dbias.numel());
    with_bias(type, bias, p.channels, [&](const void* values) {
        torch::stable::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
            const int64_t last = end * p.images_a_sum;
            kernels().backward[type](p, dy.const_data_ptr(), x.const_data_ptr(), values, codes, dx.mutable_data_ptr(),
                                     sums.empty() ? nullptr : sums.data(), begin * p.images_a_sum, last < p.images ? last : p.images);
        });
    });
    for (size_t i = 0; i < sums.size(); i++) total[i % p.channels] += sums[i];
    for (size_t c = 0; c < total.size(); c++) {
        if (type == FLOAT64)
            ((double*)dbias.mutable_data_ptr())[c] = total[c];
        else
            ((float*)dbias.mutable_data_ptr())[c] = (float)total[c];
    }
}

void paper_sgd(Tensor& w, const Tensor& g, Tensor& v, double rate, double momentum, double decay) {
    const Storage type = storage(w);
    STD_TORCH_CHECK(storage(g) == type && storage(v) == type && g.numel() == w.numel() && v.numel() == w.numel(),
                    "w, g and v must be of one size and dtype");
    torch::stable::parallel_for(0, w.numel(), 1 << 15, [&](int64_t begin, int64_t end) {
        kernels().sgd[type](w.mutable_data_ptr(), g.const_data_ptr(), v.mutable_data_ptr(), rate, momentum, decay, begin, end);
    });
}

void relu_dropout(const Tensor& x, const Tensor& step, int64_t threshold, int64_t seed, int64_t stream, int64_t layer, int64_t tower,
                  int64_t before, Tensor& y) {
    STD_TORCH_CHECK(x.is_contiguous() && y.is_contiguous() && storage(x) == storage(y) && x.numel() == y.numel(),
                    "x and y must be dense in NCHW, of one size and dtype");
    STD_TORCH_CHECK(step.scalar_type() == ScalarType::Long && step.numel() == 1 && step.is_cpu(), "step must be an int64 on the CPU");
    const Dropout mask{(uint32_t)threshold, {(uint32_t)seed, (uint32_t)stream}, (uint32_t)*(const int64_t*)step.const_data_ptr(),
                       (uint32_t)layer, (uint32_t)tower, before};
    const int64_t count = x.numel(), first = before / DROPOUT_BLOCK, last = (before + count + DROPOUT_BLOCK - 1) / DROPOUT_BLOCK;
    torch::stable::parallel_for(first, last, 128, [&](int64_t begin, int64_t end) {
        kernels().relu_dropout[storage(x)](mask, x.const_data_ptr(), y.mutable_data_ptr(), count, begin, end);
    });
}

void augment(std::vector<Tensor> pictures, const Tensor& top, const Tensor& left, const Tensor& flip, const Tensor& mean,
             const Tensor& shift, double scale, bool mean_follows_crop, Tensor& y) {
    const int64_t images = y.size(0), crop = y.size(2), side = mean.size(0), bytes = side * side * 3;
    const Storage type = storage(y);
    STD_TORCH_CHECK(type != FLOAT64, "y must be float32, bfloat16 or float16");
    STD_TORCH_CHECK(y.dim() == 4 && y.size(1) == 3 && y.size(3) == crop && 0 < crop && crop <= side,
                    "y must be (N, 3, crop, crop)");
    const bool channels_last = y.stride(1) == 1 && y.stride(3) == 3 && y.stride(2) == 3 * crop && y.stride(0) == 3 * crop * crop;
    STD_TORCH_CHECK(channels_last || y.is_contiguous(), "y must be dense");
    const auto check = [](const Tensor& tensor, ScalarType dtype, int64_t numel) {
        STD_TORCH_CHECK(tensor.scalar_type() == dtype && tensor.numel() == numel && tensor.is_contiguous() && tensor.is_cpu(),
                        "an argument of augment is not dense, or of another dtype, size or device than the schema says");
    };
    for (const Tensor& place : {top, left}) check(place, ScalarType::Long, images);
    check(flip, ScalarType::Bool, images);
    check(mean, ScalarType::Float, bytes);
    check(shift, ScalarType::Float, images * 3);
    const int64_t each = pictures.size() == 1 ? images : 1;  // pictures in a tensor
    STD_TORCH_CHECK((int64_t)pictures.size() * each == images, "there must be one picture a crop");
    std::vector<const uint8_t*> addresses;
    for (const Tensor& tensor : pictures) {
        check(tensor, ScalarType::Byte, each * bytes);
        for (int64_t n = 0; n < each; n++) addresses.push_back((const uint8_t*)tensor.const_data_ptr() + n * bytes);
    }
    const Crops crops{addresses.data(), (const int64_t*)top.const_data_ptr(), (const int64_t*)left.const_data_ptr(),
                      (const bool*)flip.const_data_ptr(), (const float*)mean.const_data_ptr(), (const float*)shift.const_data_ptr(),
                      (float)scale, side, crop, mean_follows_crop, channels_last};
    for (int64_t n = 0; n < images; n++)
        STD_TORCH_CHECK(crops.top[n] >= 0 && crops.top[n] <= side - crop && crops.left[n] >= 0 && crops.left[n] <= side - crop,
                        "crop ", n, " leaves its picture");
    torch::stable::parallel_for(0, images, 1, [&](int64_t begin, int64_t end) {
        kernels().augment[type](crops, y.mutable_data_ptr(), begin, end);
    });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(alexnet_mp_csrc, CPU, m) {
    m.impl("lrn_pool_forward", TORCH_BOX(&forward));
    m.impl("lrn_pool_backward", TORCH_BOX(&backward));
    m.impl("paper_sgd_", TORCH_BOX(&paper_sgd));
    m.impl("relu_dropout", TORCH_BOX(&relu_dropout));
    m.impl("augment", TORCH_BOX(&augment));
}

STABLE_TORCH_LIBRARY_IMPL(alexnet_mp_csrc, CompositeExplicitAutograd, m) {  // it takes no tensor
    m.impl("use_cpu_instructions", TORCH_BOX(&use_cpu_instructions));
}

}  // namespace alexnet_mp
