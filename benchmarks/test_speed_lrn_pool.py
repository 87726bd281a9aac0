"""Bias + ReLU + LRN + max-pool (layers 1 and 2) and bias + ReLU + max-pool (layer 5) of one tower, forward and
backward.

    pytest benchmarks/test_speed_lrn_pool.py --benchmark-only [-k "lrnpool1 and fp32"] [--batch 4] [--rounds 3]

A group is an operation, pass, data type, batch and layout (`lrnpool1-bwd-fp32-b128-channels_last`), its variants are
ours, plain PyTorch, torch.compile, on a GPU cuDNN's LRN + pool, and a copy of as many bytes as the pass must move
(`roofline.py`): 100 % of the roof. `fwdbwd` is the two together. Before the first round every variant's output and
gradients are compared with `reference.py` in float64. Forward is the training pass, with all that backward needs saved;
backward gives the gradients of x and of the bias.

`--long` takes the other data types, layouts and batches, too. On a CPU each round calls the operation once. On a GPU it
replays a CUDA graph of at least 20 calls, for every variant, so that nobody is charged for launches.
`F.local_response_norm` does not run on bfloat16 on a CPU: there the baseline is `reference.py`.
"""

import functools
import gc
import statistics
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from alexnet_mp.kernels import lrn_max_pool, max_pool, reference
from baselines import absence
from cudnn_lrn import CudnnLRNPool
from interleaved import (
    REPLAY,
    CopyRoof,
    bare,
    buffer_sets,
    clocks,
    compare,
    last_level_cache,
    once,
    provenance,
    replay,
    time_interleaved,
)
from passes import gradients, passes_on
from roofline import WIDTH, MapOp, map_ops

from alexnet_mp import paper

RECIPE = paper()
LRN = dict(size=RECIPE.lrn_size, alpha=RECIPE.lrn_alpha, beta=RECIPE.lrn_beta, k=RECIPE.lrn_k)
POOL = dict(pool=RECIPE.pool_size, stride=RECIPE.pool_stride)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LAYOUTS = {"channels_last": torch.channels_last, "nchw": torch.contiguous_format}
PASSES = ("fwd", "bwd", "fwdbwd")
SAMPLE = 4  # images of the batch that are compared with float64
SEED = 0


@dataclass(frozen=True)
class Case:
    """What one measurement holds: all passes and variants of an operation, data type, batch and layout on a device."""

    op: MapOp
    dtype: str
    batch: int
    layout: str
    device: torch.device

    def __str__(self):
        return self.group("*")

    def group(self, step):
        return f"{self.op.name}-{step}-{self.dtype}-b{self.batch}-{self.layout}"

    @property
    def variants(self):
        if self.device.type == "cuda":
            # kernels="cuda" leaves NCHW to Triton
            ours = ("ours-cuda", "ours-triton") if self.layout == "channels_last" else ("ours-triton",)
            return (*ours, "eager", "compile", *(("cudnn",) if self.op.norm == "lrn" else ()), "copy")
        if self.dtype == "bf16" and self.op.norm == "lrn":
            return ("ours-cpu", "reference", "copy")
        return ("ours-cpu", "eager", "compile", "copy")


def cases(batches):
    """The cases of a CPU, then those of a GPU, the most telling first; NCHW on a GPU at the smallest batch alone."""
    cpu, gpu, grid = torch.device("cpu"), torch.device("cuda:0"), []
    for dtype in ("fp32", "bf16"):
        for layout in LAYOUTS:
            grid += [Case(op, dtype, batch, layout, cpu) for batch in batches or (128,) for op in map_ops(RECIPE)]
    for layout in LAYOUTS:
        for batch in sorted(batches or (128, 1024))[: None if layout == "channels_last" else 1]:
            grid += [
                Case(op, dtype, batch, layout, gpu) for dtype in ("bf16", "fp32", "fp16") for op in map_ops(RECIPE)
            ]
    return grid


