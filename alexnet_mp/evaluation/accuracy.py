"""What a network says of images, and how much of it is right: top-1 and top-5 error, ties, loss; which images, as a small file."""
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..kernels.dispatch import resolve
from ..runs.directory import RIGHT
from ..system import durable_files


@dataclass(frozen=True)
class Errors:
    """Of one protocol over one split: errors in % of its images, and the loss, -log of the mean probability, in nats."""

    top1_error: float
    top5_error: float
    loss: float
    images: int


def credits(scores, labels, kernels="reference"):
    """How many of N images count as right under top-1 and top-5: float64 tensor (2,), the sum of `credits_each`.

    kernels: see `kernels.dispatch.resolve`; on a GPU Triton computes the same in one launch and a sum.
    """
    if resolve(kernels, scores.device) in ("cuda", "triton"):
        from ..kernels.topk_credit_triton import topk_credit
        return topk_credit(scores, labels).sum(1)
    return torch.stack([each.sum() for each in credits_each(scores, labels)])


def credits_each(scores, labels):
    """Of each of N images, whether it counts as right under top-1 and under top-5: two float64 tensors (N,), values 0 to 1.

    scores: (N, classes); labels: (N,). A label that ties with others for the last places gets the fraction that random tie-breaking
    would give on average (2012 source, `src/layer_kernels.cu:114-117`); a NaN is never right.
    """
    own = scores.gather(1, labels[:, None])
    above, tied = (scores > own).sum(1).double(), (scores == own).sum(1).double()
    # NaN equals nothing: tied is 0 where the own score is NaN; NaNs beside a finite score count as above it.
    above = above + scores.isnan().sum(1)
    return tuple(((k - above) / tied.clamp(min=1)).clamp(0, 1).mul(tied > 0) for k in (1, 5))


@dataclass(frozen=True)
class Answers:
    """What a network, or an average of several, says of N images under one protocol."""

    labels: torch.Tensor  # (N,) int64; all `prepared_format.UNLABELLED` where nobody knows them
    top: torch.Tensor  # (N, 5) int64, the most probable classes, most probable first; of equals the one with the lowest number
    top1: torch.Tensor | None  # (N,) float64, `credits_each`; None without labels
    top5: torch.Tensor | None
    loss: torch.Tensor | None  # (N,) float64, nats

    def errors(self):
        """The `Errors` over all images; None without labels."""
        if self.loss is None:
            return None
        top1, top5, loss = (each.mean().item() for each in (self.top1, self.top5, self.loss))
        return Errors(100 - 100 * top1, 100 - 100 * top5, loss, len(self.loss))


def answers(logs, labels):
    """The `Answers` that (N, classes) logarithms of probabilities are, on the CPU."""
    logs, labels = logs.double(), labels.to(logs.device)
    top = logs.sort(dim=1, descending=True, stable=True).indices[:, :5]
    judged = (None,) * 3
    if (labels >= 0).all():
        judged = (*credits_each(logs, labels), -logs.gather(1, labels[:, None])[:, 0])
    return Answers(*(None if each is None else each.cpu() for each in (labels, top, *judged)))


def joined(parts):
    """The `Answers` to all images, from those to a part of them each."""
    return Answers(*(None if each[0] is None else torch.cat(each) for each in zip(*(vars(part).values() for part in parts))))


class Right:
    """Which images of a split a network gets right: {protocol: (2, N) bool}, under top-1 and under top-5; a tie is not right."""

    def __init__(self):
        self.parts = {}

    def take(self, protocol, logs, labels):
        """Add the next images of a protocol: (n, classes) logarithms of probabilities, labels (n,)."""
        self.parts.setdefault(protocol, []).append(torch.stack(credits_each(logs, labels)).eq(1).cpu().numpy())

    def write(self, directory):
        """Write `RIGHT` into a run's directory, whole or not at all: one array a protocol, bits packed along the images, and `images`."""
        found = {protocol: np.concatenate(parts, 1) for protocol, parts in self.parts.items()}
        images = next(iter(found.values())).shape[1]
        content = io.BytesIO()
        np.savez(content, images=images, **{name: np.packbits(right, axis=1) for name, right in found.items()})
        durable_files.replace(Path(directory) / RIGHT, content.getvalue())


def read_right(path):
    """{protocol: (2, N) bool} of a file that `Right.write` wrote, None where there is none, or something else."""
    try:
        with np.load(path, allow_pickle=False) as found:
            images = int(found["images"])
            return {name: np.unpackbits(found[name], axis=1, count=images).astype(bool) for name in found.files
                    if name.endswith((" view", " views"))}
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None
