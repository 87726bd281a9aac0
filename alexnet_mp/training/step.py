"""One training step (paper 5): forward, loss on the first tower, backward, update. Nothing here is read by the host."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F

from ..data.step_input import Uncropped, all_images
from ..evaluation.accuracy import topk_credit
from ..network.exchange import Entry
from ..network.network import TwoTowerAlexNet
from .update_rule import PaperSGD


class TrainingStep:
    """A step of a `TwoTowerAlexNet` by a `PaperSGD`.

    step(images, labels, check_loss, count) -> [loss, right answers, sums of the weights a device], still on the
    devices. images: one (N, 3, crop, crop) tensor a tower, on its device, or what makes one (`step_input.Uncropped`);
    labels: (N,) int64 on the first's. check_loss(loss) is called before any weight is changed. count: of the whole
    minibatch, which is all here.
    """

    def __init__(self, network: TwoTowerAlexNet, optimizer: PaperSGD):
        self.network, self.optimizer = network, optimizer

    def __call__(self, images, labels, check_loss, count=None):
        self.network.keep_copies(images[0].dtype)
        loss, right = self.forward_and_backward(images, labels, check_loss)
        return [loss, right, *self.update()]

    def ledger(self, count: int) -> list[Entry]:
        """What crossed between the towers in the last step."""
        return self.network.ledger()

    def forward_and_backward(
        self,
        images: Sequence[torch.Tensor | Uncropped],
        labels: torch.Tensor,
        check_loss: Callable[[torch.Tensor], None],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss, right answers), as `loss_and_right`; the parameters have their gradients."""
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.network(*all_images(images))
        judge = partial(loss_and_right, kernels=self.network.kernels)
        loss, right = self.network.exchange.share_loss(judge, logits, labels)
        check_loss(loss)
        if loss.requires_grad:  # not where every layer is frozen
            loss.backward()
        return loss.detach(), right

    def update(self) -> list[torch.Tensor]:
        """Update all parameters; the sums of the weights, one tensor a device."""
        return [self.update_on(device) for device in self.optimizer.devices()]

    def update_on(self, device: torch.device) -> torch.Tensor:
        """Update the parameters on one device; the sums of their weights."""
        return self.optimizer.step(device)[0]


def loss_and_right(
    logits: torch.Tensor, labels: torch.Tensor, kernels: str, count: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(cross-entropy, how many answers are right: float64, without a gradient) of (N, classes) logits (paper 3.5).

    labels: (N,) int64; count: what the sum of the cross-entropies is divided by, if it isn't N."""
    with torch.no_grad():
        right = topk_credit(logits, labels, kernels)[0]
    if count is None:
        return F.cross_entropy(logits, labels), right
    return F.cross_entropy(logits, labels, reduction="sum") / count, right
