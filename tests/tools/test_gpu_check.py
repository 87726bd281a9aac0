"""tools/gpu_check without a GPU: order, limits, packing and going on, rehearsed with toy stages."""

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time

import pytest
from toy_stages import ROOT, alive, packed, runs, states

pytestmark = pytest.mark.process

# It ignores the signal that asks it to end, and has started two others, one with a session of its own as torchrun's.
HANGS = """
HANGS = ("signal.signal(signal.SIGINT, signal.SIG_IGN); "
         "sleep = [sys.executable, '-c', 'import time; time.sleep(600)']; "
         "others = [subprocess.Popen(sleep, start_new_session=apart) for apart in (False, True)]; "
         "open('{out}/numbers', 'w').write(' '.join(map(str, [os.getpid(), *(other.pid for other in others)]))); "
         "print('before', flush=True); time.sleep(600)")
"""


@pytest.mark.slow
def test_a_stage_that_fails_and_one_that_hangs_stop_no_other(toys, tmp_path):
    rehearse = toys(
        """toy("first", "open('{out}/found.json', 'w').write('1'); open('{scratch}/big', 'w')"),
                    toy("broken", "sys.exit('no such kernel')"), toy("hanging", HANGS, limit=3), toy("last")""",
        HANGS,
    )
    code, output = rehearse()
    assert code == 1 and runs(tmp_path) == ["first", "broken", "hanging", "last"]
    assert re.findall("^== (.*): a toy", output, re.M) == runs(tmp_path)
    assert states(tmp_path / "results") == {"first": "passed", "broken": "failed", "hanging": "hung", "last": "passed"}
    content = packed(tmp_path / "results")
    assert "no such kernel" in content["logs/broken.log"] and content["out/first/found.json"] == "1"
    assert content["check.json"] == (tmp_path / "results" / "check.json").read_text()
    assert "devices" in json.loads(content["environment.json"]) and not any("scratch" in name for name in content)
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["check.json", "gpu-check.tar.gz"]
    assert "before" in content["logs/hanging.log"] and not any(map(alive, content["out/hanging/numbers"].split()))
    assert "   no such kernel" in output and "2 passed, 1 failed, 1 hung" in output and "failed: broken" in output

    code, _ = rehearse()  # what has not passed, and nothing else
    assert code == 1 and runs(tmp_path, after=range(4)) == ["broken", "hanging"]
    assert rehearse("--only", "fir*", "last")[0] == 0 and rehearse("--only", "first", "--again")[0] == 0
    assert runs(tmp_path, after=range(6)) == ["first"]


def test_what_was_found_is_packed_before_and_after_every_stage(toys, tmp_path):
    look = f"print('seen', open({str(tmp_path / 'results' / 'check.json')!r}).read().replace(chr(10), ''))"
    plain = "Stage('one', 'a toy without a stand-in', ('{python}', '-c', 'pass'), 1, 60)"
    assert toys(f"{plain}, toy('two', {look!r})")()[0] == 0
    stages = json.loads(packed(tmp_path / "results")["logs/two.log"].rpartition("seen ")[2])["stages"]
    assert {name: entry["state"] for name, entry in stages.items()} == {"one": "passed", "two": "running"}


@pytest.mark.parametrize(
    "number, state, order",
    [
        (signal.SIGTERM, "interrupted", ["middle", "last"]),
        (signal.SIGINT, "interrupted", ["middle", "last"]),
        (signal.SIGKILL, "running", ["last", "middle"]),
    ],
    ids=["SIGTERM", "SIGINT", "gone"],
)
def test_another_machine_goes_on_from_a_copy_of_the_results(toys, tmp_path, number, state, order):
    """What was told to stop goes on first. What was at work when the machine went comes last: it may be the reason."""
    marker = tmp_path / "begun"
    waits = (
        f"path = {str(marker)!r}; old = os.path.exists(path); open(path, 'w').write(str(os.getpid())); "
        "time.sleep(0 if old else 600)"
    )
    rehearse = toys(f"toy('first'), toy('middle', {waits!r}), toy('last')")
    process = rehearse.start()
    while not (marker.exists() and marker.read_text()):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    if number == signal.SIGKILL:
        os.kill(int(marker.read_text()), signal.SIGKILL)  # a machine that goes away takes the stage with it
    else:
        assert process.returncode == 3 and not alive(marker.read_text())
        assert f"stopped by {number.name}" in output and "left to do, by the same command: middle, last" in output
    assert states(tmp_path / "results") == {"first": "passed", "middle": state}
    subprocess.run(["cp", "-r", tmp_path / "results", tmp_path / "brought"], check=True)
    code, output = rehearse("--from", str(tmp_path / "brought"), work="other machine", to="other results")
    assert code == 0 and "going on from" in output and runs(tmp_path, after=("first", "middle")) == order
    assert set(states(tmp_path / "other results").values()) == {"passed"}
    assert states(tmp_path / "brought")["middle"] == state  # it is read, and not written


# The minutes begin with the first stage: a busy machine may take long to come to it.
LATE = """
order, check.RESERVE = check.Check.order, 0

def late(self):
    self.end = time.monotonic() + 60 * self.options.minutes
    return order(self)

check.Check.order = late
"""


