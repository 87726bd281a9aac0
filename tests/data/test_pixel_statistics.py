"""The mean image and the colour components: exact sums, the right eigenpairs, and a file that survives or is named."""

import numpy as np
import pytest
import torch
from inner_cases import every
from safetensors.numpy import save_file
from safetensors.torch import save as save_tensors

from alexnet_mp.data.pixel_statistics import STATISTICS, Statistics, Sums
from alexnet_mp.data.prepared_format import SOURCE, read_source_file
from alexnet_mp.system.errors import UserError

SIZE = 12
FIELDS = ("mean", "eigenvalues", "eigenvectors")


def coloured(count, seed=1):
    """Random pictures whose channels have different means and are correlated, as those of photographs are."""
    random = np.random.default_rng(seed)
    matrix = np.array([[40, 12, 5], [38, -3, -8], [36, -10, 6]])
    pixels = random.normal(size=(count, SIZE, SIZE, 3)) @ matrix.T + (120, 117, 104)
    pixels += 30 * random.random((SIZE, SIZE, 1))
    return pixels.clip(0, 255).astype(np.uint8)


def summed(pictures):
    sums = Sums(pictures.shape[1])
    for picture in pictures:
        sums.add(picture)
    return sums


def same_bits(a, b):
    return all(getattr(a, field).tobytes() == getattr(b, field).tobytes() for field in FIELDS)


def test_the_mean_image_is_exact():
    pictures = coloured(37)
    mean = summed(pictures).statistics().mean
    assert mean.dtype == np.float64
    assert np.array_equal(mean, pictures.sum(0, dtype=np.int64) / 37)


@pytest.mark.parametrize("count", [1, 2, 37])
def test_the_components_are_those_of_numpy_in_float64(count):
    pictures = coloured(count)
    covariance = np.cov(pictures.reshape(-1, 3).T / 255, bias=True)  # pixel units 0..1, divided by the number of pixels
    statistics = summed(pictures).statistics()
    values, vectors = statistics.eigenvalues, statistics.eigenvectors
    assert values.dtype == vectors.dtype == np.float64
    assert np.abs(values - np.linalg.eigvalsh(covariance)).max() < 1e-12 and (np.diff(values) > 1e-3).all()  # ascending
    assert np.abs(vectors.T @ vectors - np.eye(3)).max() < 1e-12
    assert np.abs(covariance @ vectors - vectors * values).max() < 1e-12  # a component a column
    assert all(column[np.abs(column).argmax()] > 0 for column in vectors.T)


