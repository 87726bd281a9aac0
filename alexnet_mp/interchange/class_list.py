"""Names of classes from a text, a line each in the order of the network's outputs: Caffe's synset_words.txt, or any
names."""

import re
from pathlib import Path

from ..system import durable_files
from ..system.errors import need

MOST_BYTES, MOST_NAME = 16 << 20, 1000
_SYNSET = re.compile(r"(n\d{8})(?: +(.*))?")


def read_classes(path: str | Path) -> tuple[list[str], list[str]]:
    """(classes, the same in words) of a file of UTF-8.

    Where every line begins with a wnid, as "n01440764 tench, Tinca tinca", it is the class, and the rest its words; a
    prepared set of ILSVRC has the same. Otherwise a line is both. Raises OSError, and ValueError for an empty line, two
    equal classes, and what is no text."""
    text = durable_files.read(path, MOST_BYTES).decode("utf-8-sig")
    lines = [line.strip().replace("\t", " ") for line in text.rstrip().split("\n")]
    for number, line in enumerate(lines, start=1):
        need(line, f"line {number:,} is empty")
        need(len(line) <= MOST_NAME and line.isprintable(), f"line {number:,} is no name")
    matches = [_SYNSET.fullmatch(line) for line in lines]
    synsets = all(matches)
    classes = [line[1] for line in matches] if synsets else lines
    need(len(set(classes)) == len(classes), "two classes have one name")
    return classes, [line[2] or line[1] for line in matches] if synsets else lines


def numbered(count: int) -> list[str]:
    """Classes that nobody has named: "class 000", ..., so that their order is that of their names."""
    width = len(str(count - 1))
    return [f"class {number:0{width}}" for number in range(count)]