def test_a_stage_that_was_cut_short_finds_what_it_had_done(toys, tmp_path):
    """The minutes end while it works; the second time it goes on in its own folder. One that failed begins anew."""
    body = (
        "open('{scratch}/count', 'a').write('x'); print('time', len(open('{scratch}/count').read()), flush=True); "
        f"path = {str(tmp_path / 'slept')!r}; old = os.path.exists(path); open(path, 'w'); "
        "time.sleep(0 if old else 600); sys.exit(1)"
    )
    rehearse = toys(f"toy('long', {body!r}, limit=100)", LATE)
    assert rehearse("--minutes", "0.05")[0] == 3 and states(tmp_path / "results") == {"long": "interrupted"}
    assert rehearse()[0] == 1 and states(tmp_path / "results") == {"long": "failed"}
    output = packed(tmp_path / "results")["logs/long.log"]
    assert re.findall("^time .*", output, re.M) == ["time 1", "time 2"]
    assert rehearse("--minutes", "0.5")[0] == 1
    assert re.findall("^time .*", packed(tmp_path / "results")["logs/long.log"], re.M) == ["time 1"]


def test_nothing_is_begun_that_will_not_end_in_time(toys, tmp_path):
    rehearse = toys("toy('short'), toy('long', seconds=500), toy('shorter', seconds=1)")
    code, output = rehearse("--minutes", "1")
    assert code == 3 and runs(tmp_path) == ["short", "shorter"] and "left to do, by the same command: long" in output
    # It is known now that it takes less than was guessed.
    assert rehearse()[0] == 0 and rehearse("--minutes", "1", "--again")[0] == 0
    assert runs(tmp_path, after=range(3)) == ["short", "long", "shorter"]


def test_a_stage_has_passed_for_the_sources_that_it_reads(toys, tmp_path):
    source = tmp_path / "source"
    for name in (
        "alexnet_mp/network/network.py",
        "kernels/dispatch.py",
        "csrc/ops.cpp",
        "setup.py",
        "tests/test_a.py",
        "notes.md",
    ):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("1")
    (source / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    before = f"check.ROOT = Path({str(source)!r})"
    rehearse = toys("toy('run'), toy('tested', reads=('tests',))", before)
    expected = ["run", "tested"]
    for changed, again in (
        (None, []),
        ("notes.md", []),
        ("tests/test_a.py", ["tested"]),
        ("csrc/ops.cpp", ["run", "tested"]),
        ("kernels/compiled.so", []),
        ("tests/record.json", []),
        ("kernels/new.py", ["run", "tested"]),
    ):
        if changed:
            (source / changed).write_text(f"after {changed}")
        assert rehearse()[0] == 0
        expected += again
        assert runs(tmp_path) == expected, changed


# --- what is refused, in one line


def test_what_can_not_be_is_said_in_one_line(toys, tmp_path):
    rehearse = toys("toy('one')")
    (tmp_path / "file").touch()
    (tmp_path / "damaged").mkdir()
    assert rehearse()[0] == 0
    whole = (tmp_path / "results" / "gpu-check.tar.gz").read_bytes()
    (tmp_path / "damaged" / "gpu-check.tar.gz").write_bytes(whole[:300])
    other = json.loads((tmp_path / "work" / "rehearsal" / "check.json").read_text()) | {"device": "NVIDIA H200"}
    (tmp_path / "check.json").write_text(json.dumps(other))
    (tmp_path / "other").mkdir()
    with tarfile.open(tmp_path / "other" / "gpu-check.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "check.json", "check.json")
    for arguments, where, words in (
        (["--only", "two"], {}, "--only two: there is no such stage; --plan lists them"),
        (["--from", str(tmp_path / "nowhere")], {"to": "new"}, "there is no gpu-check.tar.gz"),
        (["--from", str(tmp_path / "damaged")], {"to": "new"}, "can't be read"),
        ([], {"to": "other"}, "is of the device NVIDIA H200, this is rehearsal; name another folder"),
        ([], {"to": "file"}, "can't be written"),
        ([], {"work": "file"}, "can't be written"),
        (["--wheels", str(tmp_path / "nowhere")], {}, "there is no such folder"),
    ):
        code, text = rehearse(*arguments, **where)
        assert code == 2 and text.count("\n") == 1 and text.startswith("gpu_check: ") and words in text, text
    assert (tmp_path / "runs").read_text() == "one "


def test_whoever_stops_reading_is_no_traceback(toys, tmp_path):
    """Nor is one who never read. A check that nobody listens to stops, and the next command goes on."""
    command = [ROOT / "tools" / "gpu_check.sh", "--plan"]
    environment = os.environ | {"PYTHON": sys.executable}
    reader, writer = os.pipe()
    os.close(reader)
    outcome = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=environment)
    assert (outcome.returncode, outcome.stderr) == (0, b"")
    outcome = subprocess.run(["bash", "-c", '"$0" --plan >&-', command[0]], stderr=subprocess.PIPE, env=environment)
    assert (outcome.returncode, outcome.stderr) == (0, b"")

    wait = f"[time.sleep(0.01) for _ in iter(lambda: os.path.exists({str(tmp_path / 'left')!r}), True)]"
    rehearse = toys(f"toy('first'), toy('second', {wait!r}), toy('third')")
    process = rehearse.start()
    assert process.stdout.readline().startswith("== first")
    process.stdout.close()
    (tmp_path / "left").touch()
    assert process.wait(60) == 3
    code, output = rehearse()
    assert code == 0 and "Traceback" not in output and set(states(tmp_path / "results").values()) == {"passed"}
    os.close(writer)


def test_without_a_gpu_there_is_nothing_to_check(tmp_path):
    """The command itself, with torch asked for its devices."""
    process = subprocess.run(
        [ROOT / "tools" / "gpu_check.sh", tmp_path],
        capture_output=True,
        text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHON": sys.executable},
        cwd=tmp_path,
    )
    assert process.returncode == 2 and "no CUDA device was found" in process.stderr and not any(tmp_path.iterdir())
