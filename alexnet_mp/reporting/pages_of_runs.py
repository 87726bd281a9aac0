"""What commands with a page take: runs, each of which counts once, and a directory for the page."""

import os
from collections.abc import Sequence
from pathlib import Path

from ..system.durable_files import refuse_unwritable
from ..system.errors import UserError
from ..system.terminal import printable
from . import page


def named(directories: Sequence[str]) -> dict[str, str]:
    """{name on the page: directory}. A name is the last part of a path, or all of it where two end alike.

    Raises UserError for a run that is named twice.
    """
    paths = [Path(os.path.realpath(directory)) for directory in directories]
    for directory, path in zip(directories, paths):
        if paths.count(path) > 1:
            raise UserError(f"{directory} is named twice; each run counts once")
    names = [path.name for path in paths]
    return {
        path.name if names.count(path.name) == 1 else str(path): directory
        for path, directory in zip(paths, directories)
    }


def page_directory(out: Path, name: str = page.NAME) -> set[str]:
    """Make the directory of a page. Returns the pictures of an earlier one in it; UserError where it is no place for
    one.

    name: of the page's file: a directory that holds another page is no place."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        refuse_unwritable("--out", out)
        if os.path.lexists(out / name):
            return page.pictures_of(out / name)
        if entry := next(iter(os.listdir(out)), None):
            raise UserError(
                f"--out {out}: it is no report's and holds {printable(entry)}; choose a new or empty directory"
            )
        return set()
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}") from None
