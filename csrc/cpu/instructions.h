// One build of the CPU kernels, for the instruction set that the including file has switched on; VECTOR_BYTES and KERNELS come from it.
//
// Three files include this text, each under another target, and the loader of the library keeps one definition of every inline function
// that they share. So nothing here may come from a C++ or torch header: an AVX-512 build of std::min could end up in the portable
// kernels. Everything below lives in an unnamed namespace, which is private to its file.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels.h"

namespace alexnet_mp {
namespace {

#include "simd.h"
#include "rows.h"
#include "norm_rows.h"
#include "pool_rows.h"
#include "lrn_pool.h"
#include "sgd.h"
#include "relu_dropout.h"
#include "augmentation.h"

}  // namespace

const Kernels KERNELS = {
    {forward<float>, forward<bf16>, forward<f16>, forward<double>},
    {backward<float>, backward<bf16>, backward<f16>, backward<double>},
    {paper_sgd<float>, paper_sgd<bf16>, paper_sgd<f16>, paper_sgd<double>},
    {relu_dropout<float>, relu_dropout<bf16>, relu_dropout<f16>, relu_dropout<double>},
    {augment<float>, augment<bf16>, augment<f16>},
};

}  // namespace alexnet_mp
