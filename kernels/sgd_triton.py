"""The printed update of paper section 5 for a whole network in Triton: one launch a dtype and device, 20 bytes a
parameter.

    v <- m v - d e w - e g;  w <- w + v

The same pass takes gradients of 16 bits as they are, writes the next weights' copies in 16 bits, and adds up the
weights: one sum a program, and a second, small launch that adds those of each tensor in a fixed order.

A program finds its tensor and its first element in a table on the device, and the addresses and coefficients of that
tensor in two more. The tables are kept for the next step, so that only a change of tensors or of rates copies anything
to the device."""

import itertools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from . import reference
from .checks import dense_alike
from .dispatch import triton_on

CHUNK = 4096  # elements a program
SUMMED = 1024  # programs' sums that are added at once
REMEMBERED = 16  # sets of tables kept: two towers, a few dtypes, and the rates before and after a drop

_remembered = {}  # (device, tensors, coefficients) -> tables, the longest unused first
# The same of those that a CUDA graph was captured with outside `sgd.update_tables_in`: its replays read them, and
# nobody says for how long, so these are never dropped.
_captured = {}


@triton.jit
def _paper_sgd_kernel(
    chunks_ptr,  # (programs, 2) int64: number of the tensor, first element
    tensors_ptr,  # (tensors, 8) int64: see `_row`
    coefficients_ptr,  # (tensors, 3) float64: m, d e, e
    partial_ptr,  # (programs,) float32: sum of the weights that each has written
    DTYPE: tl.constexpr,  # of w and v
    G_DTYPE: tl.constexpr,
    COPY_DTYPE: tl.constexpr,  # None where there is no copy
    SUMS: tl.constexpr,  # whether sums are wanted
    ALIGNED: tl.constexpr,  # whether all addresses are multiples of 16 bytes
    CHUNK: tl.constexpr,
):
    chunk = tl.program_id(0).to(tl.int64)
    tensor, first = tl.load(chunks_ptr + 2 * chunk), tl.load(chunks_ptr + 2 * chunk + 1)
    ACCUMULATOR: tl.constexpr = tl.float64 if DTYPE == tl.float64 else tl.float32
    m = tl.load(coefficients_ptr + 3 * tensor).to(ACCUMULATOR)
    decay = tl.load(coefficients_ptr + 3 * tensor + 1).to(ACCUMULATOR)
    rate = tl.load(coefficients_ptr + 3 * tensor + 2).to(ACCUMULATOR)
    element = tl.arange(0, CHUNK)
    row_ptr = tensors_ptr + 8 * tensor
    w_ptr = tl.load(row_ptr).to(tl.pointer_type(DTYPE)) + first + element
    g_ptr = tl.load(row_ptr + 1).to(tl.pointer_type(G_DTYPE)) + first + element
    v_ptr = tl.load(row_ptr + 2).to(tl.pointer_type(DTYPE)) + first + element
    copy_ptr = tl.load(row_ptr + 3).to(tl.pointer_type(DTYPE if COPY_DTYPE is None else COPY_DTYPE)) + first + element
    left = tl.load(row_ptr + 4) - first
    if ALIGNED:  # what a table holds the compiler cannot see: told, it moves 16 bytes at a time
        # Of 16 bits beside float32 as many elements, 8 bytes: so a thread has the same ones of each, and hands none on.
        w_ptr, v_ptr = tl.multiple_of(w_ptr, 16), tl.multiple_of(v_ptr, 16)
        g_ptr = tl.multiple_of(g_ptr, 16 * G_DTYPE.primitive_bitwidth // DTYPE.primitive_bitwidth)
        if COPY_DTYPE is not None:
            copy_ptr = tl.multiple_of(copy_ptr, 16 * COPY_DTYPE.primitive_bitwidth // DTYPE.primitive_bitwidth)
    sum_ptr = partial_ptr + chunk
    COPY: tl.constexpr = COPY_DTYPE is not None
    if left >= CHUNK:
        _update(w_ptr, g_ptr, v_ptr, copy_ptr, sum_ptr, m, decay, rate, None, COPY, SUMS)
    else:
        _update(w_ptr, g_ptr, v_ptr, copy_ptr, sum_ptr, m, decay, rate, element < left, COPY, SUMS)


@triton.jit
def _update(w_ptr, g_ptr, v_ptr, copy_ptr, sum_ptr, m, decay, rate, mask, COPY: tl.constexpr, SUMS: tl.constexpr):
    w, v = tl.load(w_ptr, mask).to(m.dtype), tl.load(v_ptr, mask).to(m.dtype)
    v = m * v - decay * w - rate * tl.load(g_ptr, mask).to(m.dtype)
    tl.store(v_ptr, v.to(v_ptr.dtype.element_ty), mask)
    w = (w + v).to(w_ptr.dtype.element_ty)
    tl.store(w_ptr, w, mask)
    if COPY:
        tl.store(copy_ptr, w.to(copy_ptr.dtype.element_ty), mask)
    if SUMS:
        wide = w.to(tl.float32)
        if mask is not None:
            wide = tl.where(mask, wide, 0.0)
        tl.store(sum_ptr, tl.sum(wide))


@triton.jit
def _sum_kernel(
    tensors_ptr,  # (tensors, 8) int64: see `_row`
    partial_ptr,  # (programs of the kernel above,) float32
    sums_ptr,  # (parameters,) float32
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    row_ptr = tensors_ptr + 8 * tl.program_id(0)
    programs, first = tl.cdiv(tl.load(row_ptr + 4), CHUNK), tl.load(row_ptr + 6)
    lane = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, programs, BLOCK):
        total += tl.load(partial_ptr + first + start + lane, start + lane < programs, 0.0)
    tl.store(sums_ptr + tl.load(row_ptr + 5), tl.sum(total))


def paper_sgd_(
    parameters: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    velocities: Sequence[torch.Tensor],
    learning_rates: Sequence[float],
    momentum: float,
    weight_decays: Sequence[float],
    copies: Sequence[torch.Tensor] = (),
    sums: torch.Tensor | None = None,
    owner: dict | None = None,
) -> None:
    """The update in place, for lists of tensors; e, d: one learning rate and weight decay a tensor
    (`reference.paper_sgd_`).

    float32 and float64 are computed as they are, bfloat16 and float16 in float32. A tensor whose rate is 0 is not
    touched. copies, sums: as in `sgd.paper_sgd_`. Weight, gradient, velocity and copy must have one device and shape
    and lie in memory without gaps and in the same order, contiguous or channels_last; others are left to
    `reference.paper_sgd_`, one by one. Once a call has run with the same tensors and rates, further calls can be
    captured in a CUDA graph. owner: the dict that keeps the tables (`sgd.update_tables_in`); None: this module keeps
    them, some of them for ever. Raises RuntimeError if one is captured before that, or so long after it that its tables
    were forgotten; an owner forgets nothing."""
    groups, copies = {}, copies or [None] * len(parameters)
    lists = zip(parameters, gradients, velocities, copies, learning_rates, weight_decays, strict=True)
    for number, (w, g, v, copy, rate, decay) in enumerate(lists):
        if rate == 0:
            continue
        if w.numel() > 0 and dense_alike(w, g, v, *([] if copy is None else [copy])):
            dtypes = w.dtype, g.dtype, copy if copy is None else copy.dtype
            groups.setdefault((w.device, dtypes), []).append((number, w, g, v, copy, rate, decay))
        else:
            reference.paper_sgd_([w], [g], [v], learning_rates=[rate], momentum=momentum, weight_decays=[decay])
            reference.note_weights(number, w, () if copy is None else copies, sums)
    for (device, dtypes), group in groups.items():
        tensors = tuple(_row(*entry[:5]) for entry in group)
        coefficients = tuple((momentum, decay * rate, rate) for *_, rate, decay in group)
        with triton_on(group[0][1]):
            chunks, rows, coefficients, partial_sums = _tables_for(device, tensors, coefficients, owner)
            aligned = all(address % 16 == 0 for addresses in tensors for address in addresses[:4])
            names = [dtype and getattr(tl, str(dtype).removeprefix("torch.")) for dtype in dtypes]
            _paper_sgd_kernel[len(chunks),](
                chunks, rows, coefficients, partial_sums, *names, sums is not None, aligned, CHUNK, num_warps=8
            )
            if sums is not None:
                _sum_kernel[len(rows),](rows, partial_sums, sums, SUMMED, CHUNK)


def _row(number, w, g, v, copy):
    """Addresses of w, g, v and the copy (0 without), elements, place in the sums; `_tables` adds the first program, and
    a 0.
    """
    return w.data_ptr(), g.data_ptr(), v.data_ptr(), 0 if copy is None else copy.data_ptr(), w.numel(), number


def _tables_for(device, tensors, coefficients, owner):
    """The kernel's tables. What they hold is a function of the arguments alone, so what is remembered is never out of
    date."""
    key = device, tensors, coefficients
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    if owner is None:
        owner = _captured
    tables = owner.get(key) or _remembered.pop(key, None)
    if tables is None:
        if capturing:
            raise RuntimeError(
                "a CUDA graph captures paper_sgd_ for tensors or rates that it has not been called with yet; "
                "call it once with the same ones before the capture"
            )
        tables = _tables(device, tensors, coefficients)
    if capturing or owner is not _captured:
        owner[key] = tables
    if not capturing and device.type == "cuda":
        for table in tables:  # forgotten while a side stream still reads it, its memory must not be given to others
            table.record_stream(torch.cuda.current_stream())
    if owner is _captured:
        _remembered[key] = tables  # the last in the order of use
        if len(_remembered) > REMEMBERED:
            del _remembered[next(iter(_remembered))]
    return tables


def _tables(device, tensors, coefficients):
    chunks = [
        torch.stack([torch.full_like(first, number), first], 1)
        for number, (*_, size, _) in enumerate(tensors)
        for first in [torch.arange(0, size, CHUNK)]
    ]
    begins = [0, *itertools.accumulate(map(len, chunks))]
    rows = [[*row, begin, 0] for row, begin in zip(tensors, begins)]
    tables = torch.cat(chunks), torch.tensor(rows, dtype=torch.int64), torch.tensor(coefficients, dtype=torch.float64)
    if device.type == "cuda":  # from page-locked memory, else the host waits for the copy, and before it for the step
        tables = [table.pin_memory() for table in tables]
    partial_sums = torch.empty(begins[-1], dtype=torch.float32, device=device)
    return *(table.to(device, non_blocking=True) for table in tables), partial_sums
