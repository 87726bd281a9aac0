"""What a kernel is tuned to, on Gabors, blobs and gratings whose answer is known."""

import numpy as np
import pytest
from inner_cases import every
from made_kernels import BLUE_YELLOW, GREY, RED_GREEN, blob, gabor

from alexnet_mp.analysis.first_layer import (
    TUNED,
    chroma_and_energy,
    hue_axes,
    kernel_statistics,
    learned,
    strongest_planes,
)

# k: (sigma of the envelope in pixels, cycles per pixel)
SIZES = {5: (1.2, 0.3), 11: (2.5, 0.2), 8: (2, 0.22), 31: (6, 0.1)}


def apart(a, b, period):
    return np.abs((a - b + period / 2) % period - period / 2)


@pytest.mark.run
@every("colour, share", [(GREY, 0), (RED_GREEN, 1), (BLUE_YELLOW, 1), ((1, 0, 0), 2 / 3)])
@every("k", SIZES)
def test_gabors(k, colour, share):
    sigma, frequency = SIZES[k]
    pairs = [(orientation, phase) for orientation in range(0, 180, 15) for phase in range(0, 360, 45)]
    orientations, phases = np.array(pairs, float).T
    statistics = kernel_statistics(
        np.concatenate(
            [gabor(k, *of_one, sigma, colour) for of_one in zip(orientations, [frequency] * len(pairs), phases)]
        )
    )
    assert np.allclose(statistics.colourfulness, share, atol=1e-12)
    assert apart(statistics.orientation, orientations, 180).max() < 1.5
    assert np.abs(statistics.frequency / frequency - 1).max() < 0.05
    assert np.allclose(statistics.frequency_per_kernel, k * statistics.frequency)
    assert apart(statistics.phase, phases, 360).max() < 2
    assert statistics.selectivity.min() > 0.65 and statistics.tuned.all()
    assert (
        (statistics.orientation >= 0)
        & (statistics.orientation < 180)
        & (statistics.phase >= 0)
        & (statistics.phase < 360)
    ).all()


@every("frequency", (0.15, 0.2, 0.3, 0.4))
def test_frequencies(frequency):
    statistics = kernel_statistics(
        np.concatenate([gabor(11, orientation, frequency, 90, 2.5) for orientation in range(0, 180, 20)])
    )
    assert np.abs(statistics.frequency / frequency - 1).max() < 0.02


def test_conventions_by_hand():
    """Level bars are at 0 degrees, rising ones at 45; an edge whose left or upper side is bright has phase 90, the
    other 270."""
    x = np.arange(11) - 5.0
    edge = -np.sin(2 * np.pi * x / 11)
    left_edge, rising_bars = np.tile(edge, (11, 1)), np.cos(2 * np.pi * (x + x[:, None]) / 6)
    statistics = kernel_statistics(
        np.stack([left_edge, -left_edge, left_edge.T, -left_edge.T, rising_bars])[:, None] * np.ones((1, 3, 1, 1))
    )
    assert apart(statistics.orientation, np.array([90, 90, 0, 0, 45]), 180).max() < 1e-6
    assert apart(statistics.phase, np.array([90, 270, 90, 270, 0]), 360).max() < 1e-6


def test_blobs_have_no_orientation_and_frequency_0():
    kernels = np.concatenate(
        [
            blob(k, k / spread, colour) * sign
            for k in (11,)
            for spread in (3, 5, 8)
            for colour in (GREY, RED_GREEN)
            for sign in (1, -1)
        ]
    )
    statistics = kernel_statistics(kernels)
    assert statistics.selectivity.max() < 1e-6 and not statistics.tuned.any()
    assert not statistics.frequency.any() and not statistics.phase.any() and not statistics.orientation.any()


def test_a_colour_on_which_noise_lies_is_a_blob():
    """Without its mean, there is only the noise, at whatever frequency."""
    kernels = np.ones((50, 3, 11, 11)) * np.array([0.2, 0.9, 0.3])[:, None, None]
    statistics = kernel_statistics(kernels + 0.2 * np.random.default_rng(0).normal(size=kernels.shape))
    assert not statistics.frequency.any() and statistics.selectivity.max() < 0.1


def test_a_plaid_has_no_orientation():
    statistics = kernel_statistics(gabor(11, 0, 0.2, 0, 2.5) + gabor(11, 90, 0.2, 0, 2.5))
    assert statistics.selectivity[0] < 1e-6 and statistics.orientation[0] == 0


