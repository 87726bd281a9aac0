"""What a machine with a GPU must tell of this installation: the stages, most valuable first, within given minutes.

    tools/gpu_check.sh [RESULTS] [--minutes 9] [--from EARLIER] [--wheels FOLDER] [--only NAME ...] [--again]
    tools/gpu_check.sh --rehearse [RESULTS] ... | --plan

RESULTS (or $GPU_CHECK_RESULTS; default: build/gpu-check-results) gets two files. Each is replaced in one go after
every stage, and once a minute, so that a machine that goes away takes little with it:

    check.json          the device, every stage's state and seconds, the tests that failed
    gpu-check.tar.gz    that; environment.json; logs/; junit/; records/, of the benchmarks; out/, what else stages wrote

A second command goes on where the first stopped: on this machine, or on another that is given the RESULTS of an
earlier one with --from. A stage has passed for the sources that it reads and for the kind of device. First come the
stages that were not tried, or were cut short by a signal or by the end of the minutes; then those that failed, hung,
or during which the machine went away. Tests that have passed are not run again, whatever the stage. A test that a
process dies or hangs in has failed, and the stage goes on behind it. --minutes starts nothing that isn't likely to
end in time. --rehearse takes a stand-in for whatever needs a GPU: it shows the order, and what else takes time.

The status is 0 where all has passed, 1 where something has failed, 3 where something is left to do, 2 for a wrong
argument, a missing package or no device.
"""

import argparse
import fnmatch
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import processes
from .packages import bring, importable
from .results import ARCHIVE, STATE, Refused, pack, replace, source_commit, source_hash, unpack
from .stages import ROOT, table

PRODUCT = ("alexnet_mp", "kernels", "csrc", "setup.py", "pyproject.toml")  # what every stage reads
RESERVE = 20  # seconds of a command's minutes, to stop a stage and to pack
PROCESSES = 8  # of a stage of tests: each goes on behind what the last one died in
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signalled(BaseException):
    """The command was told to stop."""


def main(arguments=None, stages=None):
    if sys.stdout is None:  # closed before this began
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    sys.stdout.reconfigure(line_buffering=True)
    options = parse(arguments)
    try:
        return Check(options, table() if stages is None else stages).run()
    except Refused as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # as after `| head`: nobody reads on; what was found is packed
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the flush at exit must not complain
        return 0 if options.plan else 3


def parse(arguments):
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="tools/gpu_check.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "results",
        nargs="?",
        type=Path,
        metavar="RESULTS",
        default=os.environ.get("GPU_CHECK_RESULTS") or ROOT / "build" / "gpu-check-results",
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="of this command, from its start")
    parser.add_argument(
        "--from", dest="earlier", type=Path, metavar="EARLIER", help=f"an earlier RESULTS, or its {ARCHIVE}"
    )
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="missing packages are installed from here")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="NAME", help="stages, such as build or 'step-*'")
    parser.add_argument("--again", action="store_true", help="also what has passed")
    parser.add_argument("--commit", help="of the source, where there is no git to ask")
    parser.add_argument(
        "--work",
        type=Path,
        default=ROOT / "build" / "gpu-check",
        metavar="FOLDER",
        help="where the stages write (default: build/gpu-check)",
    )
    parser.add_argument("--rehearse", action="store_true", help="stand-ins for what needs a GPU")
    parser.add_argument("--plan", action="store_true", help="print the stages, the guesses and the reasons, and stop")
    return parser.parse_args(arguments)


