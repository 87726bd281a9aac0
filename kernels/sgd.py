"""The printed update of paper section 5 for a whole network in Triton: one launch a dtype and device, 20 bytes a parameter.

    v <- m v - d e w - e g;  w <- w + v

A program finds its tensor and its first element in a table on the device, and the addresses and coefficients of that tensor in
two more. The tables are kept for the next step, so that only a change of tensors or of rates copies anything to the device.
"""
import torch
import triton
import triton.language as tl

from . import reference
from .choice import triton_on
from .ops import dense_alike, update_tables

CHUNK = 4096  # elements a program
REMEMBERED = 16  # sets of tables kept: two towers, a few dtypes, and the rates before and after a drop

_remembered = {}  # (device, tensors, coefficients) -> tables, the longest unused first
# The same of those that a CUDA graph was captured with outside `ops.update_tables_in`: its replays read them, and nobody says for how
# long, so these are never dropped.
_captured = {}


@triton.jit
def _paper_sgd_kernel(
    chunks_ptr,        # (programs, 2) int64: number of the tensor, first element
    tensors_ptr,       # (tensors, 4) int64: addresses of w, g and v, number of elements
    coefficients_ptr,  # (tensors, 3) float64: m, d e, e
    DTYPE: tl.constexpr,    # of w, g and v
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
    w_ptr = tl.load(tensors_ptr + 4 * tensor).to(tl.pointer_type(DTYPE)) + first + element
    g_ptr = tl.load(tensors_ptr + 4 * tensor + 1).to(tl.pointer_type(DTYPE)) + first + element
    v_ptr = tl.load(tensors_ptr + 4 * tensor + 2).to(tl.pointer_type(DTYPE)) + first + element
    left = tl.load(tensors_ptr + 4 * tensor + 3) - first
    if ALIGNED:  # what a table holds the compiler cannot see: told, it moves 16 bytes at a time
        w_ptr, g_ptr, v_ptr = tl.multiple_of(w_ptr, 16), tl.multiple_of(g_ptr, 16), tl.multiple_of(v_ptr, 16)
    if left >= CHUNK:
        _update(w_ptr, g_ptr, v_ptr, m, decay, rate, None)
    else:
        _update(w_ptr, g_ptr, v_ptr, m, decay, rate, element < left)


@triton.jit
def _update(w_ptr, g_ptr, v_ptr, m, decay, rate, mask):
    w, v = tl.load(w_ptr, mask).to(m.dtype), tl.load(v_ptr, mask).to(m.dtype)
    v = m * v - decay * w - rate * tl.load(g_ptr, mask).to(m.dtype)
    tl.store(v_ptr, v.to(v_ptr.dtype.element_ty), mask)
    tl.store(w_ptr, (w + v).to(w_ptr.dtype.element_ty), mask)


def paper_sgd_(parameters, gradients, velocities, learning_rates, momentum, weight_decays):
    """The update in place, for lists of tensors; e, d: one learning rate and weight decay a tensor (`reference.paper_sgd_`).

    float32 and float64 are computed as they are, bfloat16 and float16 in float32. A tensor whose rate is 0 is not touched.
    Weight, gradient and velocity must have one dtype, device and shape and lie in memory without gaps and in the same order,
    contiguous or channels_last; others are left to `reference.paper_sgd_`, one by one. Once a call has run with the same
    tensors and rates, further calls can be captured in a CUDA graph. Raises RuntimeError where one is captured before that, or so
    long after it that its tables were forgotten; not within `ops.update_tables_in`, whose owner forgets nothing.
    """
    groups = {}
    for w, g, v, rate, decay in zip(parameters, gradients, velocities, learning_rates, weight_decays, strict=True):
        if rate == 0 or w.numel() == 0:
            continue
        if dense_alike(w, g, v):
            groups.setdefault((w.device, w.dtype), []).append((w, g, v, rate, decay))
        else:
            reference.paper_sgd_([w], [g], [v], learning_rates=[rate], momentum=momentum, weight_decays=[decay])
    for (device, dtype), group in groups.items():
        tensors = tuple((w.data_ptr(), g.data_ptr(), v.data_ptr(), w.numel()) for w, g, v, _, _ in group)
        coefficients = tuple((momentum, decay * rate, rate) for *_, rate, decay in group)
        with triton_on(group[0][0]):
            chunks, *tables = _tables_for(device, tensors, coefficients)
            aligned = all(address % 16 == 0 for addresses in tensors for address in addresses[:3])
            _paper_sgd_kernel[len(chunks),](chunks, *tables, getattr(tl, str(dtype).removeprefix("torch.")), aligned, CHUNK,
                                            num_warps=8)


def _tables_for(device, tensors, coefficients):
    """The kernel's tables. What they hold is a function of the arguments alone, so what is remembered is never out of date."""
    key = device, tensors, coefficients
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    owner = update_tables()
    if owner is None:
        owner = _captured
    tables = owner.get(key) or _remembered.pop(key, None)
    if tables is None:
        if capturing:
            raise RuntimeError("a CUDA graph captures paper_sgd_ for tensors or rates that it has not been called with yet; "
                               "call it once with the same ones before the capture")
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
    chunks = [torch.stack([torch.full_like(first, number), first], 1) for number, (*_, size) in enumerate(tensors)
              for first in [torch.arange(0, size, CHUNK)]]
    tables = torch.cat(chunks), torch.tensor(tensors, dtype=torch.int64), torch.tensor(coefficients, dtype=torch.float64)
    if device.type == "cuda":  # from page-locked memory, else the host waits for the copy, and before it for the step
        tables = [table.pin_memory() for table in tables]
    return tuple(table.to(device, non_blocking=True) for table in tables)
