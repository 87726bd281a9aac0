"""`train --init`: a network begins with the weights of another, all but its last layer; fine-tuning (paper 6)."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from ..network.network import TwoTowerAlexNet
from ..recipes import shapes
from ..runs import checkpoint_format, checkpoints, safetensors_file
from ..runs.directory import NON_FINITE
from ..system.errors import UserError

TAKES = "it takes a run, a checkpoint, or a .safetensors file; convert makes a run of what is from elsewhere"


def read_weights(source: str | Path) -> dict[str, torch.Tensor]:
    """{name: tensor} of a run's newest checkpoint, of one checkpoint, or of a file of `checkpoint --weights`. Raises
    UserError.

    Any of them may be a symbolic link, as in a cache of models; the files within a checkpoint may not.

    The velocities of a checkpoint have the names and shapes of its weights: they are told by the file's name, and what
    lies in a checkpoint is compared with its manifest. A copy of them under another name can't be told."""
    if not source:
        raise UserError(f"--init '': {TAKES}")
    path = Path(source).absolute()
    if checkpoints.step_of(path.parent) is None:  # a checkpoint's own file must not be a link
        path = Path(os.path.realpath(path))
    if path.is_dir():
        if checkpoints.step_of(path) is not None:
            return checkpoint_format.load_weights(path)
        _refuse_diverged(path)
        if not checkpoints.listing(path):
            raise UserError(
                f"--init {source}: no checkpoint in it (expected {path}/checkpoints/step_XXXXXXXX/); {TAKES}"
            )
        return checkpoints.newest_weights(path)[1]
    in_checkpoint = checkpoints.step_of(path.parent) is not None
    if (
        checkpoint_format.VELOCITY in (path.name, Path(source).name)
        or in_checkpoint
        and path.name != checkpoint_format.WEIGHTS
    ):
        raise UserError(
            f"--init {source}: no file of weights; those of a checkpoint are in {checkpoint_format.WEIGHTS}; {TAKES}"
        )
    if in_checkpoint and path.exists():
        return checkpoint_format.load_weights(path.parent)
    try:
        return load(safetensors_file.read(path)[1])
    except OSError as error:
        raise UserError(f"--init {source}: {error.strerror}; {TAKES}") from None
    except (ValueError, RecursionError, SafetensorError) as error:
        raise UserError(f"--init {source}: {' '.join(str(error).split())}; {TAKES}") from None


def _refuse_diverged(run):
    """Raise UserError where a run ended at a loss or a tensor that isn't finite: nobody means its newest checkpoint by
    its name."""
    try:
        step = json.loads((run / NON_FINITE).read_text(encoding="utf-8"))["step"]
        newest = max(checkpoints.listing(run), default=-1)
        diverged = newest <= step  # else it went on in the same directory, and past that step
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return
    if diverged:
        hint = f"; it has a checkpoint of before, {checkpoints.newest(run)}" if newest >= 0 else ""
        raise UserError(f"--init {run}: this run diverged at step {step} ({NON_FINITE}){hint}; {TAKES}")


def begin_with(
    network: TwoTowerAlexNet, weights: Mapping[str, torch.Tensor], source: str | Path, only: Sequence[str] | None = None
) -> tuple[list[str], list[str], list[str]]:
    """Give a network these weights, layer by layer of the same name; its last layer stays as it was drawn, whatever the
    file has.

    only: names of the layers to take, each of which has to be there; None: all that are. Returns (layers taken, layers
    that stay as drawn, layers of the file that the network hasn't). Raises UserError, with the tensor's name, where a
    layer of that name has another shape or values that are not finite, and where there is none to take.
    """
    layers = [layer.name for layer in network.recipe.layers]
    *candidates, last_layer = layers
    source_layers = [layer for layer in candidates if f"{layer}.weight" in weights or f"{layer}.bias" in weights]
    for layer in only or ():
        if layer not in candidates:
            raise UserError(
                f"--init-layers {layer}: it names some of the layers before the last, {', '.join(candidates)}"
            )
        if layer not in source_layers:
            raise UserError(f"--init {source}: it has no {layer}, which --init-layers names")
    subset = [layer for layer in source_layers if only is None or layer in only]
    tensors = {
        name: _valid_tensor(weights, name, shape, source).to(network.dtype)
        for name, shape in shapes.merged_shapes(network.recipe, network.classes).items()
        if name.partition(".")[0] in subset
    }
    if not subset:
        raise UserError(
            f"--init {source}: none of its tensors ({', '.join(sorted(weights))[:200]}) is of a layer before "
            f"{last_layer}"
        )
    parameters = network.layer_parameters()
    network.take(tensors, {name: parameters[name] for name in tensors})
    foreign_layers = {name.partition(".")[0] for name in weights} - set(layers)
    return subset, [layer for layer in layers if layer not in subset], sorted(foreign_layers)


def _valid_tensor(weights, name, shape, source):
    """The tensor of that name. Raises UserError where it is missing, of another shape, or not finite."""
    if name not in weights:
        raise UserError(f"--init {source}: it has {name.partition('.')[0]}, but no {name}")
    tensor = weights[name]
    if tensor.shape != shape:
        raise UserError(f"--init {source}: {name} is {tuple(tensor.shape)} there, but {shape} in this network")
    if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
        raise UserError(f"--init {source}: {name} has values that are not finite numbers")
    return tensor
