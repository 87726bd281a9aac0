"""Two towers and their exchange make AlexNet (paper, figure 2); `merge` and `split` go to and from one grouped
network."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ..kernels import dispatch
from ..recipes import shapes
from ..recipes.recipe import Layer, Recipe
from ..system.ranks import Ranks
from .exchange import NAMES, Crossing, Entry, Exchange
from .exchange_processes import ProcessExchange
from .layer import TowerLayer
from .tower import Tower


class TwoTowerAlexNet(nn.Module):
    """The network of a recipe, one tower a device (one device, and no crossings, where the recipe has one tower); or
    one of its towers, where the other has a process of its own.

    devices: one device a tower. classes: outputs of the last layer. kernels: who computes the operations ("auto",
    "reference", ...; see `resolve` in `kernels/dispatch.py`). overlap: whether a layer that reads both towers is the
    sum of two products, see `Exchange`; None: where there are two devices. ranks: of a job with a process for each
    tower, of which this one holds that of its rank, on the one device, and is given its images alone; None: all are
    here. part: (number, count) of the slice of every fully connected layer's units that is here (`worker_network.py`);
    all of them by default. Weights are drawn from (recipe.seed, layer, tower) and don't depend on the devices. `step`
    counts training passes; with the seed it keys the dropout masks. Each tower counts on its own device, so that a CUDA
    graph can. Raises ValueError for a number of devices that the recipe's towers don't match, kernels that can't
    compute on one of them, and two devices where the recipe's normalisation crosses the towers' border."""

    def __init__(
        self,
        recipe: Recipe,
        devices: Sequence[torch.device | str] = ("cuda:0", "cuda:1"),
        classes: int = 1000,
        kernels: str = "auto",
        overlap: bool | None = None,
        ranks: Ranks | None = None,
        part: tuple[int, int] = (0, 1),
    ):
        super().__init__()
        if len(devices) != (recipe.towers if ranks is None else 1):
            raise ValueError(f"{recipe.towers} tower(s) need as many devices, not {list(devices)}")
        if recipe.lrn_crosses and (ranks is not None or len({torch.device(device) for device in devices}) > 1):
            raise ValueError(f"lrn_crosses of recipe {recipe.name}: towers on two devices don't see each other's maps")
        self.recipe, self.classes = recipe, classes
        self.exchange = (
            Exchange(devices, overlap)
            if ranks is None
            else ProcessExchange(ranks, ranks.tower, ranks.rank ^ 1, devices[0], overlap)
        )
        self.kernels, self.kept_dtype = kernels, None
        self.kernels_used()  # a choice that can't compute on a device is refused now
        self.towers = nn.ModuleList(
            Tower(recipe, index, device, classes, self.kernels, part)
            for index, device in zip(self.exchange.towers, self.exchange.devices, strict=True)
        )
        self.initialise()

    def initialise(self) -> None:
        """Draw the initial weights of every layer (paper 5)."""
        for tower in self.towers:
            for layer in tower.children():
                layer.initialise(tower.index)

    def forward(
        self,
        images_a: torch.Tensor,
        images_b: torch.Tensor | None = None,
        *,
        first_row: int = 0,
        begins_step: bool = True,
    ) -> torch.Tensor:
        """Logits (N, classes) on tower a's device, in the weights' dtype; see `ProcessExchange.answer`.

        images_a, images_b: the same (N, 3, crop, crop) images, once on each tower's device, grey levels minus the mean.
        Their dtype is the one that is computed in. One tower sees images_a alone. first_row: images of the minibatch
        before these, if these are a part of it; begins_step: whether they are the first part here, so that the step is
        counted. Raises ValueError for anything else."""
        images = [images_a, images_b][: len(self.towers)]
        _refuse_images(self.recipe, images)
        self.exchange.clear()
        if self.training:
            self.count_step(begins_step, first_row)
        outputs = images
        if images_a is images_b:  # on one device, where both towers need the same zeros at the edges
            first_layer = getattr(self.towers[0], self.recipe.layers[0].name)
            outputs = [first_layer.pad_ceil_mode(images_a)] * 2
        for layer in self.recipe.layers:
            outputs = self.compute(layer, self.read(layer, outputs))
        return self.exchange.answer(
            [output.to(self.dtype) for output in outputs], (len(images_a), self.classes), self.dtype
        )

    def read(self, layer: Layer, outputs: Sequence[torch.Tensor]) -> list[list[torch.Tensor | Crossing]]:
        """What each tower that computes a layer reads of the outputs of the layer before, [tower a's, tower b's]: its
        own alone, or both in the order a, b (`Exchange.gather`)."""
        if layer.reads == "both":
            return self.exchange.gather(layer.name, outputs, self._readers(layer))
        return [[output] for output in outputs]

    def compute(self, layer: Layer, parts: Sequence[Sequence[torch.Tensor | Crossing]]) -> list[torch.Tensor]:
        """What a layer's towers make of the parts that they read: their outputs, on their own devices."""
        readers = self._readers(layer)
        if self.recipe.lrn_crosses and "lrn" in layer.then and readers == 2:
            return self._across_the_border(layer.name, parts)
        return [tower(layer.name, inputs) for tower, inputs in zip(self.towers, parts) if tower.index < readers]

    def _readers(self, layer):
        return 1 if layer.towers == "first" else self.recipe.towers

    def _across_the_border(self, name, parts):
        """What a layer makes of the parts that its towers read, on one device: two products, and one epilogue of all
        maps, in which normalisation sees those of the other tower (Caffe)."""
        layers = [getattr(tower, name) for tower in self.towers]
        products, biases = [], []
        for layer, inputs in zip(layers, parts, strict=True):
            x = torch.cat(inputs, 1)
            weight, product_bias, epilogue_bias = layer.operands(x.dtype)
            products.append(layer.product(x, weight, product_bias))
            biases.append(epilogue_bias)
        bias = None if biases[0] is None else torch.cat(biases)
        return list(layers[0].apply_epilogue(torch.cat(products, 1), bias, self.towers[0].step).chunk(2, 1))

    def without_images(self) -> None:
        """Join a forward pass for which only other processes have images: nothing to do for this network."""

    def count_step(self, begins: bool = True, first_row: int = 0) -> None:
        """Take note of a training pass: whether it begins a step, and which row of the minibatch is its first."""
        for tower in self.towers:
            tower.step += begins
            for layer in tower.children():
                layer.first_row = first_row

    @property
    def step(self) -> int:
        return int(self.towers[0].step)

    @step.setter
    def step(self, step: int) -> None:
        for tower in self.towers:
            tower.step.fill_(step)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.parameters()).dtype

    def keep_copies(self, dtype: torch.dtype) -> None:
        """Where that isn't the weights' dtype: have copies of them in it that stay (`TowerLayer.keep_copies`)."""
        if dtype != self.dtype:
            self.kept_dtype = dtype
            for tower in self.towers:
                for layer in tower.children():
                    layer.keep_copies(dtype)

    def kernels_used(self) -> str:
        """Who computes on each tower: "cpu" where it is the same on both, else "cpu, cuda" in the order a, b."""
        names = [dispatch.used(self.kernels, device) for device in self.exchange.devices]
        return ", ".join(names if len(set(names)) > 1 else names[:1])

    def ledger(self) -> list[Entry]:
        """What crossed in the last forward pass and, if it ran, its backward pass: a list of `exchange.Entry`."""
        return list(self.exchange.ledger)

    def layer_parameters(self) -> dict[str, list[nn.Parameter]]:
        """{"conv1.weight": [tower a's, tower b's], ..., "fc8.bias": [tower a's]} in the order of the layers; of the
        towers that are here."""
        tables = [dict(tower.named_parameters()) for tower in self.towers]
        return {name: [table[name] for table in tables if name in table] for name in self._owners()}

    def _owners(self):
        """{"conv1.weight": how many towers have it, ...}"""
        return {
            f"{layer.name}.{what}": 1 if layer.towers == "first" else self.recipe.towers
            for layer in self.recipe.layers
            for what in ("weight", "bias")
        }

    def merged(self, layers: Mapping[str, Sequence[torch.Tensor]]) -> dict[str, torch.Tensor]:
        """The merged tensors, on the CPU, of {name: tensors of the towers that are here}, as `layer_parameters` gives
        them. With a process for each tower both have to call it, and tower a's alone has them all."""
        return merge_tensors(
            {name: parts for name, parts in self.exchange.collect(layers, self._owners()).items() if parts}
        )

    def merged_state(self, *names: str) -> dict[str, torch.Tensor]:
        """The weights of the merged network, on the CPU: 16 names, conv1.weight (96, 3, 11, 11) to fc8.bias; or those
        of some names. See `merged`."""
        layers = self.layer_parameters()
        return self.merged({name: layers[name] for name in names or layers})

    def load_merged(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take the weights of a merged network. Raises ValueError on a missing, foreign or wrongly shaped tensor."""
        self.take(state, self.layer_parameters())

    def take(self, merged: Mapping[str, torch.Tensor], layers: Mapping[str, Sequence[torch.Tensor]]) -> None:
        """Copy merged tensors into {name: tensors of the towers that are here}. Raises ValueError on a missing, foreign
        or wrongly shaped one."""
        if set(merged) != set(layers):
            raise ValueError(f"tensors named {sorted(set(merged) ^ set(layers))} are missing or foreign")
        owners = self._owners()
        with torch.no_grad():
            for name, parts in layers.items():
                for part, tower in zip(parts, self.towers):  # the last layer's is tower a's alone
                    size = getattr(tower, name.partition(".")[0]).size
                    units = size.units or len(part)
                    shape = (owners[name] * units, *part.shape[1:])
                    if tuple(merged[name].shape) != shape:
                        raise ValueError(f"{name} is {tuple(merged[name].shape)}, but this network has {shape}")
                    part.copy_(merged[name][tower.index * units + size.first_unit :][: len(part)])

    def merge(self) -> "MergedAlexNet":
        """The equivalent `MergedAlexNet` on tower a's device, with a copy of the weights."""
        network = MergedAlexNet(self.recipe, self.exchange.devices[0], self.classes, self.kernels)
        network.to(self.dtype).load_state_dict(self.merged_state())
        network.step.fill_(self.step)
        return network.train(self.training)


class MergedAlexNet(nn.Module):
    """Both towers as one network: convolutions that read their own tower only are grouped in two, LRN stops at the
    towers' border.

    forward(images): (N, 3, crop, crop) -> logits (N, classes); ValueError for other images. `state_dict()` has the
    names and shapes of a plain AlexNet."""

    def __init__(self, recipe: Recipe, device: torch.device | str, classes: int, kernels: str):
        super().__init__()
        self.recipe, self.classes = recipe, classes
        self.register_buffer("step", torch.zeros((), dtype=torch.int64, device=device), persistent=False)
        for number, size in enumerate(shapes.sizes(recipe, classes)):
            towers = (0,) if size.layer.towers == "first" else tuple(range(recipe.towers))
            self.add_module(size.layer.name, TowerLayer(recipe, size, number, towers, kernels, device))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        _refuse_images(self.recipe, [images])
        if self.training:  # in test mode nothing is written, which the transforms of torch.func would refuse
            self.step += 1
        x = images
        for module in self.children():
            x = module(x, self.step)
        return x.to(next(self.parameters()).dtype)

    def split(
        self, devices: Sequence[torch.device | str] = ("cuda:0", "cuda:1"), kernels: str = "auto"
    ) -> TwoTowerAlexNet:
        """The two-tower network with a copy of these weights, one tower a device."""
        state = self.state_dict()
        network = TwoTowerAlexNet(self.recipe, devices, self.classes, kernels)
        network.to(next(iter(state.values())).dtype).load_merged(state)
        network.step = int(self.step)
        return network.train(self.training)


def _refuse_images(recipe, images):
    """Raise ValueError unless each of a list is (N, 3, crop, crop), of the same N and dtype."""
    size = recipe.crop_size
    for name, tensor in zip(NAMES, images):
        if not isinstance(tensor, torch.Tensor):
            what = "missing" if tensor is None else f"a {type(tensor).__name__}"
            raise ValueError(f"images_{name} is {what}; {len(images)} tower(s) take as many tensors, one each")
        if tensor.dim() != 4 or tuple(tensor.shape[1:]) != (3, size, size):
            raise ValueError(
                f"images_{name} is {tuple(tensor.shape)}; recipe {recipe.name} takes (N, 3, {size}, {size})"
            )
    a, b = images[0], images[-1]
    if len(a) != len(b) or a.dtype != b.dtype:
        raise ValueError(
            f"images_a are {len(a)} of {a.dtype}, images_b {len(b)} of {b.dtype}; they must be the same "
            "images, once on each tower's device"
        )


def merge_tensors(layers: Mapping[str, Sequence[torch.Tensor]]) -> dict[str, torch.Tensor]:
    """{name: [tower a's tensor, tower b's]} (weights, gradients, velocities) -> {name: the merged tensor, a copy on the
    CPU}."""
    return {name: torch.cat([part.detach().cpu() for part in parts]).contiguous() for name, parts in layers.items()}
