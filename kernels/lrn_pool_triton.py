"""Bias, ReLU, local response normalisation and max-pool in Triton: one pass forward, one backward, for any strides.

Both kernels stream: a program holds a tile of positions, one a lane, and walks through the maps. The window of maps
that the norm adds up rolls along in registers, so no sum reads a map twice. Lanes are neighbours in a row: NCHW is read
in whole cache lines; in channels_last a line serves the next steps of the walk instead.

    a = relu(x + bias) or x + bias;  low = size // 2, high = size - 1 - low
    d_c = k + alpha * sum of a_j^2, j = c - low .. c + high;  u = a d^-beta
    y = max of u over the window, then relu if "after";  g = dL/du
    da_c = g_c d_c^-beta - 2 alpha beta a_c * sum of t_j, j = c - high .. c + low;  t = g a d^(-beta - 1)

float32 inside, whatever the storage type. Nothing is skipped where g = 0: NaN and infinities spread as in
`reference.py`. The spatial norm reads its size x size neighbours in kernels of its own and leaves the pooling to the
first two."""

from typing import Literal

import torch
import triton
import triton.language as tl

from .dispatch import triton_on

# positions a program: 13x13 outputs fill three tiles of 64, 55x55 inputs 24 of 128
FORWARD_TILE, BACKWARD_TILE = 64, 128
# at most so many maps a program: a cut costs size - 1 more steps, backward twice that
FORWARD_MAPS, BACKWARD_MAPS = 32, 64
ROLLING = 100  # where more values than this would roll (pool 3 with size 5: 36), the norm gets a pass of its own


@triton.jit
def _powers(d, BETA: tl.constexpr):
    """d^-beta and d^(-beta - 1); 0 where d is infinite, as pow has it."""
    if BETA == 0.75:
        # Two roundings of d^1.5 that the root halves: r sqrt(r), r = rsqrt(d), is twice as wrong. Powers of two, which
        # are exact, hold d^1.5 in float32 for every d above 1e-12.
        e = d * 2.0**-44
        p = tl.rsqrt(e * tl.sqrt(e)) * 2.0**-33
    elif BETA == 0:
        p = tl.full(d.shape, 1.0, tl.float32)
    else:  # the logarithm in float64: rounded to float32 it would put an error of log2(d) units into the power
        p = tl.exp2(-BETA * tl.log2(d.to(tl.float64))).to(tl.float32)
    return p, p / d  # p r r would save the division and double the error


