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
_WHOLE = '''{first} {version}: recipe {recipe}, {classes:,} classes{step}.

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


def source(recipe: Recipe, steps: Sequence[Step], classes: int, step: int | None, version: str) -> str:
    """The file's text. step: of training, None where nobody knows it; version: of this package."""
    top = (recipe.stored_size - recipe.crop_size) // 2
    modules, forward, helpers, shape = [], [], {}, (3, recipe.crop_size, recipe.crop_size)
    for operation in steps:
        module, pads, expression = _code_of(operation, shape)
        if module:
            modules.append(f"        self.{operation.layer} = {module}")
        if operation.kind in ("relu", "tanh", "sigmoid") and forward[-1][0].startswith("self."):
            forward[-1][0] = f"torch.{operation.kind}({forward[-1][0]})"
        else:
            note = f"  # ({', '.join(map(str, ('N', *operation.shape)))})" if module or operation.shape != shape else ""
            forward += [[pads, ""]] if pads else []
            forward.append([expression, note])
        helpers |= _helper(operation)
        shape = operation.shape
    lines = [f"        x = {expression}{note}" for expression, note in forward[:-1]]
    lines.append(f"        return {''.join(forward[-1])}")
    side = recipe.stored_size
    return _WHOLE.format(
        first=FIRST,
        version=version,
        recipe=recipe.name,
        classes=classes,
        step="" if step is None else f", step {step:,}",
        pictures=f"(N, {side}, {side}, 3) uint8, RGB: shorter side {side}, central square",
        crop=recipe.crop_size,
        top=top,
        end=top + recipe.crop_size,
        helpers="".join(helpers.values()),
        modules="\n".join(modules),
        forward="\n".join(lines),
        weights=WEIGHTS,
    )


def _code_of(step, input_shape):
    """(the module of a step or "", the zeros that it needs around its input or "", what it makes of x)"""
    settings = step.settings
    match step.kind:
        case "conv" | "local":
            channels, kernel, stride, pad, extra = (
                input_shape[0],
                settings["kernel"],
                settings["stride"],
                settings["pad"],
                settings["more"],
            )
            pads, call = "", f"self.{step.layer}(x)"
            if extra or (pad and step.kind == "local"):  # the last window reaches over the right and bottom edges
                pads, pad = f"F.pad(x, ({pad}, {pad + extra}, {pad}, {pad + extra}))", 0
            if step.kind == "local":
                return f"Local({step.shape[0]}, {step.shape[1]}, {channels}, {kernel}, {stride})", pads, call
            options = {"stride": (stride, 1), "padding": (pad, 0), "groups": (settings["groups"], 1)}
            arguments = "".join(f", {name}={value}" for name, (value, default) in options.items() if value != default)
            return f"nn.Conv2d({channels}, {step.shape[0]}, {kernel}{arguments})", pads, call
        case "linear":
            operand = "x.flatten(1)" if len(input_shape) == 3 else "x"
            return f"nn.Linear({math.prod(input_shape)}, {step.shape[0]})", "", f"self.{step.layer}({operand})"
        case "max_pool" | "avg_pool":
            ceil_mode = ", ceil_mode=True" if settings["more"] else ""
            return "", "", f"F.{step.kind}2d(x, {settings['window']}, stride={settings['stride']}{ceil_mode})"
        case "lrn" | "spatial_norm":
            return "", "", f"{step.kind}(x)"
        case "scale":
            return "", "", f"{settings['factor']!r} * x"
    return "", "", f"torch.{step.kind}(x)"


def _helper(step):
    """{name: the function or class that a step needs}"""
    settings = dict(step.settings)
    if step.kind == "local":
        return {"Local": _LOCAL}
    if step.kind not in ("lrn", "spatial_norm"):
        return {}
    if step.kind == "spatial_norm":
        settings |= {"before": settings["size"] // 2, "after": settings["size"] - 1 - settings["size"] // 2}
        return {step.kind: _SPATIAL_NORM.format(**settings)}
    return {step.kind: f"{_LRN_BEGINS.format(**settings)}{_LRN[settings['parts']].format(**settings)}\n"}


def tensors(recipe: Recipe, steps: Sequence[Step], mean: np.ndarray) -> dict[str, np.ndarray]:
    """What the safetensors file holds: {"conv1.weight": ..., "fc8.bias": ..., "mean": (crop, crop, 3)}, float32.

    mean: (stored, stored, 3), grey levels."""
    weight_steps = [step for step in steps if step.weight is not None]
    arrays = {f"{step.layer}.{what}": getattr(step, what) for step in weight_steps for what in ("weight", "bias")}
    top, crop = (recipe.stored_size - recipe.crop_size) // 2, recipe.crop_size
    arrays[MEAN] = mean[top : top + crop, top : top + crop].astype(np.float32)
    return {name: np.ascontiguousarray(tensor) for name, tensor in arrays.items()}


def answers(folder: Path, pictures: torch.Tensor) -> torch.Tensor:
    """The logits (N, classes) that a written file gives of pictures (N, stored, stored, 3) uint8. It is run, as its
    reader would."""
    spec = importlib.util.spec_from_file_location("_exported_alexnet", folder / SOURCE)
    module, setting = importlib.util.module_from_spec(spec), sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # nothing else in the folder
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = setting
    with torch.random.fork_rng(devices=[]), torch.inference_mode():  # its layers draw initial weights
        return module.load()(pictures)
