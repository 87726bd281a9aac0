"""What the self-check calls, in a process of its own (`isolated.py`): each function raises if something is wrong.

An operation is held against `kernels/reference.py` on the same device, in the dtype of the run and in float64: its
largest error may be twice the reference's own in that dtype. One rounding of the largest value in float32 is always
allowed, since of a handful of values PyTorch may round all well; so is what a GPU's approximations of roots and
quotients may add. Crossings have to deliver the same bits. The check of pipelines is in `pipeline_check.py`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from ..evaluation.accuracy import topk_credit
from ..kernels import augment, linear, paper_sgd_, reference
from ..kernels.checks import describe
from ..kernels.dispatch import leave_out
from ..kernels.lrn_pool import approximation
from ..network.exchange import Crossing, Exchange
from ..network.layer import TowerLayer, plan
from ..network.split_product import split_input_product
from ..recipes.recipe import Layer
from ..recipes.shapes import Size, pooled_size
from ..system.isolated import Unfit, Wrong

IMAGES = 3  # of a kernel's input
STEP = 40  # that keys the dropout mask
CLEAR = 1e-5  # of a maximum: others that are less by as much are so in float32 and in float64
ROUNDS = 3  # of crossings, each with other values: those of the round before would be seen
BUSY = 20  # products of 2,048 x 2,048 that a GPU makes before what is to cross: a copy that doesn't wait is too early
EPS = torch.finfo(torch.float32).eps


def prepare(devices: Sequence[torch.device], left_out: Iterable[tuple[str, str, str]]) -> None:
    """Called first: makes the devices ready, so that what is wrong with one is not taken for a kernel's fault."""
    leave_out(left_out)
    zero = torch.zeros(1)  # the first call of any operator has torch import its compiler, for seconds
    paper_sgd_([zero], [zero], [zero], learning_rates=[0.0], momentum=0.0, weight_decays=[0.0], kernels="reference")
    for device in devices:
        try:
            torch.ones(1024, device=device).sum().item()
        except Exception as error:
            raise Unfit(f"{device} can't be used: {(str(error).splitlines() or [type(error).__name__])[0]}") from None


def compare(
    what: str, ours: torch.Tensor, torchs: torch.Tensor, exact: torch.Tensor, least: float, approximate: float = 0.0
) -> None:
    """Raise `Wrong` where ours is off by more than twice what PyTorch is, which is taken to be `least` at least, and by
    what is known to be approximate."""
    if ours.shape != exact.shape or ours.dtype != torchs.dtype:
        raise Wrong(f"differs from the reference in the {what}: {describe(ours)}, not {describe(torchs)}")
    if exact.numel():
        error, torch_error = (float((tensor.double() - exact).abs().max()) for tensor in (ours, torchs))
        if not error <= 2 * max(torch_error, least) + approximate:  # so that NaN is wrong
            dtype = str(ours.dtype).removeprefix("torch.")
            raise Wrong(
                f"differs from the reference in the {what}: off by {error:.2g}, PyTorch in {dtype} by {torch_error:.2g}"
            )


def rounding(exact: torch.Tensor) -> float:
    """Of the largest value, in float32."""
    return EPS * float(exact.abs().max()) if exact.numel() else 0.0


