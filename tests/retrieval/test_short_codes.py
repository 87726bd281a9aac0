"""The auto-encoder: what it keeps, that it is deterministic, the packing of its bits, and the control."""

import numpy as np
import pytest
import torch

from alexnet_mp.retrieval import short_codes
from alexnet_mp.retrieval.short_codes import Encoder, passes, random_codes, standard, train

pytestmark = pytest.mark.usefixtures("one_thread")


def clusters(count=256, units=48, groups=8, seed=0):
    """Points around `groups` centres: (features (N, units) float32, groups (N,))."""
    random = np.random.default_rng(seed)
    group = random.integers(0, groups, count)
    centres = np.random.default_rng(99).normal(0, 3, (groups, units))
    return (centres[group] + random.normal(0, 1, (count, units))).astype(np.float32), group


@pytest.fixture(scope="module")
def trained():
    """In all 200 passes: of so few pictures, a few steps each, fewer would not be enough."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(short_codes, "PICTURES", 200_000)
        return train(clusters()[0], 16)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(short_codes, "EPOCHS", 5)


def hamming(one, other):
    return np.bitwise_count(one[:, None] ^ other).sum(2)


@pytest.mark.run
def test_codes_keep_neighbours_of_pictures_that_were_never_trained_on(trained):
    features, group = clusters(seed=1)
    train_features, train_group = clusters()
    codes, train_codes = trained.encoder.codes(features), trained.encoder.codes(train_features)
    neighbours = hamming(codes, train_codes).argmin(1)
    assert (train_group[neighbours] == group).mean() > 0.99
    assert trained.loss < 0.4  # nothing learned: 1 or more
    assert trained.epochs == 200 and trained.ones.shape == (16,)


def test_the_reported_balance_is_that_of_the_codes(trained):
    bits = np.unpackbits(trained.encoder.codes(clusters()[0]), axis=1)
    np.testing.assert_allclose(bits.mean(0), trained.ones, atol=1e-6)
    assert 0 < trained.ones.min() and trained.ones.max() < 1


def test_the_same_seed_gives_the_same_bits_and_leaves_the_global_generator_alone(quick):
    features = clusters(130)[0]
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, two, other = train(features, 8, seed=1), train(features, 8, seed=1), train(features, 8, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    for name, array in vars(one.encoder).items():
        assert np.array_equal(array, getattr(two.encoder, name)), name
    assert not np.array_equal(one.encoder.weight1, other.encoder.weight1)


def test_a_bit_is_the_sign_of_its_logit_packed_first_bit_highest():
    encoder = Encoder(
        np.full(2, 1, np.float32),
        np.full(2, 2, np.float32),
        np.eye(2, dtype=np.float32),
        np.zeros(2, np.float32),
        np.array([[1, 0], [0, 1], [1, -1], [0, 0], [0, 0], [0, 0], [0, 0], [1, 1]], np.float32),
        np.array([-1, -1, 0, 1, -1, 0, -1, -9], np.float32),
    )
    # standardised (2, 0), then ReLU: logits 1, -1, 2, 1, -1, 0, -1, -7; 0 is no 1
    assert encoder.codes(np.array([[5, 0]], np.float32)).tolist() == [[0b10110000]] and encoder.bits == 8
    assert encoder.codes(np.zeros((5000, 2), np.float32)).shape == (5000, 1)


def test_the_gradient_passes_the_rounding():
    logits = torch.tensor([-2.0, 0.5], requires_grad=True)
    bits = short_codes._straight_through(logits)
    assert bits.tolist() == [0, 1]
    bits.sum().backward()
    expected = torch.sigmoid(logits) * (1 - torch.sigmoid(logits))
    assert torch.allclose(logits.grad, expected)


def test_a_unit_that_never_moves_stays_finite(quick):
    features = clusters(64)[0]
    features[:, 3] = 7
    centre, scale = standard(features)
    assert scale[3] == 1 and centre[3] == 7
    training = train(features, 8)
    assert np.isfinite(training.loss) and all(np.isfinite(array).all() for array in vars(training.encoder).values())


def test_large_sets_have_fewer_passes():
    assert [passes(count) for count in (10, 5000, 50_000, 1_281_167)] == [200, 8, 1, 1]


def test_every_picture_of_every_pass_is_counted(quick):
    counts = []
    train(clusters(130)[0], 8, advance=counts.append)
    assert sum(counts) == 130 * 5 == 130 * passes(130)


def test_random_codes_measure_angles():
    random = np.random.default_rng(0)
    features = random.normal(size=(2, 64)).astype(np.float32)
    angle = np.arccos(features[0] @ features[1] / np.prod(np.linalg.norm(features, axis=1)))
    codes = random_codes(features, 4096, np.zeros((1, 64), np.float32))
    assert hamming(codes[:1], codes[1:])[0, 0] / 4096 == pytest.approx(angle / np.pi, abs=0.03)
    assert np.array_equal(codes, random_codes(features, 4096, np.zeros((1, 64), np.float32)))
