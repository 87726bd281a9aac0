"""What the picture of each kind of claim shows, read off matplotlib's objects: the records are made by hand."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from alexnet_mp.experiments.drawing import FAINT, say_scale
from alexnet_mp.experiments.figures import draw_claim, figure_of
from alexnet_mp.experiments.paper_claims import KINDS

ARMS = {"errors": 1, "views": 1, "towers": 1, "cumulative": 4, "difference": 6, "ensemble": 3}  # else two
LONG = "fine_tuned_bottleneck"


def errors(centre):
    return {
        name: {"top1_error": top1, "top5_error": top1 / 3, "loss": top1 / 20, "images": 1000}
        for name, top1 in (("centre view", centre), ("ten views", centre - 1.5))
    }


def run_of(kind, arm, seed, level, steps=1200):
    """A run with everything that its kind is measured by; level: of its errors in %."""
    blocks = range(1, min(60, steps) + 1)
    losses = [
        level / 100 + 1.5 * math.exp(-block / (4 + level / 8)) + 0.03 * math.sin(block * (seed + 1)) for block in blocks
    ]
    run = {
        "arm": arm,
        "seed": seed,
        "directory": f"runs/{arm}-{seed}",
        "steps": steps,
        "steps_per_epoch": 100,
        "curve": {
            "steps": [block * max(steps // 60, 1) for block in blocks],
            "loss": losses,
            "top1_error": [40 * loss for loss in losses],
        },
        "errors": errors(level + 0.7 * seed),
    }
    match kind:
        case "training" | "dropout" | "overfitting":
            run["on_training_images"] = {"top1_error": 3 * level - 70, "top5_error": 1.0, "loss": 1.0, "images": 5000}
        case "rates":
            run["epochs_to_level"] = level / 10 + seed
        case "moved":
            run["moved"] = round((level - 25) ** 2) + 10 * seed + 12
        case "towers":
            shares = [0.08 + 0.02 * seed, 0.81 - 0.03 * seed]
            run |= {"chroma": shares[:: 1 if seed % 2 else -1], "random_split_p": 0.0001 * (seed + 1)}
        case "schedule":
            run["drops"] = [4 + seed, 9]
    return run


def record_of(kind, seeds=3, arms=None, **more):
    names = arms or ["base", "no_lrn", "non_overlapping", "no_conv5", LONG, "sixth_conv"][: ARMS.get(kind, 2)]
    runs = [run_of(kind, arm, seed, 30 + 2.2 * number) for seed in range(seeds) for number, arm in enumerate(names)]
    return {
        "claim": kind,
        "kind": kind,
        "epochs": 12,
        "steps": None,
        "search": [],
        "rates": {},
        "ensembles": [],
        "data": [{"description": "folder imagenette: 9,469 train, 3,925 val images of 10 classes", "classes": 10}],
        "arms": [{"name": name, "what": name, "larger": False} for name in names],
        "runs": runs,
        **more,
    }


def diverged(record, *keys):
    """The runs of these (arm, seed) ended early."""
    for run in record["runs"]:
        if (run["arm"], run["seed"]) in keys:
            for name in ("errors", "on_training_images", "chroma", "random_split_p"):
                run.pop(name, None)
            run["diverged"], run["curve"] = 300, {name: values[:15] for name, values in run["curve"].items()}
            run |= {name: None for name in ("moved", "epochs_to_level") if name in run}
            run["steps"] = 299
    return record


def ensemble_of(record, size):
    members = [run["directory"] for run in record["runs"] if run["arm"] != "sixth_conv"][:size]
    return {
        "members": members,
        "weights": [1.0] * len(members),
        "errors": errors(29.5 - size / 5),
        "weighted": {"ten views": {"top1_error": 27.6 - size / 5, "top5_error": 9.0, "loss": 1.0, "images": 1000}},
    }


def seven():
    """A record as of `ensemble7`: five networks, two pre-trained on more classes and fine-tuned."""
    record = record_of("ensemble", 5, ["base"])
    for seed in (0, 1):
        record["runs"] += [run_of("ensemble", "sixth_conv", seed, 60), run_of("ensemble", "fine_tuned", seed, 28)]
    record["arms"] += [
        {"name": "sixth_conv", "what": "", "larger": True},
        {"name": "fine_tuned", "what": "", "larger": False},
    ]
    record["ensembles"] = [ensemble_of(record, 7) | {"five": ensemble_of(record, 5)}]
    return record


def of_one_step(record):
    for run in record["runs"]:
        run |= {
            "steps": 1,
            "curve": {"steps": [1], **{name: run["curve"][name][:1] for name in ("loss", "top1_error")}},
        }
        run |= {name: None for name in ("moved", "epochs_to_level") if name in run}
    return record


def points(axes, filled=True):
    """[(x, y)] of the round points on an axis."""
    return sorted(
        (float(x), round(float(y), 3))
        for line in axes.lines
        if line.get_marker() == "o" and (line.get_markerfacecolor() != "white") == filled
        for x, y in zip(*line.get_data())
    )


def line_of(axes, label):
    (line,) = (line for line in axes.lines if line.get_label() == label)
    return line


def names(axes):
    return [label.get_text() for label in axes.get_xticklabels()]


BARS = "mean, bars: \N{PLUS-MINUS SIGN} standard deviation"


def legend(axes):
    return axes.get_legend_handles_labels()[1]


def texts(axes):
    return [text.get_text() for text in axes.texts]


def error_bars(axes):
    """[(x, mean, sd)] of the bars beside the points."""
    bars = []
    for bar in axes.containers:
        (x, low), (_, high) = bar.lines[2][0].get_segments()[0]
        bars.append((float(x), float(low + high) / 2, float(high - low) / 2))
    return bars


# --- all kinds


@pytest.mark.run
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[] if kind in ("difference", "speed", "towers") else [pytest.mark.slow])
        for kind in sorted(KINDS)
    ],
)
def test_every_kind_is_drawn_whatever_is_missing(kind, tmp_path):
    for record in (
        record_of(kind, 8),
        diverged(record_of(kind, 3), ("base", 0), ("no_lrn", 1)),
        of_one_step(record_of(kind, 1)),
    ):
        left, right = figure_of(record).axes
        assert left.lines and right.lines and right.get_ylabel() and not texts(left)
    keys = [(arm["name"], 0) for arm in record_of(kind)["arms"]]
    for record in (record_of(kind, 0), diverged(record_of(kind, 1), *keys)):
        left, right = figure_of(record).axes
        assert texts(right) == ["no run came to a result"]
    assert draw_claim(record_of(kind, 1), tmp_path / "picture.png").stat().st_size > 5000


def test_256_colours_show_what_was_drawn(tmp_path):
    """Five arms, so that more colours than these are on the picture before."""
    file, record = io.BytesIO(), record_of("cumulative", 6)
    figure_of(record).savefig(file, format="png", dpi=100)
    with Image.open(file) as before, Image.open(draw_claim(record, tmp_path / "picture.png")) as picture:
        assert picture.mode == "P"
        before = np.asarray(before.convert("RGB"), np.int16)
        distances = np.abs(np.asarray(picture.convert("RGB"), np.int16) - before).max(-1)
    assert len(np.unique(before.reshape(-1, 3), axis=0)) > 256
    assert distances.mean() < 0.5 and np.mean(distances > 32) < 0.001


def test_a_run_of_one_step_is_a_point():
    left, _ = figure_of(of_one_step(record_of("difference", 1))).axes
    assert len(left.lines) == 12 and all(line.get_marker() == "o" for line in left.lines)
    assert left.get_xlim()[1] > 1 and left.get_ylim()[1] > max(line.get_ydata()[0] for line in left.lines)


def test_the_thick_line_is_the_mean_of_the_runs_that_ended():
    record = record_of("difference", 3, ["base"])
    curves = [run["curve"]["loss"] for run in record["runs"]]
    left, _ = figure_of(record).axes
    assert line_of(left, "base").get_ydata() == pytest.approx([sum(values) / 3 for values in zip(*curves)])
    left, _ = figure_of(diverged(record, ("base", 1))).axes
    assert line_of(left, "base").get_ydata() == pytest.approx([(a + b) / 2 for a, b in zip(curves[0], curves[2])])
    (cross,) = (line for line in left.lines if line.get_marker() == "x" and len(line.get_xdata()))
    assert (cross.get_xdata()[0], cross.get_ydata()[0]) == (300, curves[1][14]) and legend(left) == ["base", "diverged"]


def test_the_mean_of_runs_that_ended_at_different_steps_goes_as_far_as_the_shortest():
    record = record_of("rates", 2, ["relu"])
    for run, steps in zip(record["runs"], ([100, 200, 300], [50, 150])):
        run["curve"] = {"steps": steps, "loss": [0.0] * len(steps), "top1_error": [60.0 - step / 10 for step in steps]}
    left, _ = figure_of(record).axes
    assert line_of(left, "relu").get_xdata() == pytest.approx([0.5, 1.5])
    assert line_of(left, "relu").get_ydata()[1] == pytest.approx(45)  # both runs are on the same line


def test_points_pairs_means_and_their_number():
    record = diverged(record_of("difference", 3, ["base", "no_lrn"]), ("no_lrn", 1))
    _, right = figure_of(record).axes
    base, other = [28.5, 29.2, 29.9], [30.7, 32.1]
    assert points(right) == [*((0, error) for error in base), *((1, error) for error in other)]
    assert names(right) == ["base\nn = 3", "no lrn\nn = 2, 1 diverged"]
    assert [bar[1:] for bar in error_bars(right)] == [pytest.approx((29.2, 0.7)), pytest.approx((31.4, 0.7 * 2**0.5))]
    pairs = [list(line.get_ydata()) for line in right.lines if list(line.get_xdata()) == [0, 1]]
    assert pairs == [pytest.approx([28.5, 30.7]), pytest.approx([29.9, 32.1])]
    _, right = figure_of(record_of("difference", 1)).axes
    assert not error_bars(right) and names(right)[0] == "base\nn = 1"


def test_what_was_trained_on_more_classes_is_in_the_curves_alone():
    left, right = figure_of(seven() | {"kind": "difference", "ensembles": []}).axes
    assert (
        line_of(left, "sixth conv, on more classes").get_linestyle() == "--"
        and line_of(left, "base").get_linestyle() == "-"
    )
    assert names(right) == ["base\nn = 5", "fine tuned\nn = 2"] and max(y for _, y in points(right)) < 40


def test_many_names_are_turned():
    _, right = figure_of(record_of("difference")).axes
    assert len(names(right)) == 6 and {label.get_rotation() for label in right.get_xticklabels()} == {30}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "description", ["folder " + "word " * 100, "folder $x$ \\frac{", "folder \udcff: 9 train images"]
)
def test_a_title_of_any_words(description, tmp_path):
    record = record_of("views", 1)
    record["data"][0]["description"] = description
    figure = figure_of(record)
    figure.savefig(tmp_path / "picture.png")
    title = figure.get_suptitle().splitlines()
    assert len(title) <= 2 and all(len(line) <= 140 for line in title)
    assert set(" ".join(title).split()) <= {*description.split(), "views,", "12", "epochs:", "...", "\\udcff:"}


# --- each kind


def test_gaps_are_bars_from_training_to_validation_images():
    for kind in ("dropout", "overfitting"):
        record = record_of(kind, 3)
        for run in record["runs"]:
            run["on_training_images"]["top1_error"] = run["errors"]["centre view"]["top1_error"] - 5.0 - run["seed"]
        _, right = figure_of(record).axes
        bars = [[round(value, 3) for value in line.get_ydata()] for line in right.lines if len(line.get_xdata()) == 2]
        assert bars == [[25.0, 30.0], [24.7, 30.7], [24.4, 31.4], [27.2, 32.2], [26.9, 32.9], [26.6, 33.6]]
        assert texts(right) == ["5.0", "6.0", "7.0"] * 2
        assert names(right) == ["base\ngap 6.0 ± 1.0\nn = 3", "no lrn\ngap 6.0 ± 1.0\nn = 3"]
        assert [y for _, y in points(right, filled=False)] == pytest.approx([25, 24.7, 24.4, 27.2, 26.9, 26.6])
        assert legend(right) == ["validation images", "training images, network in test mode"]


def test_towers_have_shares_and_no_errors():
    record = diverged(record_of("towers", 3), ("base", 0))
    _, right = figure_of(record).axes
    assert points(right) == [(0, 0.1), (0, 0.78), (1, 0.12), (1, 0.75)]
    assert list(line_of(right, "tower a").get_ydata()) == pytest.approx([0.1, 0.75])
    assert texts(right) == ["p = 0.0002", "p = 0.0003"] and names(right) == ["seed 1", "seed 2"]
    assert right.get_ylim() == (0, 1) and "chroma" in right.get_ylabel()


@pytest.mark.run
def test_members_are_points_and_averages_lines():
    record = seven()
    _, right = figure_of(record).axes
    averages = ["average of 5", "average of 5, weighted", "average of 7", "average of 7, weighted"]
    assert legend(right) == [BARS, *averages]
    assert [line_of(right, name).get_ydata()[0] for name in averages] == pytest.approx([27.0, 26.6, 26.6, 26.2])
    assert [line_of(right, name).get_linestyle() for name in averages] == ["--", "--", "-", "-"]
    assert names(right) == ["base\nn = 5", "fine tuned\nn = 2"]
    # no pairs
    assert not [line for line in right.lines if list(line.get_xdata()) == [0, 1] and line.get_label().startswith("_")]
    record["ensembles"] += record["ensembles"]
    assert len(legend(figure_of(record).axes[1])) == 5


def test_rates_are_epochs_to_a_training_error():
    record = record_of("rates", 2, ["cifar_relu", "cifar_tanh"])
    record["search"] = [run_of("rates", "cifar_relu", 1000, 20), {"arm": "cifar_tanh", "seed": 1000, "diverged": 1}]
    record["runs"][-1]["epochs_to_level"] = None
    left, right = figure_of(record).axes
    assert left.get_xlabel() == "epoch" and list(line_of(left, "25 %").get_ydata()) == [25, 25]
    assert [line_of(left, name).get_linestyle() for name in ("cifar relu", "cifar tanh", "25 %")] == ["-", "--", "--"]
    assert line_of(left, "cifar relu").get_xdata()[-1] == 12
    assert [line.get_color() for line in left.lines][0] == FAINT
    assert right.get_yscale() == "log" and points(right) == [(0, 3), (0, 4), (1, 3.22)]
    assert points(right, filled=False) == [(1, 12)] and legend(right) == [
        BARS,
        "not within the run, no part of the mean",
    ]


@pytest.mark.parametrize("last, scale", [(20, "linear"), (400, "log")])
def test_when_the_loss_moves(last, scale):
    record = record_of("moved", 2)
    for run, step in zip(record["runs"], (10, 15, None, last)):
        run["moved"] = step
    if scale == "linear":
        record["runs"][2]["diverged"] = 7  # no run that never moved
    left, right = figure_of(record).axes
    assert line_of(left, "ln(10), all classes alike").get_ydata()[0] == pytest.approx(math.log(10))
    assert right.get_yscale() == scale and points(right) == [(0, 10), (1, 15), (1, last)]
    assert points(right, filled=False) == ([] if scale == "linear" else [(0, 1200)])


def test_where_the_rate_falls():
    left, _ = figure_of(record_of("schedule", 1, ["dated"])).axes
    assert [list(line.get_xdata()) for line in left.lines if line.get_linestyle() == ":" and len(line.get_xdata())] == [
        [300, 300],
        [800, 800],
    ]  # epochs 4 and 9 begin after 300 and 800 steps
    assert "the rate falls" in legend(left) and "the rate falls" not in legend(
        figure_of(record_of("difference")).axes[0]
    )


def test_means_are_joined_in_a_cumulative_claim():
    _, right = figure_of(record_of("cumulative", 3)).axes
    assert list(line_of(right, "means").get_ydata()) == pytest.approx([29.2, 31.4, 33.6, 35.8])


def test_views_are_two_columns_of_the_same_networks():
    _, right = figure_of(record_of("views", 2)).axes
    assert points(right) == [(0, 30), (0, 30.7), (1, 28.5), (1, 29.2)]
    assert names(right) == ["centre view\nn = 2", "ten views\nn = 2"]


def test_an_axis_says_that_it_is_logarithmic_or_where_it_begins():
    from matplotlib.figure import Figure

    labels = []
    for low, scale in ((0, "linear"), (71.25, "linear"), (1, "log")):
        axes = Figure().subplots()
        axes.set(ylabel="error (%)", yscale=scale, ylim=(low, 80))
        say_scale(axes)
        labels.append(axes.get_ylabel())
    assert labels == ["error (%)", "error (%)\nthe axis begins at 71.2", "error (%)\nlogarithmic axis"]
