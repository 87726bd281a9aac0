"""What a tower sees: altered pictures and what they must keep, planted towers, and 100 networks without division."""

import numpy as np
import pytest
from inner_cases import every
from planted_towers import STATISTICS, Pictures, divided, mixed, network, pictures, recipe

from alexnet_mp.analysis import altered_pictures
from alexnet_mp.analysis.altered_pictures import ALTERATIONS, CUTOFF
from alexnet_mp.analysis.figures import TOWER_COLOURS
from alexnet_mp.analysis.hypothesis_tests import Comparison
from alexnet_mp.analysis.lesions import kernel_lesions, lesions
from alexnet_mp.analysis.sight import Leaning, Leanings, class_leanings, colour_division, sight
from alexnet_mp.network.network import TwoTowerAlexNet
from alexnet_mp.reporting import sight as sight_part

pytestmark = pytest.mark.usefixtures("one_thread")
NUMBERS = np.arange(120)


def test_what_altered_pictures_keep():
    random = np.random.default_rng(0)
    photos = random.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    haze = random.integers(100, 156, (3, 32, 32, 3), dtype=np.uint8)
    light = {name: alter(photos).mean(3) for name, alter in ALTERATIONS.items()}
    for name, variants in ((name, alter(photos)) for name, alter in ALTERATIONS.items()):
        assert variants.shape == photos.shape and variants.dtype == np.uint8, name
        assert np.abs(variants.mean((1, 2, 3)) - photos.mean((1, 2, 3))).max() < 1, name  # no picture gets darker
        if "frequencies" not in name and name != "colour alone":
            assert np.abs(light[name] - photos.mean(3)).max() <= 1, name  # each colour is rounded
    assert (ALTERATIONS["intact"](photos) == photos).all() and np.ptp(ALTERATIONS["grey"](photos), 3).max() == 0
    assert np.ptp(light["colour alone"].reshape(3, -1), 1).max() <= 1

    def chroma(pictures):
        return pictures - pictures.mean(3, keepdims=True)

    assert np.abs(chroma(ALTERATIONS["colour alone"](haze)) - chroma(haze)).max() <= 1
    shuffle = chroma(ALTERATIONS["shuffled colour"](haze)).reshape(3, -1, 3)
    sizes = [np.sort(np.linalg.norm(each.reshape(3, -1, 3), axis=2), 1) for each in (shuffle, chroma(haze))]
    assert np.abs(sizes[0] - sizes[1]).max() < 2 and np.abs(shuffle.reshape(haze.shape) - chroma(haze)).max() > 20
    for name, colour in altered_pictures.HUES.items():
        vectors = chroma(altered_pictures.one_hue(haze, name)).reshape(-1, 3)
        direction = chroma(np.array(colour, float)[None, None, None]).ravel()
        assert (
            np.abs(np.cross(vectors, direction / np.linalg.norm(direction))).max() < 1.5
            and (vectors @ direction).min() > -1
        )
        assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.linalg.norm(chroma(haze), axis=3).ravel(), abs=1.5)
    # The filters: gratings of whole half-waves, which go on unbroken in the mirror.
    for cycles in (2, CUTOFF, 16):
        wave = np.cos(2 * np.pi * cycles * (np.arange(64) + 0.5) / 64)
        picture = np.rint(128 + 100 * np.tile(wave[:, None, None], (1, 64, 3))).astype(np.uint8)[None]
        gain = 2.0 ** -((cycles / CUTOFF) ** 2)
        for name, share in (("low frequencies", gain), ("high frequencies", 1 - gain)):
            amplitude = 2 * (ALTERATIONS[name](picture)[0, :, 0, 0] * wave).mean()
            assert amplitude == pytest.approx(100 * share, abs=1.5), (name, cycles)


