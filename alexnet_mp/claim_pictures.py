"""The picture of a claim: training curves of its arms, and what came out for each seed."""
from statistics import mean

COLOURS = ("#08519c", "#d95f02", "#1b9e77", "#7570b3", "#e7298a")
RESULTS = {  # kind: (what is drawn of a run, the axis' name)
    "rates": (lambda run: run.get("epochs_to_level"), "epochs to 25 % training error"),
    "moved": (lambda run: run.get("moved"), "steps until the loss moves"),
    "training": (lambda run: run["on_training_images"]["top1_error"] if "errors" in run else None,
                 "top-1 error on the training images, centre view (%)"),
}


def averaged(errors):
    """The protocol that averages over views, "ten views" or "nine views", of {protocol: errors}."""
    return next(name for name in errors if name != "centre view")


def draw_claim(record, path):
    """Write the picture of a record: left the training loss, a thick line an arm and a thin one a seed; right a point a seed."""
    # Imported late: it takes a second. The object interface draws without a display and without global state.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    curves, results = figure.subplots(1, 2)
    value, name = RESULTS.get(record["kind"], (_error, "top-1 error (%), average over views"))
    arms = [arm["name"] for arm in record["arms"]]
    points = {}
    for number, arm in enumerate(arms):
        colour = COLOURS[number % len(COLOURS)]
        runs = [run for run in record["runs"] if run["arm"] == arm and "curve" in run]
        for run in runs:
            curves.plot(run["curve"]["steps"], run["curve"]["loss"], color=colour, linewidth=0.6, alpha=0.5)
        same = [run["curve"] for run in runs if run["curve"]["steps"] == runs[0]["curve"]["steps"]]
        if same:
            means = [mean(losses) for losses in zip(*(curve["loss"] for curve in same))]
            curves.plot(same[0]["steps"], means, color=colour, linewidth=2, label=arm)
        points[arm] = {run["seed"]: value(run) for run in runs if value(run) is not None}
        results.plot([number] * len(points[arm]), list(points[arm].values()), "o", color=colour)
    if record["kind"] == "views":
        _pair_of_views(record, results)
        name, arms = "top-1 error (%)", ["centre view", "average over views"]
    else:
        for seed in sorted({seed for of_arm in points.values() for seed in of_arm}):  # the same seed is joined: pairs
            line = [(number, points[arm][seed]) for number, arm in enumerate(arms) if seed in points[arm]]
            results.plot(*zip(*line), color="#999999", linewidth=0.7, zorder=0)
    for ensemble in record["ensembles"]:
        results.axhline(ensemble["errors"][averaged(ensemble["errors"])]["top1_error"], color="black", linestyle="--",
                        label=f"average of {len(ensemble['members'])}")
    if record["ensembles"]:
        results.legend(frameon=False)
    curves.set(xlabel="step", ylabel="training loss (nats)", ylim=(0, None))
    if curves.get_legend_handles_labels()[0]:
        curves.legend(frameon=False)
    results.set_xticks(range(len(arms)), [arm.replace("_", " ") for arm in arms], rotation=20 if len(arms) > 2 else 0)
    results.set(ylabel=name, xlim=(-0.5, len(arms) - 0.5))
    curves.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (curves, results):
        axes.grid(alpha=0.3)
    figure.suptitle(f"{record['claim']}: {record['data'][0]['description']}"[:130], fontsize=9)
    figure.savefig(path, dpi=80)
    return path


def _error(run):
    return run["errors"][averaged(run["errors"])]["top1_error"] if "errors" in run else None


def _pair_of_views(record, axes):
    axes.clear()
    for run in record["runs"]:
        if "errors" in run:
            pair = [run["errors"][name]["top1_error"] for name in ("centre view", averaged(run["errors"]))]
            axes.plot([0, 1], pair, "o-", color=COLOURS[0], linewidth=0.7)