@every("k", (1, 2, 5, 11))
@pytest.mark.filterwarnings("error")
def test_kernels_without_a_measure(k):
    """Zeros, one colour, a single pixel: the documented answer, no NaN, no warning."""
    single_pixel, single_colour = np.zeros((2, 3, k, k)), np.ones((2, 3, k, k))
    single_pixel[0, :, 0, 0], single_pixel[1, 2, k // 2, k // 2] = 1, -0.5
    single_colour[1, :2] = 0
    statistics = kernel_statistics(np.concatenate([np.zeros((1, 3, k, k)), single_colour, single_pixel]))
    assert np.allclose(statistics.colourfulness, [0, 0, 2 / 3, 0, 2 / 3], atol=1e-12)
    for measure in (
        statistics.selectivity,
        statistics.orientation,
        statistics.frequency,
        statistics.frequency_per_kernel,
        statistics.phase,
    ):
        assert not measure.any()


@pytest.mark.filterwarnings("error")
def test_the_scale_says_nothing():
    """From the least number of a float32 to the largest; none of the squares leaves the range."""
    kernels = np.random.default_rng(0).normal(size=(4, 3, 5, 5))
    expected = kernel_statistics(kernels)
    for scale in (1e-300, 1e-40, 1e38, 1e300):
        statistics = kernel_statistics(kernels * scale)
        for name, values in vars(expected).items():
            assert np.allclose(getattr(statistics, name), values, rtol=1e-9), name


def test_the_strongest_plane_keeps_the_sign_of_the_largest_component():
    plane = np.random.default_rng(0).normal(size=(7, 7))
    for colour in (GREY, RED_GREEN, BLUE_YELLOW, (0.1, 0.2, -3)):
        colour = np.array(colour, float)
        component = colour[np.abs(colour).argmax()]
        strongest_plane = strongest_planes((colour[:, None, None] * plane)[None])[0]
        assert np.allclose(strongest_plane, plane * np.linalg.norm(colour) * np.sign(component))
    weak_plane = np.random.default_rng(1).normal(size=(7, 7))  # of two gratings in two colours the stronger one is seen
    kernel = 3 * plane * np.array([1, 1, 1])[:, None, None] + weak_plane * np.array([1, -1, 0])[:, None, None]
    assert np.corrcoef(strongest_planes(kernel[None])[0].ravel(), plane.ravel())[0, 1] > 0.98


@pytest.mark.run
def test_white_noise_is_seldom_tuned():
    """What `TUNED` says of itself."""
    kernels = np.random.default_rng(0).normal(size=(1500, 3, 11, 11))
    assert 0.003 < (kernel_statistics(kernels).selectivity >= TUNED).mean() < 0.02
    assert 0.2 < (kernel_statistics(kernels[:, :, :5, :5]).selectivity >= TUNED).mean() < 0.4


def test_chroma_and_energy_by_hand():
    kernels = np.zeros((3, 3, 2, 2))
    kernels[0] = 2  # grey
    kernels[1, 0], kernels[1, 1] = 1, -1  # chroma alone
    kernels[2, 0] = 3  # mean 1, so (2, -1, -1) is left
    chroma, energy = chroma_and_energy(kernels)
    assert chroma == pytest.approx([0, 8, 24]) and energy == pytest.approx([48, 8, 36])


def test_statistics_are_cut_like_arrays():
    statistics = kernel_statistics(np.random.default_rng(0).normal(size=(6, 3, 5, 5)))
    assert len(statistics) == 6 and len(statistics[2:4]) == 2
    assert (statistics[2:4].phase == statistics.phase[2:4]).all() and (
        statistics[statistics.tuned].selectivity >= TUNED
    ).all()


@every("shape", [(3, 5, 5), (2, 1, 5, 5), (2, 3, 5, 4), (2, 3, 0, 0)])
def test_what_are_no_kernels(shape):
    with pytest.raises(ValueError, match="first-layer kernels are"):
        kernel_statistics(np.ones(shape))


def test_kernels_that_are_not_finite():
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match="finite"):
            kernel_statistics(np.full((1, 3, 2, 2), value))


@pytest.mark.slow
@pytest.mark.run
def test_learned_kernels_are_told_from_the_noise_that_they_began_as():
    random = np.random.default_rng(9)
    for k, (sigma, frequency) in SIZES.items():
        noise = random.normal(0, 0.01, size=(2000, 3, k, k))
        assert 0.002 <= learned(noise).mean() <= 0.025  # 1 % by its rule
        kernels = np.concatenate([gabor(k, 30, frequency, 0, sigma, RED_GREEN), blob(k, sigma), np.ones((1, 3, k, k))])
        assert learned(kernels).all() and learned(1e-9 * kernels).all()
        rms = np.sqrt((kernels**2).mean((1, 2, 3), keepdims=True))
        assert learned(kernels / rms + 0.5 * random.normal(size=kernels.shape)).all()
        assert not learned(np.zeros((2, 3, k, k))).any()
        assert not learned(kernels / rms + 30 * random.normal(size=kernels.shape)).any()


def test_hues_are_axes():
    kernels = np.concatenate(
        [
            gabor(7, 20, 0.2, phase, 2, colour)
            for colour in (RED_GREEN, BLUE_YELLOW, GREY, (1, 1, 0))
            for phase in (0, 180)
        ]
    )
    axes = hue_axes(kernels)
    assert (
        np.allclose(axes[:2], [1, 0])
        and np.allclose(axes[2:4], [-1, 0], atol=1e-12)
        and np.allclose(axes[4:6], 0, atol=1e-12)
    )
    assert np.allclose(axes[6:], [[-1 / 3, 0]] * 2)  # yellow is a third colour, along yellow and blue
    axis = hue_axes(kernels[:1] + 0.5 * kernels[2:3])[0]
    assert np.hypot(*axis) <= 1 + 1e-12 and abs(axis[1]) > 0.1
