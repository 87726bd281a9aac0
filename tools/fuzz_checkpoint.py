#!/usr/bin/env python3
"""Reads mutated checkpoints: each must be refused in one line with the file's name, or come back as exactly what the
files say.

    python tools/fuzz_checkpoint.py --inputs 100000 --seed 0
    python tools/fuzz_checkpoint.py --seed 0 --only 4711    one input again, with the traceback of its failure

Bytes are flipped, cut, spliced and swapped; fields of the JSON files and of the tensors' headers get hostile values;
files become pickles, links, pipes, directories, or go missing. In half of the cases all checksums are made to fit
again, so that only the checks behind them are left. An input is a failure where reading raises anything but a UserError
that begins with a path of the checkpoint, where a change goes unnoticed that a checksum has to find, or where what is
loaded isn't what other readers (json, safetensors) see in the files. Prints counts, the growth of resident memory, and
the time; the exit status is 1 where there was a failure."""

import argparse
import collections
import hashlib
import io
import json
import os
import pickle
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch

from alexnet_mp.data.pixel_statistics import FILE as STATISTICS
from alexnet_mp.runs import checkpoint_format
from alexnet_mp.runs.checkpoint_format import MANIFEST, STATE, VELOCITY, WEIGHTS
from alexnet_mp.system.errors import UserError

BASE = Path(__file__).resolve().parents[1] / "tests" / "checkpoint_v6" / "step_00000003"
TENSORS, LISTED = (WEIGHTS, VELOCITY, STATISTICS), (WEIGHTS, VELOCITY, STATISTICS, STATE)
WARM_UP = 500  # inputs before memory is measured
DEEP = "[" * 2000 + "]" * 2000
HOSTILE = (
    "null",
    "true",
    "false",
    "-1",
    "0",
    "-0.0",
    "0.5",
    "1e400",
    "-1e400",
    "NaN",
    "Infinity",
    "-Infinity",
    "1e-400",
    "1" * 18,
    "2147483648",
    "9007199254740992",
    "9223372036854775808",
    "18446744073709551616",
    "1" + "0" * 5000,
    '""',
    '"x"',
    '"\\ud800"',
    '"\\u0000"',
    '"../../x"',
    '"/etc/passwd"',
    '"F64"',
    '"F32"',
    '"I64"',
    "[]",
    "{}",
    "[0]",
    "[-1]",
    "[0, 4]",
    "[4, 0]",
    "[NaN, 4]",
    "[1e400]",
    "[9223372036854775807, 2]",
    "[null]",
    '{"x": 1}',
    '{"x": 1, "x": 2}',
    DEEP,
    DEEP[:200] + DEEP[-200:],
    '"' + "x" * 5000 + '"',
)
PICKLES = (
    pickle.dumps({"a": 1}),
    pickle.dumps(None),
    pickle.dumps([1] * 99, 0),
    b"\x80",
    b"PK",
    b"PK\x03\x04" + bytes(200),
)


@dataclass
class Result:
    refused: int = 0
    loaded: int = 0
    failures: list = field(default_factory=list)  # (number, what was done, what came of it)
    kinds: collections.Counter = field(default_factory=collections.Counter)
    memory: int = 0  # bytes that the peak of resident memory rose by after the first inputs
    seconds: float = 0.0
    slowest: tuple = (0.0, None)  # seconds, number


def dump(content):
    return json.dumps(content, indent=1, sort_keys=True).encode() + b"\n"


def sealed(fields):
    """A manifest of these fields, whatever they are, with its own checksum made to fit."""
    rest = {name: value for name, value in fields.items() if name != "sha256"}
    return dump({**rest, "sha256": hashlib.sha256(dump(rest)).hexdigest()})


def manifest_of(contents):
    """The manifest that fits these four files, {name: bytes}."""
    files = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
        if name in LISTED
    }
    return sealed({"format": checkpoint_format.VERSION, "files": files})


# Mutations: (draws, contents {name: bytes}) -> (name, new bytes)


def flip(draws, contents):
    name = draws.choice(list(contents))
    content = bytearray(contents[name])
    for _ in range(draws.choice((1, 1, 1, 2, 8, 64))):
        content[draws.randrange(len(content))] ^= draws.randrange(1, 256)
    return name, bytes(content)


