"""One update of all 60,965,224 parameters of the paper's network, both towers on one device.

Ours is the paper's rule (`paper_sgd_`); torch.optim.SGD, foreach and fused, is another recurrence (its velocity does
not carry the learning rate) over the same tensors, and "reference" the plain PyTorch text of ours. fp32 is the update
alone. bf16 is what a training in bf16 calls: gradients of 16 bits, the weights' 16-bit copies, a sum of each weight
tensor. There torch.optim.SGD has its gradients widened before and the copies made after, as autocast does, and sums
nothing. The least is to read w, v and g and to write w, v and the copy, in both 20 bytes a parameter: the roof is a
copy of as many bytes. The tensors, 12 bytes a parameter, are more than caches hold."""

import copy
import functools
import statistics

import pytest
import torch
from alexnet_mp.kernels import paper_sgd_, reference
from baselines import absence
from interleaved import (
    GRAPH_CALLS,
    REPLAY,
    CopyRoof,
    clocks,
    compare,
    last_level_cache,
    once,
    provenance,
    replay,
    time_interleaved,
)
from roofline import sgd_bytes

from alexnet_mp import paper
from alexnet_mp.recipes.shapes import parameter_counts, sizes

RECIPE = paper()
RATE, SEED = 0.01, 0
ROWS = [
    (torch.device(device), dtype, variant)
    for device, ours in (("cpu", "ours-cpu"), ("cuda:0", "ours-triton"))
    for dtype in ("fp32", "bf16")
    for variant in (ours, "reference", "foreach", "fused", "copy")
]


@pytest.fixture(scope="module")
def measured():
    return once(measure)


@pytest.mark.benchmark(timer=REPLAY)
@pytest.mark.parametrize(
    "device, dtype, variant",
    [
        pytest.param(
            device,
            dtype,
            variant,
            id=f"{device.type}-sgd-{dtype}-{variant}",
            marks=[pytest.mark.gpus(1)] * (device.type == "cuda"),
        )
        for device, dtype, variant in ROWS
    ],
)
def test_sgd(device, dtype, variant, benchmark, measured, asked, rounds):
    if reason := absence(variant, device):
        pytest.skip(reason)
    seconds, wall, conditions = measured(device, dtype, asked, rounds)
    benchmark.group = f"sgd-{dtype}"
    replay(benchmark, seconds[variant]["update"])
    bytes_ = sgd_bytes(RECIPE)
    times = compare(seconds, "update", bytes_, ("foreach", "fused", "reference"))
    benchmark.extra_info.update(
        provenance(device)
        | conditions
        | times[variant]
        | {
            "op": "sgd",
            "variant": variant,
            "dtype": dtype,
            "bytes": bytes_,
            **({"wall_s": statistics.median(wall[variant]["update"])} if device.type == "cuda" else {}),
        }
    )


def measure(device, dtype, names, rounds):
    """Those asked for that are there, checked and timed: (seconds, the same by the host's clock, the conditions)."""
    weights, gradients, velocities = parameters(device)
    copies, sums, variants = [], None, {}
    if dtype == "bf16":
        gradients = [gradient.bfloat16() for gradient in gradients]
        copies, sums = [torch.empty_like(weight) for weight in gradients], torch.empty(len(weights), device=device)
    for name in names:
        if name == "copy":
            variants[name] = CopyRoof({"update": sgd_bytes(RECIPE)}, device)
            continue
        if not absence(name, device):  # else its own test says so
            variants[name] = Update(name, (weights, gradients, velocities), copies, sums)
    before = clocks(device)
    seconds, wall = time_interleaved(variants, device, rounds, seed=SEED)
    return (
        seconds,
        wall,
        {
            "clocks_before": before,
            "clocks_after": clocks(device),
            "seed": SEED,
            "cache": f"cold: {12 * sum(parameter_counts(RECIPE)) >> 20} MiB of tensors in turn, "
            f"the last cache holds {last_level_cache(device) >> 20} MiB",
        },
    )


def parameters(device):
    """(weights and biases, gradients, velocities) of both towers, the shapes of the paper's network."""
    generator = torch.Generator(device).manual_seed(SEED)
    shapes = [
        shape
        for size in sizes(RECIPE)
        for _ in range(RECIPE.towers if size.layer.towers == "each" else 1)
        for shape in (size.weight_shape, size.weight_shape[:1])
    ]
    return tuple(
        [scale * torch.randn(shape, generator=generator, device=device) for shape in shapes]
        for scale in (0.01, 1e-3, 1e-3)
    )


