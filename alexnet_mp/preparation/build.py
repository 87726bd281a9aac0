"""A prepared set is made: plan, shards, index, in this order; what was interrupted goes on."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from ..data.pixel_statistics import STATISTICS, Sums
from ..data.prepared_format import (
    FORMAT,
    INDEX,
    PLAN,
    SOURCE,
    VERSION,
    WORK,
    Index,
    SplitIndex,
    columns_file,
    is_prepared,
    read_index,
    read_source_file,
    source_file,
)
from ..data.remarks import count_remarks
from ..system.durable_files import PARTIAL
from ..system.errors import UserError
from ..system.file_lock import held
from ..system.terminal import progress, say
from . import sources
from .items import Source
from .process_pool import in_processes
from .shards import Shards, for_json, make_shard, written

LOCK, SECONDS_FOR_LOCK = "lock", 3
REDUCED = "by areas"  # see `data.resize.reduced`
MOST_NAMED = 20  # images left out that are named at the end


def prepare(source: Source, kind: str, plan: "Plan", dest: Path, skip: bool, workers: int) -> int:
    """Make the set of a `Plan` in the directory dest, or what is still missing of it. Returns the exit status, 0.

    kind: what the index says of the source. skip: leave unreadable images out.
    """
    if (dest / INDEX).exists() and not (dest / WORK).exists():
        return _say_complete(dest, plan, source)
    with held(dest / WORK / LOCK, f"{dest}: another prepare is writing into it", SECONDS_FOR_LOCK):
        if (dest / INDEX).exists():  # an earlier run ended between the index and the removal of what it worked with
            status = _say_complete(dest, plan, source)
        else:
            status = _make(source, kind, plan, dest, skip, workers)
    # Without the lock, since a network file system doesn't give up an open file; beside an index nobody works here any
    # more.
    _remove_work(dest / WORK)
    return status


def _make(source, kind, plan, dest, skip, workers):
    _begin(dest, plan)
    splits = {name: Shards(dest, name, items, plan, skip) for name, items in source.splits.items()}
    missing_shards = [
        (shards, number) for shards in splits.values() for number in range(shards.count) if not shards.done(number)
    ]
    images = sum(len(shards.numbers[number]) for shards, number in missing_shards)
    total = sum(len(items) for items in source.splits.values())
    say(
        f"{total:,} images of {len(source.classes)} classes in {sum(shards.count for shards in splits.values()):,} "
        "shards" + (f"; {total - images:,} are done already" if images < total else "")
    )
    tasks = (shards.task(number) for shards, number in missing_shards)
    try:
        with (
            progress("preparing", images) as advance,
            closing(in_processes(make_shard, tasks, workers, advance)) as answers,
        ):
            for _ in answers:
                pass
    finally:
        _remove_unfinished(dest)
        count_remarks()
    index = _finish(dest, plan, source, kind, splits)
    _say_left_out(dest, index)
    say(f"done: {index.describe(dest, index.splits)}")
    return 0


class Plan:
    """What makes two sets equal: settings, classes, and the source's lists of images; not where they lie on a disk."""

    def __init__(
        self,
        size: int,
        quality: int | None,
        classes: Sequence[str],
        class_names: Sequence[str],
        splits: Mapping[str, tuple[int, str]],
        warp: bool = False,
    ):
        self.size, self.quality, self.warp = size, quality, warp
        self.fields = {
            "version": VERSION,
            "size": size,
            "quality": quality or "raw",
            "classes": list(classes),
            "names of the classes": list(class_names),
        }
        if warp:  # a plan of before there was this has none
            self.fields["pictures"] = "squeezed"
        for name, (count, digest) in splits.items():
            self.fields[f"{name} images"] = count
            self.fields[f"list of {name} images"] = digest

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self, **more: str) -> bytes:
        """more: what a set that isn't finished says beside its fields; finished ones of before have another digest
        else."""
        return json.dumps(self.fields | more, indent=1).encode() + b"\n"

    def difference(self, fields: Mapping[str, object]) -> str | None:
        """In words, the first field that is other than in the fields of another plan; None where all of those are
        equal."""
        for name in dict.fromkeys([*fields, *self.fields]):
            was, now = fields.get(name), self.fields.get(name)
            if was != now:
                short = all(isinstance(value, (int, str)) and not name.startswith("list") for value in (was, now))
                return f"{name}: {was}, now {now}" if short else f"{name}: not the same"
        return None


def make_plan(source: Source, size: int, quality: int | None, warp: bool = False) -> Plan:
    """The `Plan` for a source. quality: of the JPEGs, None = raw pixels. warp: images are squeezed."""
    splits = {}
    for name, items in source.splits.items():
        digest = hashlib.sha256()
        for item in items:
            digest.update(f"{item.name}\0{item.label}\n".encode(errors="surrogateescape"))
        splits[name] = len(items), digest.hexdigest()
    return Plan(size, quality, source.classes, source.class_names, splits, warp)


