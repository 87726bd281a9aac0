"""The file that ILSVRC-2012's test server took: a line an image, the numbers of its five most probable classes
(`txt-preds.py`).

The lines are in the order of the images' numbers, line 1 is ILSVRC2012_test_00000001; the numbers of the classes are
ILSVRC2012_ID, 1 to 1000, which is not the order of the wnids. A prepared set of ILSVRC knows both (`prepare
--unlabelled-test`)."""

import re
from collections.abc import Sequence

import torch

from ..system.errors import UserError

NUMBERED = re.compile(r"(?:.*/)?ILSVRC20\d\d_(?:val|test)_(\d{8})\.\w+")


def order(names: Sequence[str]) -> list[int]:
    """For each line of the file, which image of the split it is about: by ILSVRC's numbers, or in the split's order
    without them.

    Raises UserError where an image's number is missing, as where `prepare --bad-images skip` left it out, or there
    twice."""
    matches = [NUMBERED.fullmatch(str(name)) for name in names]
    if not all(matches):
        return list(range(len(matches)))
    numbers = [int(match[1]) for match in matches]
    places = sorted(range(len(numbers)), key=numbers.__getitem__)
    for line, place in enumerate(places, start=1):
        if numbers[place] != line:
            raise UserError(
                "--submission: it needs a line for every image, but "
                + (
                    f"number {line} is missing, the next is {names[place]}"
                    if numbers[place] > line
                    else f"the number of {names[place]} is there twice"
                )
            )
    return places


def text(order: Sequence[int], ids: Sequence[int] | None, top: torch.Tensor) -> str:
    """The file. ids: the competition's number of each class, or None: label + 1; top: (N, 5) labels, most probable
    first."""
    numbers = ids if ids is not None else range(1, int(top.max()) + 2)
    return "".join(" ".join(str(numbers[label]) for label in top[image].tolist()) + "\n" for image in order)


def describe(order: Sequence[int], ids: Sequence[int] | None) -> str:
    """What the file is, in one line."""
    what = (
        "the competition's numbers of the classes"
        if ids is not None
        else "classes numbered from 1 in the order of their "
        "names, since the data set doesn't know a competition's numbers (what `prepare` makes of ILSVRC's archives "
        "does)"
    )
    return f"{len(order):,} lines, {what}"
