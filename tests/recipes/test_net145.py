"""Net 145 and the paper's network written a second time, by hand, and the project's networks held against them.

Nothing here comes from the package's own layers: the forward pass is plain torch.nn.functional, written from the 2012
source (layers-145.cfg: the graph; layer-params-145-2010.cfg: the norms; layer.py: sizes and divisors) and from the
paper's section 3. A mistake that the two-tower and the merged network share would show here.
"""

import functools
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from inner_cases import every

from alexnet_mp import TwoTowerAlexNet, paper, source2012
from alexnet_mp.recipes.recipe import override

pytestmark = pytest.mark.run

CLASSES, UNITS = 10, 64  # the convolutions have their full width; 64 units a tower keep fc6 and fc7 quick
SHAPES = {
    "conv1": (96, 3, 11, 11),
    "conv2": (256, 48, 5, 5),
    "conv3": (384, 256, 3, 3),
    "conv4": (384, 192, 3, 3),
    "conv5": (256, 192, 3, 3),
    "fc6": (128, 9216),
    "fc7": (128, 128),
    "fc8": (CLASSES, 128),
}

# 2012 source, layers-145.cfg: LRN on the signed conv1, ReLU only after the pooling; cnorm2 after LRN in layer 2.
# layer-params-145-2010.cfg: scale 1e-4, divided by the window length 5, as torch does too: torch's alpha is 1e-4.
SOURCE = dict(order1="lrn pool relu", order2="relu lrn cnorm pool", order5="pool relu", alpha1=1e-4, alpha2=1e-4)
# Paper, 3.3 and 3.5: conv, ReLU, LRN, pool. The printed formula does not divide alpha by n = 5: torch's alpha is 5e-4.
PAPER = dict(order1="relu lrn pool", order2="relu lrn pool", order5="relu pool", alpha1=5e-4, alpha2=5e-4)


def cnorm(x, scale=1e-3, k=1.0, include_pad=True):
    """cnorm2, type rnorm: a map over its own 5x5 windows. layer.py divides the scale by 25; the kernel has k = 1."""
    mean = F.avg_pool2d(x * x, 5, stride=1, padding=2, count_include_pad=include_pad)
    return x * (k + scale * mean) ** -0.75


def alexnet(
    w,
    x,
    *,
    order1,
    order2,
    order5,
    alpha1,
    alpha2,
    k=2.0,
    pad=(0, 3, 0, 3),
    lrn_towers=2,
    lrn_size=5,
    scale=1e-3,
    cnorm_k=1.0,
    include_pad=True,
    pool=3,
    keep6=0.5,
    keep7=0.5,
    swap3=False,
    swap6=False,
):
    """Test-time logits from the 16 tensors; the keyword defaults are the facts, other values are wrong on purpose."""

    def then(x, order, alpha=None):
        for op in order.split():
            if op == "relu":
                x = F.relu(x)
            elif op == "pool":  # 3/2: 55 -> 27 -> 13 -> 6, every window whole
                x = F.max_pool2d(x, pool, stride=2)
            elif op == "lrn":  # each GPU knew only its own 48 or 128 maps
                halves = x.chunk(lrn_towers, dim=1)
                x = torch.cat([F.local_response_norm(h, lrn_size, alpha=alpha, beta=0.75, k=k) for h in halves], dim=1)
            else:
                x = cnorm(x, scale, cnorm_k, include_pad)
        return x

    def swap(x):
        return torch.cat(x.chunk(2, dim=1)[::-1], dim=1)

    # layer.py: 1 + ceil((224 - 11) / 4) = 55 positions; the last window finds 3 zeros at the right and bottom
    x = then(F.conv2d(F.pad(x, pad), w["conv1.weight"], w["conv1.bias"], stride=4), order1, alpha1)
    x = then(F.conv2d(x, w["conv2.weight"], w["conv2.bias"], padding=2, groups=2), order2, alpha2)
    x = swap(x) if swap3 else x
    x = F.relu(F.conv2d(x, w["conv3.weight"], w["conv3.bias"], padding=1))  # reads both GPUs' maps
    x = F.relu(F.conv2d(x, w["conv4.weight"], w["conv4.bias"], padding=1, groups=2))
    x = then(F.conv2d(x, w["conv5.weight"], w["conv5.bias"], padding=1, groups=2), order5)
    x = swap(x) if swap6 else x
    x = F.relu(F.linear(x.flatten(1), w["fc6.weight"], w["fc6.bias"])) * keep6  # layer.cu: at test, input * keep
    x = F.relu(F.linear(x, w["fc7.weight"], w["fc7.bias"])) * keep7
    return F.linear(x, w["fc8.weight"], w["fc8.bias"])


