"""How figure 3 grows, of planted runs: when the division begins, whether it turns, what is left out, and the
pictures."""

import io
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image
from tiny_run import LAYERS, run

from alexnet_mp.analysis import growth as growing
from alexnet_mp.analysis.figures import write_figure
from alexnet_mp.analysis.growth import Growth, growth, moment_of
from alexnet_mp.analysis.growth_pictures import animation, draw_growth, strip
from alexnet_mp.data.dataset import evenly
from alexnet_mp.reporting import growth as growth_part
from alexnet_mp.runs import first_layers

pytestmark = [pytest.mark.run, pytest.mark.usefixtures("one_thread", "quick")]
K, HALF = 7, 10


def gratings(colour, seed):
    """HALF gratings of a colour and some noise, (HALF, 3, K, K)."""
    draws, places = np.random.default_rng(seed), np.arange(K) - K // 2
    angles, phases = draws.uniform(0, np.pi, (2, HALF, 1, 1))
    waves = np.cos(1.2 * (np.cos(angles) * places[:, None] + np.sin(angles) * places) + 2 * phases)
    return (waves[:, None] * np.array(colour)[:, None, None] + draws.normal(0, 0.1, (HALF, 3, K, K))).astype(np.float32)


GREY, RED = (1.0, 1.0, 1.0), (1.0, -1.0, 0.0)


def moments(*kinds):
    """Noise, all grey, tower a grey and b red, or a red and b grey: a moment each, at steps 0, 10, ..."""
    noise = np.random.default_rng(9).normal(0, 0.01, (2 * HALF, 3, K, K)).astype(np.float32)
    kernels = {
        "noise": noise,
        "grey": np.concatenate([gratings(GREY, 1), gratings(GREY, 2)]),
        "b": np.concatenate([gratings(GREY, 1), gratings(RED, 2)]),
        "a": np.concatenate([gratings(RED, 1), gratings(GREY, 2)]),
    }
    return Growth(tuple(moment_of(10 * number, kernels[kind], 2, 2000) for number, kind in enumerate(kinds)), 0, ())


def test_when_the_division_begins_and_turns(monkeypatch, tmp_path):
    division = moments("noise", "grey", "b", "b")
    assert [moment.divided for moment in division.moments] == [False, False, True, True]
    assert division.moments[0].division_p is None and division.moments[1].division_p > 0.01
    assert division.begins == 20 and division.turns == []
    assert moments("noise", "b", "grey", "a").begins == 30 and moments("noise", "b", "grey", "a").turns == [30]
    assert moments("b", "a", "a", "b").turns == [10, 30] and moments("b", "a").begins == 0
    episode = moments("b", "b", "grey")
    assert episode.begins is None and episode.turns == []  # what comes and goes is no division
    one_tower = Growth((moment_of(0, gratings(GREY, 1), 1), moment_of(5, gratings(RED, 1), 1)), 2, ())
    assert one_tower.begins is None and one_tower.turns == [] and len(one_tower.moments[1].chroma) == 1
    monkeypatch.setattr(growth_part, "_pictures", lambda out, history: [])
    monkeypatch.setattr(growth_part, "MOST_CHARTS", 0)
    for history, begins, turns, words in (
        (division, "20", "never", "divided from step 20 on"),
        (moments("b", "b", "b"), "by 0", "never", "divided at all of them, and never turn: tower b"),
        (moments("noise", "noise"), "-", "-", "too few kernels have learned anything"),
        (episode, "-", "never", "the towers are not divided"),
        (one_tower, "-", "-", "it can't divide"),
    ):
        pieces = growth_part.growing(None, {"a run": history}).pieces
        (table,) = (piece["table"] for piece in pieces if piece["kind"] == "table")
        assert words in str(pieces[0]) and table["rows"][0][-2:] == [begins, turns], words
    assert [evenly(*arguments).tolist() for arguments in ((7, 3), (2, 40), (1, 6), (0, 6))] == [
        [0, 3, 6],
        [0, 1],
        [0],
        [],
    ]

    for history, width in ((division, 2), (one_tower, 1)):
        picture = strip(history.moments)
        with Image.open(io.BytesIO(animation(history.moments))) as film:
            assert film.n_frames == len(history.moments) and film.info["loop"] == 0
            film.seek(film.n_frames - 1)
            assert film.info["duration"] > 1500 and film.width > 1.2 * picture.width
        assert animation(history.moments) == animation(history.moments) and picture.width < 230 * width
        assert picture.mode == "RGBA" and picture.getpixel((picture.width - 1, 0))[3] == 0
        for name in ("a run", "2$x^{2$", "a long name " * 7 + "-seed3"):
            figure = draw_growth(history, name)
            figure.draw_without_rendering()  # it is laid out
            (axes,) = figure.axes
            assert axes.get_title()[-6:] == name[-6:] and figure.get_tightbbox().x1 < figure.get_figwidth(), name
        shares = [line.get_ydata() for line in axes.lines if len(line.get_ydata()) == len(history.moments)]
        assert np.allclose(shares[0], [moment.chroma[0] for moment in history.moments])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a letter that the font lacks
        write_figure(draw_growth(division, "run \N{CJK UNIFIED IDEOGRAPH-4E09}"), tmp_path / "growth.png", density=1)


def test_the_moments_of_a_run(data, tmp_path, monkeypatch, capsys):
    """Those that were kept, and the checkpoints; a file that is none of them is named in a line."""
    out = run(data, tmp_path / "run", "--keep-every", "4", "--checkpoint-every", "3", "--keep", "9")
    history = growth(out)
    assert [moment.step for moment in history.moments] == [0, 3, 4, 6, 8, 9] and history.kept == 3
    assert history.unreadable == () and history.moments[0].kernels.shape == (6, 3, 5, 5) == (
        2 * LAYERS[0]["maps"],
        3,
        5,
        5,
    )
    first_layers.write(out, 7, {"conv1.weight": np.zeros((4, 3, 5, 5), np.float32)})
    (out / "first_layer" / "step_00000004.safetensors").write_bytes(b"\x80\x04")
    shutil.rmtree(out / "checkpoints" / "step_00000003")
    history = growth(out)
    assert [moment.step for moment in history.moments] == [0, 6, 8, 9]
    assert [line.partition(": ")[0].rpartition("/")[2] for line in history.unreadable] == [
        "step_00000004.safetensors is damaged",
        "step_00000007.safetensors",
    ]
    monkeypatch.setattr(growing, "MOST_MOMENTS", 2)
    assert [moment.step for moment in growth(out).moments] == [0, 9]