def cut(draws, contents):
    name = draws.choice(list(contents))
    content = contents[name]
    at, length = draws.randrange(len(content)), draws.choice((1, 1, 4, 8, 100, len(content)))
    return name, draws.choice(
        (
            content[:at],
            content[at:],
            content[:at] + content[at + length :],
            content + content[at : at + length],
            content + bytes(length),
            content[:at] + bytes(length) + content[at:],
            b"",
        )
    )


def splice(draws, contents):
    """A piece of one file in another."""
    name, other = draws.choice(list(contents)), contents[draws.choice(list(contents))]
    content, start = contents[name], draws.randrange(len(other))
    piece, at = other[start : start + draws.choice((1, 4, 8, 40, 1000))], draws.randrange(len(content))
    return name, draws.choice(
        (content[:at] + piece + content[at + len(piece) :], content[:at] + piece + content[at:], other, piece)
    )


def swap(draws, contents):
    """Two pieces of a file in each other's place."""
    name = draws.choice(list(contents))
    content = contents[name]
    a, b, c, d = sorted(draws.randrange(len(content) + 1) for _ in range(4))
    return name, content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:]


def become_pickle(draws, contents):
    name = draws.choice(list(contents))
    if draws.random() < 0.2:
        buffer = io.BytesIO()
        torch.save({"conv1.weight": torch.zeros(3)}, buffer)
        return name, buffer.getvalue()
    return name, draws.choice((b"", contents[name][: draws.randrange(1, 9)])) + draws.choice(PICKLES)


def change_state(draws, contents):
    return STATE, changed_json(draws, json.loads(contents[STATE]))


def change_header(draws, contents):
    """A field of a tensor file's header, or its length."""
    name = draws.choice(TENSORS)
    content = contents[name]
    end = 8 + int.from_bytes(content[:8], "little")
    text, data = content[8:end], content[end:]
    if draws.random() < 0.2:
        length = draws.choice(
            (
                0,
                1,
                7,
                len(text) - 1,
                len(text) + 1,
                len(content),
                1 << 20,
                (1 << 20) + 1,
                1 << 31,
                1 << 32,
                1 << 63,
                2**64 - 1,
            )
        )
        return name, length.to_bytes(8, "little") + text + data
    header = json.loads(text)
    if draws.random() < 0.5:
        text = changed_json(draws, header)
    else:
        entry, other = (header[key] for key in draws.choices(list(header), k=2))
        spans = [
            entry["data_offsets"],
            other["data_offsets"],
            [0, len(data)],
            [0, 0],
            [-4, 0],
            [len(data), len(data)],
            [4, 0],
            [2**63 - 4, 2**63],
            [2**64 - 4, 2**64],
            [0, 2**64 + 4],
        ]
        shapes = [
            other["shape"],
            entry["shape"][::-1],
            [],
            [0],
            [1, *entry["shape"]],
            [2**32, 2**32],
            [2**62, 4],
            [-1, -1],
            [0, 2**63],
        ]
        entry.update(
            draws.choice(
                (
                    {"data_offsets": draws.choice(spans)},
                    {"shape": draws.choice(shapes)},
                    {"dtype": draws.choice(("F64", "F32", "F16", "BF16", "I32", "U8", "BOOL", "F4", "", "f32"))},
                )
            )
        )
        text = json.dumps(header, separators=(",", ":")).encode()
    text = draws.choice((text, text.ljust(end - 8)))
    return name, len(text).to_bytes(8, "little") + text + data


def change_manifest(draws, contents):
    """A field of the manifest, mostly with a checksum that fits where the text still is JSON."""
    text = changed_json(draws, json.loads(contents[MANIFEST]))
    try:
        fields = json.loads(text)
        return MANIFEST, sealed(fields) if draws.random() < 0.8 else text
    except (ValueError, RecursionError, AttributeError):
        return MANIFEST, text


def rename_in_manifest(draws, contents):
    fields = json.loads(contents[MANIFEST])
    name = draws.choice(LISTED)
    entry = fields["files"].pop(name) if draws.random() < 0.7 else fields["files"][name]
    fields["files"][
        draws.choice(
            (
                "../" + name,
                "/" + name,
                "./" + name,
                "..",
                ".",
                "",
                name + "/",
                name + "\0",
                "/dev/zero",
                "/etc/passwd",
                name.upper(),
                MANIFEST,
                "x/../" + name,
                "\ud800",
                "a" * 5000,
                *LISTED,
            )
        )
    ] = entry
    return MANIFEST, sealed(fields)


