"""The figures of `benchmarks/roofline.py`: against tables worked out by hand, and against what PyTorch does,
counted."""

import json

import pytest
import roofline
import torch
import torch.nn.functional as F
from alexnet_mp.kernels import dispatch, lrn_max_pool
from inner_cases import every
from torch.utils._python_dispatch import TorchDispatchMode

from alexnet_mp.recipes.architectures import mini, paper, source2012

OPS = {op.name: op for op in roofline.map_ops(paper())}
RECIPE = paper()
LRN = dict(size=RECIPE.lrn_size, alpha=RECIPE.lrn_alpha, beta=RECIPE.lrn_beta, k=RECIPE.lrn_k)


def test_the_papers_network_has_three_fused_operations():
    assert [(op.name, op.maps, op.height, op.out_height, op.norm) for op in OPS.values()] == [
        ("lrnpool1", 48, 55, 27, "lrn"),
        ("lrnpool2", 128, 27, 13, "lrn"),
        ("maxpool5", 128, 13, 6, "none"),
    ]


def test_the_2012_source_has_a_norm_more():
    assert [op.name for op in roofline.map_ops(source2012())] == ["lrnpool1", "lrn2", "spatialpool2", "maxpool5"]
    # all tied maxima: found again from x
    assert [op.argmax_bytes for op in roofline.map_ops(source2012())] == [0, 0, 0, 0]


@every(
    "name, dtype, batch, forward, backward",
    [
        ("lrnpool1", "fp32", 128, 96.7, 171.1),
        ("lrnpool1", "fp32", 1024, 773.9, 1368.6),
        ("lrnpool1", "bf16", 128, 50.6, 87.8),
        ("lrnpool1", "bf16", 1024, 404.9, 702.2),
        ("lrnpool2", "fp32", 128, 61.6, 109.4),
        ("lrnpool2", "fp32", 1024, 493.0, 875.2),
        ("lrnpool2", "bf16", 128, 32.2, 56.1),
        ("lrnpool2", "bf16", 1024, 257.6, 448.7),
    ],
)
def test_least_megabytes_of_one_tower(name, dtype, batch, forward, backward):
    assert round(OPS[name].bytes("fwd", batch, dtype) / 1e6, 1) == forward
    assert round(OPS[name].bytes("bwd", batch, dtype) / 1e6, 1) == backward
    assert OPS[name].bytes("fwdbwd", batch, dtype) == sum(
        OPS[name].bytes(step, batch, dtype) for step in ("fwd", "bwd")
    )


@every(
    "way, dtype, forward, backward",
    [
        ("eager", "fp32", 19.76, 44.57),
        ("inductor", "fp32", 3.15, 8.87),
        ("eager", "bf16", 10.11, 22.51),
        ("inductor", "bf16", 1.60, 4.46),
    ],
)
def test_megabytes_of_the_rivals(way, dtype, forward, backward):
    """An image, a tower, layers 1 and 2 together."""
    for step, expected in (("fwd", forward), ("bwd", backward)):
        traffic = sum(OPS[name].traffic(step, 1, dtype, way) for name in ("lrnpool1", "lrnpool2"))
        assert traffic / 1e6 == pytest.approx(expected, abs=0.006)


def test_parameters_and_flops_of_the_whole_network():
    figures = roofline.report(paper(), [128])
    assert figures["total"]["parameters"] == 60_965_224
    assert (
        round(figures["total"]["forward_mflop"], 1) == 1448.8 and round(figures["total"]["training_mflop"], 1) == 4135.6
    )
    assert {row["layer"]: round(row["forward_mflop"], 1) for row in figures["layers"]} == {
        "conv1": 105.4,
        "conv2": 223.9,
        "conv3": 149.5,
        "conv4": 112.1,
        "conv5": 74.8,
        "fc6": 37.7,
        "fc7": 16.8,
        "fc8": 8.2,
    }
    assert round(figures["sgd_bytes"] / 1e9, 3) == 1.219


def test_flops_of_one_value():
    """Forward, layer 1: bias, ReLU, square, 4 additions, alpha, k, 3 for the power, the product: 13; 8 comparisons an
    output."""
    op = OPS["lrnpool1"]
    assert op.flops("fwd", 2) == 2 * (13 * 48 * 55 * 55 + 8 * 48 * 27 * 27)


