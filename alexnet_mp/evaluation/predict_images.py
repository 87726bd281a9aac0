"""The most probable classes of pictures that are in no data set."""

from collections.abc import Sequence
from contextlib import closing
from typing import Literal

import numpy as np
import torch

from ..data.image_files import pipeline_of
from ..data.pixel_statistics import Statistics
from ..network.network import TwoTowerAlexNet
from ..system.errors import UserError
from .protocol import both_protocols, centre_view, log_probabilities


def predict(
    network: TwoTowerAlexNet,
    statistics: Statistics,
    pictures: Sequence[np.ndarray],
    views: Literal["one", "ten"] = "one",
    top: int = 5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(probabilities (N, top) float64, labels (N, top) int64), most probable first, of N stored pictures under one view
    or ten.

    pictures: (stored_size, stored_size, 3) uint8 each; statistics: what the network was trained with. top is at most
    the number of classes. Raises UserError where the network answers with NaN."""
    protocol = list(both_protocols(network.recipe).values())[{"one": 0, "ten": -1}[views]]
    logs = torch.cat(
        [
            means["answer"]
            for means, _ in log_probabilities(
                network,
                pipeline_of(pictures, network.recipe, network.exchange.devices, statistics),
                "given",
                {"answer": protocol},
                network.recipe.batch_size,
            )
        ]
    ).cpu()
    if logs.isnan().any():
        raise UserError("the network answers with NaN: it diverged, and knows nothing of any picture")
    sorted_logs, labels = logs.sort(dim=1, descending=True, stable=True)
    return sorted_logs[:, :top].exp(), labels[:, :top]


def centre_images(
    network: TwoTowerAlexNet, statistics: Statistics, pictures: Sequence[np.ndarray]
) -> list[torch.Tensor]:
    """What a network sees of stored pictures under the centre view: one (N, 3, crop, crop) tensor a tower, on its
    device."""
    pipeline = pipeline_of(pictures, network.recipe, network.exchange.devices, statistics)
    with closing(pipeline.views("given", len(pictures), centre_view(network.recipe))) as batches:
        ((views, _),) = batches
        (images,) = views
    return images