def changed_json(draws, fields):
    """The text of JSON with one or two places replaced, removed, renamed, given twice, or added to."""
    for number in range(draws.choice((1, 1, 1, 2))):
        *path, key = draws.choice(list(paths(fields)))
        owner = fields
        for step in path:
            owner = owner[step]
        action = draws.choice(("replace", "replace", "replace", "replace", "remove", "rename", "twice", "add", "move"))
        if action == "replace" or isinstance(owner, list) and action != "remove":
            owner[key] = f"PLACE{number}"
        elif action == "remove":
            del owner[key]
        elif action == "rename":
            owner[draws.choice(("x", "", "__class__", key.upper(), key + " "))] = owner.pop(key)
        elif action == "twice":
            owner[f"TWICE{number}"], twin = owner[key], key
        elif action == "add":
            owner[draws.choice(("more", "__class__", "format", "\0", "shape"))] = f"PLACE{number}"
        else:
            owner[key] = owner[draws.choice(list(owner))]
        if not fields:
            break
    text = json.dumps(fields)
    for number in range(2):
        text = text.replace(f'"PLACE{number}"', draws.choice(HOSTILE))
        if f"TWICE{number}" in text:
            text = text.replace(f"TWICE{number}", twin)
    return text.encode(errors="surrogatepass")


def paths(fields, prefix=()):
    for key, value in fields.items() if isinstance(fields, dict) else enumerate(fields):
        yield *prefix, key
        if isinstance(value, (dict, list)):
            yield from paths(value, (*prefix, key))


def odd_file(draws, place):
    """Something else in place of a file, or beside the files. Returns what was done."""
    name = draws.choice((*LISTED, MANIFEST))
    path = place / name
    kind = draws.choice(
        ("missing", "link", "dangling", "loop", "pipe", "directory", "foreign", "long name", "null device")
    )
    if kind not in ("foreign", "long name"):
        path.unlink()
    if kind == "link":
        path.symlink_to(BASE / name)
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "loop":
        path.symlink_to(name)
    elif kind == "null device":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "foreign":
        (place / draws.choice((name + ".bak", ".hidden", "-rf", "a\nb", "\udcff", name.upper()))).write_bytes(b"x")
    elif kind == "long name":
        (place / ("x" * 255)).write_bytes(b"")
    return f"{kind} {name}"


MUTATIONS = (flip, cut, splice, swap, become_pickle, change_state, change_state, change_header, change_header)
OF_MANIFEST = (change_manifest, rename_in_manifest)


def mutate(draws, place, original):
    """Change the whole checkpoint at `place`. Returns (what was done, whether a checksum has to find it)."""
    choice = draws.random()
    if choice < 0.04:
        return odd_file(draws, place), True
    if choice < 0.2:
        mutation = draws.choice(OF_MANIFEST)
        (place / MANIFEST).write_bytes(mutation(draws, original)[1])
        return mutation.__name__, True
    mutation, fits = draws.choice(MUTATIONS), draws.random() < 0.6
    contents = dict(original) if not fits else {name: original[name] for name in LISTED}
    name, content = mutation(draws, contents)
    (place / name).write_bytes(content)
    if fits:
        (place / MANIFEST).write_bytes(manifest_of({**contents, name: content}))
    return f"{mutation.__name__} {name}{', checksums fit' if fits else ''}", not fits


def complaint(action, place):
    """(what an action on the checkpoint gave, None), or (None, the UserError's text). AssertionError for a text that
    won't do."""
    try:
        return action(place), None
    except UserError as error:
        assert str(error).startswith(str(place)), f"the message doesn't begin with a path: {error}"
        assert "\n" not in str(error).replace("a\nb", ""), f"the message has several lines: {error}"
        assert len(str(error)) < 2000, f"the message has {len(str(error))} characters"
        return None, str(error)