def _samples(shape, seed, device):
    """N(0, 1) in float64, the same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device)


def synchronize(devices: Sequence[torch.device]) -> None:
    """What went wrong on a GPU is raised here at the latest."""
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)


# --- kernels


def fused_operation(
    devices: Sequence[torch.device],
    layer: Layer,
    fused: tuple[str, ...],
    maps: tuple[int, int, int],
    constants: Mapping[str, object],
    dtype: torch.dtype,
    kernels: str,
    implementation: str,
) -> None:
    """A fused operation of a layer's epilogue, as the network computes it: forward, backward, and forward in a test.

    devices: one. layer: the recipe's `Layer`. fused: of `plan(layer.then)`; maps: (C, H, W) that it reads.
    constants: {field of the recipe: value}. kernels: as `--kernels` has it; implementation: which that is here.
    """
    (device,) = devices
    ours, oracle = (_layer(layer, [fused], maps, constants, choice, device) for choice in (kernels, "reference"))
    x = _maps(maps, layer, constants, device).to(dtype)
    with_bias = ours.bias_in_kernel and fused == plan(layer.then)[0]
    bias = _samples(maps[:1], 2, device).to(dtype) if with_bias else None
    cases = (ours, x, bias), (oracle, x, bias), (oracle, x.double(), bias.double() if with_bias else None)
    norm = not {"lrn", "spatial_norm"}.isdisjoint(fused)
    output_roundings, gradient_roundings = (norm * error / EPS for error in approximation(implementation, device))
    for train in (False, True):
        y, torchs, exact = (_forward(*inputs, train) for inputs in cases)
        least = rounding(exact)
        compare("output" if train else "output of a test", y, torchs, exact, least, output_roundings * least)
    dy = torch.empty_like(y).copy_(_samples(exact.shape, 3, device) * _clear(layer, fused, *cases[2][1:], constants))
    gradients = [_backward(*inputs, dy) for inputs in cases]
    least = rounding(gradients[2][0])
    compare("gradient", *(pair[0] for pair in gradients), least, gradient_roundings * least)
    if with_bias:  # a sum of n rounded terms errs by the root of n roundings; what is approximate may all add up
        sum_rounding = rounding(gradients[2][0].abs().sum((0, 2, 3)))
        least *= math.sqrt(x.numel() / maps[0])
        compare("gradient of the bias", *(pair[1] for pair in gradients), least, gradient_roundings * sum_rounding)
    synchronize(devices)


def _layer(layer, fused_operations, maps, constants, kernels, device):
    """The `TowerLayer` with hardly a product, and with these fused operations after it."""
    recipe = SimpleNamespace(seed=1, **constants)
    tower_layer = TowerLayer(recipe, Size(layer, (1, 1, 1), maps, maps), 5, (0,), kernels, device)
    tower_layer.fused_operations = fused_operations
    return tower_layer


def _maps(maps, layer, constants, device):
    """Random values, as large as the norm feels, with ties: constant in a corner of the first image.

    Ordered in memory as a product's output.
    """
    scale = constants["lrn_alpha"] * constants["lrn_size"]
    x = (math.sqrt(constants["lrn_k"] / scale) if scale > 0 else 30.0) * _samples((IMAGES, *maps), 1, device)
    if layer.kind == "fc":
        return x.flatten(1)
    corner = constants["pool_size"] + constants["pool_stride"]  # two windows that overlap
    x[0, :, :corner, :corner] = x[0, :, :1, :1]
    return x.contiguous(memory_format=torch.contiguous_format if layer.kind == "local" else torch.channels_last)


def _forward(layer, x, bias, train):
    step = torch.tensor(STEP, device=x.device)
    with torch.set_grad_enabled(train):  # without gradients other kernels may be launched
        return layer.train(train).apply_epilogue(x.detach().requires_grad_(train), bias, step).detach()


def _backward(layer, x, bias, dy):
    inputs = [tensor.detach().requires_grad_() for tensor in (x, bias) if tensor is not None]
    y = layer.train().apply_epilogue(
        inputs[0], inputs[1] if bias is not None else None, torch.tensor(STEP, device=x.device)
    )
    return torch.autograd.grad(y, inputs, dy.to(y.dtype))


def _clear(layer, fused, x, bias, constants):
    """1 for every output whose window has a maximum, or exact ties, well ahead of all else; else 0."""
    if "max_pool" not in fused:
        return 1
    prefix = _layer(layer, plan(fused[: fused.index("max_pool")]), x.shape[1:], constants, "reference", x.device)
    if prefix.fused_operations:
        u = prefix.apply_epilogue(x, bias, None)
    else:
        u = x if bias is None else x + bias[:, None, None]
    pool, stride = constants["pool_size"], constants["pool_stride"]
    sides = [pooled_size(side, pool, stride) for side in u.shape[2:]]
    bottom, right = ((number - 1) * stride + pool - side for number, side in zip(sides, u.shape[2:]))
    windows = F.unfold(F.pad(u, (0, right, 0, bottom), value=-math.inf).flatten(0, 1)[:, None], pool, stride=stride)
    maxima = windows.amax(1, keepdim=True)
    near = (windows < maxima) & (windows >= maxima - CLEAR * maxima.abs())
    return (~near.any(1)).double().view(*u.shape[:2], *sides)


def update(
    devices: Sequence[torch.device],
    shapes: Sequence[tuple[int, ...]],
    momentum: float,
    dtype: torch.dtype,
    kernels: str,
) -> None:
    """Two updates of parameters of these shapes, in float32, with the sums that watch over them; the second parameter
    has a rate of 0. devices: one.

    dtype: of the gradients, and of the copies that a layer keeps of its weights, unless it is float32."""
    (device,) = devices
    weights, gradients, velocities = (
        [_samples(shape, seed + 10 * number, device) for number, shape in enumerate(shapes)] for seed in (1, 2, 3)
    )
    rates = [0.0 if number == 1 else 0.01 for number in range(len(shapes))]
    decays = [5e-4 if number % 2 == 0 else 0.0 for number in range(len(shapes))]
    rule = dict(learning_rates=rates, momentum=momentum, weight_decays=decays)
    results = []
    for choice, wide in ((kernels, torch.float32), ("reference", torch.float32), ("reference", torch.float64)):
        w, v = ([_like_parameter(tensor.float()).to(wide) for tensor in tensors] for tensors in (weights, velocities))
        g = [_like_parameter(tensor.to(dtype)).to(wide if wide == torch.float64 else dtype) for tensor in gradients]
        copies = [] if dtype == torch.float32 else [torch.zeros_like(tensor, dtype=dtype) for tensor in w]
        sums = torch.zeros(len(w), device=device)
        for _ in range(2):
            paper_sgd_(w, g, v, copies=copies, sums=sums, kernels=choice, **rule)
        results.append((w, v, copies, sums, g))
    (w, v, copies, sums, g), (torchs_w, torchs_v, torchs_copies, torchs_sums, _), (exact_w, exact_v, *_) = results
    updated = [tensor if rate else torch.zeros_like(tensor) for tensor, rate in zip(exact_w, rates)]
    for what, *lists in (
        ("weights", w, torchs_w, exact_w),
        ("velocity", v, torchs_v, exact_v),
        ("copies of the weights", copies, torchs_copies, updated[: len(copies)]),
    ):
        for ours, torchs, exact in zip(*lists, strict=True):
            compare(what, ours, torchs, exact, rounding(exact))
    for ours, torchs, exact in zip(sums, torchs_sums, updated, strict=True):  # in whatever order they are added
        compare("sums of the weights", ours, torchs, exact.sum(), rounding(exact.abs().sum()))
    for value in (math.inf, math.nan):
        for gradient in g:
            gradient[(-1,) * gradient.dim()] = value
        paper_sgd_(w, g, v, copies=copies, sums=sums, kernels=kernels, **rule)
        if sums[[rate > 0 for rate in rates]].isfinite().any():
            raise Wrong(f"differs from the reference in the sums of the weights: finite where a gradient is {value}")
    synchronize(devices)


def _like_parameter(tensor):
    """As the network keeps its parameters."""
    return tensor.clone(memory_format=torch.channels_last if tensor.dim() == 4 else torch.contiguous_format)


def credit(devices: Sequence[torch.device], classes: int, kernels: str) -> None:
    """Which answers are right, of scores of so many classes, as logits in float32: all different, many alike, some NaN;
    labels of the first seven ranks. devices: one."""
    (device,) = devices
    scores, rows = _samples((3 * IMAGES, classes), 1, device).float(), torch.arange(3 * IMAGES, device=device)
    scores[IMAGES : 2 * IMAGES] = scores[IMAGES : 2 * IMAGES].round()
    scores[2 * IMAGES :, ::IMAGES] = math.nan
    labels = scores.nan_to_num(-9).argsort(1, descending=True)[rows, 2 * rows % min(7, classes)]
    for images in (rows, *rows.split(1)):
        ours, torchs = (topk_credit(scores[images], labels[images], choice) for choice in (kernels, "reference"))
        compare("answers that are right", ours, torchs, torchs, EPS)
    synchronize(devices)


def augmentation(
    devices: Sequence[torch.device], stored: int, crop: int, mean_follows_crop: bool, dtype: torch.dtype
) -> None:
    """The fused augmentation of the pipeline `raw`. devices: one."""
    (device,) = devices
    generator = torch.Generator().manual_seed(1)
    pictures = torch.randint(0, 256, (IMAGES, stored, stored, 3), generator=generator, dtype=torch.uint8)
    limit = stored - crop
    places = (
        torch.tensor([0, limit, limit // 2]),
        torch.tensor([limit, 0, limit // 3]),
        torch.tensor([False, True, True]),
    )
    shift = 10 * torch.randn(IMAGES, 3, generator=generator)
    mean = (255 * torch.rand(stored, stored, 3, generator=generator)).to(device)
    options = dict(crop=crop, mean_follows_crop=mean_follows_crop)
    batch = pictures.to(device) if device.type == "cuda" else list(pictures)  # as the pipeline does
    ours, pictures = augment(batch, *places, mean, shift, 0.75, dtype=dtype, **options), pictures.to(device)
    torchs = reference.augment(pictures, *places, mean, shift, 0.75, dtype=dtype, **options)
    exact = reference.augment(pictures, *places, mean.double(), shift.double(), 0.75, dtype=torch.float64, **options)
    compare("output", ours, torchs, exact, rounding(exact))
    synchronize(devices)


def product(devices: Sequence[torch.device], shape: tuple[int, int], kernels: str) -> None:
    """The product of a fully connected layer of these weights, in float32. devices: one."""
    (device,) = devices
    x, weight, bias, dy = (
        _samples(dims, seed, device).float()
        for seed, dims in enumerate(((IMAGES, shape[1]), shape, shape[:1], (IMAGES, shape[0])))
    )
    results = []
    for function, dtype in (
        (partial(linear, kernels=kernels), torch.float32),
        (F.linear, torch.float32),
        (F.linear, torch.float64),
    ):
        inputs = [tensor.to(dtype, copy=True).requires_grad_() for tensor in (x, weight, bias)]
        y = function(*inputs)
        results.append([y.detach(), *torch.autograd.grad(y, inputs, dy.to(dtype))])
    terms = {
        "output": shape[1],
        "gradient": shape[0],
        "gradient of the weights": IMAGES,
        "gradient of the bias": IMAGES,
    }
    for (what, count), *tensors in zip(terms.items(), *results):  # of sums in other orders one may err by far less
        compare(what, *tensors, rounding(tensors[2]) * math.sqrt(count))
    synchronize(devices)


# --- crossings


def crossing(
    devices: Sequence[torch.device], shape: tuple[int, ...], dtype: torch.dtype, overlap: bool | None = None
) -> None:
    """Maps of this shape from each of two devices to the other, and their gradients back. overlap: see `Exchange`."""
    cross(Exchange(devices, overlap), shape, dtype)


def cross(exchange: Exchange, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Let each tower of an `Exchange` read the other's maps alone, as its layers do: the same bits have to arrive."""
    towers, devices = (0, 1), exchange.devices
    places = [[torch.zeros(shape, dtype=dtype, device=device) for device in devices] for _ in range(2)]
    for number in range(ROUNDS):
        source_maps, back_gradients = (
            [_samples(shape, 4 * number + first + tower, "cpu").to(dtype) for tower in towers] for first in (0, 2)
        )
        maps = [_copy_late(places[0][tower], source_maps[tower]).detach().requires_grad_() for tower in towers]
        arrivals = []
        for tower, parts in zip(towers, exchange.gather("self-check", maps, 2)):
            own, other = parts[tower], parts[1 - tower]
            if isinstance(other, Crossing):
                weights = torch.tensor([0.0, 1.0], dtype=dtype, device=devices[tower])
                other = split_input_product(_scale, own, other, weights, lambda weight: weight.split(1), None)
            arrivals.append(other)
        torch.autograd.backward(arrivals, [_copy_late(places[1][tower], back_gradients[tower]) for tower in towers])
        for source, target in ((0, 1), (1, 0)):
            way = f"{devices[source]} to {devices[target]}"
            if not torch.equal(arrivals[target].detach().cpu(), source_maps[source]):
                raise Wrong(f"is wrong: other values arrive than were sent from {way}")
            # what tower `source` read is of tower `target`
            if not torch.equal(maps[target].grad.cpu(), back_gradients[source]):
                raise Wrong(f"is wrong: other gradients arrive than were sent from {way}")
    synchronize(devices)


def _scale(x, weight, bias):
    """In place of a product: the reader's own half times 0 plus the other's times 1 is the other's to the last bit."""
    return x * weight


def _copy_late(place, values):
    """The place, which will hold the values when its GPU has done something else."""
    values = values.to(place.device)
    if place.is_cuda:
        work = torch.ones(2048, 2048, device=place.device)
        for _ in range(BUSY):
            work = work @ work
    with torch.no_grad():
        return place.copy_(values)
