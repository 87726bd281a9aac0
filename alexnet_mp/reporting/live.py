"""What the live page shows of a run: everything is read anew when it is asked for, and nothing of the run is locked or
written."""

import io
import math
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

import numpy as np

from ..analysis.figure_3 import grid, pixels_of
from ..analysis.learning_curves import drops, thinned
from ..data.batches import minibatches
from ..evaluation.accuracy import top5_tells
from ..recipes import shapes
from ..runs import checkpoints, first_layers
from ..runs.directory import RUN, read_run
from ..runs.followed import FollowedMetrics
from ..runs.lock import is_held
from ..system.errors import UserError
from ..system.terminal import duration
from .headline import chroma_fact, crossing_fact, error_fact
from .line_chart import Line, chart
from .page import Fact, environment
from .provenance import devices_of

SECONDS_WITHOUT_SCRIPT = 10  # between two looks of a browser that runs none; with one, `live.js` says it
POINTS = 150  # of a line over all steps
RECENT = 21  # minibatches whose mean is told
SEEN = 12  # steps whose first layer is told
NO_CHECKPOINT = (
    "There is no checkpoint yet. --checkpoint-every says how often a run saves one, --keep-every how often it keeps "
    "this layer by itself."
)
ZOOM, GAP = 5, 5  # screen pixels: of a kernel's pixel, between kernels


@dataclass(frozen=True)
class FirstLayer:
    """conv1 after one step."""

    step: int
    kernels: np.ndarray  # (maps of all towers, 3, k, k)
    towers: int
    fact: Fact  # their share of chroma


