"""Dropout's approximation (4.2): halved outputs against the geometric mean of the networks that its masks sample."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from ..network.network import TwoTowerAlexNet

MASKS = 64  # sampled networks
PICTURES = 512  # at most, spread evenly over a split


@torch.inference_mode()
def compare(
    network: TwoTowerAlexNet,
    images: Sequence[torch.Tensor],
    labels: torch.Tensor,
    masks: int = MASKS,
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, float]:
    """One network against `masks` networks that dropout samples of it, on the same pictures.

    images: one (N, 3, crop, crop) tensor a tower; labels: (N,) int64; masks: at least 2. Of each picture another unit
    is dropped by each mask. The geometric mean of the sampled networks' probabilities, made to add up to 1, is the
    softmax of their mean logits. Errors are top-1 errors in %, divergences in nats.

    "halved"      the error of the network in test mode, every output multiplied by 1 - dropout
    "geometric"   the error of the geometric mean; "arithmetic": of the mean probabilities
    "one_mask"    the mean error of a sampled network
    "agree"       % of the pictures where the halved network and the geometric mean say the same class
    "divergence"  mean Kullback-Leibler divergence of the halved network's probabilities from the geometric mean's
    "noise"       the same of the geometric mean over half of the masks from that over the other half: what the sampling
                  itself leaves
    "one_mask_divergence"  the same of a sampled network from the geometric mean, mean over the masks
    """
    was_training, step = network.training, network.step
    halves, log_sum, error_sum = [0, 0], None, 0.0  # sums over the even and the odd masks
    try:
        network.eval()
        approximation = network(*images).double().log_softmax(1).cpu()
        labels = labels.cpu()
        network.train()
        for mask in range(masks):
            # A training pass counts on, and so has masks of its own.
            log = network(*images).double().log_softmax(1).cpu()
            halves[mask % 2] = halves[mask % 2] + log
            log_sum = log if log_sum is None else torch.logaddexp(log_sum, log)
            error_sum += _error(log, labels)
            advance(1)
    finally:
        network.train(was_training)
        network.step = step
    geometric_mean = (halves[0] + halves[1]).div(masks).log_softmax(1)
    even_mean, odd_mean = halves[0].div(masks - masks // 2).log_softmax(1), halves[1].div(masks // 2).log_softmax(1)
    # The divergence is linear in the logarithms of what diverges, so the mean over the masks is that of their mean.
    one_mask = F.kl_div((halves[0] + halves[1]) / masks, geometric_mean, reduction="batchmean", log_target=True).item()
    return {
        "masks": masks,
        "images": len(labels),
        "halved": _error(approximation, labels),
        "geometric": _error(geometric_mean, labels),
        "arithmetic": _error(log_sum, labels),
        "one_mask": error_sum / masks,
        "agree": 100 * (approximation.argmax(1) == geometric_mean.argmax(1)).double().mean().item(),
        "divergence": _divergence(geometric_mean, approximation),
        "noise": _divergence(even_mean, odd_mean),
        "one_mask_divergence": one_mask,
    }


def _error(logs, labels):
    return 100 * (logs.argmax(1) != labels).double().mean().item()


def _divergence(reference, estimate):
    """Mean Kullback-Leibler divergence of `estimate` from `reference`, (N, classes) logarithms each."""
    return F.kl_div(estimate, reference, reduction="batchmean", log_target=True).item()
