"""The pages of the project, taken apart."""

import re
import shlex
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]


@cache
def text(page):
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page):
    """The blocks of commands, without comments: a list of lines each; a line that goes on is one."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", text(page), re.M | re.S)
    texts = [block.replace("\\\n", " ") for language, block in fences if not language]
    return [[re.sub(r"\s+#.*", "", line) for line in block.splitlines()] for block in texts]


def spans(page):
    """What stands in backticks, wherever its line breaks."""
    prose = re.sub(r"^```.*?^```$", "", text(page), flags=re.M | re.S)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def typed(page):
    """Every command line of a page, as a list of words; `RUN="..."` before it in its block is put in its place."""
    lines = spans(page)
    for block in blocks(page):
        names = {}
        for line in block:
            if match := re.fullmatch(r'([A-Z]+)="(.*)"', line):
                names[f"${match[1]}"] = match[2]
            for name, value in names.items():
                line = line.replace(name, value)
            lines.append(line)
    return [
        shlex.split(line.partition(", and ")[0])
        for line in lines
        if line.startswith(("python ", "torchrun ", "make ", "pytest ", "tools/"))
    ]


def sections(page):
    """{heading: what follows it}, by headings of the second level."""
    parts = re.split(r"^## (.*)$", text(page), flags=re.M)
    return dict(zip(["", *parts[1::2]], parts[::2], strict=True))
