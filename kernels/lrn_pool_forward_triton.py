"""Bias, ReLU, local response normalisation and max-pool in Triton, forward: one kernel, for any strides. The backward
pass is in `lrn_pool_backward_triton.py`.

Both kernels stream: a program holds a tile of positions, one a lane, and walks through the maps. The window of maps
that the norm adds up rolls along in registers, so no sum reads a map twice. Lanes are neighbours in a row: NCHW is read
in whole cache lines; in channels_last a line serves the next steps of the walk instead.

    a = relu(x + bias) or x + bias;  low = size // 2, high = size - 1 - low
    d_c = k + alpha * sum of a_j^2, j = c - low .. c + high;  u = a d^-beta
    y = max of u over the window, then relu if "after"

float32 inside, whatever the storage type. The spatial norm has kernels of its own (`spatial_norm_triton.py`), which
leave the pooling to these."""

from typing import Literal

import torch
import triton
import triton.language as tl

from .dispatch import triton_on
from .lrn_pool_window_triton import _activation, _powers, _sum, _zeros
from .spatial_norm_triton import spatial_norm

FORWARD_TILE = 64  # positions a program: 13x13 outputs fill three tiles
FORWARD_MAPS = 32  # at most so many maps a program: a cut costs size - 1 more steps
ROLLING = 100  # where more values than this would roll (pool 3 with size 5: 36), the norm gets a pass of its own


@triton.jit
def _forward_kernel(
    x_ptr,  # (N, C, H, W), x_strides
    bias_ptr,  # (C,) or None
    y_ptr,  # (N, C, OH, OW), y_strides
    argmax_ptr,  # (N, C, OH, OW), y_strides, uint8, or None
    C,
    H,
    W,
    OH,
    OW,
    x_strides,
    y_strides,
    alpha,
    k,
    SIZE: tl.constexpr,  # 0: no norm
    BETA: tl.constexpr,
    RELU: tl.constexpr,
    POOL: tl.constexpr,
    STRIDE: tl.constexpr,
    CEIL_MODE: tl.constexpr,  # whether the last window reaches beyond the maps
    MAPS: tl.constexpr,
    TILE: tl.constexpr,
    UNROLL: tl.constexpr,  # steps that are code of their own
):
    LOW: tl.constexpr = SIZE // 2
    HIGH: tl.constexpr = SIZE - 1 - LOW if SIZE else 0
    tiles = tl.cdiv(OH * OW, TILE)
    n = (tl.program_id(0) // tiles).to(tl.int64)
    position = tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)
    first = tl.program_id(1).to(tl.int64) * MAPS
    valid = position < OH * OW
    row, column = position // OW, position % OW
    x_ptr += n * x_strides[0]
    cell = row.to(tl.int64) * STRIDE * x_strides[2] + column.to(tl.int64) * STRIDE * x_strides[3]
    out = n * y_strides[0] + row.to(tl.int64) * y_strides[2] + column.to(tl.int64) * y_strides[3]

    row_step, column_step = tl.cast(x_strides[2], tl.int64), tl.cast(x_strides[3], tl.int64)
    rolling = ()  # of every cell of the window, a of the SIZE - 1 maps before: POOL^2 (SIZE - 1) tensors
    for _ in tl.static_range(POOL * POOL):
        rolling += (_zeros(LOW + HIGH, TILE),)
    for step in tl.range(0, MAPS + LOW + HIGH, loop_unroll_factor=UNROLL):
        c = first + step - LOW - HIGH  # its window over the maps ends with map c + HIGH, which is read now
        best = tl.full((TILE,), -float("inf"), tl.float32)
        code = tl.zeros((TILE,), tl.int32)
        rolled = ()
        for tap in tl.static_range(POOL * POOL):
            i, j = tap // POOL, tap % POOL
            inside = valid
            if CEIL_MODE:
                inside = valid & (row * STRIDE + i < H) & (column * STRIDE + j < W)
            pixel = x_ptr + (c + HIGH) * x_strides[1] + i * row_step + j * column_step
            window = rolling[tap] + (_activation(pixel + cell, bias_ptr, c + HIGH, C, inside, RELU),)
            u = window[LOW]
            if SIZE:
                u *= _powers(k + alpha * _sum(window, True), BETA)[0]
            if CEIL_MODE:
                u = tl.where(inside, u, -float("inf"))
            better = (u > best) | (u != u)  # the first maximum, or the last NaN
            best = tl.where(better, u, best)
            code = tl.where(better, tap, code)
            rolled += (window[1:],)
        rolling = rolled
        if RELU == "after":
            code = tl.where(best <= 0, 255, code)
            best = tl.maximum(best, 0.0, propagate_nan=tl.PropagateNan.ALL)
        stored = valid & (step >= LOW + HIGH) & (c < C)
        tl.store(y_ptr + c * y_strides[1] + out, best.to(y_ptr.dtype.element_ty), mask=stored)
        if argmax_ptr is not None:
            tl.store(argmax_ptr + c * y_strides[1] + out, code.to(tl.uint8), mask=stored)


