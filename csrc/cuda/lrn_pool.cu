// lrn_pool on CUDA: argument checks, device guard, current stream, launches. The kernels are in lrn_pool.cuh.
//
// Only the tuned case is here: maps dense in channels_last, C a multiple of 8 and at most 1,024, 3x3 windows 2 apart, an LRN of
// size 5 with beta 0.75 or none. Everything else is refused with the value named; Python takes the Triton kernels for it.
#include "lrn_pool.cuh"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

#define LRN_POOL_CUDA_CHECK(call)                                                                                     \
    do {                                                                                                              \
        const cudaError_t error = (call);                                                                             \
        STD_TORCH_CHECK(error == cudaSuccess, "lrn_pool: ", #call, ": ", cudaGetErrorString(error));                  \
    } while (0)

int type_of(const Tensor& x) {
    switch (x.scalar_type()) {
        case ScalarType::Float: return lrn_pool::kFloat;
        case ScalarType::BFloat16: return lrn_pool::kBFloat16;
        case ScalarType::Half: return lrn_pool::kHalf;
        default: STD_TORCH_CHECK(false, "lrn_pool on CUDA: x has scalar type number ", static_cast<int>(x.scalar_type()),
                                 "; it must be float32, bfloat16 or float16");
    }
    return -1;
}

cudaStream_t current_stream(int32_t device) {
    // The stable ABI has a way from a stream to its cudaStream_t since 2.13, and setup.py asks for nothing that came after 2.11.
    // This function is libtorch_cuda's own and needs -DUSE_CUDA; a library that calls it loads beside a CUDA torch only.
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
    return static_cast<cudaStream_t>(stream);
}

// Blocks that run at once: both kernels are compiled for two a multiprocessor.
int64_t slots_of(int32_t device) {
    int multiprocessors = 0;
    LRN_POOL_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
    return 2 * multiprocessors;
}

void check_maps(const char* name, const Tensor& maps, const Tensor& x, int64_t height, int64_t width, ScalarType type,
                int alignment) {
    STD_TORCH_CHECK(maps.is_cuda() && maps.get_device_index() == x.get_device_index(), "lrn_pool on CUDA: ", name,
                    " is on device ", maps.get_device_index(), " and x on device ", x.get_device_index());
    STD_TORCH_CHECK(maps.scalar_type() == type, "lrn_pool on CUDA: ", name, " has scalar type number ",
                    static_cast<int>(maps.scalar_type()), "; it must be number ", static_cast<int>(type));
    STD_TORCH_CHECK(maps.dim() == 4 && maps.size(0) == x.size(0) && maps.size(1) == x.size(1) && maps.size(2) == height &&
                        maps.size(3) == width,
                    "lrn_pool on CUDA: ", name, " must be ", x.size(0), " x ", x.size(1), " x ", height, " x ", width);
    const int64_t channels = maps.size(1), dense[4] = {height * width * channels, 1, width * channels, channels};
    for (int i = 0; i < 4; ++i) {
        STD_TORCH_CHECK(maps.size(i) <= 1 || maps.stride(i) == dense[i], "lrn_pool on CUDA: stride ", i, " of ", name, " is ",
                        maps.stride(i), "; dense channels_last has ", dense[i]);
    }
    STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(maps.const_data_ptr()) % alignment == 0, "lrn_pool on CUDA: ", name,
                    " does not begin at a multiple of ", alignment, " bytes");
}

struct Options {
    int64_t norm, size;
    double alpha, beta, k;
    int64_t relu, pool, stride, ties;
};

