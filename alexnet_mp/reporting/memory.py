"""The report's part on why there are two GPUs: what a training step holds by tower and by layer, against the 3 GB of
2012, and how long its crossings would take on links of then and of now."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..analysis.figures import NARROW, write_figure
from ..profiling import link_rates
from ..profiling.layer_memory import Bytes, StepBytes, step_bytes
from ..recipes import shapes
from ..recipes.architectures import paper
from ..recipes.recipe import Recipe
from . import page

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GTX_580 = 3 << 30  # bytes: 3,072 MiB, "only 3GB" (3.2)
IMAGENET = 1000  # classes of the paper's network
# of `Bytes`: words and colours (Okabe and Ito)
KINDS = {
    "weights": ("weights and biases", "#0072b2"),
    "gradients": ("their gradients", "#56b4e9"),
    "velocity": ("their velocities", "#009e73"),
    "activations": ("activations kept for backward", "#e69f00"),
    "workspace": ("workspace", "#cc79a7"),
}
LINKS = {
    "PCIe 2.0 x16, as in 2012": link_rates.PCIE_2_X16,
    "PCIe 5.0 x16": link_rates.PCIE_5_X16,
    "NVLink 4 (H100, H200)": link_rates.NVLINK_4,
    "NVLink 5 (B200)": link_rates.NVLINK_5,
}


def memory(out: Path, recipe: Recipe, classes: int) -> page.Part:
    """The `Part` of a recipe's network for so many classes, and of the paper's beside it."""
    profile = step_bytes(recipe, classes, recipe.batch_size)
    layers = write_figure(_by_layer(profile), out / "memory_layers.png"), "Bytes of a training step by layer and tower"
    pieces = [
        page.text(_in_words(profile, recipe.name)),
        page.panels([_holds(out, profile, recipe.name, "memory"), layers]),
        _table(profile),
    ]
    paper_recipe = paper()
    if recipe.name != paper_recipe.name:
        paper_profile = step_bytes(paper_recipe, IMAGENET, paper_recipe.batch_size)
        pieces += [
            page.heading("Beside it, the paper's network"),
            page.text(_in_words(paper_profile, "paper")),
            page.panels([_holds(out, paper_profile, "paper", "memory_paper")]),
        ]
    pieces.append(
        page.why(
            "Counted from the tensors of a whole step of this size, which have shapes and no values; the operators are "
            "those of this project on a CPU. Each tower as on a device of its own. Activations count for the layer "
            "that keeps them, which is mostly the one that reads them. Workspace: the most that a layer has at once "
            "beside all else, mostly gradients of activations; of a tower, that of the layer with the most. Not "
            "counted: what an operator has for itself while it runs, and what an allocator keeps."
        )
    )
    pieces += _links(out, recipe, classes)
    return page.Part("memory", "Why two GPUs", pieces)


def _in_words(profile, name):
    both, sizes = profile.one_device.total, [tower.total for tower in profile.towers]
    step = f"A training step of {profile.batch_size} images of recipe {name} holds in float32"
    share = f"{100 * max(sizes) / GTX_580:.2g} % of the 3 GB ({_size(GTX_580)}) of a GTX 580 of 2012"
    if len(sizes) == 1:
        return f"{step} {_size(both)} on its one GPU, {share}; they are full at {_full([profile.one_device], profile)}."
    fits = "would fit on one such card, too" if both <= GTX_580 else "would not fit on one such card"
    return (
        f"{step} {_size(sizes[0])} on tower a's GPU and {_size(sizes[1])} on tower b's: the larger is {share}. Both "
        f"towers on one GPU hold {_size(both)}, which {fits}. One card is full at "
        f"{_full([profile.one_device], profile)}, two with a tower each at {_full(profile.towers, profile)}."
    )


def _full(devices, profile):
    """The largest batch with which a step fits on every device: activations and workspace grow with it. In words."""
    batch_sizes = [
        (GTX_580 - 3 * device.weights) * profile.batch_size // max(1, device.activations + device.workspace)
        for device in devices
    ]
    return f"{max(0, min(batch_sizes)):,} images a step"


def _holds(out, profile, name, file):
    path = write_figure(_of_devices(profile), out / f"{file}.png")
    return path, f"Bytes of a training step of {name} by device"


def _of_devices(profile: StepBytes) -> "Figure":
    """A bar a device, of its kinds of bytes one after the other, and the 3 GB."""
    bars = {f"tower {'ab'[number]}": tower for number, tower in enumerate(profile.towers)}
    if len(bars) == 2:
        bars |= {"one GPU": profile.one_device}
    figure, axes = _figure()
    _stacked_bars(axes, bars)
    if profile.one_device.total > GTX_580 / 10:
        axes.axvline(GTX_580 / 1e6, color="black", linestyle=":", linewidth=1.2, label="3 GB of a GTX 580")
        axes.set_xlim(0, 1.05 * max(GTX_580, profile.one_device.total) / 1e6)
    axes.set_title(f"Held by a step of {profile.batch_size} images", fontsize=9.5)
    _legend(figure, axes)
    return figure


def _by_layer(profile: StepBytes) -> "Figure":
    """A bar a layer and tower."""
    names = list(dict.fromkeys(layer for _, layer in profile.layers))
    several = len(profile.towers) > 1
    bars = {
        f"{layer} {'ab'[tower] if several else ''}".strip(): profile.layers[tower, layer]
        for layer in names
        for tower in range(len(profile.towers))
        if (tower, layer) in profile.layers
    }
    figure, axes = _figure(0.9 + 0.2 * len(bars))
    _stacked_bars(axes, bars)
    axes.set_title("By layer and tower", fontsize=9.5)
    _legend(figure, axes)
    return figure


def _figure(height=3.3):
    # Imported late: it takes a second. The object interface draws without a display and without global state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(NARROW, max(height, 2.2)), layout="constrained", facecolor="white")
    return figure, figure.subplots()


def _stacked_bars(axes: "Axes", bars: Mapping[str, Bytes]) -> None:
    starts = [0.0] * len(bars)
    for kind, (words, colour) in KINDS.items():
        widths = [getattr(bar, kind) / 1e6 for bar in bars.values()]
        axes.barh(list(bars), widths, left=starts, color=colour, edgecolor="white", linewidth=0.5, label=words)
        starts = [start + width for start, width in zip(starts, widths)]
    axes.invert_yaxis()
    axes.set(xlabel="MB (10\N{SUPERSCRIPT SIX} bytes)", xlim=(0, None))
    axes.tick_params(labelsize=8.5)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def _legend(figure, axes):
    look = {"frameon": False, "fontsize": 8.5, "columnspacing": 1, "handlelength": 1.6}  # else wider than the figure
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, **look)


def _table(profile):
    rows = [
        [layer, "ab"[tower], *_megabytes(size)]
        for (tower, layer), size in sorted(profile.layers.items(), key=lambda entry: entry[0][0])
    ]
    rows += [["in all", "ab"[tower], *_megabytes(size)] for tower, size in enumerate(profile.towers)]
    if len(profile.towers) == 2:
        rows.append(["in all", "one GPU", *_megabytes(profile.one_device)])
    return page.table(["MB", "tower", "weights", "gradients", "velocities", "activations", "workspace", "sum"], rows)


def _megabytes(size):
    return [f"{getattr(size, kind) / 1e6:,.1f}" for kind in KINDS] + [f"{size.total / 1e6:,.1f}"]


def _links(out, recipe, classes):
    each_way = _each_way(recipe, classes)
    if not each_way:
        return []
    times = {name: 1e3 * max(each_way) / rate for name, rate in LINKS.items()}
    path = write_figure(_draw_links(times), out / "links.png")
    return [
        page.heading("What crosses, on links of then and of now"),
        page.text(
            f"A step of {recipe.batch_size} images sends {_size(each_way[0])} from a to b and {_size(each_way[1])} "
            "from b to a, forward and backward. Computed from what a link's makers state, both ways at once and "
            "nothing lost, not measured:"
        ),
        page.image(path, "Milliseconds that the crossings of a step would take on links of 2012 and of today"),
        page.table(
            ["link", "GB/s one way", "ms a step, computed"],
            [[name, f"{rate / 1e9:,.0f}", f"{times[name]:.3g}"] for name, rate in LINKS.items()],
        ),
    ]


def _each_way(recipe, classes) -> Sequence[int]:
    """Bytes of a step [a->b, b->a]; empty where nothing crosses."""
    rows = shapes.crossings(recipe, recipe.batch_size, classes)
    sums = [sum(count for _, way, _, count in rows if way == direction) for direction in ("a->b", "b->a")]
    return sums if rows else []


def _draw_links(times):
    figure, axes = _figure(2.2)
    axes.plot(list(times.values()), list(times), "o", color="#0072b2")  # a bar has no length on such a scale
    axes.set_xscale("log")
    axes.invert_yaxis()
    maximum = max(times.values())
    axes.set(xlabel="ms a step (logarithmic)", xlim=(min(times.values()) / 3, 6 * maximum))
    for place, value in enumerate(times.values()):
        axes.text(1.3 * value, place, f"{value:.3g}", va="center", fontsize=8.5)
    axes.tick_params(labelsize=8.5)
    axes.margins(y=0.15)
    axes.grid(axis="x", alpha=0.3)
    return figure


def _size(count):
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
