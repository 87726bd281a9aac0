"""The embedded pictures: always the same, and a class that neither shape alone nor colour alone gives away."""

import numpy as np
import pytest

from alexnet_mp.data.synthetic import COLOURS, GRATINGS, LUMA, Builtin, draw
from alexnet_mp.system.errors import UserError

SIZE = 96  # the crop of `mini`; the fine grating has at most 21 periods, far from the 48 that the pixels could carry


def pictures(split="train", count=200, size=SIZE):
    source = Builtin(size).splits[split]
    return np.stack([source.read(index) for index in range(count)]), source.labels[:count]


def one(seed, grating, colour):
    """A picture whose phases, places, sizes and noise depend on the seed alone, float64."""
    return draw(np.random.default_rng(seed), grating, colour, SIZE).astype(float)


def peak(picture):
    """The strongest wave of the brightness: (vertical, horizontal) periods a side, horizontal >= 0."""
    brightness = picture @ LUMA
    power = np.abs(np.fft.rfft2(brightness - brightness.mean())) ** 2
    row, column = np.unravel_index(power.argmax(), power.shape)
    return (row if row < SIZE / 2 else row - SIZE), column


def grating_of(picture):
    """The index into GRATINGS by orientation and frequency of the strongest wave."""
    vertical, horizontal = peak(picture)
    return 2 * (abs(horizontal) > abs(vertical)) + (np.hypot(vertical, horizontal) > 12)


def colour_of(picture):
    """The index into COLOURS nearest to the mean hue."""
    red, green, blue = picture.reshape(-1, 3).mean(0)
    hue = np.degrees(np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue))
    return np.argmin([abs((hue - centre + 180) % 360 - 180) for _, centre in COLOURS])


def test_a_picture_is_always_the_same():
    data, copy = Builtin(40), Builtin(40)
    for split in data.splits:
        backwards = [copy.splits[split].read(index) for index in range(11, -1, -1)][::-1]
        forwards = [data.splits[split].read(np.int64(index)) for index in range(12)]
        assert np.array_equal(forwards, backwards)
        assert forwards[0].shape == (40, 40, 3) and forwards[0].dtype == np.uint8


def test_no_picture_occurs_twice():
    splits = Builtin(32).splits
    contents = {splits[split].read(index).tobytes() for split in splits for index in range(160)}
    assert len(contents) == 3 * 160


def test_sixteen_classes_equally_often():
    data = Builtin(32)
    assert data.classes == [
        f"{direction}-{width}-{colour}"
        for direction in ("horizontal", "vertical")
        for width in ("coarse", "fine")
        for colour in ("red", "green", "blue", "yellow")
    ]
    for split, count in (("train", 256), ("val", 64), ("test", 64)):
        labels = data.splits[split].labels
        assert labels.dtype == np.int64 and len(labels) == len(data.splits[split]) == len(data.splits[split].names)
        assert np.bincount(labels).tolist() == [count] * 16


def test_the_fingerprint_knows_the_size():
    assert Builtin(32).fingerprint == Builtin(32).fingerprint != Builtin(48).fingerprint


def test_too_small_for_the_gratings_is_refused():
    with pytest.raises(UserError, match="stored_size is 31"):
        Builtin(31)


