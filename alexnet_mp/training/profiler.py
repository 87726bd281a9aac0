"""`train --profile`: records some steps of a run with torch.profiler, and says where their time went against the
roofline.

While it records, a range is open around every layer and every other part of a step, by hooks that are put on before and
taken off after; `attribution.py` makes milliseconds of them, `table.py` the table. What a run computes is not touched.
"""

import datetime
import gzip
import json
import os
import platform
import tempfile
from collections.abc import Generator
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from ..data.batches import Batch
from ..profiling import machine_limits
from ..profiling.attribution import FORWARD_BACKWARD, INPUT, LAYER, NETWORK, STEP, UPDATE, attribute, from_torch
from ..profiling.table import lines, table
from ..system import durable_files
from ..system.devices import device_name
from ..system.errors import UserError
from ..system.provenance import PACKAGES, package_version, source_commit
from ..system.terminal import say
from .graphed_step import GraphedStep
from .step import TrainingStep
from .trainer import Trainer

WARM_UP = 3  # steps before the first that is recorded
STEPS = 5
MOST_STEPS = 1000  # every operation of every step is kept in memory
TRACE, NUMBERS = "trace.json.gz", "profile.json"


def steps_of(text: str) -> int:
    """What `--profile STEPS` means: a number of steps. Raises UserError."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 9 and 1 <= int(text) <= MOST_STEPS):
        raise UserError(
            f"--profile {text}: write how many steps to record, 1 to {MOST_STEPS}; --profile alone records {STEPS}"
        )
    return int(text)


class Profiler:
    """Records `steps` steps of a `Trainer` after its first `WARM_UP`. precision: as `--precision`.

    The trainer takes its batches from `batches`, each step by `step` while `recording` is true, and calls `finish` at
    its end. While `recording`, `trainer.training_step` is a plain `TrainingStep` with ranges: whoever replays a CUDA
    graph there is left out, since a replay has no layers."""

    def __init__(self, trainer: Trainer, steps: int, precision: str):
        self.trainer, self.steps, self.precision = trainer, steps, precision
        self.recorded, self.images = [], 0  # the numbers of the steps that were recorded, and how many images they had
        self.running = self.finished = None  # the torch profile that runs; the one that is over and not yet written
        self.said, self.hooks, self.ranges, self.unrecorded_step = False, [], [], None

    @property
    def recording(self) -> bool:
        return self.running is not None

    def batches(self, batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
        """The same batches; the recording begins and ends between two of them."""
        with closing(batches):
            # Not as graphs, whose streams have memory of their own: the first step that is recorded would take all of
            # its own anew.
            self.unrecorded_step = self.trainer.training_step
            self.trainer.training_step = TrainingStep(self.trainer.network, self.trainer.optimizer)
            yield from islice(batches, WARM_UP)
            self._start()
            try:
                while len(self.recorded) < self.steps:
                    with record_function(INPUT):
                        batch = next(batches, None)
                    if batch is None:
                        break
                    yield batch
            finally:
                self._stop()
            try:
                self.finish()
            except Exception:  # the steps so far are whole
                self.trainer.checkpoints.save_what_is_there()
                raise
            yield from batches

    def step(self, batch: Batch) -> None:
        """`trainer.one_step`, recorded."""
        with record_function(STEP):
            self.trainer.one_step(batch)
            if len(self.recorded) + 1 == self.steps or not self.trainer.validated:
                self._synchronize()  # else kernels of the step would run after it
        self.recorded.append(self.trainer.step)
        self.images += len(batch.numbers)

    def finish(self) -> None:
        """Write what was recorded and print the table, once; or say why there is nothing. A full disk is a warning."""
        if self.said:
            return
        self.said = True
        if not self.recorded:
            say(
                f"profile: nothing was recorded, since the first {WARM_UP} steps only warm up and the run ended "
                "before one more"
            )
            return
        self._report()
        self.finished = None
        self.trainer.pending.start_clock()  # images/s of the next step are without this

    # --- recording

    def _start(self):
        network = self.trainer.network
        self._synchronize()
        self._around(network, NETWORK)
        for letter, tower in zip("ab", network.towers):
            for name, layer in tower.named_children():
                self._around(layer, f"{LAYER}{name} {letter}")
        self.trainer.training_step = _RangedStep(network, self.trainer.optimizer)
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else torch's profiler writes two lines for every recording
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if self.trainer.on_gpu else [])
        self.running = profile(activities=activities)
        self.running.start()
        if not self.trainer.on_gpu:
            self._spare_memory()
        self.trainer.pending.start_clock()

    def _spare_memory(self):
        """Take memory of the host and give it back: the allocator keeps it (`memory.py`), and large tensors find room
        there.

        What the recording keeps comes to lie between them, and without spare pages every step would wait for fresh
        ones: at batch 128 some 40,000 faults a step were seen, and single operations that took eight times as long as
        without a recording."""
        parameters = sum(parameter.numel() for parameter in self.trainer.network.parameters())
        torch.ones(4 * parameters)

    def _stop(self):
        if not self.recording:
            return
        self._synchronize()
        self.running.stop()
        for hook in self.hooks:
            hook.remove()
        self.trainer.training_step = self.unrecorded_step
        self.finished, self.running, self.hooks = self.running, None, []
        self.trainer.pending.start_clock()

    def _around(self, module, name):
        """A range around every forward pass of a module in training; an exception closes it too."""

        def enter(module, arguments):
            if module.training:
                self.ranges.append(record_function(name))
                self.ranges[-1].__enter__()

        def leave(module, arguments, output):
            if module.training:
                self.ranges.pop().__exit__(None, None, None)

        self.hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)]

    def _synchronize(self):
        for device in self._devices():
            if device.type == "cuda":
                torch.cuda.synchronize(device)

    def _devices(self):
        """{device: the numbers of the towers on it}"""
        devices = {}
        for tower, device in enumerate(self.trainer.network.exchange.devices):
            devices.setdefault(device, []).append(tower)
        return devices

    # --- what is written and printed

    def _report(self):
        run, recipe, network = self.trainer.run, self.trainer.recipe, self.trainer.network
        times = attribute(from_torch(self.finished.events()))
        count, images = len(self.recorded), self.images / len(self.recorded)
        span = f"steps {self.recorded[0]} to {self.recorded[-1]}" if count > 1 else f"step {self.recorded[0]}"
        step_ms, waiting_ms = (1e-3 * time / count for time in (times.whole, times.waited))
        say(
            f"profile of {span}, {images:,.4g} images a step, precision {self.precision}, kernels "
            f"{network.kernels_used()}: "
            f"{step_ms:,.2f} ms a step, {waiting_ms:,.2f} of them waiting for input"
        )
        has_graphs = isinstance(self.unrecorded_step, GraphedStep)
        if has_graphs:
            say(
                "These steps were launched kernel by kernel, since a replay of a CUDA graph has no layers; the run's "
                "further steps are graphs, and may take other times"
            )
        if self.trainer.on_gpu and not times.gpus:
            say(
                "WARNING: no kernel was recorded; the driver may refuse it to this user; with KINETO_LOG_LEVEL=0 "
                "torch says why"
            )
        tables = []
        for device, towers in self._devices().items():
            ceilings = self._ceilings(device)
            rows = table(recipe, times, device, towers, count, images, self._width(), ceilings, network.classes)
            name = device_name(device)
            say(
                f"\n{device} ({name}), tower{'s' if len(towers) > 1 else ''} "
                f"{' and '.join('ab'[tower] for tower in towers)}; "
                + ("times of the host" if device.type == "cpu" else "times of kernels, other: idle")
            )
            for line in lines(rows):
                say(line)
            if ceilings:
                say(
                    f"roofline: bytes / {ceilings.bandwidth:,.1f} GB/s (a copy of {ceilings.copy_bytes >> 20} MiB, "
                    "read + written) or "
                    f"FLOP / {ceilings.tflops:,.3f} TFLOP/s (a product of {ceilings.product} x {ceilings.product}, "
                    f"{self.precision}), "
                    "the larger; both measured now"
                )
            tables.append(
                {
                    "device": str(device),
                    "name": name,
                    "towers": ["ab"[tower] for tower in towers],
                    "ceilings": vars(ceilings) if ceilings else None,
                    "rows": rows,
                }
            )
        say()
        content = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "recipe": recipe.name,
            "steps": self.recorded,
            "images_per_step": images,
            "precision": self.precision,
            "kernels": network.kernels_used(),
            "run_has_graphs": has_graphs,  # the recorded steps never have
            "pipeline": self.trainer.pipeline.name,
            "commit": source_commit(),
            "python": platform.python_version(),
            "packages": {name: package_version(name) for name in PACKAGES},
            "step_ms": step_ms,
            "waiting_for_input_ms": waiting_ms,
            "tables": tables,
        }
        try:
            durable_files.replace(run.path / NUMBERS, (json.dumps(content, indent=1) + "\n").encode())
            with tempfile.TemporaryDirectory() as directory:
                self.finished.export_chrome_trace(f"{directory}/trace.json")
                durable_files.replace(run.path / TRACE, gzip.compress((Path(directory) / "trace.json").read_bytes(), 6))
        except OSError as error:
            say(
                f"WARNING: the profile can't be written: {error.filename or run.path}: {error.strerror}; the "
                "training goes on"
            )
        else:
            say(f"profile: {run.path / NUMBERS}; {run.path / TRACE} opens in https://ui.perfetto.dev")

    def _ceilings(self, device):
        try:
            return machine_limits.measure(device, torch.bfloat16 if self.precision == "bf16" else torch.float32)
        except (RuntimeError, OSError) as error:  # a run must not end for this
            say(f"no roofline for {device}: {str(error).splitlines()[0]}")
            return None
        finally:
            if device.type == "cuda":
                with suppress(RuntimeError):
                    torch.cuda.empty_cache()

    def _width(self):
        """The name that `roofline.py` has for the values' width."""
        return "bf16" if self.precision == "bf16" else "fp32"


class _RangedStep(TrainingStep):
    def forward_and_backward(self, images, labels, check_loss):
        with record_function(FORWARD_BACKWARD):
            return super().forward_and_backward(images, labels, check_loss)

    def update(self):
        with record_function(UPDATE):
            return super().update()
