"""Compile the Triton kernels as the network launches them, for GPUs that need not be there: `python triton_offline.py
80`; `python triton_offline.py 80 CASE ...` compiles the launches of these cases alone.

Prints one line of JSON a kernel: compute capability, case, kernel, registers, bytes of stack (spilled registers live
there), bytes of shared memory, its stores, and how many values the state of each of its loops carries in the compiler's
first representation (TTIR), beside the number that the source carries. Triton 3.6 and 3.7 silently drop names from a
loop's state that start as the same tensor; the interpreter cannot show it, this number does. Must run without
TRITON_INTERPRET."""

import json
import os
import re
import subprocess
import sys
import tempfile

import torch
import triton
import triton.language as tl
from alexnet_mp.kernels import (
    augmentation_triton,
    lrn_pool_backward_triton,
    lrn_pool_forward_triton,
    relu_dropout_triton,
    sgd_triton,
    topk_credit_triton,
)
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime import jit

BUNDLED = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin")
LRN = {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 2.0}


def carried(kernel, arguments):
    """How many tensors a source loop of the kernel carries from one step to the next."""
    if "_spatial" in kernel:
        return 1  # the sum
    before = max(arguments.get("SIZE", 0) - 1, 0)
    if kernel == "_forward_kernel":
        return arguments["POOL"] ** 2 * before  # a of the maps before, of every cell of the window
    if kernel == "_backward_kernel":
        return 2 * before + arguments["SIZE"] // 2  # a, t, and g d^-beta
    return {"_sum_kernel": 1, "fibonacci": 2, "fibonacci_of_one_zero": 2}.get(kernel, 0)


@triton.jit
def fibonacci(x_ptr, y_ptr, steps):
    """Every value is the sum of x and of the two before."""
    lanes = tl.arange(0, 32)
    last, one_before = tl.zeros((32,), tl.float32), tl.zeros((32,), tl.float32)
    for step in range(steps):
        value = tl.load(x_ptr + step * 32 + lanes) + last + one_before
        tl.store(y_ptr + step * 32 + lanes, value)
        one_before = last
        last = value


@triton.jit
def fibonacci_of_one_zero(x_ptr, y_ptr, steps):
    """The same, begun as Triton gets it wrong."""
    lanes = tl.arange(0, 32)
    zero = tl.zeros((32,), tl.float32)
    last, one_before = zero, zero
    for step in range(steps):
        value = tl.load(x_ptr + step * 32 + lanes) + last + one_before
        tl.store(y_ptr + step * 32 + lanes, value)
        one_before = last
        last = value


