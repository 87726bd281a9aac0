"""cuDNN's own LRN and max-pool through ctypes: what one could call before there was a fused kernel, as a baseline.

PyTorch never calls cuDNN's LRN and offers no way to. The bias and ReLU before it are one PyTorch operation each.
"""

import ctypes

import torch

_DATA_TYPES = {torch.float32: 0, torch.float16: 2, torch.bfloat16: 9}  # cudnnDataType_t
# cudnnLRNMode_t, cudnnPoolingMode_t, cudnnNanPropagation_t
_CROSS_CHANNEL, _MAX_DETERMINISTIC, _PROPAGATE_NAN = 0, 3, 1
_ONE, _ZERO = ctypes.byref(ctypes.c_float(1)), ctypes.byref(ctypes.c_float(0))


class CudnnLRNPool:
    """relu(x + bias) -> LRN -> max-pool: (N, C, H, W) -> (N, C, H', W') on the current CUDA device and stream.

    alpha multiplies the sum of squares (cuDNN divides its own by size). Raises OSError where the library can't be
    loaded and RuntimeError, with cuDNN's words, where it refuses the data type. Windows must not hang over the edge.
    """

    def __init__(self, *, size, alpha, beta, k, pool, stride):
        self.pool, self.stride = pool, stride
        self.library = ctypes.CDLL(f"libcudnn.so.{torch.backends.cudnn.version() // 10000}")  # PyTorch has loaded it
        self.library.cudnnGetErrorString.restype = ctypes.c_char_p
        self.handle, self.norm, self.window = (ctypes.c_void_p() for _ in range(3))
        self._call("cudnnCreate", ctypes.byref(self.handle))
        self._call("cudnnCreateLRNDescriptor", ctypes.byref(self.norm))
        self._call(
            "cudnnSetLRNDescriptor", self.norm, ctypes.c_uint(size), *map(ctypes.c_double, (alpha * size, beta, k))
        )
        self._call("cudnnCreatePoolingDescriptor", ctypes.byref(self.window))
        self._call(
            "cudnnSetPooling2dDescriptor",
            self.window,
            _MAX_DETERMINISTIC,
            _PROPAGATE_NAN,
            pool,
            pool,
            0,
            0,
            stride,
            stride,
        )
        self.descriptors = {}

    def __call__(self, x, bias):
        return _LRNPool.apply(torch.relu(x + bias.view(-1, 1, 1)), self)

    def forward(self, a):
        """a: (N, C, H, W) -> its LRN of the same shape, and (N, C, H', W')."""
        if (a.shape[2] - self.pool) % self.stride or (a.shape[3] - self.pool) % self.stride:
            raise ValueError(
                f"the last window hangs over the edge of {a.shape[2]}x{a.shape[3]} maps; cuDNN leaves it out"
            )
        out = [(side - self.pool) // self.stride + 1 for side in a.shape[2:]]
        layout = torch.channels_last if a.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        u = torch.empty_like(a)
        y = torch.empty(*a.shape[:2], *out, dtype=a.dtype, device=a.device, memory_format=layout)
        self._stream()
        self._call(
            "cudnnLRNCrossChannelForward",
            self.handle,
            self.norm,
            _CROSS_CHANNEL,
            _ONE,
            *self._tensor(a),
            _ZERO,
            *self._tensor(u),
        )
        self._call("cudnnPoolingForward", self.handle, self.window, _ONE, *self._tensor(u), _ZERO, *self._tensor(y))
        return u, y

    def backward(self, a, u, y, dy):
        """The gradient with respect to a, of its shape."""
        du, da = torch.empty_like(u), torch.empty_like(a)
        self._stream()
        self._call(
            "cudnnPoolingBackward",
            self.handle,
            self.window,
            _ONE,
            *self._tensor(y),
            *self._tensor(dy),
            *self._tensor(u),
            _ZERO,
            *self._tensor(du),
        )
        self._call(
            "cudnnLRNCrossChannelBackward",
            self.handle,
            self.norm,
            _CROSS_CHANNEL,
            _ONE,
            *self._tensor(u),
            *self._tensor(du),
            *self._tensor(a),
            _ZERO,
            *self._tensor(da),
        )
        return da

    def _stream(self):
        self._call("cudnnSetStream", self.handle, ctypes.c_void_p(torch.cuda.current_stream().cuda_stream))

    def _tensor(self, x):
        """The two arguments that a tensor is to cuDNN: its descriptor and its address."""
        key = x.dtype, x.shape, x.stride()
        if key not in self.descriptors:
            descriptor = ctypes.c_void_p()
            self._call("cudnnCreateTensorDescriptor", ctypes.byref(descriptor))
            self._call("cudnnSetTensor4dDescriptorEx", descriptor, _DATA_TYPES[x.dtype], *x.shape, *x.stride())
            self.descriptors[key] = descriptor
        return self.descriptors[key], ctypes.c_void_p(x.data_ptr())

    def _call(self, name, *arguments):
        status = getattr(self.library, name)(*arguments)
        if status:
            raise RuntimeError(f"{name}: {self.library.cudnnGetErrorString(status).decode()}")


class _LRNPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, cudnn):
        u, y = cudnn.forward(a)
        ctx.save_for_backward(a, u, y)
        ctx.cudnn = cudnn
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        return ctx.cudnn.backward(*ctx.saved_tensors, dy), None
