"""Kinds of claims about what trained networks are: averaged, sampled by dropout, divided between the towers."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..analysis.figures import TOWER_COLOURS
from ..analysis.hypothesis_tests import paired, wilson
from ..analysis.specialisation import DIVISION_LEVEL, MEASURES
from ..data.dataset import evenly
from ..data.image_files import pipeline_of
from ..data.pipeline import Pipeline
from ..evaluation import dropout_masks
from ..evaluation.protocol import centre_view
from ..network.network import TwoTowerAlexNet
from ..recipes.recipe import Recipe
from ..system.errors import UserError
from ..system.terminal import progress
from . import drawing, sentences
from .entries import averaged, ended, error, fields, is_divided, words
from .kind import AnyRun, Kind, PlannedRun
from .outcome import Outcome
from .sentences import n_and_p, signed, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEMBERS = 5  # networks of the first arm in an ensemble


class Ensemble(Kind):
    """Several networks averaged: five of the first arm, and two pre-trained ones if there are other arms."""

    word = "ensemble"
    tests = 2  # a member is tested alone and in the average

    def turn(self, number: int, runs_of_seed: Callable[[int], list[AnyRun]]) -> tuple[list[AnyRun], list[AnyRun]]:
        """An ensemble; no two of them share a network."""
        fives = [runs_of_seed(seed)[0] for seed in range(MEMBERS * number, MEMBERS * number + MEMBERS)]
        other_arms = [runs_of_seed(seed)[1:] for seed in range(2 * number, 2 * number + 2)]
        twos = [runs for runs in other_arms if runs]
        return [*fives, *(run for runs in twos for run in runs)], [*fives, *(runs[-1] for runs in twos)]

    def turn_of(self, seed: int) -> int:
        return max(1, seed // MEMBERS) if seed else 0  # no network of the ensemble that is repeated

    def findings(self, record: dict, arms: Sequence[str]) -> list[str | None]:
        """An average of five against its members' mean; one of seven against one of its first five."""
        ensembles = record["ensembles"]
        if not ensembles:
            return []
        name, shown_fields, lines = averaged(ensembles[0]["errors"]), fields(record), []
        for what, key in (
            ("averaged plainly", "errors"),
            ("averaged with weights chosen on the validation images, tested on these same images", "weighted"),
        ):
            if "five" in ensembles[0]:
                reference = [ensemble["five"][key][name] for ensemble in ensembles]
                baseline = "the average of five of them, "
            else:
                members = [
                    [run["errors"][name] for run in record["runs"] if run["directory"] in ensemble["members"]]
                    for ensemble in ensembles
                ]
                reference = [
                    {field: mean(errors[field] for errors in group) for field in shown_fields} for group in members
                ]
                baseline = "their mean of "
            before, after = (
                [[errors[field] for errors in group] for field in shown_fields]
                for group in (reference, [ensemble[key][name] for ensemble in ensembles])
            )
            tests = [paired(*pair) for pair in zip(before, after)]
            level = " / ".join(f"{mean(values):.2f}" for values in before)
            points = " / ".join(signed(test) for test in tests)
            lines.append(
                f"{len(ensembles[0]['members'])} networks {what}: {points} points "
                f"against {baseline}{level} % ({name}), {n_and_p(tests[0])}"
            )
        return lines

    def outcomes(self, record: dict, arms: Sequence[str]) -> list[Outcome]:
        """Of five networks: the average's error minus each member's; of seven: minus the average of the first five.

        Of several ensembles of five there is one number each, minus its members' mean.
        """
        values, ensembles = [], record["ensembles"]
        for ensemble in ensembles:
            average = error(ensemble)
            if "five" in ensemble:
                values.append(average - error(ensemble["five"]))
                continue
            names = {Path(member).name for member in ensemble["members"]}
            members = [error(run) for run in record["runs"] if Path(run["directory"]).name in names]
            values += (
                [average - each for each in members] if len(ensembles) == 1 else [average - float(np.mean(members))]
            )
        seven = any("five" in ensemble for ensemble in ensembles)
        what = "the average of seven minus the average of five" if seven else "the average minus its members"
        return [Outcome(what, tuple(values), one_average=len(ensembles) == 1 and not seven)]

    def figure(self, axes: "Axes", record: dict, colours: Mapping[str, str]) -> None:
        """The networks that are averaged as points, their averages as lines; all networks where none were averaged."""
        members = {member for ensemble in record["ensembles"] for member in ensemble["members"]}
        runs = [run for run in record["runs"] if run["directory"] in members or not members]
        drawing.errors(axes, record | {"runs": runs}, colours, paired=False)
        for part in (part for ensemble in record["ensembles"] for part in (ensemble.get("five"), ensemble) if part):
            size = len(part["members"])
            for key, colour, what in (("errors", "black", ""), ("weighted", drawing.COLOURS[4], ", weighted")):
                label = f"average of {size}{what}"
                axes.axhline(
                    error({"errors": part[key]}),
                    color=colour,
                    linestyle="--" if size <= 5 else "-",
                    label=None if label in axes.get_legend_handles_labels()[1] else label,
                )


