"""The counter-based generator: the published words, and what is made of them."""

import math

import torch
from alexnet_mp.kernels.philox import below, normal_pair, philox
from inner_cases import every

# Known-answer vectors of philox4x32-10 in the Random123 distribution (`kat_vectors`): counter, key, result.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def hexadecimal(text):
    return tuple(int(word, 16) for word in text.split())


def plain_philox(counter, key):
    """Philox-4x32-10 as its paper writes it, on Python's unbounded integers."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        high0, low0 = divmod(c0 * 0xD2511F53, 2**32)
        high1, low1 = divmod(c2 * 0xCD9E8D57, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


@every("counter, key, result", KNOWN)
def test_known_answers(counter, key, result):
    words = philox(tuple(torch.tensor([word]) for word in hexadecimal(counter)), hexadecimal(key))
    assert tuple(word.item() for word in words) == hexadecimal(result)
    assert plain_philox(hexadecimal(counter), hexadecimal(key)) == hexadecimal(result)


@every("tensor", range(4))
@every("counter, key, result", KNOWN)
def test_one_tensor_among_python_integers(counter, key, result, tensor):
    """The project's calls mix them: a Python integer does not wrap around at 64 bits, a tensor does."""
    words = [torch.tensor([word]) if i == tensor else word for i, word in enumerate(hexadecimal(counter))]
    assert tuple(int(word) for word in philox(words, hexadecimal(key))) == hexadecimal(result)


def test_a_thousand_counters_equal_the_plain_arithmetic():
    counters = torch.randint(2**32, (4, 1000), generator=torch.Generator().manual_seed(3))
    key = (0xDEADBEEF, 5)
    words = torch.stack(philox(counters.unbind(), key), dim=1).tolist()
    assert words == [list(plain_philox(column, key)) for column in counters.T.tolist()]


def test_counters_broadcast():
    rows, columns = torch.arange(5)[:, None], torch.tensor([7, 0, 2**32 - 1])
    words = philox((columns, 11, rows, 2), (1, 2))
    assert all(word.dtype == torch.int64 and word.shape == (5, 3) for word in words)
    for i in range(5):
        for j in range(3):
            expected = plain_philox((columns[j].item(), 11, i, 2), (1, 2))
            assert tuple(word[i, j].item() for word in words) == expected


def test_no_counters_no_words():
    assert [word.shape for word in philox((torch.arange(0), 1, 2, 3), (4, 5))] == [(0,)] * 4


@every("n", [1, 2, 3, 32, 33, 2**31])
def test_below_covers_its_range_and_no_more(n):
    bounds = [-(-value * 2**32 // n) for value in (0, n // 2, n - 1)]  # the smallest word that gives each value
    assert below(torch.tensor(bounds), n).tolist() == [0, n // 2, n - 1]
    assert below(torch.tensor(2**32 - 1), n) == n - 1
    assert below(torch.tensor(bounds[2] - 1), n) == n - 2 if n > 1 else bounds[2] == 0


@every("n", [2, 32, 33])
@every("word", range(4))
def test_below_is_uniform_on_every_word(n, word):
    count = 30_000
    numbers = below(philox((torch.arange(count), 1, 0, 0), (2012, 2))[word], n)
    counts = torch.bincount(numbers, minlength=n).double()
    assert len(counts) == n
    chi_square = ((counts - count / n) ** 2 / (count / n)).sum()
    assert abs(chi_square - (n - 1)) < 5 * math.sqrt(2 * (n - 1))  # mean n - 1, deviation sqrt(2 (n - 1))


@every(
    "word0, word1, expected",
    [
        (2**31 - 1, 0, (math.sqrt(2 * math.log(2)), 0)),  # u = 1/2
        (2**31 - 1, 2**30, (0, math.sqrt(2 * math.log(2)))),  # a quarter turn
        (2**30 - 1, 2**31, (-math.sqrt(4 * math.log(2)), 0)),  # u = 1/4, half a turn
        (
            0,
            2**29,
            (math.sqrt(32 * math.log(2)), math.sqrt(32 * math.log(2))),
        ),  # u = 2^-32, the largest radius, 45 degrees
        (2**32 - 1, 12345, (0, 0)),  # u = 1: never log(0)
    ],
)
def test_normal_pair_by_hand(word0, word1, expected):
    pair = normal_pair(torch.tensor(word0), torch.tensor(word1))
    torch.testing.assert_close(torch.stack(pair), torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=1e-14)


def test_normal_pair_has_the_moments_of_two_independent_normals():
    count = 30_000
    words = philox((torch.arange(count), 0, 0, 0), (7, 3))
    x, y = normal_pair(words[0], words[1])
    assert x.dtype == y.dtype == torch.float64
    # (terms, mean, deviation of one term): each mean of `count` terms has to lie within five of its own deviations.
    for terms, value, deviation in [
        (x, 0, 1),
        (y, 0, 1),
        (x**2, 1, math.sqrt(2)),
        (y**2, 1, math.sqrt(2)),
        (x**3, 0, math.sqrt(15)),
        (y**3, 0, math.sqrt(15)),
        (x**4, 3, math.sqrt(96)),
        (y**4, 3, math.sqrt(96)),
        (x * y, 0, 1),
        (x**2 * y**2, 1, math.sqrt(8)),
        (x**2 * y, 0, math.sqrt(3)),
        (x * y**2, 0, math.sqrt(3)),
    ]:
        assert abs(terms.mean() - value) < 5 * deviation / math.sqrt(count)
    for z in (x, y):  # Kolmogorov-Smirnov: beyond 2 / sqrt(count) with a chance of 0.0007
        below_z = 0.5 * (1 + torch.erf(z.sort().values / math.sqrt(2)))
        assert (below_z - torch.arange(count) / count).abs().max() < 2 / math.sqrt(count)
