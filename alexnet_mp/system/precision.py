"""What `--precision` means: the numbers that convolutions, products and kernels compute with.

    fp32  float32 throughout, as in 2012
    tf32  float32, but CUDA's convolutions and products round factors to 10 bits of mantissa (Ampere and newer)
    bf16  images, activations and all gradients in bfloat16; weights, velocity, logits and loss in float32

All of them add in float32: within a product or a convolution (cuBLAS may not add parts of one in bfloat16), within a
norm, over a batch for a bias, and in the update. bf16 rounds each result once, a weight's gradient before it becomes
float32. It adds two results in bfloat16: gradients of maps that several layers read and, on two devices, the two halves
of the product of a layer that reads both towers.

A network computes in the dtype of its images (`TowerLayer`), so a pipeline's dtype is all that bf16 needs. Tests are in
fp32 unless they are part of a training run."""

from collections.abc import Iterable

import torch

from .errors import UserError

CHOICES = ("fp32", "tf32", "bf16")
AMPERE = (8, 0)  # compute capability


def use(precision: str, devices: Iterable[torch.device]) -> torch.dtype:
    """Make this process compute so. Returns the dtype of images. Raises UserError where a device can't."""
    gpus = [device for device in devices if device.type == "cuda"]
    if precision == "tf32" and not gpus:
        raise UserError("precision tf32: only CUDA devices have it; --precision fp32 is what a CPU computes in")
    for device in gpus if precision != "fp32" else ():
        if torch.cuda.get_device_capability(device) < AMPERE:
            raise UserError(
                f"--precision {precision}: {torch.cuda.get_device_name(device)} is older than Ampere; fp32 works"
            )
    # On by default for convolutions.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False  # on by default
    return torch.bfloat16 if precision == "bf16" else torch.float32


def remark(precision: str, devices: Iterable[torch.device]) -> str | None:
    """What a user should know of it on these devices, or None."""
    slow = (
        precision == "bf16"
        and any(device.type == "cpu" for device in devices)
        and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    return "this processor has no instructions for bf16: much slower than fp32" if slow else None
