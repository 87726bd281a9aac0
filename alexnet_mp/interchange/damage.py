"""What is wrong with a file from elsewhere, in one line that begins with its name."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..system.errors import UserError
from ..system.terminal import printable


@contextmanager
def about(
    place: str | Path, damage: tuple[type[Exception], ...], error_type: type[ValueError] = UserError
) -> Iterator[None]:
    """One of the errors `damage` within becomes one of type `error_type`: one line, which begins with `place`.

    place: a file or folder as it was typed, or the name of an array in one. Another file that couldn't be read is named
    after it."""
    try:
        yield
    except damage as error:
        text = str(error)
        if isinstance(error, OSError) and error.strerror:
            text = error.strerror
            if error.filename and os.path.realpath(error.filename) != os.path.realpath(place):
                text += f": {error.filename}"
        for name in (place, Path(place).name):
            text = text.removeprefix(f"{name}: ")
        raise error_type(f"{printable(str(place))}: {printable(' '.join(text.split())):.400}") from None
