"""Every operation that has a kernel, once: what a new device is asked first, and what compute-sanitizer looks at.

Small maps, forward and backward, on each implementation that can run here, against `reference.py` in float64. Each data
type and implementation is a case of its own: `-k fp32` compiles the fewest kernels. The file of each operation has the
odd shapes, the ties, the NaN.
"""

import pytest
import torch
from alexnet_mp.kernels import augment, dispatch, paper_sgd_, reference, relu_dropout
from cases import (
    assert_rounded_once,
    clear_winners,
    exactly,
    gradients,
    half_ulp,
    in_format,
    outputs,
    takes_bias,
    values,
)
from inner_cases import every

from alexnet_mp import kernels as public
from alexnet_mp.evaluation.accuracy import topk_credit, topk_credit_each

pytestmark = pytest.mark.usefixtures("one_thread")
every_dtype = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"]
)
# The rows of cases.OPERATIONS between which every kernel of a map operation runs, with the layouts that choose it.
MAPS = {
    "lrn_max_pool": ("before", "after, all"),
    "lrn": ("lrn",),
    "max_pool": ("max_pool",),
    "spatial_norm_max_pool": ("spatial", "spatial, all"),
}
OTHERS = {"relu_dropout", "paper_sgd_", "augment"}
PLAIN = {"linear", "avg_pool", "dropout", "spatial_norm"}  # PyTorch's operations, on a GPU


def close(actual, exact, scale=1.0, packed=False):
    """To rounding: once in 16 bits, a few dozen times in float32, of values as large as the largest."""
    if actual.dtype == torch.float32:
        error = float((actual.double().cpu() - exact).abs().max())
        assert error <= scale * 2e-6 * float(exact.abs().max()), error
    else:
        assert_rounded_once(actual, exact, packed)


def test_nothing_is_left_out():
    """`topk_credit` is a kernel of `evaluation/accuracy.py`."""
    assert set(MAPS) | OTHERS | PLAIN == set(public.__all__)
    assert set(dispatch.WITHOUT_CUDA) <= set(MAPS) | OTHERS | {"topk_credit"}


@every_dtype
@every("memory_format", ["channels_last", "nchw"])
@every("operation", [operation for operations in MAPS.values() for operation in operations])
def test_map_operations(implementation, operation, memory_format, dtype):
    kernels, device = implementation
    x = in_format(values(2, 48, 11, 8).to(dtype), memory_format).to(device)
    bias = values(48, seed=2).to(dtype).to(device)
    exact = exactly(operation, x, bias)
    for train, y in enumerate(outputs(operation, x, bias, kernels)):
        close(y, exact, packed=kernels == "cuda" and train)
    dy = (values(*y.shape, seed=3, scale=1) * clear_winners(operation, x, bias)).to(dtype).to(device)
    exact = gradients(operation, x.double().cpu(), bias.double().cpu(), dy.double().cpu(), "reference")
    actual = gradients(operation, x, bias, dy, kernels)
    close(actual[0], exact[0])
    if takes_bias(operation):
        close(actual[1], exact[1], scale=10)  # a sum of 176 rounded terms, which cancel


@every_dtype
@every("shape", [(3, 192, 5, 7), (5, 256)], ids=["maps", "units"])
@every("probability", [0.0, 0.5])
def test_relu_dropout(implementation, shape, probability, dtype):
    """On a CPU the kernel is one of dropout without a bias, in NCHW."""
    kernels, device = implementation
    x, bias = (tensor.to(dtype).to(device) for tensor in (values(*shape), values(shape[1], seed=2)))
    if len(shape) == 4 and kernels != "cpu":
        x = in_format(x, "channels_last")
    tensors = (x,) if kernels == "cpu" else (x, bias)
    where = dict(probability=probability, seed=1, layer=5, tower=1)
    ours, theirs = [], []
    for results, who, step in ((ours, kernels, torch.tensor(7, device=device)), (theirs, "reference", 7)):
        inputs = [
            tensor.detach().clone().requires_grad_() if who == kernels else tensor.detach().cpu().requires_grad_()
            for tensor in tensors
        ]
        y = relu_dropout(*inputs, step=step, **where, kernels=who)
        if who == kernels and (probability or kernels != "cpu"):
            assert "alexnet_mp_relu_dropout" in y.grad_fn.name()
        dy = values(*shape, seed=3, scale=1).to(dtype).to(y.device)
        results += [y.detach(), *torch.autograd.grad(y, inputs, dy)]
    for actual, expected in zip(ours[:2], theirs[:2], strict=True):
        assert torch.equal(actual.cpu(), expected)
    if kernels == "cpu":
        return
    exact = (theirs[1].double()).sum((0, 2, 3) if len(shape) == 4 else 0)
    slack = 2e-6 * theirs[1].double().abs().sum() / shape[1]
    assert ((ours[2].double().cpu() - exact).abs() <= half_ulp(exact, dtype) + slack).all()


