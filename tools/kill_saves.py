"""Kill processes that do nothing but save checkpoints, a thousand times, and see whether one is ever lost.

    python tools/kill_saves.py --kills 1000 --seed 0

Each process puts and prunes tiny checkpoints without a pause, every other one a second time, as after a validation. A
SIGKILL ends it: at a random moment, or at a random system call, which is not made, or in the middle of a write; after
every third one another kill falls in the recovery. After each the newest checkpoint must load and be no older than the
last that was reported complete, and every checkpoint must hold what it was made of. The exit status is 1 if one
doesn't."""

import argparse
import dataclasses
import mmap
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from alexnet_mp.data.pixel_statistics import Statistics
from alexnet_mp.recipes import shapes
from alexnet_mp.recipes.architectures import paper
from alexnet_mp.recipes.recipe import Layer
from alexnet_mp.runs import checkpoint_format, checkpoints
from alexnet_mp.runs.checkpoint_format import Checkpoint
from alexnet_mp.runs.checkpoint_state import Data, Environment, State, Validation
from alexnet_mp.system import durable_files

CALLS = ("open", "write", "read", "fsync", "close", "fstat", "lstat", "scandir", "rename", "mkdir", "rmdir", "unlink")
# a kill before another call is one after the last of these
CHANGING = ("write", "fsync", "rename", "mkdir", "rmdir", "unlink")
STAGES = ("between", "put", "prune", "recover")
MOST_CALLS = 70  # of these; two rounds of put and prune make fewer
KEEP = 2
STAGE, CALL, REPORTED = 0, 1, slice(8, 16)  # what a process leaves in the memory that it shares with its parent
LAYERS = (Layer("conv1", "conv", 2, "image", ("relu",), kernel=2), Layer("fc8", "fc", None, "both", (), towers="first"))
RECIPE = dataclasses.replace(
    paper(), name="tiny", layers=LAYERS, stored_size=5, crop_size=4, crop_positions=2, batch_size=4, dates=()
)
CLASSES = ("ant", "bee")


def checkpoint_of(step, top1_error=None):
    """A checkpoint of a few hundred numbers, all of which follow from its step and whether it was validated."""
    values = np.random.default_rng([step, top1_error is not None])
    weights, velocity = (
        {
            name: torch.from_numpy(values.standard_normal(shape, np.float32))
            for name, shape in shapes.merged_shapes(RECIPE, len(CLASSES)).items()
        }
        for _ in range(2)
    )
    validation = None if top1_error is None else Validation(top1_error, 0.0, 1.0, 8)
    state = State(
        step=step,
        epoch=1,
        recipe=RECIPE,
        data=Data("builtin", "", "", CLASSES),
        schedule={},
        scheduled=None,
        validated=validation is not None,
        validation=validation,
        metrics_bytes=step,
        saved="",
        made_by=Environment(("cpu", "cpu"), "cpu", "fp32", "torch", "off", 1, {}, None, 1),
    )
    return Checkpoint(weights, velocity, Statistics(values.random((5, 5, 3)), np.ones(3), np.eye(3)), state)


def holds_what_it_should(directory):
    """The `State` of a checkpoint that was made by `checkpoint_of`. Raises UserError or AssertionError where it is
    another."""
    checkpoint = checkpoint_format.load(directory)
    state = checkpoint.state
    original = checkpoint_of(state.step, state.validation and state.validation.top1_error)
    assert state == original.state and checkpoints.step_of(f"step_{directory.name[-8:]}") == state.step, directory
    for part in ("weights", "velocity", "statistics"):
        a, b = (
            value if isinstance(value, dict) else vars(value)
            for value in (getattr(checkpoint, part), getattr(original, part))
        )
        assert a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a), f"{directory}: {part}"
    return state


