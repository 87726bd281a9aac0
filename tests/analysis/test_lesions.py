"""Lesions against the same done by hand to a network's own forward pass, of all arrangements."""

import numpy as np
import pytest
import torch
from inner_cases import every
from planted_towers import Pictures

from alexnet_mp.analysis import silencing
from alexnet_mp.analysis.lesions import ALL, kernel_lesions, lesions
from alexnet_mp.data.pixel_statistics import Statistics
from alexnet_mp.network.network import TwoTowerAlexNet
from alexnet_mp.recipes.ablations import no_links, one_gpu
from alexnet_mp.recipes.architectures import mini
from alexnet_mp.recipes.recipe import override

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = ["stored_size=40", "crop_size=40", "crop_positions=1", "conv1.kernel=5", "conv1.stride=2", "dropout=0.25"]
SMALL += [f"conv{number}.maps=4" for number in range(1, 6)] + ["fc6.maps=6", "fc7.maps=6"]
NUMBERS = np.arange(9)


def small(change=lambda recipe: recipe, devices=("cpu", "cpu"), classes=5, settings=()):
    recipe = override(change(mini()), [*SMALL, *settings])
    network = TwoTowerAlexNet(recipe, devices[: recipe.towers], classes, "reference").eval()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random) * 2 / parameter[0].numel() ** 0.5)
    return network


def seen(network, monkeypatch):
    """(split, statistics, what the towers see) of nine pictures, which go through in batches of five."""
    random = np.random.default_rng(1)
    coarse = random.integers(0, 256, (9, 4, 4, 3), dtype=np.uint8)
    split = Pictures(coarse.repeat(10, 1).repeat(10, 2), NUMBERS % network.classes)
    statistics = Statistics(np.full((40, 40, 3), 100.0), np.zeros(3), np.eye(3))
    monkeypatch.setattr(silencing, "AT_ONCE", 5)
    return split, statistics, silencing.seen_by(network, statistics, split.pictures)


@every(
    "made",
    [small(), small(classes=2), small(devices=("cpu", "cpu:0")), small(settings=["lrn_crosses=true"]), small(no_links)],
    ids=["paper", "2 classes", "two devices", "lrn_crosses", "no links"],
)
def test_every_lesion_is_what_a_forward_pass_gives(made, monkeypatch):
    split, statistics, images = seen(made, monkeypatch)
    effects = lesions(made, statistics, split, NUMBERS, draws=1)
    places = [layer.name for layer in made.recipe.layers if layer.reads == "both"]
    edges = {ALL: places} if len(places) > 1 else {}
    edges |= {place: [place] for place in places}
    assert [(one.place, one.what) for one in effects.towers] == [
        (edge, f"tower {name}") for edge in edges for name in "ab"
    ]
    assert [(one.place, one.what) for one in effects.links] == [
        (place, way) for place in places[:-1] for way in ("a->b", "b->a")
    ]
    monkeypatch.setattr(made.exchange, "chosen_overlap", False)
    gather, means = made.exchange.gather, {}

    def judged(off):
        """(error, loss) of the network's own forward pass. off(edge, source, reader): whether that is silenced."""

        def silenced(edge, outputs, readers):
            mean = means.setdefault(edge, [output.double().mean(0).float() for output in outputs])
            return [
                [
                    mean[source].expand_as(part).to(part.device) if off(edge, source, reader) else part
                    for source, part in enumerate(parts)
                ]
                for reader, parts in enumerate(gather(edge, outputs, readers))
            ]

        with monkeypatch.context() as patch, torch.inference_mode():
            patch.setattr(made.exchange, "gather", silenced)
            logs = made(*images).double().log_softmax(1).numpy()
        return 100 * (logs.argmax(1) != split.labels).mean(), -logs[NUMBERS, split.labels].mean()

    intact_scores = judged(lambda *way: False)

    def assert_same(one, off):
        error, loss = judged(off)
        assert one.error == pytest.approx(error) and one.loss == pytest.approx(
            loss - intact_scores[1], abs=1e-5 * intact_scores[1]
        )

    assert effects.n == 9 and effects.error == pytest.approx(intact_scores[0])
    for one in effects.towers:
        assert_same(one, lambda edge, source, _: edge in edges[one.place] and one.what[-1] == "ab"[source])
    for one in effects.links:
        assert_same(
            one, lambda edge, source, reader: (edge, f"{'ab'[source]}->{'ab'[reader]}") == (one.place, one.what)
        )
    every_one = [*effects.towers, *effects.links]
    assert [one.change.difference for one in every_one] == pytest.approx(
        [one.error - effects.error for one in every_one]
    )
    assert all(len(one.controls) == 1 for one in every_one) and len({one.loss for one in every_one}) > 1
    of_place = {one.place: one.error for one in effects.towers if one.what == "tower a"}
    for contrast, b in zip(effects.contrasts, effects.towers[1::2], strict=True):
        assert contrast.change.difference == pytest.approx(of_place[contrast.place] - b.error)


@every(
    "made", [small(), small(one_gpu), small(settings=["lrn_crosses=true"])], ids=["paper", "one tower", "lrn_crosses"]
)
def test_a_removed_kernel_is_a_map_at_its_mean(made, monkeypatch):
    split, statistics, images = seen(made, monkeypatch)
    effects = kernel_lesions(made, statistics, split, NUMBERS)
    towers = made.recipe.towers
    assert len(effects.kernels) == 4 * towers and (effects.p is None) == (towers == 1)
    compute = made.compute
    for number, kernel in enumerate(effects.kernels):
        tower, index = divmod(number, 4)
        assert kernel.what == f"kernel {index + 1} of tower {'ab'[tower]}"

        def without(layer, parts):
            outputs = compute(layer, parts)
            if layer.name == "conv1":
                outputs[tower] = outputs[tower].clone()
                outputs[tower][:, index] = outputs[tower][:, index].double().mean(0).float()
            return outputs

        with monkeypatch.context() as patch, torch.inference_mode():
            patch.setattr(made, "compute", without)
            logs = made(*images).double().log_softmax(1)
        loss = -logs[NUMBERS, split.labels].mean().item()
        with torch.inference_mode():
            intact_loss = -made(*images).double().log_softmax(1)[NUMBERS, split.labels].mean().item()
        assert kernel.loss == pytest.approx(loss - intact_loss, abs=1e-5 * intact_loss) and kernel.place == "conv2"
    losses = [effects.kernels[number].loss for number in effects.most_harmful_first]
    assert losses == sorted(losses, reverse=True) and losses[0] != losses[-1]
    assert bool(lesions(made, statistics, split, NUMBERS, draws=1).towers) == (towers == 2)
