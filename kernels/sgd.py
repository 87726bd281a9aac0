"""The kernel of the update, paper section 5, as a torch operator: arguments, who computes. The optimiser that calls it
is `training/update_rule.py`.

The kernels are in `sgd_triton.py` and, for a CPU, in `csrc/cpu/sgd.h`.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from . import reference
from .checks import FLOAT_DTYPES, dense_alike, describe
from .dispatch import compiled, resolve

SIXTEEN_BITS = (torch.bfloat16, torch.float16)

_table_owner = ContextVar("table_owner", default=None)


def paper_sgd_(
    parameters: Iterable[torch.Tensor],
    gradients: Iterable[torch.Tensor],
    velocities: Iterable[torch.Tensor],
    *,
    learning_rates: Iterable[float],
    momentum: float,
    weight_decays: Iterable[float],
    copies: Iterable[torch.Tensor] = (),
    sums: torch.Tensor | None = None,
    kernels: str = "auto",
) -> None:
    """The update of paper section 5, in place, for lists of tensors on one device: v <- m v - d e w - e g; w <- w + v.

    One learning rate e and weight decay d a tensor; a rate of 0 leaves tensor and velocity alone. Lists of equal
    length; a tensor, its gradient and its velocity have one shape, dtype and device; but beside float32 a gradient may
    have 16 bits. On a GPU one launch for all tensors. In the same pass are written, of tensors that are updated:
    copies, none or a 16-bit tensor for each parameter, the next weights rounded; sums, (parameters,) float32, the sum
    of each, finite only where no weight is NaN or infinite. Raises ValueError where they don't fit."""
    parameters, gradients, velocities, copies = list(parameters), list(gradients), list(velocities), list(copies)
    rates, decays = [float(rate) for rate in learning_rates], [float(decay) for decay in weight_decays]
    if not len(parameters) == len(gradients) == len(velocities) == len(rates) == len(decays):
        raise ValueError(
            f"{len(parameters)} parameters, {len(gradients)} gradients, {len(velocities)} velocities, {len(rates)} "
            f"learning rates and {len(decays)} weight decays; there must be as many of each"
        )
    for name, values in (("a learning rate", rates), ("a weight decay", decays), ("momentum", [float(momentum)])):
        for value in values:
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value!r}; it must be finite and not negative")
    for number, (w, g, v) in enumerate(zip(parameters, gradients, velocities)):
        if w.dtype not in FLOAT_DTYPES:
            raise ValueError(f"parameter {number} is {w.dtype}; it must be float32, bfloat16, float16 or float64")
        for name, tensor in (("gradient", g), ("velocity", v), ("first parameter", parameters[0])):
            narrow = name == "gradient" and w.dtype == torch.float32 and tensor.dtype in SIXTEEN_BITS
            if tensor.device != w.device or (
                name != "first parameter" and (tensor.shape != w.shape or not (narrow or tensor.dtype == w.dtype))
            ):
                raise ValueError(f"parameter {number} is {describe(w)}, the {name} {describe(tensor)}")
    if copies and len(copies) != len(parameters):
        raise ValueError(f"{len(copies)} copies of {len(parameters)} parameters; there must be none, or as many")
    for number, (w, copy) in enumerate(zip(parameters, copies)):
        if (copy.shape, copy.device) != (w.shape, w.device) or copy.dtype not in SIXTEEN_BITS:
            raise ValueError(f"parameter {number} is {describe(w)}, its copy {describe(copy)}; it must have 16 bits")
    if sums is not None and (tuple(sums.shape), sums.dtype, parameters and sums.device) != (
        (len(parameters),),
        torch.float32,
        parameters and parameters[0].device,
    ):
        raise ValueError(
            f"sums are {describe(sums)}; they must be torch.float32 {(len(parameters),)} beside the parameters"
        )
    if not parameters:
        return
    with torch.no_grad():
        torch.ops.alexnet_mp.paper_sgd_(
            parameters,
            gradients,
            velocities,
            copies,
            sums,
            rates,
            float(momentum),
            decays,
            resolve(kernels, parameters[0].device, "paper_sgd_"),
        )


@contextmanager
def update_tables_in(owner: dict) -> Iterator[None]:
    """What `paper_sgd_` keeps on a device for its launches is, of calls in here, kept in the dict `owner`, and looked
    for there.

    A CUDA graph reads it at every replay: who captures the update keeps `owner` as long as the graph, and drops both
    together."""
    token = _table_owner.set(owner)
    try:
        yield
    finally:
        _table_owner.reset(token)


@torch.library.custom_op(
    "alexnet_mp::paper_sgd_",
    mutates_args=("parameters", "velocities", "copies", "sums"),
    schema="(Tensor(a!)[] parameters, Tensor[] gradients, Tensor(b!)[] velocities, "
    "Tensor(c!)[] copies, Tensor(d!)? sums, float[] learning_rates, float momentum, "
    "float[] weight_decays, str kernels) -> ()",
)
def _update(parameters, gradients, velocities, copies, sums, learning_rates, momentum, weight_decays, kernels):
    if kernels in ("cuda", "triton"):
        from . import sgd_triton

        sgd_triton.paper_sgd_(
            parameters,
            gradients,
            velocities,
            learning_rates,
            momentum,
            weight_decays,
            copies,
            sums,
            owner=_table_owner.get(),
        )
    elif kernels == "cpu":
        lists = zip(parameters, gradients, velocities, learning_rates, weight_decays)
        for number, (w, g, v, rate, decay) in enumerate(lists):
            g = g.to(w.dtype)
            if rate != 0 and dense_alike(w, g, v):
                compiled().paper_sgd_(w, g, v, rate, momentum, decay)
            else:
                reference.paper_sgd_([w], [g], [v], learning_rates=[rate], momentum=momentum, weight_decays=[decay])
            if rate != 0:
                reference.note_weights(number, w, copies, sums)
    else:
        reference.paper_sgd_(
            parameters,
            gradients,
            velocities,
            learning_rates=learning_rates,
            momentum=momentum,
            weight_decays=weight_decays,
            copies=copies,
            sums=sums,
        )


@_update.register_fake
def _(parameters, gradients, velocities, copies, sums, learning_rates, momentum, weight_decays, kernels):
    return None