class Watched:
    """Stands in for the `os` of `durable_files`: says in `shm` which system call is being made; dies at number `at`
    of the changing ones."""

    def __init__(self, shm, at=None):
        self.shm, self.left = shm, at

    def __getattr__(self, name):
        original = getattr(os, name)
        if name not in CALLS:
            return original

        def call(*arguments, **options):
            self.shm[CALL] = 1 + CALLS.index(name)
            if self.left is not None and name in CHANGING:
                self.left -= 1
                if self.left < 0:
                    if name == "write":
                        original(arguments[0], arguments[1][: len(arguments[1]) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
            try:
                return original(*arguments, **options)
            finally:
                self.shm[CALL] = 0

        return call


def forked(work):
    """The id of a new process that does `work()` and ends."""
    process = os.fork()
    if process:
        return process
    try:
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def save_without_end(run, step, shm):
    while True:
        for top1_error in (None, 50.0 + step % 7)[: 1 + step % 2]:
            shm[STAGE] = STAGES.index("put")
            checkpoints.put(run, checkpoint_of(step, top1_error))
            shm[STAGE] = STAGES.index("between")
            shm[REPORTED] = (2 * step + (top1_error is not None)).to_bytes(8, "little")
            shm[STAGE] = STAGES.index("prune")
            checkpoints.prune(run, KEEP)
            shm[STAGE] = STAGES.index("between")
        step += 1


def killed_while_saving(run, step, shm, choose, seconds):
    """Start a process that saves from a step on, kill it, and return where it was: (stage, system call)."""
    at = choose.randrange(MOST_CALLS) if choose.random() < 0.5 else None
    shm[STAGE] = shm[CALL] = 0

    def work():
        durable_files.os = Watched(shm, at)
        save_without_end(run, step, shm)

    process = forked(work)
    if at is None:
        time.sleep(choose.uniform(0, seconds))
        os.kill(process, signal.SIGKILL)
    return _where(process, shm)


def killed_while_recovering(run, shm, choose):
    """The same for what the next start does first; (stage, call), or None where it was done before the kill came."""
    shm[STAGE], shm[CALL] = STAGES.index("recover"), 0

    def work():
        durable_files.os = Watched(shm, choose.randrange(6))
        checkpoints.recover(run)

    return _where(forked(work), shm)


def _where(process, shm):
    status = os.waitpid(process, 0)[1]
    if os.WIFSIGNALED(status):
        return STAGES[shm[STAGE]], CALLS[shm[CALL] - 1] if shm[CALL] else "none"
    assert status == 0, f"a process that saves ended by itself, with status {status}"
    return None


def kill_saves(run, kills, seed):
    """Kill and look, `kills` times: (where the kills fell, what was lost, how many first kills left a name of no
    checkpoint)."""
    choose, shm, places, failures, debris, step = random.Random(seed), mmap.mmap(-1, 16), Counter(), [], 0, 1
    start = time.perf_counter()
    checkpoints.put(run, checkpoint_of(0))
    seconds = 3 * (time.perf_counter() - start) + 0.01  # a few saves, and the start of the process
    while places.total() < kills:
        places[killed_while_saving(run, step, shm, choose, seconds)] += 1
        report = int.from_bytes(shm[REPORTED], "little")
        debris += any(name.startswith(".") for name in os.listdir(run / checkpoints.CHECKPOINTS))
        if places.total() < kills and choose.random() < 1 / 3:
            place = killed_while_recovering(run, shm, choose)
            places.update([place] if place else [])
        checkpoints.recover(run)
        try:
            states = [holds_what_it_should(directory) for directory in checkpoints.listing(run).values()]
            newest = 2 * states[-1].step + states[-1].validated
            assert newest >= report, f"the newest is of step {newest // 2}, {report // 2} was reported complete"
            names = [name for name in os.listdir(run / checkpoints.CHECKPOINTS) if checkpoints.step_of(name) is None]
            assert not names, f"left after the recovery: {names}"
        except (AssertionError, ValueError, IndexError) as error:  # UserError is a ValueError
            failures.append(f"kill {places.total()}: {error!r}")
        step = max(checkpoints.listing(run), default=step) + 1
    return places, failures, debris


def main(arguments=None):
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the moments; default: %(default)s")
    parser.add_argument("--directory", help="where to save; default: a temporary directory")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # a forked process has no other threads
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=options.directory) as run:
        places, failures, debris = kill_saves(Path(run), options.kills, options.seed)
    for stage in STAGES:
        calls = {call: count for (where, call), count in places.most_common() if where == stage}
        print(f"{stage:8} {sum(calls.values()):6,}  " + ", ".join(f"{call} {count}" for call, count in calls.items()))
    for line in failures[:20]:
        print(line)
    print(
        f"{places.total():,} kills in {time.perf_counter() - start:.0f} s; {debris:,} left something half done; "
        f"lost checkpoints: {len(failures)}"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
