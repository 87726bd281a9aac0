"""Every claim from the command to its sentence, on 24 + 6 pictures with networks of a few maps; and claims that are
interrupted."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from claim_runs import BY_ID, MINI, run, without_times
from image_folders import make_folder
from inner_cases import every
from PIL import Image
from tiny_run import signalled_after, signalled_in_test

from alexnet_mp import claims
from alexnet_mp.analysis import learning_curves
from alexnet_mp.data.dataset import open_dataset
from alexnet_mp.data.pipeline import make_pipeline
from alexnet_mp.data.pixel_statistics import Statistics
from alexnet_mp.evaluation import ensembles, protocol, trained
from alexnet_mp.experiments import arm_runs, conduct, measure, plan, records, run_all, time_budget
from alexnet_mp.experiments import findings as claim_table
from alexnet_mp.experiments.claim import FACTORS, GRID
from alexnet_mp.experiments.figures import draw_claim
from alexnet_mp.experiments.findings import findings
from alexnet_mp.experiments.half_the_classes import every_second_class
from alexnet_mp.experiments.kind import Kind
from alexnet_mp.experiments.paper_claims import CLAIMS, KINDS
from alexnet_mp.experiments.records import differences, read_records
from alexnet_mp.experiments.time_budget import Forecast
from alexnet_mp.experiments.time_kinds import Rates
from alexnet_mp.experiments.verdict import outcomes
from alexnet_mp.recipes import ablations
from alexnet_mp.recipes.named import PRESETS
from alexnet_mp.runs.directory import read_run
from alexnet_mp.runs.metrics import read_metrics
from alexnet_mp.system.errors import UserError
from alexnet_mp.training import run as training_run
from alexnet_mp.training.trainer import Trainer

pytestmark = [pytest.mark.run, pytest.mark.usefixtures("one_thread", "quick", "no_pictures")]
STEPS = 3  # an epoch: two batches of 9 images and one of 6
# what is drawn differs
DRAWN = ("views", "dropout", "weight-decay", "init", "curve", "ensemble5", "cifar-relu", "specialisation")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The runs of all claims that need nothing of their own: many have the same."""
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("claim", BY_ID)
def test_every_claim(claim, data, out, capsys, monkeypatch):
    if claim in DRAWN:
        monkeypatch.setattr(records, "draw_claim", draw_claim)
    record = run(claim, data, out, "--seeds", "1")
    arms = [arm.name for arm in BY_ID[claim].arms]
    assert {entry["arm"] for entry in record["runs"]} == set(arms) == {arm["name"] for arm in record["arms"]}
    for entry in record["runs"]:
        epochs = 2 if entry["arm"] == "twice_as_long" else 1
        assert entry["steps"] == entry["steps_per_epoch"] * epochs and "diverged" not in entry
        whole_pictures = claim in ("cifar-lrn", "cifar-relu", "cifar-sigmoid")
        assert len(entry["errors"]) == (1 if whole_pictures else 2)
        assert {errors["images"] for errors in entry["errors"].values()} <= {6, 4}  # 4: half of the classes
        made = read_run(entry["directory"])
        assert made["recipe"].seed == entry["seed"] and made["command"].startswith("python -m alexnet_mp.claims run ")
    assert findings(record)
    claims.main(["list", "--records", str(out / "records")])
    listed = capsys.readouterr().out
    assert all(sentence in listed for sentence in findings(record)) and f"claims run {claim} --data DIR" in listed
    pictures = list((out / "records").glob(f"{claim}-????????.png"))
    assert len(pictures) == (claim in DRAWN) and all(Image.open(picture).size[0] > 400 for picture in pictures)


class Size(Kind):
    """How many weights the network of each arm has: a kind that no claim of the paper has."""

    word = "size"
    asks_for = "weights"
    on_training_images = False

    def measure(self, run, open_network):
        network, _ = open_network()
        return {"weights": sum(parameter.numel() for parameter in network.parameters())}

    def findings(self, record, arms):
        return [f"{run['arm']} has {run['weights']:,} weights" for run in record["runs"] if run["arm"] in arms]

    def figure(self, axes, record, colours):
        axes.set_ylabel("weights")
        axes.plot([run["weights"] for run in record["runs"]], "o")


