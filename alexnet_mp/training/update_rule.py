"""The update rule as printed (paper 5), as an optimiser: v <- 0.9 v - 0.0005 e w - e <dL/dw>;  w <- w + v."""

import math
from collections.abc import Container, Mapping, Sequence

import torch

from ..kernels import paper_sgd_
from ..network.network import TwoTowerAlexNet


class PaperSGD(torch.optim.Optimizer):
    """The paper's SGD for a `TwoTowerAlexNet`: one parameter group for the weights and one for the biases of every
    layer.

    The velocity carries the learning rate (torch.optim.SGD's does not). Each tower updates its own parameters on its
    own device; neither weights nor weight gradients ever cross. A group whose rate is 0 is frozen: no decay, no
    momentum, and no gradient is computed for it, so that backward stops above a frozen first layer (2012 source,
    `weights.cu:148`, `layer.py:744`)."""

    def __init__(self, network: TwoTowerAlexNet):
        recipe = network.recipe
        self.kernels, self.towers = network.kernels, ["ab"[tower.index] for tower in network.towers]
        self.layers = {
            parameter: (layer, name)
            for tower in network.towers
            for layer in tower.children()
            for name, parameter in layer.named_parameters()
        }
        decays = {
            f"{layer.name}.weight": recipe.weight_decay if layer.weight_decay is None else layer.weight_decay
            for layer in recipe.layers
        }
        groups = [
            dict(params=parts, name=name, lr=0.0, weight_decay=decays.get(name, recipe.bias_weight_decay))
            for name, parts in network.layer_parameters().items()
        ]
        super().__init__(groups, dict(momentum=recipe.momentum))
        self.rates = {}  # as they were set last
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["velocity"] = torch.zeros_like(parameter)

    def set_rates(self, rates: Mapping[str, float]) -> None:
        """rates: {"conv1.weight": 0.01, ...}, one learning rate a group; and those of what another process has."""
        self.rates = dict(rates)
        for group in self.param_groups:
            group["lr"] = rates[group["name"]]
            for parameter in group["params"]:
                parameter.requires_grad_(group["lr"] > 0)
                if group["lr"] == 0:
                    parameter.grad = None

    @torch.no_grad()
    def step(self, device: torch.device | None = None, only: Container[str] | None = None) -> list[torch.Tensor]:
        """Update every parameter that has a rate, or those on one of the `devices`, in place. only: names, as
        "conv1.weight", of those that are updated; None: all.

        Returns, of each device, the sum of each new weight tensor there, (tensors,) float32: finite only where no
        weight is NaN or infinite. An update carries what is not finite in a gradient or a velocity into the weight, so
        these few numbers watch over all three. The copies that a layer keeps of its weights are written, too. Raises
        RuntimeError where a parameter got no gradient."""
        by_device = self._by_device(only)
        return [self._update(target, *by_device[target]) for target in (by_device if device is None else [device])]

    def _update(self, device, parameters, options):
        missing_names = [name for (name, _, _), w in zip(options, parameters, strict=True) if w.grad is None]
        if missing_names:
            raise RuntimeError(f"no gradient for {', '.join(missing_names)}; was backward run?")
        copies = [copy for w in parameters for copy in self._copy_of(w)]
        if len(copies) < len(parameters):  # those that there are, are made anew before they are used
            copies = []
        sums = torch.empty(len(parameters), dtype=torch.float32, device=device)
        paper_sgd_(
            parameters,
            [w.grad for w in parameters],
            [self.state[w]["velocity"] for w in parameters],
            learning_rates=[rate for _, rate, _ in options],
            momentum=self.defaults["momentum"],
            weight_decays=[decay for _, _, decay in options],
            copies=copies,
            sums=sums,
            kernels=self.kernels,
        )
        if copies:
            for layer, name in map(self.layers.get, parameters):
                layer.note_copy(name)
        return sums

    def _copy_of(self, parameter):
        layer, name = self.layers[parameter]
        copy, _ = layer.kept.get(name, (None, None))
        return [copy] if copy is not None and copy.device == parameter.device else []

    def devices(self) -> list[torch.device]:
        """Those with parameters that have a rate, tower a's first."""
        return list(self._by_device())

    def velocities(self) -> dict[str, list[torch.Tensor]]:
        """{"conv1.weight": [tower a's, tower b's], ...}, as `network.layer_parameters` gives the weights."""
        return {
            group["name"]: [self.state[parameter]["velocity"] for parameter in group["params"]]
            for group in self.param_groups
        }

    def non_finite(self) -> list[str]:
        """The first tensors found to hold NaN or infinity, gradients before weights: ["gradient of conv2.weight on
        tower b", ...]."""
        for what, value in (
            ("gradient", lambda w: w.grad),
            ("velocity", lambda w: self.state[w]["velocity"]),
            ("weights", lambda w: w),
        ):
            names = [
                f"{what} of {group['name']} on tower {tower}"
                for group in self.param_groups
                for tower, parameter in zip(self.towers, group["params"])
                if value(parameter) is not None and not torch.isfinite(value(parameter)).all()
            ]
            if names:
                return names
        return []

    @torch.no_grad()
    def non_finite_in(self, sums: Sequence[torch.Tensor]) -> list[str]:
        """The weights that made earlier sums not finite, whatever steps followed: ["weights of conv2.weight on tower
        b", ...].

        sums: of `step`, one tensor a device.
        """
        names = {
            parameter: f"weights of {group['name']} on tower {tower}"
            for group in self.param_groups
            for tower, parameter in zip(self.towers, group["params"])
        }
        return [
            names[parameter]
            for (parameters, _), values in zip(self._by_device().values(), sums, strict=True)
            for parameter, value in zip(parameters, values, strict=True)
            if not math.isfinite(value) and not torch.isfinite(parameter).all()
        ]

    def _by_device(self, only=None):
        """{device: (parameters, [(name, rate, decay)])}, frozen groups left out."""
        devices = {}
        for group in self.param_groups:
            if only is not None and group["name"] not in only:
                continue
            for parameter in group["params"]:
                if group["lr"] > 0:
                    parameters, options = devices.setdefault(parameter.device, ([], []))
                    parameters.append(parameter)
                    options.append((group["name"], group["lr"], group["weight_decay"]))
        return devices
