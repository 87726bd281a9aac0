"""Top-1 and top-5 errors, ties, NaN, partial batches, and the average over views; several runs, and what is written of
them."""

import csv
import gc
import json
import math
import os
import re
import shutil
import types
import weakref
from contextlib import closing
from dataclasses import astuple

import numpy as np
import pytest
import torch
from image_folders import make_folder
from inner_cases import every
from tiny_checkpoint import rewrite_state
from tiny_run import newest, run
from torch import nn

from alexnet_mp import evaluate as command
from alexnet_mp import prepare
from alexnet_mp.data import pixel_statistics
from alexnet_mp.data.dataset import open_dataset
from alexnet_mp.evaluation import ensembles
from alexnet_mp.evaluation import trained as trained_module
from alexnet_mp.evaluation.accuracy import FEW, Errors, percent, read_right, topk_credit, topk_credit_each, write_right
from alexnet_mp.evaluation.ensembles import Run, evaluate_runs
from alexnet_mp.evaluation.protocol import both_protocols, evaluate, log_probabilities, print_errors
from alexnet_mp.recipes.architectures import mini, paper
from alexnet_mp.runs.directory import RIGHT
from alexnet_mp.system.errors import UserError


@every(
    "scores, label, top1, top5",
    [
        ([9, 8, 7, 6, 5, 4, 3], 0, 1, 1),
        ([9, 8, 7, 6, 5, 4, 3], 4, 0, 1),
        ([9, 8, 7, 6, 5, 4, 3], 5, 0, 0),
        ([1, 1, 1, 1, 1, 1, 1], 3, 1 / 7, 5 / 7),  # random tie-breaking is right once in seven, five in seven
        ([9, 8, 7, 6, 5, 5, 3], 5, 0, 1 / 2),
        ([9, 9, 7, 6, 5, 5, 3], 0, 1 / 2, 1),
        ([float("nan")] * 7, 3, 0, 0),  # a network that blew up is never right
        ([float("nan"), 8, 7, 6, 5, 4, 3], 1, 0, 1),
        ([1, 2, 3], 0, 0, 1),  # fewer than six classes: top-5 can't fail
    ],
)
def test_credits_of_one_image(scores, label, top1, top5):
    result = topk_credit(torch.tensor([scores], dtype=torch.float32), torch.tensor([label]))
    assert result.tolist() == pytest.approx([top1, top5])


def test_credits_agree_with_topk_without_ties():
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.rand(500, 20, generator=generator), torch.randint(20, (500,), generator=generator)
    for k, credit in zip((1, 5), topk_credit(scores, labels).tolist()):
        assert credit == (scores.topk(k).indices == labels[:, None]).any(1).sum().item()


class Scripted(nn.Module):
    """A network whose answer is written into the images: logit c of an image is its pixel c."""

    def forward(self, images, _=None):
        return images[:, :, 0, 0]


class ScriptedPipeline:
    """Yields views whose pixels are the given logits: views -> (images, 3 classes)."""

    def __init__(self, logits, labels):
        self.logits, self.labels = logits, labels

    def views(self, split, batch_size, which):
        for start in range(0, len(self.labels), batch_size):
            part = slice(start, start + batch_size)
            yield [[self.logits[view][part][:, :, None, None]] * 2 for view in which], self.labels[part]


def test_probabilities_are_averaged_and_every_image_counts_once():
    """Two views that disagree: softmax first, then the mean. Averaging logits would decide image 0 the other way."""
    logits = {
        "centre": torch.tensor([[2.0, 0, 1], [0, 5, 0], [0, 0, 5]]),
        "mirror": torch.tensor([[-9.0, 0, -9], [0, 5, 0], [0, 0, 5]]),
    }
    labels = torch.tensor([0, 1, 0])
    counts = []
    network = Scripted().train()
    outcomes = evaluate(
        network,
        ScriptedPipeline(logits, labels),
        "val",
        {"one": ["centre"], "two": ["centre", "mirror"]},
        2,
        counts.append,
    )
    errors = {name: answers.errors() for name, answers in outcomes.items()}
    p = [np.exp(logits[view][0].numpy()) / np.exp(logits[view][0].numpy()).sum() for view in ("centre", "mirror")]
    assert p[0].argmax() == 0 and np.mean(p, 0).argmax() == 1
    assert errors["one"].top1_error == pytest.approx(100 / 3) and errors["two"].top1_error == pytest.approx(200 / 3)
    assert errors["one"].top5_error == 0 and errors["one"].images == 3
    losses = [
        -np.log(np.mean(p, 0)[0]),
        *(-np.log(torch.stack([logits[v][i].softmax(0) for v in logits]).mean(0)[labels[i]].item()) for i in (1, 2)),
    ]
    assert errors["two"].loss == pytest.approx(np.mean(losses))
    assert counts == [2, 1] and network.training  # left in the mode it was in


