"""Figure 3 of a whole claim: the first-layer kernels of all its runs, a row an arm, a column a seed."""

import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ..analysis.figure_3 import greyest_first, grid, pixels_of
from ..analysis.specialisation import DIVISION_LEVEL
from . import kept_answers
from .entries import is_divided, words

COLUMNS = 8  # kernels a row of a tower
SCALE = 2  # screen pixels a kernel pixel
GAP = 2  # screen pixels between kernels
APART = 18  # screen pixels between networks
LINE = 23  # screen pixels of a line of words
FONT = 18  # screen pixels: README shows such a picture at two thirds of its width
HEAD = (
    "p: the share of random deals of a network's kernels to two towers that lie as far apart in colour, hue, "
    f"orientation and frequency; divided: at most {DIVISION_LEVEL:g}; chroma p: as far apart in the share of chroma "
    "alone; halves: random halves that are divided. In each tower the greyest kernels come first."
)


def draw_kernels(record: dict, records: str | Path, path: Path) -> Path | None:
    """Write the picture of a record's first layers, and return its path; None if no run's kernels are kept.

    records: the folder beside whose records the kernels lie (`kept_answers`). In each network tower a is above tower b.
    Brightness goes from a network's smallest weight to its largest; in a tower the greyest kernels come first.
    """
    arms = {arm["name"]: arm["what"] for arm in record["arms"]}
    networks = {}
    for run in record["runs"]:
        kernels = kept_answers.first_layer(run, records)
        if kernels is not None and np.isfinite(kernels).all():
            networks.setdefault(run["arm"], {})[run["seed"]] = run, kernels
    if not networks:
        return None
    seeds = sorted({seed for runs in networks.values() for seed in runs})
    panels = {(arm, seed): _network(*runs[seed]) for arm, runs in networks.items() for seed in runs}
    width = max(panel.width for panel in panels.values())
    heights = {arm: max(panels[arm, seed].height for seed in networks[arm]) for arm in networks}
    span = APART + len(seeds) * (width + APART)
    head = textwrap.wrap(HEAD, span * 2 // FONT)
    sheet = Image.new(
        "RGB", (span, sum(height + LINE + APART for height in heights.values()) + 2 * APART + len(head) * LINE), "white"
    )
    pen, top = ImageDraw.Draw(sheet), APART // 2
    for line in head:
        pen.text((APART, top), line, fill="black", font_size=FONT)
        top += LINE
    top += APART // 2
    for arm in (arm for arm in arms if arm in networks):
        title = f"{words(arm)}, {arms[arm]}{_divisions_in_words([run for run, _ in networks[arm].values()])}"
        pen.text(
            (APART, top), textwrap.shorten(title, span * 2 // FONT, placeholder=" ..."), fill="black", font_size=FONT
        )
        for place, seed in enumerate(seeds):
            if seed in networks[arm]:
                sheet.paste(panels[arm, seed], (APART + place * (width + APART), top + LINE + 4))
        top += heights[arm] + LINE + APART
    # 256 colours take less than half of the room. This choice keeps the few saturated ones, which are what is shown.
    sheet.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE).save(path, optimize=True)
    return path


def _divisions_in_words(runs):
    tests = [run["division"] for run in runs if run.get("division")]
    return f": {sum(map(is_divided, tests))} of {len(tests)} divided" if tests else ""


def _network(run, kernels):
    """A network's panel: its lines of words, and its towers' kernels."""
    shares = run.get("chroma", [])  # of a network with two towers
    towers = len(shares) or 1
    cell = kernels.shape[-1] * SCALE + GAP
    a_tower = len(kernels) // towers
    rows = -(-a_tower // COLUMNS)
    labels = [f"tower {'ab'[tower]}, chroma {share:.2f}" for tower, share in enumerate(shares)]
    labels = labels or ["halves: {} of {}".format(*run["halves"]) if "halves" in run else ""]
    p, chroma_p = (run.get("division") or {}).get("p"), run.get("random_split_p")
    heads = [f"seed {run['seed']}" + (f", p = {p:.2g}" if p is not None else "")]
    heads += [f"chroma p = {chroma_p:.2g}"] if shares and chroma_p is not None else []
    panel = Image.new("RGB", (COLUMNS * cell, len(heads) * LINE + towers * (rows * cell + LINE)), "white")
    pen, pixels = ImageDraw.Draw(panel), pixels_of(kernels)
    for number, head in enumerate(heads):
        pen.text((0, number * LINE), head, fill="black", font_size=FONT)
    for tower in range(towers):
        top = len(heads) * LINE + tower * (rows * cell + LINE)
        pen.text((0, top), labels[tower], fill="black", font_size=FONT)
        kernels_of_tower = greyest_first(kernels, np.arange(tower * a_tower, (tower + 1) * a_tower))
        tiles = grid(pixels[kernels_of_tower], COLUMNS, SCALE, GAP)
        panel.paste(tiles, (0, top + LINE), tiles)
    return panel
