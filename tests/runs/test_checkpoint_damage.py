"""Damaged, foreign and hostile checkpoints: each is refused in one line that begins with the file's path, whatever was
done."""

import dataclasses
import errno
import functools
import json
import os
import pickle
import resource
import shutil
from pathlib import Path

import fuzz_checkpoint
import numpy as np
import pytest
import torch
from inner_cases import every
from tiny_checkpoint import (
    ALL,
    NO_LONGER_READ,
    V6,
    as_old_format,
    refused,
    rewrite,
    rewrite_manifest,
    rewrite_state,
    with_header,
)

from alexnet_mp import convert
from alexnet_mp.data.pixel_statistics import STATISTICS
from alexnet_mp.recipes.recipe import to_dict
from alexnet_mp.runs.checkpoint_format import (
    MANIFEST,
    STATE,
    VELOCITY,
    WEIGHTS,
    load,
    load_statistics,
    load_weights,
    read_state,
    verify,
    verify_file,
    write,
)
from alexnet_mp.system import durable_files
from alexnet_mp.system.errors import UserError


@pytest.mark.run
@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "all"])
def test_every_flipped_byte_is_found(step, place):
    """Each byte of state and manifest, every eleventh of the tensors; of all these one of `step`."""
    random = np.random.default_rng(0)
    for name in ALL:
        content = (place / name).read_bytes()
        for position in range(0, len(content), step if name in (STATE, MANIFEST) else 11 * step):
            variant = bytearray(content)
            variant[position] ^= 1 << int(random.integers(8))
            (place / name).write_bytes(variant)
            refused(read_state if name in (MANIFEST, STATE) else verify, place, name)
            if position % 50 == 0:
                refused(load, place, name)
        (place / name).write_bytes(content)
    verify(place)


def statistics_of(place):
    return load_statistics(place, read_state(place))


def test_no_reader_believes_a_damaged_file(original, place, tmp_path):
    """Whoever reads one file of a checkpoint compares it, too."""
    statistics = statistics_of(place)
    assert all((getattr(statistics, name) == values).all() for name, values in vars(original.statistics).items())
    copy = shutil.copytree(place, tmp_path / "elsewhere" / place.name)
    recipe = ["--recipe", "paper", "--set", f"layers={json.dumps(to_dict(original.state.recipe)['layers'])}"]
    recipe += ["--set", "stored_size=5", "--set", "crop_size=4", "--set", "crop_positions=2"]
    assert convert.main([str(copy / WEIGHTS), str(tmp_path / "whole"), *recipe]) == 0
    for name, readers in ((STATISTICS, (load, statistics_of)), (WEIGHTS, (load, load_weights))):
        content = bytearray((place / name).read_bytes())
        content[-1] ^= 64  # of a number's exponent
        (copy / name).write_bytes(content)
        for action in (*readers, verify, lambda place, name=name: verify_file(place / name)):
            assert "its sha256 is not the one" in refused(action, copy, name)
        with pytest.raises(UserError, match=f"{name}: .*its sha256 is not the one"):
            convert.main([str(copy / WEIGHTS), str(tmp_path / "out"), *recipe])
        shutil.copy(place / name, copy / name)
    wider_state = dataclasses.replace(original.state, recipe=dataclasses.replace(original.state.recipe, stored_size=6))
    assert "that of this recipe has" in refused(lambda place: load_statistics(place, wider_state), copy, STATISTICS)
    (copy / WEIGHTS).rename(copy / "notes.txt")
    assert "no file of a checkpoint" in refused(lambda place: verify_file(place / "notes.txt"), copy, "notes.txt")
    assert "manifest.json doesn't list it" in refused(lambda place: verify_file(place / MANIFEST), place, MANIFEST)


@pytest.mark.run
def test_every_missing_and_added_byte_of_the_manifest_is_found(place):
    content = (place / MANIFEST).read_bytes()
    for position in range(len(content) + 1):
        before, after = content[:position], content[position:]
        for variant in (before + after[1:], before + b" " + after, before):
            if variant != content:
                (place / MANIFEST).write_bytes(variant)
                refused(read_state, place, MANIFEST)


@every("name", ALL)
@every("action", [load, verify])
def test_a_file_cut_anywhere(name, action, place):
    content = (place / name).read_bytes()
    for length in sorted({*range(0, len(content), 97), *range(10), len(content) - 1}):
        os.truncate(place / name, length)
        message = refused(action, place, name)
        assert name == MANIFEST or f"{length:,} of {len(content):,} bytes" in message
        (place / name).write_bytes(content)
    (place / name).write_bytes(content + b"\0")
    refused(action, place, name)


