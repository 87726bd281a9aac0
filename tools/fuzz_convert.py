#!/usr/bin/env python3
"""Converts mutated files from elsewhere: each must be refused in one line that begins with its path, or come back as
tensors of the recipe's shapes, all finite.

    python tools/fuzz_convert.py --inputs 100000 --seed 0
    python tools/fuzz_convert.py --seed 0 --only 4711    one input again, with the traceback of its failure

Caffe's networks in both formats, a mean image, a list of classes, safetensors, and arrays by layer as .npz, .npy and
text: bytes are flipped, cut, spliced and swapped, lengths become hostile, files become pickles. Where tensors or arrays
are taken, they are compared with what safetensors and NumPy read. Prints counts, the growth of resident memory, and the
time; the exit status is 1 where there was a failure."""

import io
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from pathlib import Path

import numpy as np
import safetensors.numpy
from checkpoint_mutations import become_pickle, changed_json, cut, flip, splice, swap
from fuzz_checkpoint import WARM_UP, Result, main

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from caffe_made import SMALL, binaryproto, caffemodel, made_blobs, varint

from alexnet_mp.interchange.convert import convert
from alexnet_mp.interchange.converted_run import write_run
from alexnet_mp.network.network import TwoTowerAlexNet
from alexnet_mp.recipes import shapes
from alexnet_mp.recipes.named import PRESETS
from alexnet_mp.recipes.recipe import override
from alexnet_mp.system.errors import UserError

TINY = (*SMALL, "crop_size=67", "stored_size=72", "conv1.maps=2", "conv2.maps=2", "conv3.maps=2", "conv4.maps=2")
TINY += ("conv5.maps=2", "fc6.maps=4", "fc7.maps=4", "lrn_crosses=false")
LENGTHS = (0, 1, 2, 127, 128, 1 << 20, 1 << 27, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1)
CLASSES = "".join(f"n{number:08} word {number}\n" for number in range(10)).encode()


def originals():
    """{kind: (files {name: bytes}, what is converted, options)}"""
    blobs, mean = made_blobs(), np.random.default_rng(0).uniform(0, 255, (104, 104, 3)).astype(np.float32)
    extras = {"mean.binaryproto": binaryproto(mean), "synset_words.txt": CLASSES}
    network = TwoTowerAlexNet(override(PRESETS["caffenet"](), TINY), ("cpu", "cpu"), 10, "reference")
    state = {name: tensor.numpy() for name, tensor in network.merged_state().items()}
    layers = _by_layer(network)
    npz, archive = io.BytesIO(), io.BytesIO()
    np.savez(npz, **layers)
    np.savez_compressed(archive, **layers)
    arrays = {}
    for number, (name, array) in enumerate(layers.items()):
        content = io.BytesIO()
        np.savetxt(content, array, fmt="%.9g") if number % 2 else np.save(content, array)
        arrays[f"{name}.{'txt' if number % 2 else 'npy'}"] = content.getvalue()
    options, class_file = {"recipe": "caffenet", "settings": TINY, "mean": "1,2,3"}, {"synset_words.txt": CLASSES}
    return {
        "caffe": ({"net.caffemodel": caffemodel(blobs), **extras}, "net.caffemodel", {"settings": SMALL}),
        "old caffe": ({"net.caffemodel": caffemodel(blobs, old=True), **extras}, "net.caffemodel", {"settings": SMALL}),
        "tensors": ({"net.safetensors": safetensors.numpy.save(state), **class_file}, "net.safetensors", options),
        "npz": ({"net.npz": npz.getvalue()}, "net.npz", options),
        "packed npz": ({"net.npz": archive.getvalue(), **class_file}, "net.npz", options),
        "folder": ({**arrays, **class_file}, "", options),
    }


def _by_layer(network):
    arrays = {}
    for tower, letter in zip(network.towers, "ab"):
        for name, layer in tower.named_children():
            stem = name if name == "fc8" else f"{name}{letter}"
            weight = layer.weight.detach().numpy()
            arrays[f"{stem}.weights"] = np.ascontiguousarray(weight.reshape(len(weight), -1).T)
            arrays[f"{stem}.biases"] = layer.bias.detach().numpy()
    return arrays


