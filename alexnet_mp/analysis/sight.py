"""What a tower sees: errors of the whole network, and of what each tower sees alone, on altered pictures
(`altered_pictures.py`); and which classes lean on which tower.

"What tower a sees": tower b is silenced where the towers first meet (`silencing.py`), so that all later layers, those
of both towers, work with what tower a's first layers make of the picture. "Tower a alone": tower b is silenced at every
crossing. What is put in a silenced tower's place is its mean over the intact pictures, also on altered ones: it knows
nothing of them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..data.dataset import Split
from ..data.pixel_statistics import Statistics
from ..network.network import TwoTowerAlexNet
from .altered_pictures import ALTERATIONS, intact
from .hypothesis_tests import Comparison, holm, mcnemar, sign_flip_of_counts, sure_of
from .random_deals import as_far_p
from .silencing import Off, judge_all, maps_read, meeting_layers, random_halves, tower_off

DRAWS = 20  # random halves of the first layer
LEVEL = 0.05  # of both p-values of a `ColourDivision`
DEALS = 2_000  # of pictures to classes


@dataclass(frozen=True)
class Seen:
    """One sort of pictures."""

    pictures: str  # of `ALTERATIONS`
    n: int
    errors: dict[
        str, float
    ]  # {who: top-1, %}; who: "whole", and of two towers "a sees", "b sees", "a alone", "b alone"
    change: Comparison | None  # of what tower a sees (a) and what tower b sees (b)
    holm_p: float | None  # corrected for the number of sorts of pictures


@dataclass(frozen=True)
class ColourDivision:
    """Whether one tower sees brightness and the other colour: `colour_division`."""

    n: int  # pictures
    # {"grey", "colour alone": (of tower a, of tower b)}: of how many pictures, in %, the answer by what the tower sees
    # is the same as on the intact picture
    kept: dict[str, tuple[float, float]]
    # (a's on grey - b's on grey) - (a's on colour alone - b's on colour alone), in points: above 0 where tower a sees
    # brightness and tower b colour
    contrast: float
    p: float  # over pictures: exact sign-flip test
    halves: tuple[float, ...]  # the contrasts of random halves of the first layers' kernels
    p_halves: float  # the share of halves, the towers counted among them, whose contrast is as far from 0

    @property
    def divided(self) -> bool:
        """Whether it is farther from 0 than chance makes it, both that of the pictures and that of the kernels' deal:
        no p is above `LEVEL`."""
        return max(self.p, self.p_halves) <= LEVEL


@dataclass(frozen=True)
class Leaning:
    """One class: which tower it leans on."""

    label: int
    change: Comparison  # of what tower a sees (a) and what tower b sees (b): above 0 where it leans on tower a
    holm_p: float  # corrected for the number of classes


@dataclass(frozen=True)
class Leanings:
    """`class_leanings`."""

    n: int  # pictures
    classes: tuple[Leaning, ...]  # those that have a picture, in the order of their labels
    spread: float  # deviation of the classes' differences about their mean, in points
    by_chance: float  # its median where pictures are dealt to the classes at random
    p: float  # the share of such deals with as large a spread

    @property
    def most_first(self) -> list[Leaning]:
        """Those that surely lean most first, on whichever tower (`sure_of`): a class of one picture is not the first by
        leaning by 100 points."""
        return sorted(self.classes, key=lambda leaning: (-sure_of(leaning.change), leaning.label))


def sight(
    network: TwoTowerAlexNet,
    statistics: Statistics,
    split: Split,
    numbers: np.ndarray,
    advance: Callable[[int], None] = lambda pictures: None,
) -> tuple[Seen, ...]:
    """A `Seen` of each of `ALTERATIONS`, by a network in test mode on the labelled pictures `numbers` of a split.

    statistics: of its run. advance(n) is called for every n pictures. Of one tower only the whole is told."""
    recipe, places = network.recipe, meeting_layers(network.recipe)
    offs: dict[str, Off] = {"whole": {}}
    if places:
        offs |= {f"{'ab'[tower]} sees": tower_off(recipe, 1 - tower, places[:1]) for tower in (0, 1)}
    if len(places) > 1:
        offs |= {f"{'ab'[tower]} alone": tower_off(recipe, 1 - tower, places) for tower in (0, 1)}
    judgements = judge_all(network, statistics, split, numbers, ALTERATIONS, list(offs.values()), advance)
    changes = {name: mcnemar(*judgement.right[1:3]) if places else None for name, judgement in judgements.items()}
    corrected_p = holm([change and change.p for change in changes.values()])
    return tuple(
        Seen(name, len(numbers), dict(zip(offs, (100 - 100 * judgement.right.mean(1)).tolist())), changes[name], holm_p)
        for (name, judgement), holm_p in zip(judgements.items(), corrected_p)
    )


def colour_division(
    network: TwoTowerAlexNet,
    statistics: Statistics,
    split: Split,
    numbers: np.ndarray,
    draws: int = DRAWS,
    seed: int = 0,
    advance: Callable[[int], None] = lambda pictures: None,
) -> ColourDivision | None:
    """The `ColourDivision` of a network of two towers, None of one. Arguments as of `sight`.

    The answers need not be right, so neither labels nor a good network are needed; an answer that is always the same
    counts for nothing in the contrast. Here a tower sees alone where the maps of the other one's first layer are at
    their means. So it can be compared with kernels dealt at random: `draws` halves of both towers' first layers see
    alone, and so does the rest of each. In a network whose kernels are no more alike within a tower than between
    towers, the towers are one such deal, but for the second layers: one that reads its own tower alone hears all of its
    first layer or nothing, and half of it in a deal. Without that comparison most networks would count as divided: of
    100 small ones with random kernels 72 have p <= 0.05, and 3 p_halves <= 0.05 (`tests/analysis/test_sight.py`)."""
    recipe = network.recipe
    if recipe.towers == 1:
        return None
    name = recipe.layers[1].name
    maps = maps_read(recipe, name)
    tower_a = np.repeat([[[True], [False]]], maps, 2)  # (1, towers, maps)
    halves = np.concatenate([tower_a, random_halves(2, maps, draws, seed)])
    offs = [{name: np.broadcast_to(off, (2, 2, maps))} for half in halves for off in (~half, half)]
    sorts = {sort: ALTERATIONS[sort] for sort in ("intact", "grey", "colour alone")}
    judgements = judge_all(network, statistics, split, numbers, sorts, offs, advance)
    agreement = {
        name: (judgements[name].answers == judgements["intact"].answers).astype(np.int64)
        for name in ("grey", "colour alone")
    }
    margins = agreement["grey"] - agreement["colour alone"]  # (2 halves of each deal, N)
    differences = margins[::2] - margins[1::2]
    contrasts = 100 * differences.mean(1)
    return ColourDivision(
        len(numbers),
        {name: tuple((100 * matches[:2].mean(1)).tolist()) for name, matches in agreement.items()},
        float(contrasts[0]),
        sign_flip_of_counts(differences[0]),
        tuple(contrasts[1:].tolist()),
        as_far_p(np.abs(contrasts)),
    )


def class_leanings(
    network: TwoTowerAlexNet,
    statistics: Statistics,
    split: Split,
    numbers: np.ndarray,
    deals: int = DEALS,
    seed: int = 0,
    advance: Callable[[int], None] = lambda pictures: None,
) -> Leanings | None:
    """The `Leanings` of a network of two towers, None of one. Arguments as of `sight`.

    spread: the root of the mean over classes, weighted by their pictures, of (a class's difference - that of all
    pictures) ** 2; by chance it is not 0, since a class has few pictures."""
    places = meeting_layers(network.recipe)
    if not places:
        return None
    offs = [tower_off(network.recipe, tower, places[:1]) for tower in (1, 0)]
    right = judge_all(network, statistics, split, numbers, {"intact": intact}, offs, advance)["intact"].right
    labels = np.asarray(split.labels)[numbers]
    classes, places_of, counts = np.unique(labels, return_inverse=True, return_counts=True)
    changes = [mcnemar(*right[:, places_of == place]) for place in range(len(classes))]
    corrected_p = holm([change.p for change in changes])
    differences = right[0].astype(np.float64) - right[1]
    random, spreads = np.random.default_rng(seed), []
    for deal in range(1 + deals):
        means = np.bincount(places_of, differences if deal == 0 else random.permutation(differences)) / counts
        spreads.append(np.sqrt(np.average((means - differences.mean()) ** 2, weights=counts)))
    return Leanings(
        len(numbers),
        tuple(Leaning(int(label), *each) for label, *each in zip(classes, changes, corrected_p)),
        float(100 * spreads[0]),
        float(100 * np.median(spreads[1:])),
        as_far_p(np.array(spreads)),
    )
