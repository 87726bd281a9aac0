"""A pytest plugin for a machine that may go away, and for kernels that may hang or lose the device.

    PYTHONPATH=tools python -m pytest -p gpu_check.journal --journal FILE [--attempt WORD] [--each SECONDS] [--gpu-only]

FILE gets a line when a test begins and one when it ends, so that tests go on where they stopped, however that was. What
has passed is left out for good; what failed, and what the process died in, as long as the attempt has the same name.
A test that takes longer than SECONDS ends its process; FILE.stacks says where it was. A test after which the device
answers no more, as after an illegal address, ends the run, or its worker where xdist has several: all tests after it
would fail as well. --gpu-only keeps the tests that a missing GPU would have skipped.
"""

import faulthandler
import os
import re
import sys
from pathlib import Path

import pytest

WORSE = ("passed", "skipped", "failed")
LOST = int(pytest.ExitCode.INTERRUPTED)  # the status after a device was lost; also where tests can't be collected


def pytest_addoption(parser):
    group = parser.getgroup("journal of tests")
    group.addoption("--journal", type=Path, metavar="FILE", help="leave out what has passed according to FILE")
    group.addoption("--attempt", default="-", metavar="WORD", help="and what has failed in the attempt of this name")
    group.addoption("--each", type=float, metavar="SECONDS", help="a test that takes longer ends its process")
    group.addoption("--gpu-only", action="store_true", help="only tests with a skip mark whose reason names a GPU")


def read(path, attempt):
    """(passes, failures, deaths): sets of node ids. Failures and deaths are of this attempt; a death is a
    test that began and never ended."""
    passes, failures, deaths = set(), set(), set()
    for line in Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else ():
        word, _, rest = line.partition(" ")
        when, _, test = rest.partition(" ")
        if not test:
            continue  # the process died while it wrote the line
        if word == "passed":
            passes.add(test)
        if when == attempt:
            (failures.add if word == "failed" else failures.discard)(test)
            (deaths.add if word == "begun" else deaths.discard)(test)
    return passes, failures - passes, deaths - passes


def pytest_configure(config):
    path, worker = config.getoption("journal"), getattr(config, "workerinput", None)
    config.left_out = frozenset()
    if path is None:
        return
    if worker is None:
        config.left_out = frozenset().union(*read(path, config.getoption("attempt")))
        config.pluginmanager.register(Journal(path, config.getoption("attempt")))
    else:
        config.left_out = frozenset(worker["left_out"])
    config.pluginmanager.register(Device(worker))
    if config.getoption("each"):
        config.pluginmanager.register(Watch(config.getoption("each"), open(f"{path}.stacks", "a", encoding="utf-8")))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    """All workers of xdist leave out the same: one that takes the place of another must collect what that one did."""
    node.workerinput["left_out"] = sorted(node.config.left_out)


def pytest_collection_modifyitems(config, items):
    gpu_only = config.getoption("gpu_only")
    exclusions = [item for item in items if item.nodeid in config.left_out or (gpu_only and not _needs_gpu(item))]
    if exclusions:
        config.hook.pytest_deselected(items=exclusions)
        items[:] = [item for item in items if item not in set(exclusions)]


def _needs_gpu(item):
    return any(re.search("GPU|CUDA", str(mark.kwargs.get("reason", ""))) for mark in item.iter_markers("skipif"))


def pytest_sessionfinish(session, exitstatus):
    """Nothing left to run is no failure."""
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and session.config.left_out:
        session.exitstatus = pytest.ExitCode.OK


class Device:
    """Stops where the tests' device is lost: the whole run, or a worker, in whose place xdist starts another."""

    def __init__(self, worker):
        self.worker, self.lost = worker, None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item):
        report = yield
        if report.failed and (error := _lost_device()):
            self.lost = f"the device answers no more after {item.nodeid}: {error}"
            if not self.worker:
                item.session.shouldstop = self.lost
        return report

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logfinish(self):
        if self.worker and self.lost:  # its report is out
            os._exit(1)


def _lost_device():
    """The error of a device that this process has lost, else None."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    try:
        torch.cuda.synchronize()
    except Exception as error:  # torch.AcceleratorError, in older versions RuntimeError
        return str(error).strip().splitlines()[0]


class Journal:
    """Writes the lines, each at once; where there are workers, in the process that hears of them all."""

    def __init__(self, path, attempt):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file, self.attempt, self.outcomes = open(path, "a", buffering=1, encoding="utf-8"), attempt, {}

    def pytest_runtest_logstart(self, nodeid):
        self._write("begun", nodeid)

    def pytest_runtest_logreport(self, report):
        outcomes = report.outcome, self.outcomes.get(report.nodeid, "passed")
        self.outcomes[report.nodeid] = max(outcomes, key=WORSE.index)
        if report.when not in ("setup", "call"):  # "teardown", or xdist's word of a worker that died: "???"
            self._write(self.outcomes.pop(report.nodeid), report.nodeid)

    def _write(self, word, nodeid):
        self.file.write(f"{word} {self.attempt} {nodeid}\n")


class Watch:
    """Ends the process of a test that takes too long: where a kernel never ends no exception would get through."""

    def __init__(self, seconds, file):
        self.seconds, self.file = seconds, file

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item):
        self.file.write(f"{item.nodeid}\n")
        self.file.flush()
        faulthandler.dump_traceback_later(self.seconds, exit=True, file=self.file)
        try:
            return (yield)
        finally:
            faulthandler.cancel_dump_traceback_later()