@every("action", [load, verify, read_state, load_weights])
def test_missing_and_foreign_files(action, place):
    (place / "notes.txt").write_bytes(b"")
    assert "no file of a checkpoint" in refused(action, place, "notes.txt")
    (place / "notes.txt").unlink()
    for name in ALL[::-1]:
        content = (place / name).read_bytes()
        (place / name).unlink()
        assert "missing" in refused(action, place, name)
        (place / name).write_bytes(content)


@every("action", [load, verify, read_state, load_weights])
def test_what_is_no_checkpoint(action, tmp_path):
    assert "missing" in refused(action, tmp_path / "nowhere")
    (tmp_path / "file").write_bytes(b"")
    assert "Not a directory" in refused(action, tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "missing" in refused(action, tmp_path / "empty", MANIFEST)
    for number in range(1000):
        (tmp_path / "empty" / f"{number}").write_bytes(b"")
    assert "no file of a checkpoint" in refused(action, tmp_path / "empty")
    (tmp_path / "rest").mkdir()
    for name in (WEIGHTS, VELOCITY):
        (tmp_path / "rest" / name).write_bytes(b"")
    assert "missing" in refused(action, tmp_path / "rest", MANIFEST)
    (tmp_path / "rest" / VELOCITY).rename(tmp_path / "rest" / ".DS_Store")
    refused(action, tmp_path / "rest", ".DS_Store")


@every("number", [0, 1, 2])
@every("action", [load, verify, read_state, load_weights])
def test_a_format_that_is_no_longer_read(action, number, place):
    expected = f"{as_old_format(place, number)}: {NO_LONGER_READ.format(number)}"
    assert refused(action, place) == expected


def test_a_damaged_manifest_of_an_old_format_is_damaged(place):
    content = (place / MANIFEST).read_bytes()
    (place / MANIFEST).write_bytes(content.replace(b'"format": 6', b'"format": 2'))
    assert "sha256 differs" in refused(load, place, MANIFEST)


@every("name", ALL)
def test_links_pipes_and_directories_in_place_of_files(name, place):
    for make in (lambda path: path.symlink_to("moved"), os.mkfifo, Path.mkdir):
        (place / name).rename(place.parent / "moved")
        make(place / name)
        for action in (load, verify, read_state, load_weights):
            assert "link" in (message := refused(action, place, name)) or "not a regular file" in message
        (place / name).rmdir() if (place / name).is_dir() else (place / name).unlink()
        (place.parent / "moved").rename(place / name)
    verify(place)


def test_a_directory_may_be_reached_by_a_link(original, place):
    (place.parent / "latest").symlink_to(place)
    assert read_state(place.parent / "latest") == original.state


def test_a_newer_format(place):
    for number in (7, 8, 10**18):
        rewrite_manifest(place, lambda fields, number=number: fields.update(format=number, more=[]))
        (place / "second_moment.safetensors").write_bytes(b"")
        for action in (load, verify, read_state, load_weights):
            assert f"made by a newer alexnet_mp (format {number}); this one reads 3 to 6" in refused(
                action, place, MANIFEST
            )


@every(
    "change",
    [
        lambda m: m.update(format=0),
        lambda m: m.update(format=-1),
        lambda m: m.update(format="1"),
        lambda m: m.update(format=1.0),
        lambda m: m.update(format=True),
        lambda m: m.update(format=None),
        lambda m: m.pop("format"),
        lambda m: m.update(more=1),
        lambda m: m.update(files=[]),
        lambda m: m["files"].pop(STATE),
        lambda m: m["files"].update({"../state.json": m["files"][STATE]}),
        lambda m: m["files"].update({"/etc/passwd": m["files"].pop(STATE)}),
        lambda m: m["files"].update({"..": m["files"].pop(STATE)}),
        lambda m: m["files"].update({MANIFEST: m["files"][STATE]}),
        lambda m: m["files"].update({STATE: 1}),
        lambda m: m["files"].update({STATE: {"bytes": 1}}),
        lambda m: m["files"][STATE].update(bytes=-1),
        lambda m: m["files"][STATE].update(bytes=10**18),
        lambda m: m["files"][STATE].update(bytes=1e3),
        lambda m: m["files"][STATE].update(bytes=True),
        lambda m: m["files"][STATE].update(bytes="1"),
        lambda m: m["files"][STATE].update(sha256=None),
        lambda m: m["files"][STATE].update(sha256=m["files"][STATE]["sha256"].upper()),
        lambda m: m["files"][STATE].update(more=1),
    ],
)
def test_a_manifest_that_lies_though_its_own_checksum_fits(change, place):
    rewrite_manifest(place, change)
    with pytest.raises(UserError) as error:
        load(place)
    assert str(error.value).startswith((str(place / MANIFEST), str(place / STATE)))


@every(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"1",
        b'"text"',
        b"{}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xff\xfe{\0}\0",
        b"\xef\xbb\xbf{}",
        b"\0" * 64,
        b'{"format": 1' + b"0" * 5000 + b"}",
        b'{"format": 1e400}',
        b'{"format": NaN}',
        b'{"format": 1, "format": 1}',
        b" " * (1 << 20) + b"{}",
        b" " * (4 << 20) + b"{}",
        b'{"\xff": 1}',
    ],
)
def test_small_files_of_other_content(content, place):
    for name in (STATE, MANIFEST):
        before = (place / name).read_bytes()
        if name == STATE:
            rewrite(place, STATE, content)
        else:
            (place / name).write_bytes(content)
        for action in (load, read_state, verify):
            refused(action, place, name)
        rewrite(place, name, before) if name == STATE else (place / name).write_bytes(before)
    verify(place)