lrn_pool::Shape check_options(const Options& o, const Tensor& x) {
    STD_TORCH_CHECK(x.dim() == 4, "lrn_pool on CUDA: x has ", x.dim(), " dimensions; it must be (N, C, H, W)");
    STD_TORCH_CHECK(o.norm == lrn_pool::kNormNone || o.norm == lrn_pool::kNormLrn, "lrn_pool on CUDA: norm is ", o.norm,
                    "; 0 (none) and 1 (lrn) are here");
    STD_TORCH_CHECK(o.norm == lrn_pool::kNormNone || o.size == 5, "lrn_pool on CUDA: size is ", o.size, "; 5 is here");
    STD_TORCH_CHECK(o.norm == lrn_pool::kNormNone || o.beta == 0.75, "lrn_pool on CUDA: beta is ", o.beta, "; 0.75 is here");
    STD_TORCH_CHECK(o.norm == lrn_pool::kNormNone || o.alpha >= 0, "lrn_pool on CUDA: alpha is ", o.alpha,
                    "; it must not be negative");
    STD_TORCH_CHECK(o.relu >= 0 && o.relu <= 2, "lrn_pool on CUDA: relu is ", o.relu, "; it must be 0, 1 or 2");
    STD_TORCH_CHECK(o.pool == 3 && o.stride == 2, "lrn_pool on CUDA: windows are ", o.pool, " wide and ", o.stride,
                    " apart; 3 and 2 are here");
    STD_TORCH_CHECK(o.ties == 0, "lrn_pool on CUDA: ties is ", o.ties, "; 0 (first) is here");
    const int64_t channels = x.size(1), height = x.size(2), width = x.size(3);
    STD_TORCH_CHECK(channels > 0 && channels % 8 == 0 && channels <= lrn_pool::kMostChannels, "lrn_pool on CUDA: x has ",
                    channels, " channels; multiples of 8 up to ", lrn_pool::kMostChannels, " are here");
    STD_TORCH_CHECK(height >= 3 && width >= 3, "lrn_pool on CUDA: maps of ", height, "x", width,
                    " are smaller than the 3x3 window");
    STD_TORCH_CHECK(height <= INT32_MAX && width <= INT32_MAX && height * width <= INT32_MAX / channels,
                    "lrn_pool on CUDA: an image has ", channels, "x", height, "x", width, " values; less than 2^31 are here");
    return {x.size(0), static_cast<int>(channels), static_cast<int>(height), static_cast<int>(width),
            static_cast<int>((height - 2) / 2 + 1), static_cast<int>((width - 2) / 2 + 1)};
}

int check_bias(const std::optional<Tensor>& bias, const Tensor& x) {
    if (!bias.has_value()) return lrn_pool::kBiasNone;
    STD_TORCH_CHECK(bias->is_cuda() && bias->get_device_index() == x.get_device_index(),
                    "lrn_pool on CUDA: the bias is on device ", bias->get_device_index(), " and x on device ",
                    x.get_device_index());
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == x.size(1) && bias->is_contiguous(),
                    "lrn_pool on CUDA: the bias must be ", x.size(1), " values, one after the other");
    if (bias->scalar_type() == ScalarType::Float) return lrn_pool::kBiasFloat;
    STD_TORCH_CHECK(bias->scalar_type() == x.scalar_type(), "lrn_pool on CUDA: the bias has scalar type number ",
                    static_cast<int>(bias->scalar_type()), "; it must be float32 or x's type");
    return lrn_pool::kBiasStorage;
}

template <typename Arguments>
void launch(void (*kernel)(Arguments), const lrn_pool::Plan& plan, const Arguments& arguments, cudaStream_t stream) {
    STD_TORCH_CHECK(plan.blocks <= INT32_MAX, "lrn_pool on CUDA: ", plan.blocks, " blocks are too many for one launch");
    if (plan.shared_bytes > 48 * 1024) {
        LRN_POOL_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, plan.shared_bytes));
    }
    kernel<<<static_cast<unsigned>(plan.blocks), plan.threads, plan.shared_bytes, stream>>>(arguments);
    LRN_POOL_CUDA_CHECK(cudaGetLastError());
}

// x (N, C, H, W), bias (C,) -> y (N, C, OH, OW), and argmax of the same shape, uint8, unless it is empty.
void forward(Tensor x, std::optional<Tensor> bias, Tensor y, Tensor argmax, int64_t norm, int64_t size, double alpha, double beta,
             double k, int64_t relu, int64_t pool, int64_t stride, int64_t ties) {
    const int type = type_of(x);
    lrn_pool::ForwardArguments p{};
    p.shape = check_options({norm, size, alpha, beta, k, relu, pool, stride, ties}, x);
    p.bias_type = check_bias(bias, x);
    check_maps("x", x, x, p.shape.height, p.shape.width, x.scalar_type(), 16);
    check_maps("y", y, x, p.shape.out_height, p.shape.out_width, x.scalar_type(), 16);
    if (x.size(0) == 0) return;
    const bool codes = argmax.numel() > 0;
    if (codes) check_maps("argmax", argmax, x, p.shape.out_height, p.shape.out_width, ScalarType::Byte, 8);
    p.x = x.const_data_ptr();
    p.bias = bias.has_value() ? bias->const_data_ptr() : nullptr;
    p.y = y.mutable_data_ptr();
    p.argmax = codes ? static_cast<uint8_t*>(argmax.mutable_data_ptr()) : nullptr;
    p.alpha = static_cast<float>(alpha);
    p.k = static_cast<float>(k);

    const int32_t device = x.get_device_index();
    const torch::stable::accelerator::DeviceGuard guard(device);
    const lrn_pool::Plan plan =
        lrn_pool::plan_forward(p, static_cast<int>(x.element_size()), static_cast<int>(norm), slots_of(device));
    const cudaStream_t stream = current_stream(device);
    lrn_pool::with_forward(type, static_cast<int>(norm), static_cast<int>(relu), codes,
                           [&](auto kernel) { launch(kernel, plan, p, stream); });
}