class Update:
    """One variant's update of the tensors, which all share: float32 stays finite, as gradients and decay are small.

    copies, sums: as `paper_sgd_` has them."""

    sets = 1

    def __init__(self, name, tensors, copies, sums):
        weights, gradients, velocities = tensors
        hyper = dict(
            learning_rates=[RATE] * len(weights),
            momentum=RECIPE.momentum,
            weight_decays=[RECIPE.weight_decay] * len(weights),
        )
        if name in ("foreach", "fused"):
            run = torch_sgd(weights, gradients, velocities, copies, name)
            check_torch_sgd(weights, gradients, velocities, copies, name)
        else:
            update = functools.partial(paper_sgd_, kernels=name.removeprefix("ours-"))
            check_paper_sgd(update, tensors, hyper, copies, sums)
            run = functools.partial(update, *tensors, **hyper, copies=copies, sums=sums)
        # a GPU is busy for 300 us a call: its queue hides the launches
        self.calls = GRAPH_CALLS if weights[0].is_cuda else 1
        self.runs = {"update": lambda: [run() for _ in range(self.calls)]}


def torch_sgd(weights, gradients, velocities, copies, name):
    """The step of a torch.optim.SGD over the same tensors, its momentum buffers among them. copies: if there are any,
    gradients of 16 bits are widened before it, and the copies are made after it."""
    wide = [gradient.float() for gradient in gradients]  # those of float32 themselves
    leaves = [weight.detach().requires_grad_() for weight in weights]
    optimizer = torch.optim.SGD(
        leaves, lr=RATE, momentum=RECIPE.momentum, weight_decay=RECIPE.weight_decay, **{name: True}
    )
    for leaf, gradient, velocity in zip(leaves, wide, velocities, strict=True):
        leaf.grad = gradient
        optimizer.state[leaf]["momentum_buffer"] = velocity

    def step_between_casts():
        torch._foreach_copy_(wide, gradients)
        optimizer.step()
        torch._foreach_copy_(copies, weights)

    return step_between_casts if copies else optimizer.step


def some(tensors):
    """The first and last values of every tensor, in float64."""
    return [torch.cat([tensor.flatten()[:5000], tensor.flatten()[-5000:]]).double() for tensor in tensors]


def check_paper_sgd(update, tensors, hyper, copies, sums):
    """Update clones, and compare some values of each tensor with the reference in float64, the 16-bit copies and the
    sums with the new weights. Raises AssertionError."""
    oracle = [some(part) for part in tensors]
    reference.paper_sgd_(*oracle, **hyper)
    weights, gradients, velocities = copy.deepcopy(tensors)
    update(weights, gradients, velocities, **hyper, copies=copies, sums=sums)
    check_copies(copies, weights)
    if sums is not None:
        exact = torch.stack([weight.double().sum() for weight in weights])
        allowance = torch.tensor([1e-6 * weight.numel() for weight in weights], device=sums.device)
        assert ((sums - exact).abs() <= allowance).all(), (sums, exact)
    for group, targets in ((weights, oracle[0]), (velocities, oracle[2])):
        for index, (actual, target) in enumerate(zip(some(group), targets, strict=True)):
            torch.testing.assert_close(actual, target, rtol=1e-5, atol=1e-8, msg=lambda text: f"tensor {index}: {text}")


def check_copies(copies, weights):
    assert all(torch.equal(one, weight.bfloat16()) for one, weight in zip(copies, weights))


def check_torch_sgd(weights, gradients, velocities, copies, name):
    """The same for v <- m v + g + d w; w <- w - e v."""
    w, g, v = (some(part) for part in (weights, gradients, velocities))
    weights, velocities = copy.deepcopy((weights, velocities))
    torch_sgd(weights, gradients, velocities, copies, name)()
    check_copies(copies, weights)
    for index, (actual, weight, gradient, velocity) in enumerate(zip(some(weights), w, g, v, strict=True)):
        target = weight - RATE * (RECIPE.momentum * velocity + gradient + RECIPE.weight_decay * weight)
        torch.testing.assert_close(actual, target, rtol=1e-5, atol=1e-8, msg=lambda text: f"tensor {index}: {text}")
