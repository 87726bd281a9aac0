"""A run of a claim: interrupted, trained by two commands at once, diverged, ended at its level."""

import subprocess
import sys
from pathlib import Path

import pytest
from claim_runs import BY_ID, MINI, STEPS, run, steps_taken, without_times
from tiny_run import signalled_after, signalled_in_test

from alexnet_mp import claims
from alexnet_mp.analysis import learning_curves
from alexnet_mp.data.dataset import open_dataset
from alexnet_mp.data.pipeline import make_pipeline
from alexnet_mp.data.pixel_statistics import Statistics
from alexnet_mp.evaluation import protocol, trained
from alexnet_mp.experiments import arm_runs, measure, plan
from alexnet_mp.experiments.findings import findings
from alexnet_mp.experiments.time_kinds import Rates
from alexnet_mp.system.errors import UserError
from alexnet_mp.training import run as training_run
from alexnet_mp.training.trainer import Trainer

pytestmark = [pytest.mark.run, pytest.mark.usefixtures("one_thread", "quick", "no_pictures")]


def test_an_interrupted_claim_goes_on(data, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        signalled_after(patch, Trainer, "one_step", STEPS + 1)  # in the second arm
        assert run("lrn", data, tmp_path / "cut", "--seeds", "1", status=130) is None
    assert "the same command goes on" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        step_seeds = steps_taken(patch)
        record = run("lrn", data, tmp_path / "cut", "--seeds", "1")
        assert len(step_seeds) == STEPS - 1
    expected = run("lrn", data, tmp_path / "whole", "--seeds", "1")
    assert without_times(record)["runs"] == without_times(expected)["runs"]


def test_ctrl_c_before_the_first_step_ends_the_command(data, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        signalled_after(patch, Trainer, "__init__", 1)
        step_seeds = steps_taken(patch)
        assert (
            claims.main(["run", "lrn", "--data", data, "--out", tmp_path, "--records", tmp_path / "records", *MINI])
            == 130
        )
        assert not step_seeds and "the same command goes on" in capsys.readouterr().out
    assert len(run("lrn", data, tmp_path, "--seeds", "1")["runs"]) == 2


@pytest.mark.parametrize("claim, test", [("lrn", 1), ("lrn", 2), ("cifar-relu", 1)])
def test_ctrl_c_in_a_test_ends_the_command(claim, test, data, tmp_path, monkeypatch, capsys):
    """In the validation after the last step, in the test at the run's end, and after an epoch of a run that is looked
    at after each."""
    with monkeypatch.context() as patch:
        signalled_in_test(patch, test)
        step_seeds = steps_taken(patch)
        assert run(claim, data, tmp_path, "--seeds", "1", status=130) is None
        assert len(step_seeds) == STEPS and "the same command goes on" in capsys.readouterr().out
    if claim == "lrn":
        assert len(run(claim, data, tmp_path, "--seeds", "1")["runs"]) == 2


def test_what_was_cut_off_leaves_pairs(data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        signalled_after(patch, Trainer, "one_step", 3 * STEPS + 1)  # the second seed's second arm
        record = run("flips", data, tmp_path, "--seeds", "2", status=130)
    assert [(entry["arm"], entry["seed"]) for entry in record["runs"]] == [("base", 0), ("no_flips", 0)]
    assert "n = 1, no p" in findings(record)[0]
    record = run("flips", data, tmp_path, "--seeds", "2")
    assert [(entry["arm"], entry["seed"]) for entry in record["runs"]] == [
        ("base", 0),
        ("no_flips", 0),
        ("base", 1),
        ("no_flips", 1),
    ]
    assert "n = 2, p = " in findings(record)[0]
    assert len(run("flips", data, tmp_path, "--seeds", "1")["runs"]) == 4  # it says more than one seed could


def test_a_run_cut_short_by_steps_is_tested_once(data, tmp_path, monkeypatch):
    record = run("dropout", data, tmp_path, "--seeds", "1", "--steps", "2")
    for entry in record["runs"]:
        assert entry["steps"] == 2 and entry["on_training_images"]["images"] == 24
        network, training = trained.load_run(entry["directory"], "cpu")
        pipeline = make_pipeline("torch", open_dataset(data, 84), training.recipe, ["cpu", "cpu"], 0)
        pipeline.use(Statistics.load(entry["directory"]))
        by_protocol = protocol.evaluate(
            network, pipeline, "val", protocol.both_protocols(training.recipe), 9, lambda count: None
        )
        assert entry["errors"] == {name: vars(answers.errors()) for name, answers in by_protocol.items()}
    monkeypatch.setattr(measure, "evaluate", lambda *_: pytest.fail("tested again"))
    assert without_times(run("dropout", data, tmp_path, "--seeds", "1", "--steps", "2")) == without_times(record)


def test_a_run_that_diverges_is_a_result(data, tmp_path, monkeypatch):
    record = run("flips", data, tmp_path, "--seeds", "1", "--set", "learning_rate=1e30")
    assert all(1 <= entry["diverged"] <= STEPS and "errors" not in entry for entry in record["runs"])
    assert [sentence.partition(" diverged")[0] for sentence in findings(record)] == [
        "base with seed 0",
        "no flips with seed 0",
    ]
    monkeypatch.setattr(arm_runs, "train", lambda options: pytest.fail("trained again"))
    run("flips", data, tmp_path, "--seeds", "1", "--set", "learning_rate=1e30")


@pytest.mark.slow
def test_a_run_ends_when_its_training_error_is_at_the_level(data, tmp_path, monkeypatch):
    monkeypatch.setattr(Rates, "level", 80.0)  # which chance is close to
    calls = []
    monkeypatch.setattr(
        learning_curves,
        "epochs_to",
        lambda errors, per_epoch, level: (
            calls.append((len(errors), level)) or (2.0 if len(errors) >= 2 * per_epoch else None)
        ),
    )
    record = run("cifar-relu", data, tmp_path, "--seeds", "1", "--epochs", "4", "--search-epochs", "1")
    assert {entry["steps"] for entry in record["runs"]} == {2 * STEPS} and {level for _, level in calls} == {80.0}
    assert {entry["steps"] for entry in record["search"]} == {STEPS} and record["search_epochs"] == 1
    assert all(
        entry["errors"]["centre view"]["images"] == 6 and entry["epochs_to_level"] == 2.0 for entry in record["runs"]
    )
    monkeypatch.setattr(arm_runs, "train", lambda options: pytest.fail("trained again"))
    assert without_times(
        run("cifar-relu", data, tmp_path, "--seeds", "1", "--epochs", "4", "--search-epochs", "1")
    ) == (without_times(record))


@pytest.mark.parametrize("diverged", [False, True])
def test_a_run_that_another_command_begins_meanwhile(diverged, data, tmp_path, monkeypatch, capsys):
    """Its directory was not there when this one began; and what the other command makes of it may have ended by now."""

    def meanwhile(path, *arguments, **more):
        Path(path).mkdir(parents=True)
        if diverged:
            (Path(path) / "non_finite.json").write_text('{"step": 1}')
        return function(path, *arguments, **more)

    function = training_run.RunDirectory
    monkeypatch.setattr(training_run, "RunDirectory", meanwhile)
    options = claims._parser().parse_args(["run", "views", "--data", str(data), "--out", str(tmp_path), *MINI])
    options.typed = []
    (base,), _ = plan.turns(BY_ID["views"], options, 1)[0]
    if diverged:
        arm_runs.train_run(base, options)
        output = capsys.readouterr().out
        assert f"{base.directory.name} diverged, which is a result: --out {base.directory} is there already" in output
    else:
        with pytest.raises(UserError) as error:
            arm_runs.train_run(base, options)
        assert str(error.value) == (
            f"{base.directory}: another command began this run; the same command goes on when it has ended"
        )


def test_a_run_that_another_command_trains_is_waited_for(data, tmp_path, monkeypatch, capsys):
    options = claims._parser().parse_args(["run", "views", "--data", str(data), "--out", str(tmp_path), *MINI])
    options.typed = []
    (base,) = plan.turns(BY_ID["views"], options, 1)[0][0]
    base.directory.mkdir()
    code = (
        "import sys\nfrom alexnet_mp.runs.lock import RunLock\nlock = RunLock(sys.argv[1])\nprint('held', flush=True)\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code + "sys.stdin.read()", base.directory],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "held\n"
    monkeypatch.setattr(arm_runs.time, "sleep", lambda seconds: other.communicate())  # it ends while this one waits
    states = []
    monkeypatch.setattr(arm_runs, "train", lambda options: states.append(arm_runs.is_held(base.directory)))
    monkeypatch.setattr(arm_runs, "status", lambda run: "done" if states else "new")
    arm_runs.train_run(base, options)
    assert states == [False]
    assert f"{base.directory.name}: another command trains it; this one waits\n" in capsys.readouterr().out


def test_a_run_that_was_refused_has_no_time_noted(data, tmp_path, monkeypatch):
    monkeypatch.setattr(arm_runs, "train", lambda options: (_ for _ in ()).throw(UserError("no")))
    with pytest.raises(UserError, match="^no$"):
        run("views", data, tmp_path)
    assert not list(tmp_path.glob("*.result.json"))
