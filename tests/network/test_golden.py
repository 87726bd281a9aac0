"""Ten golden losses of `mini` on the embedded pictures: whatever changes one of them has changed the mathematics.

Recorded on 2026-11-23 with torch 2.13.0 on an AMD EPYC processor by `python tests/network/test_golden.py`. In float64
with the reference kernels they must come out to 1e-9 on every machine; in float32 to 1e-3, since there the argmax of a
near-tie may fall differently on another processor."""

import pytest
import torch
from alexnet_mp.kernels import dispatch
from golden import GOLDEN, ten_losses

pytestmark = pytest.mark.run


def test_float64_reference():
    assert ten_losses(torch.float64, "reference") == pytest.approx(GOLDEN, rel=1e-9)


@pytest.mark.parametrize("kernels", ["reference", "auto"])
def test_float32(kernels):
    """Fused or not, the same ten losses."""
    assert ten_losses(torch.float32, kernels) == pytest.approx(GOLDEN, rel=1e-3)


@pytest.mark.gpu(reason="needs a GPU")
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
