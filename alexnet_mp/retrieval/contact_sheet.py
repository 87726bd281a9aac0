"""Figure 4, right: a query in the first column, the pictures nearest to it beside it, as one image."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

SIDE = 144  # screen pixels a picture
GAP, TEXT, LINE = 8, 40, 13  # screen pixels: between pictures, below each, a line
LINE_LETTERS = 22  # of a line, at most
INK, PALE = "#202020", "#e4e4e4"


def contact_sheet(rows: Sequence[Sequence[tuple[np.ndarray | None, Sequence[str]]]]) -> Image.Image:
    """One image. rows: of each query, (picture (n, n, 3) uint8 or None, lines of text), the query's first."""
    columns = max(map(len, rows))
    image = Image.new("RGB", (GAP + columns * (SIDE + GAP) + GAP, GAP + len(rows) * (SIDE + TEXT + GAP)), "white")
    pen = ImageDraw.Draw(image)
    for row, cells in enumerate(rows):
        for column, (picture, lines) in enumerate(cells):
            left, top = GAP + column * (SIDE + GAP) + GAP * (column > 0), GAP + row * (SIDE + TEXT + GAP)
            if picture is None:
                pen.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), fill=PALE)
                pen.text((left + SIDE / 2, top + SIDE / 2), "picture missing", fill=INK, anchor="mm", font_size=12)
            else:
                image.paste(
                    Image.fromarray(np.asarray(picture)).resize((SIDE, SIDE), Image.Resampling.BICUBIC), (left, top)
                )
            for number, line in enumerate(lines):
                pen.text((left, top + SIDE + 2 + number * LINE), shortened(line), fill=INK, font_size=11)
    line = GAP + SIDE + GAP  # between the query and what was found
    pen.line((line, GAP, line, image.height - GAP), fill=INK)
    return image


def shortened(text: str) -> str:
    """At most `LINE_LETTERS` letters: of a longer text the end, which tells files apart."""
    return text if len(text) <= LINE_LETTERS else "..." + text[3 - LINE_LETTERS :]


def png(image: Image.Image) -> bytes:
    """The bytes of a PNG, the same for the same image."""
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()