@triton.jit
def _activation(x_ptr, bias_ptr, c, C, mask, RELU: tl.constexpr):
    """a of map c at the positions x_ptr points to; 0 for a map outside [0, C)."""
    a = tl.load(x_ptr, mask=mask & (c >= 0) & (c < C), other=0.0).to(tl.float32)
    if bias_ptr is not None:
        a += tl.load(bias_ptr + c, mask=(c >= 0) & (c < C), other=0.0).to(tl.float32)
    if RELU == "before":
        a = tl.maximum(a, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return a


@triton.jit
def _zeros(COUNT: tl.constexpr, TILE: tl.constexpr):
    """A window of zeros, each its own: Triton drops names that start as the same tensor from the state of a loop."""
    values = ()
    for _ in tl.static_range(COUNT):
        values += (tl.zeros((TILE,), tl.float32),)
    return values


@triton.jit
def _sum(values, SQUARED: tl.constexpr):
    total = values[0] * values[0] if SQUARED else values[0]
    for i in tl.static_range(1, len(values)):
        total += values[i] * values[i] if SQUARED else values[i]
    return total


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


@triton.jit
def _spatial_kernel(
    x_ptr,  # (N, C, H, W), x_strides
    g_ptr,  # (N, C, H, W) contiguous float32: read as g, left as g d^-beta; or None
    y_ptr,  # (N, C, H, W), y_strides: u, or t where there is a g
    C,
    H,
    W,
    x_strides,
    y_strides,
    alpha,
    k,
    SIZE: tl.constexpr,
    BETA: tl.constexpr,
    TILE: tl.constexpr,
):
    tiles = tl.cdiv(H * W, TILE)
    plane = (tl.program_id(0) // tiles).to(tl.int64)
    position = tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)
    valid = position < H * W
    row, column = position // W, position % W
    x_ptr += plane // C * x_strides[0] + plane % C * x_strides[1]
    y_ptr += plane // C * y_strides[0] + plane % C * y_strides[1]
    x_at = row.to(tl.int64) * x_strides[2] + column.to(tl.int64) * x_strides[3]
    squares = tl.zeros((TILE,), tl.float32)
    for i in range(-(SIZE // 2), SIZE - SIZE // 2):
        for j in range(-(SIZE // 2), SIZE - SIZE // 2):
            inside = valid & (row + i >= 0) & (row + i < H) & (column + j >= 0) & (column + j < W)
            cell = (row + i).to(tl.int64) * x_strides[2] + (column + j).to(tl.int64) * x_strides[3]
            a = tl.load(x_ptr + cell, inside, 0.0).to(tl.float32)
            squares += a * a
    p, q = _powers(k + alpha * squares, BETA)
    y = tl.load(x_ptr + x_at, valid, 0.0).to(tl.float32)
    if g_ptr is None:
        y *= p
    else:
        g_ptr += plane * H * W
        g = tl.load(g_ptr + position, valid, 0.0)
        tl.store(g_ptr + position, g * p, mask=valid)
        y = g * y * q
    y_at = row.to(tl.int64) * y_strides[2] + column.to(tl.int64) * y_strides[3]
    tl.store(y_ptr + y_at, y.to(y_ptr.dtype.element_ty), mask=valid)


@triton.jit
def _spatial_backward_kernel(
    x_ptr,  # (N, C, H, W), x_strides
    gp_ptr,  # (N, C, H, W) contiguous float32, g d^-beta
    t_ptr,  # (N, C, H, W) contiguous float32
    dx_ptr,  # (N, C, H, W), dx_strides
    C,
    H,
    W,
    x_strides,
    dx_strides,
    alpha,
    SIZE: tl.constexpr,
    BETA: tl.constexpr,
    TILE: tl.constexpr,
):
    tiles = tl.cdiv(H * W, TILE)
    plane = (tl.program_id(0) // tiles).to(tl.int64)
    position = tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)
    valid = position < H * W
    row, column = position // W, position % W
    x_ptr += plane // C * x_strides[0] + plane % C * x_strides[1]
    dx_ptr += plane // C * dx_strides[0] + plane % C * dx_strides[1]
    total = tl.zeros((TILE,), tl.float32)
    for i in range(1 - SIZE + SIZE // 2, SIZE // 2 + 1):  # the norms that a position is in the window of
        for j in range(1 - SIZE + SIZE // 2, SIZE // 2 + 1):
            inside = valid & (row + i >= 0) & (row + i < H) & (column + j >= 0) & (column + j < W)
            total += tl.load(t_ptr + plane * H * W + i * W + j + position, inside, 0.0)
    a = tl.load(x_ptr + (row.to(tl.int64) * x_strides[2] + column.to(tl.int64) * x_strides[3]), valid, 0.0).to(
        tl.float32
    )
    dx = tl.load(gp_ptr + plane * H * W + position, valid, 0.0) - 2 * BETA * alpha * a * total
    tl.store(
        dx_ptr + (row.to(tl.int64) * dx_strides[2] + column.to(tl.int64) * dx_strides[3]),
        dx.to(dx_ptr.dtype.element_ty),
        mask=valid,
    )


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
    _fits(H, W)
    if y.numel() == 0:
        return
    if pool and (norm == "spatial" or norm == "lrn" and pool * pool * (size - 1) > ROLLING):
        u = torch.empty(x.shape, dtype=torch.float32, device=x.device)
        before = "before" if relu == "before" else "none"
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
            relu=before,
            pool=0,
            stride=1,
            ties=ties,
        )
        x, bias, norm, relu = u, None, "none", "after" if relu == "after" else "none"
    with triton_on(x):
        if norm == "spatial":
            _spatial_kernel[N * C * triton.cdiv(H * W, 128),](
                x, None, y, C, H, W, x.stride(), y.stride(), alpha, k, size, beta, 128
            )
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
            UNROLL=_unrolled(norm, size, pool),
            num_warps=FORWARD_TILE // 32,
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
    _fits(H, W)
    tiles = triton.cdiv(H * W, BACKWARD_TILE)
    partial = None if bias is None else torch.empty(N * tiles, C, dtype=torch.float32, device=x.device)
    if x.numel() == 0:
        return None if bias is None else partial.sum(0)
    choice, u, all_ties = argmax if pool else None, None, pool > 0 and ties == "all"
    float32 = {"dtype": torch.float32, "device": x.device}
    if all_ties:
        u, choice = torch.empty(x.shape, **float32), torch.empty(dy.shape, **float32)
        before = "before" if relu == "before" else "none"
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
            relu=before,
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
            partial,
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
            t, grid = torch.empty(x.shape, **float32), (N * C * triton.cdiv(H * W, 128),)
            _spatial_kernel[grid](x, g, t, C, H, W, x.stride(), t.stride(), alpha, k, size, beta, 128)
            _spatial_backward_kernel[grid](x, g, t, dx, C, H, W, x.stride(), dx.stride(), alpha, size, beta, 128)
    return None if bias is None else partial.sum(0)


def _unrolled(norm, size, pool):
    """Four steps bring a window of five maps back to where it was: unrolled, nothing moves between registers.

    Not with more cells a step than 3x3 windows have: Triton 3.7 compiles 5x5 for a minute then, and 6 seconds
    otherwise."""
    return 4 if norm == "lrn" and size == 5 and pool in (2, 3) else 1


def _fits(H, W):
    if H * W >= 2**31 - 128:
        raise ValueError(f"maps of {H}x{W} positions are more than the Triton kernels count; 2^31 is the limit")