def pytest_generate_tests(metafunc):
    batches, rows = metafunc.config.getoption("batch"), []
    for case in cases(batches):
        gpu = case.device.type == "cuda"
        # What the towers compute in: their layout, the paper's data type and a GPU's usual one.
        usual = (
            case.layout == "channels_last"
            and case.dtype in (("fp32", "bf16") if gpu else ("fp32",))
            and case.batch == min(batches or (128,))
        )
        for step in PASSES:
            for variant in case.variants:
                # On a GPU torch.compile tries every kernel that it has, for minutes.
                long = not usual or (gpu and variant == "compile")
                marks = [pytest.mark.gpus(1)] * gpu + [pytest.mark.long("lrn-pool-all")] * long
                rows.append(
                    pytest.param(
                        case, step, variant, marks=marks, id=f"{case.device.type}-{case.group(step)}-{variant}"
                    )
                )
    metafunc.parametrize("case, step, variant", rows)


@pytest.fixture(scope="session")
def measured():
    """A function: case, rounds, variants -> the `Measurement`, taken once."""
    return once(Measurement)


@pytest.mark.benchmark(timer=REPLAY)
def test_lrn_pool(case, step, variant, benchmark, measured, asked, rounds):
    measurement = measured(case, rounds, asked)
    if variant in measurement.absent:
        pytest.skip(measurement.absent[variant])
    if variant in measurement.wrong:
        raise measurement.wrong[variant]
    benchmark.group = case.group(step)
    replay(benchmark, measurement.seconds[variant][step])
    benchmark.extra_info.update(measurement.facts(step, variant))


class Measurement:
    """Variants of a case checked and timed. absent: {variant: why it is not there}; wrong: {variant: its error}."""

    def __init__(self, case, rounds, names):
        self.case, self.absent, self.wrong = case, {}, {}
        count = buffer_sets(case.batch * case.op.inputs * WIDTH[case.dtype], case.device)
        self.sets = [inputs(case, SEED + index) for index in range(count)]
        steps = {step: case.op.bytes(step, case.batch, case.dtype) for step in ("fwd", "bwd")}
        variants = {}
        for name in names:
            try:
                variants[name] = CopyRoof(steps, case.device) if name == "copy" else self._variant(name)
            except Absent as reason:
                self.absent[name] = str(reason)
            except Exception as error:  # told by this variant's own test; the others go on
                self.wrong[name] = bare(error)
        before = clocks(case.device)
        self.seconds, self.wall = time_interleaved(variants, case.device, rounds, seed=SEED)
        for steps in (*self.seconds.values(), *self.wall.values()):
            steps["fwdbwd"] = [sum(pair) for pair in zip(steps["fwd"], steps["bwd"])]
        self.clocks = before, clocks(case.device)
        self.calls = {name: variant.calls for name, variant in variants.items()}
        self.cache = (
            f"cold: {count} sets of buffers in turn, inputs of at least 3 x {last_level_cache(case.device) >> 20} MiB"
        )
        self.sets = None
        variants.clear()
        gc.collect()
        torch.compiler.reset()  # else the limit of compiled variants is reached and the next shape runs uncompiled
        if case.device.type == "cuda":
            torch.cuda.empty_cache()

    def _variant(self, name):
        try:
            function = implementation(name, self.case)
            if name == "cudnn":
                call(function, self.sets[0])
        except (OSError, RuntimeError) as error:
            if name == "cudnn":  # no library that ctypes can load, or a data type that it refuses
                raise Absent(f"{name}: {type(error).__name__}: {str(error).strip().splitlines()[0]}") from error
            raise
        check_answer(function, self.case, self.sets[0], ours=name.startswith("ours") or name == "reference")
        return passes_on(self.case.device)(function, self.sets)

    def facts(self, step, variant):
        """What the record says of one variant's pass."""
        case, bytes_ = self.case, self.case.op.bytes(step, self.case.batch, self.case.dtype)
        times = compare(self.seconds, step, bytes_, ("eager", "compile", "cudnn", "reference"))
        wall = {"wall_s": statistics.median(self.wall[variant][step])} if case.device.type == "cuda" else {}
        return provenance(case.device) | {
            "op": case.op.name,
            "pass": step,
            "dtype": case.dtype,
            "batch": case.batch,
            "layout": case.layout,
            "variant": variant,
            "shape": [case.op.maps, case.op.height, case.op.width],
            "bytes": bytes_,
            "flops": case.op.flops(step, case.batch),
            "saved_bytes": case.op.saved_bytes(case.batch, case.dtype),
            **times[variant],
            **wall,
            "calls_a_round": self.calls[variant],
            "clocks_before": self.clocks[0],
            "clocks_after": self.clocks[1],
            "seed": SEED,
            "cache": self.cache,
        }