def launches():
    """Yield (case, kernel, positional and named arguments) of what the network launches. The tensors are never read."""
    records = []
    jit.JITFunction.run = lambda kernel, *args, grid, warmup, **kwargs: records.append((kernel, args, kwargs))

    def drain(case):
        yield from ((case, *launch) for launch in records)
        records.clear()

    def step(x, side, ties="first", **call):
        bias = None if call["norm"] == "spatial" else torch.empty(x.shape[1])
        y = torch.empty(*x.shape[:2], side, side, dtype=x.dtype)
        y = y.contiguous(memory_format=torch.channels_last) if x.is_contiguous(memory_format=torch.channels_last) else y
        argmax = torch.empty_like(y if ties == "first" and call["pool"] else y[:0], dtype=torch.uint8)
        lrn_pool_forward_triton.forward(x, bias, y, argmax, ties=ties, **call)
        lrn_pool_backward_triton.backward(y, x, bias, argmax, torch.empty_like(x), ties=ties, **call)

    for dtype in (torch.float32, torch.bfloat16):
        for order in ("NCHW", "channels_last"):
            for layer, norm, relu, shape, side in (
                (1, "lrn", "before", (128, 48, 55, 55), 27),
                (2, "lrn", "before", (128, 128, 27, 27), 13),
                (5, "none", "after", (128, 128, 13, 13), 6),
            ):
                x = torch.empty(shape, dtype=dtype)
                x = x.contiguous(memory_format=torch.channels_last) if order == "channels_last" else x
                step(x, side, norm=norm, relu=relu, pool=3, stride=2, **LRN)
                yield from drain(f"layer {layer} {str(dtype)[6:]} {order}")
    x = torch.empty(128, 128, 27, 27)  # layers 1 and 2 of the 2012 source: all ties, and the spatial norm
    step(x, 13, "all", norm="lrn", relu="after", pool=3, stride=2, **LRN)
    step(x, 13, "all", norm="spatial", relu="none", pool=3, stride=2, **LRN)
    yield from drain("source2012 float32 NCHW")
    for dtype in (torch.float32, torch.bfloat16):
        weights = [torch.empty(size, dtype=dtype) for size in (17424, 48)]
        sgd_triton.paper_sgd_(weights, weights, weights, [0.01, 0.01], 0.9, [5e-4, 5e-4])
        yield from drain(f"sgd {str(dtype)[6:]}")
    wide, narrow = [
        [torch.empty(size, dtype=dtype) for size in (17424, 48)] for dtype in (torch.float32, torch.bfloat16)
    ]
    for gradients, copies in ((wide, ()), (narrow, narrow)):
        sgd_triton.paper_sgd_(wide, gradients, wide, [0.01, 0.01], 0.9, [5e-4, 5e-4], copies, torch.empty(2))
        yield from drain(f"sgd float32 with sums, {'bfloat16' if copies else 'no'} copies")
    pictures, mean = torch.empty(128, 256, 256, 3, dtype=torch.uint8), torch.empty(256, 256, 3)
    for dtype in (torch.float32, torch.bfloat16):
        for order, strides in (("NCHW", torch.contiguous_format), ("channels_last", torch.channels_last)):
            y = torch.empty(128, 3, 224, 224, dtype=dtype, memory_format=strides)
            augmentation_triton.augment(pictures, torch.empty(128, 7), mean, order == "NCHW", y)
            yield from drain(f"augment {str(dtype)[6:]} {order}")
    for classes in (1000, 21841):
        topk_credit_triton.topk_credit(torch.empty(128, classes), torch.zeros(128, dtype=torch.int64))
        yield from drain(f"credit {classes}")
    mask = {"seed": 0, "layer": 6, "tower": 1, "first_row": 0}
    for dtype in (torch.float32, torch.bfloat16):
        for layer, shape, probability in (("conv3", (128, 192, 13, 13), 0.0), ("fc6", (128, 2048), 0.5)):
            x, bias = torch.empty(shape, dtype=dtype), torch.empty(shape[1])
            x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
            relu_dropout_triton.forward(x, bias, torch.tensor(1), x, probability=probability, **mask)
            relu_dropout_triton.backward(x, x, x, True)
            yield from drain(f"relu_dropout {layer} {str(dtype)[6:]}")
    x = torch.empty(128, 192, 13, 13)  # NCHW, where a value has a counter of its own
    relu_dropout_triton.forward(x, None, torch.tensor(1), x, probability=0.5, **mask)
    relu_dropout_triton.backward(x, x, x, False)
    yield from drain("relu_dropout NCHW float32")
    for kernel in (fibonacci, fibonacci_of_one_zero):
        kernel[1,](torch.empty(96), torch.empty(96), 3)
        yield from drain("check of the check")


def report(capability, case, kernel, args, kwargs):
    """Compile one launch as Triton's own just-in-time path specialises it."""
    target = GPUTarget("cuda", capability, 32)
    backend = make_backend(target)
    bound, specialization, _ = jit.create_function_from_signature(kernel.signature, kernel.params, backend)(
        *args, **kwargs
    )
    options, signature, constants, attributes = kernel._pack_args(backend, kwargs, bound, specialization, None)
    program = triton.compile(
        ASTSource(kernel, signature, constants, attributes), target=target, options=options.__dict__
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(program.asm["cubin"])
        cubin.flush()
        usage = subprocess.run(
            [os.path.join(BUNDLED, "cuobjdump"), "-res-usage", cubin.name], capture_output=True, text=True, check=True
        ).stdout
    registers, stack, shared = map(int, re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage).groups())
    loops = [line for line in program.asm["ttir"].splitlines() if "scf.for" in line]
    # "scf.for %i = %a to %b step %c iter_args(%s = %x, %t = %y) -> ...": one "=" a carried value.
    state = [re.search(r"iter_args\((.*?)\)", line)[1].count("=") if "iter_args" in line else 0 for line in loops]
    name = kernel.fn.__name__
    return {
        "capability": capability,
        "case": case,
        "kernel": name,
        "registers": registers,
        "stack": stack,
        "shared": shared,
        "loops": state,
        "expected": carried(name, bound),
        "stores": re.findall(r"st\.global\.(\S+)", program.asm["ptx"]),
    }


if __name__ == "__main__":
    print(f"Triton {triton.__version__}", file=sys.stderr)
    cases = sys.argv[2:]
    for launch in launches():
        if not cases or launch[0] in cases:
            print(json.dumps(report(int(sys.argv[1]), *launch)), flush=True)