def forward(
    x: torch.Tensor,
    bias: torch.Tensor | None,
    y: torch.Tensor,
    argmax: torch.Tensor,
    *,
    norm: Literal["none", "lrn", "spatial"],
    size: int,
    alpha: float,
    beta: float,
    k: float,
    relu: Literal["before", "after", "none"],
    pool: int,
    stride: int,
    ties: Literal["first", "all"],
) -> None:
    """Write y, and argmax unless it is empty.

    x: (N, C, H, W) float32, bfloat16 or float16, any strides; bias: (C,) or None; y: (N, C, OH, OW), any strides and
    any of the three types; argmax: uint8, shape and strides of y, or empty. norm: "none", "lrn" or "spatial"; relu:
    "none", "before" (the norm) or "after" (the pool); pool = 0: no pooling. "spatial" takes no bias and no relu before
    it. `ties` concerns the backward pass alone. Raises ValueError for maps of 2^31 or more positions. Every cell of the
    window is code of its own: a 3x3 window compiles in a second, one of 15x15 in a minute."""
    (N, C, H, W), (OH, OW) = x.shape, y.shape[2:]
    refuse_large_maps(H, W)
    if y.numel() == 0:
        return
    if pool and (norm == "spatial" or norm == "lrn" and pool * pool * (size - 1) > ROLLING):
        u = torch.empty(x.shape, dtype=torch.float32, device=x.device)
        norm_relu = "before" if relu == "before" else "none"
        forward(
            x,
            bias,
            u,
            argmax[:0],
            norm=norm,
            size=size,
            alpha=alpha,
            beta=beta,
            k=k,
            relu=norm_relu,
            pool=0,
            stride=1,
            ties=ties,
        )
        x, bias, norm, relu = u, None, "none", "after" if relu == "after" else "none"
    with triton_on(x):
        if norm == "spatial":
            spatial_norm(x, y, size, alpha, beta, k)
            return
        maps = triton.cdiv(C, triton.cdiv(C, FORWARD_MAPS))
        ceil_mode = pool > 0 and ((OH - 1) * stride + pool > H or (OW - 1) * stride + pool > W)
        _forward_kernel[N * triton.cdiv(OH * OW, FORWARD_TILE), triton.cdiv(C, maps)](
            x,
            bias,
            y,
            argmax if argmax.numel() else None,
            C,
            H,
            W,
            OH,
            OW,
            x.stride(),
            y.stride(),
            alpha,
            k,
            SIZE=size if norm == "lrn" else 0,
            BETA=beta,
            RELU=relu,
            POOL=pool or 1,
            STRIDE=stride if pool else 1,
            CEIL_MODE=ceil_mode,
            MAPS=maps,
            TILE=FORWARD_TILE,
            UNROLL=_unroll_factor(norm, size, pool),
            num_warps=FORWARD_TILE // 32,
        )


def _unroll_factor(norm, size, pool):
    """Four steps bring a window of five maps back to where it was: unrolled, nothing moves between registers.

    Not with more cells a step than 3x3 windows have: Triton 3.7 compiles 5x5 for a minute then, and 6 seconds
    otherwise."""
    return 4 if norm == "lrn" and size == 5 and pool in (2, 3) else 1


def refuse_large_maps(H: int, W: int) -> None:
    if H * W >= 2**31 - 128:
        raise ValueError(f"maps of {H}x{W} positions are more than the Triton kernels count; 2^31 is the limit")
