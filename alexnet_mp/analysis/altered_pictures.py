"""Pictures from which something was taken, to see who needs it: their colours, their brightness, their fine or coarse
structure, all hues but one.

A pixel's luminance is the mean of its three colours. Its chroma is what is left without the luminance, as with kernels
(`first_layer.chroma_and_energy`). So luminance and chroma are orthogonal, and each can be kept while the other is
changed. Everything is computed in float64 and rounded to grey levels at the end. Where a chroma would leave 0 to 255 at
its luminance, it is made smaller by a factor, the same for its three colours, that just fits it in: hue and luminance
stay.

All functions take stored pictures (N, size, size, 3) uint8 and return such."""

import math
from collections.abc import Callable

import numpy as np

CUTOFF = 8  # cycles per picture at which the low-pass filter lets half of an amplitude through
# As pure colours: of each the part off the grey axis is the hue's direction. They are 60 degrees apart.
HUES = {
    "red": (1, 0, 0),
    "yellow": (1, 1, 0),
    "green": (0, 1, 0),
    "cyan": (0, 1, 1),
    "blue": (0, 0, 1),
    "magenta": (1, 0, 1),
}


def intact(pictures: np.ndarray) -> np.ndarray:
    """As they are."""
    return pictures


def grey(pictures: np.ndarray) -> np.ndarray:
    """The luminance alone."""
    luminance, _ = _parts(pictures)
    return _picture(luminance, 0)


def colour_alone(pictures: np.ndarray) -> np.ndarray:
    """The chroma alone: every pixel has the mean luminance of its picture."""
    luminance, chroma = _parts(pictures)
    return _picture(np.broadcast_to(luminance.mean((1, 2), keepdims=True), luminance.shape), chroma)


def shuffled_colour(pictures: np.ndarray) -> np.ndarray:
    """The luminance, and the chromas of the picture's pixels dealt to its pixels at random: as many of each colour, in
    no place that means anything. The same deal for every picture of a size."""
    luminance, chroma = _parts(pictures)
    count = luminance[0].size
    shuffled_chroma = chroma.reshape(len(chroma), count, 3)[:, np.random.default_rng(count).permutation(count)]
    return _picture(luminance, shuffled_chroma.reshape(chroma.shape))


def low_frequencies(pictures: np.ndarray) -> np.ndarray:
    """What a Gaussian low-pass lets through: a grating of f cycles per picture keeps 2 ** -(f / `CUTOFF`) ** 2 of its
    amplitude. Beyond its edges the picture is mirrored. The mean colour stays."""
    return _grey_levels(_low_pass(pictures))


def high_frequencies(pictures: np.ndarray) -> np.ndarray:
    """What that filter doesn't let through, around the picture's mean luminance: a grating of f cycles keeps 1 - 2 **
    -(f / `CUTOFF`) ** 2 of its amplitude."""
    luminance, _ = _parts(pictures)
    return _grey_levels(pictures - _low_pass(pictures) + luminance.mean((1, 2), keepdims=True))


def one_hue(pictures: np.ndarray, hue: str) -> np.ndarray:
    """Every chroma turned to one hue of `HUES`, as large as it was, at its luminance.

    So the same pictures are compared in all hues; pictures chosen for their hue would differ in their classes, too. A
    chroma is made smaller, in all hues alike, where it would not fit in one of them: blue can be stronger than yellow
    in the dark, and yellow in the light."""
    luminance, chroma = _parts(pictures)
    direction = np.array(HUES[hue], np.float64)
    direction -= direction.mean()
    direction /= np.abs(direction).max()  # then its other two entries are half as large, of all hues
    size = np.sqrt(np.einsum("nyxc,nyxc->nyx", chroma, chroma)[..., None] / 1.5)
    return _grey_levels(luminance + np.minimum(size, np.minimum(luminance, 255 - luminance)) * direction)


ALTERATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "intact": intact,
    "grey": grey,
    "colour alone": colour_alone,
    "shuffled colour": shuffled_colour,
    "low frequencies": low_frequencies,
    "high frequencies": high_frequencies,
    **{f"all in {hue}": lambda pictures, hue=hue: one_hue(pictures, hue) for hue in HUES},
}


def _parts(pictures):
    """(luminance (N, S, S, 1), chroma (N, S, S, 3))"""
    pictures = pictures.astype(np.float64)
    luminance = sum(pictures[..., colour, None] for colour in range(3)) / 3  # `mean` over so short an axis is slow
    return luminance, pictures - luminance


def _fit(luminance, chroma):
    """(N, S, S, 1): the largest factor up to 1 of each chroma that stays within 0 to 255."""
    factors = np.where(chroma > 0, 255 - luminance, luminance) / np.maximum(np.abs(chroma), 1e-9)
    return np.minimum(1, np.minimum(np.minimum(factors[..., :1], factors[..., 1:2]), factors[..., 2:]))


def _picture(luminance, chroma):
    chroma = np.broadcast_to(chroma, (*luminance.shape[:3], 3))
    return _grey_levels(luminance + _fit(luminance, chroma) * chroma)


def _low_pass(pictures):
    from scipy import ndimage  # imported late: it takes half a second

    # A Gaussian of deviation s pixels has the transfer exp(-2 pi^2 s^2 f^2), f in cycles per pixel.
    deviation = pictures.shape[1] / CUTOFF * math.sqrt(math.log(2) / 2) / math.pi
    return ndimage.gaussian_filter(pictures.astype(np.float64), deviation, axes=(1, 2), mode="reflect")


def _grey_levels(pictures):
    return np.rint(pictures).clip(0, 255).astype(np.uint8)
