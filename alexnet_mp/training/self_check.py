"""The self-check at the start of a run on a GPU: do kernels, crossings and pipeline compute what they should here?

`needed_checks.py` lists the checks. They are in `device_checks.py` and `pipeline_check.py`, and run in a process of
their own (`isolated.py`). A kernel or a pipeline that fails is left out, and the next best one is checked in its place;
one that was chosen by name ends the run, and so does a crossing. What has passed is remembered in the user's cache
directory, by device, driver, versions and build.
"""

import functools
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import torch

from ..data import pipeline_dali
from ..data.pipeline import Pipeline
from ..kernels import dispatch
from ..system import durable_files, isolated, machine
from ..system.devices import device_name
from ..system.errors import UserError
from ..system.isolated import PASSED, UNCHECKED
from ..system.provenance import PACKAGES, package_version
from ..system.terminal import progress, say
from . import device_checks
from .needed_checks import Asked, Check, checks

BEFORE = "passed before"
KINDS = ("cuda",)  # of devices: a run that has one is checked
FOLDER = Path("alexnet_mp", "self_check")  # in the cache directory
MOST_BYTES = 1 << 20  # of what is remembered of a device


def before_run(
    pipeline: Pipeline, kernels: str, overlap: bool | None, pipeline_is_chosen: bool, wanted: bool = True
) -> tuple[str, str | dict[str, str]]:
    """Check what a run needs: (name of the pipeline that it is to use, what run.json records of the checks).

    pipeline: the run's, not yet used. overlap: see `Exchange`. Says what was found; from now on `--kernels auto` leaves
    out what has failed. Raises UserError where the run can't go on.
    """
    dispatch.leave_out(())
    if not wanted:
        return pipeline.name, "off (--no-self-check)"
    if not any(device.type in KINDS for device in pipeline.devices):
        return pipeline.name, "none: no CUDA device"
    dataset = pipeline.dataset
    setup = Asked(
        pipeline.recipe,
        len(dataset.classes),
        tuple(pipeline.devices),
        pipeline.dtype,
        kernels,
        pipeline.name,
        dataset.splits["train"].storage,
        overlap,
    )
    name, findings = examine(setup, pipeline_is_chosen)
    outcomes = list(findings.values())
    remark = f", {outcomes.count(BEFORE)} of them before" if BEFORE in outcomes else ""
    say(f"self-check: {outcomes.count(PASSED) + outcomes.count(BEFORE)} of {len(outcomes)} checks passed{remark}")
    return name, findings


def examine(
    setup: Asked,
    pipeline_is_chosen: bool = False,
    fresh: bool = False,
    tell: Callable[[str], None] = say,
    needed: Callable[[Asked], list[Check]] | None = None,
) -> tuple[str, dict[str, str]]:
    """(name of the pipeline to be used, {what was checked: "passed", "passed before", or what is wrong}).

    fresh: what has passed before is checked again. tell: is called with each line for the user. needed(setup): the
    checks, by default all `checks`. See `before_run`.
    """
    exclusions, findings, memory = set(), {}, PassedChecks(tell)
    while True:
        dispatch.leave_out(exclusions)
        todo = []
        for check in (needed or checks)(setup):
            if check.what not in findings and not fresh and memory.has(check):
                findings[check.what] = BEFORE
            elif check.what not in findings:
                todo.append(check)
        if not todo:
            return setup.pipeline, findings
        tell(f"self-check: {len(todo)} to be checked on {' and '.join(map(str, dict.fromkeys(setup.devices)))}")
        check, outcome = _first_not_passed(todo, exclusions, findings, memory)
        if outcome is None:
            return setup.pipeline, findings
        if outcome.state == UNCHECKED:
            tell(f"WARNING: self-check: nothing more can be checked: {outcome.why}")
            rest = {other.what: f"not checked: {outcome.why}" for other in todo if other.what not in findings}
            return setup.pipeline, findings | rest
        findings[check.what] = f"left out: {outcome.why}"
        fault, hint = f"self-check: {check.what} {outcome.why}", "--no-self-check doesn't look"
        if check.kind == "crossing":
            gpu = next((str(device.index) for device in check.devices if device.type == "cuda"), "cpu")
            raise UserError(f"{fault}; no network can be split between these devices; --gpus {gpu} does without")
        if check.kind == "kernel" and setup.kernels != "auto":
            raise UserError(f"--kernels {setup.kernels}: {fault}; --kernels auto leaves it out, {hint}")
        if check.kind == "pipeline":
            successor = next_pipeline(setup.pipeline)
            if successor is None:
                raise UserError(f"{fault}; it is the last that there is, and {hint}")
            if pipeline_is_chosen:
                raise UserError(f"--pipeline {setup.pipeline}: {fault}; --pipeline auto leaves it out, {hint}")
            setup, successor = replace(setup, pipeline=successor), f"pipeline {successor}"
        else:
            exclusions.add((check.operation, check.implementation, str(check.devices[0])))
            dispatch.leave_out(exclusions)
            successor = dispatch.resolve("auto", check.devices[0], check.operation)
        tell(f"WARNING: {fault}; it is left out, and {successor} takes its place")


