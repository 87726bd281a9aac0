"""What a training step is given for each tower: images, or stored pictures with what makes images of them within the
step.

A CUDA graph has static inputs. Pictures in uint8 are two thirds of the bytes to copy there (of bfloat16 images), and a
graph that makes its own images of them writes these once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..kernels.augmentation import augment_crops


@dataclass(frozen=True)
class Uncropped:
    """Stored pictures on a device, and the crops that `augment_crops` makes the network's images of."""

    pictures: torch.Tensor  # (N, S, S, 3) uint8
    crops: torch.Tensor  # (N, 7) float32, see `kernels.augmentation.crops_of`
    mean: torch.Tensor  # (S, S, 3) float32
    crop: int
    mean_follows_crop: bool
    dtype: torch.dtype
    memory_format: torch.memory_format

    def images(self) -> torch.Tensor:
        """(N, 3, crop, crop)."""
        return augment_crops(
            self.pictures,
            self.crops,
            self.mean,
            crop=self.crop,
            dtype=self.dtype,
            mean_follows_crop=self.mean_follows_crop,
            memory_format=self.memory_format,
        )

    def tensors(self) -> list[torch.Tensor]:
        """What differs from batch to batch."""
        return [self.pictures, self.crops]

    def clone(self) -> "Uncropped":
        return replace(self, pictures=self.pictures.clone(), crops=self.crops.clone())

    def copy_(self, other: "Uncropped", non_blocking: bool = False) -> None:
        for place, tensor in zip(self.tensors(), other.tensors(), strict=True):
            place.copy_(tensor, non_blocking=non_blocking)


def images_of(tower_input: torch.Tensor | Uncropped) -> torch.Tensor:
    """Images (N, 3, crop, crop), of what a step is given for one tower."""
    return tower_input.images() if isinstance(tower_input, Uncropped) else tower_input


def all_images(tower_inputs: Sequence[torch.Tensor | Uncropped]) -> list[torch.Tensor]:
    """The same of all towers; what two of them share is made once."""
    images = {id(tower_input): images_of(tower_input) for tower_input in tower_inputs}
    return [images[id(tower_input)] for tower_input in tower_inputs]


def kind(tower_input: torch.Tensor | Uncropped) -> tuple:
    """What a graph that was captured with this input asks of another: all but the values."""
    if not isinstance(tower_input, Uncropped):
        return tower_input.shape, tower_input.stride(), tower_input.dtype
    shapes = [(tensor.shape, tensor.stride()) for tensor in tower_input.tensors()]
    return (
        *shapes,
        tower_input.mean.data_ptr(),
        tower_input.crop,
        tower_input.mean_follows_crop,
        tower_input.dtype,
        tower_input.memory_format,
    )
