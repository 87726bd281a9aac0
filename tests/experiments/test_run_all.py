"""All claims within a budget, and one: how long they will take, and what there is time for."""

import json
import re
import shutil
from argparse import Namespace

import pytest
from claim_runs import BY_ID, MINI, run, steps_taken

from alexnet_mp import claims
from alexnet_mp.experiments import arm_runs, plan, run_all, time_budget
from alexnet_mp.experiments.conduct import planned_turns
from alexnet_mp.experiments.paper_claims import STUDY
from alexnet_mp.experiments.records import read_records
from alexnet_mp.experiments.time_budget import Forecast
from alexnet_mp.runs.metrics import read_metrics
from alexnet_mp.system.errors import UserError

pytestmark = [pytest.mark.run, pytest.mark.usefixtures("one_thread", "quick", "no_pictures")]


def toy_options(claim, data, out):
    words = ["--data", str(data), "--out", str(out), "--records", str(out / "records"), *MINI]
    return claims._parser().parse_args(["run", claim, *words])


def test_nothing_is_started_that_cannot_end(data, tmp_path, monkeypatch, capsys):
    run("views", data, tmp_path, "--seeds", "1")  # tells the pace
    (notes,) = tmp_path.glob("*.result.json")
    notes.write_text(json.dumps(json.loads(notes.read_text()) | {"seconds": 1000.0}))
    (base,) = (path for path in tmp_path.iterdir() if (path / "run.json").exists())
    metrics = base / "metrics.jsonl"  # and so do the steps, or the run was held meanwhile
    metrics.write_text(re.sub(r'"images_per_second": [0-9.e-]+', '"images_per_second": 0.001', metrics.read_text()))
    monkeypatch.setattr(arm_runs, "train", lambda options: pytest.fail("it was started"))
    run("all", data, tmp_path, "--budget", "5m")
    lines = capsys.readouterr().out.splitlines()
    titles = [line for line in lines if line.startswith("==")]
    assert titles[0].startswith("== specialisation: not started, ") and titles[1].startswith("== views: 1 of 3 seeds")
    assert sum("not started" in line for line in titles) == len(titles) - 1
    before = next(line for line in lines if re.search("claims, .* runs, .* for what is left of them", line))
    assert lines.index(before) < lines.index(titles[0])
    run("all", data, tmp_path, "--seeds", "2", "--budget", "5m", status=1)  # no claim with fewer seeds than asked for
    *lines, last = capsys.readouterr().out.splitlines()
    assert all("not started" in line for line in lines if line.startswith("=="))
    assert last.startswith("no claim came to a record, ")
    run("lrn", data, tmp_path, "--budget", "5m", status=1)
    assert "not started: " in capsys.readouterr().out
    options = toy_options("ensemble5", data, tmp_path)
    (members, _, _, weight_paths), *_ = planned_turns(BY_ID["ensemble5"], options, 1)
    assert weight_paths == {member.directory for member in members} and members[0].directory == base
    shutil.rmtree(base)  # it is kept, but nobody can average it: it would be trained again
    forecast = Forecast(options)
    forecast.pace["mini"] = 1.0
    assert time_budget.needed(BY_ID["ensemble5"], options, 1) == (members, weight_paths)
    assert forecast.total(members[:1], set()) == 0 < forecast.total(members[:1], weight_paths)


