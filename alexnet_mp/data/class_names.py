"""Two lists of classes that should be the same: the first difference, in words."""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import zip_longest

from ..system.terminal import printable

MOST_NAMED = 5  # pairs
ACCENTS = "how accents are written (composed, decomposed)"
SAME_LETTERS = (
    "the letters are the same, with composed accents in one and decomposed ones in the other, as some systems rename "
    "files; rename the folders (convmv --nfc does)"
)


def first_difference(expected: Sequence[str], classes: Sequence[str], there: str) -> str:
    """In words, the first class that is another; `there` names what has the expected ones: "its class 2 is 'cow', and
    'cat' in RUN"."""
    pairs = enumerate(zip_longest(classes, expected), start=1)
    place, pair = next((place, pair) for place, pair in pairs if pair[0] != pair[1])
    own, other = ("missing" if name is None else f"'{name}'" for name in pair)
    return f"its class {place} is {own}, and {other} in {there}{accents([pair[0]], [pair[1]])}"


def accents(names: Iterable[object], others: Iterable[object]) -> str:
    """A hint, to be put behind a difference, where some name of the one and some of the other differ by nothing but how
    accents are written; "" where none do."""
    letters = [
        {unicodedata.normalize("NFC", name) for name in group if isinstance(name, str)} for group in (names, others)
    ]
    return f" ({SAME_LETTERS})" if letters[0] & letters[1] else ""


def nearly_same(names: Iterable[str]) -> list[str]:
    """Lines that name the classes that a reader takes for one: they differ in how accents are written, in capitals or
    in spaces alone. They count as different."""
    groups = defaultdict(list)
    for name in names:
        groups[" ".join(unicodedata.normalize("NFKC", name).casefold().split())].append(name)
    pairs = [pair for group in groups.values() for pair in zip(group, group[1:])]
    lines = []
    for pair in pairs[:MOST_NAMED]:
        difference = _how(*pair)
        one, other = (ascii(name) if difference == ACCENTS else f"'{printable(name)}'" for name in pair)
        lines.append(f"classes {one} and {other} are two, which differ in {difference} alone")
    return lines + [f"{len(pairs) - MOST_NAMED:,} more pairs of classes are as much alike"] * (len(pairs) > MOST_NAMED)


def apart_by_number(names: Sequence[str]) -> list[str]:
    """The names of all classes as a person can tell them apart: "café (class 2)", the first is 1, where two differ in
    how accents are written alone."""
    spellings = [unicodedata.normalize("NFC", name) for name in names]
    counts = Counter(spellings)
    return [
        name if counts[spelling] == 1 else f"{name} (class {number})"
        for number, (name, spelling) in enumerate(zip(names, spellings), start=1)
    ]


def _how(one, other):
    one, other = (unicodedata.normalize("NFC", name) for name in (one, other))
    if one == other:
        return ACCENTS
    if one.casefold() == other.casefold():
        return "capitals"
    return "spaces" if "".join(one.split()) == "".join(other.split()) else "capitals, spaces or forms of letters"
