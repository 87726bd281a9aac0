"""How much of each image's answer is right under top-1 and top-5, in Triton: one launch for what
`accuracy.topk_credit_each` defines.

A program has one image: it counts the scores above the label's own, and those that equal it. PyTorch's text of that is
some twenty kernels, each longer to launch than to run.
"""

import torch
import triton
import triton.language as tl

from .dispatch import triton_on


@triton.jit
def _topk_credit_kernel(
    scores_ptr,  # (N, classes), rows row_stride apart
    labels_ptr,  # (N,) int64
    credits_ptr,  # (2, N) float64: top-1, top-5
    count,  # N
    classes,
    row_stride,
    BLOCK: tl.constexpr,  # a power of two, not below classes
):
    n = tl.program_id(0).to(tl.int64)
    label, row_ptr, place = tl.load(labels_ptr + n), scores_ptr + n * row_stride, tl.arange(0, BLOCK)
    inside = place < classes
    WIDE: tl.constexpr = tl.float64 if scores_ptr.dtype.element_ty == tl.float64 else tl.float32
    own = tl.load(row_ptr + label, (label >= 0) & (label < classes), float("nan")).to(WIDE)
    scores = tl.load(row_ptr + place, inside, float("nan")).to(WIDE)
    # A NaN counts as above every number, and equals nothing; so what is no label at all is never right.
    above = tl.sum((inside & ((scores > own) | (scores != scores))).to(tl.int32))
    tied = tl.sum((inside & (scores == own)).to(tl.int32))
    for index in tl.static_range(2):
        credit = (4 * index + 1 - above).to(tl.float64) / tl.maximum(tied, 1).to(tl.float64)
        credit = tl.minimum(tl.maximum(credit, 0.0), 1.0)
        tl.store(credits_ptr + index * count + n, tl.where(tied > 0, credit, 0.0))


def topk_credit(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(2, N) float64, the rows being `accuracy.topk_credit_each` of (N, classes) scores and (N,) int64 labels on the
    same device.
    """
    scores, count, classes = scores.detach(), *scores.shape
    scores = scores if scores.stride(1) == 1 else scores.contiguous()
    credits, block = torch.empty(2, count, dtype=torch.float64, device=scores.device), triton.next_power_of_2(classes)
    if count:
        with triton_on(scores):
            _topk_credit_kernel[count,](
                scores,
                labels.contiguous(),
                credits,
                count,
                classes,
                scores.stride(0),
                block,
                num_warps=min(max(block // 256, 1), 16),
            )
    return credits
