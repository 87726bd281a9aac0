"""The report's part on short codes: how well they find pictures of the query's class, against their length."""

from pathlib import Path

from ..analysis.figures import PANEL, write_figure
from ..retrieval.index import Index
from ..retrieval.measures import measure
from ..retrieval.search import NEIGHBOURS
from . import page

PART = "codes", "Short codes"
BITS = (64, 128, 256)
MOST_MEASURED = 500  # queries: a standard error of 2 % at most; each search of them sorts all training pictures
COLOURS = {"learned": "#0072b2", "random": "#e69f00"}  # Okabe and Ito
FEATURES, PIXELS = "#009e73", "#777777"
MEASURED = (
    ("Mean average precision", lambda entry: entry["mean_average_precision"]),
    ("Precision among the first six", lambda entry: entry["precision"]["6"]),
)


def short_codes(out: Path, index: Index, speed: bool) -> page.Part:
    """The `Part` with precision against code length. speed: and the time of a query, which is another one each time."""
    record = measure(index, BITS, MOST_MEASURED, speed)
    paths = [
        write_figure(figure, out / f"short_codes_{number}.png") for number, figure in enumerate(_draw(record), start=1)
    ]
    layer, cutoffs = record["layer"], list(record["searches"][0]["precision"])
    rows = []
    for entry in record["searches"]:
        name = (
            f"{entry['bits']} bits, {entry['codes']}"
            if entry["bits"]
            else f"{layer}, Euclidean"
            if entry["by"] == "fc7"
            else entry["by"]
        )
        rows.append(
            [
                name,
                f"{entry['bytes_per_picture']:,}",
                f"{100 * entry['mean_average_precision']:.1f}",
                *(f"{100 * entry['precision'][k]:.1f}" for k in cutoffs),
                *([f"{1e3 / entry['queries_per_second']:.2f}"] if speed else []),
            ]
        )
    pieces = [
        page.text(
            f"The paper suggests an auto-encoder that compresses the {layer} vectors to short binary codes. Here "
            "one is "
            "trained for each length on the training pictures, without their labels; the control takes the signs "
            "of random "
            f"projections instead. {record['queries']:,} validation pictures ask for training pictures of their class; "
            f"chance finds {100 * record['chance']:.1f} %."
        ),
        page.panels((path, f"{what}, against the length of the code") for path, (what, _) in zip(paths, MEASURED)),
        page.table(
            ["search", "bytes", "mAP, %", *(f"at {k}, %" for k in cutoffs), *(["ms a query"] if speed else [])], rows
        ),
    ]
    if speed:
        random = ", ".join(
            f"{entry['bits']} bits {1e3 / entry['queries_per_second']:.1f} ms" for entry in record["synthetic"]
        )
        pieces.append(
            page.why(
                f"Time: {NEIGHBOURS} nearest of {record['train']:,} pictures, compared one by one, on "
                f"{record['device']}. Of {record['synthetic_codes']:,} random codes: {random}."
            )
        )
    return page.Part(*PART, pieces)


def _draw(record):
    # Imported late: it takes a second. The object interface draws without a display and without global state.
    from matplotlib.figure import Figure

    figures = []
    for title, value in MEASURED:
        figures.append(Figure(figsize=PANEL, layout="constrained", facecolor="white"))
        axes = figures[-1].subplots()
        for kind, colour in COLOURS.items():
            entries = [entry for entry in record["searches"] if entry["codes"] == kind]
            axes.plot(
                [entry["bits"] for entry in entries],
                [100 * value(entry) for entry in entries],
                "o-" if kind == "learned" else "s--",
                color=colour,
                label=f"{kind} codes",
            )
        for by, colour, label in (("fc7", FEATURES, record["layer"]), ("pixels", PIXELS, "pixels")):
            (entry,) = (entry for entry in record["searches"] if entry["by"] == by)
            axes.axhline(100 * value(entry), color=colour, linestyle="-" if by == "fc7" else ":", label=label)
        axes.axhline(100 * record["chance"], color="black", linewidth=0.8, linestyle="--", label="chance")
        axes.set(xlabel="bits", title=title, ylabel="%", ylim=(0, None), xticks=BITS)
        axes.grid(alpha=0.3)
        figures[-1].legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figures