// dy, argmax (N, C, OH, OW), x (N, C, H, W), bias (C,) -> dx (N, C, H, W), and dbias (C,) float32 unless it is empty.
void backward(Tensor dy, Tensor x, std::optional<Tensor> bias, Tensor argmax, Tensor dx, Tensor dbias, int64_t norm, int64_t size,
              double alpha, double beta, double k, int64_t relu, int64_t pool, int64_t stride, int64_t ties) {
    const int type = type_of(x);
    lrn_pool::BackwardArguments p{};
    p.shape = check_options({norm, size, alpha, beta, k, relu, pool, stride, ties}, x);
    p.bias_type = check_bias(bias, x);
    check_maps("x", x, x, p.shape.height, p.shape.width, x.scalar_type(), 16);
    check_maps("dx", dx, x, p.shape.height, p.shape.width, x.scalar_type(), 16);
    check_maps("dy", dy, x, p.shape.out_height, p.shape.out_width, x.scalar_type(), 16);
    check_maps("argmax", argmax, x, p.shape.out_height, p.shape.out_width, ScalarType::Byte, 8);
    const bool needs_dbias = dbias.numel() > 0;
    STD_TORCH_CHECK(!needs_dbias || (dbias.is_cuda() && dbias.get_device_index() == x.get_device_index() &&
                                     dbias.is_contiguous() && dbias.scalar_type() == ScalarType::Float &&
                                     dbias.numel() == x.size(1)),
                    "lrn_pool on CUDA: dbias must be ", x.size(1), " float32 values on x's device");
    const int32_t device = x.get_device_index();
    const torch::stable::accelerator::DeviceGuard guard(device);
    if (x.size(0) == 0) {
        if (needs_dbias) torch::stable::zero_(dbias);
        return;
    }
    p.dy = dy.const_data_ptr();
    p.x = x.const_data_ptr();
    p.bias = bias.has_value() ? bias->const_data_ptr() : nullptr;
    p.argmax = static_cast<const uint8_t*>(argmax.const_data_ptr());
    p.dx = dx.mutable_data_ptr();
    p.alpha = static_cast<float>(alpha);
    p.k = static_cast<float>(k);
    const int64_t quads = (x.size(2) + 1) / 2 * ((x.size(3) + 1) / 2);
    STD_TORCH_CHECK(x.size(0) < INT32_MAX / quads, "lrn_pool on CUDA: ", x.size(0), " images of ", quads,
                    " groups of 2x2 positions; less than 2^31 groups are here");
    const lrn_pool::Plan plan = lrn_pool::plan_backward(p, static_cast<int>(x.element_size()), slots_of(device));
    std::optional<Tensor> partial;  // (blocks, C)
    if (needs_dbias) {
        partial = torch::stable::new_empty(dbias, {plan.blocks, x.size(1)});
        p.partial = static_cast<float*>(partial->mutable_data_ptr());
    }
    const cudaStream_t stream = current_stream(device);
    lrn_pool::with_backward(type, static_cast<int>(norm), static_cast<int>(relu),
                            [&](auto kernel) { launch(kernel, plan, p, stream); });
    if (needs_dbias) {
        launch(lrn_pool::sum_rows, lrn_pool::plan_sum_rows(p.shape.channels),
               lrn_pool::SumArguments{p.partial, static_cast<float*>(dbias.mutable_data_ptr()), static_cast<int>(plan.blocks),
                                      p.shape.channels}, stream);
    }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(alexnet_mp_csrc, CUDA, m) {
    m.impl("lrn_pool_forward", TORCH_BOX(&forward));
    m.impl("lrn_pool_backward", TORCH_BOX(&backward));
}