def test_the_least_time_of_a_step():
    """Milliseconds on one H200, its figures the defaults; layer 5 reads no x in the backward pass, and fc8 is on one
    tower."""
    step = roofline.step(paper(), 128, "fp32")
    assert {name: round(value, 3) for name, value in step.items()} == {
        "conv": 1.230,
        "fc": 0.178,
        "maps": 0.217,
        "relu backward": 0.049,
        "sgd": 0.284,
        "step": 1.958,
    }
    assert roofline.step(paper(), 128, "bf16")["step"] == pytest.approx(1.125, abs=0.001)
    assert roofline.step(paper(), 128, "bf16", bandwidth=2150, tflops=395)["step"] == pytest.approx(2.25, abs=0.002)


class CountBytes(TorchDispatchMode):
    """Bytes of the different inputs and outputs of every operation that computes something."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        if not function.is_view and "detach" not in str(function):
            tensors = [
                leaf for leaf in torch.utils._pytree.tree_leaves((arguments, result)) if isinstance(leaf, torch.Tensor)
            ]
            self.bytes += sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in tensors}.values())
        return result


def eager(x, bias):
    a = F.relu(x + bias.view(-1, 1, 1))
    return F.max_pool2d(F.local_response_norm(a, 5, 5 * LRN["alpha"], LRN["beta"], LRN["k"]), 3, 2)


@pytest.mark.parametrize("name", ["lrnpool1", "lrnpool2"])
def test_traffic_of_plain_pytorch_as_counted(name):
    """The operations that PyTorch dispatches, inputs and outputs added up: the table, and 1 % for the zeros beside the
    maps."""
    x, bias = _inputs(OPS[name])
    with CountBytes() as forward:
        y = eager(x, bias)
    dy = torch.ones_like(y)
    with CountBytes() as backward:
        torch.autograd.grad(y, (x, bias), dy)
    assert forward.bytes == pytest.approx(OPS[name].traffic("fwd", 2, "fp32", "eager"), rel=0.01)
    assert backward.bytes == pytest.approx(OPS[name].traffic("bwd", 2, "fp32", "eager"), rel=0.01)


def test_ours_saves_five_times_less_than_plain_pytorch():
    """Layers 1 and 2 together, float32: 5.5 times the input is kept by plain PyTorch, 1.06 by ours (x, and a byte an
    output)."""
    if "cpu" not in dispatch.built():
        pytest.skip(dispatch.description())
    inputs = sum(op.inputs for op in (OPS["lrnpool1"], OPS["lrnpool2"])) * 2 * 4
    eager_bytes = sum(saved_bytes(eager, OPS[name]) for name in ("lrnpool1", "lrnpool2"))
    our_bytes = sum(
        saved_bytes(lambda x, bias: lrn_max_pool(x, bias, **LRN, kernels="cpu"), OPS[name])
        for name in ("lrnpool1", "lrnpool2")
    )
    assert eager_bytes / inputs == pytest.approx(5.5, abs=0.1)
    assert our_bytes == sum(OPS[name].saved_bytes(2, "fp32") for name in ("lrnpool1", "lrnpool2"))
    assert eager_bytes / our_bytes >= 5


def saved_bytes(function, op):
    """Bytes of the different tensors that autograd keeps for the backward pass."""
    sizes = {}

    def keep(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = function(*_inputs(op))  # kept alive, so that no two of them have one address
    assert y.requires_grad
    return sum(sizes.values())


def _inputs(op):
    """x of two images and the bias."""
    generator = torch.Generator().manual_seed(0)
    x = 50 * torch.randn(2, op.maps, op.height, op.width, generator=generator)
    return x.requires_grad_(), torch.randn(op.maps, generator=generator).requires_grad_()


def test_command_prints_every_operation_and_json(capsys):
    roofline.main(["--batch", "16"])
    output = capsys.readouterr().out
    assert "lrnpool1 48x55x55 fwd fp32 b16" in output and "60,965,224" in output
    roofline.main(["--recipe", "source2012", "--batch", "16", "--json", "--bandwidth", "1000"])
    figures = json.loads(capsys.readouterr().out)
    assert figures["bandwidth_gb_per_s"] == 1000 and len(figures["maps"]) == 4 * 2 * 2
    assert [row["limit_us"] for row in figures["maps"]] == pytest.approx(
        [row["bytes"] / 1e6 for row in figures["maps"]]
    )
    roofline.report(mini(), [1])