class Watched:
    """A run that is looked at again and again, by several threads. Raises UserError where it is none."""

    def __init__(self, run: str | Path):
        self.path, self.lock = Path(run), threading.Lock()
        self.name = Path(os.path.realpath(run)).name
        self.metrics = FollowedMetrics(run)
        self.described, self.identity = read_run(run), _identity(self.path / RUN)
        self.first_layer, self.first_layer_identity, self.no_kernels, self.seen = None, None, NO_CHECKPOINT, {}
        self.template = environment().get_template("live.html")

    def page(self) -> bytes:
        """The page as it is now, HTML."""
        with self.lock:
            return self.template.render(**self._context()).encode()

    def kernels(self, tower: int) -> bytes | None:
        """The newest first-layer kernels of a tower that were read, PNG; None where there are none."""
        with self.lock:
            layer = self.first_layer
            if layer is None or tower >= layer.towers:
                return None
            return kernel_grid(np.split(pixels_of(layer.kernels), layer.towers)[tower])

    def _context(self):
        problems = [*self._read()]
        recipe, classes = self.described["recipe"], len(self.described["data"]["classes"])
        steps, whole = self.metrics.steps, self._whole()
        state = self._state(whole)
        return {
            "title": f"{self.name}: step {int(steps['step'][-1]):,}" if steps["step"] else self.name,
            "name": self.name,
            "seconds_without_script": SECONDS_WITHOUT_SCRIPT,
            "state": state,
            "problems": problems,
            "facts": [fact for fact in self._facts(recipe, classes, whole, state["kind"]) if fact],
            "charts": self._charts(classes) if steps["step"] else [],
            "no_charts": "This network was converted, not trained here."
            if "converted" in self.described
            else "No step is recorded yet.",
            "first_layer": self._kernels_shown(recipe, state["kind"]),
            "exchange": self._exchange(recipe, classes),
            "about": self._about(recipe),
        }

    def _read(self):
        """Read what is new; yields in words what can't be read. What was read before stays."""
        try:
            if (identity := _identity(self.path / RUN)) != self.identity:
                self.described, self.identity = read_run(self.path), identity
        except UserError as error:
            yield f"{error}; what follows is from before."
        try:
            self.metrics.read()
        except OSError as error:
            yield f"{error.filename}: {error.strerror}"
        try:
            self._read_first_layer()
        except UserError as error:
            yield str(error)

    def _read_first_layer(self):
        """The newest that the run has kept, in a checkpoint or by itself (`first_layers`), if it is another than
        before. A checkpoint has to be read whole: it is compared with its sha256."""
        saved, by_itself = checkpoints.listing(self.path), first_layers.listing(self.path)
        if not saved and not by_itself:
            return
        step = max(by_itself, default=-1)
        kept_later = step >= max(saved, default=0)
        newest_identity = _identity(by_itself[step] if kept_later else checkpoints.newest(self.path))
        if newest_identity == self.first_layer_identity:
            return

        if kept_later:
            towers, kernels = self.described["recipe"].towers, first_layers.read(by_itself[step])
        else:
            _, (state, kernels) = checkpoints.from_newest(self.path, first_layers.of_checkpoint)
            step, towers = state.step, state.recipe.towers
        self.first_layer_identity = newest_identity  # where a newer one came meanwhile, the next look reads it again
        if kernels.ndim != 4 or kernels.shape[1] != 3 or len(kernels) % towers or not np.isfinite(kernels).all():
            self.first_layer, self.no_kernels = None, f"Its weights, {kernels.shape}, are no kernels of colour images."
            return
        fact = chroma_fact(kernels, towers)
        self.first_layer = FirstLayer(step, kernels, towers, fact)
        self.seen[step] = fact
        # a run that went on from an earlier checkpoint has taken its later ones back
        self.seen = {earlier: self.seen[earlier] for earlier in sorted(self.seen) if earlier <= step}

    def _whole(self):
        """(steps of an epoch, steps of all epochs); (None, None) where nobody knows them yet."""
        recipe, images = self.described["recipe"], self.described["data"].get("images")
        if isinstance(images, dict) and isinstance(count := images.get("train"), int) and 0 < count < 1 << 40:
            per_epoch = len(minibatches(recipe, count))
        else:  # a run of before this was recorded: of the first step of an epoch
            steps, epochs = (np.array(self.metrics.steps[name]) for name in ("step", "epoch"))
            indices = np.flatnonzero(np.diff(epochs) == 1)
            if not len(indices):
                return None, None
            number = indices[0] + 1
            per_epoch = round((steps[number] - 1) / max(epochs[number] - 1, 1))
        return per_epoch, per_epoch * recipe.epochs

    def _state(self, whole):
        """{"kind": a word, "words": the rest of the sentence}."""
        steps, tests = self.metrics.steps["step"], self.metrics.tested
        step = int(steps[-1]) if steps else 0
        if "converted" in self.described:
            return {"kind": "converted", "words": f"from {self.described['converted'].get('from', 'elsewhere')}"}
        if is_held(self.path):
            if not step:
                return {"kind": "running", "words": "before its first step"}
            return {"kind": "running", "words": f"step {step:,}, the last line {self._age()} ago"}
        if any(line["kind"] == "test" and line["step"] == step for line in tests):
            return {"kind": "finished", "words": f"after step {step:,}"}
        if not step:
            return {"kind": "stopped", "words": "before its first step"}
        all_taken = whole[1] is not None and step >= whole[1]
        return {
            "kind": "stopped",
            "words": f"after step {step:,}; train with --resume auto {'tests it' if all_taken else 'goes on'}",
        }

    def _age(self):
        try:
            return duration(max(time.time() - self.metrics.path.stat().st_mtime, 0))
        except OSError:
            return "an unknown time"

    def _facts(self, recipe, classes, whole, kind):
        steps = self.metrics.steps
        if steps["step"]:
            step, epoch = int(steps["step"][-1]), int(steps["epoch"][-1])
            of = f" of {whole[1]:,}" if whole[1] else ""
            yield Fact("step", f"{step:,}{of}", f"epoch {epoch} of {recipe.epochs}{_at_most(recipe)}")
            rate = median(steps["images_per_second"][-RECENT:])
            seconds = (whole[1] - step) * recipe.batch_size / rate if whole[1] and rate > 0 else None
            note = f"{duration(seconds)} of steps left{_at_most(recipe)}" if kind == "running" and seconds else ""
            yield Fact("images a second", f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}", note)
            count = min(RECENT, len(steps["loss"]))
            yield Fact(
                f"training loss, last {count} minibatch{'es' * (count > 1)}",
                f"{mean(steps['loss'][-RECENT:]):.3f}",
                f"ln({classes:,}), all classes alike: {math.log(classes):.3f}",
            )
            yield Fact("training error, top-1, of the same", f"{mean(steps['top1_error'][-RECENT:]):.1f} %")
        yield error_fact(self.metrics.tested, classes)
        yield self.first_layer and self.first_layer.fact
        yield crossing_fact(recipe, classes)

    def _charts(self, classes):
        steps, validations = self.metrics.steps, [line for line in self.metrics.tested if line["kind"] == "val"]
        at = np.array(steps["step"])

        def over(name):
            return [(float(at[end - 1]), value) for end, value in thinned(np.array(steps[name]), POINTS)]

        def at_ends(name):
            return [(line["step"], line[name]) for line in validations]

        def guess(value):
            return [(0, value), (float(at[-1]), value)]

        drop_epochs = set(drops(self.metrics.scheduled))
        falls = [line["step"] for line in self.metrics.scheduled if line["epoch"] in drop_epochs]
        errors = [Line("training, top-1", "training", over("top1_error"))]
        errors.append(Line("validation, top-1", "validation", at_ends("top1_error")))
        if top5_tells(classes):
            errors.append(Line("validation, top-5", "top5", at_ends("top5_error")))
        panels = (
            ("Loss, nats", [Line("training", "training", over("loss")),
                            Line("validation", "validation", at_ends("loss")),
                            Line("all classes alike", "guess", guess(math.log(classes)))], None),
            ("Error, %", [*errors, Line("a guess, top-1", "guess", guess(100 - 100 / classes))], 100),
            ("Images a second", [Line("training", "training", over("images_per_second"))], None),
        )  # fmt: skip
        return [chart(title, lines, high, falls) for title, lines, high in panels]

    def _kernels_shown(self, recipe, kind):
        layer, name = self.first_layer, recipe.layers[0].name
        if layer is None:
            return {"heading": f"{name}, by tower", "words": self.no_kernels, "towers": [], "columns": [], "seen": []}
        a_tower, size = len(layer.kernels) // layer.towers, layer.kernels.shape[2]
        width, height = _grid_size(a_tower, size)
        kernels = f"{a_tower} kernel{'s' * (a_tower > 1)} of tower {{}}, {size}x{size}x3, share of chroma {{}}"
        rows = [[f"{step:,}", *fact.value.split(" / ")] for step, fact in self.seen.items()][-SEEN:]
        return {
            "heading": f"{name}{f' after step {layer.step:,}' * (kind != 'converted')}, by tower",
            "words": f"One scale of brightness for all {len(layer.kernels)} kernels."
            + " They change with each step that is kept." * (kind == "running"),
            "number": layer.step,
            "towers": [
                {"letter": letter, "width": width, "height": height, "words": kernels.format(letter, share)}
                for letter, share in zip("ab", layer.fact.value.split(" / "))
            ],
            "columns": ["step", *(f"chroma, tower {letter}" for letter in "ab"[: layer.towers])],
            "seen": rows if len(rows) > 1 else [],
        }

    def _exchange(self, recipe, classes):
        rows = shapes.crossings(recipe, recipe.batch_size, classes)
        if not rows:
            reason = "This network has one tower" if recipe.towers == 1 else "No layer reads both towers"
            return {"words": f"{reason}: nothing crosses.", "rows": []}
        total, steps, by_layer = sum(count for *_, count in rows), self.metrics.steps, {}
        for edge, _, pass_, count in rows:
            by_layer.setdefault(edge, {"forward": 0, "backward": 0})[pass_] += count
        words = (
            f"Tensors cross between the towers at {', '.join(by_layer)} and nowhere "
            f"else: {total:,} bytes a step of {recipe.batch_size} images in float32."
        )
        if steps["step"]:
            traffic = int(steps["bytes_exchanged"][-1])
            a_second = traffic * median(steps["images_per_second"][-RECENT:]) / recipe.batch_size
            words += (
                f" The last step sent {traffic:,} bytes, {a_second / 1e6:,.1f} MB a second."
                if traffic
                else " Here both towers are on one device, and nothing is copied."
            )
        rows = [
            [edge, *(f"{count:,}" for count in (*passes.values(), sum(passes.values())))]
            for edge, passes in by_layer.items()
        ]
        return {"words": words, "rows": rows}

    def _about(self, recipe):
        run, times = self.described, len(self.described.get("resumed", []))
        return [
            ("recipe", f"{recipe.name}, seed {recipe.seed}, batches of {recipe.batch_size}"),
            ("data", str(run["data"].get("description"))),
            ("devices", devices_of(run) or "none"),
            ("kernels, pipeline", f"{run.get('kernels')}, {run.get('pipeline')}"),
            ("started", str(run.get("started"))),
            ("command", str(run.get("command"))),
            *([("gone on with", f"{times} time{'s' * (times > 1)}")] if times else []),
            ("directory", os.path.realpath(self.path)),
        ]


def _at_most(recipe):
    return " at most" if recipe.schedule == "plateau" else ""


def _identity(path):
    """What tells a file or directory from another of its name; None where there is none."""
    try:
        status = os.stat(path)
        return str(path), status.st_ino, status.st_mtime_ns
    except OSError:
        return None


def kernel_grid(pixels: np.ndarray) -> bytes:
    """Kernels (n, k, k, 3) uint8 in rows, PNG; what lies between them is transparent, so that any theme may be behind
    it."""
    content = io.BytesIO()
    grid(pixels, _columns(len(pixels)), ZOOM, GAP).save(content, "png")
    return content.getvalue()


def _columns(count):
    """Of a grid about a third wider than high: 8 for the 48 kernels of a tower of the paper."""
    return math.ceil(math.sqrt(count * 4 / 3))


def _grid_size(count, size):
    columns, cell = _columns(count), size * ZOOM + GAP
    return columns * cell - GAP, math.ceil(count / columns) * cell - GAP
