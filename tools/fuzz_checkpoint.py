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
import json
import os
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
from checkpoint_mutations import BASE, LISTED, mutate

from alexnet_mp.data.pixel_statistics import STATISTICS
from alexnet_mp.runs import checkpoint_format
from alexnet_mp.runs.checkpoint_format import MANIFEST, STATE, VELOCITY, WEIGHTS
from alexnet_mp.system.errors import UserError

WARM_UP = 500  # inputs before memory is measured


@dataclass
class Result:
    refused: int = 0
    loaded: int = 0
    failures: list = field(default_factory=list)  # (number, what was done, what came of it)
    kinds: collections.Counter = field(default_factory=collections.Counter)
    memory: int = 0  # bytes that the peak of resident memory rose by after the first inputs
    seconds: float = 0.0
    slowest: tuple = (0.0, None)  # seconds, number


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


def check(draws, place, must_be_found, original, copy):
    """Read the checkpoint, and once more in another way. Returns whether it was taken, and only as what it is.

    Raises AssertionError where a rule is broken.
    """
    checkpoint, _ = complaint(checkpoint_format.load, place)
    reader = draws.choice((checkpoint_format.read_state, checkpoint_format.load_weights, checkpoint_format.verify))
    reading, problem = complaint(reader, place)
    if reader is checkpoint_format.load_weights and reading is not None:
        agree(reading, (place / WEIGHTS).read_bytes())
    names = {checkpoint_format.read_state: [STATE], checkpoint_format.load_weights: [WEIGHTS]}.get(reader, original)
    if must_be_found and problem is None:
        assert all((place / name).read_bytes() == original[name] for name in names), "a change went unnoticed"
    if checkpoint is None:
        return False
    assert problem is None, "load takes what another reader refuses"
    assert reader is checkpoint_format.load_weights or reading == checkpoint.state, "two readers of the state differ"
    if must_be_found:
        assert all((place / name).read_bytes() == content for name, content in original.items()), (
            "a change went unnoticed"
        )
    for name, tensors in (
        (WEIGHTS, checkpoint.weights),
        (VELOCITY, checkpoint.velocity),
        (STATISTICS, vars(checkpoint.statistics)),
    ):
        agree(tensors, (place / name).read_bytes())
        assert all(np.isfinite(np.asarray(values)).all() for values in tensors.values()), "a value that is not finite"
    shutil.rmtree(copy, ignore_errors=True)
    checkpoint_format.write(copy, checkpoint)  # what was taken can be given again, and says the same
    assert json.loads((copy / STATE).read_bytes()) == json.loads((place / STATE).read_bytes()), (
        "the state was not read as it is"
    )
    return True


def agree(tensors, content):
    if any(values.dtype == torch.bfloat16 for values in tensors.values()):
        return  # numpy has none
    reference = safetensors.numpy.load(content)
    for name, values in reference.items():
        array = np.asarray(tensors[name])
        same = array.dtype == values.dtype and array.shape == values.shape and array.tobytes() == values.tobytes()
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
    result, start = Result(), time.perf_counter()
    original = {name: (BASE / name).read_bytes() for name in (*LISTED, MANIFEST)}
    memory_backed = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory_backed) as folder:
        place, peak = Path(folder) / "step_00000003", None
        place.mkdir()
        for number in range(inputs) if only is None else [only]:
            restore(place, original)
            draws, input_start = random.Random(f"{seed} {number}"), time.perf_counter()
            mutation, must_be_found = mutate(draws, place, original)
            try:
                loaded = check(draws, place, must_be_found, original, Path(folder) / "again")
                result.loaded += loaded
                result.refused += not loaded
                result.kinds[mutation.split()[0], "loaded" if loaded else "refused"] += 1
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a panic of the library in Rust is no Exception
                result.failures.append((number, mutation, f"{type(error).__name__}: {error}"))
                if only is not None:
                    traceback.print_exc()
            result.slowest = max(result.slowest, (time.perf_counter() - input_start, number))
            if number == WARM_UP:
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if peak:
        result.memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024
    result.seconds = time.perf_counter() - start
    return result


def main(run=run, description=__doc__, loaded="loaded as what they are"):
    """The command of a fuzzer. run(inputs, seed, only) gives a `Result`; loaded: what becomes of what isn't refused."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="N", help="input N of this seed alone")
    parser.add_argument("--kinds", action="store_true", help="print a count for each kind of mutation too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = run(options.inputs, options.seed, options.only)
    for (kind, outcome), count in sorted(result.kinds.items()) if options.kinds else ():
        print(f"{kind:28} {outcome:8} {count:8,}")
    for number, what, problem in result.failures[:20]:
        print(f"FAILED: input {number}, {what}: {problem:.500}")
    print(
        f"{result.refused + result.loaded + len(result.failures):,} inputs, seed {options.seed}: "
        f"{result.refused:,} refused, "
        f"{result.loaded:,} {loaded}, {len(result.failures):,} failures; {result.seconds:.1f} s, "
        "the slowest "
        f"{result.slowest[0]:.2f} s (number {result.slowest[1]}); peak memory grew by {result.memory / 1e6:.1f} MB"
    )
    return 1 if result.failures else 0


if __name__ == "__main__":
    sys.exit(main())
