"""The speed tables, from the records alone: all of them in docs/benchmarks.md, the ratios in README.md.

    python benchmarks/table.py            writes them between the two markers of each page
    python benchmarks/table.py --check    writes nothing; fails where a page says something else than the records

The markers are <!-- speed: begin --> and <!-- speed: end -->; a page without them has no table: that is said, and is no
failure. Of each group the newest record counts.
"""

import argparse
import difflib
import json
import sys
from pathlib import Path

from record import RECORDS

README = Path(__file__).parent.parent / "README.md"
PAGE = README.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- speed: begin -->", "<!-- speed: end -->"
NOTHING = "No measurement is recorded yet."
# README's rows: an operation's name in the records, what it is, and the baselines of its two columns.
SHOWN = {
    "lrnpool1": ("conv1's bias, ReLU, LRN, max-pool", ("eager",), ("compile",)),
    "lrnpool2": ("conv2's bias, ReLU, LRN, max-pool", ("eager",), ("compile",)),
    "maxpool5": ("conv5's bias, ReLU, max-pool", ("eager",), ("compile",)),
    "sgd": ("update of all parameters", ("foreach", "fused"), ()),
    "step": ("both towers: forward, loss, backward", ("eager",), ("compile",)),
}
VERSIONS = ("cpu_capability", "python", "torch", "triton", "cuda", "cudnn", "driver")


def read_records(folder):
    """{device: {group name: (record, group)}}, the newest record of every group. Other JSON files are left alone."""
    devices = {}
    files = {path: json.loads(path.read_text(encoding="utf-8")) for path in sorted(Path(folder).glob("*/*.json"))}
    records = [
        record
        for record in files.values()
        if isinstance(record, dict) and {"machine", "groups", "date"} <= record.keys()
    ]
    for record in sorted(records, key=lambda record: record["date"]):
        groups = devices.setdefault(record["machine"]["device"], {})
        groups.update({group["group"]: (record, group) for group in record["groups"]})
    return dict(sorted(devices.items()))


def render(folder):
    """The text between the markers."""
    return "\n\n".join(_device(device, groups) for device, groups in read_records(folder).items()) or NOTHING


def ratios(folder):
    """README's table: how many times as fast as PyTorch, float32, channels_last; a row an operation and device."""
    rows = []
    for device, groups in read_records(folder).items():
        for op, (what, *columns) in SHOWN.items():
            for record, group in groups.values():
                case = {"layout": "channels_last", "pass": "fwdbwd"} | group  # the update and the step have neither
                case = tuple(case.get(key) for key in ("op", "dtype", "layout", "pass"))
                if case != (op, "fp32", "channels_last", "fwdbwd"):
                    continue
                for variant, info in group["rivals"].items():
                    cells = [_against(info, baselines) for baselines in columns]
                    if (variant == "towers" or variant.startswith("ours-")) and any(cells):
                        kernels = group.get("kernels") or variant.removeprefix("ours-")
                        rows.append(_row(what, f"{device}, {kernels}", *cells, record["date"][:10]))
    head = [
        _row("operation, float32", "device, kernels", "plain PyTorch", "`torch.compile`", "date"),
        _row("---", "---", "---:", "---:", "---"),
    ]
    return "\n".join(head + rows) if rows else NOTHING


def _against(info, baselines):
    """ "20", or "2.6 (foreach), 0.97 (fused)"; nothing where none was measured."""
    texts = {name: _times(info[f"ratio_to_{name}"]) for name in baselines if f"ratio_to_{name}" in info}
    return ", ".join(f"{ratio} ({name})" if len(baselines) > 1 else ratio for name, ratio in texts.items())


def _device(device, groups):
    """One device: where and how it was measured, its map operations, its other groups."""
    records = {
        json.dumps([record["date"], record["machine"], record["command"]]): record for record, _ in groups.values()
    }
    lines = [f"**{device}**", ""]
    for record in records.values():
        machine = record["machine"]
        versions = ", ".join(f"{name} {machine[name]}" for name in VERSIONS if machine.get(name))
        commit = (machine.get("commit") or "not recorded")[:10] + (" with changes" if machine.get("dirty") else "")
        lines.append(f"- {record['date'][:10]}, {versions}, commit {commit}: `{record['command']}`")
    return "\n".join([*lines, *_maps(groups), *_others(groups)])


