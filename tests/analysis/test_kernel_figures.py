"""The picture of a first layer: which kernels are on which side, what stands over them, and that it is the same each
time."""

import numpy as np
import pytest
from inner_cases import every
from made_kernels import GREY, RED_GREEN, made, measured
from PIL import Image

from alexnet_mp.analysis.figures import PANELS, TOWER_COLOURS, draw_specialisation, left_out, write_figure
from alexnet_mp.analysis.first_layer import kernel_statistics
from alexnet_mp.analysis.specialisation import MEASURES, tower_differences

pytestmark = pytest.mark.run


def bars(axes):
    """{colour: heights of its bars}, from left to right."""
    from matplotlib.colors import to_hex

    heights = {}
    for patch in axes.patches:
        heights.setdefault(to_hex(patch.get_facecolor()), []).append(round(patch.get_height()))
    return heights


def panels_of(figures):
    names = {title: measure for measure, (title, *_) in PANELS.items()} | {"Each kernel": "each"}
    panels = {measure: figure.axes[0] for measure, figure in figures.items()}
    assert [names[axes.get_title().partition("\n")[0]] for axes in panels.values()] == list(panels)
    return panels


def test_tower_a_is_above_the_line_and_tower_b_below():
    statistics = measured(colourfulness=[0.0, 0.01, 0.5, 1.0, 1.0, 1.0], frequency=[0.1] * 5 + [0.7])
    panels = panels_of(draw_specialisation(statistics, 2))
    heights = bars(panels["colourfulness"])
    assert heights[TOWER_COLOURS[0]][0] == 2 and sum(heights[TOWER_COLOURS[0]]) == 3
    assert heights[TOWER_COLOURS[1]][-1] == -3 and sum(heights[TOWER_COLOURS[1]]) == -3
    # nothing beyond
    assert sum(bars(panels["frequency"])[TOWER_COLOURS[1]]) == -3 and panels["frequency"].get_xlim()[1] == 0.7
    assert panels["colourfulness"].yaxis.get_major_formatter()(-3, None) == "3"  # a count, whichever side
    assert [len(line.get_xdata()) for line in panels["each"].lines[:2]] == [3, 3]


def test_orientation_and_phase_have_tuned_kernels_alone():
    statistics = measured(selectivity=[0.9, 0.1] * 2 + [0.1] * 2 + [0.9] * 4 + [0.1] * 2, frequency=[0.1] * 6 + [0] * 6)
    panels = panels_of(draw_specialisation(statistics, 2, tower_differences(statistics, draws=50)))
    assert set(panels) == {"colourfulness", "selectivity", "frequency", "each"}  # two are tuned: too few for a panel
    statistics = measured(selectivity=[0.9] * 6 + [0.1] * 6)
    panels = panels_of(draw_specialisation(statistics, 2, tower_differences(statistics, draws=50)))
    for measure in ("orientation", "phase"):
        assert sum(bars(panels[measure])[TOWER_COLOURS[0]]) == 6 and sum(bars(panels[measure])[TOWER_COLOURS[1]]) == 0
        assert "no tuned kernels in a tower" in panels[measure].get_title()
    assert sum(bars(panels["selectivity"])[TOWER_COLOURS[0]]) == 6


@every("tuned, few", [(4, ["orientation", "phase"]), (5, [])])
def test_panels_of_fewer_than_five_kernels_are_left_out_and_named(tuned, few):
    statistics = measured(selectivity=[0.9] * tuned + [0.1] * (12 - tuned))
    assert left_out(statistics) == few and len(draw_specialisation(statistics, 2)) == 6 - len(few)


def test_what_stands_over_the_panels():
    statistics = kernel_statistics(made(0, GREY, RED_GREEN))
    panels = panels_of(draw_specialisation(statistics, 2, tower_differences(statistics)))
    assert set(PANELS) == set(MEASURES)
    assert panels["colourfulness"].get_title() == "Colourfulness\ndelta \N{MINUS SIGN}1.00, corrected p < 0.001"
    assert panels["phase"].get_title().startswith("Phase, tuned kernels\nV 0.")
    assert panels_of(draw_specialisation(statistics, 2))["colourfulness"].get_title() == "Colourfulness"


@pytest.mark.slow
@every("maps, towers", [(1, 1), (2, 2), (96, 2)])
def test_any_number_of_kernels_can_be_drawn_on_white(maps, towers, tmp_path):
    statistics = kernel_statistics(np.random.default_rng(0).normal(size=(maps, 3, 5, 5)))
    differences = tower_differences(statistics, draws=50) if towers == 2 else None
    first = write_figure(draw_specialisation(statistics, towers, differences)["each"], tmp_path / "one.png", dpi=40)
    with Image.open(first) as picture:
        assert picture.convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)
        assert "Software" not in picture.info
    if maps == 2:
        second = write_figure(
            draw_specialisation(statistics, towers, differences)["each"], tmp_path / "two.png", dpi=40
        )
        assert first.read_bytes() == second.read_bytes()
