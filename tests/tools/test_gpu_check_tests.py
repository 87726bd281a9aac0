"""Stages of tests in tools/gpu_check: they go on behind what kills a process; what has passed isn't run again."""

import json

import pytest
from toy_stages import packed, states

pytestmark = pytest.mark.process

TESTS = """
import os, time
import pytest

HERE = os.path.dirname(__file__)

def note(name):
    with open(os.path.join(HERE, "noted"), "a") as file:
        file.write(name + " ")

@pytest.mark.parametrize("case", ["a b", "c"])
def test_good(case):
    note("good")

def test_bad():
    note("bad")
    assert os.path.exists(os.path.join(HERE, "mended"))

def test_dies():
    note("dies")
    if not os.path.exists(os.path.join(HERE, "mended")):
        os._exit(7)

def test_hangs():
    note("hangs")
    if not os.path.exists(os.path.join(HERE, "mended")):
        time.sleep(600)

def test_end():
    note("end")
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stage_of_tests_goes_on_behind_what_kills_it(toys, tmp_path, workers):
    """And the second time what has passed isn't run again, in whatever stage it has passed."""
    (tmp_path / "test_toy.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    pytest_on = f"('{{python}}', '-m', 'pytest', '-q', '-p', 'no:cacheprovider', {str(tmp_path / 'test_toy.py')!r}"
    one = (
        f"Stage('tests', 'a toy', ('false',), 1, 60, journal='toys', each=2, workers={workers}, rehearsal={pytest_on}))"
    )
    good = f"Stage('good', 'a toy', ('false',), 1, 60, journal='toys', rehearsal={pytest_on}, '-k', 'good'))"
    rehearse = toys(f"{one}, {good}", "check.os.sched_getaffinity = lambda process: range(16)")
    code, output = rehearse()
    assert code == 1 and states(tmp_path / "results") == {"tests": "failed", "good": "passed"}, output
    stage = json.loads((tmp_path / "results" / "check.json").read_text())["stages"]["tests"]
    assert [test.partition("::")[2] for test in stage["failed"]] == ["test_bad", "test_dies", "test_hangs"]
    assert sorted((tmp_path / "noted").read_text().split()) == ["bad", "dies", "end", "good", "good", "hangs"]
    content = packed(tmp_path / "results")
    (stacks,) = (text for name, text in content.items() if name.endswith(".stacks"))
    assert "in test_hangs" in stacks and any(name.startswith("junit/tests/") for name in content)
    assert "failed: tests\n    " in output and "test_toy.py::test_dies" in output

    (tmp_path / "mended").touch()
    (tmp_path / "noted").unlink()
    code, output = rehearse()
    assert code == 0, output
    assert sorted((tmp_path / "noted").read_text().split()) == ["bad", "dies", "hangs"]


@pytest.mark.slow
def test_a_lost_device_ends_a_process_and_not_the_stage(toys, tmp_path):
    """The device is lost in the process: a stand-in for torch says so, as it does after an illegal address."""
    (tmp_path / "torch.py").write_text("""
class cuda:
    lost = False
    def is_initialized(): return True
    def synchronize():
        if cuda.lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
""")
    (tmp_path / "test_toy.py").write_text("""
import torch

def test_one(): pass

def test_plain_failure():
    assert False

def test_loses_it():
    torch.cuda.lost = True
    torch.cuda.synchronize()

def test_other():
    torch.cuda.synchronize()
""")
    (tmp_path / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    rehearse = toys(f"""Stage('tests', 'a toy', ('false',), 1, 60, journal='toys', each=2, rehearsal=(
        '{{python}}', '-m', 'pytest', '-q', '-p', 'no:cacheprovider', {str(tmp_path / "test_toy.py")!r}))""")
    code, output = rehearse()
    stage = json.loads((tmp_path / "results" / "check.json").read_text())["stages"]["tests"]
    assert code == 1
    assert [test.partition("::")[2] for test in stage["failed"]] == ["test_loses_it", "test_plain_failure"]
    assert "answers no more after" in packed(tmp_path / "results")["logs/tests.log"]
    assert "1 passed, 3 deselected" in output


def test_tests_that_cannot_be_collected_are_tried_once(toys, tmp_path):
    (tmp_path / "test_toy.py").write_text("import no_such_module")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    rehearse = toys(f"""Stage('tests', 'a toy', ('false',), 1, 60, journal='toys', each=2, rehearsal=(
        '{{python}}', '-m', 'pytest', '-q', '-p', 'no:cacheprovider', {str(tmp_path / "test_toy.py")!r}))""")
    assert rehearse()[0] == 1 and packed(tmp_path / "results")["logs/tests.log"].count("1 error in") == 1
