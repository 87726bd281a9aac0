"""What stays of a run without its directory: enough that no run is made twice, but for those whose weights are asked
for."""

import json
import shutil
import textwrap
from pathlib import Path

import numpy as np
import pytest
from claim_records import errors, record_of
from claim_runs import run, without_times
from PIL import Image

from alexnet_mp.evaluation.accuracy import read_right
from alexnet_mp.experiments import arm_runs, findings, kept_answers, page
from alexnet_mp.experiments.kernel_sheet import APART, COLUMNS, FONT, GAP, HEAD, LINE, SCALE, draw_kernels
from alexnet_mp.experiments.paper_claims import CLAIMS
from alexnet_mp.experiments.records import take_records
from alexnet_mp.experiments.verdict import outcomes
from alexnet_mp.runs import checkpoints

pytestmark = [pytest.mark.run, pytest.mark.usefixtures("one_thread", "quick", "no_pictures")]


def directories(out):
    return sorted(path for path in Path(out).iterdir() if (path / "run.json").exists())


def lose(out):
    """Every run's directory and notes: only the records are left, as on another machine."""
    for path in out.iterdir():
        if path.name != "records":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def counted(monkeypatch):
    """The arms that are trained from now on, in order."""
    names, function = [], arm_runs.train
    monkeypatch.setattr(
        arm_runs,
        "train",
        lambda options: [names.append(Path(options.out).name.partition("-")[0]), function(options)][1],
    )
    return names


def test_a_run_that_is_kept_is_not_made_again(data, tmp_path, monkeypatch):
    first = run("dropout", data, tmp_path, "--seeds", "1")
    lose(tmp_path)
    arms = counted(monkeypatch)
    again = run("dropout", data, tmp_path, "--seeds", "1")
    assert arms == [] and directories(tmp_path) == [] and without_times(again) == without_times(first)
    assert run("weight-decay", data, tmp_path, "--seeds", "1")["runs"][0]["errors"] == first["runs"][0]["errors"]
    assert arms == ["no_weight_decay"]  # the base is kept
    run("dropout", data, tmp_path, "--seeds", "2")
    assert arms[1:] == ["base", "no_dropout"]  # of the second seed


def test_the_spread_over_pictures_is_of_pairs_of_answers(tmp_path):
    random, right, runs = np.random.default_rng(5), {}, {}
    for arm in ("base", "no_lrn"):
        for seed in (0, 1):
            right[arm, seed] = random.random((2, 90)) < 0.4
            runs[arm, seed] = {"errors": errors((1.0, 1.0), (1.0, 1.0)), "directory": f"out/{arm}-seed{seed}"}
            bits = {"ten views": np.packbits(right[arm, seed], axis=1)}
            (tmp_path / "runs").mkdir(exist_ok=True)
            np.savez(tmp_path / "runs" / f"{arm}-seed{seed}.npz", images=90, conv1=np.zeros(1), **bits)
    record = record_of("difference", ["base", "no_lrn"], runs)
    each = np.mean([100.0 * right["base", seed][0] - 100.0 * right["no_lrn", seed][0] for seed in (0, 1)], axis=0)
    expected = each.std(ddof=1) / 90**0.5
    assert kept_answers.of_pictures(record, "base", "no_lrn", tmp_path) == pytest.approx(expected)
    (outcome,) = outcomes(next(claim for claim in CLAIMS if claim.id == "lrn"), record)
    assert page._over_pictures(outcome, record, tmp_path) == f"; over other pictures ± {1.96 * expected:.2f}"
    (tmp_path / "runs" / "base-seed1.npz").unlink()
    assert kept_answers.of_pictures(record, "base", "no_lrn", tmp_path) is None
    assert page._over_pictures(outcome, record, tmp_path) == ""


def test_what_is_kept_is_small_and_whole(data, tmp_path):
    record = run("lrn", data, tmp_path, "--seeds", "1")
    for path in directories(tmp_path):
        place = tmp_path / "records" / "runs" / path.name
        entry = json.loads(place.with_suffix(".json").read_text())
        assert without_times({"runs": [entry]}) in [without_times({"runs": [of_one]}) for of_one in record["runs"]]
        kernels = checkpoints.newest_weights(path)[1]["conv1.weight"].numpy()
        assert np.array_equal(
            kept_answers.first_layer(entry, tmp_path / "records"), kernels.astype(np.float16).astype(np.float32)
        )
        right, original = (read_right(file) for file in (place.with_suffix(".npz"), path / "validation_right.npz"))
        assert right.keys() == original.keys() == entry["errors"].keys()
        for protocol, figures in entry["errors"].items():
            assert np.array_equal(right[protocol], original[protocol])
            assert 100 - 100 * right[protocol].mean(1) == pytest.approx([figures["top1_error"], figures["top5_error"]])
        assert place.with_suffix(".npz").stat().st_size < kernels.size * 2 + 3000
        with np.load(place.with_suffix(".npz")) as archive:
            answers = {name: archive[name] for name in archive.files if name != "conv1"}
        np.savez_compressed(place.with_suffix(".npz"), **answers)
        assert kept_answers.first_layer(entry, tmp_path / "records") is None
        assert read_right(place.with_suffix(".npz")).keys() == right.keys()
    assert without_times(run("lrn", data, tmp_path, "--seeds", "1")) == without_times(record)