@pytest.mark.run
@pytest.mark.parametrize("split", ["train", "val"])
def test_the_class_can_be_seen(split):
    """Fourier peak and mean hue, neither of them fitted, name the class of 9 pictures in 10."""
    images, labels = pictures(split)
    gratings, colours = (np.array([function(image) for image in images]) for function in (grating_of, colour_of))
    assert np.mean(gratings == labels // 4) > 0.9 and np.mean(colours == labels % 4) > 0.9
    assert np.mean(gratings * 4 + colours == labels) > 0.9
    assert GRATINGS[grating_of(images[labels == 9][0])][0] == "vertical-coarse"  # label 9 is vertical-coarse-green
    assert COLOURS[colour_of(images[labels == 9][0])][0] == "green"


@pytest.mark.run
def test_a_mirrored_picture_is_of_the_same_class():
    images, labels = pictures()
    assert (
        np.mean(
            [
                grating_of(image[:, ::-1]) * 4 + colour_of(image[:, ::-1]) == label
                for image, label in zip(images, labels, strict=True)
            ]
        )
        > 0.9
    )


@pytest.mark.run
def test_gratings_tilt_to_both_sides_alike():
    """Else mirrored pictures would be of a kind that never occurs."""
    images, labels = pictures(count=400)
    peaks = np.array([peak(image) for image in images])
    for direction in (0, 1):
        tilts = np.sign(peaks[labels // 8 == direction].prod(1)).tolist()  # 0: too little to see
        left, right = tilts.count(-1), tilts.count(1)
        assert left + right > 100 and abs(left - right) < 4 * np.sqrt(left + right)


def test_pictures_share_no_random_numbers():
    """The noise of two pictures does not correlate, moved by any number of values: their counters do not overlap."""

    def noise(split, index):
        picture = Builtin(SIZE).splits[split].read(index).astype(float)
        steps = np.diff(picture - picture.mean(2, keepdims=True), axis=1).clip(-40, 40)  # discs leave edges
        return np.fft.rfft(steps.ravel() / np.linalg.norm(steps), 2 * steps.size)

    spectrum = noise("train", 4)
    assert np.fft.irfft(spectrum * spectrum.conj())[0] > 0.999  # correlation with itself
    for split, index in (("train", 5), ("train", 20), ("val", 4), ("test", 4)):
        assert np.abs(np.fft.irfft(spectrum * noise(split, index).conj())).max() < 0.1


def unclipped(versions):
    """Where no channel of any version of a picture is 0 or 255; (height, width)."""
    return np.all([(version > 0) & (version < 255) for version in versions], axis=(0, 3))


def test_without_colour_the_hues_cannot_be_told_apart():
    """The same picture in four hues is equally bright, at each pixel but for rounding and on average over pictures."""
    means, inside = [], []
    for seed in range(24):
        versions = [one(seed, seed % 4, colour) for colour in range(4)]
        brightness = np.stack([version @ LUMA for version in versions])
        means.append(brightness.mean((1, 2)))
        inside.append(unclipped(versions))
        assert np.abs(brightness - brightness[0])[:, inside[-1]].max() <= 1  # half a level each
    assert np.mean(inside) > 0.95
    assert np.ptp(np.mean(means, axis=0)) < 0.25  # clipped discs leave a trace in the 95 levels between pictures


def test_without_shape_the_gratings_cannot_be_told_apart():
    """The same picture with four gratings keeps its red minus green and green minus blue: gratings have no colour."""
    for seed in range(24):
        versions = [one(seed, grating, seed % 4) for grating in range(4)]
        chroma, inside = np.diff(versions), unclipped(versions)
        assert np.abs(chroma[0].mean((0, 1))).max() > 1 and inside.mean() > 0.7  # there is a colour to compare
        assert np.abs(chroma - chroma[0])[:, inside].max() <= 2  # four roundings


@pytest.mark.run
def test_brightness_alone_does_not_beat_chance():
    """A nearest-mean classifier of the hue on mean and spread of brightness, fitted on 800 pictures, tried on 400."""
    features = {}
    for split, count in (("train", 800), ("val", 400)):
        images, labels = pictures(split, count, 32)
        brightness = images.reshape(count, -1, 3) @ LUMA
        features[split] = np.stack([brightness.mean(1), brightness.std(1)], axis=1), labels % 4
    (train, hues), (val, answers) = features["train"], features["val"]
    for columns in ([0], [0, 1]):
        means = np.stack([train[hues == hue][:, columns].mean(0) for hue in range(4)])
        guesses = np.linalg.norm(val[:, None, columns] - means, axis=2).argmin(1)
        assert np.mean(guesses == answers) < 0.25 + 4 * np.sqrt(0.25 * 0.75 / 400)


@pytest.mark.parametrize("part", [0, 1], ids=["grating", "hue"])
def test_one_half_of_the_class_says_nothing_of_the_other(part):
    """Every grating goes with every hue equally often, so knowing one leaves the other at chance."""
    halves = np.stack(np.divmod(Builtin(32).splits["train"].labels, 4))
    for value in range(4):
        assert np.bincount(halves[1 - part][halves[part] == value]).tolist() == [256] * 4
