"""The bytes of a training step by layer and tower, counted from tensors at the very batch size (3.2: a GTX 580 has
3 GB).

A whole step, forward, loss and backward, is taken with tensors that have a shape and no values (torch's
`FakeTensorMode`): nothing is computed or held, and each storage that the step would have is seen when it is made, kept
and let go of. The operators are those that compute on a CPU; a GPU's keep the same tensors.

A tower is counted as on a device of its own: what both towers read is on both. Not seen is what an operator has for
itself while it runs, as the scratch of a convolution, and what an allocator holds back."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..network.network import TwoTowerAlexNet
from ..recipes.recipe import Recipe


@dataclass(frozen=True)
class Bytes:
    """Of one layer on one tower, or of a whole tower."""

    weights: int  # and biases
    gradients: int  # of them
    velocity: int  # of them (5)
    activations: int  # what forward keeps for backward, most of it what the layer reads; the images are the first one's
    # the most that is there beside all that while the layer computes, mostly the gradients of its output and input
    workspace: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.velocity + self.activations + self.workspace


@dataclass(frozen=True)
class StepBytes:
    """Of a training step in float32."""

    batch_size: int
    layers: Mapping[tuple[int, str], Bytes]  # (tower, layer)
    towers: Sequence[Bytes]  # each as on a device of its own
    one_device: Bytes  # both on one device, which keeps what both read once


@functools.lru_cache(maxsize=4)
def step_bytes(recipe: Recipe, classes: int, batch_size: int) -> StepBytes:
    """The `StepBytes` of a recipe's network for so many classes.

    A tower's workspace is that of its layer which needs most: one layer computes after the other. The sums are what is
    needed if nothing were let go of before the step ends; backward lets go of activations on its way."""
    recipe = replace(recipe, lrn_crosses=False)  # two towers that see each other's maps there are not trained
    network = TwoTowerAlexNet(recipe, ("meta",) * recipe.towers, classes)
    storages = _Storages()
    with FakeTensorMode():
        parameters = {
            name: torch.empty_strided(value.shape, value.stride()).requires_grad_()
            for name, value in network.named_parameters()
        }
        counts = {name: torch.zeros(value.shape, dtype=value.dtype) for name, value in network.named_buffers()}
        images = torch.empty(batch_size, 3, recipe.crop_size, recipe.crop_size)
        labels = torch.empty(batch_size, dtype=torch.int64)
        base_keys = {_key(value) for value in (*parameters.values(), *counts.values())}
        hooks = [hook for tower in network.towers for hook in storages.follow(tower)]
        try:
            with torch.autograd.graph.saved_tensors_hooks(storages.keep, lambda tensor: tensor), storages:
                logits = functional_call(network, {**parameters, **counts}, (images,) * recipe.towers)
                F.cross_entropy(logits, labels).backward()
        finally:
            for hook in hooks:
                hook.remove()
    gradient_keys = {_key(value.grad) for value in parameters.values() if value.grad is not None}
    layers, weights = {}, {}
    for name, value in parameters.items():
        _, tower, layer, _ = name.split(".")
        place = int(tower), layer
        weights[place] = weights.get(place, 0) + value.nbytes
    workspace = storages.most_beside(base_keys | gradient_keys)
    for place, count in weights.items():
        activations = sum(size for key, size in storages.kept.get(place, {}).items() if key not in base_keys)
        layers[place] = Bytes(count, count, count, activations, workspace.get(place, 0))
    sizes = {
        key: size for layer_sizes in storages.kept.values() for key, size in layer_sizes.items() if key not in base_keys
    }
    return StepBytes(
        batch_size,
        layers,
        [_sum(layers, [place for place in layers if place[0] == tower]) for tower in range(recipe.towers)],
        _sum(layers, list(layers), sum(sizes.values())),
    )


def _sum(layers, places, activations=None):
    """`Bytes` of several layers; activations: where they are not the sum."""
    parts = [layers[place] for place in places]
    sums = [sum(getattr(part, field) for part in parts) for field in ("weights", "gradients", "velocity")]
    activations = sum(part.activations for part in parts) if activations is None else activations
    return Bytes(*sums, activations, max(part.workspace for part in parts))


def _key(tensor):
    return tensor.untyped_storage()._cdata


class _Storages(TorchDispatchMode):
    """Watches which storages there are while a step is taken, and at which layer of which tower it is."""

    def __init__(self):
        super().__init__()
        self.place = None  # (tower, layer)
        self.kept, self.towers_have = {}, set()
        self.alive = []  # every storage that was seen stays, so that no other one has its key
        self.events = []  # (place, keys that an operator has read or made, those that it made)
        self.sizes = {}

    def follow(self, tower):
        """Hooks that take note of the layer that a tower computes, forward and backward."""

        def enter(module, inputs):
            self.place = tower.index, inputs[0]

        def leave(module, inputs, output):
            place = tower.index, inputs[0]
            if output.requires_grad:
                output.register_hook(lambda gradient: setattr(self, "place", place))

        return tower.register_forward_pre_hook(enter), tower.register_forward_hook(leave)

    def keep(self, tensor):
        """A saved tensor: kept by the layer of its tower that saves it first."""
        key = self._note(tensor)
        if (self.place[0], key) not in self.towers_have:
            self.towers_have.add((self.place[0], key))
            self.kept.setdefault(self.place, {})[key] = self.sizes[key]
        return tensor

    def _note(self, tensor):
        key = _key(tensor)
        if key not in self.sizes:
            self.alive.append(tensor.untyped_storage())
            self.sizes[key] = tensor.untyped_storage().nbytes()
        return key

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        leaves = tree_leaves((arguments, options, result))
        keys = {self._note(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor)}
        if self.place is not None:
            self.events.append((self.place, keys))
        return result

    def most_beside(self, base_keys):
        """{place: bytes of storages, neither of `base_keys` nor kept, that a layer has at most between two of its
        operators}. A storage is there from the first operator that has it to the last."""
        kept_keys = {key for layer_sizes in self.kept.values() for key in layer_sizes}
        first_use, last_use = {}, {}
        for number, (_, keys) in enumerate(self.events):
            for key in keys - base_keys - kept_keys:
                first_use.setdefault(key, number)
                last_use[key] = number
        peaks, total = {}, 0
        begins, ends = {}, {}
        for key in first_use:
            begins[first_use[key]] = begins.get(first_use[key], 0) + self.sizes[key]
            ends[last_use[key]] = ends.get(last_use[key], 0) + self.sizes[key]
        for number, (place, _) in enumerate(self.events):
            total += begins.get(number, 0)
            peaks[place] = max(peaks.get(place, 0), total)
            total -= ends.get(number, 0)
        return peaks