def off(actual, expected):
    """The largest difference, relative to the largest expected value."""
    assert actual.shape == expected.shape and expected.abs().max() > 0
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def random_state(generator):
    """Weights large enough for both norms to divide by much more than their constant k alone."""
    state = {}
    for name, shape in SHAPES.items():
        fan_in = torch.Size(shape[1:]).numel()
        std = (2.0 if name in ("conv1", "conv2") else 1.0) * (2.0 / fan_in) ** 0.5
        state[f"{name}.weight"] = std * torch.randn(shape, generator=generator, dtype=torch.float64)
        state[f"{name}.bias"] = 15.0 * torch.randn(shape[0], generator=generator, dtype=torch.float64)
    return state


@pytest.fixture(scope="module")
def cases():
    return functools.cache(build)  # each network once for the whole file


def build(name):
    """Both networks with the same 16 tensors, two pictures, and what the handwritten pass makes of them."""
    recipe, facts = {"source2012": (source2012, SOURCE), "paper": (paper, PAPER)}[name]
    generator = torch.Generator().manual_seed(145)
    state = random_state(generator)
    images = 60.0 * torch.randn(2, 3, 224, 224, generator=generator, dtype=torch.float64)  # grey levels less their mean
    along = torch.randn(2, CLASSES, generator=generator, dtype=torch.float64)  # the loss: sum of logits * along
    recipe = override(recipe(), [f"fc6.maps={UNITS}", f"fc7.maps={UNITS}"])
    net = TwoTowerAlexNet(recipe, devices=("cpu", "cpu"), classes=CLASSES).double().eval()
    split = {}  # the first half of the maps is GPU0's; fc8 stood on GPU0 whole
    for key, value in state.items():
        for tower, part in enumerate([value] if key.startswith("fc8") else value.chunk(2)):
            split[f"towers.{tower}.{key}"] = part
    net.load_state_dict(split)
    merged_net = net.merge()
    project = merged_net(images).detach()
    leaves = {key: value.clone().requires_grad_() for key, value in state.items()}
    logits = alexnet(leaves, images, **facts)
    grads = dict(zip(leaves, torch.autograd.grad((logits * along).sum(), list(leaves.values()))))
    return SimpleNamespace(
        facts=facts,
        net=net,
        merged=merged_net,
        state=state,
        images=images,
        project=project,
        along=along,
        logits=logits.detach(),
        grads=grads,
    )


@pytest.mark.parametrize("network", ["merged", "two towers"])
@pytest.mark.parametrize("name", ["source2012", "paper"])
def test_network_is_the_handwritten_one(cases, name, network):
    """Logits to 1e-12, each tensor's gradient to 1e-10 of its largest entry.

    That the source's max-pool gave every tied maximum the gradient (conv_util.cu) makes no difference: on random data
    only zeros tie, and the ReLU they come from stops whatever gradient they are given.
    """
    case = cases(name)
    assert all(torch.equal(value, case.state[key]) for key, value in case.merged.state_dict().items())
    net, inputs, prefixes = (case.merged, 1, [""]) if network == "merged" else (case.net, 2, ["towers.0.", "towers.1."])
    logits = net(*[case.images] * inputs)
    assert off(logits.detach(), case.logits) < 1e-12
    parameters = dict(net.named_parameters())
    grads = dict(zip(parameters, torch.autograd.grad((logits * case.along).sum(), list(parameters.values()))))
    errors = {}
    for key, expected in case.grads.items():
        errors[key] = off(
            torch.cat([grads.pop(prefix + key) for prefix in prefixes if prefix + key in grads]), expected
        )
    assert not grads and len(errors) == 16 and max(errors.values()) < 1e-10, errors


