"""What the report says of a run's lines, by hand."""

import pytest

from alexnet_mp.recipes.architectures import mini
from alexnet_mp.reporting.training import draw_training, epochs_of, gap, training


def step(epoch, loss, error):
    return {"kind": "train", "epoch": epoch, "loss": loss, "top1_error": error}


def validated(epoch, loss, top1, top5):
    return {"kind": "val", "epoch": epoch, "loss": loss, "top1_error": top1, "top5_error": top5}


def rates(epoch, rate):
    return {"kind": "schedule", "epoch": epoch, "learning_rates": {"conv1": rate}}


LINES = [
    rates(1, 0.01),
    step(1, 2.0, 80.0),
    step(1, 1.0, 60.0),
    validated(1, 1.25, 65.0, 20.0),
    rates(2, 0.001),
    step(2, 0.5, 40.0),
]


def test_an_epoch_is_the_mean_of_its_steps():
    assert epochs_of(LINES) == [
        {"epoch": 1, "loss": 1.5, "top1_error": 70.0, "val_loss": 1.25, "val_top1_error": 65.0, "val_top5_error": 20.0},
        {"epoch": 2, "loss": 0.5, "top1_error": 40.0},
    ]
    assert epochs_of([]) == epochs_of([validated(1, 1, 1, 1)]) == []


def test_the_gap_is_of_the_last_epoch_that_was_validated():
    assert gap(epochs_of(LINES)) == (1, -5.0)
    assert gap(epochs_of(LINES[:3])) is None and gap([]) is None


def test_curves_and_drops_are_where_they_belong():
    loss, error = (figure.axes[0] for figure in draw_training(LINES, 10).values())
    curves = {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for axes in (loss, error)
        for line in axes.lines
    }
    assert curves["training"] == ([1, 2], [1.5, 0.5]) and curves["validation, centre view"] == ([1], [1.25])
    assert curves["top-1, training"] == ([1, 2], [70, 40]) and curves["top-5, validation"] == ([1], [20])
    assert curves["a learning rate falls"][0] == [1.5, 1.5]  # before epoch 2
    assert curves["ln(10), all classes alike"][1] == pytest.approx([2.302585] * 2)


def test_the_words(tmp_path):
    test_line = {"kind": "test", "protocol": "ten views", "images": 1234, "top1_error": 12.345, "top5_error": 1.0}
    words, _, table = training(tmp_path, [*LINES, test_line], mini(), 10).pieces
    assert words["text"].startswith("3 steps, into epoch 2 of 12;") and "loss was 0.500" in words["text"]
    assert "top-1, at epoch 1: -5.00 points;" in words["text"] and table["table"]["rows"] == [
        ["ten views", "1,234", "12.35 %", "1.00 %"]
    ]
    small_test = test_line | {"images": 18, "top1_error": 100 * 11 / 18}
    (row,) = training(tmp_path, [*LINES, small_test], mini(), 3).pieces[2]["table"]["rows"]
    assert row == ["ten views", "18", "61.11 % (11 of 18: 39 to 80 %)"]
    assert (tmp_path / "training_loss.png").exists()


def test_a_run_without_a_step(tmp_path):
    assert (
        training(tmp_path, [rates(1, 0.01)], mini(), 10).pieces[0]["text"] == "The run has no step that was recorded."
    )
    assert not (tmp_path / "training_loss.png").exists()
