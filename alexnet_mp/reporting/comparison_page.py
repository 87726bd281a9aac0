"""The page of a comparison: what differs, curves of all runs together, errors, kernels."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..analysis.figure_3 import kernel_tiles
from ..analysis.figures import PANEL, write_figure
from ..analysis.hypothesis_tests import told_p
from ..analysis.specialisation import first_layer
from ..evaluation.accuracy import top5_tells
from ..retrieval.contact_sheet import png
from ..system import durable_files
from ..system.errors import UserError
from ..system.terminal import printable
from . import page
from .comparison import ComparedRun, differences, grouped, interval, paired_errors
from .first_layer import COLUMNS
from .headline import chroma_fact
from .training import epochs_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's, told apart by the colour-blind, and after them once more dashed, and dotted: a line for each of 20.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
STYLES = ("-", "--", ":")
MOST_RUNS = 20
LEGEND_LETTERS = 55  # that fit into a line of a chart


def parts(out: Path, runs: Sequence[ComparedRun]) -> list[page.Part]:
    """The parts of the page; pictures are written into `out`."""
    return [_runs(runs), _differences(runs), _curves(out, runs), _errors(runs), _kernels(out, runs)]


def _numbered_names(runs):
    return [f"{number}: {run.name}" for number, run in enumerate(runs, 1)]


def _runs(runs):
    elsewhere = any(run.directory != run.name for run in runs)
    rows = [
        [
            name,
            run.recipe.name,
            str(run.recipe.seed),
            f"{run.step:,}",
            str(run.described.get("started"))[:16].replace("T", " "),
            *([run.directory] if elsewhere else []),
        ]
        for name, run in zip(_numbered_names(runs), runs)
    ]
    names = ["run", "recipe", "seed", "step", "started", *(["directory"] if elsewhere else [])]
    return page.Part("runs", "The runs", [page.table(names, rows, numbers=False)])


def _differences(runs):
    pieces = [page.why("After a value stand the numbers of the runs that have it.")]
    for part, fields in differences(runs).items():
        pieces.append(page.heading(part.capitalize()))
        if fields:
            pieces.append(page.groups([(name, grouped(values)) for name, values in fields.items()]))
        else:
            pieces.append(page.text("The same in all of these runs."))
    return page.Part("differences", "What differs", pieces)


def _curves(out, runs):
    runs_with_epochs = [run for run in runs if epochs_of(run.lines)]
    if not runs_with_epochs:
        return page.Part("curves", "Curves", [page.text("None of these runs has a step that was recorded.")])
    charts = [(write_figure(figure, out / f"{name}.png"), words) for name, words, figure in draw_curves(runs)]
    pieces = [page.panels(charts)]
    missing_names = [name for name, run in zip(_numbered_names(runs), runs) if run not in runs_with_epochs]
    words = "Training loss: the mean over an epoch's steps, with dropout and augmentation. Validation: the centre view."
    if missing_names:
        words += f" Without a step that was recorded: {', '.join(missing_names)}."
    return page.Part("curves", "Curves", [*pieces, page.why(words)])


def draw_curves(runs: Sequence[ComparedRun]) -> "list[tuple[str, str, Figure]]":
    """Draw a line a run against epochs: [(name, in words, Figure)] of the training loss and the top-1 validation
    error."""
    # Imported late: it takes a second. The object interface draws without a display and without global state.
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    names = [printable(name) for name in _numbered_names(runs)]
    columns = max(1, min(3, LEGEND_LETTERS // (max(map(len, names)) + 8)))
    rows = -(-len(names) // columns)
    loss_figure, error_figure = figures = [
        Figure(figsize=(PANEL[0], PANEL[1] + 0.2 * rows), layout="constrained", facecolor="white") for _ in range(2)
    ]
    loss, error = loss_figure.subplots(), error_figure.subplots()
    handles = []
    for number, run in enumerate(runs):
        look = {"color": COLOURS[number % len(COLOURS)], "linestyle": STYLES[number // len(COLOURS) % len(STYLES)]}
        epochs = epochs_of(run.lines)
        validations = [entry for entry in epochs if "val_top1_error" in entry]
        for axes, entries, field in ((loss, epochs, "loss"), (error, validations, "val_top1_error")):
            x, y = [entry["epoch"] for entry in entries], [entry[field] for entry in entries]
            axes.plot(x, y, marker="o", markersize=3, **look)
        handles.append(Line2D([], [], marker="o", markersize=3, **look))
    for axes in (loss, error):
        axes.set(xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    loss.set(ylabel="training loss (nats)", ylim=(0, None))
    error.set(ylabel="top-1 validation error (%)", ylim=(0, 100))
    for figure in figures:
        legend = figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5)
        for words in legend.get_texts():
            words.set_parse_math(False)  # a name may hold dollars
    return [
        ("loss", "Training loss of all runs against epochs", loss_figure),
        ("error", "Top-1 validation error of all runs against epochs", error_figure),
    ]


def _errors(runs):
    rows = []
    for name, run in zip(_numbered_names(runs), runs):
        for line in run.errors():
            cells = []
            for k in (1, 5):
                error = line[f"top{k}_error"]
                low, high = interval(error, line["images"])
                cells += (
                    [f"{error:.2f} %", f"{low:.2f} to {high:.2f}"] if k == 1 or top5_tells(run.classes) else ["-"] * 2
                )
            rows.append([name, line["protocol"], f"{line['images']:,}", f"{line['step']:,}", *cells])
    pieces = []
    if rows:
        names = ["run", "protocol", "images", "step", "top-1 error", "95 % interval", "top-5 error", "95 % interval"]
        pieces += [page.table(names, rows), page.why("Validation images. The intervals are Wilson's, over images.")]
    if untested_names := [name for name, run in zip(_numbered_names(runs), runs) if not run.errors()]:
        pieces.append(page.text(f"Not tested yet: {', '.join(untested_names)}."))
    pairs, reasons = paired_errors(runs)
    numbers = {run.name: number for number, run in enumerate(runs, 1)}
    if pairs:
        rows = [
            [
                f"run {numbers[pair.b]} minus run {numbers[pair.a]}",
                f"{pair.change.difference:+.2f}",
                f"{pair.change.interval[0]:+.2f} to {pair.change.interval[1]:+.2f}",
                f"{pair.change.only_b:,} / {pair.change.only_a:,}",
                f"{pair.change.n:,}, {pair.protocol}",
                told_p(pair.change.p),
                told_p(pair.holm_p),
            ]
            for pair in pairs
        ]
        names = ["top-1 error", "points", "95 % interval", "alone right, first / second", "images", "p", "p, Holm"]
        pieces += [
            page.heading("Over the same images"),
            page.table(names, rows),
            page.why(
                "p: McNemar's exact test over the images that one of the two alone has right; Holm: corrected for the "
                f"{len(pairs)} pair{'s' * (len(pairs) > 1)}. Both are of these networks and of images like these: "
                "other seeds make other networks, and only several runs of each recipe tell recipes apart."
            ),
        ]
    if reasons:
        pieces += [page.heading("Not compared image by image"), *map(page.text, reasons)]
    return page.Part("errors", "Errors", pieces)


def _kernels(out, runs):
    pieces = [page.text("Each network's first layer by tower, each network in a scale of brightness of its own.")]
    for number, (name, run) in enumerate(zip(_numbered_names(runs), runs), 1):
        try:
            kernels, towers = first_layer(run.directory)
            if not np.isfinite(kernels).all():
                raise UserError("not all weights of its first layer are finite numbers")
        except UserError as error:
            pieces.append(page.text(f"{name}: {error}"))
            continue
        fact, panels = chroma_fact(kernels, towers), []
        for tower, image in zip("ab", kernel_tiles(kernels, towers, columns=COLUMNS)):
            path = out / f"kernels_{number:02}_{tower}.png"
            durable_files.replace(path, png(image))
            words = f"Tower {tower}" if towers > 1 else "Its one tower"
            panels.append((path, f"First-layer kernels of {name}, tower {tower}", words))
        words = f"{fact.name[:1].upper()}{fact.name[1:]}: {fact.value}{f'; {fact.note}' if fact.note else ''}."
        pieces += [page.heading(name), page.why(words), page.panels(panels, crisp=True)]
    return page.Part("kernels", "Kernels", pieces)
