"""What all operators ask of tensors and arguments: memory formats, and checks whose errors name the value."""

from collections.abc import Sequence

import torch

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def differentiated_otherwise(*tensors: torch.Tensor | None) -> bool:
    """Whether plain PyTorch has to compute: forward-mode differentiation, and the transforms of torch.func."""
    return not torch.compiler.is_compiling() and (
        torch._C._are_functorch_transforms_active()
        or any(
            tensor is not None and torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None
            for tensor in tensors
        )
    )


def memory_format(x: torch.Tensor) -> torch.memory_format:
    """The memory format of what is computed from x: channels_last where x is that and not NCHW as well."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format


def dense_alike(*tensors: torch.Tensor) -> bool:
    """Whether element i in memory is the same element of all tensors."""
    first = tensors[0]
    return (
        first.is_contiguous() or (first.dim() == 4 and first.is_contiguous(memory_format=torch.channels_last))
    ) and all(tensor.stride() == first.stride() for tensor in tensors)


def check_bias(x: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Raise ValueError, naming the value, unless bias is None or (C,) beside x, of its dtype or float32 beside 16
    bits."""
    if bias is None:
        return
    if tuple(bias.shape) != (x.shape[1],):
        raise ValueError(f"bias has the shape {tuple(bias.shape)}; x has {x.shape[1]} maps")
    if bias.device != x.device:
        raise ValueError(f"bias is on {bias.device}, x on {x.device}")
    if bias.dtype not in (x.dtype, torch.float32) or (x.dtype == torch.float64 and bias.dtype != torch.float64):
        raise ValueError(
            f"bias is {bias.dtype}; it must be {x.dtype} like x"
            + ("" if x.dtype in (torch.float32, torch.float64) else " or float32")
        )


def check_maps(x: torch.Tensor) -> None:
    """Raise ValueError unless x is (N, C, H, W) with a map at least."""
    if x.dim() != 4 or x.shape[1] == 0:
        raise ValueError(f"x has the shape {tuple(x.shape)}; it must be (N, C, H, W), C at least 1")


def check_norm(size: int, alpha: float, beta: float, k: float) -> None:
    """Raise ValueError, naming the value, for constants with which a norm is not defined in float32."""
    at_least("size", size, 1)
    if not k >= torch.finfo(torch.float32).tiny:
        raise ValueError(f"k is {k!r}; it must be above 0, and no denormal number in float32")
    if not (0 <= alpha < float("inf") and 0 <= beta < float("inf")):
        raise ValueError(f"alpha is {alpha!r} and beta {beta!r}; they must be finite and not negative")


def check_windows(x: torch.Tensor, pool: int, stride: int) -> None:
    """Raise ValueError, naming the value, unless the maps of x hold a window of pool x pool, others `stride` apart."""
    at_least("pool", pool, 1)
    at_least("stride", stride, 1)
    if min(x.shape[2:]) < pool:
        raise ValueError(f"maps of {x.shape[2]}x{x.shape[3]} are smaller than the {pool}x{pool} pooling window")


def check_mask(
    x: torch.Tensor,
    probability: float,
    seed: int,
    step: int | torch.Tensor | None,
    layer: int,
    tower: int,
    first_row: int,
) -> None:
    """Raise ValueError, naming the value, for what `reference.dropout` has no mask for; without a probability none
    needs a step."""
    if not 0 <= probability < 1:
        raise ValueError(f"probability is {probability!r}; it must be at least 0 and below 1")
    for what, value in (("seed", seed), ("layer", layer), ("tower", tower)):
        if not isinstance(value, int) or not 0 <= value < 2**32:
            raise ValueError(f"{what} is {value!r}; it must be an integer of at least 0 and below 2^32")
    if not isinstance(first_row, int) or first_row < 0:
        raise ValueError(f"first_row is {first_row!r}; it must be an integer of at least 0")
    if isinstance(step, torch.Tensor):
        if step.dim() or step.dtype != torch.int64 or step.device != x.device:
            raise ValueError(f"step is {describe(step)}; it must be torch.int64 () on {x.device}")
    elif not isinstance(step, int) and (step is not None or probability > 0):
        raise ValueError(
            f"step is {step!r}; with a probability of {probability!r} it must be an integer, or a tensor of one"
        )


def one_of(name: str, value: object, choices: Sequence) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, choices))}")


def at_least(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is {value!r}; it must be an integer of at least {least}")


def describe(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