def check(draws, place, must_be_found, original, again):
    """Read the checkpoint, and once more in another way. Returns whether it was taken, and only as what it is.

    Raises AssertionError where a rule is broken.
    """
    loaded, _ = complaint(checkpoint_format.load, place)
    other = draws.choice((checkpoint_format.read_state, checkpoint_format.load_weights, checkpoint_format.verify))
    found, problem = complaint(other, place)
    if other is checkpoint_format.load_weights and found is not None:
        agree(found, (place / WEIGHTS).read_bytes())
    read = {checkpoint_format.read_state: [STATE], checkpoint_format.load_weights: [WEIGHTS]}.get(other, original)
    if must_be_found and problem is None:
        assert all((place / name).read_bytes() == original[name] for name in read), "a change went unnoticed"
    if loaded is None:
        return False
    assert problem is None, "load takes what another reader refuses"
    assert other is checkpoint_format.load_weights or found == loaded.state, "two readers of the state differ"
    if must_be_found:
        assert all((place / name).read_bytes() == content for name, content in original.items()), (
            "a change went unnoticed"
        )
    for name, tensors in (
        (WEIGHTS, loaded.weights),
        (VELOCITY, loaded.velocity),
        (STATISTICS, vars(loaded.statistics)),
    ):
        agree(tensors, (place / name).read_bytes())
        assert all(np.isfinite(np.asarray(values)).all() for values in tensors.values()), "a value that is not finite"
    shutil.rmtree(again, ignore_errors=True)
    checkpoint_format.write(again, loaded)  # what was taken can be given again, and says the same
    assert json.loads((again / STATE).read_bytes()) == json.loads((place / STATE).read_bytes()), (
        "the state was not read as it is"
    )
    return True


def agree(tensors, content):
    if any(values.dtype == torch.bfloat16 for values in tensors.values()):
        return  # numpy has none
    plain = safetensors.numpy.load(content)
    for name, values in plain.items():
        found = np.asarray(tensors[name])
        same = found.dtype == values.dtype and found.shape == values.shape and found.tobytes() == values.tobytes()
        assert same, f"{name} differs"


def restore(place, original):
    for entry in os.scandir(place):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        elif entry.name not in original or not entry.is_file(follow_symlinks=False):
            os.unlink(entry.path)
    for name, content in original.items():
        if not (place / name).exists() or (place / name).read_bytes() != content:
            (place / name).write_bytes(content)


def run(inputs, seed, only=None):
    """Read `inputs` mutations of the checkpoint in `BASE`, or number `only` alone. Returns a `Result`."""
    result, started = Result(), time.perf_counter()
    original = {name: (BASE / name).read_bytes() for name in (*LISTED, MANIFEST)}
    memory_backed = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory_backed) as folder:
        place, peak = Path(folder) / "step_00000003", None
        place.mkdir()
        for number in range(inputs) if only is None else [only]:
            restore(place, original)
            draws, begun = random.Random(f"{seed} {number}"), time.perf_counter()
            what, must_be_found = mutate(draws, place, original)
            try:
                loaded = check(draws, place, must_be_found, original, Path(folder) / "again")
                result.loaded += loaded
                result.refused += not loaded
                result.kinds[what.split()[0], "loaded" if loaded else "refused"] += 1
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a panic of the library in Rust is no Exception
                result.failures.append((number, what, f"{type(error).__name__}: {error}"))
                if only is not None:
                    traceback.print_exc()
            result.slowest = max(result.slowest, (time.perf_counter() - begun, number))
            if number == WARM_UP:
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if peak:
        result.memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024
    result.seconds = time.perf_counter() - started
    return result


def main():
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="N", help="input N of this seed alone")
    parser.add_argument("--kinds", action="store_true", help="print a count for each kind of mutation too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = run(options.inputs, options.seed, options.only)
    for (kind, outcome), count in sorted(result.kinds.items()) if options.kinds else ():
        print(f"{kind:20} {outcome:8} {count:8,}")
    for number, what, problem in result.failures[:20]:
        print(f"FAILED: input {number}, {what}: {problem:.500}")
    print(
        f"{result.refused + result.loaded + len(result.failures):,} inputs, seed {options.seed}: "
        f"{result.refused:,} refused, "
        f"{result.loaded:,} loaded as what they are, {len(result.failures):,} failures; {result.seconds:.1f} s, "
        "the slowest "
        f"{result.slowest[0]:.2f} s (number {result.slowest[1]}); peak memory grew by {result.memory / 1e6:.1f} MB"
    )
    return 1 if result.failures else 0


if __name__ == "__main__":
    sys.exit(main())