class Masks(Kind):
    """The network against the geometric mean of those that dropout samples of it."""

    word = "masks"
    asks_for = "masks"
    judged = False

    def refuse(self, claim_id: str, recipe: Recipe) -> None:
        if not (recipe.dropout and any("dropout" in layer.then for layer in recipe.layers)):
            raise UserError(f"{claim_id}: this network has no dropout, so there is nothing to compare")

    def passes(self, pictures: int) -> int:
        return (1 + dropout_masks.MASKS) * min(pictures, dropout_masks.PICTURES)

    def measure(self, run: PlannedRun, open_network: Callable[[], tuple[TwoTowerAlexNet, Pipeline]]) -> dict:
        """`dropout_masks.compare`, on validation pictures spread over all of them, centre view."""
        network, pipeline = open_network()
        split, size = pipeline.dataset.splits["val"], run.recipe.batch_size
        numbers = evenly(len(split), dropout_masks.PICTURES)
        given_pipeline = pipeline_of(
            [split.read(int(number)) for number in numbers],
            network.recipe,
            network.exchange.devices,
            pipeline.statistics,
        )
        with closing(given_pipeline.views("given", size, centre_view(run.recipe))) as batches:
            parts = [towers for (towers,), _ in batches]
        images = [torch.cat([towers[place] for towers in parts]) for place in range(run.recipe.towers)]
        labels = torch.from_numpy(np.asarray(split.labels)[numbers])
        with progress(f"masks of {run.directory.name}", dropout_masks.MASKS, "masks") as advance:
            return {"masks": dropout_masks.compare(network, images, labels, advance=advance)}

    def findings(self, record: dict, arms: Sequence[str]) -> list[str | None]:
        runs = [run["masks"] for run in ended(record, arms[0]) if "masks" in run]
        if not runs:
            return []
        of = {key: [run[key] for run in runs] for key in runs[0]}
        return [
            f"top-1 error on {runs[0]['images']:,} validation pictures, centre view: {spread(of['halved'])} % of the "
            f"network with outputs times one minus dropout, {spread(of['geometric'])} % of the geometric mean of "
            f"{runs[0]['masks']} sampled networks ({spread(of['arithmetic'])} % of their arithmetic mean), "
            f"{spread(of['one_mask'])} % of one of them; the first two agree on {spread(of['agree'], 1)} % of the "
            f"pictures, {spread(of['divergence'], 4)} nats apart (two halves of the masks {spread(of['noise'], 4)}, "
            f"one sampled network {spread(of['one_mask_divergence'], 3)}), n = {len(runs)}"
        ]