def test_a_kind_of_claim_is_one_class_and_nothing_else_knows_it(data, out, capsys, monkeypatch):
    claim = dataclasses.replace(BY_ID["larger"], id="size", kind=Size())
    for module in (claims, run_all):
        monkeypatch.setattr(module, "CLAIMS", [claim, BY_ID["larger"]])
    monkeypatch.setitem(KINDS, claim.kind.word, claim.kind)  # as if a claim of the paper had it
    monkeypatch.setattr(records, "draw_claim", draw_claim)
    words = ["--seeds", "1", "--set", "dropout=0.3", "--budget", "1h"]  # --set: runs that no other test has made
    record = run("size", data, out, *words)
    assert record["kind"] == "size" and record["command"].endswith("--set dropout=0.3 --seeds 1")
    half, base, double = sorted(record["runs"], key=lambda entry: entry["weights"])
    assert [entry["arm"] for entry in (half, base, double)] == ["half_width", "base", "double_width"]
    assert not any("on_training_images" in entry for entry in record["runs"])
    assert f"  double_width has {double['weights']:,} weights" in capsys.readouterr().out
    assert len(list((out / "records").glob("size-????????.png"))) == 1
    assert [outcome.what for outcome in outcomes(claim, record)] == ["half width minus base", "double width minus base"]
    run("larger", data, out, *words)  # the same runs, tested for another kind of claim
    assert without_times(run("size", data, out, *words)) == without_times(record)


def test_what_a_claim_changes_is_in_its_record(data, out):
    record = run("colour", data, out, "--seeds", "1")
    assert [arm["differs"] for arm in record["arms"]] == [{}, {"colour_noise": [0.1, 0.0]}]
    assert record["arms"][0]["of_preset"]["batch_size"] == [128, 9] and record["data"][0]["description"].startswith(
        "folder data: 24"
    )
    assert record["command"].startswith("python -m alexnet_mp.claims run colour --data") and record["epochs"] == 1
    assert record["data"][0]["images"] == {"train": 24, "val": 6} and record["data"][0]["fingerprint"] in (
        open_dataset(data, 84).fingerprint,
    )
    run_of = {entry["arm"]: entry for entry in record["runs"]}
    tests = [line for line in read_metrics(run_of["base"]["directory"]) if line["kind"] == "test"]
    assert {line["protocol"]: line["top1_error"] for line in tests} == {
        name: errors["top1_error"] for name, errors in run_of["base"]["errors"].items()
    }
    losses = [line["loss"] for line in read_metrics(run_of["base"]["directory"]) if line["kind"] == "train"]
    assert run_of["base"]["curve"]["loss"] == [round(loss, 4) for loss in losses]
    assert run_of["base"]["train"]["loss"] == pytest.approx(np.mean(losses))


def test_claims_share_their_runs_and_train_none_twice(data, out, monkeypatch):
    (base,) = {
        entry["directory"]
        for claim in ("flips", "crops")
        for entry in run(claim, data, out, "--seeds", "1")["runs"]
        if entry["arm"] == "base"
    }
    before = [without_times(run(claim, data, out, "--seeds", "1")) for claim in ("flips", "crops")]
    monkeypatch.setattr(arm_runs, "train", lambda asked: pytest.fail(f"trained again: {asked}"))
    assert [without_times(run(claim, data, out, "--seeds", "1")) for claim in ("flips", "crops")] == before
    assert read_run(base)["recipe"].flip


def test_an_arm_that_changes_nothing_has_the_run_of_the_base(data, out):
    found = claims._parser().parse_args(["run", "order", "--data", str(data), "--out", str(out), *MINI])
    (base,) = plan.runs_of_seed(BY_ID["views"], found, 0)
    paper, source = plan.runs_of_seed(BY_ID["order"], found, 0)
    assert paper.directory == base.directory != source.directory and (paper.arm, source.arm) == (
        "paper_order",
        "source_order",
    )


def test_every_choice_of_the_data_and_the_training_has_runs_of_its_own(data, out):
    options = claims._parser().parse_args(["run", "lrn", "--data", str(data), "--out", str(out), *MINI])
    more = [["--epochs", "2"], ["--steps", "2"], ["--set", "dropout=0.25"]]
    found = [
        plan.runs_of_seed(
            BY_ID["lrn"],
            claims._parser().parse_args(["run", "lrn", "--data", str(data), "--out", str(out), *MINI, *words]),
            0,
        )
        for words in ([], *more)
    ]
    directories = {entry.directory for runs in found for entry in runs}
    assert len(directories) == 8 and plan.runs_of_seed(BY_ID["lrn"], options, 0) == found[0]
    assert {entry.recipe.dropout for entry in found[3]} == {0.25}


def steps_taken(monkeypatch):
    """A list that grows by the seed of every step's recipe."""
    taken, function = [], Trainer.one_step

    def one_step(self, batch):
        function(self, batch)
        taken.append(self.recipe.seed)

    monkeypatch.setattr(Trainer, "one_step", one_step)
    return taken