def test_a_loss_beyond_float32_is_finite():
    """exp(-300) is 0 in float32; the loss is 300 all the same, and over two views -log of the mean."""
    logits = {"one": torch.tensor([[300.0, 0, 0]]), "two": torch.tensor([[200.0, 0, 0]])}
    outcomes = evaluate(
        Scripted(),
        ScriptedPipeline(logits, torch.tensor([1])),
        "val",
        {"one": ["one"], "both": ["one", "two"]},
        1,
        lambda n: None,
    )
    assert outcomes["one"].errors().loss == pytest.approx(300) and outcomes["both"].errors().loss == pytest.approx(
        200 + np.log(2)
    )


@pytest.mark.run
@every("classes, batch_size", [(7, 8), (10, 128), (1000, 50), (3, 1)])
@every("ties", [False, True])
def test_the_bits_of_errors_are_those_of_sums_over_batches(tmp_path, classes, batch_size, ties):
    """Float64 sums of a batch, added in the order of the batches: what runs and records have held ever since."""
    generator = torch.Generator().manual_seed(classes)
    logits = {view: 3 * torch.randn(333, classes, generator=generator) for view in ("centre", "mirror")}
    labels = torch.randint(classes, (333,), generator=generator)
    if ties:
        logits = {view: values.round() for view, values in logits.items()}
        logits["centre"][5] = float("nan")
    protocols = {"centre view": ["centre"], "ten views": ["centre", "mirror"]}
    parts, pipeline = [], ScriptedPipeline(logits, labels)
    outcomes = evaluate(
        Scripted(), pipeline, "val", protocols, batch_size, lambda n: None, lambda *batch: parts.append(batch)
    )
    write_right(tmp_path, outcomes)
    record = read_right(tmp_path / RIGHT)
    assert [place for rows, _ in parts for place in range(rows.start, rows.stop)] == list(range(333))
    for name in protocols:
        sums = torch.zeros(3, dtype=torch.float64)
        for rows, means in parts:
            loss = -means[name].gather(1, labels[rows, None]).sum(0)
            sums = sums + torch.cat((topk_credit(means[name], labels[rows]), loss))
        top1, top5, loss = (sums / 333).tolist()
        np.testing.assert_array_equal(astuple(outcomes[name].errors()), (100 - 100 * top1, 100 - 100 * top5, loss, 333))
        credit = torch.stack(topk_credit_each(torch.cat([means[name] for _, means in parts]), labels))
        assert np.array_equal(record[name], credit.eq(1).numpy())
        np.testing.assert_array_equal(torch.stack((outcomes[name].top1, outcomes[name].top5)).numpy(), credit.numpy())
    assert math.isnan(loss) == ties
    for images, bits in ((10**12, (2, 1)), (-1, (2, 1)), (9, (2, 1)), (6, (1, 1)), (6, (2, 1, 1)), (6, (2,))):
        np.savez(tmp_path / RIGHT, images=np.array(images), **{"ten views": np.zeros(bits, np.uint8)})
        assert read_right(tmp_path / RIGHT) is None  # it is something else


def wilson(wrong, images, z=1.959963984540054):
    """The interval in %, by its formula."""
    share = wrong / images
    centre = (share + z * z / (2 * images)) / (1 + z * z / images)
    margin = z * math.sqrt(share * (1 - share) / images + (z / (2 * images)) ** 2) / (1 + z * z / images)
    return f"{100 * max(0, centre - margin):.0f} to {100 * min(1, centre + margin):.0f} %"


