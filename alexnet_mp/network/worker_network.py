"""One worker's part of a network of one tower that is divided two ways (Krizhevsky 2014): every convolution, for some
images, and of every fully connected layer a slice of the units, for all images.

Each worker multiplies what is read, which all have whole, by its slice of the weights. The sums of all slices are put
together before what follows the product (`Layer.then`), so that a dropout mask is that of the whole layer. What
follows is little, and each worker computes it for itself."""

from collections.abc import Mapping, Sequence

import torch

from ..parallel.workers import Shared, Workers, places_of
from ..recipes.recipe import Recipe
from ..recipes.shapes import slice_of
from .network import TwoTowerAlexNet, merge_tensors


class WorkerAlexNet(TwoTowerAlexNet):
    """What `TwoTowerAlexNet` is, of one of the `workers`, none of whose slices may be empty.

    forward(images) -> logits of these images. All workers have to call it, each with its own images, or
    `without_images`; so too what reads weights of fully connected layers (`merged`). Weights are drawn as those of one
    process."""

    def __init__(self, recipe: Recipe, device: torch.device | str, classes: int, kernels: str, workers: Workers):
        super().__init__(recipe, [device], classes, kernels, part=(workers.number, workers.count))
        self.workers, self.exchange.between = workers, "workers"
        layers = list(self.towers[0].children())
        self.convolutions = [layer for layer in layers if layer.layer.kind != "fc"]
        self.fully_connected = [layer for layer in layers if layer.layer.kind == "fc"]
        self.border = self.fully_connected[0].layer.name  # the layer that reads the last maps
        self.width = self.fully_connected[0].weight.shape[1]  # values of an image there
        self.connected = {f"{layer.layer.name}.{what}" for layer in self.fully_connected for what in ("weight", "bias")}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, crop, crop) -> (N, classes)."""
        return self._answer(self.convolve(images))

    def without_images(self) -> None:
        """Join a forward pass for which only other workers have images."""
        self._answer(None)

    def _answer(self, maps):
        counts, dtypes = zip(*self.workers.gather((0, None) if maps is None else (len(maps), maps.dtype)))
        if maps is None:
            dtype = next(dtype for dtype in dtypes if dtype)  # in which the others compute
            maps = torch.empty(0, self.width, dtype=dtype, device=self.workers.device)
        rows = places_of(counts)
        all_maps = self.workers.share(self.border, maps, rows, 0)()
        return self.connect(all_maps)[rows[self.workers.number]]

    def convolve(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, crop, crop) -> the last maps, (N, values of an image)."""
        x = images
        for layer in self.convolutions:
            x = layer(x, self.towers[0].step)
        return x.flatten(1).contiguous()

    def connect(self, maps: torch.Tensor) -> torch.Tensor:
        """The last maps of some images -> their logits, (N, classes), both the same in all workers. Their gradient has
        to be the same in all, too; that of the maps, and of what is between the layers, is each worker's summand."""
        x, workers = maps, self.workers
        readers = [*(layer.layer.name for layer in self.fully_connected[1:]), "loss"]
        for layer, reader in zip(self.fully_connected, readers):
            weight, product_bias, epilogue_bias = layer.operands(x.dtype)
            part = layer.product(x, weight, product_bias if epilogue_bias is None else epilogue_bias)
            units = [slice_of(number, workers.count, layer.size.units) for number in range(workers.count)]
            product = Shared.apply(workers, reader, part, units, reader == "loss")
            x = layer.apply_epilogue(product, None, self.towers[0].step)
        return x.to(self.dtype)

    def merged(self, layers: Mapping[str, Sequence[torch.Tensor]]) -> dict[str, torch.Tensor]:
        """The merged tensors, on the CPU, see `TwoTowerAlexNet.merged`: complete in the first worker alone."""
        return merge_tensors(
            {name: self.workers.in_first(*parts) if name in self.connected else parts for name, parts in layers.items()}
        )