class Absent(Exception):
    """A variant that this machine doesn't have."""


def inputs(case, seed):
    """(x as a convolution leaves it, half of it negative; the bias of the layer), and the gradient that comes back."""
    generator = torch.Generator(case.device).manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, device=case.device)

    op = case.op
    x = (50 * normal(case.batch, op.maps, op.height, op.width)).to(
        DTYPES[case.dtype], memory_format=LAYOUTS[case.layout]
    )
    dy = normal(case.batch, op.maps, op.out_height, op.out_width).to(
        DTYPES[case.dtype], memory_format=LAYOUTS[case.layout]
    )
    return (x.requires_grad_(), (10 * normal(op.maps)).to(DTYPES[case.dtype]).requires_grad_()), dy


def implementation(name, case):
    """The variant as a function (x, bias) -> y. Raises Absent where it isn't there."""

    def eager(x, bias):
        a = F.relu(x + bias.view(-1, 1, 1))
        if case.op.norm == "lrn":
            a = F.local_response_norm(
                a, RECIPE.lrn_size, RECIPE.lrn_size * RECIPE.lrn_alpha, RECIPE.lrn_beta, RECIPE.lrn_k
            )
        return F.max_pool2d(a, RECIPE.pool_size, RECIPE.pool_stride)

    if reason := absence(name, case.device):
        raise Absent(reason)
    if name.startswith("ours-"):
        kernels = name.removeprefix("ours-")
        if case.op.norm == "lrn":
            return functools.partial(lrn_max_pool, **LRN, **POOL, kernels=kernels)
        return functools.partial(max_pool, **POOL, kernels=kernels)
    if name == "reference":
        return functools.partial(reference.lrn_max_pool, **LRN, **POOL)
    if name == "compile":
        # else no backward pass could run twice, which a graph's warm-up does
        torch._functorch.config.donated_buffer = False
        return torch.compile(
            eager, dynamic=False, mode="max-autotune-no-cudagraphs" if case.device.type == "cuda" else None
        )
    if name == "cudnn":
        return CudnnLRNPool(**LRN, **POOL)
    return eager


def call(function, tensors):
    """(y, dx, dbias)."""
    inputs, dy = tensors
    y = function(*inputs)
    return y, *gradients(y, inputs, dy)


def check_answer(function, case, tensors, ours):
    """Compare y and dx of a few images with `reference.py` in float64, and dbias with the sum of dx. Raises
    AssertionError.

    The maximum of a window may be decided the other way where two values are nearly equal, and is, in many windows,
    where a variant rounds the values to 16 bits before it compares them: so a share of the gradients may differ.
    """
    (x, bias), dy = tensors
    y, dx, dbias = call(function, tensors)
    xs, b = x[:SAMPLE].detach().double().requires_grad_(), bias.detach().double()
    expected = (
        reference.lrn_max_pool(xs, b, **LRN, **POOL) if case.op.norm == "lrn" else reference.max_pool(xs, b, **POOL)
    )
    (expected_dx,) = torch.autograd.grad(expected, xs, dy[:SAMPLE].double())
    exact = case.dtype == "fp32"
    tolerance = 1e-5 if exact else 5e-3 if ours else 2e-2
    error = (y[:SAMPLE].double() - expected).norm() / expected.norm()
    assert error < tolerance, f"y is {error:.1e} off, relative to its norm"
    off = (dx[:SAMPLE].double() - expected_dx).abs() > (1e-3 if exact else 3e-2) * (
        expected_dx.abs() + expected_dx.std()
    )
    share = off.double().mean().item()
    assert share < (1e-3 if exact or ours else 2e-2), f"{share:.1e} of the gradients of x are off"
    sums = dx.double().sum((0, 2, 3))
    scale = dx.double().square().sum((0, 2, 3)).sqrt()  # what rounding each value once could add up to, to first order
    error = ((dbias.double() - sums).abs() / scale).max().item()
    assert error < (1e-3 if exact else 1e-1), (
        f"the gradient of the bias is {error:.1e} off the sum of x's, relative to its norm"
    )