@every("wrong, images", [(11, 18), (0, 18), (18, 18), (1, 1), (7, 999), (500, 999)])
def test_an_error_of_few_images_has_its_count_and_interval(wrong, images):
    assert percent(100 * wrong / images, images) == (
        f"{100 * wrong / images:.2f} % ({wrong} of {images}: {wilson(wrong, images)})"
    )


def test_the_lines_of_few_and_of_many_images(capsys):
    assert percent(100 * 11 / 18, 18) == "61.11 % (11 of 18: 39 to 80 %)"
    assert percent(37.5, 1000) == "37.50 %" and percent(100 - 100 * 5.5 / 9, 9).startswith("38.89 % (3.5 of 9: ")
    print_errors({"ten views": Errors(100 * 11 / 18, 0.0, 1.0, 18)}, "val", 1000)
    assert capsys.readouterr().out == (
        "val, ten views    top-1 error  61.11 % (11 of 18: 39 to 80 %)   top-5 error   0.00 % (0 of 18: 0 to 18 %)   "
        "(18 images; 95 % intervals)\n"
    )
    print_errors({"ten views": Errors(37.5, 17.0, 1.0, FEW)}, "val", 1000)
    assert capsys.readouterr().out == (
        "val, ten views    top-1 error  37.50 %   top-5 error  17.00 %   (1,000 images)\n"
    )


def test_the_papers_protocols():
    protocols = both_protocols(paper())
    assert protocols["centre view"] == [(16, 16, False)]
    corners = [(0, 0), (0, 32), (16, 16), (32, 0), (32, 32)]
    assert protocols["ten views"] == [(*place, flip) for flip in (False, True) for place in corners]
    assert len(set(both_protocols(mini())["ten views"])) == 10


def test_a_test_that_is_broken_off_leaves_the_network_in_training():
    network, pipeline = (
        Scripted().train(),
        ScriptedPipeline({"one": torch.zeros(6, 3)}, torch.zeros(6, dtype=torch.int64)),
    )
    with closing(log_probabilities(network, pipeline, "val", {"x": ["one"]}, 2)) as batches:
        means, labels = next(batches)
        assert means["x"].exp().tolist() == [pytest.approx([1 / 3] * 3)] * 2 and not network.training
        assert not torch.is_inference_mode_enabled()  # of the one who asks
    assert network.training


# --- several runs


def seen(centre, mirror=None):
    """Logits that give these probabilities, (images, classes), under two views; under the second the same if nothing is
    said."""
    return {"centre": torch.tensor(centre).log(), "mirror": torch.tensor(centre if mirror is None else mirror).log()}


@pytest.fixture
def networks(monkeypatch):
    """Makes `Run`s of hand-made answers, {split: views} for each; a run's network must be gone when the next one is
    loaded."""
    references = []

    def load_run(directory, gpus, kernels, ranks):
        gc.collect()
        assert all(reference() is None for reference in references), "a network is still in memory"
        network = Scripted()
        references.append(weakref.ref(network))
        return network, None

    def make(labels, *answers, names=("ten views",)):
        count = len(next(iter(answers[0].values()))["centre"][0])
        splits = {split: Labelled(labels=np.array(of_split)) for split, of_split in labels.items()}
        dataset = types.SimpleNamespace(splits=splits, classes=[f"class {label}" for label in range(count)])
        runs = []
        for number, answer in enumerate(answers):
            protocols = {"centre view": ["centre"], names[number % len(names)]: ["centre", "mirror"]}
            runs.append(Run(f"run {number}", dataset, OfSplits(answer, labels), protocols, 2, "cpu", "auto"))
        return runs

    monkeypatch.setattr(ensembles, "load_run", load_run)
    return make


class Labelled(types.SimpleNamespace):
    def __len__(self):
        return len(self.labels)


class OfSplits:
    def __init__(self, logits, labels):
        self.logits, self.labels = logits, labels

    def views(self, split, batch_size, which):
        return ScriptedPipeline(self.logits[split], torch.tensor(self.labels[split])).views(split, batch_size, which)


