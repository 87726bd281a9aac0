"""The spatial norm of the 2012 source in Triton, forward and backward: over size x size neighbours of a map.

With d = k + alpha * sum of x^2 over the window: u = x d^-beta;  t = g x d^(-beta - 1), g = dL/du;
dx = g d^-beta - 2 alpha beta x * sum of t over the windows that a position is in. float32 inside."""

import torch
import triton
import triton.language as tl

from .lrn_pool_window_triton import _powers

POSITIONS = 128  # a program


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


def spatial_norm(x: torch.Tensor, y: torch.Tensor, size: int, alpha: float, beta: float, k: float) -> None:
    """Write u of x into y: both (N, C, H, W), any strides, float32, bfloat16 or float16."""
    (N, C, H, W) = x.shape
    _spatial_kernel[N * C * triton.cdiv(H * W, POSITIONS),](
        x, None, y, C, H, W, x.stride(), y.stride(), alpha, k, size, beta, POSITIONS
    )


def spatial_norm_backward(
    x: torch.Tensor, g: torch.Tensor, dx: torch.Tensor, size: int, alpha: float, beta: float, k: float
) -> None:
    """Write the gradient of x into dx, both (N, C, H, W), any strides. g: (N, C, H, W) contiguous float32, dL/du; it is
    overwritten by g d^-beta."""
    (N, C, H, W) = x.shape
    t, grid = torch.empty_like(g), (N * C * triton.cdiv(H * W, POSITIONS),)
    _spatial_kernel[grid](x, g, t, C, H, W, x.stride(), t.stride(), alpha, k, size, beta, POSITIONS)
    _spatial_backward_kernel[grid](x, g, t, dx, C, H, W, x.stride(), dx.stride(), alpha, size, beta, POSITIONS)
