"""What a tower sees: altered pictures and what they must keep, planted towers, and 100 networks without division."""

import numpy as np
import pytest
from inner_cases import every
from planted_towers import STATISTICS, Pictures, divided, mixed, network, pictures, recipe

from alexnet_mp.analysis import altered_pictures
from alexnet_mp.analysis.altered_pictures import ALTERATIONS, CUTOFF
from alexnet_mp.analysis.lesions import kernel_lesions, lesions
from alexnet_mp.analysis.sight import class_leanings, colour_division, sight
from alexnet_mp.network.network import TwoTowerAlexNet

pytestmark = pytest.mark.usefixtures("one_thread")
NUMBERS = np.arange(120)


def test_what_altered_pictures_keep():
    random = np.random.default_rng(0)
    photos = random.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    soft = random.integers(100, 156, (3, 32, 32, 3), dtype=np.uint8)
    light = {name: alter(photos).mean(3) for name, alter in ALTERATIONS.items()}
    for name, altered in ((name, alter(photos)) for name, alter in ALTERATIONS.items()):
        assert altered.shape == photos.shape and altered.dtype == np.uint8, name
        assert np.abs(altered.mean((1, 2, 3)) - photos.mean((1, 2, 3))).max() < 1, name  # no picture gets darker
        if "frequencies" not in name and name != "colour alone":
            assert np.abs(light[name] - photos.mean(3)).max() <= 1, name  # each colour is rounded
    assert (ALTERATIONS["intact"](photos) == photos).all() and np.ptp(ALTERATIONS["grey"](photos), 3).max() == 0
    assert np.ptp(light["colour alone"].reshape(3, -1), 1).max() <= 1

    def chroma(pictures):
        return pictures - pictures.mean(3, keepdims=True)

    assert np.abs(chroma(ALTERATIONS["colour alone"](soft)) - chroma(soft)).max() <= 1
    shuffled = chroma(ALTERATIONS["shuffled colour"](soft)).reshape(3, -1, 3)
    sizes = [np.sort(np.linalg.norm(each.reshape(3, -1, 3), axis=2), 1) for each in (shuffled, chroma(soft))]
    assert np.abs(sizes[0] - sizes[1]).max() < 2 and np.abs(shuffled.reshape(soft.shape) - chroma(soft)).max() > 20
    for name, pure in altered_pictures.HUES.items():
        turned = chroma(altered_pictures.one_hue(soft, name)).reshape(-1, 3)
        direction = chroma(np.array(pure, float)[None, None, None]).ravel()
        assert (
            np.abs(np.cross(turned, direction / np.linalg.norm(direction))).max() < 1.5
            and (turned @ direction).min() > -1
        )
        assert np.linalg.norm(turned, axis=1) == pytest.approx(np.linalg.norm(chroma(soft), axis=3).ravel(), abs=1.5)
    # The filters: gratings of whole half-waves, which go on unbroken in the mirror.
    for cycles in (2, CUTOFF, 16):
        wave = np.cos(2 * np.pi * cycles * (np.arange(64) + 0.5) / 64)
        picture = np.rint(128 + 100 * np.tile(wave[:, None, None], (1, 64, 3))).astype(np.uint8)[None]
        kept = 2.0 ** -((cycles / CUTOFF) ** 2)
        for name, share in (("low frequencies", kept), ("high frequencies", 1 - kept)):
            amplitude = 2 * (ALTERATIONS[name](picture)[0, :, 0, 0] * wave).mean()
            assert amplitude == pytest.approx(100 * share, abs=1.5), (name, cycles)


