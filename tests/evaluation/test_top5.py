"""With five classes or fewer every answer is among the first five: no top-5 error is told anywhere."""

import pytest
import torch
from claim_records import errors, record_of
from inner_cases import every
from matplotlib.figure import Figure

from alexnet_mp.analysis import figures
from alexnet_mp.evaluation import per_class
from alexnet_mp.evaluation.accuracy import answers, judged
from alexnet_mp.evaluation.ensembles import print_answers
from alexnet_mp.experiments.findings import findings
from alexnet_mp.recipes.architectures import mini
from alexnet_mp.reporting.training import draw_training, training

few_and_many = every("classes, told", [(2, False), (5, False), (6, True)])


def lines(classes):
    """A run's metrics: validated and tested once."""
    measures = {"top1_error": 40.0, "top5_error": 12.5 if classes > 5 else 0.0, "loss": 1.0, "images": 8}
    return [
        {"kind": "train", "epoch": 1, "step": 1, "loss": 1.5, "top1_error": 70.0},
        {"kind": "val", "epoch": 1, "step": 1, **measures},
        {"kind": "test", "epoch": 1, "step": 1, "protocol": "ten views", **measures},
    ]


def answered(classes):
    logs = torch.randn((8, classes), generator=torch.Generator().manual_seed(1)).double().log_softmax(1)
    return answers(logs, torch.arange(8) % classes)


@few_and_many
def test_an_evaluation(classes, told, capsys):
    print_answers({"ten views": answered(classes)}, "val", classes)
    output = capsys.readouterr().out
    assert "top-1 error" in output and "(8 images; 95 % intervals)" in output and ("top-5 error" in output) is told


@few_and_many
def test_the_table_of_classes(classes, told):
    outcome = answered(classes)
    counts = per_class.confusion(outcome.labels, outcome.top[:, 0], classes)
    rows = [row.split(",") for row in per_class.table(list("abcdef"[:classes]), outcome, counts).splitlines()[1:]]
    assert all(row[2] for row in rows) and {bool(row[3]) for row in rows} == {told}


@pytest.mark.run
@few_and_many
def test_the_report(classes, told, tmp_path):
    assert ("top-5" in "".join(map(str, training(tmp_path, lines(classes), mini(), classes).pieces))) is told
    assert ("top-5, validation" in labels(draw_training(lines(classes), classes)["errors"])) is told


@few_and_many
def test_the_curves_of_a_run(classes, told, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "read_metrics", lambda run: lines(classes))
    drawings = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawings.append(figure))
    figures.draw_curves(tmp_path)
    assert "top-1, validation" in labels(drawings[0]) and ("top-5, validation" in labels(drawings[0])) is told


def labels(figure):
    return [line.get_label() for axes in figure.axes for line in axes.lines]


@few_and_many
def test_the_findings_of_claims(classes, told):
    for kind in ("difference", "views", "errors", "cumulative", "ensemble"):
        runs = {
            (arm, seed): {"errors": errors((50.0 + seed, 9.0), (40.0 + seed, 7.0))}
            for arm in ("base", "other")
            for seed in (0, 1)
        }
        average = {
            "members": ["runs/base0", "runs/base1"],
            "errors": errors((48.0, 8.5), (39.0, 6.5)),
            "weighted": errors((47.0, 8.25), (38.0, 6.25)),
        }
        record = record_of(kind, ["base", "other"], runs, ensembles=[average] * (kind == "ensemble"))
        record["data"][0]["classes"] = classes
        sentences = findings(record)
        assert sentences and all((" / " in sentence) is told for sentence in sentences), (kind, sentences)


def test_what_is_kept_of_a_batch_is_no_view_of_more():
    """It is sent between processes, and a view takes all that it is of along."""
    tensors = judged(torch.randn(4, 1000).log_softmax(1), torch.arange(4))
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in tensors[1:4])
