"""First-layer kernels that the tests make: Gabors, blobs, two towers of them; and measures set by hand."""

import numpy as np

from alexnet_mp.analysis.first_layer import FORWARD, KernelStatistics

GREY, RED_GREEN, BLUE_YELLOW = (1, 1, 1), (1, -1, 0), (-1, -1, 2)


def gabor(k, orientation, frequency, phase, sigma, colour=GREY):
    """(1, 3, k, k): a grating with bars at `orientation` degrees anticlockwise from horizontal under a round
    Gaussian."""
    x = np.arange(k) - (k - 1) / 2
    # across the bars; x right, y down
    wave = np.array([np.sin(np.deg2rad(orientation)), np.cos(np.deg2rad(orientation))])
    wave *= frequency * np.sign(wave @ FORWARD)
    plane = np.cos(2 * np.pi * (wave[0] * x + wave[1] * x[:, None]) + np.deg2rad(phase))
    return np.array(colour, float)[None, :, None, None] * plane * blob(k, sigma)


def blob(k, sigma, colour=GREY):
    squares = (np.arange(k) - (k - 1) / 2) ** 2
    return np.array(colour, float)[None, :, None, None] * np.exp(-(squares + squares[:, None]) / (2 * sigma**2))


def made(seed, *colours, count=12, orientations=(0, 180)):
    """`count` noisy Gabors of each colour, a tower each: (towers * count, 3, 7, 7)."""
    random = np.random.default_rng(seed)
    kernels = np.concatenate(
        [
            gabor(7, random.uniform(*orientations), 0.25, random.uniform(0, 360), 2, colour)
            for colour in colours
            for _ in range(count)
        ]
    )
    return kernels + 0.02 * random.normal(size=kernels.shape)


def measured(**values):
    """`KernelStatistics` of equal kernels, all tuned, but for the given measures."""
    n = len(next(iter(values.values())))
    same = dict(
        colourfulness=0.5, selectivity=0.9, orientation=10.0, frequency=0.2, frequency_per_kernel=1.0, phase=20.0
    )
    return KernelStatistics(**{name: np.array(values.get(name, [value] * n), float) for name, value in same.items()})
