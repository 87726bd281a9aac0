"""What a network says of images, and how much of it is right: top-1 and top-5 error, ties, loss; which images, as a
small file."""

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..kernels.dispatch import resolve
from ..runs.directory import RIGHT
from ..system import durable_files

FEW = 1000  # images: the interval of an error is up to 6 points wide from here on


@dataclass(frozen=True)
class Errors:
    """Of one protocol over one split: errors in % of its images, and the loss, -log of the mean probability, in
    nats."""

    top1_error: float
    top5_error: float
    loss: float
    images: int


def top5_tells(classes: int) -> bool:
    """Whether a top-5 error says anything: of five classes or fewer every answer is among the first five, and none is
    printed."""
    return classes > 5


def percent(error: float, images: int, width: int = 0) -> str:
    """An error in % of images: "61.11 %"; of fewer than `FEW` "61.11 % (11 of 18: 39 to 80 %)", with the interval.

    The interval is Wilson's, of 95 %. width: of the number before the sign.
    """
    count = count_of_few(error, images)
    return f"{error:{width}.2f} %" + (f" ({count})" if count else "")


def count_of_few(error: float, images: int) -> str:
    """What stands beside an error in % of fewer than `FEW` images: "11 of 18: 39 to 80 %"; nothing of more."""
    if images >= FEW:
        return ""
    from scipy import stats  # imported late: it takes half a second

    wrong = error / 100 * images  # a tie counts in part
    interval = stats.binomtest(round(wrong), images).proportion_ci(method="wilson")
    return f"{round(wrong, 2):g} of {images}: {100 * interval.low:.0f} to {100 * interval.high:.0f} %"


def topk_credit(scores: torch.Tensor, labels: torch.Tensor, kernels: str = "reference") -> torch.Tensor:
    """How many of N images count as right under top-1 and top-5: float64 tensor (2,), the sum of `topk_credit_each`.

    kernels: see `kernels.dispatch.resolve`; on a GPU Triton computes the same in one launch and a sum.
    """
    if resolve(kernels, scores.device, "topk_credit") in ("cuda", "triton"):
        from ..kernels import topk_credit_triton

        return topk_credit_triton.topk_credit(scores, labels).sum(1)
    return torch.stack([each.sum() for each in topk_credit_each(scores, labels)])


def topk_credit_each(scores: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each of N images, whether it counts as right under top-1 and under top-5: two float64 tensors (N,), values 0
    to 1.

    scores: (N, classes); labels: (N,). A label that ties with others for the last places gets the fraction that random
    tie-breaking would give on average (2012 source, `src/layer_kernels.cu:114-117`); a NaN is never right."""
    score = scores.gather(1, labels[:, None])
    above, ties = (scores > score).sum(1).double(), (scores == score).sum(1).double()
    # NaN equals nothing: ties are 0 where the label's score is NaN; NaNs beside a finite score count as above it.
    above = above + scores.isnan().sum(1)
    return tuple(((k - above) / ties.clamp(min=1)).clamp(0, 1).mul(ties > 0) for k in (1, 5))


@dataclass(frozen=True)
class Answers:
    """What a network, or an average of several, says of N images under one protocol; on the CPU."""

    labels: torch.Tensor  # (N,) int64; all `prepared_format.UNLABELLED` where nobody knows them
    # (N, 5) int64, the most probable classes, most probable first; of equals the one with the lowest number
    top: torch.Tensor
    top1: torch.Tensor | None  # (N,) float64, `topk_credit_each`; None without labels
    top5: torch.Tensor | None
    loss: torch.Tensor | None  # (N,) float64, nats
    sums: torch.Tensor | None  # (3,) float64, of top1, top5 and loss, batch after batch

    def errors(self) -> Errors | None:
        """The `Errors` over all images; None without labels."""
        if self.sums is None:
            return None
        top1, top5, loss = (self.sums / len(self.labels)).tolist()
        return Errors(100 - 100 * top1, 100 - 100 * top5, loss, len(self.labels))


def answers(logs: torch.Tensor, labels: torch.Tensor) -> Answers:
    """The `Answers` that (N, classes) logarithms of probabilities are."""
    return joined([judged(logs, labels)])


def judged(logs: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A batch's `Answers.labels` to `loss`, for `joined`, all on the device of the logarithms: no GPU is waited for."""
    logs, labels = logs.double(), labels.to(logs.device)
    # A view would keep all the rest, and send it between processes.
    top = logs.sort(dim=1, descending=True, stable=True).indices[:, :5].clone()
    targets = labels.clamp(min=0)
    return labels, top, *topk_credit_each(logs, targets), -logs.gather(1, targets[:, None])[:, 0]


def joined(batches: Sequence[tuple[torch.Tensor, ...]]) -> Answers:
    """The `Answers` to all images, from what `judged` gives of each batch."""
    sums = sum(torch.stack([each.sum() for each in scores]) for _, _, *scores in batches)
    labels, top, *scores = (torch.cat(each).cpu() for each in zip(*batches))
    return Answers(labels, top, *((None,) * 4 if (labels < 0).any() else (*scores, sums.cpu())))


def write_right(directory: str | Path, by_protocol: Mapping[str, Answers]) -> None:
    """Write `RIGHT` into a run's directory, whole or not at all: which images the network gets right; a tie is not
    right.

    by_protocol: {protocol: `Answers`}. The file has one array a protocol, bits packed along the images, under top-1 and
    under top-5; and `images`."""
    right = {name: torch.stack((answer.top1, answer.top5)).eq(1).numpy() for name, answer in by_protocol.items()}
    content = io.BytesIO()
    np.savez(
        content,
        images=len(next(iter(by_protocol.values())).labels),
        **{name: np.packbits(mask, axis=1) for name, mask in right.items()},
    )
    durable_files.replace(Path(directory) / RIGHT, content.getvalue())


def read_right(path: str | Path) -> dict[str, np.ndarray] | None:
    """{protocol: (2, N) bool} of a file that `write_right` wrote, None where there is none, or something else."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            images = int(archive["images"])
            arrays = {name: archive[name] for name in archive.files if name.endswith((" view", " views"))}
            if any(bits.shape != (2, -(-images // 8)) for bits in arrays.values()):
                return None
            return {name: np.unpackbits(bits, axis=1, count=images).astype(bool) for name, bits in arrays.items()}
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None