ONE, OTHER = [[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.4, 0.5, 0.1]], [[0.1, 0.7, 0.2], [0.3, 0.6, 0.1], [0.3, 0.6, 0.1]]


def top1(by_protocol):
    return {name: of_protocol.errors().top1_error for name, of_protocol in by_protocol.items()}


@pytest.mark.run
def test_the_average_of_runs_by_hand(networks):
    """Averages: (.35 .5 .15), (.4 .5 .1), (.35 .55 .1); weighted by 4 and 1: (.5 .38 .12), (.46 .44 .1), (.38 .52
    .1)."""
    runs = networks({"val": [0, 0, 1]}, {"val": seen(ONE)}, {"val": seen(OTHER)})
    test = evaluate_runs(runs, "val")
    assert [top1(by_protocol) for by_protocol in test.runs] == [
        {"centre view": 0, "ten views": 0},
        {"centre view": pytest.approx(200 / 3), "ten views": pytest.approx(200 / 3)},
    ]
    assert top1(test.average) == {"centre view": pytest.approx(200 / 3), "ten views": pytest.approx(200 / 3)}
    assert test.weights == (0.5, 0.5) and test.average["ten views"].top.tolist() == [[1, 0, 2]] * 3
    assert test.average["ten views"].errors().loss == pytest.approx(-np.log([0.35, 0.4, 0.55]).mean(), rel=1e-6)
    test = evaluate_runs(runs, "val", (0.8, 0.2))
    assert top1(test.average)["ten views"] == 0 and test.average["centre view"].top[:, 0].tolist() == [0, 0, 1]
    single = evaluate_runs(runs[:1], "val")
    assert single.average is single.runs[0] and single.weights == (1,) and top1(single.average)["ten views"] == 0


def led_by(lead):
    """Probabilities of seven classes for an image of the last one: by how much it leads the six others, which are
    equal."""
    return [(1 - lead) / 7] * 6 + [(1 + 6 * lead) / 7]


@pytest.mark.run
@pytest.mark.parametrize("split", ["test", "val"])
def test_weights_are_chosen_on_the_validation_images(networks, split, capsys):
    """The first network is wrong about both validation images, the second right: the first gets 0, the first weight
    tried that is right. On the test images it would have been the other way round."""
    wrong_answers, right_answers = [led_by(-0.08), led_by(-0.1)], [led_by(0.01), led_by(0.02)]
    runs = networks(
        {"val": [6, 6], "test": [6, 6]},
        {"val": seen(wrong_answers), "test": seen(right_answers)},
        {"val": seen(right_answers), "test": seen(wrong_answers)},
    )
    for views in ("ten", "centre"):
        test = evaluate_runs(runs, split, "validation", views)
        assert test.weights == (0, 1)
        assert top1(test.average)["ten views"] == (100 if split == "test" else 0)
        assert test.average["ten views"].errors().top5_error == (100 if split == "test" else 0)
        assert [by_protocol["ten views"].errors().top5_error for by_protocol in test.runs] == (
            [0, 100] if split == "test" else [100, 0]
        )
        output = capsys.readouterr().out
        assert "chosen on the validation images: 0 0.5" in output and ("WARNING" in output) == (split == "val")


@pytest.mark.run
def test_weights_are_chosen_under_the_views_that_are_asked_for(networks):
    """Centre view: leads of -0.04 and 0.02, so 0 is right for the first network. Both views: 0.01 and -0.07, too much
    for twice the first one's weight, so 0 is for the second."""
    first, second = seen([led_by(-0.04)], [led_by(0.06)]), seen([led_by(0.02)], [led_by(-0.16)])
    runs = networks({"val": [6], "test": [6]}, {"val": first, "test": second}, {"val": second, "test": first})
    for split in ("val", "test"):
        assert evaluate_runs(runs, split, "validation", "centre").weights == (0, 1)
        assert evaluate_runs(runs, split, "validation", "ten").weights == (1, 0)


