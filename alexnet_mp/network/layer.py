"""One layer of a tower: its product, and its epilogue, the operations after it."""

from collections.abc import Callable, Iterable
from typing import Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..kernels import (
    avg_pool,
    dropout,
    linear,
    lrn,
    lrn_max_pool,
    max_pool,
    relu_dropout,
    spatial_norm,
    spatial_norm_max_pool,
)
from ..kernels.dispatch import resolve
from ..kernels.philox import INIT_STREAM
from ..recipes import shapes
from .exchange import Crossing
from .split_product import split_input_product

# Runs of operations that the kernels compute as one, longest first; everything else is computed one by one.
FUSED = (
    ("relu", "lrn", "max_pool"),
    ("lrn", "max_pool", "relu"),
    ("lrn", "max_pool"),
    ("relu", "lrn"),
    ("lrn",),
    ("relu", "max_pool"),
    ("max_pool", "relu"),
    ("max_pool",),
    ("spatial_norm", "max_pool"),
    ("relu", "dropout"),
    ("relu",),
)
TAKES_BIAS = FUSED[:-3]
TAKES_BIAS_ON_GPU = FUSED[-2:]  # on a CPU the product adds it for nothing


def plan(epilogue: Iterable[str]) -> list[tuple[str, ...]]:
    """Split a layer's epilogue into what the kernels compute as one: (relu, lrn, max_pool), (dropout,)."""
    groups, rest = [], tuple(epilogue)
    while rest:
        groups.append(next((run for run in FUSED if rest[: len(run)] == run), rest[:1]))
        rest = rest[len(groups[-1]) :]
    return groups


class Constants(Protocol):
    """The fields of a `Recipe` that a layer computes with, besides those of its own `Layer`."""

    seed: int
    lrn_size: int
    lrn_alpha: float
    lrn_beta: float
    lrn_k: float
    lrn_crosses: bool
    spatial_size: int
    spatial_alpha: float
    spatial_beta: float
    spatial_k: float
    pool_size: int
    pool_stride: int
    pool_ties: Literal["first", "all"]
    dropout: float


