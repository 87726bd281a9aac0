"""The end of a run that diverged: its loss, or one of its tensors, is NaN or infinite."""

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from ..analysis.figures import draw_curves
from ..runs.checkpoint_writer import PATIENCE, Saver
from ..runs.directory import NON_FINITE, RunDirectory
from ..system import durable_files
from ..system.ranks import InVain


def end_diverged(
    run: RunDirectory,
    saver: Saver,
    classes: int,
    what: str,
    step: int,
    split: str,
    images: Sequence[str],
    details: dict,
) -> NoReturn:
    """Write `non_finite.json` and the curves, wait for a checkpoint that is being written, and raise InVain.

    what: in words. step: after which it was found. images: the names of that step's, of `split`; none: of all of it.
    details: what the file says of it beside those.
    """
    with suppress(OSError, ValueError):  # a full disk must not hide what happened
        content = {"step": step, **details, "split": split, "images": images}
        durable_files.replace(run.path / NON_FINITE, (json.dumps(content, indent=1) + "\n").encode())
        draw_curves(run.path, classes)
    saver.wait(PATIENCE)
    names = ", ".join(images[:2]) + (f" and {len(images) - 2} more" if len(images) > 2 else "") or f"those of {split}"
    remark = f"the last good checkpoint is {saver.saved}" if saver.saved else "no checkpoint was written yet"
    raise InVain(
        f"{what}; images: {names} ({run.path}/{NON_FINITE}); {remark}; the same command would come to it again; "
        "from an earlier checkpoint, --resume PATH --out NEW --resume-anyway --set learning_rate=..., may help"
    )
