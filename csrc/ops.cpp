// The schemas of the compiled operators, and nothing else. A file of `kernels/` wraps each: it checks arguments,
// allocates the outputs that are written here, and gives them fake and autograd implementations.
//
// norm: 0 none, 1 LRN, 2 spatial; relu: 0 none, 1 before the norm, 2 after the pool; pool: 0 = no pooling; ties: 0 first, 1 all.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(alexnet_mp_csrc, m) {
    // x, y, argmax: (N, C, H, W), all dense in NCHW or all in channels_last; bias: (C,); argmax may be empty: then it is not written.
    m.def("lrn_pool_forward(Tensor x, Tensor? bias, Tensor(a!) y, Tensor(b!) argmax, int norm, int size, float alpha, float beta, "
          "float k, int relu, int pool, int stride, int ties) -> ()");
    // dy, argmax: as y; x, dx: (N, C, H, W) in the same memory format; dbias: (C,) in float32 (float64 for float64), or empty.
    m.def("lrn_pool_backward(Tensor dy, Tensor x, Tensor? bias, Tensor argmax, Tensor(a!) dx, Tensor(b!) dbias, int norm, int size, "
          "float alpha, float beta, float k, int relu, int pool, int stride, int ties) -> ()");
    // v <- momentum v - decay rate w - rate g; w <- w + v; three dense tensors of one size, dtype and memory format.
    m.def("paper_sgd_(Tensor(a!) w, Tensor g, Tensor(b!) v, float rate, float momentum, float decay) -> ()");
    // y = relu(x) times the mask of `dropout` in kernels/reference.py; x, y: of any shape, dense in NCHW; step: int64, of one element.
    // before: elements of the minibatch before the first of x.
    m.def("relu_dropout(Tensor x, Tensor step, int threshold, int seed, int stream, int layer, int tower, int before, Tensor(a!) y) -> ()");
    // pictures: one (N, S, S, 3) uint8 or N of (S, S, 3), dense; top, left: (N,) int64; flip: (N,) bool; mean: (S, S, 3) and shift:
    // (N, 3), float32, dense; y: (N, 3, crop, crop), dense in NCHW or in channels_last, not float64.
    m.def("augment(Tensor[] pictures, Tensor top, Tensor left, Tensor flip, Tensor mean, Tensor shift, float scale, "
          "bool mean_follows_crop, Tensor(a!) y) -> ()");
    // Graph launches, copies and events of two CUDA devices in the order of (n, 7) int64 on the host, rows of
    // csrc/cuda/tape.h. Only where the CUDA kernels are built; the handles and addresses in it must be alive.
    m.def("replay_tape(Tensor actions) -> ()");
    // Which instructions the CPU kernels use: 0 portable, 1 AVX2, 2 AVX-512, -1 the best there is. Returns the one that was in use
    // before; an instruction set that the processor lacks is refused.
    m.def("use_cpu_instructions(int level) -> int");
}
