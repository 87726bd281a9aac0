"""Ten golden losses of `mini` on the embedded pictures: whatever changes one of them has changed the mathematics.

Recorded on 2026-11-23 with torch 2.13.0 on an AMD EPYC processor by `python tests/test_golden.py`. In float64 with the
reference kernels they must come out to 1e-9 on every machine; in float32 to 1e-3, since there the argmax of a near-tie may fall
differently on another processor.
"""
import dataclasses

import pytest
import torch
import torch.nn.functional as F

from alexnet_mp import TwoTowerAlexNet, mini
from alexnet_mp.data.dataset import open_dataset
from alexnet_mp.data.pipeline_torch import TorchPipeline
from alexnet_mp.data.pixel_statistics import Sums
from alexnet_mp.kernels import dispatch
from alexnet_mp.training.optimizer import PaperSGD
from alexnet_mp.training.schedule import make_schedule

GOLDEN = [
    2.700382512242768, 2.763832364868477, 2.884646888160459, 2.902374864298326, 2.767226203280812,
    3.118516574551913, 3.142798777495791, 2.963367192310809, 2.897752800527425, 2.846277384848604,
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


def test_float64_reference():
    assert ten_losses(torch.float64, "reference") == pytest.approx(GOLDEN, rel=1e-9)


@pytest.mark.parametrize("kernels", ["reference", "auto"])
def test_float32(kernels):
    """Fused or not, the same ten losses."""
    assert ten_losses(torch.float32, kernels) == pytest.approx(GOLDEN, rel=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kernels", ["reference", "triton", "cuda"])
def test_float32_on_a_gpu(kernels, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert ten_losses(torch.float32, kernels, "cuda:0") == pytest.approx(GOLDEN, rel=1e-3)


def test_float64_fused():
    if dispatch.compiled() is None:
        pytest.skip("there was no compiler to build the CPU kernels")
    assert ten_losses(torch.float64, "cpu") == pytest.approx(GOLDEN, rel=1e-9)


if __name__ == "__main__":
    print(*(f"{loss:.15f}," for loss in ten_losses(torch.float64, "reference")), sep="\n")