def _maps(groups):
    """Rows of the fused map operations: one an operation, data type, layout, batch and implementation of ours."""
    cases = {}
    for _, group in groups.values():
        if "pass" in group:
            key = group["op"], group["dtype"], group["layout"], group["batch"]
            cases.setdefault(key, {})[group["pass"]] = group["rivals"]
    rows = []
    for case, passes in cases.items():
        variants = passes.get("fwdbwd", {})
        baseline, mark = ("eager", "") if "eager" in variants else ("reference", " *")
        for name in [variant for variant in variants if variant.startswith("ours-")]:
            info = variants[name]
            percents = [passes.get(step, {}).get(name, {}).get("pct_of_roof") for step in ("fwd", "bwd")]
            rows.append(
                _row(
                    *case,
                    name.removeprefix("ours-"),
                    _time(info),
                    _time(variants.get(baseline)) + mark,
                    _time(variants.get("compile")),
                    _times(info.get(f"ratio_to_{baseline}")),
                    _times(info.get("ratio_to_compile")),
                    *map(_percent, percents),
                )
            )
    if not rows:
        return []
    return [
        "",
        _row(
            "operation",
            "dtype",
            "layout",
            "batch",
            "kernels",
            "forward + backward",
            "plain PyTorch",
            "`torch.compile`",
            "times faster than PyTorch",
            "than `torch.compile`",
            "forward, % of a copy",
            "backward, % of a copy",
        ),
        _row("---", "---", "---", "---:", "---", *["---:"] * 7),
        *rows,
        *(
            [
                "",
                "\\* `kernels/reference.py`: PyTorch's own local_response_norm does not take this dtype on this "
                "device.",
            ]
            if any(" * |" in row for row in rows)
            else []
        ),
    ]


def _others(groups):
    """Rows of everything else: the update rule, a training step."""
    rows = []
    for name, (_, group) in groups.items():
        if "pass" not in group:
            for variant, info in group["rivals"].items():
                ratios = [
                    f"{key.removeprefix('ratio_to_')} {_times(value)}"
                    for key, value in info.items()
                    if key.startswith("ratio_to_") and key != f"ratio_to_{variant}"
                ]
                if variant != "copy":
                    if "pct_feeding" in info and variant != "fixed":
                        ratios.append(f"{info['pct_feeding']:+.1f} % against fixed")
                    if "pct_of_training" in info:
                        ratios.append(f"{info['pct_of_training']:.2f} % of training, every 10 min")
                    images = f"{info['images_per_s']:,.0f}" if "images_per_s" in info else ""
                    rows.append(
                        _row(name, variant, _time(info), images, _percent(info.get("pct_of_roof")), ", ".join(ratios))
                    )
    return (
        [
            "",
            _row("group", "who", "time", "images/s", "% of a copy", "times faster than"),
            _row("---", "---", "---:", "---:", "---:", "---"),
            *rows,
        ]
        if rows
        else []
    )


def _row(*cells):
    return f"| {' | '.join(map(str, cells))} |"


def _time(info):
    """A median as text, in milliseconds."""
    if info is None:
        return ""
    milliseconds = 1e3 * info["median_s"]
    return f"{milliseconds:,.0f} ms" if milliseconds >= 1000 else f"{milliseconds:.3g} ms"


def _times(ratio):
    return "" if ratio is None else f"{ratio:.{0 if ratio >= 10 else 1 if ratio >= 1 else 2}f}"


def _percent(percent):
    return "" if percent is None else f"{percent:.0f} %"


def main(arguments=None):
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Write the pages' speed tables from the records, or check them."
    )
    parser.add_argument("--check", action="store_true", help="write nothing, fail where a page differs")
    parser.add_argument("--readme", type=Path, default=README)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--records", type=Path, default=RECORDS)
    options = parser.parse_args(arguments)
    pages = (options.readme, ratios), (options.page, render)
    return max([_update(page, renderer(options.records), options) for page, renderer in pages])


def _update(page, tables, options):
    """Write one page's tables between its markers, or compare them. Returns the exit status."""
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        print(f"{page} has no place for the speed tables: {BEGIN} and {END} once each, in this order")
        return 1 if BEGIN in text or END in text else 0
    before, rest = text.split(BEGIN)
    old_tables, after = rest.split(END)
    if tables == NOTHING:
        print(f"no records in {options.records}")
    if old_tables.strip() == tables or (tables == NOTHING and not old_tables.strip()):
        print(f"{page}: the speed tables are those of the records")
        return 0
    if options.check:
        lines = old_tables.strip().splitlines(), tables.splitlines()
        print("\n".join(difflib.unified_diff(*lines, str(page), "records", lineterm="")))
        print(f"{page} differs from the records; python benchmarks/table.py writes it anew")
        return 1
    draft = page.with_name(f"{page.name}.partial")  # a page is written whole or not at all
    draft.write_text(f"{before}{BEGIN}\n{tables}\n{END}{after}", encoding="utf-8")
    draft.replace(page)
    print(f"wrote the speed tables of {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
