"""What the Triton kernels of LRN and max-pool share, forward and backward: a map's values as they are read, the window
that rolls through the maps, and the powers of d.

Their arguments have no types: Triton compiles an annotation."""

import triton
import triton.language as tl


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