@pytest.mark.slow
def test_weights_that_are_asked_for_are_made_again(data, tmp_path, monkeypatch):
    before = run("ensemble7", data, tmp_path, "--seeds", "1")
    lose(tmp_path)
    arms = counted(monkeypatch)
    again = run("ensemble7", data, tmp_path, "--seeds", "1")
    assert arms == [] and without_times(again)["runs"] == without_times(before)["runs"]
    assert [ensemble["errors"] for ensemble in again["ensembles"]] == [
        ensemble["errors"] for ensemble in before["ensembles"]
    ]
    assert {run["directory"] for run in again["runs"]} >= set(again["ensembles"][0]["members"])
    run("ensemble5", data, tmp_path, "--seeds", "1")
    assert sorted(arms) == ["base"] * 5  # an average of five asks for five networks
    lose(tmp_path)
    for path in (tmp_path / "records" / "runs").glob("fine_tuned-*-seed0.json"):
        path.unlink()
    del arms[:]
    run("pretraining", data, tmp_path, "--seeds", "1")
    assert arms.count("fine_tuned") == 1 and arms.index("sixth_conv") < arms.index("fine_tuned")


def test_the_first_layers_of_all_runs_are_one_picture(tmp_path):
    """An arm a row, a seed a column, tower a above tower b; a run whose kernels are not kept leaves its place."""
    side, towers = 3, {"base": 2, "one_tower": 1}
    arms = [{"name": name, "what": "the network"} for name in towers]
    runs = [{"arm": arm, "seed": seed, "directory": f"runs/{arm}-{seed}"} for arm, seed in (("base", 1), ("base", 4))]
    runs += [{"arm": "one_tower", "seed": 4, "directory": "runs/one_tower-4", "halves": [2, 100]}]
    runs[0] |= {"chroma": [0.1, 0.2], "division": {"p": 0.003}}
    (tmp_path / "runs").mkdir()
    kernels = np.zeros((18, 3, side, side), np.float16)  # nine a tower: two rows
    kernels[0], kernels[17] = 1, -1  # tower a's first, tower b's ninth: the grey ones keep their order
    for number in (0, 2):
        np.savez(tmp_path / "runs" / f"{Path(runs[number]['directory']).name}.npz", conv1=kernels)
    assert draw_kernels({"arms": arms, "runs": runs[1:2]}, tmp_path, tmp_path / "sheet.png") is None
    with Image.open(draw_kernels({"arms": arms, "runs": runs}, tmp_path, tmp_path / "sheet.png")) as sheet:
        head = LINE * len(textwrap.wrap(HEAD, sheet.width * 2 // FONT))
        cell, panel = side * SCALE + GAP, APART + head + LINE + 4
        pixels, width = np.asarray(sheet.convert("RGB")), COLUMNS * (side * SCALE + GAP)
        assert sheet.width == APART + 2 * (width + APART) and sheet.mode == "P"
    first = panel + 2 * LINE
    assert pixels[first, APART].tolist() == [255] * 3 and pixels[first, APART + cell].tolist() == [128] * 3
    ninth = first + 2 * cell + LINE + cell
    assert pixels[ninth, APART].tolist() == [0] * 3 and pixels[ninth, APART + cell].tolist() == [255] * 3
    below = panel + LINE + 2 * (2 * cell + LINE) + APART + LINE + 2 * LINE
    assert pixels[below, 2 * APART + width].tolist() == [255] * 3 and pixels[below, APART].tolist() == [255] * 3
    assert pixels[below, 2 * APART + width + cell].tolist() == [128] * 3


def test_taken_records_have_their_picture_of_kernels(data, tmp_path):
    run("specialisation", data, tmp_path / "out", "--seeds", "1")
    (picture,) = (tmp_path / "out" / "records").glob("*-kernels.png")
    before = picture.read_bytes()
    picture.unlink()  # a record of older code has none
    take_records(tmp_path / "out" / "records", tmp_path / "taken")
    assert (tmp_path / "taken" / picture.name).read_bytes() == before


def test_damaged_files_count_as_nothing(data, tmp_path, monkeypatch):
    record = run("views", data, tmp_path, "--seeds", "1")
    (path,) = (tmp_path / "records" / "runs").glob("*.json")
    for content in (b"", b"{", b"[]", b"{}", b"\xff"):
        path.write_bytes(content)
        assert without_times(run("views", data, tmp_path, "--seeds", "1")) == without_times(record)
        assert json.loads(path.read_text())["arm"] == "base"
    arrays = path.with_suffix(".npz")
    for content in (b"", b"PK\3\4", b"no archive"):
        arrays.write_bytes(content)
        assert kept_answers.first_layer(record["runs"][0], tmp_path / "records") is None and read_right(arrays) is None


@pytest.mark.slow
def test_the_claim_of_the_towers_tells_all_its_arms(data, tmp_path):
    record = run("specialisation", data, tmp_path, "--seeds", "2", "--set", "conv1.maps=12")
    assert [entry["arm"] for entry in record["runs"]] == ["base", "no_links_same_width", "one_tower"] * 2
    base, no_links = findings.findings(record)[:2]  # three steps leave noise: no kernel has anything to say
    assert base.startswith("base: the towers' kernels differ in 0 of 2 runs (95 % interval 0 to 66 %;")
    assert "p = too few kernels, too few kernels" in no_links and no_links.startswith("no links same width: ")
    for entry in record["runs"]:
        measures = {"random_split_p", "chroma", "division"} & entry.keys()
        assert len(measures) == (0 if entry["arm"] == "one_tower" else 3)
