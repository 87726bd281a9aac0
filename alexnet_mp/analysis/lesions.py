"""Lesions: what a network still gets right with a tower silenced, a link cut, or one kernel of the first layer removed
(`silencing.py` has what that means).

A tower is silenced where the towers meet: at one crossing, or at all of them, which leaves the other tower alone. A
link is one direction of one crossing: the tower that reads it doesn't see the other there. Beside each lesion stand
controls at the same place and of the same size: as many maps, drawn at random from both towers' maps together.

Tests. All lesions are made on the same pictures. So each is compared with the intact network, and tower a off with
tower b off, by McNemar's exact test over the pictures; p is corrected by Holm's rule for the number of comparisons. It
says whether other pictures would show the same in this network. Whether it takes a tower's own maps to show it, the
controls say: how many of them are at least as harmful."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..data.dataset import Split
from ..data.pixel_statistics import Statistics
from ..network.network import TwoTowerAlexNet
from .altered_pictures import intact
from .hypothesis_tests import Comparison, holm, mcnemar
from .random_deals import as_far_p, cliffs_delta, random_orders
from .silencing import judge_all, link_off, maps_read, meeting_layers, nothing_off, random_halves, tower_off

DRAWS = 20  # controls of a lesion
ALL = "all"  # the place of a lesion at every crossing, if there are several


@dataclass(frozen=True)
class Lesion:
    """One lesion and what it does."""

    place: str  # the layer that reads what is silenced, or `ALL`
    tower: int  # whose output is silenced
    reader: int | None  # the one tower that doesn't see it: a link that is cut; None: whoever reads it
    kernel: int | None  # the one map that is silenced; None: all of the tower's
    error: float  # top-1, % of the pictures
    change: Comparison  # of the intact network (a) and this one (b): `difference` is the rise of the error in points
    holm_p: float  # of `change`, corrected for the number of lesions: of towers and links, or of kernels
    loss: float  # by how much the mean loss rises, nats
    controls: tuple[float, ...] = ()  # top-1 errors of random halves at the same place, %

    @property
    def what(self) -> str:
        """In words: "tower a", "b->a", "kernel 7 of tower b", counted from 1."""
        if self.reader is not None:
            return f"{'ab'[self.tower]}->{'ab'[self.reader]}"
        return (
            f"tower {'ab'[self.tower]}"
            if self.kernel is None
            else f"kernel {self.kernel + 1} of tower {'ab'[self.tower]}"
        )

    @property
    def as_harmful(self) -> int:
        """How many controls have at least as large an error."""
        return sum(control >= self.error for control in self.controls)


@dataclass(frozen=True)
class Contrast:
    """Tower a off against tower b off, at one place."""

    place: str
    change: Comparison  # of tower b off (a) and tower a off (b): above 0 where tower a is needed more
    holm_p: float  # corrected for the number of places


@dataclass(frozen=True)
class Lesions:
    """Of one network: `lesions`."""

    n: int  # pictures
    error: float  # of the intact network, top-1, %
    towers: tuple[Lesion, ...]  # place by place, tower a, then tower b; none of one tower
    links: tuple[Lesion, ...]
    contrasts: tuple[Contrast, ...]


@dataclass(frozen=True)
class KernelLesions:
    """Of one network: `kernel_lesions`."""

    n: int  # pictures
    error: float  # of the intact network, top-1, %
    kernels: tuple[Lesion, ...]  # of all towers, tower a's first
    # Cliff's delta of the rises of the loss, above 0 where tower a's kernels are needed more, and its p among random
    # deals of the kernels to the towers; None of one tower
    delta: float | None
    p: float | None

    @property
    def most_harmful_first(self) -> list[int]:
        """The kernels' numbers, by how much the loss rises: it tells more of few pictures than the error does."""
        return [int(number) for number in np.argsort([-kernel.loss for kernel in self.kernels], kind="stable")]


