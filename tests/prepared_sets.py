"""Prepared sets for the tests of what makes, checks and reads them: made from noisy pictures in class folders, in small
shards."""

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from image_folders import make_folder
from PIL import Image
from safetensors.numpy import load_file, save

from alexnet_mp import prepare
from alexnet_mp.data.prepared_format import read_index
from alexnet_mp.preparation import shards, sources
from alexnet_mp.system.errors import UserError

SIZE, PER_SHARD = 48, 10
COMMAND = [sys.executable, "-m", "alexnet_mp.prepare"]
OPTIONS = ["--size", "64", "--workers", "2"]  # of the command with many images


def make_source(root, train=8, val=5):
    """24 and 15 pictures of three classes, with one of another kind in each: grey, with alpha, of another size."""
    make_folder(root, train, val, size=(70, 60))
    random = np.random.default_rng(1)
    for name, shape in (("apple/g.png", (50, 61)), ("leaf/a.png", (48, 48, 4)), ("sky/p.png", (20, 33, 3))):
        Image.fromarray(random.integers(0, 256, shape).astype(np.uint8)).save(root / "train" / name)
    return root


def prepared(monkeypatch, source, dest, *options, size=SIZE, workers=0, per_shard=PER_SHARD):
    """Run the command in this process, with shards of few images. Returns dest."""
    monkeypatch.setattr(shards, "IMAGES_PER_SHARD", per_shard)
    assert (
        prepare.main([str(source), str(dest), "--size", str(size), "--workers", str(workers), *map(str, options)]) == 0
    )
    return Path(dest)


def files(directory):
    """{name: content} of everything in a directory."""
    return {path.name: path.read_bytes() if path.is_file() else None for path in Path(directory).iterdir()}


def but_times(contents):
    """What `files` found, without the times of the source's pictures."""
    return {name: content for name, content in contents.items() if name != "source.safetensors"}


def sign(directory, change=lambda index: index):
    """Write the index anew, with `change` made to it, so that it fits the files as they are now."""
    directory, index = Path(directory), read_index(directory)
    splits = {}
    for name, split in index.splits.items():
        tars = tuple(
            replace(shard, bytes=(directory / shard.file).stat().st_size, sha256=sha256(directory / shard.file))
            for shard in split.shards
        )
        splits[name] = replace(split, index_sha256=sha256(directory / split.index), shards=tars)
    index = replace(index, splits=splits, statistics_sha256=sha256(directory / "statistics.safetensors"))
    (directory / "index.json").write_bytes(change(index).to_bytes())


def sign_json(directory, change):
    """Change the fields of the index as JSON, whatever becomes of them, and sign it."""
    path = Path(directory) / "index.json"
    fields = json.loads(path.read_bytes())
    change(fields)
    fields["sha256"] = ""
    fields["sha256"] = hashlib.sha256(json.dumps(fields, indent=1).encode() + b"\n").hexdigest()
    path.write_bytes(json.dumps(fields, indent=1).encode() + b"\n")


def change_columns(directory, change, split="train"):
    """Change the columns of a split, {field: array}, and sign the set."""
    path = Path(directory) / f"{split}.safetensors"
    columns = {field: values.copy() for field, values in load_file(path).items()}
    columns = change(columns) or columns
    path.write_bytes(save(columns))
    sign(directory)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def source(tmp_path):
    return make_source(tmp_path / "source")


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """(a folder of 2,300 small images, the files of the set that is made of it without interruption)."""
    root, pixels = tmp_path_factory.mktemp("many"), np.random.default_rng(2)
    for split, count in (("train", 1050), ("val", 100)):
        for name in ("a", "b"):
            (root / "source" / split / name).mkdir(parents=True)
            for number in range(count):
                image = Image.fromarray(pixels.integers(0, 256, (9, 9, 3), np.uint8).repeat(4, 0).repeat(4, 1))
                image.save(root / "source" / split / name / f"{number}.jpg")
    return root / "source", complete(root / "source", root / "set")


def complete(source, dest):
    """What the set of many images is when it is done, or gone on with, in this process, which saves a start."""
    assert prepare.main([str(source), str(dest), *OPTIONS]) == 0
    return files(dest)


def refused(*arguments):
    with pytest.raises(UserError) as error:
        prepare.main([*map(str, arguments), "--size", str(SIZE), "--workers", "0"])
    assert "\n" not in str(error.value)
    return str(error.value)


def leftovers(dest):
    """Names of the shards, parts and unfinished files of a set that isn't finished."""
    leftover_names = {path.name for path in [*dest.iterdir(), *(dest / "work").iterdir()]}
    return sorted(leftover_names - {"work", "lock", "plan.json"})


def interrupted(monkeypatch, source, dest, images, error=KeyboardInterrupt):
    """Begin a set and stop in the middle of image number `images`."""
    picture, count = sources.picture, 0

    def read(item, *how):
        nonlocal count
        count += 1
        if count > images:
            raise error
        return picture(item, *how)

    with monkeypatch.context() as patch:
        patch.setattr(sources, "picture", read)
        patch.setattr(shards, "IMAGES_PER_SHARD", PER_SHARD)
        return prepare.main([str(source), str(dest), "--size", str(SIZE), "--workers", "0"])
