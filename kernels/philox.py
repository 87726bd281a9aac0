"""Counter-based random numbers: Philox-4x32-10 (Salmon, Moraes, Dror, Shaw 2011), the same bits on every device.

A draw is a pure function of a key and a counter, so nothing has to be stored, replayed or kept in step: the crop of
image 7 in epoch 3 is the same whatever the worker count, and the dropout mask of step 40 is the same after a restart.
Written in int64 torch operations because torch has no unsigned 32-bit arithmetic on every device."""

import math
from collections.abc import Sequence

import torch

# The second word of the key (the first is the seed) keeps the uses apart.
ORDER_STREAM, CROP_STREAM, COLOUR_STREAM, INIT_STREAM, DROPOUT_STREAM, PLACE_STREAM = range(1, 7)

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


def philox(
    counter: Sequence[torch.Tensor | int], key: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ten rounds of Philox-4x32.

    counter: four int64 tensors or ints in [0, 2^32), broadcast against each other; at least one of them a tensor.
    key: two ints in [0, 2^32).
    Returns four int64 tensors of uniform 32-bit words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # A 32 x 32 bit product wraps around in int64, but all 64 bits of it are right; the mask undoes the sign of the
        # shift.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) & _MASK) ^ c1 ^ k0, p1 & _MASK, ((p0 >> 32) & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def below(word: torch.Tensor, n: int) -> torch.Tensor:
    """32-bit words -> uniform integers in [0, n), n up to 2^31; the bias is below n * 2^-32."""
    return (word * n) >> 32


def normal_pair(word0: torch.Tensor, word1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two 32-bit words -> two independent N(0, 1) values, float64 (Box and Muller 1958)."""
    radius = torch.sqrt(-2.0 * torch.log((word0 + 1).double() * 2.0**-32))
    angle = word1.double() * (2.0 * math.pi * 2.0**-32)
    return radius * torch.cos(angle), radius * torch.sin(angle)


def dropout_threshold(probability: float) -> int:
    """The least word of Philox, of 32 bits, with which dropout keeps a value: what all kernels compare with."""
    return int(probability * 2**32)
