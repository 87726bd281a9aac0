"""Figure 3 as it grows: a strip of moments that stands still, the same moments as an animation, and chroma against
steps.

The pictures are transparent between their kernels, with words in a grey that is read on light and on dark."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from ..data.dataset import evenly
from .figure_3 import grid, pixels_of
from .figures import NARROW, TOWER_COLOURS
from .growth import Growth, Moment

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_ROWS = 6  # moments of the strip
MOST_FRAMES = 40  # of the animation
COLUMNS = 8  # kernels of a tower a row
KERNEL = 24, 36  # screen pixels of a kernel's side, about: of the strip, of the animation
GAP, BETWEEN, LINE = 2, 14, 20  # screen pixels: between kernels, between towers, of a line of words
WORDS = "#767676"  # contrast 4.5 with white, 4 with a page's dark paper
TITLE_LETTERS = 44  # of the chart's title
SECONDS, LAST_FRAME = 6.0, 1500  # of the animation, about; milliseconds that its last frame stays longer


def strip(moments: Sequence[Moment]) -> Image.Image:
    """At most `MOST_ROWS` moments from top to bottom, tower a's kernels left, tower b's right, each moment in its own
    scale from the smallest weight of both towers to the largest; RGBA."""
    sample = [moments[place] for place in evenly(len(moments), MOST_ROWS)]
    rows = [_moment(moment, KERNEL[0]) for moment in sample]
    image = Image.new("RGBA", (rows[0].width, sum(row.height for row in rows) + BETWEEN * (len(rows) - 1)))
    top = 0
    for row in rows:
        image.paste(row, (0, top))
        top += row.height + BETWEEN
    return image


def animation(moments: Sequence[Moment]) -> bytes:
    """At most `MOST_FRAMES` moments, one after the other without end, as an animated PNG: the same bytes for the same
    moments."""
    sample = [moments[place] for place in evenly(len(moments), MOST_FRAMES)]
    first_frame, *other_frames = [_moment(moment, KERNEL[1]) for moment in sample]
    duration = round(1000 * SECONDS / len(sample))
    content = io.BytesIO()
    durations = [*[duration] * len(other_frames), duration + LAST_FRAME]
    first_frame.save(content, "PNG", save_all=True, append_images=other_frames, duration=durations, loop=0, blend=0)
    return content.getvalue()


def _moment(moment, side):
    """One moment: a line of words over each tower, and its kernels."""
    towers, (maps, _, k, _) = len(moment.chroma), moment.kernels.shape
    scale, a_tower = max(1, round(side / k)), maps // towers
    tiles = [grid(pixels, min(COLUMNS, a_tower), scale, GAP) for pixels in np.split(pixels_of(moment.kernels), towers)]
    names = [f"step {moment.step:,}: {moment.chroma[0]:.2f}", *(f"{share:.2f}" for share in moment.chroma[1:])]
    pen = ImageDraw.Draw(Image.new("RGBA", (1, 1)))
    # as wide for every step below ten million: frames and rows fit each other
    width = max(tiles[0].width, int(pen.textlength("step 9,999,999: 0.00", font_size=13)) + 1)
    image = Image.new("RGBA", (towers * width + (towers - 1) * BETWEEN, LINE + tiles[0].height))
    pen = ImageDraw.Draw(image)
    for tower, name in enumerate(names):
        left = tower * (width + BETWEEN)
        pen.text((left, 0), name, fill=WORDS, font_size=13)
        image.paste(tiles[tower], (left, LINE))
    return image


def draw_growth(growth: Growth, title: str) -> "Figure":
    """The towers' shares of chroma against steps as a matplotlib Figure; points are full at the moments that are
    divided, and a dotted line stands where the division begins."""
    # Imported late: it takes a second. The object interface draws without a display and without global state.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(NARROW, 3.2), layout="constrained", facecolor="white")
    axes, steps = figure.subplots(), [moment.step for moment in growth.moments]
    for tower, (colour, marker) in enumerate(zip(TOWER_COLOURS, "o^")):
        if tower < len(growth.moments[0].chroma):
            shares = np.array([moment.chroma[tower] for moment in growth.moments])
            axes.plot(steps, shares, color=colour, linewidth=1.2, label=f"tower {'ab'[tower]}")
            for divided, fill in ((True, colour), (False, "white")):
                at = [place for place, moment in enumerate(growth.moments) if moment.divided == divided]
                axes.plot(np.array(steps)[at], shares[at], marker, color=colour, markerfacecolor=fill, markersize=4.5)
    if growth.begins is not None:
        axes.axvline(growth.begins, color="black", linestyle=":", linewidth=0.9, label="the division begins")
    axes.set(xlabel="step", ylabel="share of chroma", ylim=(0, 1))
    # The end of a run's name has its seed.
    short_title = title if len(title) <= TITLE_LETTERS else f"...{title[3 - TITLE_LETTERS :]}"
    axes.set_title(short_title, fontsize=9.5, parse_math=False)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(alpha=0.3)
    look = {"frameon": False, "fontsize": 9, "columnspacing": 1, "handlelength": 1.6}  # else wider than the figure
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, **look)
    return figure
