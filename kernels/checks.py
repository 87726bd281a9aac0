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


def one_of(name: str, value: object, choices: Sequence) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, choices))}")


def at_least(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is {value!r}; it must be an integer of at least {least}")


def describe(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
