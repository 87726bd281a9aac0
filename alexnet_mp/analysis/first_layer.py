"""What each first-layer kernel is tuned to: colour, orientation, spatial frequency, phase (paper, section 6.1), all in
float64.

Colour aside, a kernel is measured on one plane: the combination of its three colour channels with the most energy,
their first principal component about zero. For a grey kernel that is the luminance, for a red and green one the
difference of the two.

The plane's mean is left in. A kernel of one colour has its energy at frequency 0, and so it is measured: frequency 0,
selectivity 0. Without its mean there would be nothing left to measure but its noise."""

import math
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np

POINTS = 8  # of the zero-padded spectrum for each cycle per kernel
# The selectivity from which orientation and phase say something: of 11x11 kernels of white noise 1 % have it, of 5x5 a
# third.
TUNED = 0.25
NOTHING = 1e-9  # a share of a spectrum's energy, or of its peak, that is rounding
NOISE_QUANTILE, NOISE_KERNELS = 0.99, 10_000  # of the peaks of white noise, and how many kernels of it are drawn
# Of the wave vectors f and -f of a grating, which are the same, the one within 90 degrees of this direction (x to the
# right, y down) is taken. The border, bars at 22.5 degrees anticlockwise from horizontal, lies between the orientations
# of most kernels.
FORWARD = np.array([math.cos(math.pi / 8), math.sin(math.pi / 8)])


@dataclass(frozen=True)
class KernelStatistics:
    """Arrays of one value a kernel; taken apart and put together like arrays: statistics[:48], len(statistics)."""

    colourfulness: np.ndarray  # share of chroma in its energy, 0 (grey) to 1
    selectivity: np.ndarray  # for orientation, 0 (none) to 1 (one wave vector)
    # of its bars, degrees anticlockwise from horizontal, 0 to 180; 0 where the selectivity is 0
    orientation: np.ndarray
    frequency: np.ndarray  # cycles per pixel, 0 (blob, one colour) to 0.71
    frequency_per_kernel: np.ndarray  # cycles per kernel
    # degrees, 0 to 360: 0 a bright bar in the centre, 90 an edge whose bright side comes first; see `_peaks`
    phase: np.ndarray

    @property
    def tuned(self) -> np.ndarray:
        """Which kernels are selective enough, and have a frequency, for their orientation and phase to say
        something."""
        return (self.selectivity >= TUNED) & (self.frequency > 0)

    def __len__(self):
        return len(self.colourfulness)

    def __getitem__(self, index):
        return KernelStatistics(*(getattr(self, field.name)[index] for field in fields(self)))


def kernel_statistics(kernels: np.ndarray) -> KernelStatistics:
    """The `KernelStatistics` of first-layer kernels (maps, 3, k, k), whatever their scale.

    A kernel of zeros has 0 for everything, one of a single colour for everything but its colourfulness; a single pixel,
    whose spectrum is flat, counts as a blob. A blob's phase is 0. Raises ValueError for other shapes, NaN and infinity.
    """
    kernels = np.asarray(kernels, np.float64)
    if kernels.ndim != 4 or kernels.shape[1] != 3 or kernels.shape[2] != kernels.shape[3] or not kernels.shape[3]:
        raise ValueError(f"first-layer kernels are (maps, 3, k, k), not {kernels.shape}")
    if not np.isfinite(kernels).all():
        raise ValueError("not all weights of the kernels are finite numbers")
    maxima = np.abs(kernels).max((1, 2, 3), keepdims=True, initial=0)
    kernels = kernels / np.where(maxima > 0, maxima, 1)  # so that no square leaves the range of a float64
    chroma, energy = chroma_and_energy(kernels)
    planes = strongest_planes(kernels)
    power, frequencies = power_spectra(planes)
    selectivity, orientation = _orientations(power, frequencies)
    frequency, phase = _peaks(planes, power, frequencies)
    colourfulness = chroma / np.maximum(energy, 1e-300)
    return KernelStatistics(colourfulness, selectivity, orientation, frequency, frequency * kernels.shape[3], phase)


