"""How much memory a training step needs on each tower, from the tensors themselves (3.2: a GTX 580 has 3 GB)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..network.network import TwoTowerAlexNet

COUNTED = (2, 4)  # images of the two steps that are looked at


@dataclass(frozen=True)
class TowerMemory:
    """Bytes on one tower."""

    weights: int  # and biases
    gradients: int  # of them
    velocity: int  # of them (5)
    activations: int  # what forward keeps for backward, each storage once, without weights; the images are in it

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.velocity + self.activations


def step_memory(network: TwoTowerAlexNet, batch_size: int) -> list[TowerMemory]:
    """A `TowerMemory` a tower for a training step of so many images, float32, as `TrainingStep` and `PaperSGD` take it.

    Forward passes of 2 and of 4 images are counted: a storage that they share is the same size in both, all else grows
    with the images, so that any number of them follows. What belongs to a tower is what was kept while it computed; on
    one device maps that are joined or padded for both are kept once, and count for the first. Not in it: what a product
    or a convolution needs for itself while it runs, crossings under way, and what the allocator holds back.
    """
    first_bytes, second_bytes = (_saved_bytes(network, images) for images in COUNTED)
    memory = []
    for number, tower in enumerate(network.towers):
        weights = sum(parameter.nbytes for parameter in tower.parameters())
        bytes_per_image = (second_bytes[number] - first_bytes[number]) / (COUNTED[1] - COUNTED[0])
        activations = first_bytes[number] + round(bytes_per_image * (batch_size - COUNTED[0]))
        memory.append(TowerMemory(weights, weights, weights, activations))
    return memory


def _saved_bytes(network, images):
    """Bytes that a forward pass of so many images keeps for backward, [a tower]."""
    towers, size = network.towers, network.recipe.crop_size
    devices, was_training, step = network.exchange.devices, network.training, network.step
    parameter_pointers = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    flags = [parameter.requires_grad for parameter in network.parameters()]
    pictures = {device: torch.zeros(images, 3, size, size, device=device) for device in dict.fromkeys(devices)}
    saved_tensors, bytes_, cursor = {}, [0] * len(towers), [0]

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameter_pointers and storage.data_ptr() not in saved_tensors:
            place = cursor[0] if len(pictures) == 1 else devices.index(tensor.device)
            bytes_[place] += storage.nbytes()
            saved_tensors[storage.data_ptr()] = tensor  # alive, so that no other storage comes to be there
        return tensor

    hooks = [
        tower.register_forward_pre_hook(lambda module, inputs, number=number: cursor.__setitem__(0, number))
        for number, tower in enumerate(towers)
    ]
    try:
        network.train().requires_grad_(True)
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logits = network(*[pictures[device] for device in devices])
            F.cross_entropy(logits, torch.zeros(images, dtype=torch.int64, device=logits.device))
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, flag in zip(network.parameters(), flags):
            parameter.requires_grad_(flag)
        network.train(was_training)
        network.step = step
    return bytes_