class TowerLayer(nn.Module):
    """One layer: a convolution or a product, and its epilogue (`Layer.then`).

    size: the layer's `shapes.Size`. towers: the towers whose maps are computed here, (0,), (1,), or (0, 1) in a
    merged network. forward(x, step): (N, C, H, W) -> (N, maps * len(towers), H', W'), or (N, units * len(towers)); step
    keys the dropout mask. With a `Crossing` x is the tower's own half of what is read, and the other half is on its way
    (`split_product.py`). Computed in the dtype of x: of float32 weights a bfloat16 image takes copies in bfloat16, and
    their gradients are float32 again; or, where `keep_copies` has made copies that stay, bfloat16."""

    def __init__(
        self,
        recipe: Constants,
        size: shapes.Size,
        index: int,
        towers: tuple[int, ...],
        kernels: str,
        device: torch.device | str,
    ):
        super().__init__()
        self.recipe, self.size, self.index, self.towers = recipe, size, index, towers
        self.kernels = kernels
        self.layer = size.layer
        self.groups = len(towers) if self.layer.reads == "own" else 1
        weight, bias = (
            torch.zeros(maps * len(towers), *dims, device=device)
            for maps, *dims in (size.weight_shape, size.bias_shape)
        )
        if self.layer.kind == "conv":  # as the maps are, so that no step reorders them
            weight = weight.to(memory_format=torch.channels_last)
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.first_row = 0  # images of the minibatch before those here (`TwoTowerAlexNet.forward`)
        self.kept = {}  # {name of a parameter: (its copy in another dtype, the parameter's version that it is of)}
        self.fused_operations = plan(self.layer.then)
        takes_bias = TAKES_BIAS + (TAKES_BIAS_ON_GPU if resolve(kernels, device) in ("cuda", "triton") else ())
        # Merged, the kernels see each tower's maps as images of their own (LRN) or by halves (dropout), and the product
        # adds the bias. The kernels add one bias a map: not those of a local layer, one a position.
        self.bias_in_kernel = (
            len(towers) == 1
            and self.layer.kind != "local"
            and self.fused_operations[:1] != []
            and self.fused_operations[0] in takes_bias
        )

    @torch.no_grad()
    def initialise(self, tower: int) -> None:
        """Draw the initial weights of a tower, 0 or 1 (paper 5): N(0, std), biases constant. In float32, whatever the
        parameters' dtype."""
        draws = np.random.Generator(
            np.random.Philox(
                key=np.array([self.recipe.seed, INIT_STREAM], np.uint64),
                counter=np.array([0, 0, self.index, tower], np.uint64),
            )
        )
        shape = (self.size.units or len(self.weight), *self.weight.shape[1:])
        weights = draws.standard_normal(shape, np.float32)[self.size.first_unit :][: len(self.weight)]
        self.weight.copy_(torch.from_numpy(weights * np.float32(self.layer.init_std)))
        self.bias.fill_(self.layer.init_bias)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, then {' -> '.join(self.layer.then) or 'nothing'}"

    def forward(self, x: torch.Tensor, step: int | torch.Tensor = 0, crossing: Crossing | None = None) -> torch.Tensor:
        """The layer's output: (N, maps, H, W), fully connected (N, units).

        x: all that the layer reads, (N, channels, H, W) or (N, ...), flattened by a fully connected layer; with a
        `crossing` the tower's own half of it, the other half comes by that. step: numbers the dropout masks.
        """
        weight, product_bias, epilogue_bias = self.operands(x.dtype)
        if crossing is None:
            x = self.product(x, weight, product_bias)
        else:
            x = split_input_product(self.product, x, crossing, weight, self.halves(crossing.comes_second), product_bias)
        return self.apply_epilogue(x, epilogue_bias, step)

    def operands(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """(weights, bias that the product adds, bias that the epilogue adds) in a dtype; one of the biases is None."""
        weight, bias = self._in(dtype, "weight"), self._in(dtype, "bias")
        return (weight, None, bias) if self.bias_in_kernel else (weight, bias, None)

    def _in(self, dtype, name):
        parameter, (copy, version) = getattr(self, name), self.kept.get(name, (None, None))
        if copy is None or copy.dtype != dtype or version != parameter._version or copy.device != parameter.device:
            return parameter.to(dtype)
        return _Kept.apply(parameter, copy)

    @torch.no_grad()
    def keep_copies(self, dtype: torch.dtype) -> None:
        """Have copies of the parameters in a dtype, up to date. Gradients then have the dtype that was computed in.

        Who updates a parameter may write its copy as well, and say so (`note_copy`); one that is not up to date is not
        used.
        """
        for name, parameter in (("weight", self.weight), ("bias", self.bias)):
            copy, version = self.kept.get(name, (None, None))
            if copy is None or copy.dtype != dtype or copy.device != parameter.device:
                copy, version = torch.empty_like(parameter, dtype=dtype, requires_grad=False), None
                parameter.grad_dtype = None
            if version != parameter._version:
                self.kept[name] = copy.copy_(parameter), parameter._version

    def note_copy(self, name: Literal["weight", "bias"]) -> None:
        """The copy was written together with its parameter."""
        self.kept[name] = self.kept[name][0], getattr(self, name)._version

    def __getstate__(self):
        return self.__dict__ | {"kept": {}}  # another layer's parameters have versions of their own

    def product(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Convolution or matrix product alone, without the epilogue: (N, maps, H, W) or (N, units)."""
        return {"conv": self._convolve, "local": self._convolve_locally, "fc": self._multiply}[self.layer.kind](
            x, weight, bias
        )

    def halves(self, other_comes_second: bool) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
        """weight -> (its part for the tower's own half of the input channels, its part for the other half).

        other_comes_second: whether the other is the second half.
        """

        def split(weight):
            a, b = weight.chunk(2, 3 if self.layer.kind == "local" else 1)
            return (a, b) if other_comes_second else (b, a)

        return split

    def apply_epilogue(
        self, x: torch.Tensor, bias: torch.Tensor | None, step: int | torch.Tensor | None
    ) -> torch.Tensor:
        """What comes after the product. bias: if the first operation adds it, else None. step: None will do without a
        dropout mask."""
        for fused in self.fused_operations:
            x = (
                self._dropout(fused, x, bias, step)
                if fused[-1] == "dropout"
                else self._maps_of_each_tower(fused, x, bias)
            )
            bias = None
        return x

    def _convolve(self, x, weight, bias):
        return F.conv2d(self.pad_ceil_mode(x), weight, bias, self.layer.stride, self.layer.pad, groups=self.groups)

    def pad_ceil_mode(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) with the zeros that the last windows reach beyond their pad; x itself if there are none."""
        layer = self.layer
        right, bottom = (
            shapes.ceil_mode_padding(side, layer.kernel, layer.stride, layer.pad) for side in (x.shape[3], x.shape[2])
        )
        # 224 -> 55: three more columns and rows of zeros (2012 source: its kernel reads 0 out of bounds)
        return F.pad(x, (0, right, 0, bottom)) if right or bottom else x

    def _convolve_locally(self, x, weight, bias):
        """(N, C, H, W) -> (N, maps, H', W'), each position by kernels of its own (2012 source, layer type `local`)."""
        layer, (height, width) = self.layer, self.size.computed[1:]
        x = F.pad(self.pad_ceil_mode(x), (layer.pad,) * 4).permute(2, 3, 0, 1).contiguous()  # (H, W, N, C)
        parts = []
        for maps, kernels in zip(x.chunk(self.groups, 3), weight.chunk(self.groups), strict=True):
            windows = torch.cat(
                [
                    maps[i :: layer.stride, j :: layer.stride][:height, :width]
                    for i in range(layer.kernel)
                    for j in range(layer.kernel)
                ],
                3,
            )  # (H', W', N, k k C)
            kernels = kernels.permute(1, 2, 0, 4, 5, 3).flatten(3)  # (H', W', maps, k k C)
            parts.append(windows @ kernels.transpose(2, 3))  # (H', W', N, maps)
        y = torch.cat(parts, 3).permute(2, 3, 0, 1).contiguous()
        return y if bias is None else y + bias

    def _multiply(self, x, weight, bias):
        x = x.flatten(1)
        if self.groups == 1:
            return linear(x, weight, bias, kernels=self.kernels)
        parts = zip(x.chunk(self.groups, 1), weight.chunk(self.groups), strict=True)
        return torch.cat([linear(inputs, weights, kernels=self.kernels) for inputs, weights in parts], 1) + bias

    def _maps_of_each_tower(self, fused, x, bias):
        """Normalisation never looks beyond a tower's own maps: merged, each tower's half counts as an image of its
        own; unless the recipe says that it crosses the border."""
        if len(self.towers) == 1 or "lrn" not in fused or self.recipe.lrn_crosses:
            return self._compute(fused, x, bias)
        images, maps = x.shape[:2]
        x = self._compute(fused, x.reshape(images * len(self.towers), maps // len(self.towers), *x.shape[2:]), bias)
        return x.reshape(images, maps, *x.shape[2:])

    def _compute(self, fused, x, bias):
        r, kernels = self.recipe, self.kernels
        across = dict(size=r.lrn_size, alpha=r.lrn_alpha, beta=r.lrn_beta, k=r.lrn_k)
        within = dict(size=r.spatial_size, alpha=r.spatial_alpha, beta=r.spatial_beta, k=r.spatial_k)
        windows = dict(pool=r.pool_size, stride=r.pool_stride)
        pool = dict(**windows, ties=r.pool_ties)
        match fused:
            case ("relu", "lrn", "max_pool"):
                return lrn_max_pool(x, bias, relu="before", **across, **pool, kernels=kernels)
            case ("lrn", "max_pool", "relu"):
                return lrn_max_pool(x, bias, relu="after", **across, **pool, kernels=kernels)
            case ("lrn", "max_pool"):
                return lrn_max_pool(x, bias, relu="none", **across, **pool, kernels=kernels)
            case ("relu", "lrn"):
                return lrn(x, bias, relu="before", **across, kernels=kernels)
            case ("lrn",):
                return lrn(x, bias, relu="none", **across, kernels=kernels)
            case ("relu", "max_pool") | ("max_pool", "relu"):
                return max_pool(x, bias, relu=True, **pool, kernels=kernels)
            case ("max_pool",):
                return max_pool(x, bias, relu=False, **pool, kernels=kernels)
            case ("spatial_norm", "max_pool"):
                return spatial_norm_max_pool(x, **within, **pool, kernels=kernels)
            case ("spatial_norm",):
                return spatial_norm(x, **within)
            case ("avg_pool",):
                return avg_pool(x, **windows)
            case ("relu",):
                return relu_dropout(x, bias, kernels=kernels)
            case ("tanh",):
                return torch.tanh(x)
            case ("sigmoid",):
                return torch.sigmoid(x)
        raise ValueError(f"{self.layer.name}: no way to compute {fused}")

    def _dropout(self, fused, x, bias, step):
        """Classic dropout, alone or with the ReLU before it. Tested, all units count, at 1 - probability of their value
        (4.2)."""
        probability, with_relu = self.recipe.dropout, fused[0] == "relu"
        if not self.training:
            return (self._compute(("relu",), x, bias) if with_relu else x) * (1 - probability)
        halves = []
        for tower, half in zip(self.towers, x.chunk(len(self.towers), 1), strict=True):
            mask = dict(
                probability=probability,
                seed=self.recipe.seed,
                step=step,
                layer=self.index,
                tower=tower,
                first_row=self.first_row,
            )
            halves.append(
                relu_dropout(half, bias, **mask, kernels=self.kernels) if with_relu else dropout(half, **mask)
            )
        return halves[0] if len(halves) == 1 else torch.cat(halves, 1)


class _Kept(torch.autograd.Function):
    """A copy of a parameter in another dtype, whose gradient is the parameter's as it is."""

    @staticmethod
    def forward(ctx, parameter, copy):
        return copy.detach()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None
