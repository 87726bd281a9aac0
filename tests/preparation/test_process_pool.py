"""Processes that share large pieces of work: all of it is done and counted, and none of them outlives an error or the
parent."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from alexnet_mp.preparation.process_pool import in_processes
from alexnet_mp.system.errors import UserError

pytestmark = pytest.mark.process


def square(task, tick):
    for _ in range(task):
        tick()
    return task**2, os.getpid()


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_every_task_is_done_once_and_every_tick_counted(workers):
    ticks = []
    answers = list(in_processes(square, range(1, 8), workers, ticks.append))
    assert sorted((task, answer) for task, (answer, _) in answers) == [(task, task**2) for task in range(1, 8)]
    assert sum(ticks) == sum(range(1, 8))
    processes = {process for _, (_, process) in answers}
    assert processes == {os.getpid()} if workers == 0 else os.getpid() not in processes and len(processes) <= workers
    assert all(ended(process) for process in processes - {os.getpid()})


def test_no_task_is_no_work():
    assert list(in_processes(square, [], 2, lambda n: None)) == []


def test_tasks_are_made_when_they_are_needed():
    tasks = []
    answers = in_processes(square, (tasks.append(task) or task for task in range(10)), 2, lambda n: None)
    next(answers)
    assert tasks == [0, 1]
    answers.close()


def fail(task, tick):
    if task == 3:
        raise UserError("the third is broken")
    time.sleep(60 if task == 4 else 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_one_ends_all(workers):
    before = set(multiprocessing.active_children())
    with pytest.raises(UserError, match="^the third is broken$"):
        list(
            in_processes(fail, [1, 3, 4], workers, lambda n: None)
        )  # who waits for the fourth waits for a minute, and has none
    assert set(multiprocessing.active_children()) <= before


def stumble(task, tick):
    return {}[task]


def test_a_fault_of_the_program_comes_with_the_workers_traceback():
    with pytest.raises(KeyError) as error:
        list(in_processes(stumble, ["missing"], 1, lambda n: None))
    assert "in stumble" in error.value.__notes__[0]


def exhaust(task, tick):
    raise MemoryError


def test_memory_that_runs_out_is_one_line():
    with pytest.raises(UserError, match="out of memory with shard 7; fewer --workers"):
        list(in_processes(exhaust, ["shard 7"], 1, lambda n: None))


def die(task, tick):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_named_with_its_work():
    with pytest.raises(UserError, match="worked on shard 7 was ended .SIGKILL.; .*fewer --workers"):
        list(in_processes(die, ["shard 7"], 2, lambda n: None))


def deaf(task, tick):
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(os.getpid(), number)
    return "still here"


def test_signals_are_the_parents():
    assert [answer for _, answer in in_processes(deaf, [1], 1, lambda n: None)] == ["still here"]


def name_and_sleep(task, tick):
    os.write(1, b"%d\n" % os.getpid())
    time.sleep(60)


def test_workers_end_with_a_killed_parent():
    code = (
        "from test_process_pool import name_and_sleep, in_processes\n"
        "list(in_processes(name_and_sleep, [1, 2], 2, lambda n: None))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=os.path.dirname(__file__))
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    assert not any(ended(worker) for worker in workers)
    parent.kill()
    parent.wait()
    end = time.monotonic() + 60
    while not all(ended(worker) for worker in workers):
        assert time.monotonic() < end
        time.sleep(0.02)
    parent.stdout.close()


def ended(process):
    """Whether a process is gone, or waits as a zombie for whoever inherited it."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True