def hostile_length(draws, contents):
    """A number of a few bytes put in the place of some: a length of protobuf's or of a header."""
    name = draws.choice(list(contents))
    content, value = contents[name], draws.choice(LENGTHS)
    at = draws.randrange(min(len(content), draws.choice((16, 200, 1 << 30))))
    number = draws.choice((varint(value), (value % 2**64).to_bytes(8, "little"), (value % 2**32).to_bytes(4, "little")))
    return name, content[:at] + number + content[at + draws.choice((0, 1, len(number))) :]


def header(draws, contents):
    """A field of a safetensors header, or a line of a text."""
    name = draws.choice(list(contents))
    content = contents[name]
    if name.endswith(".safetensors"):
        end = 8 + int.from_bytes(content[:8], "little")
        text = changed_json(draws, json.loads(content[8:end]))
        return name, len(text).to_bytes(8, "little") + text + content[end:]
    return name, content.replace(
        *draws.choice(((b"\n", b""), (b"1", b"nan"), (b"(", b"(-"), (b"f4", b"O8"), (b" ", b"\0")))
    )


MUTATIONS = (flip, flip, cut, splice, swap, become_pickle, hostile_length, hostile_length, header)


def check(folder, target, options, draws, kind):
    """Convert, and compare. Returns whether it was taken. Raises AssertionError where a rule is broken."""
    source = folder / target if target else folder
    try:
        network = convert(source, note=lambda line: None, **options)
    except UserError as error:
        assert str(error).startswith(str(folder)), f"the message doesn't begin with a path: {error}"
        assert "\n" not in str(error) and len(str(error)) < 1000, f"the message is no line: {str(error)[:2000]}"
        return False
    expected = shapes.merged_shapes(network.recipe, len(network.classes))
    assert {name: array.shape for name, array in network.weights.items()} == expected
    assert all(array.dtype == np.float32 for array in network.weights.values())
    if kind == "tensors":
        reference = safetensors.numpy.load(source.read_bytes())
        assert all(np.array_equal(network.weights[name], reference[name].astype(np.float32)) for name in expected)
    elif kind.endswith("npz"):
        with zipfile.ZipFile(source) as archive:
            reference = np.load(io.BytesIO(archive.read("fc8.weights.npy")), allow_pickle=False)
        assert np.array_equal(network.weights["fc8.weight"], reference.T.astype(np.float32))
    if draws.random() < 0.02:
        try:
            write_run(folder / "out", network, "fuzz")
        except UserError as error:
            assert "\n" not in str(error), error
        shutil.rmtree(folder / "out", ignore_errors=True)
    return True


def run(inputs, seed, only=None):
    """Convert `inputs` mutated files, or number `only` alone. Returns a `Result`."""
    result, start, cases = Result(), time.perf_counter(), originals()
    memory_backed = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory_backed) as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of NumPy, of numbers that overflow
        folders, peak = {}, None
        for kind, (files, *_) in cases.items():
            folders[kind] = Path(place) / kind.replace(" ", "-")
            folders[kind].mkdir()
            for name, content in files.items():
                (folders[kind] / name).write_bytes(content)
            _, target, options = cases[kind]
            assert check(folders[kind], target, options, random.Random(0), kind), f"{kind} is refused as it is"
        for number in range(inputs) if only is None else [only]:
            draws, input_start = random.Random(f"{seed} {number}"), time.perf_counter()
            kind = draws.choice(list(cases))
            files, target, options = cases[kind]
            # the weights, twice as often as what lies beside them
            candidates = {name: content for name, content in files.items() if draws.random() < 0.7 or name == target}
            mutation = draws.choice(MUTATIONS)
            name, content = mutation(draws, candidates or files)
            for _ in range(draws.choice((0, 0, 1))):
                name, content = draws.choice((flip, cut))(draws, {name: content or b"0"})
            (folders[kind] / name).write_bytes(content)
            try:
                taken = check(folders[kind], target, options, draws, kind)
                result.loaded += taken
                result.refused += not taken
                result.kinds[f"{kind}, {mutation.__name__}", "taken" if taken else "refused"] += 1
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a panic of a library in Rust is no Exception
                result.failures.append(
                    (number, f"{kind}, {mutation.__name__}, {name}", f"{type(error).__name__}: {error}")
                )
                if only is not None:
                    traceback.print_exc()
            (folders[kind] / name).write_bytes(files[name])
            result.slowest = max(result.slowest, (time.perf_counter() - input_start, number))
            if number == WARM_UP:
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if peak:
        result.memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024
    result.seconds = time.perf_counter() - start
    return result


if __name__ == "__main__":
    sys.exit(main(run, __doc__, "taken"))
