"""The lines that end a run: how many times as fast as the baselines each variant of ours is, then what was not run."""

import textwrap

# The variants that have a line of their own; where an operation is not named, those that begin with "ours-".
OURS = {
    "step": ("towers", "graphs", "merged"),
    "checkpoint": ("snapshot", "write", "step-meanwhile"),
    "pipeline": ("dali", "torch", "raw"),
    "fed-step": ("dali", "torch", "raw"),
    "exchange": ("overlapped",),
    "two-gpus": ("two-towers", "two-towers-graphs"),
    "scaling": ("towers-apart", "two-pairs", "two-pairs-fixed"),
    "forked": ("joined", "forked", "joined-forked"),
}
WIDTHS = 40, 16, 16, 30, 9  # with two spaces between them, less than 120 columns
BASELINES = "eager", "compile"  # that have a column of their own


def lines(entries, left_out, took, lacking=""):
    """entries: the "benchmarks" of pytest-benchmark's JSON; left_out: {long group: how long it takes}, as text;
    took: {long group: seconds}; lacking: the cases for whose GPUs none was found, as text.
    """
    output = []
    if entries:
        title = ("times as fast as (quartiles)", "eager", "torch.compile", "others", "time")
        output += [
            "",
            machine(entries[0]["extra_info"]),
            "ratios of the medians of interleaved rounds; in brackets the quartiles of the rounds' own ratios",
            "",
            *_row(title),
            *_row(["-" * width for width in WIDTHS]),
        ]
        output += [line for group in _groups(entries) for line in _of_group(*group)]
    if took:
        times = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in took.items())
        output += ["", f"long groups, with building and checking: {times}"]
    if left_out:
        output += ["", "long groups, not run; --long runs all, -k NAME one:"]
        output += [f"  {name:14}{how_long}" for name, how_long in left_out.items()]
    if lacking:
        output += ["", *textwrap.wrap(f"cases not run for lack of GPUs: {lacking}", 120, subsequent_indent="  ")]
    return output


def machine(info):
    """Where the figures were taken, from what a benchmark says of its machine."""
    facts = [
        info.get("device"),
        info.get("cpu_capability"),
        f"torch {info['torch']}" if info.get("torch") else None,
        f"commit {info['commit'][:10]}{' with changes' * bool(info.get('dirty'))}" if info.get("commit") else None,
    ]
    return ", ".join(filter(None, facts))


def _groups(entries):
    """(name, {variant: its entry}, {pass: the variants of that pass}).

    Where forward and backward were timed each by itself, the entries are those of both together.
    """
    groups = {}
    for entry in entries:
        variant = entry["extra_info"].get("variant", entry["name"])
        groups.setdefault(entry["group"] or entry["name"], {})[variant] = entry
    by_name = {}
    for name, variants in groups.items():
        info = next(iter(variants.values()))["extra_info"]
        step = info.get("pass")
        by_name.setdefault(name.replace(f"-{step}-", "-") if step else name, {})[step] = variants
    for name, passes in by_name.items():
        last = list(passes)[-1]  # forward and backward come after either
        yield name, passes.get("fwdbwd", passes[last]), passes


def _of_group(name, variants, passes):
    operation = next(iter(variants.values()))["extra_info"].get("op")
    ours = [
        variant
        for variant in variants
        if (variant in OURS[operation] if operation in OURS else variant.startswith("ours-"))
    ]
    for variant in ours or variants:  # all, where -k left the baselines alone
        info = variants[variant]["extra_info"]
        ratios = {key.removeprefix("ratio_to_"): value for key, value in info.items() if key.startswith("ratio_to_")}
        ratios.pop(variant, None)
        columns = [_ratio(info, baseline) if baseline in ratios else "" for baseline in BASELINES]
        others = [f"{baseline} {_times(value)}" for baseline, value in ratios.items() if baseline not in BASELINES]
        remarks = [
            ", ".join(others),
            *_remarks(variant, [entries[variant]["extra_info"] for entries in passes.values() if variant in entries]),
        ]
        yield from _row(
            [
                f"{name} {variant}".replace(" ours-", " "),
                *columns,
                "; ".join(filter(None, remarks)),
                _time(variants[variant]["stats"]["median"]),
            ]
        )


def _remarks(variant, infos):
    """What else is known of a variant, infos being those of its passes."""
    info = infos[-1]
    percents = [entry["pct_of_roof"] for entry in infos if "pct_of_roof" in entry and entry.get("pass") != "fwdbwd"]
    if percents and variant != "copy":
        yield f"{' and '.join(f'{percent:.0f}' for percent in percents)} % of a copy"
    if "images_per_s" in info:
        yield f"{info['images_per_s']:,.0f} images/s"
    if "pct_feeding" in info and variant != "fixed":
        yield f"{info['pct_feeding']:+.1f} % against fixed"
    if "pct_of_training" in info:
        yield f"{info['pct_of_training']:.2f} % of training"


def _row(cells):
    """The lines of one row; what is longer than its column goes on in the next line."""
    columns = [textwrap.wrap(cell, width) or [""] for cell, width in zip(cells, WIDTHS, strict=True)]
    for number in range(max(map(len, columns))):
        parts = [cell[number] if number < len(cell) else "" for cell in columns]
        *head, time = [f"{part:{width}}" for part, width in zip(parts, WIDTHS, strict=True)]
        yield "  ".join([*head, time.strip().rjust(WIDTHS[-1])]).rstrip()


def _ratio(info, baseline):
    quartiles = info.get(f"quartiles_to_{baseline}")
    spread = f" ({_times(quartiles[0])}-{_times(quartiles[1])})" if quartiles else ""
    return _times(info[f"ratio_to_{baseline}"]) + spread


def _times(ratio):
    return f"{ratio:.{0 if ratio >= 100 else 1 if ratio >= 10 else 2}f}"


def _time(seconds):
    return f"{1e3 * seconds:,.0f} ms" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
