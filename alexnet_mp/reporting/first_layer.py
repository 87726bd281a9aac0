"""The report's parts about the first layer: figure 3 by GPU, and how far the towers differ, in one run and over
several."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from ..analysis.figure_3 import kernel_tiles
from ..analysis.figures import FEWEST, PANELS, draw_specialisation, left_out, write_figure
from ..analysis.first_layer import kernel_statistics
from ..analysis.specialisation import DIVISION_LEVEL, appearance, appearance_by_chance, chroma_shares, tower_differences
from ..retrieval.contact_sheet import png
from ..system import durable_files
from . import page

COLUMNS = 8  # kernels a row: two towers stand side by side, and a telephone still shows each kernel
WORDS = {
    "colourfulness": "colourfulness",
    "selectivity": "orientation selectivity",
    "frequency": "spatial frequency",
    "orientation": "preferred orientation",
    "phase": "phase",
}  # of the measures in `specialisation.MEASURES`

SCALES = {
    "layer": "one scale for both towers, from the smallest weight to the largest",
    "tower": "one scale a tower, from its smallest weight to its largest, as in 2012",
    "kernel": "each kernel by itself: mean 0, variance 1, then one scale",
}


def figure_3(
    out: Path, kernels: np.ndarray, towers: int, scale: Literal["layer", "tower", "kernel"], by_colour: bool
) -> page.Part:
    """The `Part` with every kernel. kernels: (maps of all towers, 3, k, k). scale, by_colour: see `kernel_tiles`."""
    entries, shares = [], chroma_shares(kernels, towers)
    for tower, image in zip("ab", kernel_tiles(kernels, towers, scale, by_colour, COLUMNS)):
        path = out / f"figure3_{tower}.png"
        durable_files.replace(path, png(image))
        count = len(kernels) // towers
        what = f"tower {tower}: {count} kernel{'s' * (count > 1)}, {kernels.shape[2]}x{kernels.shape[3]}x3"
        caption = f"T{what[1:]}; share of chroma {shares['ab'.index(tower)]:.2f}"
        entries.append((path, f"First-layer kernels of {what}", caption))
    return page.Part(
        "figure3",
        "The kernels of each GPU (figure 3)",
        [
            page.text(
                "What the first layer's kernels learned, tower by tower. In the paper's figure, the kernels of one "
                "GPU are "
                "largely colour-agnostic and those of the other largely colour-specific, in every run."
            ),
            page.panels(entries, crisp=True),
            page.why(
                f"Brightness: {SCALES[scale]}." + (" Inside a tower from grey to colourful." if by_colour else "")
            ),
        ],
    )


def specialisation(
    out: Path,
    kernels: np.ndarray,
    towers: int,
    runs: Mapping[str, tuple[np.ndarray, int, bool]],
    descriptions: Mapping[str, list[str]],
) -> page.Part:
    """The `Part` with the kernels measured, the towers compared, and the runs counted.

    kernels: of the run that is shown. runs: {name: (kernels, towers, linked)} of all runs, that one among them;
    descriptions: {name: [recipe, seed, step, data]} of them."""
    statistics = kernel_statistics(kernels)
    differences = tower_differences(statistics) if towers == 2 else None
    figures = draw_specialisation(statistics, towers, differences)
    paths = {
        measure: write_figure(figure, out / f"specialisation_{measure}.png") for measure, figure in figures.items()
    }
    pieces = [
        page.text(
            "Each kernel is measured on the combination of its colour channels that has the most energy. A kernel's "
            "colourfulness is the share of its energy that is not grey."
        ),
        page.panels(
            (path, "Each kernel" if measure == "each" else f"{PANELS[measure][0]} of the kernels, by tower")
            for measure, path in paths.items()
        ),
    ]
    if names := [PANELS[measure][0].partition(",")[0].lower() for measure in left_out(statistics)]:
        pieces.append(page.why(f"Left out, with fewer than {FEWEST} such kernels: {', '.join(names)}."))
    if differences:
        rows = [
            [
                WORDS[name],
                f"{difference.n[0]} / {difference.n[1]}",
                difference.effect_size,
                _effect(difference),
                _or_dash(difference.by_chance, ".2f"),
                _or_dash(difference.p, ".2g"),
                _or_dash(difference.holm_p, ".2g"),
            ]
            for name, difference in differences.items()
        ]
        pieces += [
            page.heading("Tower a against tower b, this run"),
            page.table(["measure", "kernels a / b", "effect size", "effect", "by chance", "p", "p, Holm"], rows),
            page.why(
                "Cliff's delta: above 0 where tower a has the larger values. By chance: the median size of the "
                "effect when the kernels are dealt to the towers at random. p: the share of 10,000 such deals that "
                "are as far apart, in the effect or, of orientation and phase, in Watson's U\N{SUPERSCRIPT TWO}, which "
                "sees more differences than Kuiper's V does; Holm: corrected for the five measures."
            ),
        ]
    return page.Part("specialisation", "Specialisation, measured", pieces + _over_runs(runs, descriptions))


def _over_runs(runs, descriptions):
    linked, unlinked, single = (
        {name: kernels for name, (kernels, *kind) in runs.items() if is_it(*kind)}
        for is_it in (
            lambda towers, linked: towers == 2 and linked,
            lambda towers, linked: towers == 2 and not linked,
            lambda towers, linked: towers == 1,
        )
    )
    rows, run_rows = [], []
    for networks, kernels in (("two towers with links", linked), ("two towers without links (control)", unlinked)):
        if kernels:
            tally = appearance(kernels)
            rows.append(
                [
                    networks,
                    f"{tally.n}",
                    f"{tally.count}",
                    _interval(tally),
                    f"{tally.colour_in_b} of {tally.count}" if tally.count else "-",
                ]
            )
            run_rows += [
                [
                    halves.run,
                    *(f"{share:.2f}" for share in halves.chroma),
                    f"{halves.p:.2g}",
                    "yes" if halves.specialised else "no",
                    *descriptions[halves.run],
                ]
                for halves in tally.halves
            ]
    if single:
        tally = appearance_by_chance(single)
        rows.append(
            [
                "one tower, its kernels split at random (control)",
                f"{tally.n} splits of {len(single)}",
                f"{tally.count}",
                _interval(tally),
                "-",
            ]
        )
        run_rows += [[name, "-", "-", "-", "-", *descriptions[name]] for name in single]
    pieces = [
        page.heading("Over the runs"),
        page.text(
            "A run counts as specialised where the towers' shares of chroma are farther apart than those of all but "
            f"{100 * DIVISION_LEVEL:g} % of random halves of the same kernels. Which tower has the colours doesn't "
            "matter."
        ),
        page.table(["networks", "n", "specialised", "95 % interval of the share", "colours in tower b"], rows),
    ]
    if run_rows:
        pieces.append(
            page.table(["run", "chroma a", "chroma b", "p", "specialised", "recipe", "seed", "step", "data"], run_rows)
        )
    if len({(recipe, step, data) for recipe, _, step, data in descriptions.values()}) > 1:
        pieces.append(page.why("These runs differ in more than their seeds: see recipe, step and data."))
    if len(linked) == 1:
        pieces.append(
            page.why(
                "One run says nothing about how often; name several, with different seeds. Runs of one tower, and "
                "runs without links, are taken as controls."
            )
        )
    return pieces


def _effect(difference):
    return _or_dash(difference.effect, "+.2f" if difference.effect_size == "Cliff's delta" else ".2f")


def _or_dash(value, form):
    return "-" if value is None else format(value, form)


def _interval(tally):
    return f"{100 * tally.interval[0]:.0f} to {100 * tally.interval[1]:.0f} %"
