"""Lines over steps as the live page draws them: numbers in, places of an SVG out; no library, a millisecond a chart."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Of the drawing, in its own units. At the width of a telephone they are nearly pixels, so that the letters can be read.
WIDTH, HEIGHT = 400, 230
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 12, 30


@dataclass(frozen=True)
class Line:
    """One line: its name, its class in the style sheet, and its points (x, y), which are all finite."""

    name: str
    style: str
    points: Sequence[tuple[float, float]]


def chart(title: str, lines: Sequence[Line], high: float | None = None, falls: Sequence[float] = ()) -> dict:
    """What the template draws: {"title", "said", "lines", "x_ticks", "y_ticks", "falls", and the sizes}. Lines without
    a point are left out.

    y goes from 0 to `high`, or to what the largest value needs; x from 0 to the last step. falls: steps at which a
    dotted line stands. said: for who can't see it, the last value of each line."""
    lines = [line for line in lines if line.points]
    last = max((x for line in lines for x, _ in line.points), default=1) or 1
    maximum = high or max((y for line in lines for _, y in line.points), default=1) or 1
    y_ticks = ticks(maximum, 5)
    top = high or y_ticks[-1]

    def place(x, y):
        across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        return round(LEFT + across * x / last, 1), round(TOP + down * (1 - min(max(y / top, 0), 1)), 1)

    return {
        "title": title,
        "said": ", ".join(f"{line.name} {line.points[-1][1]:,.4g}" for line in lines),
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "top": TOP,
        "bottom": HEIGHT - BOTTOM,
        "lines": [
            {
                "name": line.name,
                "style": line.style,
                "points": " ".join(f"{x:g},{y:g}" for x, y in (place(*point) for point in line.points)),
                "dots": [place(*point) for point in line.points] if len(line.points) <= 30 else [],
            }
            for line in lines
        ],
        "x_ticks": [(place(step, 0)[0], f"{step:,.6g}") for step in ticks(last, 4) if step <= last],
        "y_ticks": [(place(0, value)[1], f"{value:,.6g}") for value in y_ticks if value <= top],
        "falls": [place(step, 0)[0] for step in falls if 0 < step < last],
    }


def ticks(most: float, count: int) -> list[float]:
    """0 and the multiples of 1, 2 or 5 times a power of ten up to the first that is not below `most`: some `count`."""
    power = 10 ** math.floor(math.log10(most / count))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power * count >= most)
    return [number * step for number in range(math.ceil(most / step - 1e-9) + 1)]
