"""`evaluate` over the processes of a job: each has a pair of towers and whole batches; what is said and written has the
bits of one process."""

import os

import apart
import pytest
from alexnet_mp.kernels import dispatch
from tiny_run import run

from alexnet_mp import evaluate, predict
from alexnet_mp.system.errors import run_command

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("one_thread", "quick")]


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    return run(data, tmp_path_factory.mktemp("runs") / "run", "--steps", 3)


def job(count, main, *words, before=lambda: None, several=True):
    def command():
        before()
        run_command(lambda: main([*map(str, words)]), several=several)

    return apart.begin(*[command] * count)


def test_what_is_said_and_written_is_that_of_one_process(trained, tmp_path, capsys):
    """Batches of 4 and 2 images, or six of one: for three processes, of which one has none of the former."""
    files = {"--submission": "submission", "--per-class": "classes.csv", "--confusion": "confusion.csv"}
    for number, (count, batch, options) in enumerate(((2, 4, ()), (3, 4, ("--views", "centre")), (2, 1, ()))):
        texts, contents = [], []
        for place in (tmp_path / f"one-{number}", tmp_path / f"many-{number}"):
            place.mkdir()
            outputs = [word for flag, name in files.items() for word in (flag, place / name)]
            words = [trained, "--gpus", "cpu", "--workers", 0, "--batch-size", batch, *options, *outputs]
            if not texts:
                assert evaluate.main([*map(str, words)]) == 0
                texts.append(capsys.readouterr().out)
            else:
                processes = job(count, evaluate.main, *words)
                assert apart.end(processes) == [0] * count and apart.said(processes) == [], apart.said(processes)
                assert not any(process.out for process in processes[1:])
                texts.append(processes[0].out)
            contents.append([(place / name).read_bytes() for name in files.values()])
        assert texts[0] == texts[1].replace("many-", "one-") and "top-1 error" in texts[0]
        assert contents[0] == contents[1]


def test_what_cannot_be_tested_in_several_processes_is_one_line(trained, tmp_path):
    other = apart.in_rank(1, lambda patch: patch.setattr(dispatch, "used", lambda *_: "others"))
    for main, words, before, several, line in (
        (evaluate.main, (trained, trained), lambda: None, True, "2 runs are averaged in one process; torchrun's 2 can"),
        (evaluate.main, (tmp_path / "none",), lambda: None, True, "none"),
        (evaluate.main, (trained, "--vews", "ten"), lambda: None, True, "unrecognized arguments: --vews ten"),
        (evaluate.main, (trained,), other, True, "differ in the kernels: "),
        (predict.main, (trained, tmp_path), lambda: os.environ.update(TORCHELASTIC_RUN_ID="1"), False, "runs in one; "),
    ):
        processes = job(2, main, *words, before=before, several=several)
        assert apart.end(processes) == [2, 2]
        (message,) = apart.said(processes)
        assert message.startswith("error: ") and line in message
