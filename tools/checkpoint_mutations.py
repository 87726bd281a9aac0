"""What `fuzz_checkpoint.py` does to a checkpoint: a mutation of its files, drawn at random.

A mutation is a function (draws, contents {name: bytes}) -> (name, new bytes)."""

import hashlib
import io
import json
import os
import pickle
from pathlib import Path

import torch

from alexnet_mp.data.pixel_statistics import STATISTICS
from alexnet_mp.runs import checkpoint_format
from alexnet_mp.runs.checkpoint_format import MANIFEST, STATE, VELOCITY, WEIGHTS

BASE = Path(__file__).resolve().parents[1] / "tests" / "checkpoint_v7" / "step_00000003"
TENSORS, LISTED = (WEIGHTS, VELOCITY, STATISTICS), (WEIGHTS, VELOCITY, STATISTICS, STATE)
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