def test_planted_towers_are_told(tmp_path):
    train, test = pictures(240, 1), pictures(120, 2)
    for kernels, sign in (
        (divided(), 1),
        (divided()[[4, 5, 6, 7, 0, 1, 2, 3]], -1),
    ):  # either tower may have the colours
        model = network(kernels, train)
        outcome = colour_division(model, STATISTICS, test, NUMBERS)
        assert (
            outcome.divided and sign * outcome.contrast > 100 and max(map(abs, outcome.halves)) < abs(outcome.contrast)
        )
    (a_grey, b_grey), (a_colour, b_colour) = outcome.kept.values()
    assert min(b_grey, a_colour) > 95 and max(a_grey, b_colour) < 40
    sights = {one.pictures: one for one in sight(model, STATISTICS, test, NUMBERS)}
    assert sights["grey"].holm_p < 1e-3 and sights["grey"].errors["a sees"] > 75 > 50 > sights["grey"].errors["b sees"]
    assert sights["colour alone"].errors["b sees"] > 75 > 50 > sights["colour alone"].errors["a sees"]
    assert sights["intact"].errors["whole"] < 5 and sights["intact"].holm_p > 0.05 and set(sights) == set(ALTERATIONS)
    assert set(sights["grey"].errors) == {"whole", "a sees", "b sees"}  # there is one crossing
    leanings = class_leanings(model, STATISTICS, test, NUMBERS, deals=200)
    assert [np.sign(one.change.difference) for one in leanings.classes] == [-1] * 3 + [1] * 3  # brightness is tower b's
    assert leanings.p < 0.01 and all(one.holm_p < 0.01 and one.change.n == 20 for one in leanings.classes)
    assert leanings.spread > 3 * leanings.by_chance and len(leanings.most_first) == 6
    # A class of one picture leans by 100 points, and comes after those of which as much is told by twenty.
    trials = (
        class_leanings(model, STATISTICS, test, np.flatnonzero((test.labels != 0) | (NUMBERS == picture)), deals=20)
        for picture in np.flatnonzero(test.labels == 0)
    )
    leanings = next(one for one in trials if one.classes[0].change.difference == -100)
    assert leanings.classes[0].change.n == 1 and leanings.most_first[0].change.n == 20
    assert leanings.most_first[-1] == leanings.classes[0] and all(one.holm_p < 0.01 for one in leanings.most_first[:-1])
    # By lesions: both are needed, for other classes, and a random half leaves something of each.
    outcome = lesions(network(divided(), train), STATISTICS, test, NUMBERS)
    assert outcome.error < 5 and [one.error > 30 and one.as_harmful == 0 for one in outcome.towers] == [True, True]
    assert outcome.contrasts[0].holm_p > 0.05 and [one.place for one in outcome.towers] == ["fc3", "fc3"]
    # A kernel that nothing reads is not missed.
    kernels = np.concatenate([divided()[:2], np.zeros((2, 3)), divided()[4:]])
    removals = kernel_lesions(network(kernels, train), STATISTICS, test, NUMBERS)
    assert not {2, 3} & set(removals.most_harmful_first[:6]) and abs(removals.kernels[2].loss) < 1e-6
    assert removals.kernels[removals.most_harmful_first[0]].loss > 0.01
    # Without labels the division is told all the same; one tower has none.
    no_labels = Pictures(test.pictures, np.full(120, -1))
    assert colour_division(model, STATISTICS, no_labels, NUMBERS).divided
    net = TwoTowerAlexNet(recipe(4, towers=1), ("cpu",), 6, "reference").eval()
    assert colour_division(net, STATISTICS, test, NUMBERS) is class_leanings(net, STATISTICS, test, NUMBERS) is None
    assert [set(one.errors) for one in sight(net, STATISTICS, test, NUMBERS[:9])] == [{"whole"}] * len(ALTERATIONS)
    # On a page: of a picture each nothing is sure, and a class without a difference has neither tower's mark.
    names = [f"class {number}" for number in range(6)]
    changes = Comparison(1, 0, 0, 1.0), Comparison(1, 1, 0, 1.0), Comparison(20, 0, 18, 1e-5)
    classes = tuple(Leaning(label, change, 1.0) for label, change in enumerate(changes))
    (axes, *_) = sight_part.draw_classes(classes, test, names).axes
    marks = {line.get_marker(): line.get_color() for line in axes.lines if line.get_marker() != "None"}
    assert marks == {"s": sight_part.INK, "o": TOWER_COLOURS[0], "^": TOWER_COLOURS[1]}
    for chosen, how, end in (
        (classes, "The 3 classes that lean most on a tower, with pictures: class 2 -90.0 points, ", "leave out 0: 1."),
        (classes[2:], "The 1 classes that surely lean most on a tower, ", "farthest from 0."),
    ):
        leanings = Leanings(41, chosen, 1.0, 1.0, 0.5)
        part = sight_part.sight(tmp_path, (), None, leanings, test, NUMBERS, names, "pictures")
        (image,) = [piece["image"] for piece in part.pieces if piece["kind"] == "image"]
        assert image["alt"].startswith(how) and image["caption"].endswith(end), image


@pytest.mark.slow
@every("own_layer", [False, True])
def test_towers_dealt_at_random_are_not_told_as_divided(own_layer):
    """Of 100 networks about as many are as the level says, although most towers differ by more than pictures do; and
    about as many towers as chance makes of them, 1 in 21, have no control that is as harmful."""
    train, test = pictures(240, 1), pictures(120, 2)
    networks = [network(mixed(4, seed), train, own_layer, seed) for seed in range(100)]
    divisions = [colour_division(model, STATISTICS, test, NUMBERS, seed=seed) for seed, model in enumerate(networks)]
    assert sum(one.divided for one in divisions) <= 10 and sum(one.p <= 0.05 for one in divisions) > 50
    if not own_layer:  # else the maps that meet are no deal of like ones: those of a tower have read the same kernels
        of_a = [lesions(model, STATISTICS, test, NUMBERS, seed=seed).towers[0] for seed, model in enumerate(networks)]
        assert sum(one.as_harmful == 0 for one in of_a) <= 12  # of Binomial(100, 1 / 21) more in 1 of 1,000 cases