def _first_not_passed(todo, exclusions, findings, memory):
    """(check, outcome) of the first that hasn't passed, or (None, None); those before are noted as passed."""
    devices, successes = tuple(dict.fromkeys(device for check in todo for device in check.devices)), []
    calls = [(check.function, (check.devices, *check.arguments)) for check in todo]
    try:
        with (
            progress("self-check", len(todo), "checks") as advance,
            closing(isolated.outcomes(calls, (device_checks.prepare, (devices, frozenset(exclusions))))) as outcomes,
        ):
            for check, outcome in zip(todo, outcomes):
                if outcome.state != PASSED:
                    return check, outcome
                advance(1)
                successes.append(check)
                findings[check.what] = PASSED
        return None, None
    finally:
        memory.keep(successes)


def next_pipeline(name: str) -> str | None:
    """The next best one; None after `torch`, which defines what a batch is."""
    if name == "torch":
        return None
    return "dali" if name == "raw" and pipeline_dali.available() else "torch"


# --- what has passed before


class PassedChecks:
    """A file for each device, or pair of them, of this installation, in FOLDER of the user's cache directory.

    What can't be read counts as nothing; it is said once where nothing can be kept.
    """

    def __init__(self, tell: Callable[[str], None]):
        self.tell, self.known, self.said = tell, {}, False

    def has(self, check: Check) -> bool:
        if check.devices not in self.known:
            self.known[check.devices] = self._read(check.devices)
        return check.identity in self.known[check.devices]

    def keep(self, successes: Sequence[Check]) -> None:
        """Remember these checks, beside those that another run may have added meanwhile."""
        for devices in dict.fromkeys(check.devices for check in successes):
            facts, path = self._place(devices)
            additions = {check.identity: check.what for check in successes if check.devices == devices}
            self.known[devices] = records = self._read(devices) | additions
            try:
                if path is None:
                    raise OSError(0, "there is no home directory")
                os.makedirs(path.parent, mode=0o700, exist_ok=True)
                self._write(path, {"facts": facts, "passed": records})
            except OSError as error:
                if not self.said:
                    where = path.parent if path else "the cache"
                    self.tell(f"self-check: what has passed can't be remembered: {where}: {error.strerror}")
                self.said = True

    @staticmethod
    def _write(path, content):
        """A name of its own for each writer: `durable_files.replace` is for files that one process writes."""
        draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}{durable_files.PARTIAL}")
        try:
            durable_files.write(draft, [(json.dumps(content, indent=1) + "\n").encode()])
            durable_files.rename(draft, path)
        except BaseException:
            with suppress(OSError):
                durable_files.remove(draft)
            raise

    def _read(self, devices):
        """{identity of a check: what it was, for a person}."""
        facts, path = self._place(devices)
        try:
            content = json.loads(durable_files.read(path, MOST_BYTES)) if path else None
        except (OSError, ValueError, RecursionError):
            return {}
        valid = isinstance(content, dict) and content.get("facts") == facts and isinstance(content.get("passed"), dict)
        return content["passed"] if valid else {}

    @staticmethod
    def _place(devices):
        facts = {"devices": [_identity_of(device) for device in devices], **_installation()}
        digest, directory = hashlib.sha256(json.dumps(facts).encode()).hexdigest(), machine.cache_directory()
        return facts, directory / FOLDER / f"{digest[:32]}.json" if directory else None


def _identity_of(device):
    if device.type != "cuda":
        return [device_name(device), torch.backends.cpu.get_cpu_capability()]
    properties = torch.cuda.get_device_properties(device)
    return [properties.name, str(getattr(properties, "uuid", "")), f"{properties.major}.{properties.minor}"]


@functools.cache
def _installation():
    """Driver, versions, and a digest of all that was built or is read."""
    digest = hashlib.sha256()
    roots = Path(__file__).parents[1], Path(dispatch.__file__).parent
    sources = [path for root in roots for path in sorted(root.rglob("*.py"))]
    for path in [*sources, dispatch.LIBRARY]:
        if path.exists():
            content = path.read_bytes()
            digest.update(f"{path.name}\0{len(content)}\0".encode() + content)
    return {
        "driver": machine.driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "build": digest.hexdigest(),
    }
