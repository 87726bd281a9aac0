"""The figure of `what_each_gpu_learned.py`: network by network, what each tower's answers stand, and how much the
network needs it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from alexnet_mp.analysis.figures import TOWER_COLOURS

from .tables import by_arm, of_two_towers, points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, FAINT = "#333333", "#c4c4cc"
MARKERS = "o^"  # of tower a and tower b, as in every figure
INCHES = 10.0  # at 100 pixels an inch


def draw(records: Sequence[dict]) -> "Figure":
    """Of the networks of two towers of the data set that has most: a row each, tower a and tower b joined by a line."""
    # Imported late: it takes a second. The object interface draws without a display and without global state.
    from matplotlib.figure import Figure

    groups = {}
    for record in of_two_towers(records):
        groups.setdefault(record["data"]["description"], []).append(record)
    arms = by_arm(max(groups.values(), key=len))
    places, place = [], 0.0
    for sample in arms.values():
        places.append([place + number for number in range(len(sample))])
        place += len(sample) + 0.8
    figure = Figure(figsize=(INCHES, 1.55 + 0.3 * place), layout="constrained", facecolor="white")
    panels = figure.subplots(1, 3, sharey=True)
    titles = ("answers kept without colour", "answers kept by colour alone", "harm with a tower off")
    for panel, title in zip(panels, titles):
        panel.set_title(title, fontsize=12, color=INK)
        panel.grid(axis="x", alpha=0.3)
        panel.tick_params(labelsize=11)
        panel.tick_params(axis="y", length=0)
        panel.spines[["top", "right", "left"]].set_visible(False)
    for sample, rows in zip(arms.values(), places):
        for network, row in zip(sample, rows):
            shares = network["colour"]["kept"]
            _dumbbell(panels[0], row, shares["grey"])
            _dumbbell(panels[1], row, shares["colour alone"])
            lesions = first_meeting(network)
            _dumbbell(panels[2], row, [points(lesion) for lesion in lesions])
    for panel in panels[:2]:
        panel.set(xlim=(-3, 103), xlabel="% of the answers by what a tower sees")
    meetings = dict.fromkeys(first_meeting(network)[0]["place"] for sample in arms.values() for network in sample)
    panels[2].set(xlabel=f"points of top-1 error, off at {' or '.join(meetings)}")
    panels[2].set_xlim(left=min(0, panels[2].get_xlim()[0]))
    for panel in panels:
        panel.xaxis.label.set_size(11)
    panels[0].set_yticks(
        [row for rows in places for row in rows],
        [f"seed {network['seed']}" for sample in arms.values() for network in sample],
    )
    panels[0].set_ylim(place - 1.0, -1.1)
    for arm, rows in zip(arms, places):
        panels[0].text(
            0.0,
            rows[0] - 0.62,
            arm,
            transform=panels[0].get_yaxis_transform(),
            fontsize=11,
            color=INK,
            va="center",
            weight="bold",
        )
    handles = [
        panels[0].plot([], [], MARKERS[tower], color=TOWER_COLOURS[tower], markersize=9, label=f"tower {'ab'[tower]}")[
            0
        ]
        for tower in (0, 1)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=12)
    return figure


def first_meeting(record: dict) -> list[dict]:
    """The lesions of tower a and of tower b where the towers first meet."""
    places = [lesion["place"] for lesion in record["lesions"]["towers"] if lesion["place"] != "all"]
    return [lesion for lesion in record["lesions"]["towers"] if lesion["place"] == places[0]]


def _dumbbell(panel, row, values):
    panel.plot(values, [row, row], color=FAINT, linewidth=2.5, zorder=1)
    for tower, value in enumerate(values):
        panel.plot(value, row, MARKERS[tower], color=TOWER_COLOURS[tower], markersize=9, zorder=2)