HOSTILE = (
    "-1",
    "-0.5",
    "1e400",
    "-1e400",
    "NaN",
    "Infinity",
    "1" + "0" * 5000,
    "9007199254740992",
    "null",
    "true",
    '"x"',
    "[]",
    "{}",
    "[" * 300 + "]" * 300,
    "[" * 5000 + "]" * 5000,
    '"\\ud800"',
)
MAY_BE = {  # what is no number may be right somewhere, in a field that holds anything of its kind
    "null": {
        "scheduled",
        "validation",
        "schedule.best",
        "schedule.drops",
        "schedule.since_best",
        "made_by.overlap",
        "made_by.microbatch",
        "made_by.packages.torch",
        "made_by.packages.triton",
    },
    "true": {"validated"},
    "{}": {"schedule", "made_by.packages"},
    "[]": {"made_by.devices"},
    '"x"': {
        "data.source",
        "data.description",
        "data.fingerprint",
        "data.classes.0",
        "made_by.devices.0",
        "made_by.kernels",
        "made_by.precision",
        "made_by.pipeline",
        "made_by.packages.torch",
        "made_by.packages.triton",
        "saved",
    },
    '"\\ud800"': {"data.source", "data.description", "data.fingerprint", "data.classes.0"},
    "9007199254740992": {
        "schedule.best",
        "scheduled.learning_rates.conv1.bias",
        "scheduled.colour_noise",
        "validation.loss",
        "schedule.drops",
        "schedule.since_best",
    },
}


def places(fields, prefix=()):
    """Every place in a state but those within the recipe and repetitions."""
    paths = [prefix] if prefix else []
    if isinstance(fields, dict) and prefix != ("recipe",):
        for key in list(fields)[:1] if prefix == ("scheduled", "learning_rates") else fields:
            paths += places(fields[key], (*prefix, key))
    elif isinstance(fields, list) and fields:
        paths += places(fields[0], (*prefix, 0))
    return paths


def with_text(fields, at, text):
    """state.json with this text, which need not be JSON, in a place."""
    fields = json.loads(json.dumps(fields))
    functools.reduce(lambda owner, key: owner[key], at[:-1], fields)[at[-1]] = "PLACE"
    return json.dumps(fields).replace('"PLACE"', text).encode()


@pytest.mark.run
def test_hostile_values_in_every_field_of_the_state(place):
    fields = json.loads((place / STATE).read_bytes())
    for at in places(fields):
        for text in HOSTILE:  # names in made_by.packages and schedule are free, their values are not
            if ".".join(map(str, at)) not in MAY_BE.get(text, ()):
                rewrite(place, STATE, with_text(fields, at, text))
                refused(read_state, place, STATE)
    assert len(places(fields)) > 30


def test_missing_and_unknown_fields(place):
    fields = json.loads((place / STATE).read_bytes())
    for at in places(fields):
        if isinstance(at[-1], str) and at[:-1] not in (("made_by", "packages"), ("schedule",)):
            other = json.loads(json.dumps(fields))
            owner = functools.reduce(lambda owner, key: owner[key], at[:-1], other)
            value = owner.pop(at[-1])
            rewrite(place, STATE, json.dumps(other).encode())
            refused(read_state, place, STATE)
            owner |= {at[-1]: value, "unknown": 1}
            rewrite(place, STATE, json.dumps(other).encode())
            refused(read_state, place, STATE)


@pytest.mark.run
def test_a_recipe_that_no_run_could_have_had(place):
    fields = json.loads((place / STATE).read_bytes())
    for name in fields["recipe"]:
        rest = {key: value for key, value in fields["recipe"].items() if key != name}
        rewrite(place, STATE, json.dumps({**fields, "recipe": rest}).encode())
        refused(read_state, place, STATE)
        for text in ("null", "-1", "1e400", "NaN", "1" + "0" * 5000, "[[1]]", '{"a": 1}'):
            if text != "null" or name not in ("dates", "batch_file_size"):
                rewrite(place, STATE, with_text(fields, ("recipe", name), text))
                refused(read_state, place, STATE)
    fields["recipe"]["dropout"] = 2.0
    rewrite(place, STATE, json.dumps(fields).encode())
    assert "recipe.dropout is 2.0" in refused(read_state, place, STATE)


