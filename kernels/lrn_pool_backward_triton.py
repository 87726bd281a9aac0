"""Bias, ReLU, local response normalisation and max-pool in Triton, backward: one kernel, for any strides. Its walk and
its names are those of `lrn_pool_forward_triton.py`.

    da_c = g_c d_c^-beta - 2 alpha beta a_c * sum of t_j, j = c - high .. c + low;  t = g a d^(-beta - 1),  g = dL/du

float32 inside, whatever the storage type. Nothing is skipped where g = 0: NaN and infinities spread as in
`reference.py`."""

from typing import Literal

import torch
import triton
import triton.language as tl

from .dispatch import triton_on
from .lrn_pool_forward_triton import forward, refuse_large_maps
from .lrn_pool_window_triton import _activation, _powers, _sum, _zeros
from .spatial_norm_triton import spatial_norm_backward

BACKWARD_TILE = 128  # positions a program: 55x55 inputs fill 24 tiles
BACKWARD_MAPS = 64  # at most so many maps a program: a cut costs 2 (size - 1) more steps


@triton.jit
def _window_gradient(
    dy_ptr,
    choice_ptr,
    u,
    row,
    column,
    c,
    OH,
    OW,
    dy_strides,
    choice_strides,
    mask,
    RELU: tl.constexpr,
    POOL: tl.constexpr,
    STRIDE: tl.constexpr,
    ALL: tl.constexpr,
):
    """g at the positions (row, column) of map c: dy of the windows around each that chose it, in a fixed order."""
    REACH: tl.constexpr = (POOL + STRIDE - 1) // STRIDE  # so many rows of windows hold a position
    last_row, last_column = row // STRIDE, column // STRIDE
    dy_at = last_row.to(tl.int64) * dy_strides[2] + last_column.to(tl.int64) * dy_strides[3]
    choice_at = last_row.to(tl.int64) * choice_strides[2] + last_column.to(tl.int64) * choice_strides[3]
    dy_up, dy_left = tl.cast(dy_strides[2], tl.int64), tl.cast(dy_strides[3], tl.int64)
    choice_up, choice_left = tl.cast(choice_strides[2], tl.int64), tl.cast(choice_strides[3], tl.int64)
    g = tl.zeros(row.shape, tl.float32)
    for r in tl.static_range(REACH):
        for s in tl.static_range(REACH):
            i, j = row % STRIDE + r * STRIDE, column % STRIDE + s * STRIDE  # the position's cell in this window
            here = (
                mask
                & (i < POOL)
                & (last_row >= r)
                & (last_row - r < OH)
                & (j < POOL)
                & (last_column >= s)
                & (last_column - s < OW)
            )
            dy = tl.load(dy_ptr + c * dy_strides[1] - r * dy_up - s * dy_left + dy_at, here, 0.0).to(tl.float32)
            if choice_ptr is None:
                g += dy
            else:
                pointer = choice_ptr + c * choice_strides[1] - r * choice_up - s * choice_left + choice_at
                if ALL:
                    maximum = tl.load(pointer, here, 0.0)
                    if RELU == "after":
                        dy = tl.where(maximum <= 0, 0.0, dy)
                    g += tl.where(u == maximum, dy, 0.0)
                else:
                    g += tl.where(tl.load(pointer, here, 255).to(tl.int32) == i * POOL + j, dy, 0.0)
    return g