EITHER = {
    "k of 1": dict(k=1.0),
    "norm over three maps": dict(lrn_size=3),
    "norm across both towers": dict(lrn_towers=1),
    "padding 2 all round": dict(pad=(2, 2, 2, 2)),
    "padding at the left and top": dict(pad=(3, 0, 3, 0)),
    "pooling 2/2": dict(pool=2),
    "no halving after fc6": dict(keep6=1.0),
    "no halving after fc7": dict(keep7=1.0),
    "conv3 reads b before a": dict(swap3=True),
    "fc6 reads b before a": dict(swap6=True),
}
MISTAKES = {
    "source2012": EITHER
    | {
        "relu before norm in layer 1": dict(order1="relu lrn pool"),
        "pool before norm in layer 1": dict(order1="pool lrn relu"),
        "norm before relu in layer 2": dict(order2="lrn relu cnorm pool"),
        "the paper's alpha in layer 1": dict(alpha1=5e-4),
        "the paper's alpha in layer 2": dict(alpha2=5e-4),
        "no cnorm2": dict(order2="relu lrn pool"),
        "cnorm2 before the cross-map norm": dict(order2="relu cnorm lrn pool"),
        "cnorm2 after the pooling": dict(order2="relu lrn pool cnorm"),
        "cnorm2 with k of 2": dict(cnorm_k=2.0),
        "cnorm2 with the scale undivided": dict(scale=1e-3 * 25),
        "cnorm2 renormalised at the edges": dict(include_pad=False),
    },
    "paper": EITHER
    | {
        "norm before relu in layer 1": dict(order1="lrn relu pool"),
        "pool before norm in layer 1": dict(order1="relu pool lrn"),
        "norm before relu in layer 2": dict(order2="lrn relu pool"),
        "the source's alpha in layer 1": dict(alpha1=1e-4),
        "the source's alpha in layer 2": dict(alpha2=1e-4),
        "cnorm2 added": dict(order2="relu lrn cnorm pool"),
    },
}


def changed(case, **change):
    """How far from the project's logits a changed pass comes out; one picture in single precision is enough."""
    state = {key: value.float() for key, value in case.state.items()}
    with torch.no_grad():
        return off(alexnet(state, case.images[:1].float(), **{**case.facts, **change}).double(), case.project[:1])


@every("name, mistake", [(name, mistake) for name in MISTAKES for mistake in MISTAKES[name]])
def test_a_wrong_network_does_not_agree(cases, name, mistake):
    """Each fact is worth more than 1e-3 of the logits, so that agreement to 1e-12 is evidence of every one of them."""
    assert changed(cases(name), **MISTAKES[name][mistake]) > 1e-3


@pytest.mark.parametrize("name,norms", [("source2012", ("alpha1", "alpha2", "scale")), ("paper", ("alpha1", "alpha2"))])
def test_the_norms_matter_here(cases, name, norms):
    """Each norm's sum of squares, not only its constant k, moves the logits by over 1 %: the signal is large enough."""
    assert changed(cases(name)) < 1e-4  # what single precision costs
    assert all(changed(cases(name), **{norm: 0.0}) > 1e-2 for norm in norms)


def test_the_norms_used_here_are_the_formulas_of_the_source():
    """Windows clipped at the edges, divisor kept (conv_util.cu): 2 + 1e-4/5 * S over maps, 1 + 1e-3/25 * S over 5x5."""
    x = 200.0 * torch.randn(1, 7, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    square, map_norm, spatial_norm = x * x, torch.empty_like(x), torch.empty_like(x)
    for i in range(7):
        map_norm[:, i] = x[:, i] * (2 + 2e-5 * square[:, max(i - 2, 0) : i + 3].sum(1)) ** -0.75
    for i in range(6):
        for j in range(6):
            window = square[:, :, max(i - 2, 0) : i + 3, max(j - 2, 0) : j + 3].sum((2, 3))
            spatial_norm[:, :, i, j] = x[:, :, i, j] * (1 + 4e-5 * window) ** -0.75
    assert off(F.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=2.0), map_norm) < 1e-14
    assert off(cnorm(x), spatial_norm) < 1e-14
