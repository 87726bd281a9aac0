"""The curves of a run, from whatever its metrics hold."""

import json

import numpy as np
import pytest
from PIL import Image

from alexnet_mp.analysis import figures
from alexnet_mp.analysis.figures import WINDOW, draw_curves


@pytest.mark.run
def test_curves_of_short_runs(tmp_path, monkeypatch):
    """One step and no validation; a last line that was cut off is left out. The legend says how many steps are in a
    mean."""
    line = {"kind": "train", "step": 1, "epoch": 1, "loss": 2.3, "top1_error": 90.0}
    for name, text in (("one", json.dumps(line) + "\n"), ("cut", json.dumps(line) + '\n{"kind": "tra'), ("none", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(text)
        with Image.open(draw_curves(tmp_path / name)) as picture:
            assert picture.size == (1100, 528)
    for count, width in ((41, "21 minibatches"), (40, "19 minibatches"), (4, "1 minibatch")):
        lines = [json.dumps(line | {"step": step}) + "\n" for step in range(1, count + 1)]
        (tmp_path / "one" / "metrics.jsonl").write_text("".join(lines))
        labels = [curve.get_label() for axes in drawn(tmp_path / "one", monkeypatch) for curve in axes.lines]
        assert labels[1:] == [f"training, mean of {width} around", f"top-1, training, mean of {width} around"]


def drawn(run, monkeypatch, **options):
    """(the loss's axes, the errors')."""
    from matplotlib.figure import Figure

    with monkeypatch.context() as patch:
        charts = []
        patch.setattr(Figure, "savefig", lambda figure, *_, **__: charts.append(figure))
        draw_curves(run, **options)
    return charts[0].axes


def test_curves_say_what_a_guess_gives_and_where_a_rate_falls(tmp_path, monkeypatch):
    lines = [{"kind": "schedule", "epoch": epoch, "learning_rates": {"w": rate}} for epoch, rate in ((1, 2), (2, 1))]
    lines += [
        {"kind": "train", "step": step, "epoch": 1 + (step > 30), "loss": 2.0, "top1_error": 90.0}
        for step in range(1, 61)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for axes, guess in zip(drawn(tmp_path, monkeypatch, classes=8), (np.log(8), 87.5), strict=True):
        level = {line.get_label(): line.get_ydata() for line in axes.lines}
        steps = {line.get_label(): line.get_xdata() for line in axes.lines}
        (label,) = [label for label in level if "guess" in label or "alike" in label]
        assert "8" in label and list(level[label]) == pytest.approx([guess] * 2)
        assert list(steps["a learning rate falls"]) == [30.5, 30.5]
    assert not any("guess" in line.get_label() for line in drawn(tmp_path, monkeypatch)[1].lines)


def test_a_running_mean_does_not_lag():
    """A ramp is its own mean; a step's middle stays where it is."""
    half, steps = WINDOW // 2, np.arange(1, 101)
    places, means, _ = figures._running_mean(steps, np.arange(100.0))
    assert list(places) == list(steps[half:-half]) and means == pytest.approx(np.arange(100.0)[half:-half])
    places, means, _ = figures._running_mean(steps, np.repeat([0.0, 1.0], 50))
    means = dict(zip(places, means, strict=True))
    assert means[50] < 0.5 < means[51] and means[50] + means[51] == pytest.approx(1)
    assert means[50 - half] == 0 and means[51 + half] == pytest.approx(1)
    for count, length in ((0, 0), (1, 1), (4, 4), (5, 3)):
        places, means, _ = figures._running_mean(list(range(count)), [3.0] * count)
        assert len(places) == len(means) == length and set(means) <= {3.0}
