"""Tensor files whose header lies: refused before anything is allocated, alone as in a checkpoint whose checksums
fit."""

import json

import numpy as np
import torch
from inner_cases import every
from safetensors.torch import save
from tiny_checkpoint import V6, refused, rewrite, with_header

from alexnet_mp.data.pixel_statistics import STATISTICS, Statistics
from alexnet_mp.runs import safetensors_file
from alexnet_mp.runs.checkpoint_format import WEIGHTS, load, load_weights


def header_and_data(content):
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def entry(name, **fields):
    return lambda header: header[name].update(fields)


HEADERS = {
    "dtype": entry("fc8.bias", dtype="I32"),
    "unknown dtype": entry("fc8.bias", dtype="F99"),
    "list for dtype": entry("fc8.bias", dtype=[]),
    "half": entry("fc8.bias", dtype="F16", shape=[6]),
    "shape": entry("conv1.weight", shape=[4, 2, 3, 2]),
    "flat": entry("conv1.weight", shape=[48]),
    "negative shape": entry("fc8.bias", shape=[-3]),
    "NaN": entry("fc8.bias", shape=[float("nan")]),
    "huge shape": entry("fc8.bias", shape=[10**18, 10**18]),
    "long shape": entry("fc8.bias", shape=[1] * 10_000 + [3]),
    "true": entry("fc8.bias", shape=[3, True]),
    "overlap": entry("fc8.bias", data_offsets=[0, 12]),
    "negative offset": entry("fc8.bias", data_offsets=[-12, 0]),
    "backwards": entry("fc8.bias", data_offsets=[12, 0]),
    "outside": entry("fc8.bias", data_offsets=[10**18, 10**18 + 12]),
    "one offset": entry("fc8.bias", data_offsets=[12]),
    "fraction": entry("fc8.bias", data_offsets=[0.0, 12.0]),
    "text": entry("fc8.bias", data_offsets="ab"),
    "more": entry("fc8.bias", more=1),
    "renamed": lambda header: header.update({"fc9.bias": header.pop("fc8.bias")}),
    "no entry": lambda header: header.update({"fc8.bias": None}),
    "missing": lambda header: header.pop("fc8.bias"),
    "extra": lambda header: header.update({"x": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}),
    "metadata": lambda header: header.update({"__metadata__": {"a": 1}}),
    "nothing": dict.clear,
}


@every("change", HEADERS.values(), ids=HEADERS)
def test_a_header_that_lies_though_the_checksums_fit(change, place):
    header, data = header_and_data((place / WEIGHTS).read_bytes())
    change(header)
    rewrite(place, WEIGHTS, with_header(header, data))
    refused(load, place, WEIGHTS)
    # not wrong in themselves
    if change not in [HEADERS[name] for name in ("renamed", "shape", "flat", "half", "extra")]:
        refused(load_weights, place, WEIGHTS)


def same_size(place, header):
    """weights.safetensors with another header of the same length, so that no size gives it away; None where it is
    longer."""
    content = (place / WEIGHTS).read_bytes()
    length, text = int.from_bytes(content[:8], "little"), json.dumps(header, separators=(",", ":")).encode()
    return None if len(text) > length else with_header(text.ljust(length), header_and_data(content)[1])


def test_headers_of_the_right_length(place):
    count = 0
    for name, change in HEADERS.items():
        header, _ = header_and_data((V6 / WEIGHTS).read_bytes())
        change(header)
        if content := same_size(place, header):
            rewrite(place, WEIGHTS, content)
            message = refused(load, place, WEIGHTS)
            assert (
                name not in ("shape", "flat") or "conv1.weight is F32" in message and "has F32 (4, 3, 2, 2)" in message
            )
            count += 1
    assert count > 12


X = b'"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'


@every(
    "content",
    [
        b"",
        b"\x10",
        (1 << 62).to_bytes(8, "little"),
        (2 << 20).to_bytes(8, "little") + b" " * (2 << 20),
        (100).to_bytes(8, "little") + b"{}",
        with_header(b"[" * 5000, b""),
        with_header(b"{" * 5, b""),
        with_header(b"\xff{}", b""),
        with_header(b"[]", b""),
        with_header(b"{}", b""),
        with_header(b"{%b,%b}" % (X, X), bytes(4)),
        with_header(b"{%b}" % X, bytes(8)),
        with_header(b"{%b}" % X, bytes(3)),
        with_header(b' {"x":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', bytes(8)),
        with_header(b'{"x":{"dtype":"F32","shape":[1' + b"0" * 5000 + b'],"data_offsets":[0,4]}}', bytes(4)),
    ],
)
def test_tensor_files_of_other_content(content, place):
    rewrite(place, WEIGHTS, content)
    refused(load, place, WEIGHTS)
    refused(load_weights, place, WEIGHTS)


@every("length", [0x0480, 0x4B50])
def test_a_header_whose_length_begins_like_a_pickle(length, place):
    """One length in 32 has the first byte of a pickle, and one the first two of a zip archive."""
    text = (b"{%b}" % X).ljust(length)
    rewrite(place, WEIGHTS, with_header(text, bytes(4)))
    assert (place / WEIGHTS).read_bytes()[0] in b"\x80P" and load_weights(place)["x"].tolist() == [0.0]


@every("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_in_another_dtype(dtype, place):
    values = torch.arange(6, dtype=dtype).reshape(2, 3)
    rewrite(place, WEIGHTS, save({"x": values, "empty": torch.zeros(0, 3)}, {"format": "pt"}))
    assert torch.equal(load_weights(place)["x"], values)


def test_a_negative_variance(place):
    values = vars(Statistics.load(place)) | {"eigenvalues": np.array([-0.1, 0.1, 0.2])}
    layout = safetensors_file.read_layout((place / STATISTICS).stat().st_size, (place / STATISTICS).read_bytes())
    rewrite(place, STATISTICS, b"".join(safetensors_file.parts(layout, values)))
    assert "negative" in refused(load, place, STATISTICS)
