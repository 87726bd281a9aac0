"""What the self-check and its tests share."""

import pytest
from alexnet_mp.kernels import dispatch

from alexnet_mp.data import pipeline_raw

needs_kernels = pytest.mark.skipif(dispatch.compiled() is None, reason="there was no compiler to build the CPU kernels")


def one_wrong_pixel(monkeypatch, in_test=False):
    """The last value of a batch's, or view's, images is a tenth of a grey level off."""
    real = pipeline_raw.RawPipeline._augmented

    def augmented(self, pictures, device, draw, shift, scale):
        images = real(self, pictures, device, draw, shift, scale)
        if in_test == (not shift.any()):
            images[-1, -1, -1, -1] += 0.1
        return images

    monkeypatch.setattr(pipeline_raw.RawPipeline, "_augmented", augmented)
