"""A network as one file of plain PyTorch that anybody can read, and a safetensors file beside it."""

import importlib.util
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..recipes.recipe import Recipe
from .plain_steps import Step

SOURCE, WEIGHTS = "alexnet.py", "alexnet.safetensors"
MEAN = "mean"  # the tensor that tells such weights from a merged network's
FIRST = '"""AlexNet in plain PyTorch, written by alexnet_mp'  # what a file of ours begins with
_LRN_BEGINS = '''

def lrn(x):
    """Across {size} maps. The paper's alpha multiplies a sum of squares, torch's a mean."""
    how = dict(alpha={size} * {alpha!r}, beta={beta!r}, k={k!r})
'''
_LRN = {
    1: "    return F.local_response_norm(x, {size}, **how)",
    2: "    towers = x.chunk(2, 1)  # no window reaches across the border between them\n"
    "    return torch.cat([F.local_response_norm(tower, {size}, **how) for tower in towers], 1)",
}
_SPATIAL_NORM = '''

def spatial_norm(x):
    """Over {size}x{size} positions of the same map (the code of 2012)."""
    squares = F.avg_pool2d(F.pad(x * x, ({before}, {after}, {before}, {after})), {size}, stride=1, divisor_override=1)
    return x / ({k!r} + {alpha!r} * squares) ** {beta!r}
'''
_LOCAL = '''

class Local(nn.Module):
    """A convolution with kernels and biases of its own at every position."""

    def __init__(self, maps, side, channels, kernel, stride):
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.weight = nn.Parameter(torch.zeros(maps, side, side, channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(maps, side, side))

    def forward(self, x):
        windows = F.unfold(x, self.kernel, stride=self.stride)  # (N, channels * kernel * kernel, positions)
        y = torch.einsum("nkp,mpk->nmp", windows, self.weight.flatten(3).flatten(1, 2))
        return y.unflatten(2, self.bias.shape[1:]) + self.bias
'''
_WHOLE = '''{first} {version}: recipe {recipe}, {classes:,} classes, step {step:,}.

network = load()              # in test mode; dropout's test pass is in the weights
logits = network(pictures)    # {pictures} -> (N, {classes})
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
{helpers}

class AlexNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros({crop}, {crop}, 3))  # the mean image under the crop
{modules}

    def forward(self, pictures):
        x = pictures[:, {top}:{end}, {top}:{end}].float() - self.mean  # the central crop, in grey levels
        x = x.permute(0, 3, 1, 2)  # (N, 3, {crop}, {crop})
{forward}


def load(path=Path(__file__).with_name("{weights}")):
    network = AlexNet()
    network.load_state_dict(load_file(path))
    return network.eval()
'''


def source(recipe: Recipe, steps: Sequence[Step], classes: int, step: int, version: str) -> str:
    """The file's text. step: of training; version: of this package."""
    top = (recipe.stored_size - recipe.crop_size) // 2
    modules, forward, helpers, before = [], [], {}, (3, recipe.crop_size, recipe.crop_size)
    for one in steps:
        module, pads, expression = _told(one, before)
        if module:
            modules.append(f"        self.{one.layer} = {module}")
        if one.kind in ("relu", "tanh", "sigmoid") and forward[-1][0].startswith("self."):
            forward[-1][0] = f"torch.{one.kind}({forward[-1][0]})"
        else:
            told = f"  # ({', '.join(map(str, ('N', *one.shape)))})" if module or one.shape != before else ""
            forward += [[pads, ""]] if pads else []
            forward.append([expression, told])
        helpers |= _helper(one)
        before = one.shape
    lines = [f"        x = {expression}{told}" for expression, told in forward[:-1]]
    lines.append(f"        return {''.join(forward[-1])}")
    side = recipe.stored_size
    return _WHOLE.format(
        first=FIRST,
        version=version,
        recipe=recipe.name,
        classes=classes,
        step=step,
        pictures=f"(N, {side}, {side}, 3) uint8, RGB: shorter side {side}, central square",
        crop=recipe.crop_size,
        top=top,
        end=top + recipe.crop_size,
        helpers="".join(helpers.values()),
        modules="\n".join(modules),
        forward="\n".join(lines),
        weights=WEIGHTS,
    )


def _told(step, before):
    """(the module of a step or "", the zeros that it needs around its input or "", what it makes of x)"""
    how = step.settings
    match step.kind:
        case "conv" | "local":
            channels, kernel, stride, pad, more = before[0], how["kernel"], how["stride"], how["pad"], how["more"]
            pads, call = "", f"self.{step.layer}(x)"
            if more or (pad and step.kind == "local"):  # the last window reaches over the right and bottom edges
                pads, pad = f"F.pad(x, ({pad}, {pad + more}, {pad}, {pad + more}))", 0
            if step.kind == "local":
                return f"Local({step.shape[0]}, {step.shape[1]}, {channels}, {kernel}, {stride})", pads, call
            others = {"stride": (stride, 1), "padding": (pad, 0), "groups": (how["groups"], 1)}
            words = "".join(f", {name}={value}" for name, (value, usual) in others.items() if value != usual)
            return f"nn.Conv2d({channels}, {step.shape[0]}, {kernel}{words})", pads, call
        case "linear":
            read = "x.flatten(1)" if len(before) == 3 else "x"
            return f"nn.Linear({math.prod(before)}, {step.shape[0]})", "", f"self.{step.layer}({read})"
        case "max_pool" | "avg_pool":
            over = ", ceil_mode=True" if how["more"] else ""
            return "", "", f"F.{step.kind}2d(x, {how['window']}, stride={how['stride']}{over})"
        case "lrn" | "spatial_norm":
            return "", "", f"{step.kind}(x)"
        case "scale":
            return "", "", f"{how['factor']!r} * x"
    return "", "", f"torch.{step.kind}(x)"


def _helper(step):
    """{name: the function or class that a step needs}"""
    how = dict(step.settings)
    if step.kind == "local":
        return {"Local": _LOCAL}
    if step.kind not in ("lrn", "spatial_norm"):
        return {}
    if step.kind == "spatial_norm":
        how |= {"before": how["size"] // 2, "after": how["size"] - 1 - how["size"] // 2}
        return {step.kind: _SPATIAL_NORM.format(**how)}
    return {step.kind: f"{_LRN_BEGINS.format(**how)}{_LRN[how['parts']].format(**how)}\n"}


def tensors(recipe: Recipe, steps: Sequence[Step], mean: np.ndarray) -> dict[str, np.ndarray]:
    """What the safetensors file holds: {"conv1.weight": ..., "fc8.bias": ..., "mean": (crop, crop, 3)}, float32.

    mean: (stored, stored, 3), grey levels."""
    with_weights = [one for one in steps if one.weight is not None]
    named = {f"{one.layer}.{what}": getattr(one, what) for one in with_weights for what in ("weight", "bias")}
    top, crop = (recipe.stored_size - recipe.crop_size) // 2, recipe.crop_size
    named[MEAN] = mean[top : top + crop, top : top + crop].astype(np.float32)
    return {name: np.ascontiguousarray(tensor) for name, tensor in named.items()}


def answers(folder: Path, pictures: torch.Tensor) -> torch.Tensor:
    """The logits (N, classes) that a written file gives of pictures (N, stored, stored, 3) uint8. It is run, as its
    reader would."""
    spec = importlib.util.spec_from_file_location("_exported_alexnet", folder / SOURCE)
    module, before = importlib.util.module_from_spec(spec), sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # nothing else in the folder
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    with torch.random.fork_rng(devices=[]), torch.inference_mode():  # its layers draw initial weights
        return module.load()(pictures)
