"""Bias, ReLU and classic dropout in one pass in Triton; backward dx and the sums for dbias in one more.

    a = x + bias,  y = (0 where a <= 0, else a) * keep;  dx = dy where not y <= 0, else 0,  dbias = sum of dx

in float32. The mask is that of `reference.dropout`, made again from its counters; the backward pass sees it in the
zeros of y. A program makes a tile of ROWS positions by MAPS maps. In channels_last, and for (N, F), the positions of
all images are one column, in NCHW a tile lies in one image. Every backward program leaves the sums of its tile, so no
atomic is needed, and no order varies."""

import torch
import triton
import triton.language as tl

from .dispatch import triton_on
from .philox import DROPOUT_STREAM, dropout_threshold

FORWARD_TILE, BACKWARD_TILE = 2048, 4096  # values a program; backward leaves MAPS sums a tile, fewer the larger it is
SIDES = (256, 128, 64, 32)  # of tiles, along the dimension in which memory is contiguous


@triton.jit
def _tile(
    positions,
    C: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ROWS: tl.constexpr,
    MAPS: tl.constexpr,
):
    """Which tile of positions this program makes; its images, pixels in them and maps, where its values are, and which
    exist.

    positions: N * PIXELS. Everything but the first is int64 and (ROWS, 1), (1, MAPS) or (ROWS, MAPS).
    """
    CUTS: tl.constexpr = (C + MAPS - 1) // MAPS
    tile = (tl.program_id(0) // CUTS).to(tl.int64)
    channel = (tl.program_id(0) % CUTS * MAPS + tl.arange(0, MAPS)).to(tl.int64)[None, :]
    if CHANNELS_LAST:
        row = tile * ROWS + tl.arange(0, ROWS)[:, None]
        image, pixel = row // PIXELS, row % PIXELS
        place = row * C + channel
        inside = (row < positions) & (channel < C)
    else:
        TILES: tl.constexpr = (PIXELS + ROWS - 1) // ROWS
        image = tile // TILES
        pixel = tile % TILES * ROWS + tl.arange(0, ROWS)[:, None]
        place = (image * C + channel) * PIXELS + pixel
        inside = (pixel < PIXELS) & (channel < C)
    return tile, image, pixel, channel, place, inside


# a kernel for every layer would be the same but for a constant
@triton.jit(do_not_specialize=["key", "layer", "tower", "first_row"])
def _relu_dropout_kernel(
    x_ptr,  # N images of C maps of PIXELS positions, dense
    bias_ptr,  # (C,), or None
    step_ptr,  # () int64; None where THRESHOLD is 0
    y_ptr,  # as x
    positions,  # N * PIXELS
    key,
    layer,
    tower,  # int; of the mask
    first_row,  # int; images of the minibatch before the first
    THRESHOLD: tl.constexpr,  # words below are dropped; 0 drops nothing and draws nothing
    C: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ROWS: tl.constexpr,
    MAPS: tl.constexpr,
):
    _, image, pixel, channel, place, inside = _tile(positions, C, PIXELS, CHANNELS_LAST, ROWS, MAPS)
    a = tl.load(x_ptr + place, mask=inside, other=0).to(tl.float32)
    if bias_ptr is not None:
        a += tl.load(bias_ptr + channel, mask=channel < C, other=0).to(tl.float32)
    y = tl.maximum(a, 0.0, propagate_nan=tl.PropagateNan.ALL)
    if THRESHOLD > 0:
        step = tl.load(step_ptr).to(tl.uint32)  # its low 32 bits
        layer, tower = layer.to(tl.uint32), tower.to(tl.uint32)
        image += first_row
        if CHANNELS_LAST and PIXELS == 1 and C % 4 == 0:  # rows of whole counters: four neighbours share one
            first = tl.program_id(0) % ((C + MAPS - 1) // MAPS) * (MAPS // 4) + tl.arange(0, MAPS // 4)
            counter = image * (C // 4) + first[None, :]
            w0, w1, w2, w3 = tl.philox(key, counter.to(tl.uint32), step, layer, tower)
            word = tl.join(tl.join(w0, w2), tl.join(w1, w3)).reshape(ROWS, MAPS)
        else:
            position = (image * C + channel) * PIXELS + pixel  # in logical order
            w0, w1, w2, w3 = tl.philox(key, (position // 4).to(tl.uint32), step, layer, tower)
            word = tl.where(position % 4 < 2, tl.where(position % 4 == 0, w0, w1), tl.where(position % 4 == 2, w2, w3))
        y *= (word >= THRESHOLD).to(tl.float32)  # multiplied, so that NaN and infinity times 0 stay NaN
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _relu_dropout_backward_kernel(
    dy_ptr,  # N images of C maps of PIXELS positions, dense
    y_ptr,  # as dy
    dx_ptr,  # as dy
    partial_ptr,  # (tiles, C) float32: sums of dx over the positions of a tile; or None
    positions,  # N * PIXELS
    C: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ROWS: tl.constexpr,
    MAPS: tl.constexpr,
):
    tile, _, _, channel, place, inside = _tile(positions, C, PIXELS, CHANNELS_LAST, ROWS, MAPS)
    y = tl.load(y_ptr + place, mask=inside, other=0).to(tl.float32)
    dy = tl.load(dy_ptr + place, mask=inside, other=0).to(tl.float32)
    dx = tl.where(y <= 0, 0.0, dy)  # where y is NaN, dy
    tl.store(dx_ptr + place, dx.to(dx_ptr.dtype.element_ty), mask=inside)
    if partial_ptr is not None:
        tl.store(partial_ptr + tile * C + channel, tl.sum(dx, axis=0, keep_dims=True), mask=channel < C)


def forward(
    x: torch.Tensor,
    bias: torch.Tensor | None,
    step: torch.Tensor | None,
    y: torch.Tensor,
    *,
    probability: float,
    seed: int,
    layer: int,
    tower: int,
    first_row: int,
) -> None:
    """Write y, of the shape and memory order of x; the others as in `relu_dropout_op.relu_dropout`, already checked.

    x: dense in channels_last or contiguous; bias: (C,), contiguous, or None; step: () int64 on the device of x, read
    there alone.
    """
    positions, shape, grid, _ = _launch(x, FORWARD_TILE)
    threshold = dropout_threshold(probability)
    with triton_on(x):
        _relu_dropout_kernel[grid](
            x,
            bias,
            step if threshold else None,
            y,
            positions,
            DROPOUT_STREAM << 32 | seed,
            layer,
            tower,
            first_row,
            threshold,
            *shape,
            num_warps=FORWARD_TILE // 512,
        )


def backward(dy: torch.Tensor, y: torch.Tensor, dx: torch.Tensor, sums: bool) -> torch.Tensor | None:
    """Write dx; return the gradient of the bias, (C,) float32, or None unless `sums`. dy, y, dx: dense, in one memory
    order."""
    positions, shape, grid, tiles = _launch(y, BACKWARD_TILE)
    partial_sums = torch.empty(tiles, y.shape[1], dtype=torch.float32, device=y.device) if sums else None
    with triton_on(y):
        _relu_dropout_backward_kernel[grid](dy, y, dx, partial_sums, positions, *shape, num_warps=BACKWARD_TILE // 512)
        return partial_sums.sum(0) if sums else None


def _launch(x, size):
    """(positions, (C, PIXELS, CHANNELS_LAST, ROWS, MAPS), grid, number of tiles of positions) for tiles of `size`
    values."""
    images, maps, pixels = x.shape[0], x.shape[1], x.shape[2:].numel()
    channels_last = pixels == 1 or not x.is_contiguous()
    # fewest idle lanes, then widest
    side = min(SIDES, key=lambda side: triton.cdiv(maps if channels_last else pixels, side) * side)
    columns = side if channels_last else size // side
    rows = size // columns
    tiles = triton.cdiv(images * pixels, rows) if channels_last else images * triton.cdiv(pixels, rows)
    return images * pixels, (maps, pixels, channels_last, rows, columns), (tiles * triton.cdiv(maps, columns),), tiles
