"""The report's part on how alike the two towers see: CKA layer by layer, before and after each crossing, against random
halves, untrained weights, towers of other seeds, and over training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..analysis.figures import NARROW, write_figure
from ..analysis.hypothesis_tests import shown_p
from ..analysis.layer_outputs import links
from ..analysis.random_deals import MOST_NETWORKS
from ..analysis.similarity import (
    DEALT_PICTURES,
    FEWEST,
    GROUPS,
    Alike,
    Estimate,
    Representation,
    across,
    alike,
    changes_at_crossings,
    dealt,
    own_cka,
    represent,
)
from ..analysis.specialisation import DIVISION_LEVEL
from ..data.image_files import pipeline_of
from ..data.pixel_statistics import Statistics
from ..evaluation.trained import load_run
from ..network.network import TwoTowerAlexNet
from ..recipes.recipe import Recipe
from ..runs import checkpoints
from ..runs.checkpoint_format import load_weights, read_state
from ..system.errors import UserError
from ..system.terminal import printable
from . import page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PART = "similarity", "Do the towers see alike?"
MOST_CHECKPOINTS = 5  # before the newest
OWN, UNTRAINED, OTHERS, CONTROL = "#d55e00", "#777777", "#0072b2", "#009e73"  # Okabe and Ito
LAYERS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


@dataclass(frozen=True)
class Pictures:
    """What all networks see."""

    stored: Sequence[np.ndarray]  # (S, S, 3) uint8
    of: str  # the split's name
    batch_size: int

    def seen_by(self, network: TwoTowerAlexNet, statistics: Statistics, with_maps: bool = False) -> Representation:
        """Their `Representation` in a network in test mode."""
        pipeline = pipeline_of(self.stored, network.recipe, network.exchange.devices, statistics)
        return represent(network, pipeline, "given", self.batch_size, with_maps)


def similarity(
    out: Path,
    run: str,
    step: int,
    network: TwoTowerAlexNet,
    statistics: Statistics,
    others: Mapping[str, str],
    pictures: Pictures,
    gpus: str,
    kernels: str,
) -> page.Part:
    """The `Part` of a run's network after `step` steps, in test mode; others: {name: directory} of the runs beside it,
    of which those of two towers and pictures of the same size are compared with it."""
    recipe = network.recipe
    if recipe.towers == 1:
        return _part(page.text("This network has one tower: there is nothing to compare."))
    if len(pictures.stored) < FEWEST:
        return _part(
            page.text(f"Of {len(pictures.stored)} pictures nothing is said; {FEWEST} of {pictures.of} would do.")
        )
    try:
        own_representation = pictures.seen_by(network, statistics, with_maps=True)
    except ValueError as error:
        return _part(page.text(f"The network diverged and has nothing to compare: {error}."))
    likenesses, deals = alike(own_representation), dealt(own_representation)
    initial_network = TwoTowerAlexNet(recipe, network.exchange.devices, network.classes, network.kernels).eval()
    initial_cka = own_cka(pictures.seen_by(initial_network, statistics))
    representations, reasons = _of_others(others, recipe, pictures, gpus, kernels)
    linked = bool(links(recipe))
    peers = [own_representation, *(other for other, has_links in representations.values() if has_links == linked)]
    controls = [other for other, has_links in representations.values() if has_links != linked]
    pieces = [
        page.text(
            "How alike the two towers see the same pictures: linear CKA, 1 where one tower says what the other says, "
            "turned and scaled, about 0 where they say unrelated things. The estimate is unbiased. "
            f"{own_representation.pictures} pictures of {pictures.of}, centre view, each layer's output after its "
            "pooling."
        ),
        page.text(_verdict(deals)),
    ]
    comparisons = across(peers) if len(peers) > 1 else []
    lines = {"as drawn, untrained": (_values(initial_cka), UNTRAINED, "s:")}
    if comparisons:
        lines["towers of different runs"] = ({each.layer: each.others for each in comparisons}, OTHERS, "^--")
    if controls:
        lines[_kind(not linked)] = (_mean(controls), CONTROL, "D-.")
    path = write_figure(_draw(likenesses, recipe, lines), out / "similarity.png")
    pieces += [
        page.image(path, "CKA of the two towers layer by layer, with the crossings between"),
        _layers(likenesses, deals, lines),
        *_crossings(changes_at_crossings(own_representation, recipe)),
        *_across(comparisons, len(peers)),
        *_over_training(out, run, step, initial_network, statistics, pictures, initial_cka, likenesses),
        page.why(
            f"Intervals, 95 %: jackknife over {GROUPS} groups of pictures. The first p: the share of 1,000 orders in "
            "which the pictures of tower b were dealt at random with a CKA as large. Random halves: the maps of both "
            "towers dealt at random, 1,000 times, at layers whose towers read the same; their p: the share that is as "
            "little alike as the towers. Holm: corrected for the layers, or for the crossings. Both tests on "
            f"{DEALT_PICTURES} of the pictures at most."
        ),
    ]
    if reasons:
        pieces.append(page.why(f"Not compared: {'; '.join(map(printable, reasons))}."))
    return _part(*pieces)


def _part(*pieces):
    return page.Part(*PART, list(pieces))


def _kind(linked):
    return "towers with links" if linked else "towers without links"


def _of_others(others, recipe, pictures, gpus, kernels):
    """({name: (`Representation`, whether its towers have links)}, why others are left out)."""
    representations, reasons = {}, []
    for name, directory in others.items():
        network, training = load_run(directory, gpus, kernels)
        if network.recipe.towers == 1:
            reasons.append(f"{name}, one tower")
        elif network.recipe.stored_size != recipe.stored_size:
            reasons.append(f"{name}, pictures of another size")
        elif len(representations) == MOST_NETWORKS - 1:
            reasons.append(f"{name}, the {MOST_NETWORKS + 1}th network or a later one")
        else:
            try:
                representations[name] = pictures.seen_by(network, training.statistics), bool(links(network.recipe))
            except ValueError as error:
                reasons.append(f"{name}, {error}")
    return representations, reasons


def _values(estimates: Mapping[str, Estimate]) -> dict[str, float]:
    return {layer: estimate.value for layer, estimate in estimates.items()}


def _mean(networks):
    """{layer: mean CKA of the two towers of each network}, of layers that all have."""
    curves = [_values(own_cka(network)) for network in networks]
    layers = [layer for layer in curves[0] if all(layer in curve for curve in curves)]
    return {layer: float(np.mean([curve[layer] for curve in curves])) for layer in layers}


def _verdict(deals):
    divisions = [each for each in deals if each.holm_p <= DIVISION_LEVEL]
    if not deals:
        return "No layer's maps could be dealt at random."
    if not divisions:
        return (
            f"At {_words([each.layer for each in deals])}, whose towers read the same, they are no less alike than "
            f"random halves of their maps (the smallest corrected p is {min(each.holm_p for each in deals):.2g}): "
            "by this test no division is seen."
        )
    layers = _words(
        [
            f"{each.layer} ({each.own:.2f}; halves {each.halves[1]:.2f}, corrected p {each.holm_p:.2g})"
            for each in divisions
        ]
    )
    return f"Less alike than random halves of the maps of both are the towers at {layers}."


def _words(names):
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]


def _layers(likenesses, deals, lines):
    by_layer, rows = {each.layer: each for each in deals}, []
    for each in likenesses:
        halves = by_layer.get(each.layer)
        rows.append(
            [
                each.layer,
                _estimate(each.cka),
                _p(each.holm_p),
                f"{halves.halves[1]:.2f} ({halves.halves[0]:.2f} to {halves.halves[2]:.2f})" if halves else "-",
                f"{halves.holm_p:.2g}" if halves else "-",
                *(f"{values[each.layer]:.2f}" if each.layer in values else "-" for values, *_ in lines.values()),
            ]
        )
    names = ["layer", "CKA of the towers", "p, Holm", "random halves (5 to 95 %)", "their p, Holm", *lines]
    return page.table(names, rows)


def _crossings(crossings):
    if not crossings:
        return [page.text("No layer of both towers reads both: there is no crossing to compare across.")]
    rows = [
        [f"{each.before} to {each.after}", _estimate(each.change, "+.3f"), *map(_p, (each.change.p, each.holm_p))]
        for each in crossings
    ]
    return [
        page.heading("Before and after each crossing"),
        page.table(["crossing", "change of CKA", "p", "p, Holm"], rows),
    ]


def _across(comparisons, count):
    if not comparisons:
        return [
            page.why("One such run says nothing about seeds; name several, and towers of different runs are compared.")
        ]
    rows = [
        [each.layer, f"{each.own:.2f}", f"{each.others:.2f}", *map(_p, (each.p, each.holm_p))] for each in comparisons
    ]
    return [
        page.heading("Two towers of one run, and of different runs"),
        page.table([f"mean CKA, {count} runs", "towers of a run", "of different runs", "p", "p, Holm"], rows),
        page.why(
            "p: the share of all ways to put the towers of all runs into pairs whose mean is as far from that of all "
            "ways; it can be no smaller than 1/3 with two runs, 1/15 with three, 1/105 with four, 1/945 with five."
        ),
    ]


def _p(value):
    return "-" if value is None else shown_p(value)


def _over_training(out, run, last_step, network, statistics, pictures, initial_cka, likenesses):
    """A chart, and a column a checkpoint up to `last_step`, of which `likenesses` are: the run may have gone on since.
    network: any of the recipe, whose weights are replaced."""
    history = [("as drawn", 0, initial_cka)]
    places = [(step, place) for step, place in checkpoints.listing(run).items() if step < last_step]
    for step, place in places[-MOST_CHECKPOINTS:]:
        try:
            if read_state(place).recipe.layers != network.recipe.layers:
                continue
            network.load_merged(load_weights(place))
            history.append((f"step {step:,}", step, own_cka(pictures.seen_by(network, statistics))))
        except (UserError, ValueError):  # removed by the run meanwhile, or damaged: `checkpoint` tells
            continue
    if len(history) == 1:
        return [page.why("The run has one checkpoint: over training there is nothing more to compare.")]
    history.append(("newest", last_step, {each.layer: each.cka for each in likenesses if each.cka}))
    layers = [each.layer for each in likenesses]
    figure = _draw_training([(step, of_step) for _, step, of_step in history], layers)
    path = write_figure(figure, out / "similarity_training.png")
    rows = [[layer, *(_estimate(of_step.get(layer)) for *_, of_step in history)] for layer in layers]
    return [
        page.heading("Over training"),
        page.image(path, "CKA of the two towers against steps, a line a layer, with its interval as a band"),
        page.table(["CKA of the towers", *(name for name, *_ in history)], rows),
    ]


def _estimate(estimate, form=".2f"):
    if estimate is None:
        return "-"
    return f"{estimate.value:{form}} ({estimate.interval[0]:{form}} to {estimate.interval[1]:{form}})".replace(
        "-", "\N{MINUS SIGN}"
    )


def _draw_training(history: Sequence[tuple[int, Mapping[str, Estimate]]], layers: Sequence[str]) -> "Figure":
    """CKA against steps, a line a layer; history: [(step, {layer: `Estimate`})], as drawn at 0."""
    # Imported late: it takes a second. The object interface draws without a display and without global state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(NARROW, 3.6), layout="constrained", facecolor="white")
    axes = figure.subplots()
    for number, layer in enumerate(layers):
        points = [(step, of_step[layer]) for step, of_step in history if layer in of_step]
        if not points:
            continue
        steps, estimates = zip(*points)
        look = {"color": LAYERS[number % len(LAYERS)], "marker": "os^Dv<>"[number % 7]}
        axes.plot(steps, [estimate.value for estimate in estimates], markersize=4, linewidth=1.2, label=layer, **look)
        axes.fill_between(
            steps, *zip(*(estimate.interval for estimate in estimates)), color=look["color"], alpha=0.2, linewidth=0
        )
    axes.set(xlabel="step", ylabel="CKA", ylim=(min(-0.05, axes.get_ylim()[0]), 1.02))
    axes.set_title("Likeness of the two towers over training", fontsize=9.5)
    axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8.5)
    return figure


def _draw(
    likenesses: Sequence[Alike], recipe: Recipe, lines: Mapping[str, tuple[Mapping[str, float], str, str]]
) -> "Figure":
    """CKA against layers, with intervals; lines: {name: ({layer: CKA}, colour, style)} of what it is compared with."""
    # Imported late: it takes a second. The object interface draws without a display and without global state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(NARROW, 3.6), layout="constrained", facecolor="white")
    axes, names = figure.subplots(), [each.layer for each in likenesses]
    points = [(place, each.cka) for place, each in enumerate(likenesses) if each.cka]
    axes.errorbar(
        [place for place, _ in points],
        [estimate.value for _, estimate in points],
        np.array([estimate.interval[1] - estimate.value for _, estimate in points]),
        fmt="o-",
        color=OWN,
        markersize=4.5,
        capsize=3,
        label="the towers of this run",
    )
    for name, (values, colour, style) in lines.items():
        places = [place for place, layer in enumerate(names) if layer in values]
        axes.plot(
            places,
            [values[names[place]] for place in places],
            style,
            color=colour,
            markersize=4,
            linewidth=1.1,
            label=name,
        )
    reads_both = [
        place
        for place, name in enumerate(names)
        if place and any(layer.name == name and layer.reads == "both" for layer in recipe.layers)
    ]
    for number, place in enumerate(reads_both):
        label = None if number else "a crossing"
        axes.axvline(place - 0.5, color="black", linestyle=":", linewidth=0.9, label=label)
    axes.set_xticks(range(len(names)), names)
    axes.set(ylabel="CKA", ylim=(min(-0.05, axes.get_ylim()[0]), 1.02))
    axes.set_title("Likeness of the two towers, layer by layer", fontsize=9.5)
    axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=8.5)
    return figure