def test_protocols_of_different_names_are_averaged(networks):
    runs = networks({"val": [0, 0, 1]}, {"val": seen(ONE)}, {"val": seen(OTHER)}, names=("ten views", "nine views"))
    assert list(evaluate_runs(runs, "val").average) == ["centre view", "ten views / nine views"]


@pytest.mark.run
def test_a_run_of_one_view_is_averaged_with_one_of_ten(networks):
    """Its only view is both; alone, or with others like it, it has the centre view and no other protocol."""
    mirror = [[0.2, 0.7, 0.1], [0.2, 0.7, 0.1], [0.9, 0.05, 0.05]]
    for first in (0, 1):
        ten, one = networks({"val": [0, 0, 1]}, {"val": seen(ONE, mirror)}, {"val": seen(OTHER)})
        del one.protocols["ten views"]
        test = evaluate_runs([one, ten] if first else [ten, one], "val")
        name = "one view / ten views" if first else "ten views / one view"
        assert list(test.average) == ["centre view", name] and [len(by_protocol) for by_protocol in test.runs] == [2, 2]
        expected = np.mean([np.mean([ONE, mirror], 0), OTHER], 0)
        assert test.average[name].errors().loss == pytest.approx(
            -np.log(expected[[0, 1, 2], [0, 0, 1]]).mean(), rel=1e-6
        )
        assert test.average["centre view"].errors().loss == pytest.approx(
            -np.log(np.mean([ONE, OTHER], 0)[[0, 1, 2], [0, 0, 1]]).mean(), rel=1e-6
        )
    for views in ("ten", "centre"):
        one, other = networks({"val": [0, 0, 1]}, {"val": seen(OTHER)}, {"val": seen(ONE)})
        for member in (one, other):
            del member.protocols["ten views"]
        assert list(evaluate_runs([one, other], "val", "validation", views).average) == ["centre view"]
        assert list(evaluate_runs([one], "val", views=views).average) == ["centre view"]


@pytest.mark.run
def test_a_network_that_answers_nan_is_not_averaged(networks):
    nan = [[0.6, 0.3, 0.1], [float("nan")] * 3, [0.4, 0.5, 0.1]]
    runs = networks({"val": [0, 0, 1]}, {"val": seen(ONE)}, {"val": seen(nan)})
    for weights in (None, "validation", (1, 0)):
        with pytest.raises(UserError, match="run 1: its network answers with NaN"):
            evaluate_runs(runs, "val", weights)
    # alone, as ever: never right
    assert top1(evaluate_runs(runs[1:], "val").average)["ten views"] == pytest.approx(100 / 3)
    with pytest.raises(UserError, match="NaN"):
        evaluate_runs(runs[1:], "val", finite=True)