def test_an_interrupted_claim_goes_on(data, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        signalled_after(patch, Trainer, "one_step", STEPS + 1)  # in the second arm
        assert run("lrn", data, tmp_path / "cut", "--seeds", "1") is None
    assert "the same command goes on" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        taken = steps_taken(patch)
        cut = run("lrn", data, tmp_path / "cut", "--seeds", "1")
        assert len(taken) == STEPS - 1
    whole = run("lrn", data, tmp_path / "whole", "--seeds", "1")
    assert without_times(cut)["runs"] == without_times(whole)["runs"]


def test_ctrl_c_before_the_first_step_ends_the_command(data, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        signalled_after(patch, Trainer, "__init__", 1)
        taken = steps_taken(patch)
        assert (
            claims.main(["run", "lrn", "--data", data, "--out", tmp_path, "--records", tmp_path / "records", *MINI])
            == 0
        )
        assert not taken and "the same command goes on" in capsys.readouterr().out
    assert len(run("lrn", data, tmp_path, "--seeds", "1")["runs"]) == 2


@pytest.mark.parametrize("claim, test", [("lrn", 1), ("lrn", 2), ("cifar-relu", 1)])
def test_ctrl_c_in_a_test_ends_the_command(claim, test, data, tmp_path, monkeypatch, capsys):
    """In the validation after the last step, in the test at the run's end, and after an epoch of a run that is looked
    at after each."""
    with monkeypatch.context() as patch:
        signalled_in_test(patch, test)
        taken = steps_taken(patch)
        assert run(claim, data, tmp_path, "--seeds", "1") is None
        assert len(taken) == STEPS and "the same command goes on" in capsys.readouterr().out
    if claim == "lrn":
        assert len(run(claim, data, tmp_path, "--seeds", "1")["runs"]) == 2


def test_what_was_cut_off_leaves_pairs(data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        signalled_after(patch, Trainer, "one_step", 3 * STEPS + 1)  # the second seed's second arm
        record = run("flips", data, tmp_path, "--seeds", "2")
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
        network, made = trained.load_run(entry["directory"], "cpu")
        pipeline = make_pipeline("torch", open_dataset(data, 84), made.recipe, ["cpu", "cpu"], 0)
        pipeline.use(Statistics.load(entry["directory"]))
        tested = protocol.evaluate(
            network, pipeline, "val", protocol.both_protocols(made.recipe), 9, lambda count: None
        )
        assert entry["errors"] == {name: vars(answers.errors()) for name, answers in tested.items()}
    monkeypatch.setattr(measure, "evaluate", lambda *_: pytest.fail("tested again"))
    assert without_times(run("dropout", data, tmp_path, "--seeds", "1", "--steps", "2")) == without_times(record)


def test_overfitting_is_measured_on_the_training_images(data, out):
    for claim in ("augmentation", "crops-flips", "crops", "flips"):
        for entry in run(claim, data, out, "--seeds", "1")["runs"]:
            assert entry["on_training_images"]["images"] == 24, claim


def test_the_record_of_a_schedule_says_when_its_rates_fell(data, tmp_path):
    """In four epochs at rates of next to nothing: no validation after the first of a rate is a new best."""
    record = run(
        "schedule",
        data,
        tmp_path,
        "--seeds",
        "1",
        "--epochs",
        "4",
        "--set",
        "learning_rate=1e-12",
        "--set",
        "bias_learning_rate=1e-12",
    )
    assert {entry["arm"]: entry["drops"] for entry in record["runs"]} == {"dated": [2, 4], "plateau": [3]}
    for entry in record["runs"]:
        rates = {
            line["epoch"]: line["learning_rate"] for line in read_metrics(entry["directory"]) if line["kind"] == "train"
        }
        assert entry["drops"] == [epoch for epoch in (2, 3, 4) if rates[epoch] < rates[epoch - 1]]
    assert "plateau: the rates fall at epoch 3 of 4 (seed 0)" in findings(record)


def test_masks_are_measured_of_a_run_that_another_claim_had_made(data, tmp_path):
    """The base's run is kept without them: its weights are there, so it is measured again and not trained."""
    run("views", data, tmp_path, "--seeds", "1")
    (entry,) = run("masks", data, tmp_path, "--seeds", "1")["runs"]
    assert entry["masks"]["masks"] == 64 and entry["masks"]["images"] == 6 and 0 <= entry["masks"]["noise"]
    (again,) = run("views", data, tmp_path, "--seeds", "1")["runs"]
    assert again["masks"] == entry["masks"]  # kept with the rest


def test_a_network_without_dropout_has_no_masks(data, tmp_path):
    with pytest.raises(UserError, match="masks: this network has no dropout"):
        run("masks", data, tmp_path, "--set", "dropout=0")


def test_headline_figures_are_of_the_test_images_too(data, out, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    shutil.copytree(data / "val", tmp_path / "data" / "test")
    (tmp_path / "data" / "test" / "sky" / "1.jpg").unlink()
    (entry,) = run("headline-2010", tmp_path / "data", tmp_path / "out")["runs"]
    assert {errors["images"] for errors in entry["on_test_images"].values()} == {5}
    record = run("headline-2010", tmp_path / "data", tmp_path / "out")
    assert record["data"][0]["test_images"] == 5
    shutil.rmtree(tmp_path / "data" / "test")
    shutil.copytree(data / "val", tmp_path / "data" / "test")  # other images
    plan.opened.cache_clear()  # as in a new process
    other = run("headline-2010", tmp_path / "data", tmp_path / "out")
    assert {errors["images"] for errors in other["runs"][0]["on_test_images"].values()} == {6}
    assert other["data"][0]["test_fingerprint"] != record["data"][0]["test_fingerprint"]
    assert "on_test_images" not in run("headline-2010", data, out)["runs"][0]


def test_a_run_that_diverges_is_a_result(data, tmp_path, monkeypatch):
    record = run("flips", data, tmp_path, "--seeds", "1", "--set", "learning_rate=1e30")
    assert all(1 <= entry["diverged"] <= STEPS and "errors" not in entry for entry in record["runs"])
    assert [sentence.partition(" diverged")[0] for sentence in findings(record)] == [
        "base with seed 0",
        "no flips with seed 0",
    ]
    monkeypatch.setattr(arm_runs, "train", lambda asked: pytest.fail("trained again"))
    run("flips", data, tmp_path, "--seeds", "1", "--set", "learning_rate=1e30")


def test_what_needs_a_network_that_diverged_is_left_out(data, tmp_path):
    for claim in ("ensemble5", "pretraining"):
        record = run(claim, data, tmp_path, "--seeds", "1", "--set", "learning_rate=1e30")
        assert record["runs"] and all("diverged" in entry for entry in record["runs"]) and record["ensembles"] == []
        assert not [entry for entry in record["runs"] if entry["arm"].startswith("fine_tuned")]
        assert all("diverged" in sentence for sentence in findings(record)) and findings(record)


def test_the_best_learning_rate_is_the_one_that_is_compared(data, out):
    record = run("cifar-relu", data, out, "--seeds", "1")
    for arm in ("cifar_relu", "cifar_tanh"):
        entries = [entry for entry in record["search"] if entry["arm"] == arm]
        tried = [entry["factor"] for entry in entries]
        start = FACTORS.index(tried[0])
        assert set(GRID) <= set(tried) and tried == list(FACTORS[start : start + len(tried)])  # no gap
        found = {
            entry["factor"]: (entry["epochs_to_level"] or float("inf"), entry["train"]["top1_error"])
            for entry in entries
            if "diverged" not in entry
        }
        best = record["rates"][arm]
        assert found[best] == min(found.values())
        assert best not in (tried[0], tried[-1]) or best in (FACTORS[0], FACTORS[-1])
        (entry,) = (entry for entry in record["runs"] if entry["arm"] == arm)
        recipe = read_run(entry["directory"])["recipe"]
        assert recipe.learning_rate == 0.002 * best and recipe.seed == 0
    assert {entry["seed"] for entry in record["search"]} == {plan.SEARCH_SEED}
    assert not any("errors" in entry for entry in record["search"])


def search_where(monkeypatch, outcome):
    """What `claim_run.search` says where `outcome(factor)` is measured of a run at that rate; all runs are done."""
    monkeypatch.setattr(conduct, "status", lambda run: "done")
    monkeypatch.setattr(conduct, "search_run", lambda kind, arm, factor, options: factor)
    monkeypatch.setattr(conduct, "measure", lambda factor, options, tested: outcome(factor))
    return conduct.search(BY_ID["cifar-relu"].kind, BY_ID["cifar-relu"].arms[0], None)


def at_epochs(epochs, error=20.0):
    return {"epochs_to_level": epochs, "train": {"top1_error": error}}


def test_the_grid_is_widened_until_the_best_is_inside(monkeypatch):
    missing, best, entries = search_where(monkeypatch, lambda factor: at_epochs(abs(factor - 3) + 1))
    assert (missing, best, [entry["factor"] for entry in entries]) == (None, 3.0, [1.0, 3.0, 10.0])
    _, best, entries = search_where(monkeypatch, lambda factor: at_epochs(factor + 1 / factor))
    assert best == 1.0 and [entry["factor"] for entry in entries] == [0.3, 1.0, 3.0, 10.0]
    _, best, entries = search_where(monkeypatch, lambda factor: at_epochs(None, 50 - factor))
    assert best == 100.0 and [entry["factor"] for entry in entries] == [1.0, 3.0, 10.0, 30.0, 100.0]
    diverging = {"epochs_to_level": None, "diverged": 3}
    _, best, entries = search_where(monkeypatch, lambda factor: dict(diverging) if factor > 0.05 else at_epochs(5.0))
    assert best == entries[0]["factor"] == 0.01  # no faster than 0.03, and the smaller
    assert search_where(monkeypatch, lambda factor: dict(diverging))[1] is None


def test_a_run_ends_when_its_training_error_is_at_the_level(data, tmp_path, monkeypatch):
    monkeypatch.setattr(Rates, "level", 80.0)  # which chance is close to
    seen = []
    monkeypatch.setattr(
        learning_curves,
        "epochs_to",
        lambda errors, per_epoch, level: (
            seen.append((len(errors), level)) or (2.0 if len(errors) >= 2 * per_epoch else None)
        ),
    )
    record = run("cifar-relu", data, tmp_path, "--seeds", "1", "--epochs", "4", "--search-epochs", "1")
    assert {entry["steps"] for entry in record["runs"]} == {2 * STEPS} and {level for _, level in seen} == {80.0}
    assert {entry["steps"] for entry in record["search"]} == {STEPS} and record["search_epochs"] == 1
    assert all(
        entry["errors"]["centre view"]["images"] == 6 and entry["epochs_to_level"] == 2.0 for entry in record["runs"]
    )
    monkeypatch.setattr(arm_runs, "train", lambda asked: pytest.fail("trained again"))
    assert without_times(
        run("cifar-relu", data, tmp_path, "--seeds", "1", "--epochs", "4", "--search-epochs", "1")
    ) == (without_times(record))


def test_the_signal_before_training_is_that_of_the_initial_weights(data, out):
    """Three times the deviation in conv3 to conv5: biases and ReLUs bend it, but where nothing is added it is three
    times as much."""
    record = run("init", data, out, "--seeds", "1")
    source, literal = (
        next(entry["signal"] for entry in record["runs"] if entry["arm"] == arm)
        for arm in ("source_init", "literal_init")
    )
    assert list(source) == [f"conv{number}" for number in range(1, 6)] + ["fc6", "fc7", "fc8"]
    assert source["conv2"] == literal["conv2"] > 0 and source["conv3"] == pytest.approx(3 * literal["conv3"], rel=0.02)
    assert source["fc8"] > 5 * literal["fc8"] > 0


def test_seven_networks_are_five_and_two_pretrained(data, out):
    record = run("ensemble7", data, out, "--seeds", "1")
    (ensemble,) = record["ensembles"]
    names = [Path(member).name for member in ensemble["members"]]
    assert [(name.partition("-")[0], name.rpartition("-")[2]) for name in names] == [
        *(("base", f"seed{seed}") for seed in range(5)),
        ("fine_tuned", "seed0"),
        ("fine_tuned", "seed1"),
    ]
    assert len(ensemble["weights"]) == 7 and ensemble["errors"]["ten views"]["images"] == 4
    assert ensemble["five"]["members"] == ensemble["members"][:5] and len(ensemble["five"]["weights"]) == 5
    assert {read_run(member)["data"]["source"] for member in ensemble["members"]} == {
        str(next(out.glob("half-*-84")).absolute())
    }
    (larger,) = (entry for entry in record["runs"] if entry["arm"] == "sixth_conv" and entry["seed"] == 1)
    assert len(read_run(larger["directory"])["data"]["classes"]) == 3
    asked = claims._parser().parse_args(["run", "ensemble7", "--data", str(data), "--out", str(out), *MINI])
    ((runs, _),) = plan.turns(BY_ID["ensemble7"], asked, 1)
    (init,) = (each.init for each in runs if str(each.directory) == ensemble["members"][-1])
    assert str(init) == larger["directory"]


def test_an_average_is_that_of_the_evaluation(data, out):
    """Losses, since networks of a few maps after one epoch all answer the same class."""
    record = run("ensemble5", data, out, "--seeds", "1")
    (of_seven,) = run("ensemble7", data, out, "--seeds", "1")["ensembles"]
    found = []
    for ensemble in (record["ensembles"][0], of_seven, of_seven["five"]):
        opened = ensembles.open_runs(ensemble["members"], gpus="cpu", pipeline="torch", workers=0)
        tested = ensembles.evaluate_runs(opened, "val")
        for name, errors in ensemble["errors"].items():
            assert errors == pytest.approx(vars(tested.average[name].errors()))
        found.append(ensemble["errors"]["ten views"]["loss"])
    assert len(set(found)) == 3


def test_pretraining_on_a_set_of_more_classes(data, tmp_path):
    larger = make_folder(
        tmp_path / "larger", train=3, val=1, size=(100, 96), classes=("ant", "apple", "bee", "leaf", "sky")
    )
    record = run("pretraining", data, tmp_path / "out", "--seeds", "1", "--larger", larger)
    classes = {entry["arm"]: len(read_run(entry["directory"])["data"]["classes"]) for entry in record["runs"]}
    assert classes == {
        "scratch": 3,
        "sixth_conv": 5,
        "fine_tuned": 3,
        "larger_set_bottleneck": 5,
        "fine_tuned_bottleneck": 3,
    }
    assert [data["classes"] for data in record["data"]] == [3, 5] and not list((tmp_path / "out").glob("half-*"))


def test_half_of_the_classes_has_the_stored_pictures(tmp_path):
    whole = open_dataset(
        make_folder(tmp_path / "data", train=2, val=1, size=(60, 50), classes=("a/b"[:1], "b", "c", "d e")), 32
    )
    half = open_dataset(every_second_class(whole, 32, tmp_path / "half"), 32)
    assert half.classes == ["00000-a", "00002-c"] and half.splits["val"].labels.tolist() == [0, 1]
    kept = np.flatnonzero(whole.splits["train"].labels % 2 == 0)
    for index, original in enumerate(kept):
        assert (half.splits["train"].read(index) == whole.splits["train"].read(original)).all()
    with pytest.raises(UserError, match="leaves 1 of the two"):
        every_second_class(half, 32, tmp_path / "quarter")


def test_all_claims_that_fit_the_data(data, out, capsys):
    """Most runs are there from the other tests."""
    assert (
        claims.main(
            [
                "run",
                "all",
                "--data",
                data,
                "--out",
                out,
                "--records",
                out / "records",
                *MINI,
                "--seeds",
                "1",
                "--budget",
                "1h",
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    fitting = {claim.id for claim in CLAIMS if claim.data == "any"}
    assert {line.split()[1].rstrip(":") for line in said.splitlines() if line.startswith("==")} == fitting
    assert "left" in said and fitting <= set(read_records(out / "records"))


def test_nothing_is_started_that_cannot_end(data, tmp_path, monkeypatch, capsys):
    run("views", data, tmp_path, "--seeds", "1")  # tells the pace
    (notes,) = tmp_path.glob("*.result.json")
    notes.write_text(json.dumps(json.loads(notes.read_text()) | {"seconds": 1000.0}))
    (base,) = (path for path in tmp_path.iterdir() if (path / "run.json").exists())
    metrics = base / "metrics.jsonl"  # and so do the steps, or the run was held meanwhile
    metrics.write_text(re.sub(r'"images_per_second": [0-9.e-]+', '"images_per_second": 0.001', metrics.read_text()))
    monkeypatch.setattr(arm_runs, "train", lambda asked: pytest.fail("it was started"))
    assert (
        claims.main(
            [
                "run",
                "all",
                "--data",
                data,
                "--out",
                tmp_path,
                "--records",
                tmp_path / "records",
                *MINI,
                "--budget",
                "5m",
            ]
        )
        == 0
    )
    all_said = capsys.readouterr().out.splitlines()
    said = [line for line in all_said if line.startswith("==")]
    assert said[0].startswith("== specialisation: not started, ") and said[1].startswith("== views: 1 of 3 seeds")
    assert sum("not started" in line for line in said) == len(said) - 1
    before = next(line for line in all_said if re.search("claims, .* runs, .* for what is left of them", line))
    assert all_said.index(before) < all_said.index(said[0])
    assert (
        claims.main(
            [
                "run",
                "all",
                "--data",
                data,
                "--out",
                tmp_path,
                "--records",
                tmp_path / "records",
                *MINI,
                "--seeds",
                "2",
                "--budget",
                "5m",
            ]
        )
        == 0
    )  # no claim with fewer seeds than were asked for
    assert all("not started" in line for line in capsys.readouterr().out.splitlines() if line.startswith("=="))
    assert (
        claims.main(
            [
                "run",
                "lrn",
                "--data",
                data,
                "--out",
                tmp_path,
                "--records",
                tmp_path / "records",
                *MINI,
                "--budget",
                "5m",
            ]
        )
        == 1
    )
    assert "not started: " in capsys.readouterr().out


def test_a_run_that_was_held_does_not_make_the_others_long(data, tmp_path):
    run("views", data, tmp_path, "--seeds", "1")
    asked = claims._parser().parse_args(
        ["run", "views", "--data", str(data), "--out", str(tmp_path), "--records", str(tmp_path / "none"), *MINI]
    )
    (again,) = plan.turns(BY_ID["views"], asked, 1)[0][0]
    usual, held = Forecast(asked), Forecast(asked)
    usual.learn(again)
    (notes,) = tmp_path.glob("*.result.json")
    notes.write_text(json.dumps(json.loads(notes.read_text()) | {"seconds": 1e6}))
    held.learn(again)
    rates = sorted(line["images_per_second"] for line in read_metrics(again.directory) if line["kind"] == "train")
    longest = time_budget.HELD / (3 * plan.operations(again) * rates[len(rates) // 2])
    assert held.pace[again.preset] == pytest.approx(longest) and usual.pace[again.preset] <= longest * 1.000001


def test_an_unknown_machine_is_measured_first(data, tmp_path, monkeypatch, capsys):
    assert (
        claims.main(
            [
                "run",
                "flips",
                "--data",
                data,
                "--out",
                tmp_path,
                "--records",
                tmp_path / "records",
                *MINI,
                "--seeds",
                "1",
                "--budget",
                "1s",
                "--set",
                "epochs=90",
                "--epochs",
                "100000",
            ]
        )
        == 1
    )
    assert list(tmp_path.iterdir()) == []  # what was measured is gone, and nothing else was begun
    said = capsys.readouterr().out
    assert "to see how fast this machine is" in said and "not started: " in said


def test_a_layer_that_only_cifars_networks_have_can_be_set(data, out):
    record = run("cifar-lrn", data, out, "--seeds", "1", "--set", "fc10.weight_decay=0.5", "--note", "drawn by hand")
    assert all(arm["of_preset"]["fc10.weight_decay"] == [1.0, 0.5] for arm in record["arms"])
    assert "(drawn by hand); `cifar18_no_norm, " in claim_table.setting(record)


@every(
    "notes",
    [
        "[]",
        "null",
        "{",
        '{"tests": null}',
        '{"seconds": "x", "work": 3}',
        '{"tests": {"a": 1}}',
        '{"tests": {"a": {"centre view": {"top1_error": 1}}}}',
    ],
)
def test_damaged_notes_count_as_none(notes, data, out):
    before = without_times(run("dropout", data, out, "--seeds", "1"))
    for path in out.glob("*.result.json"):
        path.write_text(notes)
    assert without_times(run("dropout", data, out, "--seeds", "1", "--budget", "1h")) == before


@pytest.mark.parametrize("diverged", [False, True])
def test_a_run_that_another_command_begins_meanwhile(diverged, data, tmp_path, monkeypatch, capsys):
    """Its directory was not there when this one began; and what the other command makes of it may have ended by now."""

    def meanwhile(path, *arguments):
        Path(path).mkdir(parents=True)
        if diverged:
            (Path(path) / "non_finite.json").write_text('{"step": 1}')
        return function(path, *arguments)

    function = training_run.RunDirectory
    monkeypatch.setattr(training_run, "RunDirectory", meanwhile)
    asked = claims._parser().parse_args(["run", "views", "--data", str(data), "--out", str(tmp_path), *MINI])
    asked.typed = []
    (base,), _ = plan.turns(BY_ID["views"], asked, 1)[0]
    if diverged:
        arm_runs.train_run(base, asked)
        said = capsys.readouterr().out
        assert f"{base.directory.name} diverged, which is a result: --out {base.directory} is there already" in said
    else:
        with pytest.raises(UserError) as raised:
            arm_runs.train_run(base, asked)
        assert str(raised.value) == (
            f"{base.directory}: another command began this run; the same command goes on when it has ended"
        )


def test_a_run_that_another_command_trains_is_waited_for(data, tmp_path, monkeypatch, capsys):
    asked = claims._parser().parse_args(["run", "views", "--data", str(data), "--out", str(tmp_path), *MINI])
    asked.typed = []
    (base,) = plan.turns(BY_ID["views"], asked, 1)[0][0]
    base.directory.mkdir()
    holding = (
        "import sys\nfrom alexnet_mp.runs.lock import RunLock\nlock = RunLock(sys.argv[1])\nprint('held', flush=True)\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", holding + "sys.stdin.read()", base.directory],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "held\n"
    monkeypatch.setattr(arm_runs.time, "sleep", lambda seconds: other.communicate())  # it ends while this one waits
    trained = []
    monkeypatch.setattr(arm_runs, "train", lambda asked: trained.append(arm_runs.is_held(base.directory)))
    monkeypatch.setattr(arm_runs, "status", lambda run: "done" if trained else "new")
    arm_runs.train_run(base, asked)
    assert trained == [False]
    assert f"{base.directory.name}: another command trains it; this one waits\n" in capsys.readouterr().out


def test_a_run_that_was_refused_has_no_time_noted(data, tmp_path, monkeypatch):
    monkeypatch.setattr(arm_runs, "train", lambda asked: (_ for _ in ()).throw(UserError("no")))
    with pytest.raises(UserError, match="^no$"):
        run("views", data, tmp_path)
    assert not list(tmp_path.glob("*.result.json"))


def test_another_machine_is_calibrated_anew(data, tmp_path, monkeypatch, capsys):
    words = [
        "run",
        "flips",
        "--data",
        data,
        "--out",
        tmp_path,
        "--records",
        tmp_path / "records",
        *MINI,
        "--budget",
        "1s",
        "--set",
        "epochs=90",
        "--epochs",
        "100000",
    ]
    taken = steps_taken(monkeypatch)
    assert claims.main(words) == claims.main(words) == 1  # nothing was recorded
    assert len(taken) == 8


def test_a_claim_that_cannot_be_run_does_not_end_the_others(data, tmp_path, capsys, monkeypatch):
    for module in (claims, run_all):
        monkeypatch.setattr(module, "CLAIMS", [BY_ID["one-gpu"], BY_ID["flips"]])
    first = {"name": "conv1", "kind": "conv", "maps": 2, "reads": "image", "then": ["relu"], "kernel": 11, "stride": 4}
    layers = json.dumps(
        [first, {"name": "fc8", "kind": "fc", "maps": None, "reads": "both", "then": [], "towers": "first"}]
    )
    small = [word for word in MINI if not (word.startswith(("conv", "fc")))]
    small = [word for index, word in enumerate(small) if word != "--set" or "=" in (small + [""])[index + 1]]
    assert (
        claims.main(
            [
                "run",
                "all",
                "--data",
                data,
                "--out",
                tmp_path,
                "--records",
                tmp_path / "records",
                *small,
                "--seeds",
                "1",
                "--set",
                f"layers={layers}",
            ]
        )
        == 1
    )
    said = capsys.readouterr().out
    assert "== one-gpu: not run: the recipe has no layer" in said and "not run: one-gpu" in said
    assert set(read_records(tmp_path / "records")) == {"flips"}


def test_differences_of_recipes_that_lack_layers():
    recipe = PRESETS["paper"]()
    sixth = ablations.sixth_conv(recipe)
    changed = differences(recipe, sixth)
    assert changed.pop("conv6")[0] is None and not changed
    assert differences(sixth, recipe)["conv6"][1] is None
    assert differences(recipe, ablations.no_links(recipe)) == {
        "conv2.maps": [128, 160],
        "conv3.reads": ["both", "own"],
        "fc6.reads": ["both", "own"],
        "fc7.reads": ["both", "own"],
        "fc6.maps": [2048, 4096],
    }


def test_ten_views_against_one_of_a_network_that_is_tested_on_one(data, tmp_path):
    words = ["run", "views", "--data", str(data), "--out", str(tmp_path), "--gpus", "cpu", "--base", "cifar18"]
    with pytest.raises(UserError, match="views: this network is tested on one view, so there is nothing to compare"):
        claims.main(words)


def test_a_budget_that_is_spent_before_the_pace_is_known(data, tmp_path, monkeypatch, capsys):
    """There is no time to measure how long a run takes: one line, and no number."""
    monkeypatch.setattr(Forecast, "left", property(lambda self: -1.0))
    where = ["--data", data, "--out", tmp_path, "--records", tmp_path / "records"]
    assert claims.main(["run", "flips", *where, *MINI, "--seeds", "1", "--budget", "5m"]) == 1
    assert "not started: no time to measure how long and 0 s left" in capsys.readouterr().out


def test_a_signal_while_the_machine_is_measured_stops_all_claims(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(arm_runs, "train", lambda asked: True)
    where = ["--data", data, "--out", tmp_path, "--records", tmp_path / "records"]
    assert claims.main(["run", "all", *where, *MINI, "--seeds", "1", "--budget", "5m"]) == 0
    assert capsys.readouterr().out.endswith("stopped; the same command goes on\n")


def test_a_pace_that_nothing_tells_ends_no_other_claim(data, tmp_path, monkeypatch, capsys):
    def diverges(self, runs):
        raise UserError("it diverges")

    monkeypatch.setattr(Forecast, "total", diverges)
    monkeypatch.setattr(run_all, "CLAIMS", [BY_ID["flips"], BY_ID["crops"]])
    where = ["--data", data, "--out", tmp_path, "--records", tmp_path / "records"]
    assert claims.main(["run", "all", *where, *MINI, "--seeds", "1", "--budget", "5m"]) == 1
    said = capsys.readouterr().out
    assert "2 claims, 3 runs, how long is not known: it diverges; " in said
    assert "== flips: not run: it diverges\n== crops: not run: it diverges\n" in said


def test_pictures_that_no_claim_can_take_are_refused(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run_all, "_unfit", lambda claim, options: "which need pictures of 84x84")
    with pytest.raises(UserError, match="no claim can be run on it"):
        claims.main(["run", "all", "--data", data, "--out", tmp_path, *MINI])
    assert "left out, which need pictures of 84x84: specialisation, views" in capsys.readouterr().out


def test_a_record_has_the_command_of_its_claim_alone():
    typed = ["run", "--data", "all", "all", "--budget", "2h", "--seeds=3", "--base", "desk"]
    alone = run_all._as_one(BY_ID["lrn"], Namespace(typed=typed, claim="all"), 2)
    assert alone.typed == ["run", "--data", "all", "lrn", "--base", "desk", "--seeds", "2"] and alone.claim == "all"
    assert typed[3] == "all"
    typed = ["run", "--budget=2h", "all", "--note", "all", "--data=x"]
    alone = run_all._as_one(BY_ID["lrn"], Namespace(typed=typed, claim="all"), 1)
    assert alone.typed == ["run", "lrn", "--note", "all", "--data=x", "--seeds", "1"]
