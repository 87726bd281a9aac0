"""A chart on a page that is light or dark: its colours on either, as a matplotlib Figure has them.

A Figure is drawn for a light page. On a dark one its greys change places, black with the page's ink, white with its
paper; a colour that would be too dark to be seen there becomes lighter and keeps its hue. Pictures in it stay."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rgb = tuple[float, float, float]  # 0 to 1


@dataclass(frozen=True)
class Theme:
    """The two colours that all others lie between; `style.html` has the same."""

    paper: str
    ink: str


LIGHT, DARK = Theme("#ffffff", "#1b1b1f"), Theme("#16161a", "#e8e8ee")
GREY = 0.12  # a colour whose channels differ by no more counts as a grey
KNOWN = {"#762a83": "#c2a5cf", "#1b7837": "#5aae61"}  # the towers' two, as in `style.html`
LEAST_CONTRAST = 5.0  # of a colour on dark paper; 3 is WCAG 2.2's least for what isn't text (1.4.11)
COLOURS = ("facecolor", "edgecolor", "color", "markerfacecolor", "markeredgecolor", "hatchcolor")  # of an artist


def dark_of(path: Path) -> Path:
    """Where a picture for a dark page lies beside that for a light one: curves.png, curves_dark.png."""
    return path.with_name(f"{path.stem}_dark{path.suffix}")


def on_dark(colour: Rgb) -> Rgb:
    """A colour of a light page as it is on a dark one."""
    if max(colour) - min(colour) <= GREY:
        white = sum(colour) / 3
        return tuple(white * a + (1 - white) * b for a, b in zip(rgb(DARK.paper), rgb(DARK.ink), strict=True))
    if counterpart := KNOWN.get("#" + "".join(f"{round(255 * channel):02x}" for channel in colour)):
        return rgb(counterpart)
    for white in range(100):
        tint = tuple(channel + (1 - channel) * white / 100 for channel in colour)
        if contrast(tint, rgb(DARK.paper)) >= LEAST_CONTRAST:
            return tint
    return (1.0, 1.0, 1.0)


def luminance(colour: Rgb) -> float:
    """Relative luminance of an sRGB colour, 0 to 1 (WCAG 2.2)."""
    linear = [channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4 for channel in colour]
    return sum(weight * channel for weight, channel in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: Rgb, other: Rgb) -> float:
    """Contrast ratio of two sRGB colours, 1 to 21 (WCAG 2.2)."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@contextmanager
def in_the_dark(figure: "Figure") -> Iterator[None]:
    """A Figure that was drawn once has the colours of a dark page meanwhile."""
    colours = []  # all of them first: a figure and its patch share theirs
    for artist in _artists(figure):
        for name in COLOURS:
            get, set_ = (getattr(artist, f"{what}_{name}", None) for what in ("get", "set"))
            if get and set_:
                colours.append((set_, get()))
    try:
        for set_, colour in colours:
            set_(_dark_colours(colour))
        yield
    finally:
        for set_, colour in colours:
            set_(colour)


def _artists(figure):
    """All of a figure, with arrows and boxes of text, which are nobody's children; but what has its colours from
    numbers."""
    for artist in figure.findobj():
        if getattr(artist, "get_array", lambda: None)() is None:
            yield artist
        for part in (getattr(artist, "arrow_patch", None), getattr(artist, "get_bbox_patch", lambda: None)()):
            if part is not None:
                yield part


def _dark_colours(colours: Any) -> Any:
    """A colour, or several, as matplotlib takes them."""
    from matplotlib.colors import to_rgba, to_rgba_array

    def dark_rgba(rgba):
        return (*on_dark(tuple(map(float, rgba[:3]))), float(rgba[3]))

    if isinstance(colours, str) and colours in ("none", "auto", "inherit", "face"):
        return colours
    try:
        return dark_rgba(to_rgba(colours))
    except ValueError:
        return [dark_rgba(rgba) for rgba in to_rgba_array(colours)]


def rgb(hexadecimal: str) -> Rgb:
    """Of "#1b1b1f"."""
    return tuple(int(hexadecimal[place : place + 2], 16) / 255 for place in (1, 3, 5))