@triton.jit
def _backward_kernel(
    dy_ptr,  # (N, C, OH, OW), dy_strides
    x_ptr,  # (N, C, H, W), x_strides
    bias_ptr,  # (C,) or None
    choice_ptr,  # (N, C, OH, OW), choice_strides: uint8 argmax; the float32 maxima if ALL; None without pooling
    u_ptr,  # (N, C, H, W) contiguous float32 if ALL, else None
    dx_ptr,  # (N, C, H, W), dx_strides
    partial_ptr,  # (N * tiles, C) float32: sums of dx over a tile; or None
    C,
    H,
    W,
    OH,
    OW,
    dy_strides,
    x_strides,
    choice_strides,
    dx_strides,
    alpha,
    k,
    SIZE: tl.constexpr,
    BETA: tl.constexpr,
    RELU: tl.constexpr,
    POOL: tl.constexpr,
    STRIDE: tl.constexpr,
    ALL: tl.constexpr,
    MAPS: tl.constexpr,
    TILE: tl.constexpr,
):
    LOW: tl.constexpr = SIZE // 2
    HIGH: tl.constexpr = SIZE - 1 - LOW if SIZE else 0
    tiles = tl.cdiv(H * W, TILE)
    n = (tl.program_id(0) // tiles).to(tl.int64)
    position = tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)
    first = tl.program_id(1).to(tl.int64) * MAPS
    valid = position < H * W
    row, column = position // W, position % W
    dy_ptr += n * dy_strides[0]
    if choice_ptr is not None:
        choice_ptr += n * choice_strides[0]
    x_at = n * x_strides[0] + row.to(tl.int64) * x_strides[2] + column.to(tl.int64) * x_strides[3]
    dx_at = n * dx_strides[0] + row.to(tl.int64) * dx_strides[2] + column.to(tl.int64) * dx_strides[3]

    a_rolling = _zeros(LOW + HIGH, TILE)  # a of maps m - LOW .. m + HIGH - 1
    t_rolling = _zeros(LOW + HIGH, TILE)  # t of maps m - LOW - HIGH .. m - 1
    gp_rolling = _zeros(LOW, TILE)  # g d^-beta of maps m - LOW .. m - 1: 2 (SIZE - 1) + LOW tensors in all
    for step in tl.range(0, MAPS + 2 * (LOW + HIGH), loop_unroll_factor=4 if SIZE == 5 and POOL <= 2 * STRIDE else 1):
        m = first + step - LOW - 2 * HIGH  # map m + HIGH is read, t of map m computed, dx of map c = m - LOW written
        c = m - LOW
        a_window = a_rolling + (
            _activation(x_ptr + (m + HIGH) * x_strides[1] + x_at, bias_ptr, m + HIGH, C, valid, RELU),
        )
        given = valid & (step >= LOW + HIGH) & (m >= 0) & (m < C)
        u = a_window[LOW]
        if ALL:
            u = tl.load(u_ptr + ((n * C + m) * H * W + position), given, 0.0)
        g = _window_gradient(
            dy_ptr, choice_ptr, u, row, column, m, OH, OW, dy_strides, choice_strides, given, RELU, POOL, STRIDE, ALL
        )
        if SIZE:
            p, q = _powers(k + alpha * _sum(a_window, True), BETA)
            gp_window = gp_rolling + (g * p,)
            t_window = t_rolling + (tl.where(given, g * a_window[LOW] * q, 0.0),)
            a = a_window[0]
            dx = gp_window[0] - 2 * BETA * alpha * a * _sum(t_window, False)
            t_rolling = t_window[1:]
            gp_rolling = gp_window[1:]
        else:
            a = a_window[0]
            dx = g
        if RELU == "before":
            dx = tl.where(a <= 0, 0.0, dx)
        a_rolling = a_window[1:]
        written = (step >= 2 * (LOW + HIGH)) & (c < C)
        tl.store(dx_ptr + c * dx_strides[1] + dx_at, dx.to(dx_ptr.dtype.element_ty), mask=valid & written)
        if partial_ptr is not None:
            tl.store(
                partial_ptr + tl.program_id(0).to(tl.int64) * C + c, tl.sum(tl.where(valid, dx, 0.0)), mask=written
            )


def backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    bias: torch.Tensor | None,
    argmax: torch.Tensor,
    dx: torch.Tensor,
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
) -> torch.Tensor | None:
    """Write dx, the gradient of x; return the gradient of the bias, (C,) float32, or None where there is no bias.

    dy: (N, C, OH, OW), x and dx: (N, C, H, W), each of any strides; argmax as `forward` wrote it, read for ties="first"
    alone. ties="all" computes u and the maxima again, into 4 bytes an input and an output."""
    (N, C, H, W), (OH, OW) = x.shape, dy.shape[2:]
    refuse_large_maps(H, W)
    tiles = triton.cdiv(H * W, BACKWARD_TILE)
    partial_sums = None if bias is None else torch.empty(N * tiles, C, dtype=torch.float32, device=x.device)
    if x.numel() == 0:
        return None if bias is None else partial_sums.sum(0)
    choice, u, all_ties = argmax if pool else None, None, pool > 0 and ties == "all"
    float32 = {"dtype": torch.float32, "device": x.device}
    if all_ties:
        u, choice = torch.empty(x.shape, **float32), torch.empty(dy.shape, **float32)
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
        forward(
            u,
            None,
            choice,
            argmax[:0],
            norm="none",
            size=size,
            alpha=alpha,
            beta=beta,
            k=k,
            relu="none",
            pool=pool,
            stride=stride,
            ties=ties,
        )
    g = torch.empty(x.shape, **float32) if norm == "spatial" else dx
    maps = triton.cdiv(C, triton.cdiv(C, BACKWARD_MAPS))
    with triton_on(x):
        _backward_kernel[N * tiles, triton.cdiv(C, maps)](
            dy,
            x,
            bias,
            choice,
            u,
            g,
            partial_sums,
            C,
            H,
            W,
            OH,
            OW,
            dy.stride(),
            x.stride(),
            dy.stride() if choice is None else choice.stride(),
            g.stride(),
            alpha,
            k,
            SIZE=size if norm == "lrn" else 0,
            BETA=beta,
            RELU=relu,
            POOL=pool or 1,
            STRIDE=stride if pool else 1,
            ALL=all_ties,
            MAPS=maps,
            TILE=BACKWARD_TILE,
            num_warps=BACKWARD_TILE // 32,
        )
        if norm == "spatial":
            spatial_norm_backward(x, g, dx, size, alpha, beta, k)
    return None if bias is None else partial_sums.sum(0)
