"""The study's queue without its training: wrong use, what it says where nothing runs, and records that come to the
checkout."""

import shutil
import subprocess
from pathlib import Path

import pytest

from alexnet_mp.experiments.paper_claims import STUDY

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parents[2]
PATH = "/usr/bin:/bin:/usr/local/bin"
RECORD = "lrn-00000000.json"


def study(script, *words):
    return subprocess.run(["bash", str(script), *map(str, words)], capture_output=True, text=True)


def pictures_in(folder):
    """Where Tiny ImageNet's pictures would be."""
    for part in ("train", "val"):
        (folder / part).mkdir(parents=True)
    return folder


def running(group):
    """Whether a process of a group still runs."""
    return subprocess.run(["pgrep", "-g", str(group)], capture_output=True).returncode == 0


def checkout(tmp_path):
    """A checkout with a stand-in of its interpreter, which says what it was asked for."""
    place = tmp_path / "checkout"
    (place / "tools").mkdir(parents=True)
    (place / "claims" / "records").mkdir(parents=True)
    (place / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(ROOT / "tools" / "study.sh", place / "tools")
    python = place / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\necho "asked: $*"\n')
    python.chmod(0o755)
    return place / "tools" / "study.sh", place


def test_wrong_use_is_told_how_to_call_it(tmp_path):
    for words in ([], ["run"], ["run", tmp_path / "work"], ["dance", tmp_path]):
        process = study(ROOT / "tools" / "study.sh", *words)
        assert (
            process.returncode == 2
            and "tools/study.sh run WORK TINY100 [CIFAR]" in process.stderr
            and not process.stdout
        )
    pictures = pictures_in(tmp_path / "pictures")
    (pictures / "val").rmdir()
    cases = [(["/nope"], "study: /nope: Tiny ImageNet's pictures are not there, it has no folder train\n")]
    cases += [([pictures], f"study: {pictures}: Tiny ImageNet's pictures are not there, it has no folder val\n")]
    cases += [([pictures_in(tmp_path / "whole"), "/nope"], "study: /nope: no such directory, so no CIFAR-10\n")]
    for words, message in cases:
        process = study(ROOT / "tools" / "study.sh", "run", tmp_path / "work", *words)
        assert (process.returncode, process.stderr, process.stdout) == (2, message, "")
        assert not (tmp_path / "work").exists()


def test_there_is_nothing_to_hold_where_nothing_runs(tmp_path):
    for action in ("pause", "go", "stop"):
        process = study(ROOT / "tools" / "study.sh", action, tmp_path)
        assert process.returncode == 1 and f"no queue runs in {tmp_path}" in process.stderr
    process = study(ROOT / "tools" / "study.sh", "status", tmp_path)
    assert process.returncode == 0 and "no queue runs" in process.stdout and "0 runs are kept" in process.stdout
    process = study(ROOT / "tools" / "study.sh", "status", tmp_path / "none")
    assert process.returncode == 2 and "no such directory" in process.stderr and not (tmp_path / "none").exists()
    pictures_in(tmp_path)
    for lanes in ("0", "-1", "1.5", "x"):
        words = ["bash", str(ROOT / "tools" / "study.sh"), "run", str(tmp_path), str(tmp_path)]
        process = subprocess.run(words, env={"PATH": PATH, "LANES": lanes}, capture_output=True, text=True)
        assert process.returncode == 2 and f"LANES={lanes}: how many claims at once" in process.stderr


def test_records_come_to_the_checkout_and_its_table_is_made(tmp_path):
    script, _ = checkout(tmp_path)
    (tmp_path / "desk").mkdir()
    process = study(script, "collect", tmp_path / "desk")
    assert (
        process.returncode == 0
        and process.stdout == f"asked: -m alexnet_mp.claims table --write --take {tmp_path}/desk/records\n"
    )


def test_what_is_missing_is_told(tmp_path):
    script, place = checkout(tmp_path)
    (place / ".venv" / "bin" / "python").unlink()
    (tmp_path / "desk").mkdir()
    process = study(script, "collect", tmp_path / "desk")
    assert process.returncode == 2 and "make install first" in process.stderr
    (place / "claims" / "desk-study.commit").write_text(40 * "1" + "\n")
    process = study(script, "run", tmp_path / "desk", pictures_in(tmp_path))
    assert process.returncode == 2 and "it takes a clone with all of its history" in process.stderr
    assert "Ctrl-C leaves the queue running" in process.stdout


def test_the_queue_runs_its_commands_from_a_clone_and_stops_where_it_is_told(tmp_path):
    """With a stand-in of `make install` and of the interpreter: the first command is stopped by `stop`, and no other
    follows."""
    script, place = checkout(tmp_path)
    (place / "Makefile").write_text("install:\n\tmkdir -p .venv/bin && cp python .venv/bin/ && touch .venv/installed\n")
    python = place / "python"
    python.write_text(
        '#!/bin/sh\necho "$OMP_NUM_THREADS $(nice) $*" >> "$STUDY_TEST/asked"\n'
        'case "$*" in *read_index*) [ -z "$STUDY_DAMAGED" ] || { echo "no index" >&2; exit 1; }\n'
        'echo "a warning" >&2; echo "$STUDY_FINGERPRINT";;\n'
        '*" specialisation "*) if [ -e "$STUDY_TEST/hold" ]; then exec sleep 60; fi;; *prepare*) '
        'mkdir -p "$4"; echo > "$4/index.json";; *" lrn "*) [ ! -e "$STUDY_TEST/fails" ] || kill -KILL $$;; '
        # With two lanes it ends when the other has gone on to what need not wait for it.
        '*" sixth-conv "*) for i in $(seq 300); do [ "$LANES" = 2 ] || break; '
        'grep -q " run curve " "$STUDY_TEST/asked" && break; sleep 0.1; done; '
        'echo " run ended" >> "$STUDY_TEST/asked";; esac\n'
    )
    python.chmod(0o755)
    for words in (["init", "-q"], ["add", "-A"], ["-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", "x"]):
        subprocess.run(["git", "-C", place, *words], check=True)
    head = subprocess.run(["git", "-C", place, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    (place / "claims" / "desk-study.commit").write_text(head)
    (place / "claims" / "records" / RECORD).write_text("{}")
    work, pictures, cifar = (tmp_path / name for name in ("work", "pictures", "cifar"))
    pictures_in(pictures)
    cifar.mkdir()
    environment = {"PATH": PATH, "STUDY_TEST": str(tmp_path), "HOME": str(tmp_path)}
    (tmp_path / "hold").touch()
    queue = subprocess.Popen(
        ["bash", str(script), "run", str(work), str(pictures), str(cifar)],
        env={**environment, "LANES": "2"},  # the second waits for the first
        start_new_session=True,
    )
    try:
        log = tmp_path / "asked"
        while not (log.exists() and " specialisation " in log.read_text()):
            assert queue.poll() is None
        second = subprocess.run(
            ["bash", str(script), "run", str(work), str(pictures)], env=environment, capture_output=True, text=True
        )
        assert second.returncode == 1 and "runs already" in second.stderr
        assert f"the queue runs in {work}; under way: specialisation\n" in study(script, "status", work).stdout
        assert study(script, "pause", work).returncode == study(script, "go", work).returncode == 0
        assert study(script, "stop", work).returncode == 0
        assert queue.wait(timeout=30) == 0 and not running(queue.pid)
    finally:
        queue.kill()
    lines = log.read_text().splitlines()
    assert len(lines) == 3
    for line, source in zip(lines, (pictures, cifar)):
        assert line.split()[2:5] == ["-m", "alexnet_mp.prepare", str(source)]
    assert lines[2] == (
        "1 19 -m alexnet_mp.claims run specialisation --data tiny100-raw --base desk --seeds 6 --gpus cpu --out runs "
        "--records records"
    )
    assert (work / "records" / RECORD).read_text() == "{}"  # what the repository has is not run again
    (tmp_path / "hold").unlink()
    log.unlink()
    process = subprocess.run(
        ["bash", str(script), "run", str(work), str(pictures), str(cifar)],
        env={**environment, "EXTRAS": "1"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0 and "come to its end" in process.stdout
    commands = [line.partition(" run ")[2].split()[0] for line in log.read_text().splitlines() if " run " in line]
    page = (ROOT / "claims" / "desk-study.md").read_text(encoding="utf-8")
    plan = [
        line.split("|")[1].strip()
        for line in page.split("## Tests and verdicts")[0].splitlines()
        if line.startswith("| ")
    ][1:]
    plan.insert(1, plan.pop(plan.index("ensemble5")))
    commands.remove("ended")
    assert tuple(plan) == STUDY  # as `claims run study`
    extras = ["cifar-local", "crops", "flips", "schedule"]
    assert commands == [*plan, "cifar-lrn", "cifar-relu", *extras]
    assert "failed" not in process.stdout
    (tmp_path / "fails").touch()  # and one that is killed counts as failed
    process = subprocess.run(
        ["bash", str(script), "run", str(work), str(pictures)], env=environment, capture_output=True, text=True
    )
    assert process.returncode == 1 and "failed, so to be called again: lrn" in process.stdout
    log.unlink()
    process = subprocess.run(
        ["bash", str(script), "run", str(work), str(pictures), str(cifar)],
        env={**environment, "LANES": "2"},
        capture_output=True,
        text=True,
    )
    assert "failed, so to be called again: lrn\n" in process.stdout
    lanes = [line.partition(" run ")[2].split()[0] for line in log.read_text().splitlines()]
    # each once, whichever lane takes it; none of those that are not asked for
    assert sorted([*lanes, *extras]) == sorted([*commands, "ended"])
    # Claims that share runs are not run beside each other.
    assert lanes[0] == "specialisation" and lanes.index("curve") < lanes.index("ended")
    assert lanes.index("ended") < lanes.index("pretraining") < lanes.index("ensemble7")
    for name, made in (("views", "tiny100-raw"), ("cifar-lrn", "cifar10-raw")):
        text = f'{{"command": "claims run {name} --data {made} --seeds 6",\n "fingerprint": "of {made}"}}'
        (work / "records" / f"{name}-00000000.json").write_text(text)
    # All but the first go on, to the one that is killed.
    for fingerprint, anew, status in (
        ("another", "", 2),
        ("another", "1", 1),
        ("of tiny100-raw", "", 1),
        ("of tiny100", "", 2),
    ):
        log.unlink()
        process = subprocess.run(
            ["bash", str(script), "run", str(work), str(pictures)],
            env={**environment, "STUDY_FINGERPRINT": fingerprint, "ANEW": anew},
            capture_output=True,
            text=True,
        )
        assert process.returncode == status, process.stderr
        assert ("isn't the set of the records" in process.stderr) == (status == 2)
        assert (" run lrn " in log.read_text()) == (status == 1)
    # CIFAR-10's claims don't need the other set, nor the others CIFAR-10's; what is left out is told, and no success.
    (tmp_path / "fails").unlink()
    cifar_claims = ["cifar-lrn", "cifar-relu", "cifar-local"]
    rest = [*plan, "crops", "flips", "schedule"]
    for own, strange, names in (("cifar10", "tiny100", cifar_claims), ("tiny100", "cifar10", rest)):
        log.unlink()
        process = subprocess.run(
            ["bash", str(script), "run", str(work), str(pictures), str(cifar)],
            env={**environment, "STUDY_FINGERPRINT": f"of {own}-raw", "EXTRAS": "1"},
            capture_output=True,
            text=True,
        )
        assert process.returncode == 1 and f"{strange}-raw isn't the set of the records" in process.stderr
        end = process.stdout.partition("; left out, since ")[2].split()
        assert end[:3] == [f"{strange}-raw", "isn't", "the"] and sorted(end[4:]) == sorted(
            {*cifar_claims, *rest} - {*names}
        )
        commands = [line.partition(" run ")[2].split()[0] for line in log.read_text().splitlines() if " run " in line]
        assert [command for command in commands if command != "ended"] == names
    process = subprocess.run(
        ["bash", str(script), "run", str(work), str(pictures)],
        env={**environment, "STUDY_FINGERPRINT": "", "STUDY_DAMAGED": "1"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 2 and process.stderr.startswith(f"study: {work}/tiny100-raw can't be read, remove it")
    assert process.stderr.endswith(": no index\n")
    assert study(script, "stop", work).returncode == 1 and not (work / "stopped").exists()
