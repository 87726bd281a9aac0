"""Every claim from the command to its sentence, on 24 + 6 pictures with networks of a few maps."""

import dataclasses
import re
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from claim_runs import BY_ID, MINI, run, without_times
from image_folders import make_folder
from inner_cases import every
from PIL import Image

from alexnet_mp import claims
from alexnet_mp.data.dataset import open_dataset
from alexnet_mp.evaluation import ensembles
from alexnet_mp.experiments import arm_runs, conduct, plan, records, run_all, verdict
from alexnet_mp.experiments import findings as claim_table
from alexnet_mp.experiments.claim import FACTORS, GRID
from alexnet_mp.experiments.figures import draw_claim
from alexnet_mp.experiments.findings import findings
from alexnet_mp.experiments.kind import Kind
from alexnet_mp.experiments.paper_claims import CLAIMS, KINDS
from alexnet_mp.experiments.records import read_records
from alexnet_mp.experiments.verdict import outcomes
from alexnet_mp.runs.directory import read_run
from alexnet_mp.runs.metrics import read_metrics
from alexnet_mp.system.errors import UserError

pytestmark = [pytest.mark.run, pytest.mark.usefixtures("one_thread", "quick", "no_pictures")]
# what is drawn differs
DRAWN = ("views", "dropout", "weight-decay", "init", "curve", "ensemble5", "cifar-relu", "specialisation")
# whose arms differ most
ONE_OF_A_KIND = ("views", "crops-flips", "curve", "ensemble5", "pretraining", "cifar-relu", "specialisation")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The runs of all claims that need nothing of their own: many have the same."""
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize(
    "claim", [pytest.param(claim, marks=[] if claim in ONE_OF_A_KIND else [pytest.mark.slow]) for claim in BY_ID]
)
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
        facts = read_run(entry["directory"])
        assert facts["recipe"].seed == entry["seed"] and facts["command"].startswith("python -m alexnet_mp.claims run ")
    assert findings(record)
    claims.main(["list", "--records", str(out / "records")])
    output = capsys.readouterr().out
    assert all(sentence in output for sentence in findings(record)) and f"claims run {claim} --data DIR" in output
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
    for module in (claims, run_all, verdict):
        monkeypatch.setattr(module, "CLAIMS", [claim, BY_ID["larger"]])
    monkeypatch.setitem(KINDS, claim.kind.word, claim.kind)  # as if a claim of the paper had it
    monkeypatch.setattr(records, "draw_claim", draw_claim)
    words = ["--seeds", "1", "--set", "dropout=0.3", "--budget", "1h"]  # --set: runs that no other test has made
    record = run("size", data, out, *words)
    assert record["kind"] == "size" and record["command"].endswith("--set dropout=0.3 --seeds 1")
    half_width, base, double_width = sorted(record["runs"], key=lambda entry: entry["weights"])
    assert [entry["arm"] for entry in (half_width, base, double_width)] == ["half_width", "base", "double_width"]
    assert not any("on_training_images" in entry for entry in record["runs"])
    output = capsys.readouterr().out
    assert f"  double_width has {double_width['weights']:,} weights" in output and "\n  verdict: no verdict (" in output
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


def test_claims_share_their_runs_and_train_none_twice(data, out, tmp_path, capsys, monkeypatch):
    (base,) = {
        entry["directory"]
        for claim in ("flips", "crops")
        for entry in run(claim, data, out, "--seeds", "1")["runs"]
        if entry["arm"] == "base"
    }
    before = [without_times(run(claim, data, out, "--seeds", "1")) for claim in ("flips", "crops")]
    run("views", data, out, "--seeds", "2", "--records", str(tmp_path))
    monkeypatch.setattr(arm_runs, "train", lambda options: pytest.fail(f"trained again: {options}"))
    assert [without_times(run(claim, data, out, "--seeds", "1")) for claim in ("flips", "crops")] == before
    assert read_run(base)["recipe"].flip
    assert "seeds are in both" not in capsys.readouterr().out
    run("views", data, out, "--seeds", "1", "--first-seed", "1", "--records", str(tmp_path))
    assert "repeats foretells nothing of it, these seeds are in both: 1\n" in capsys.readouterr().out


def test_an_arm_that_changes_nothing_has_the_run_of_the_base(data, out):
    options = claims._parser().parse_args(["run", "order", "--data", str(data), "--out", str(out), *MINI])
    (base,) = plan.runs_of_seed(BY_ID["views"], options, 0)
    paper, source = plan.runs_of_seed(BY_ID["order"], options, 0)
    assert paper.directory == base.directory != source.directory and (paper.arm, source.arm) == (
        "paper_order",
        "source_order",
    )


def test_every_choice_of_the_data_and_the_training_has_runs_of_its_own(data, out):
    options = claims._parser().parse_args(["run", "lrn", "--data", str(data), "--out", str(out), *MINI])
    more = [["--epochs", "2"], ["--steps", "2"], ["--set", "dropout=0.25"]]
    plans = [
        plan.runs_of_seed(
            BY_ID["lrn"],
            claims._parser().parse_args(["run", "lrn", "--data", str(data), "--out", str(out), *MINI, *words]),
            0,
        )
        for words in ([], *more)
    ]
    directories = {entry.directory for runs in plans for entry in runs}
    assert len(directories) == 8 and plan.runs_of_seed(BY_ID["lrn"], options, 0) == plans[0]
    assert {entry.recipe.dropout for entry in plans[3]} == {0.25}


def test_overfitting_is_measured_on_the_training_images(data, out):
    for claim in ("augmentation", "crops-flips", "crops", "flips"):
        for entry in run(claim, data, out, "--seeds", "1")["runs"]:
            assert entry["on_training_images"]["images"] == 24, claim


@pytest.mark.slow
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


@pytest.mark.slow
def test_what_needs_a_network_that_diverged_is_left_out(data, tmp_path):
    for claim in ("ensemble5", "pretraining"):
        record = run(claim, data, tmp_path, "--seeds", "1", "--set", "learning_rate=1e30")
        assert record["runs"] and all("diverged" in entry for entry in record["runs"]) and record["ensembles"] == []
        assert not [entry for entry in record["runs"] if entry["arm"].startswith("fine_tuned")]
        assert all("diverged" in sentence for sentence in findings(record)) and findings(record)


def test_the_best_learning_rate_is_the_one_that_is_compared(data, out, tmp_path, monkeypatch):
    record = run("cifar-relu", data, out, "--seeds", "1")
    for arm in ("cifar_relu", "cifar_tanh"):
        entries = [entry for entry in record["search"] if entry["arm"] == arm]
        factors = [entry["factor"] for entry in entries]
        start = FACTORS.index(factors[0])
        assert set(GRID) <= set(factors) and factors == list(FACTORS[start : start + len(factors)])  # no gap
        scores = {
            entry["factor"]: (entry["epochs_to_level"] or float("inf"), entry["train"]["top1_error"])
            for entry in entries
            if "diverged" not in entry
        }
        best = record["rates"][arm]
        assert scores[best] == min(scores.values())
        assert best not in (factors[0], factors[-1]) or best in (FACTORS[0], FACTORS[-1])
        (entry,) = (entry for entry in record["runs"] if entry["arm"] == arm)
        recipe = read_run(entry["directory"])["recipe"]
        assert recipe.learning_rate == 0.002 * best and recipe.seed == 0
    assert {entry["seed"] for entry in record["search"]} == {plan.SEARCH_SEED}
    assert not any("errors" in entry for entry in record["search"])
    # What records have of a search is not trained again on a machine without its runs.
    monkeypatch.setattr(arm_runs, "train", lambda options: pytest.fail(f"trained again: {options}"))
    again = run("cifar-relu", data, out, "--seeds", "1", "--budget", "1s", "--out", str(tmp_path))
    assert list(tmp_path.iterdir()) == [] and again["rates"] == record["rates"]
    assert [(entry["factor"], entry["train"]) for entry in again["search"]] == [
        (entry["factor"], entry["train"]) for entry in record["search"]
    ]


def search_where(monkeypatch, outcome):
    """What `conduct.search` says where `outcome(factor)` is measured of a run at that rate; all runs are done."""
    monkeypatch.setattr(conduct, "status", lambda run: "done")
    monkeypatch.setattr(
        conduct,
        "search_run",
        lambda kind, arm, factor, options: Namespace(factor=factor, directory=Path(f"at-{factor:g}")),
    )
    factors = []

    def measure(run, options, tested):
        factors.append(run.factor)
        return outcome(run.factor)

    monkeypatch.setattr(conduct, "measure", measure)
    options = Namespace(records="nowhere")
    answer = conduct.search(BY_ID["cifar-relu"].kind, BY_ID["cifar-relu"].arms[0], options)
    assert len(factors) == len(set(factors))  # a wider grid reads no run again
    return answer


def at_epochs(epochs, error=20.0, loss=1.0):
    return {"epochs_to_level": epochs, "train": {"top1_error": error, "loss": loss}}


def test_the_grid_is_widened_until_the_best_is_inside(monkeypatch):
    next_factor, best, entries = search_where(monkeypatch, lambda factor: at_epochs(abs(factor - 3) + 1))
    assert (next_factor, best, [entry["factor"] for entry in entries]) == (None, 3.0, [1.0, 3.0, 10.0])
    _, best, entries = search_where(monkeypatch, lambda factor: at_epochs(factor + 1 / factor))
    assert best == 1.0 and [entry["factor"] for entry in entries] == [0.3, 1.0, 3.0, 10.0]
    _, best, entries = search_where(monkeypatch, lambda factor: at_epochs(None, 50 - factor))
    assert best == 100.0 and [entry["factor"] for entry in entries] == [1.0, 3.0, 10.0, 30.0, 100.0]
    _, best, entries = search_where(monkeypatch, lambda factor: at_epochs(None, 90.0, 2.3 - factor / 1000))  # at chance
    assert best == 100.0
    divergence = {"epochs_to_level": None, "diverged": 3}
    _, best, entries = search_where(monkeypatch, lambda factor: dict(divergence) if factor > 0.05 else at_epochs(5.0))
    assert best == entries[0]["factor"] == 0.01  # no faster than 0.03, and the smaller
    assert search_where(monkeypatch, lambda factor: dict(divergence))[1] is None


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
    (sixth_conv,) = (entry for entry in record["runs"] if entry["arm"] == "sixth_conv" and entry["seed"] == 1)
    assert len(read_run(sixth_conv["directory"])["data"]["classes"]) == 3
    options = claims._parser().parse_args(["run", "ensemble7", "--data", str(data), "--out", str(out), *MINI])
    ((runs, _),) = plan.turns(BY_ID["ensemble7"], options, 1)
    (init,) = (each.init for each in runs if str(each.directory) == ensemble["members"][-1])
    assert str(init) == sixth_conv["directory"]


def test_an_average_is_that_of_the_evaluation(data, out):
    """Losses, since networks of a few maps after one epoch all answer the same class."""
    record = run("ensemble5", data, out, "--seeds", "1")
    (of_seven,) = run("ensemble7", data, out, "--seeds", "1")["ensembles"]
    losses = []
    for ensemble in (record["ensembles"][0], of_seven, of_seven["five"]):
        runs = ensembles.open_runs(ensemble["members"], gpus="cpu", pipeline="torch", workers=0)
        test = ensembles.evaluate_runs(runs, "val")
        for name, errors in ensemble["errors"].items():
            assert errors == pytest.approx(vars(test.average[name].errors()))
        losses.append(ensemble["errors"]["ten views"]["loss"])
    assert len(set(losses)) == 3


@pytest.mark.slow
def test_pretraining_on_a_set_of_more_classes(data, tmp_path):
    larger_set = make_folder(
        tmp_path / "larger", train=3, val=1, size=(100, 96), classes=("ant", "apple", "bee", "leaf", "sky")
    )
    record = run("pretraining", data, tmp_path / "out", "--seeds", "1", "--larger", larger_set)
    classes = {entry["arm"]: len(read_run(entry["directory"])["data"]["classes"]) for entry in record["runs"]}
    assert classes == {
        "scratch": 3,
        "sixth_conv": 5,
        "fine_tuned": 3,
        "larger_set_bottleneck": 5,
        "fine_tuned_bottleneck": 3,
    }
    assert [data["classes"] for data in record["data"]] == [3, 5] and not list((tmp_path / "out").glob("half-*"))


def test_all_claims_that_fit_the_data(data, out, capsys):
    """Most runs are there from the other tests."""
    run("all", data, out, "--seeds", "1", "--budget", "1h")
    output = capsys.readouterr().out
    ids = {claim.id for claim in CLAIMS if claim.data == "any"}
    assert {line.split()[1].rstrip(":") for line in output.splitlines() if line.startswith("==")} == ids
    assert "left" in output and ids <= set(read_records(out / "records"))


def test_a_layer_that_only_cifars_networks_have_can_be_set(data, out):
    record = run("cifar-lrn", data, out, "--seeds", "1", "--set", "fc10.weight_decay=0.5", "--note", "drawn by hand")
    assert all(arm["of_preset"]["fc10.weight_decay"] == [1.0, 0.5] for arm in record["arms"])
    assert "(drawn by hand); `cifar18_no_norm, " in claim_table.setting(record)


@pytest.mark.slow
@every(
    "notes",
    [
        "[]",
        "null",
        "{",
        '{"tests": null}',
        '{"seconds": "x", "work": 3}',
        '{"tests": {"TEST": 1}}',
        '{"tests": {"TEST": {"centre view": {"top1_error": 1}}}}',
    ],
)
def test_damaged_notes_count_as_none(notes, data, out):
    folder = out / "records" / "runs"
    shutil.rmtree(folder, ignore_errors=True)  # what is kept is not measured again
    before, count = without_times(run("dropout", data, out, "--seeds", "1")), 0
    for path in out.glob("*.result.json"):
        tests = re.findall(r'"(train [^"]*)": \{', path.read_text())  # keys of `measure.key_of_test`
        count += len(tests)
        path.write_text(notes.replace("TEST", (tests or ["none"])[0]))
    assert count >= 2
    shutil.rmtree(folder)
    assert without_times(run("dropout", data, out, "--seeds", "1", "--budget", "1h")) == before


def test_ten_views_against_one_of_a_network_that_is_tested_on_one(data, tmp_path):
    words = ["run", "views", "--data", str(data), "--out", str(tmp_path), "--gpus", "cpu", "--base", "cifar18"]
    with pytest.raises(UserError, match="views: this network is tested on one view, so there is nothing to compare"):
        claims.main(words)