def test_sizes_that_no_machine_has(place):
    """A recipe of huge layers whose checksums fit: refused by the files' sizes, before anything is allocated."""
    for change in (
        lambda r: r["layers"][1].update(maps=2**31 - 1),
        lambda r: r["layers"][0].update(maps=2**31 - 1, kernel=4),
        lambda r: r.update(stored_size=2**16 - 1),
        lambda r: r.update(stored_size=2**16 - 1, crop_size=2**16 - 1, crop_positions=1),
    ):
        rewrite_state(place, lambda fields: change(fields["recipe"]))
        with pytest.raises(UserError, match="this recipe has"):
            load(place)
        shutil.copy(V6 / STATE, place)
    rewrite_state(place, lambda fields: fields["data"]["classes"].append("fourth"))
    assert "that of this recipe has" in refused(load, place, WEIGHTS)


def pickles(path):
    torch.save({"conv1.weight": torch.zeros(3)}, path)
    yield path.read_bytes()
    torch.save({"conv1.weight": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    yield path.read_bytes()
    yield pickle.dumps({"conv1.weight": 1})
    yield pickle.dumps(None)  # of four bytes


def test_a_pickle_is_never_loaded(place, tmp_path):
    for content in pickles(tmp_path / "pickle"):
        for name in ALL:
            before = (place / name).read_bytes()
            (place / name).write_bytes(content)
            assert "a pickle is never loaded" in refused(load, place, name)
            for action in (load_weights, verify):
                assert "a pickle is never loaded" in refused(action, place, name)
            if name != MANIFEST:
                rewrite(place, name, content)
                assert "a pickle is never loaded" in refused(load, place, name)
                rewrite(place, name, before)
            (place / name).write_bytes(before)


@every(
    "name, value",
    [(WEIGHTS, np.nan), (VELOCITY, np.inf), (VELOCITY, -np.inf), (STATISTICS, np.nan), (STATISTICS, np.inf)],
)
def test_values_that_are_not_finite_though_the_checksums_fit(name, value, place):
    content = bytearray((place / name).read_bytes())
    content[-8:] = np.array([0, value], np.float32).tobytes() if name != STATISTICS else np.array([value]).tobytes()
    rewrite(place, name, bytes(content))
    assert "not finite" in refused(load, place, name)
    verify(place)  # says that the bytes are those that were written, and no more


def test_files_of_another_checkpoint(original, place, tmp_path):
    other = dataclasses.replace(original, weights={name: tensor + 1 for name, tensor in original.weights.items()})
    write(tmp_path / "other", other)
    shutil.copy(tmp_path / "other" / WEIGHTS, place)
    for action in (load, verify, load_weights):
        assert "sha256" in refused(action, place, WEIGHTS)


def test_sparse_files_of_terabytes(place):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    content = (place / WEIGHTS).read_bytes()
    header = {"x": {"dtype": "F32", "shape": [1 << 38], "data_offsets": [0, 1 << 40]}}
    (place / WEIGHTS).write_bytes(with_header(header, b""))
    size = (place / WEIGHTS).stat().st_size + (1 << 40)
    os.truncate(place / WEIGHTS, size)
    rewrite_manifest(place, lambda fields: fields["files"][WEIGHTS].update(bytes=size))
    assert "at most are read" in refused(load_weights, place, WEIGHTS)
    (place / WEIGHTS).write_bytes(content)
    shutil.copy(V6 / MANIFEST, place)
    for name in ALL:
        content = (place / name).read_bytes()
        os.truncate(place / name, 1 << 40)
        refused(load, place, name)
        if name != MANIFEST:
            rewrite_manifest(place, lambda fields, name=name: fields["files"][name].update(bytes=1 << 40))
            refused(load, place, name)
        (place / name).write_bytes(content)
        shutil.copy(V6 / MANIFEST, place)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10  # kB


def test_a_disk_that_cannot_be_read(place, monkeypatch):
    def fails(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    class Failing:
        read = staticmethod(fails)

        def __getattr__(self, name):
            return getattr(os, name)

    monkeypatch.setattr(durable_files, "os", Failing())
    assert "Input/output error" in refused(load, place, MANIFEST)


@pytest.mark.slow
@pytest.mark.run
def test_1_500_mutations():
    result = fuzz_checkpoint.run(inputs=1500, seed=1)
    assert not result.failures and result.refused > 1000
