"""`train --init`: a network begins with the weights of another, all but its last layer; fine-tuning (paper 6)."""
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from . import checkpoint, checkpoint_format, files, tensor_file
from .errors import UserError

TAKES = "it takes a run, a checkpoint, or a .safetensors file"


def read_weights(source):
    """{name: tensor} of a run's newest checkpoint, of one checkpoint, or of a file of `checkpoint --weights`. Raises UserError."""
    path = Path(source)
    if not source:
        raise UserError(f"--init '': {TAKES}")
    if path.is_dir():
        if checkpoint.step_of(path) is not None:
            return checkpoint_format.load_weights(path)
        return checkpoint.newest_weights(path)[1]
    try:
        content = files.read(path, tensor_file.MOST_BYTES)
        tensor_file.read_layout(len(content), content[:8 + tensor_file.MOST_HEADER])
        return load(content)
    except OSError as error:
        raise UserError(f"--init {source}: {error.strerror}; {TAKES}") from None
    except (ValueError, RecursionError, SafetensorError) as error:
        raise UserError(f"--init {source}: {' '.join(str(error).split())}; {TAKES}") from None


def begin_with(network, weights, source):
    """Give a network these weights, layer by layer of the same name; its last layer stays as it was drawn, whatever the file has.

    Returns (layers taken, layers that stay as drawn, layers of the file that the network hasn't). Raises UserError, with the
    tensor's name, where a layer of that name has another shape or values that are not finite, and where there is none to take.
    """
    state, last = network.merged_state(), network.recipe.layers[-1].name
    taken, new = [], []
    for layer in (layer.name for layer in network.recipe.layers):
        names = [name for name in state if name.startswith(f"{layer}.")]
        if layer == last or not any(name in weights for name in names):
            new.append(layer)
            continue
        for name in names:
            if name not in weights:
                raise UserError(f"--init {source}: it has {layer}, but no {name}")
            if weights[name].shape != state[name].shape:
                raise UserError(f"--init {source}: {name} is {tuple(weights[name].shape)} there, "
                                f"but {tuple(state[name].shape)} in this network")
            if not weights[name].is_floating_point() or not torch.isfinite(weights[name]).all():
                raise UserError(f"--init {source}: {name} has values that are not finite numbers")
            state[name] = weights[name].to(state[name].dtype)
        taken.append(layer)
    if not taken:
        raise UserError(f"--init {source}: none of its tensors ({', '.join(sorted(weights))[:200]}) is of a layer before {last}")
    network.load_merged(state)
    foreign = sorted({name.partition(".")[0] for name in weights} - {layer.name for layer in network.recipe.layers})
    return taken, new, foreign
