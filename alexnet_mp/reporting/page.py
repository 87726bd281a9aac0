"""The report's page: parts made of a few kinds of pieces, pictures embedded, everything from outside escaped.

One file that loads nothing: it can be sent by mail, and works without scripts. `page.html` is its template,
`style.html` what all pages look like. It is light or dark as its reader's system is, and so is a chart that has a dark
one beside it (`figures.write_figure`)."""

import base64
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from ..analysis.figures import DENSITY_KEY
from ..analysis.themes import dark_of
from ..retrieval.contact_sheet import SIDE, png
from ..system import durable_files
from ..system.errors import UserError
from ..system.terminal import printable

NAME = "index.html"
TEMPLATES = Path(__file__).parent
MADE_BY = '<meta name="generator" content="alexnet_mp.report">'
MOST_BYTES = 1 << 30  # of a page
BICUBIC = Image.Resampling.BICUBIC
LEAST = 0.7  # of a chart's width: smaller, its labels couldn't be read; so 440 pixels fit on a telephone


@dataclass(frozen=True)
class Part:
    """One part of the page: its anchor, its heading, and its pieces in order, made by the functions below."""

    id: str
    heading: str
    pieces: list


@dataclass(frozen=True)
class Fact:
    """One box of the headline: what was measured, its value, and a note in small letters."""

    name: str
    value: str
    note: str = ""


def text(words: str) -> dict:
    return {"kind": "text", "text": words}


def heading(words: str) -> dict:
    return {"kind": "heading", "text": words}


def why(words: str) -> dict:
    """A remark in smaller letters."""
    return {"kind": "why", "text": words}


def code(words: str) -> dict:
    """Lines that are shown as they are."""
    return {"kind": "code", "text": words}


def table(names: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = True) -> dict:
    """names: of the columns; rows: lists of texts. numbers: all columns but the first are set to the right."""
    return {"kind": "table", "table": {"names": names, "rows": rows, "numbers": numbers}}


def groups(rows: Sequence[tuple[str, Sequence[tuple[str, str]]]]) -> dict:
    """What differs between several: [(name, [(value, who has it)])]; a row is as long as it has different values."""
    return {"kind": "groups", "rows": rows}


def image(path: Path, alt: str, caption: str = "", least: float = LEAST, crisp: bool = False) -> dict:
    """A picture's file, embedded, with the one for a dark page where that lies beside it (`themes.dark_of`). alt: what
    it shows, for who can't see it. crisp: its pixels are not smoothed.

    least: how much smaller it may be shown, as a share of its width; where there is less room it scrolls. Figures that
    should rather stand below each other on a telephone are `panels`.
    """
    return {"kind": "image", "image": _picture(path, alt, caption, least, crisp)}


def panels(entries: Iterable[tuple[Path, str] | tuple[Path, str, str]], crisp: bool = False) -> dict:
    """Charts side by side, as many as there is room for: [(path, alt)] or [(path, alt, caption)], see `image`."""
    return {
        "kind": "images",
        "layout": "panels",
        "images": [_picture(path, alt, "".join(caption), 0, crisp) for path, alt, *caption in entries],
    }


def images(entries: Iterable[tuple[Path, str]]) -> dict:
    """Small pictures side by side, in rows: [(path, alt)]."""
    return {"kind": "images", "layout": "row", "images": [_picture(path, alt, "", 0, False) for path, alt in entries]}


def tiles(path: Path, cells: Sequence[tuple[np.ndarray | None, Sequence[str]]]) -> dict:
    """Pictures with words below, the first one marked: [((n, n, 3) uint8 or None, lines)]. path: of a picture of them
    all beside the page."""
    entries = []
    for picture, lines in cells:
        content = b"" if picture is None else png(Image.fromarray(np.asarray(picture)).resize((SIDE, SIDE), BICUBIC))
        entries.append({"base64": base64.b64encode(content).decode(), "lines": list(lines)})
    return {"kind": "tiles", "row": {"file": Path(path).name, "side": SIDE, "cells": entries}}


def moving(path: Path, alt: str, caption: str = "", least: float = LEAST) -> dict:
    """An animated picture, which its reader can close and so stop; who asked the system for less motion is not shown
    it, so that what it shows has to be there as an `image`, too. Arguments as there."""
    return {"kind": "moving", "image": _picture(path, alt, caption, least, crisp=True)}


def network(drawing: dict) -> dict:
    """A part's drawing of the two towers and what crosses between them: `reporting.exchange.drawing`."""
    return {"kind": "network", "drawing": drawing}


def _picture(path, alt, caption, least, crisp):
    content, dark = Path(path).read_bytes(), dark_of(Path(path))
    with Image.open(io.BytesIO(content)) as picture:
        density = int(picture.info.get(DENSITY_KEY, 1))
        width, height = (side // density for side in picture.size)
    return {
        **_file(path, content),
        "dark": _file(dark, dark.read_bytes()) if dark.exists() else None,
        "width": width,
        "height": height,
        "least": round(least * width),
        "alt": alt,
        "caption": caption,
        "crisp": crisp,
    }


def _file(path, content):
    return {"file": Path(path).name, "base64": base64.b64encode(content).decode()}


def begin(path: Path) -> None:
    """Mark a directory as a report's before its first picture, so that an interrupted one is gone on with. A page stays
    as it is."""
    if not path.exists():
        durable_files.replace(
            path,
            f"<!doctype html>\n{MADE_BY}\n<title>A report</title>\n"
            "<p>It is being made, or was interrupted.</p>\n".encode(),
        )


def write(path: Path, title: str, summary: str, parts: Sequence[Part], headline: Sequence[Fact] = ()) -> None:
    """Render the page and write it, whole or not at all. Raises OSError where it can't be written.

    headline: the `Fact`s that stand first."""
    template = environment().get_template("page.html")
    content = template.render(title=title, summary=summary, parts=parts, headline=headline, made_by=Markup(MADE_BY))
    durable_files.replace(path, content.encode())


def environment() -> Environment:
    """Of the templates beside this file. What is filled in is escaped."""
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=_safe_text,
    )


def _safe_text(value):
    """Text without what is not seen or turns the direction of writing, which escaping for HTML leaves in."""
    if not isinstance(value, str) or isinstance(value, Markup) or value.isprintable():
        return value
    return "\n".join(map(printable, value.split("\n")))


def pictures_of(path: Path) -> set[str]:
    """The names of the pictures that a report's page shows, which lie beside it. UserError where the file is no
    report's."""
    content = durable_files.read(path, MOST_BYTES).decode(errors="replace")
    if MADE_BY not in content:
        raise UserError(f"{path} is there already and no report's; choose another --out")
    return set(re.findall(r'data-file="(\w+\.png)"', content))