class Towers(Kind):
    """Whether the towers' first-layer kernels differ: in networks with links, without, and in halves of one tower."""

    word = "towers"
    shows_kernels = True

    def refuse(self, claim_id: str, recipe: Recipe) -> None:
        if recipe.towers == 1:
            raise UserError(f"{claim_id}: this network has one tower, so there is nothing to compare")

    def findings(self, record: dict, arms: Sequence[str]) -> list[str | None]:
        """In how many runs of each arm the towers differ; then what the arms' errors are against the first's."""
        errors = [
            sentence
            for arm in arms[1:]
            for sentence in (sentences.difference(record, arms[0], arm), sentences.beside(record, arms[0], arm))
        ]
        return [*(_division(record, arm) for arm in arms), *errors]

    def seed_by_seed(self, record: dict) -> list[dict[str, str]]:
        """Of every network with two towers: the test of all features, and each by itself, corrected by Holm's rule."""
        runs = [run for arm in record["arms"] for run in ended(record, arm["name"]) if "division" in run]
        return [_of_seed(run) for run in runs]

    def figure(self, axes: "Axes", record: dict, colours: Mapping[str, str]) -> None:
        """Each run's two shares of chroma, and p of their difference by itself; the arms one after the other."""
        runs = [run for arm in colours for run in record["runs"] if run["arm"] == arm and "chroma" in run]
        for number, run in enumerate(runs):
            axes.plot([number] * 2, run["chroma"], color=drawing.FAINT, zorder=0)
            p = run["random_split_p"]
            y = max(run["chroma"]) + 0.12  # of both points, which may be one
            drawing.beside(axes, "noise" if p is None else f"p = {p:.2g}", number - 0.3, y, len(runs))
        for tower, colour in enumerate(TOWER_COLOURS) if runs else ():
            axes.plot(
                range(len(runs)),
                [run["chroma"][tower] for run in runs],
                "o",
                color=colour,
                label=f"tower {'ab'[tower]}",
            )
        several = len({run["arm"] for run in runs}) > 1
        drawing.name_columns(
            axes, [f"{words(run['arm'])}, seed {run['seed']}" if several else f"seed {run['seed']}" for run in runs]
        )
        axes.set(ylabel="share of chroma in the first layer's energy", ylim=(0, 1))


def _division(record, arm):
    """In how many runs the towers' kernels differ, by one test of all features, and their shares of chroma."""
    runs = [run for run in ended(record, arm) if "chroma" in run]
    if not runs:
        return _halves(record, arm)
    distance = spread([abs(run["chroma"][0] - run["chroma"][1]) for run in runs])
    tests = [run["division"] for run in runs if "division" in run]
    if not tests:  # a record of an older version
        shares = ", ".join(
            f"{run['chroma'][0]:.2f} / {run['chroma'][1]:.2f} (p = {run['random_split_p']:.2g})" for run in runs
        )
        return (
            f"share of chroma in the kernels' energy, tower a / b: {shares}; {distance} apart, n = {len(runs)}; "
            "p: the share of random halves of the kernels that are as far apart"
        )
    count = sum(map(is_divided, tests))
    low, high = wilson(count, len(tests))
    p_values = ", ".join("too few kernels" if test["p"] is None else f"{test['p']:.2g}" for test in tests)
    return (
        f"{words(arm)}: the towers' kernels differ in {count} of {len(tests)} runs (95 % interval {100 * low:.0f} to "
        f"{100 * high:.0f} %; colour, hue, orientation and frequency in one test, p = {p_values}, counted at "
        f"{DIVISION_LEVEL:g}); the shares of chroma in their energy lie {distance} apart, n = {len(runs)}"
    )


def _of_seed(run):
    division = run["division"]
    tests = {name: division["measures"].get(name, {}).get("holm_p") for name in MEASURES}
    return {
        "network, seed": f"{words(run['arm'])}, {run['seed']}",
        "distance": "too few kernels" if division["distance"] is None else f"{division['distance']:.2f}",
        "p": _p(division["p"]),
        "chroma of a / b (p)": "{:.2f} / {:.2f} ({:.2g})".format(*run["chroma"], run["random_split_p"]),
        **{f"{name}, Holm's p": _p(p) for name, p in tests.items()},
    }


def _p(p):
    return "" if p is None else f"{p:.2g}"


def _halves(record, arm):
    """Of one tower: how many random halves of its kernels meet the criterion."""
    halves = [run["halves"] for run in ended(record, arm) if "halves" in run]
    if not halves:
        return None
    hits, splits = (sum(values) for values in zip(*halves))
    return f"{words(arm)}: random halves of its kernels differ as much in {hits} of {splits} splits, n = {len(halves)}"
