"""A chart for a light page and a dark one: what changes, what stays, and that it can be read on both."""

import numpy as np
import pytest
from PIL import Image

from alexnet_mp.analysis.figure_4 import RIGHT, WRONG, draw_example
from alexnet_mp.analysis.figures import DENSITY_KEY, TOWER_COLOURS, write_figure
from alexnet_mp.analysis.themes import DARK, LIGHT, contrast, dark_of, in_the_dark, on_dark, rgb
from alexnet_mp.reporting.code_lengths import COLOURS, FEATURES, PIXELS
from alexnet_mp.reporting.page import TEMPLATES
from alexnet_mp.reporting.training import TRAINING, VALIDATION


@pytest.mark.run
def test_a_chart_is_read_on_a_dark_page_as_on_a_light_one(tmp_path):
    """Greys change places, colours keep their hue and can be seen, a photograph stays; the figure is as it was."""
    assert on_dark((0, 0, 0)) == rgb(DARK.ink) and on_dark((1, 1, 1)) == rgb(DARK.paper)
    assert contrast((0, 0, 0), (1, 1, 1)) == pytest.approx(21) and contrast((1, 0, 0), (1, 0, 0)) == 1
    colours = [*TOWER_COLOURS, *COLOURS.values(), FEATURES, PIXELS, TRAINING, VALIDATION, RIGHT, WRONG]
    dark = [on_dark(rgb(colour)) for colour in colours]
    assert all(contrast(colour, rgb(DARK.paper)) >= 4.9 for colour in dark)
    for pair in (TOWER_COLOURS, (TRAINING, VALIDATION), (RIGHT, WRONG)):
        assert np.abs(np.subtract(*(on_dark(rgb(colour)) for colour in pair))).max() > 0.2, pair
    style = (TEMPLATES / "style.html").read_text()
    light_style, dark_style = style.split("prefers-color-scheme: dark", 1)
    for theme, text, towers in (
        (LIGHT, light_style, ("#762a83", "#1b7837")),
        (DARK, dark_style, ("#c2a5cf", "#5aae61")),
    ):
        assert all(
            f"--{name}: {colour};" in text
            for name, colour in zip(("paper", "ink", "a", "b"), (theme.paper, theme.ink, *towers))
        )
    photograph = np.full((8, 8, 3), (250, 250, 250), np.uint8)
    photograph[:, :4] = 5, 5, 5
    figure = draw_example(photograph, "grey", [("one", 0.75, True), ("two", 0.25, False)])
    path = write_figure(figure, tmp_path / "it.png", density=1)
    first = path.read_bytes()
    with Image.open(path) as light_image, Image.open(dark_of(path)) as other:
        assert light_image.size == other.size and light_image.info[DENSITY_KEY] == "1"
        pixels, dark = (np.asarray(image.convert("RGB")).astype(int) for image in (light_image, other))
    assert pixels[0, 0].tolist() == [255] * 3 and dark[0, 0].tolist() == [22, 22, 26]
    height, width = pixels.shape[:2]
    for column, level in ((width // 4, 5), (3 * width // 4, 250)):
        assert pixels[height // 3, column].tolist() == dark[height // 3, column].tolist() == [level] * 3
    assert abs(dark[:20].max() - 0xEE) < 8 and pixels[:20].min() < 60  # the title
    write_figure(figure, path, density=1)
    assert path.read_bytes() == first
    axes = figure.axes[1]
    mesh = axes.pcolormesh([[0.0, 1.0]], cmap="viridis")
    note = axes.annotate("here", (0, 0), (1, 1), arrowprops={"color": "black"}, bbox={"facecolor": "white"})
    figure.savefig(tmp_path / "more.png")
    face_colours = mesh.get_facecolor().tolist()
    with in_the_dark(figure):
        assert note.arrow_patch.get_edgecolor()[:3] == pytest.approx(rgb(DARK.ink))
        assert note.get_bbox_patch().get_facecolor()[:3] == pytest.approx(rgb(DARK.paper))
        assert mesh.get_facecolor().tolist() == face_colours
        assert figure.get_facecolor()[:3] == pytest.approx(rgb(DARK.paper))
    assert figure.get_facecolor()[:3] == (1, 1, 1)