def chroma_and_energy(kernels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(chroma, energy) of kernels (maps, 3, k, k): sums of squares, float64 (maps,).

    Chroma: what is left of a kernel without the mean of its three colours.
    """
    kernels = np.asarray(kernels, np.float64)
    chroma = kernels - kernels.mean(1, keepdims=True)
    return (chroma**2).sum((1, 2, 3)), (kernels**2).sum((1, 2, 3))


def strongest_colours(kernels: np.ndarray) -> np.ndarray:
    """(maps, 3, k, k) -> (maps, 3): of each kernel the unit vector of three colours in which it has the most energy.

    The vector's largest component is positive, the first of equals: a grey kernel keeps its sign.
    """
    products = np.einsum("mcyx,mdyx->mcd", kernels, kernels)  # (maps, 3, 3)
    vectors = np.linalg.eigh(products).eigenvectors[:, :, -1]  # of the largest eigenvalue
    sizes = np.abs(vectors)
    indices = (sizes >= sizes.max(1, keepdims=True) * (1 - 1e-6)).argmax(1)
    return vectors * np.sign(np.take_along_axis(vectors, indices[:, None], 1))


def strongest_planes(kernels: np.ndarray) -> np.ndarray:
    """(maps, 3, k, k) -> (maps, k, k): each kernel along its strongest colour."""
    return np.einsum("mc,mcyx->myx", strongest_colours(kernels), kernels)


def hue_axes(kernels: np.ndarray) -> np.ndarray:
    """(maps, 3, k, k) -> (maps, 2): the hue of each kernel's strongest colour as an axis, (0, 0) for grey, at most 1
    long.

    The colour's part off the grey axis, in the plane of red against green (x) and yellow against blue (y), at twice its
    angle: a grating has its hue in both signs, so red on green and green on red are one axis."""
    red, green, blue = strongest_colours(kernels).T
    opponent = (red - green) / math.sqrt(2) + 1j * (red + green - 2 * blue) / math.sqrt(6)
    return np.stack([(opponent**2).real, (opponent**2).imag], 1)


def power_spectra(planes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(power, frequencies) of planes (maps, k, k): (maps, n, n), rows y; (n,) in cycles per pixel, in the order of
    `fftfreq`.

    Padded with zeros to n = 8k + 1, which is odd so that a grid of frequencies has no unpaired border and favours no
    orientation."""
    n = POINTS * planes.shape[-1] + 1
    return np.abs(np.fft.fft2(planes, (n, n))) ** 2, np.fft.fftfreq(n)


def learned(kernels: np.ndarray) -> np.ndarray:
    """Which first-layer kernels (maps, 3, k, k) are no longer noise: (maps,) bool.

    A kernel begins as white noise, whose energy is spread evenly over three colours and all frequencies but for chance.
    Noise: the share of its energy that its strongest plane has at one frequency is below that of the 99th of a hundred
    kernels of white noise of the same size. A kernel of zeros is noise."""
    kernels = np.asarray(kernels, np.float64)
    return _peak_shares(kernels) >= _noise_peak_share(kernels.shape[-1])


@lru_cache
def _noise_peak_share(k):
    noise = np.random.default_rng(0).standard_normal((NOISE_KERNELS, 3, k, k))
    return float(np.quantile(_peak_shares(noise), NOISE_QUANTILE))


def _peak_shares(kernels):
    maxima = np.abs(kernels).max((1, 2, 3), keepdims=True)
    kernels = kernels / np.where(maxima > 0, maxima, 1)  # so that no square leaves the range of a float64
    # not padded: k x k frequencies, independent in white noise
    power = np.abs(np.fft.fft2(strongest_planes(kernels))) ** 2
    return power.max((1, 2)) / np.maximum((kernels**2).sum((1, 2, 3)), 1e-300) / kernels.shape[-1] ** 2


def _orientations(power, frequencies):
    """(selectivity, orientation in degrees) of power spectra (maps, n, n).

    The mean of exp(2i angle) over all wave vectors, weighted by power: its length is one minus the circular variance of
    orientation (Ringach, Shapley & Hawken 2002, J. Neurosci. 22: 5639, there of a cell's responses), half its angle the
    mean orientation. The structure tensor (Bigun & Granlund 1987) is the same sum weighted by the frequency's square
    too, so noise counts most in it. A blob and a plaid have 0; frequency 0, which has no angle, adds to the power
    alone."""
    x, y = frequencies[None, :], frequencies[:, None]
    squares = x**2 + y**2
    turns = (x - 1j * y) ** 2 / np.where(squares > 0, squares, 1)  # exp(2i angle), with y upwards
    total = power.sum((1, 2))
    mean = (power * turns).sum((1, 2)) / np.maximum(total, 1e-300)
    selectivity = np.where(np.abs(mean) > NOTHING, np.abs(mean), 0)
    bars = np.rad2deg(np.angle(mean)) / 2 + 90  # they are at right angles to their wave vector
    return selectivity, np.where(selectivity > 0, bars % 180 % 180, 0)  # a tiny negative angle % 180 is 180


def _peaks(planes, power, frequencies):
    """(frequency in cycles per pixel, phase in degrees) at the highest point of each power spectrum.

    The plane is compared with cos(2 pi f (x - centre) + phase), f the wave vector of the peak; which of f and -f,
    `FORWARD` says. So an even kernel has phase 0 or 180, an odd one 90 (bright on the left, or above) or 270. The peak
    between the points of the spectrum is that of parabolas through the logarithms of the powers, exact for a Gaussian.
    Of equal points frequency 0 wins."""
    maps, k = len(planes), planes.shape[-1]
    n, kernel_numbers = len(frequencies), np.arange(maps)
    ahead = FORWARD[0] * frequencies[None, :] + FORWARD[1] * frequencies[:, None] > 0
    candidates = np.where(ahead, power, -1)
    candidates[:, 0, 0] = power[:, 0, 0] * (1 + NOTHING)
    row, column = np.unravel_index(candidates.reshape(maps, n * n).argmax(1), (n, n))
    logs = np.log(np.maximum(power, 1e-300))
    offsets = [
        _parabola(
            *(
                logs[kernel_numbers, (row + (axis == 0) * step) % n, (column + (axis == 1) * step) % n]
                for step in (-1, 0, 1)
            )
        )
        for axis in (0, 1)
    ]
    blob = (row == 0) & (column == 0)
    y, x = (np.where(blob, 0, frequencies[index] + offset / n) for index, offset in zip((row, column), offsets))
    places = 2 * math.pi * (np.arange(k) - (k - 1) / 2)
    # (maps, k, k)
    waves = np.exp(-1j * y[:, None] * places)[:, :, None] * np.exp(-1j * x[:, None] * places)[:, None, :]
    phase = np.rad2deg(np.angle((planes * waves).sum((1, 2)))) % 360 % 360
    return np.hypot(x, y), np.where(blob, 0, phase)


def _parabola(before, at, after):
    """Where the parabola through three values at -1, 0 and 1, the middle one the largest, is highest: -0.5 to 0.5."""
    curvature = before - 2 * at + after
    return np.where(curvature < 0, (before - after) / np.where(curvature < 0, 2 * curvature, 1), 0)
