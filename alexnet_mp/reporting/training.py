"""The report's training part: loss and both errors against epochs, where rates fell, the gap between training and
validation."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from ..analysis.figures import PANEL, mark_drops, write_figure
from ..analysis.learning_curves import drops
from ..evaluation.accuracy import percent, top5_tells
from ..recipes.recipe import Recipe
from . import page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAINING, VALIDATION = "#0072b2", "#d55e00"  # Okabe and Ito's blue and vermilion: told apart by the colour-blind
ALT = "Loss of training and validation against epochs", "Errors of training and validation against epochs"


def training(out: Path, lines: Sequence[dict], recipe: Recipe, classes: int) -> page.Part:
    """The `Part` of a run's `metrics.jsonl`. lines: of `sound_metrics`; classes: how many."""
    epochs = epochs_of(lines)
    if not epochs:
        return page.Part("training", "Training", [page.text("The run has no step that was recorded.")])
    paths = [
        write_figure(figure, out / f"training_{name}.png") for name, figure in draw_training(lines, classes).items()
    ]
    last_epoch, epoch_and_gap, steps = epochs[-1], gap(epochs), sum(line["kind"] == "train" for line in lines)
    words = (
        f"{steps:,} step{'s' * (steps > 1)}, into epoch {last_epoch['epoch']} of {recipe.epochs}; batch size "
        f"{recipe.batch_size}, "
        f"seed {recipe.seed}. In the last of these epochs the training loss was {last_epoch['loss']:.3f} and the "
        "training error "
        f"{last_epoch['top1_error']:.2f} % top-1, with dropout and augmentation."
    )
    if epoch_and_gap is not None:
        words += (
            f" Validation minus training error, top-1, at epoch {epoch_and_gap[0]}: {epoch_and_gap[1]:+.2f} points; "
            "validation is measured after the epoch, training is the mean over it."
        )
    pieces = [page.text(words), page.panels(zip(paths, ALT))]
    columns = 4 if top5_tells(classes) else 3
    tests = [
        [line["protocol"], f"{line['images']:,}"]
        + [percent(line[error], line["images"]) for error in ("top1_error", "top5_error")][: columns - 2]
        for line in lines
        if line["kind"] == "test"
    ]
    if tests:
        pieces.append(page.table(["test at the end", "images", "top-1 error", "top-5 error"][:columns], tests))
    return page.Part("training", "Training", pieces)


def epochs_of(lines: Sequence[dict]) -> list[dict]:
    """What a run's lines say of each epoch, first to last.

    {"epoch", "loss", "top1_error"}: means over the epoch's steps, with dropout and augmentation, so higher than the
    same images would have in a test. {"val_loss", "val_top1_error", "val_top5_error"} where it was validated after it:
    the centre view."""
    by_epoch = {}
    for line in lines:
        if line["kind"] == "train":
            by_epoch.setdefault(line["epoch"], {"losses": [], "errors": []})
            by_epoch[line["epoch"]]["losses"].append(line["loss"])
            by_epoch[line["epoch"]]["errors"].append(line["top1_error"])
    for line in lines:
        if line["kind"] == "val" and line["epoch"] in by_epoch:
            by_epoch[line["epoch"]] |= {f"val_{name}": line[name] for name in ("loss", "top1_error", "top5_error")}
    return [
        {"epoch": epoch, "loss": mean(entry.pop("losses")), "top1_error": mean(entry.pop("errors")), **entry}
        for epoch, entry in sorted(by_epoch.items())
    ]


def gap(epochs: Sequence[dict]) -> tuple[int, float] | None:
    """(epoch, validation minus training top-1 error in points) of the last epoch that was validated; None where none
    was.

    Below 0 for a network that dropout and augmentation hold back in training.
    """
    validations = [entry for entry in epochs if "val_top1_error" in entry]
    return (
        (validations[-1]["epoch"], validations[-1]["val_top1_error"] - validations[-1]["top1_error"])
        if validations
        else None
    )


def draw_training(lines: Sequence[dict], classes: int) -> "dict[str, Figure]":
    """Draw a run's lines: {"loss": the loss, "errors": top-1 and top-5 error}, both against epochs."""
    # Imported late: it takes a second. The object interface draws without a display and without global state.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    epochs = epochs_of(lines)
    figures = {
        name: Figure(figsize=(PANEL[0], 3.5), layout="constrained", facecolor="white") for name in ("loss", "errors")
    }
    loss, error = (figure.subplots() for figure in figures.values())
    x = [entry["epoch"] for entry in epochs]
    validations = [entry for entry in epochs if "val_loss" in entry]
    loss.plot(x, [entry["loss"] for entry in epochs], "o-", color=TRAINING, markersize=3, label="training")
    loss.axhline(
        math.log(classes), color="#777777", linestyle="--", linewidth=0.8, label=f"ln({classes}), all classes alike"
    )
    error.plot(
        x, [entry["top1_error"] for entry in epochs], "o-", color=TRAINING, markersize=3, label="top-1, training"
    )
    for axes, name, style, label in (
        (loss, "val_loss", "s-", "validation, centre view"),
        (error, "val_top1_error", "s-", "top-1, validation"),
        (error, "val_top5_error", "^--", "top-5, validation"),
    )[: 3 if top5_tells(classes) else 2]:
        axes.plot(
            [entry["epoch"] for entry in validations],
            [entry[name] for entry in validations],
            style,
            color=VALIDATION,
            markersize=3,
            label=label,
        )
    drop_epochs = drops(lines)
    for axes in (loss, error):
        mark_drops(axes, [epoch - 0.5 for epoch in drop_epochs])
        axes.set(xlabel="epoch", xlim=(0.5, max([*x, 1]) + 0.5))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        # Below the axes, so that it hides no curve.
        axes.figure.legend(
            loc="outside lower center", ncols=2, frameon=False, fontsize=9, columnspacing=1, handlelength=1.6
        )
    loss.set(ylabel="cross-entropy loss (nats)", ylim=(0, None))
    error.set(ylabel="error (%)", ylim=(0, 100))
    return figures