def test_planted_towers_are_told():
    train, test = pictures(240, 1), pictures(120, 2)
    for kernels, sign in (
        (divided(), 1),
        (divided()[[4, 5, 6, 7, 0, 1, 2, 3]], -1),
    ):  # either tower may have the colours
        made = network(kernels, train)
        found = colour_division(made, STATISTICS, test, NUMBERS)
        assert found.divided and sign * found.contrast > 100 and max(map(abs, found.halves)) < abs(found.contrast)
    (a_grey, b_grey), (a_colour, b_colour) = found.kept.values()
    assert min(b_grey, a_colour) > 95 and max(a_grey, b_colour) < 40
    seen = {one.pictures: one for one in sight(made, STATISTICS, test, NUMBERS)}
    assert seen["grey"].holm_p < 1e-3 and seen["grey"].errors["a sees"] > 75 > 50 > seen["grey"].errors["b sees"]
    assert seen["colour alone"].errors["b sees"] > 75 > 50 > seen["colour alone"].errors["a sees"]
    assert seen["intact"].errors["whole"] < 5 and seen["intact"].holm_p > 0.05 and set(seen) == set(ALTERATIONS)
    assert set(seen["grey"].errors) == {"whole", "a sees", "b sees"}  # there is one crossing
    leaning = class_leanings(made, STATISTICS, test, NUMBERS, deals=200)
    assert [np.sign(one.change.difference) for one in leaning.classes] == [-1] * 3 + [1] * 3  # brightness is tower b's
    assert leaning.p < 0.01 and all(one.holm_p < 0.01 and one.change.n == 20 for one in leaning.classes)
    assert leaning.spread > 3 * leaning.by_chance and len(leaning.most_first) == 6
    # A class of one picture leans by 100 points, and comes after those of which as much is told by twenty.
    unbalanced = (
        class_leanings(made, STATISTICS, test, np.flatnonzero((test.labels != 0) | (NUMBERS == alone)), deals=20)
        for alone in np.flatnonzero(test.labels == 0)
    )
    leaning = next(one for one in unbalanced if one.classes[0].change.difference == -100)
    assert leaning.classes[0].change.n == 1 and leaning.most_first[0].change.n == 20
    assert leaning.most_first[-1] == leaning.classes[0] and all(one.holm_p < 0.01 for one in leaning.most_first[:-1])
    # By lesions: both are needed, for other classes, and a random half leaves something of each.
    found = lesions(network(divided(), train), STATISTICS, test, NUMBERS)
    assert found.error < 5 and [one.error > 30 and one.as_harmful == 0 for one in found.towers] == [True, True]
    assert found.contrasts[0].holm_p > 0.05 and [one.place for one in found.towers] == ["fc3", "fc3"]
    # A kernel that nothing reads is not missed.
    kernels = np.concatenate([divided()[:2], np.zeros((2, 3)), divided()[4:]])
    removed = kernel_lesions(network(kernels, train), STATISTICS, test, NUMBERS)
    assert not {2, 3} & set(removed.most_harmful_first[:6]) and abs(removed.kernels[2].loss) < 1e-6
    assert removed.kernels[removed.most_harmful_first[0]].loss > 0.01
    # Without labels the division is told all the same; one tower has none.
    nameless = Pictures(test.pictures, np.full(120, -1))
    assert colour_division(made, STATISTICS, nameless, NUMBERS).divided
    single = TwoTowerAlexNet(recipe(4, towers=1), ("cpu",), 6, "reference").eval()
    assert (
        colour_division(single, STATISTICS, test, NUMBERS) is class_leanings(single, STATISTICS, test, NUMBERS) is None
    )
    assert [set(one.errors) for one in sight(single, STATISTICS, test, NUMBERS[:9])] == [{"whole"}] * len(ALTERATIONS)


@pytest.mark.slow
@every("own_layer", [False, True])
def test_towers_dealt_at_random_are_not_told_as_divided(own_layer):
    """Of 100 networks about as many are as the level says, although most towers differ by more than pictures do; and
    about as many towers as chance makes of them, 1 in 21, have no control that is as harmful."""
    train, test = pictures(240, 1), pictures(120, 2)
    networks = [network(mixed(4, seed), train, own_layer, seed) for seed in range(100)]
    found = [colour_division(made, STATISTICS, test, NUMBERS, seed=seed) for seed, made in enumerate(networks)]
    assert sum(one.divided for one in found) <= 10 and sum(one.p <= 0.05 for one in found) > 50
    if not own_layer:  # else the maps that meet are no deal of like ones: those of a tower have read the same kernels
        of_a = [lesions(made, STATISTICS, test, NUMBERS, seed=seed).towers[0] for seed, made in enumerate(networks)]
        assert sum(one.as_harmful == 0 for one in of_a) <= 12  # of Binomial(100, 1 / 21) more in 1 of 1,000 cases