class Check:
    """One command: where it writes, when it must end, and what is known of every stage."""

    def __init__(self, options, stages):
        self.options = options
        self.end = time.monotonic() + 60 * options.minutes
        self.stages = [
            stage for stage in stages if any(fnmatch.fnmatch(stage.name, pattern) for pattern in options.only)
        ]
        if not self.stages:
            raise Refused(f"--only {' '.join(options.only)}: there is no such stage; --plan lists them")
        self.attempt = f"{time.time_ns():x}"  # for the journals: what failed in it isn't tried again in it
        self.results, self.entries, self.gpus = options.results.absolute(), {}, 0
        hashes = {reads: source_hash(ROOT, PRODUCT + reads) for reads in {stage.reads for stage in stages}}
        self.sources = {stage.name: hashes[stage.reads] for stage in stages}

    def run(self):
        if self.options.plan:
            return self.plan()
        if line := bring(ROOT, self.options.wheels):
            print(line)
        facts = environment()
        if self.options.rehearse:
            self.device = "rehearsal"
        elif facts["devices"]:
            self.device, self.gpus = facts["devices"][0]["name"], len(facts["devices"])
        else:
            raise Refused("no CUDA device was found: nothing to check; --rehearse does without")
        self.commit = self.options.commit or source_commit(ROOT)
        self.home = self.options.work.absolute() / re.sub("[^a-z0-9]+", "-", self.device.lower()).strip("-")
        try:
            self.home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Refused(
                f"--work {self.options.work} can't be written ({error.strerror}); name another folder"
            ) from None
        unpack(self.home, self.device, self.results, self.options.earlier)
        if (self.home / STATE).exists():
            self.entries = json.loads((self.home / STATE).read_text(encoding="utf-8"))["stages"]
        replace(self.home / "environment.json", json.dumps(facts | {"commit": self.commit}, indent=1))
        self.save()
        try:
            pack(self.home, self.results)
        except OSError as error:
            raise Refused(f"{self.results} can't be written ({error.strerror}); name another folder") from None
        for number in SIGNALS:
            signal.signal(number, stop)
        try:
            for stage in self.order():
                self.one(stage)
        except Signalled as error:
            print(f"stopped by {error}")
        return self.summary()

    def plan(self):
        """Prints the table; the minutes are those that have passed before a stage, by the guesses."""
        minutes = 0.0
        for stage in self.stages:
            print(f"{minutes:5.1f} min  {stage.name:28} {stage.seconds:4} s, at most {stage.limit:3} s: {stage.why}")
            minutes += stage.seconds / 60
        print(f"{minutes:5.1f} min  in all")
        return 0

    # --- what is known of the stages

    def state(self, stage):
        """Of a stage on these sources: "passed", "failed", "hung", "interrupted", "skipped", "running" (and nothing was
        heard of it since), "new"."""
        entry = self.entries.get(stage.name, {})
        return entry["state"] if entry.get("source") == self.sources[stage.name] else "new"

    def order(self):
        """What is to be done: what was not tried or was cut short, then what did not end well."""
        todo = [
            stage
            for stage in self.stages
            if self.options.again or self.state(stage) != "passed" or self.forgotten(stage)
        ]
        return sorted(todo, key=lambda stage: self.state(stage) in ("failed", "hung", "running"))

    def forgotten(self, stage):
        """Whether this machine lacks what a stage did that has passed, perhaps on another."""
        return (
            bool(stage.still)
            and not self.options.rehearse
            and 0 != subprocess.run(self.filled(stage, stage.still), capture_output=True, cwd=ROOT).returncode
        )

    def guess(self, stage):
        """Seconds that it will take: by the last time if there was one, whatever the sources."""
        entry = self.entries.get(stage.name, {"state": "new"})
        if entry["state"] in ("passed", "failed"):
            return 1.2 * entry["seconds"] + 2
        return stage.limit if entry["state"] == "hung" else stage.seconds

    def lacks(self, stage):
        """Why a stage can't run here, None if it can. A rehearsal has stand-ins for all that is missing but files."""
        for need in stage.needs:
            kind, _, name = need.partition(":")
            if kind == "file" and not (ROOT / name).exists():
                return f"there is no {name}"
            if self.options.rehearse:
                continue
            if kind == "program" and shutil.which(name) is None:
                return f"{name} is not on PATH"
            if kind == "module" and not importable(name):
                return f"{name} is not installed"
            if kind == "gpus" and self.gpus < int(name):
                return f"it needs {name} GPUs, found {self.gpus}"
        return None

    def note(self, stage, state, seconds, **details):
        date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.entries[stage.name] = {
            "state": state,
            "source": self.sources[stage.name],
            "seconds": round(seconds, 1),
            "date": date,
        } | {key: value for key, value in details.items() if value}
        self.save()

    def save(self):
        state = {"device": self.device, "commit": self.commit, "stages": self.entries}
        replace(self.home / STATE, json.dumps(state, indent=1))

    # --- one stage

    def one(self, stage):
        if reason := self.lacks(stage):
            print(f"== {stage.name}: skipped, {reason}")
            self.note(stage, "skipped", 0, why=reason)
            return
        start, seconds_left = time.monotonic(), self.end - time.monotonic() - RESERVE
        if self.guess(stage) > seconds_left:
            return  # a shorter one may fit
        goes_on = self.state(stage) == "interrupted"
        seconds_before = self.entries[stage.name]["seconds"] if goes_on else 0
        log, limit = self.home / "logs" / f"{stage.name}.log", min(stage.limit, seconds_left)
        if not goes_on:
            log.unlink(missing_ok=True)
            for folder in ("scratch", "junit", "out"):
                shutil.rmtree(self.home / folder / stage.name, ignore_errors=True)
        for folder in ("logs", "records", f"junit/{stage.name}", f"out/{stage.name}", f"scratch/{stage.name}"):
            (self.home / folder).mkdir(parents=True, exist_ok=True)
        print(f"== {stage.name}: {stage.why} (at most {limit:.0f} s)")
        self.note(stage, "running", seconds_before)
        self.pack()  # if the machine goes away now, this stage may be the reason
        state, failures = "interrupted", []
        try:
            state, failures = self.run_stage(stage, log, start + limit)
            if state == "hung" and limit < stage.limit:
                state = "interrupted"  # not by its own limit: this command's minutes are over
        finally:
            seconds = time.monotonic() - start
            self.note(stage, state, seconds_before + seconds, failed=failures)
            self.pack()
            lines = log.read_text(errors="replace", encoding="utf-8").splitlines()[-3 if state == "passed" else -25 :]
            print(*(f"   {line[:200]}" for line in lines), f"== {stage.name}: {state}, {seconds:.0f} s", sep="\n")

    def run_stage(self, stage, log, end):
        """(state, tests that failed); of tests it takes as many processes as get behind those that kill them."""
        if not stage.journal:
            code = self.process(self.command(stage), stage, log, end)
            return ("hung" if code is None else "failed" if code else "passed"), []
        from . import journal  # late: it imports pytest, and if that is missing `bring` has to say so

        name = f"{stage.journal}-{self.sources[stage.name][:10]}" + self.options.again * f"-{self.attempt}"
        file = self.home / f"{name}.journal"

        def read():
            _, failures, deaths = journal.read(file, self.attempt)
            return failures | deaths, deaths

        old_failures, old_deaths = read()  # what another stage met isn't tried again here
        for number in range(PROCESSES):
            code = self.process(self.command(stage, file, number), stage, log, end)
            failures, deaths = read()
            if code is None:
                return "hung", sorted(failures - old_failures)
            if deaths == old_deaths and not (code == journal.LOST and failures - old_failures):
                break
            old_deaths = deaths
        return ("failed" if code or failures - old_failures else "passed"), sorted(failures - old_failures)

    def command(self, stage, file=None, number=0):
        """The arguments of a stage's process, or of its stand-in; file: the journal."""
        command = self.filled(stage, self.options.rehearse and stage.rehearsal or stage.command)
        if self.options.rehearse and stage.journal and not stage.rehearsal:
            command.append("--collect-only")
        if file is None:
            return command
        command += ["-p", "gpu_check.journal"]
        if "--collect-only" in command:
            return command
        if workers_of(stage):
            command += ["-n", str(workers_of(stage)), "--dist", stage.dist]
        return [
            *command,
            "--journal",
            str(file),
            "--attempt",
            self.attempt,
            "--each",
            str(stage.longest_test),
            "--junit-xml",
            str(self.home / "junit" / stage.name / f"{self.attempt}-{number}.xml"),
        ]

    def filled(self, stage, command):
        names = {
            "python": sys.executable,
            "out": self.home / "out" / stage.name,
            "commit": self.commit or "",
            "scratch": self.home / "scratch" / stage.name,
            "records": self.home / "records",
        }
        return [re.sub(r"\{(\w+)\}", lambda match: str(names[match[1]]), word) for word in command]

    def process(self, command, stage, log, end):
        env = stage.environment | ({"OMP_NUM_THREADS": "1"} if workers_of(stage) else {})
        return processes.run(command, log, end, env, self.pack)

    def pack(self):
        try:
            pack(self.home, self.results)
        except OSError as error:  # a full disk, say: no reason to stop, there is another time
            print(f"the results can't be written to {self.results} now: {error.strerror}")

    def summary(self):
        states = {stage.name: self.state(stage) for stage in self.stages}
        failures = [name for name, state in states.items() if state in ("failed", "hung")]
        todo = [name for name, state in states.items() if state in ("new", "interrupted", "running")]
        counts = {state: list(states.values()).count(state) for state in states.values()}
        print("\n" + ", ".join(f"{count} {state}" for state, count in counts.items()))
        if self.options.rehearse:
            print(
                *(f"{self.entries[name]['seconds']:7.1f} s  {name}" for name in states if name in self.entries),
                sep="\n",
            )
        for name in failures:
            tests = self.entries[name].get("failed", [])
            print(f"{states[name]}: {name}", *(f"    {test}" for test in tests[:5]), sep="\n")
            if len(tests) > 5:
                print(f"    and {len(tests) - 5} more, in {STATE}")
        if todo:
            print(f"left to do, by the same command: {', '.join(todo)}")
        print(f"results: {self.results}")
        return 1 if failures else 3 if todo else 0


def stop(number, _):
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)  # what follows takes seconds
    raise Signalled(signal.Signals(number).name)


def workers_of(stage):
    """How many processes share a stage's tests out; 0: it does without."""
    workers = min(stage.workers, len(os.sched_getaffinity(0)) * 3 // 4)
    return workers if workers > 1 and importable("xdist") else 0


def environment():
    """What the machine is, from a process that may import torch."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "facts.json"
        process = subprocess.run(
            [sys.executable, "-m", "gpu_check.facts", "environment", str(file)],
            text=True,
            capture_output=True,
            env=processes.surroundings(),
            encoding="utf-8",
        )
        if process.returncode:
            message = (process.stderr.strip().splitlines() or ["no word"])[-1]
            raise Refused(f"torch can't say what devices there are: {message}")
        return json.loads(file.read_text(encoding="utf-8"))
