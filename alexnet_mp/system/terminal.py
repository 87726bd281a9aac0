"""What a person sees: a progress bar on a terminal, plain lines everywhere else."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_SECONDS = 10  # between two plain lines


def _sizes(environment):
    """The environment, without a COLUMNS or LINES that is no size: where the width is 0, rich prints nothing."""
    return {
        name: value
        for name, value in environment.items()
        if not name.endswith(("COLUMNS", "LINES")) or (value.isdecimal() and int(value) > 0)
    }


CONSOLE = Console(soft_wrap=True, highlight=False, markup=False, emoji=False, _environ=_sizes(os.environ))


def say(text: str = "") -> None:
    """A line for the user, above the bar if there is one."""
    CONSOLE.print(text)


@contextmanager
def lines_on_stderr() -> Iterator[None]:
    """What `say` and `progress` write goes to standard error, so that standard output holds nothing but a command's
    JSON."""
    setting, CONSOLE.stderr = CONSOLE.stderr, True
    try:
        yield
    finally:
        CONSOLE.stderr = setting


@contextmanager
def silence() -> Iterator[None]:
    """What `say` and `progress` write is not shown."""
    setting, CONSOLE.quiet = CONSOLE.quiet, True
    try:
        yield
    finally:
        CONSOLE.quiet = setting


def printable(text: str) -> str:
    """A name as a line may hold it: control characters, line ends, what turns the direction of writing, all escaped."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


@contextmanager
def progress(what: str, total: int, unit: str = "images", done: int = 0) -> Iterator[Callable[..., None]]:
    """Yields advance(n, note=""): n more of `total` units are done, after `done` before. Shows the rate, the time left
    and the note."""
    start = time.monotonic()
    count, last_time = done, start
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=CONSOLE, transient=True, disable=not CONSOLE.is_terminal) as bar:
        task = bar.add_task(what, total=total, completed=done, rate="", note="")

        def advance(n, note=""):
            nonlocal count, last_time
            count += n
            now = time.monotonic()
            rate = (count - done) / max(now - start, 1e-9)
            bar.update(task, advance=n, note=note, rate=f"{rate:,.1f}/s")
            if not CONSOLE.is_terminal and count > done and now - last_time >= PLAIN_SECONDS:
                last_time = now
                say(
                    f"{what}: {count:,} of {total:,} {unit}, {rate:,.1f}/s, {duration((total - count) / rate)} left"
                    + (f", {note}" if note else "")
                )

        yield advance


def duration(seconds: float) -> str:
    """Seconds as a person writes them: 48 s, 12 min, 3 h 20 min."""
    minutes = round(seconds / 60)
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{minutes} min"
        if minutes < 120
        else f"{minutes // 60} h {minutes % 60} min"
    )