# --- the command


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two runs of different stored sizes and seeds, on the same pictures; and the pictures, with a test split."""
    root = tmp_path_factory.mktemp("trained")
    make_folder(root / "folder", train=8, val=5, size=(48, 44))
    shutil.copytree(root / "folder/val", root / "folder/test")
    assert prepare.main([str(root / "folder"), str(root / "set"), "--size", "44", "--workers", "0", "--raw"]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("alexnet_mp.training.trainer.draw_curves", lambda *_: None)
        patch.setattr("alexnet_mp.training.trainer.draw_kernels", lambda *_: None)
        run(root / "set", root / "a", "--steps", "3")
        run(root / "set", root / "b", "--steps", "4", "--seed", "1", "--set", "stored_size=44")
    return root


def evaluated(*arguments):
    assert command.main([*map(str, arguments), "--gpus", "cpu", "--workers", "0"]) == 0


def refused(*arguments):
    with pytest.raises(UserError) as refusal:
        command.main([*map(str, arguments), "--gpus", "cpu", "--workers", "0"])
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def mean_answers(directory, data, split):
    """[(images, classes) probabilities under the centre view and under ten views] of a run, in float64, each view by
    itself."""
    network, training = trained_module.load_run(directory, "cpu")
    recipe, dataset = training.recipe, open_dataset(str(data), training.recipe.stored_size, (split,))
    statistics, means = pixel_statistics.Statistics.load(directory).mean.astype(np.float32), []
    for views in both_protocols(recipe).values():
        distributions = []
        for place in range(len(dataset.splits[split])):
            picture, crops = dataset.splits[split].read(place).astype(np.float32) - statistics, []
            for top, left, flip in views:
                crop = picture[top : top + recipe.crop_size, left : left + recipe.crop_size]
                crops.append(
                    torch.from_numpy(np.ascontiguousarray((crop[:, ::-1] if flip else crop).transpose(2, 0, 1)))
                )
            with torch.inference_mode():
                distributions.append(network(torch.stack(crops), torch.stack(crops)).double().softmax(1).mean(0))
        means.append(torch.stack(distributions))
    return means


@pytest.mark.run
@pytest.mark.parametrize("split", ["val", "test"])
def test_two_runs_and_all_their_files(trained, tmp_path, split, capsys):
    """Against the networks themselves, asked view by view; the runs have their own sizes of pictures."""
    options = (
        ["--data", trained / "set", "--split", split]
        if split == "val"
        else ["--data", trained / "folder", "--split", split]
    )
    evaluated(
        trained / "a",
        trained / "b",
        *options,
        "--weights",
        "3",
        "1",
        "--submission",
        tmp_path / "s",
        "--per-class",
        tmp_path / "p.csv",
        "--confusion",
        tmp_path / "c.csv",
        "--batch-size",
        "4",
    )
    output = capsys.readouterr().out
    by_run = [mean_answers(trained / name, options[1], split) for name in "ab"]
    by_run.append([0.75 * one + 0.25 * other for one, other in zip(*by_run)])
    labels = torch.arange(15) // 5
    errors = [
        100 - 100 * (of_protocol.argmax(1) == labels).double().mean().item()
        for of_run in by_run
        for of_protocol in of_run
    ]
    table = [float(error) for error in re.findall(r"views?  +top-1 error +([\d.]+) %", output)]
    assert (
        table == [pytest.approx(error, abs=0.006) for error in errors]
        and "average of 2 runs, weights 0.75 0.25" in output
    )

    expected = by_run[2][1].argsort(1, descending=True)
    lines = [[int(number) for number in line.split()] for line in (tmp_path / "s").read_text().splitlines()]
    assert lines == (expected + 1).tolist() and "classes numbered from 1" in output
    with open(tmp_path / "c.csv", newline="") as file:
        counts = np.array([row[1:] for row in list(csv.reader(file))[1:]], int)
    assert counts.tolist() == [
        [int((expected[labels == label, 0] == other).sum()) for other in range(3)] for label in range(3)
    ]
    with open(tmp_path / "p.csv", newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert [row[0] for row in rows] == ["apple", "leaf", "sky"] and [row[1] for row in rows] == ["5"] * 3
    assert [float(row[2]) for row in rows] == [pytest.approx(100 - 20 * count) for count in counts.diagonal()]


def test_files_are_about_the_views_that_are_asked_for(trained, tmp_path, capsys):
    """And the others are not tested."""
    evaluated(trained / "a", "--views", "centre", "--submission", tmp_path / "s")
    assert re.findall(r"val, (\w+ views?)", capsys.readouterr().out) == ["centre view"]
    expected = mean_answers(trained / "a", trained / "set", "val")[0].argsort(1, descending=True)
    assert (tmp_path / "s").read_text().splitlines() == [" ".join(map(str, line)) for line in (expected + 1).tolist()]


@pytest.mark.run
def test_weights_chosen_on_validation_are_used_for_the_test_images(trained, tmp_path, capsys):
    evaluated(trained / "a", trained / "b", "--data", trained / "folder", "--split", "test", "--weights", "validation")
    output = capsys.readouterr().out
    # of three classes no top-5 error is better than another
    assert "weights chosen on the validation images: 0.5 0.5" in output
    assert re.findall("^(?:val|test), ", output, re.M) == ["val, "] * 2 + ["test, "] * 6 and "WARNING" not in output


FLAGS = ("--submission", "--per-class", "--confusion")


@every("flag", FLAGS)
def test_a_file_that_cannot_be_written_is_refused_at_once(trained, tmp_path, flag, monkeypatch):
    monkeypatch.setattr(ensembles, "load_run", None)  # nothing may get so far
    (tmp_path / "there").write_text("dear")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for name in ("there", "nowhere"):
        assert f"{flag} {tmp_path / name}: it is there already" in refused(trained / "a", flag, tmp_path / name)
    for name in ("", "no/file", "there/file"):
        assert flag in refused(trained / "a", flag, tmp_path / name if name else name)
    assert (tmp_path / "there").read_text() == "dear" and os.path.islink(tmp_path / "nowhere")
    other = FLAGS[FLAGS.index(flag) - 1]
    assert "the same file" in refused(trained / "a", flag, tmp_path / "new", other, f"{tmp_path}/./new")


def test_runs_that_cannot_be_averaged_are_refused_before_anything_is_tested(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(ensembles, "load_run", None)
    for name in ("classes", "fewer", "data", "empty"):
        shutil.copytree(trained / "b", tmp_path / name)

    def change(name, **fields):
        rewrite_state(newest(tmp_path / name), lambda state: state["data"].update(fields))

    change("classes", classes=["apple", "moss", "sky"])
    change("fewer", classes=["apple", "leaf"])
    change("data", source="/elsewhere")
    shutil.rmtree(tmp_path / "empty" / "checkpoints")
    message = refused(trained / "a", trained / "b", tmp_path / "classes")
    assert f"{tmp_path / 'classes'}: its class 2 is 'moss', and 'leaf' in {trained / 'a'}" in message
    assert f"{tmp_path / 'fewer'}: its class 3 is missing, and 'sky' in" in refused(trained / "a", tmp_path / "fewer")
    assert (
        "trained on different data" in (message := refused(trained / "a", tmp_path / "data"))
        and "/elsewhere" in message
    )
    assert f"{tmp_path / 'empty'}: no checkpoint in it" in refused(trained / "a", tmp_path / "empty")
    assert "not a run directory" in refused(trained / "a", tmp_path / "missing")
    assert "no test split" in refused(
        trained / "a", trained / "b", "--data", no_test(trained, tmp_path), "--split", "test"
    )


def test_what_the_newest_weights_were_trained_with_counts_and_not_what_the_run_would_do_now(trained, tmp_path):
    """A run that goes on with other data, and is killed before its first checkpoint, has the old weights and a new
    run.json."""
    run = shutil.copytree(trained / "a", tmp_path / "run")
    content = json.loads((run / "run.json").read_text())
    content["data"] |= {"source": "/elsewhere", "classes": ["ant", "bee"]}
    content["recipe"]["stored_size"] = 300
    (run / "run.json").write_text(json.dumps(content))
    (run / "statistics.safetensors").unlink()
    own, expected = trained_module.trained(run), trained_module.trained(trained / "a")
    assert own.checkpoint.name == expected.checkpoint.name and own.recipe == expected.recipe and own.weights is None
    assert (own.source, own.classes) == (expected.source, expected.classes)
    assert np.array_equal(own.statistics.mean, expected.statistics.mean)


def no_test(trained, tmp_path):
    shutil.copytree(trained / "folder", tmp_path / "folder", ignore=shutil.ignore_patterns("test"))
    assert (
        prepare.main([str(tmp_path / "folder"), str(tmp_path / "set"), "--size", "44", "--workers", "0", "--raw"]) == 0
    )
    return tmp_path / "set"


@every(
    "arguments, named",
    [
        (["a", "b", "--weights", "1"], "1 for 2 RUNs"),
        (["a", "b", "--weights", "0", "0"], "above 0"),
        (["a", "b", "--weights", "nan", "1"], "nan is no weight"),
        (["a", "--weights", "1"], "a single RUN"),
        (["a", "--weights", "validation"], "a single RUN"),
        (["a", "b", "--weights=-1"], "1 for 2 RUNs"),
        (["a", "b", "--batch-size", "0"], "at least 1"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_read(trained, arguments, named, monkeypatch):
    monkeypatch.setattr(trained_module, "read_run", None)
    assert named in refused(*(trained / word if word in "ab" else word for word in arguments))