def test_components_by_hand():
    """Half the pixels red, half black: mean 127.5 red, variance 1/4 along red and 0 along the others."""
    picture = np.zeros((SIZE, SIZE, 3), np.uint8)
    picture[: SIZE // 2, :, 0] = 255
    statistics = summed(picture[None]).statistics()
    assert np.allclose(statistics.eigenvalues, [0, 0, 0.25], rtol=0, atol=1e-15)
    assert np.allclose(statistics.eigenvectors[:, 2], [1, 0, 0], rtol=0, atol=1e-15)
    assert np.array_equal(statistics.mean, picture)


def test_components_have_the_same_bits_everywhere():
    """LAPACK's have not: OpenBLAS takes other instructions on other processors, and the last bits differ."""
    red, green, blue = (np.arange(SIZE * SIZE).reshape(1, SIZE, SIZE) * factor % 251 for factor in (7, 11, 90))
    statistics = summed(np.stack([red, (red + green) // 2, (red + blue) // 2], axis=3).astype(np.uint8)).statistics()
    values, vector = statistics.eigenvalues, statistics.eigenvectors[:, 2]  # rounded from 300 digits, they are the same
    assert [value.hex() for value in values] == ["0x1.b83cfd302ceb2p-7", "0x1.47f787b33b9fcp-6", "0x1.0483ed533d61cp-3"]
    assert [value.hex() for value in vector] == ["0x1.8b8c5ff6ecd0fp-1", "0x1.cf54f5b0b4ae7p-2", "0x1.c82460f9813b3p-2"]


def test_the_covariance_is_around_the_mean_of_all_pixels():
    """Not around the mean image: equal pictures still have colour components (4.1: of the set of RGB pixel values)."""
    picture = coloured(1)
    one, five = summed(picture).statistics(), summed(np.repeat(picture, 5, axis=0)).statistics()
    assert np.allclose(one.eigenvalues, five.eigenvalues, rtol=1e-12) and one.eigenvalues.min() > 1e-4


def test_sums_of_bright_pictures_do_not_overflow():
    """Products of 255 exceed 16 bits, and their sums the 24 bits that float32 holds exactly."""
    picture = np.full((128, 128, 3), 255, np.uint8)
    picture[0, 0] = 254
    sums = summed(np.stack([picture] * 40))
    count, square = 128 * 128 - 1, 254 * 254
    assert (sums.products == 40 * (count * 255 * 255 + square)).all() and sums.count == 40
    assert sums.pixels[0, 0, 0] == 40 * 254 and sums.pixels[5, 5, 1] == 40 * 255


def test_merging_in_any_order_gives_the_same_bits():
    pictures = coloured(24)
    statistics = summed(pictures).statistics()
    for seed in range(5):
        shuffle = pictures[np.random.default_rng(seed).permutation(24)]
        parts = [summed(part) for part in np.split(shuffle, (1, 3, 10, 17))] + [Sums(SIZE)]  # and an empty one
        total = parts[seed]
        for part in parts[:seed] + parts[seed + 1 :]:
            total.merge(part)
        assert total.count == 24 and same_bits(total.statistics(), statistics)


@every("level", [0, 1, 77, 255])
def test_a_constant_set_has_no_colour_components(level):
    statistics = summed(np.full((3, SIZE, SIZE, 3), level, np.uint8)).statistics()
    assert (statistics.mean == level).all()
    assert ((statistics.eigenvalues >= 0) & (statistics.eigenvalues < 1e-15)).all()  # never below 0: its root is taken
    assert np.abs(statistics.eigenvectors.T @ statistics.eigenvectors - np.eye(3)).max() < 1e-12


def test_a_grey_set_has_one_component():
    statistics = summed(np.repeat(coloured(3)[:, :, :, :1], 3, axis=3)).statistics()
    assert (statistics.eigenvalues[:2] >= 0).all() and (statistics.eigenvalues[:2] < 1e-14).all()
    assert np.allclose(statistics.eigenvectors[:, 2], np.sqrt([1 / 3] * 3), rtol=1e-12)


def test_saved_and_loaded_bit_for_bit(tmp_path):
    statistics = summed(coloured(5)).statistics()
    statistics.save(tmp_path)
    assert same_bits(Statistics.load(tmp_path), statistics)
    # The transposed view has its entries in another order in memory: the file must hold what the indices say.
    transpose = Statistics(statistics.mean.transpose(1, 0, 2), statistics.eigenvalues[::-1], statistics.eigenvectors.T)
    transpose.save(str(tmp_path))
    copy = Statistics.load(str(tmp_path))
    for field in FIELDS:
        assert np.array_equal(getattr(copy, field), getattr(transpose, field))


@every(
    "spoil",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b"garbage"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["missing", "garbage", "empty", "cut short", "a directory"],
)
def test_an_unreadable_file_is_named(tmp_path, spoil):
    summed(coloured(2)).statistics().save(tmp_path)
    spoil(tmp_path / STATISTICS)
    with pytest.raises(UserError, match=STATISTICS):
        Statistics.load(tmp_path)


def test_a_file_with_other_contents_is_named(tmp_path):
    fields = {"mean": np.zeros((2, 2, 3), np.float32), "eigenvalues": np.zeros(3), "eigenvectors": np.eye(3)}
    for other in ({"mean": fields["mean"]}, fields | {"more": np.zeros(1)}):
        save_file(other, tmp_path / STATISTICS)
        with pytest.raises(UserError, match=STATISTICS):
            Statistics.load(tmp_path)
    # of a kind of number that numpy has not
    for name in (STATISTICS, SOURCE):
        (tmp_path / name).write_bytes(save_tensors({"mean": torch.zeros(2, dtype=torch.bfloat16)}))
    with pytest.raises(UserError, match=f"{SOURCE} is damaged"):
        read_source_file(tmp_path)
    with pytest.raises(UserError, match=f"{STATISTICS}: 'BF16'"):
        Statistics.load(tmp_path)