def test_a_run_that_was_held_does_not_make_the_others_long(data, tmp_path):
    run("views", data, tmp_path, "--seeds", "1")
    options = toy_options("views", data, tmp_path)
    (again,) = plan.turns(BY_ID["views"], options, 1)[0][0]
    options.first_seed = 6
    assert [run.seed for runs, _ in plan.turns(BY_ID["views"], options, 2) for run in runs] == [6, 7]
    options.claim = "all"
    of_ensemble = run_all._of_claim(BY_ID["ensemble5"], options)  # the one that has seed 6
    ((members, _),) = plan.turns(BY_ID["ensemble5"], of_ensemble, 1)
    assert [run.seed for run in members] == [5, 6, 7, 8, 9] and run_all._of_claim(BY_ID["views"], options) == options
    options.first_seed = 0
    before, after = Forecast(options), Forecast(options)
    before.learn(again)
    (notes,) = tmp_path.glob("*.result.json")
    notes.write_text(json.dumps(json.loads(notes.read_text()) | {"seconds": 1e6}))
    after.learn(again)
    rates = sorted(line["images_per_second"] for line in read_metrics(again.directory) if line["kind"] == "train")
    limit = time_budget.HELD / (3 * plan.operations(again) * rates[len(rates) // 2])
    assert after.pace[again.preset] == pytest.approx(limit) and before.pace[again.preset] <= limit * 1.000001


def test_an_unknown_machine_is_measured_first(data, tmp_path, monkeypatch, capsys):
    step_seeds = steps_taken(monkeypatch)
    for steps in (4, 8):
        run("flips", data, tmp_path, "--seeds", "1", "--budget", "1s", "--epochs", "100000", status=1)
        assert len(step_seeds) == steps
        assert list(tmp_path.iterdir()) == []  # what was measured is gone, and nothing else was begun
        claim, measuring, length, few, ending = capsys.readouterr().out.splitlines()
        assert measuring.endswith(", to see how fast this machine is") and ending.startswith("not started: ")
        assert few == "too few seeds for a verdict, which takes --seeds 5: flips"


def test_a_claim_that_cannot_be_run_does_not_end_the_others(data, tmp_path, capsys, monkeypatch):
    for module in (claims, run_all):
        monkeypatch.setattr(module, "CLAIMS", [BY_ID["one-gpu"], BY_ID["flips"]])
    conv1 = {"name": "conv1", "kind": "conv", "maps": 2, "reads": "image", "then": ["relu"], "kernel": 11, "stride": 4}
    layers = json.dumps(
        [conv1, {"name": "fc8", "kind": "fc", "maps": None, "reads": "both", "then": [], "towers": "first"}]
    )
    words = [word for word in MINI if not (word.startswith(("conv", "fc")))]
    words = [word for index, word in enumerate(words) if word != "--set" or "=" in (words + [""])[index + 1]]
    paths = ["--data", data, "--out", tmp_path, "--records", tmp_path / "records"]
    assert claims.main(["run", "all", *paths, *words, "--seeds", "1", "--set", f"layers={layers}"]) == 1
    output = capsys.readouterr().out
    assert "== one-gpu: not run: the recipe has no layer" in output and "not run: one-gpu" in output
    assert set(read_records(tmp_path / "records")) == {"flips"}


def test_a_budget_that_is_spent_before_the_pace_is_known(data, tmp_path, monkeypatch, capsys):
    """There is no time to measure how long a run takes: one line, and no number."""
    monkeypatch.setattr(Forecast, "left", property(lambda self: -1.0))
    run("flips", data, tmp_path, "--seeds", "1", "--budget", "5m", status=1)
    assert "not started: no time to measure how long and 0 s left" in capsys.readouterr().out
    run("study", data, tmp_path, "--budget", "5m", status=1)
    length, *lines, ending = capsys.readouterr().out.splitlines()
    # the plan's 167, and six: with these settings no arm of `init` is the base
    assert length == "20 claims, 173 runs, no time to measure how long; 0 s left"
    assert [line.partition(":")[0] for line in lines] == [f"== {name}" for name in STUDY]
    assert ending == "no claim came to a record, 0 s left"
    run("study", data, tmp_path, "--budget", "5m", "--seeds", "4", status=1)
    _, few, *_ = capsys.readouterr().out.splitlines()
    assert few.startswith("too few seeds for a verdict, which takes --seeds 6: specialisation, views, lrn, ")
    assert "order" not in few and "ensemble" not in few


def test_a_signal_while_the_machine_is_measured_stops_all_claims(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(arm_runs, "train", lambda options: True)
    run("all", data, tmp_path, "--seeds", "1", "--budget", "5m", status=130)
    assert capsys.readouterr().out.endswith("stopped; the same command goes on\n")


def test_a_pace_that_nothing_tells_ends_no_other_claim(data, tmp_path, monkeypatch, capsys):
    def diverges(self, runs, weight_paths):
        raise UserError("it diverges")

    monkeypatch.setattr(Forecast, "total", diverges)
    monkeypatch.setattr(run_all, "CLAIMS", [BY_ID["flips"], BY_ID["crops"]])
    run("all", data, tmp_path, "--seeds", "1", "--budget", "5m", status=1)
    output = capsys.readouterr().out
    assert "2 claims, 3 runs, how long is not known: it diverges; " in output
    assert "== flips: not run: it diverges\n== crops: not run: it diverges\n" in output


def test_pictures_that_no_claim_can_take_are_refused(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run_all, "_unfit", lambda claim, options: "which need pictures of 84x84")
    with pytest.raises(UserError, match="no claim can be run on it"):
        claims.main(["run", "all", "--data", data, "--out", tmp_path, *MINI])
    assert "left out, which need pictures of 84x84: specialisation, views" in capsys.readouterr().out


def test_a_record_has_the_command_of_its_claim_alone():
    words = ["run", "--data", "all", "all", "--budget", "2h", "--seeds=3", "--base", "desk"]
    options = run_all._as_one(BY_ID["lrn"], Namespace(typed=words, claim="all", first_seed=0), 2)
    assert options.typed == ["run", "--data", "all", "lrn", "--base", "desk", "--seeds", "2"] and options.claim == "all"
    assert words[3] == "all"
    words = ["run", "--budget=2h", "study", "--first-seed=6", "--note", "study", "--data=x"]
    options = run_all._as_one(BY_ID["ensemble5"], Namespace(typed=words, claim="study", first_seed=1), 1)
    assert options.typed == [*("run", "ensemble5", "--note", "study", "--data=x", "--seeds", "1", "--first-seed", "1")]
