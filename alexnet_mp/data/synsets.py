"""Words for classes that are wnids, ImageNet's numbers of WordNet's synsets ("n01440764": "tench, Tinca tinca")."""

import os
import re
from collections.abc import Sequence

from ..system import durable_files
from ..system.errors import UserError
from .prepared_format import read_index

MOST_BYTES = 64 << 20  # ImageNet's words.txt, of 82,115 synsets, has 2.7 million
WNID = re.compile(r"n\d{8}")
OPTION = "--synsets"
HELP = (
    "words for classes that are wnids: a text whose lines are like 'n01440764 tench, Tinca tinca', or a prepared set "
    "of ILSVRC; default: those that the run's own data had"
)


def in_words(classes: Sequence[str], words: Sequence[str], synsets: str | None) -> list[str]:
    """The classes as a person knows them: by what `--synsets` names where it has a class, else by `words`.

    Raises UserError where it can't be read, or has none of the classes.
    """
    if synsets is None:
        return list(words)
    synset_words = read_synsets(synsets)
    if not any(name in synset_words for name in classes):
        raise UserError(
            f"{OPTION} {synsets}: it has words of none of the {len(classes):,} classes, such as {classes[0]!r:.50}"
        )
    return [synset_words.get(name, default) for name, default in zip(classes, words, strict=True)]


def hint(names: Sequence[str]) -> str:
    """A sentence for a page whose classes have wnids for names, since their data had no words; else ""."""
    count = sum(bool(WNID.fullmatch(name)) for name in names)
    return f"Of the classes {count:,} have no words but their wnids; {OPTION} FILE names them." if count else ""


def read_synsets(path: str) -> dict[str, str]:
    """{wnid: words} of a text of UTF-8, in any order, with spaces or a tab behind the wnid, or of a prepared set.

    Raises UserError."""
    if os.path.isdir(path):
        index = read_index(path)
        pairs = zip(index.classes, index.class_names)  # with its own name where nobody knew words
        return {name: words for name, words in pairs if WNID.fullmatch(name) and words != name}
    try:
        lines = durable_files.read(os.path.realpath(path), MOST_BYTES).decode("utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"{OPTION} {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{OPTION} {path}: it is no text of UTF-8") from None
    synset_words = {}
    for number, line in enumerate(lines, start=1):
        wnid, _, words = line.replace("\t", " ").partition(" ")
        if not line.strip():
            continue
        if not WNID.fullmatch(wnid) or not words.strip():
            raise UserError(f"{OPTION} {path}: line {number:,} is not like 'n01440764 tench, Tinca tinca'")
        synset_words[wnid] = words.strip()
    return synset_words
