"""Ten losses of the small network that no change may move."""

import dataclasses

import torch.nn.functional as F

from alexnet_mp import TwoTowerAlexNet, mini
from alexnet_mp.data.dataset import open_dataset
from alexnet_mp.data.pipeline_torch import TorchPipeline
from alexnet_mp.data.pixel_statistics import Sums
from alexnet_mp.training.schedule import make_schedule
from alexnet_mp.training.update_rule import PaperSGD

GOLDEN = [
    2.700382512242768,
    2.763832364868477,
    2.884646888160459,
    2.902374864298326,
    2.767226203280812,
    3.118516574551913,
    3.142798777495791,
    2.963367192310809,
    2.897752800527425,
    2.846277384848604,
]


def ten_losses(dtype, kernels, device="cpu", images=None):
    """The first ten training losses at batch 16: pictures, crops, colours, masks and weights all follow from seed 7.

    dtype: of the weights; images: of the images, the same if nothing is said.
    """
    recipe = dataclasses.replace(mini(), batch_size=16, seed=7)
    pipeline = TorchPipeline(open_dataset("builtin", recipe.stored_size), recipe, (device, device), workers=0)
    sums = Sums(recipe.stored_size)
    for index in range(64):
        sums.add(pipeline.dataset.splits["train"].read(index))
    pipeline.use(sums.statistics())
    network = TwoTowerAlexNet(recipe, (device, device), len(pipeline.dataset.classes), kernels).to(dtype)
    optimizer, schedule, losses = PaperSGD(network), make_schedule(recipe), []
    optimizer.set_rates(schedule.rates(1))
    for batch in pipeline.train(0, 1, schedule.colour_noise):
        loss = F.cross_entropy(network(*(each.to(images or dtype) for each in batch.images)), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if len(losses) == 10:
            return losses