@every_dtype
def test_paper_sgd(implementation, dtype):
    kernels, device = implementation
    tensors = [
        [values(size, seed=seed, scale=1).to(dtype).to(device) for size in (1, 4097, 40_003)] for seed in (1, 2, 3)
    ]
    exact = [[tensor.double().cpu() for tensor in part] for part in tensors]
    rule = dict(learning_rates=[0.1, 0.0, 0.01], momentum=0.9, weight_decays=[5e-4] * 3)
    reference.paper_sgd_(*exact, **rule)
    paper_sgd_(*tensors, **rule, kernels=kernels)
    for actual, expected in zip((*tensors[0], *tensors[2]), (*exact[0], *exact[2]), strict=True):
        close(actual, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_paper_sgd_of_a_run(implementation, dtype):
    """As it trains in 16 bits: gradients and copies of the float32 weights in them, and sums that watch for NaN."""
    kernels, device = implementation
    w, g, v = (
        [values(size, seed=seed, scale=1).float().to(device) for size in (1, 4097, 40_003)] for seed in (1, 2, 3)
    )
    g = [gradient.to(dtype) for gradient in g]
    copies, sums = [torch.zeros_like(gradient) for gradient in g], torch.zeros(3, device=device)
    exact = [[tensor.double().cpu() for tensor in part] for part in (w, g, v)]
    rule = dict(learning_rates=[0.1, 0.0, 0.01], momentum=0.9, weight_decays=[5e-4] * 3)
    reference.paper_sgd_(*exact, **rule)
    paper_sgd_(w, g, v, copies=copies, sums=sums, **rule, kernels=kernels)
    for number in (0, 2):
        close(w[number], exact[0][number])
        assert torch.equal(copies[number], w[number].to(dtype))
        assert abs(float(sums[number]) - float(exact[0][number].sum())) <= 1e-6 * float(exact[0][number].abs().sum())
    assert not copies[1].any() and sums[1] == 0


@every_dtype
def test_topk_credit(implementation, dtype):
    """The others are right and wrong, and tied."""
    kernels, device = implementation
    scores, labels = values(64, 10, scale=1).to(dtype), torch.arange(64) % 10
    scores[32:] = scores[32:].round()
    actual = topk_credit(scores.to(device), labels.to(device), kernels)
    assert torch.equal(actual.cpu(), torch.stack([each.sum() for each in topk_credit_each(scores, labels)]))


@every_dtype
@every("follows", [True, False], ids=["mean follows", "centre of the mean"])
def test_augment(implementation, follows, dtype):
    kernels, device = implementation
    draws = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (3, 40, 40, 3), generator=draws, dtype=torch.uint8)
    mean, shift = 255 * torch.rand(40, 40, 3, generator=draws), torch.randn(3, 3, generator=draws)
    places = torch.tensor([0, 3, 8]), torch.tensor([8, 0, 5]), torch.tensor([True, False, True])
    how = dict(crop=32, mean_follows_crop=follows, dtype=dtype)
    y = augment(pictures.to(device), *places, mean.to(device), shift, 0.9, **how, kernels=kernels)
    assert torch.equal(y.cpu(), reference.augment(pictures, *places, mean, shift, 0.9, **how))