def _finish(dest, plan, source, kind, splits):
    """Put together what the shards' parts know, and write the index: from then on the set is there. Returns the
    `Index`."""
    sums, split_indexes, stamps = Sums(plan.size), {}, {}
    for name, shards in splits.items():
        split, columns, stamps[name] = shards.collect(sums if name == "train" else None)
        empty_labels = sorted(set(range(len(source.classes))) - set(columns.label.tolist()))
        if not split.images or name == "train" and empty_labels:
            what = f"class {source.classes[empty_labels[0]]} of {name}" if split.images else name
            raise UserError(
                f"no image of {what} can be read, and a set needs one; mend the source and run the same command again"
            )
        content = save({field: np.ascontiguousarray(values) for field, values in vars(columns).items()})
        written(dest / columns_file(name), content)
        split_indexes[name] = SplitIndex(
            split.images, split.index, hashlib.sha256(content).hexdigest(), split.shards, split.skipped
        )
    written(dest / SOURCE, source_file(stamps))
    statistics = sums.statistics()
    content = save({field: np.ascontiguousarray(values) for field, values in vars(statistics).items()})
    written(dest / STATISTICS, content)
    index = Index(
        FORMAT,
        VERSION,
        plan.size,
        "raw" if plan.quality is None else "jpeg",
        plan.quality,
        for_json(kind),
        plan.digest,
        tuple(map(for_json, source.classes)),
        tuple(map(for_json, source.class_names)),
        split_indexes,
        hashlib.sha256(content).hexdigest(),
        ids=None if source.ids is None else tuple(source.ids),
        squeezed=plan.warp,
    )
    written(dest / INDEX, index.to_bytes())
    return index


def _begin(dest, plan):
    """Write down the plan, or compare it with the one that is there."""
    path = dest / WORK / PLAN
    if path.exists():
        try:
            fields = json.loads(path.read_bytes())
            method = fields.get("reduced", "by Pillow's box filter")  # as sets were before there was this field
            difference = plan.difference({name: value for name, value in fields.items() if name != "reduced"})
            if method != REDUCED:
                difference = difference or f"pictures are reduced {method}, now {REDUCED}"
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f"cannot read {path}: {error}; remove {dest} to begin anew") from None
        if difference:
            raise UserError(
                f"{dest} was begun with another source or other settings ({difference}); choose another DEST, or "
                "remove this one"
            )
    else:
        written(path, plan.to_bytes(reduced=REDUCED))


def _remove_unfinished(dest):
    """Remove what was being written when its process ended, in this run or in an earlier one."""
    for folder in (dest, dest / WORK):
        for leftover in folder.glob(f"*{PARTIAL}"):
            with suppress(OSError):
                leftover.unlink()


def _remove_work(work):
    """Remove what was needed to make the set, and nothing that somebody else put there."""
    with suppress(OSError):
        for file in work.iterdir():
            if file.name in (LOCK, PLAN) or file.name.endswith((".safetensors", PARTIAL)):
                file.unlink()
        work.rmdir()


def _say_left_out(dest, index):
    images = [image for split in index.splits.values() for image in split.skipped]
    for image in images[:MOST_NAMED]:
        say(f"left out: {image.name}: {image.reason}")
    if images:
        say(f"{len(images):,} unreadable images were left out; {dest / INDEX} lists them")


def _say_complete(dest, plan, source):
    """For a finished set: say so, or refuse, if it was made from something else. A set of before there were ids gets
    them."""
    ids = source.ids
    index = read_index(dest)
    if index.plan != plan.digest:
        old_plan = Plan(index.stored_size, index.jpeg_quality, index.classes, index.class_names, {}, index.squeezed)
        counts = {f"{name} images": split.images + len(split.skipped) for name, split in index.splits.items()}
        difference = plan.difference(old_plan.fields | counts) or "the names of the images"
        raise UserError(
            f"{dest} is a set of another source or other settings ({difference}); choose another DEST, or remove it"
        )
    comparison = _refuse_replaced(dest, source)
    if ids is not None and index.ids is None:
        written(dest / INDEX, replace(index, ids=tuple(ids)).to_bytes())
        say("the classes' numbers in the competition were added to it")
    _say_left_out(dest, index)
    say(f"there already, and complete: {index.describe(dest, index.splits)}; {comparison}")
    return 0


def _refuse_replaced(dest, source):
    """Raise UserError that names the first image of the source whose file isn't the one that a finished set was made
    of. Returns what was compared, in words."""
    stamps = read_source_file(dest)
    if stamps is None:
        return "it was made before sizes and times were kept, so the names of its images alone were compared"
    if {split: len(items) for split, items in source.splits.items()} != {split: len(v) for split, v in stamps.items()}:
        raise UserError(
            f"{dest / SOURCE} is damaged: it is of another set; removed, names of images alone are compared"
        )
    for split, items in source.splits.items():
        for item, was in zip(items, stamps[split].tolist(), strict=True):
            now = sources.stamp(item)
            if tuple(was) != now:
                what = (
                    f"{was[0]:,} bytes, now {now[0]:,}" if was[0] != now[0] else "its time of change; the size is equal"
                )
                raise UserError(
                    f"{dest} was made of other images: {sources.where(item)} has been replaced since ({what}); remove "
                    f"{dest} to make it anew, or choose another DEST; a copy of SRC keeps the times with cp -p"
                )
    return "names, sizes and times of its images were compared"


def refuse_unusable(src: str | Path, dest: Path) -> None:
    """Raise UserError for a DEST that holds something else, or lies in SRC."""
    real_dest, real_src = (Path(os.path.realpath(path)) for path in (dest, src))  # which may be links that lead round
    if real_dest == real_src or real_src in real_dest.parents:
        raise UserError(f"{dest} lies in {src}; the prepared set needs a directory of its own, elsewhere")
    try:
        if not os.path.lexists(dest):
            return
        if not dest.is_dir():
            raise UserError(f"{dest} is there already and is not a directory")
        names, work = set(os.listdir(dest)), dest / WORK
        is_stub = names == {WORK} and work.is_dir() and set(os.listdir(work)) <= {LOCK, PLAN + PARTIAL}
    except OSError as error:
        raise UserError(f"cannot read {dest}: {error.strerror}") from None
    if names and not is_prepared(dest) and not is_stub:
        raise UserError(f"{dest} is not empty and not a prepared set; choose another DEST")