def lesions(
    network: TwoTowerAlexNet,
    statistics: Statistics,
    split: Split,
    numbers: np.ndarray,
    draws: int = DRAWS,
    seed: int = 0,
    advance: Callable[[int], None] = lambda pictures: None,
) -> Lesions:
    """The `Lesions` of a network in test mode, on the labelled pictures `numbers` of a split.

    statistics: of its run. draws: controls of a lesion, drawn by `seed`. advance(n) is called for every n pictures."""
    recipe, places = network.recipe, meeting_layers(network.recipe)
    everywhere = {ALL: places} if len(places) > 1 else {}
    everywhere |= {place: [place] for place in places}
    plans = [
        ((place, tower, None, None), tower_off(recipe, tower, names))
        for place, names in everywhere.items()
        for tower in (0, 1)
    ]
    towers = len(plans)
    plans += [
        ((layer.name, source, reader, None), link_off(recipe, source, reader, [layer.name]))
        for layer in recipe.layers
        if layer.name in places and layer.towers == "each"  # the one link into the last layer: cut, tower b is off
        for source, reader in ((0, 1), (1, 0))
    ]
    halves = {place: random_halves(2, maps_read(recipe, place), draws, seed) for place in places}
    sorts = list(dict.fromkeys((place, reader) for (place, _, reader, _), _ in plans))  # of controls, `draws` of each
    controls = [
        {name: _seen_by(halves[name][draw], reader) for name in everywhere[place]}
        for place, reader in sorts
        for draw in range(draws)
    ]
    offs = [{}, *(off for _, off in plans), *controls]
    judgement = judge_all(network, statistics, split, numbers, {"intact": intact}, offs, advance)["intact"]
    of_controls = np.reshape(_errors(judgement.right[1 + len(plans) :]), (len(sorts), draws))
    effects = _lesions(
        [way for way, _ in plans],
        judgement,
        [of_controls[sorts.index((place, reader))] for (place, _, reader, _), _ in plans],
    )
    changes = [mcnemar(judgement.right[number + 2], judgement.right[number + 1]) for number in range(0, towers, 2)]
    contrasts = map(Contrast, everywhere, changes, holm([change.p for change in changes]))
    return Lesions(len(numbers), _errors(judgement.right)[0], effects[:towers], effects[towers:], tuple(contrasts))


def kernel_lesions(
    network: TwoTowerAlexNet,
    statistics: Statistics,
    split: Split,
    numbers: np.ndarray,
    advance: Callable[[int], None] = lambda pictures: None,
) -> KernelLesions:
    """The `KernelLesions` of a network in test mode: the map of one kernel of the first layer at its mean, each in
    turn. Arguments as of `lesions`."""
    recipe = network.recipe
    reader, maps = recipe.layers[1].name, maps_read(recipe, recipe.layers[1].name)
    places = [(tower, kernel) for tower in range(recipe.towers) for kernel in range(maps)]
    offs = []
    for tower, kernel in places:
        off = nothing_off(recipe, reader)
        off[:, tower, kernel] = True
        offs.append({reader: off})
    judgement = judge_all(network, statistics, split, numbers, {"intact": intact}, [{}, *offs], advance)["intact"]
    effects = _lesions([(reader, tower, None, kernel) for tower, kernel in places], judgement)
    delta = p = None
    if recipe.towers == 2:
        deltas = cliffs_delta(
            np.array([effect.loss for effect in effects]), random_orders(2 * maps, 10_000, 0)[:, :maps]
        )
        delta, p = float(deltas[0]), as_far_p(np.abs(deltas))
    return KernelLesions(len(numbers), _errors(judgement.right)[0], effects, delta, p)


def _seen_by(half, reader):
    """`half`, (towers, maps) bool, silenced for one reader, or for both: (towers, towers, maps)."""
    off = np.zeros((2, *half.shape), bool)
    off[slice(None) if reader is None else reader] = half
    return off


def _errors(right):
    return [float(error) for error in 100 - 100 * right.mean(1)]


def _lesions(ways, judgement, controls=None):
    """`Lesion`s of the rows 1, ... of a `Judged`; row 0 is the intact network. ways: their first four fields."""
    changes = [mcnemar(judgement.right[0], right) for right in judgement.right[1 : 1 + len(ways)]]
    corrected_p, errors, losses = (
        holm([change.p for change in changes]),
        _errors(judgement.right)[1:],
        judgement.loss.mean(1),
    )
    return tuple(
        Lesion(
            *way,
            errors[number],
            changes[number],
            corrected_p[number],
            float(losses[1 + number] - losses[0]),
            tuple(map(float, controls[number])) if controls else (),
        )
        for number, way in enumerate(ways)
    )
