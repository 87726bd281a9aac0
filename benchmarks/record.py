"""Run the benchmarks and keep what they found: benchmarks/records/<device>/<date>-<commit>[-<name>].json, some ten
kilobytes.

    python benchmarks/record.py [--name sgd] [pytest's arguments: --long, -k "cpu and fp32", --rounds 30]
    python benchmarks/record.py --from RAW.json      the same from a file that pytest --benchmark-json wrote

A record holds medians and quartile ranges, not the single rounds: {"command", "date", "machine": {device, versions,
commit}, "took": {long group that was run whole: seconds}, "groups": [{"group", what its variants share, "rivals":
{variant: {"median_s", "iqr_s", "min_s", its own figures}}}]}, times in seconds; "rivals" are all variants, ours too.
What ran on different devices goes into different files."""

import argparse
import json
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
RECORDS = HERE / "records"
# What a benchmark says of its machine (interleaved.provenance): the same for all that ran on a device.
MACHINE = (
    "device",
    "last_level_cache",
    "threads",
    "cpu_capability",
    "driver",
    "python",
    "torch",
    "triton",
    "cuda",
    "cudnn",
    "tf32",
    "commit",
    "dirty",
)


def slug(device):
    """A device's folder: "NVIDIA H200" -> "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def records_of(raw, command):
    """The records, one a device, of a parsed --benchmark-json file. Raises ValueError where two of them disagree on a
    device."""
    records = {}
    for entry in raw["benchmarks"]:
        info, stats = dict(entry["extra_info"]), entry["stats"]
        machine = {key: info.pop(key) for key in MACHINE if key in info}
        record = records.setdefault(
            machine["device"],
            {
                "command": command,
                "date": raw["datetime"][:19],
                "machine": machine,
                "took": _four_digits(raw.get("took", {})),
                "groups": {},
            },
        )
        if record["machine"] != machine:
            raise ValueError(f"{entry['name']} ran on {machine}, others on {record['machine']}: record them apart")
        variant = info.pop("variant", None) or entry["name"]
        info = {
            "median_s": stats["median"],
            "iqr_s": stats["iqr"],
            "min_s": stats["min"],
            "rounds": stats["rounds"],
            **info,
        }
        record["groups"].setdefault(entry["group"] or entry["name"], {})[variant] = _four_digits(info)
    for record in records.values():
        record["groups"] = [_shared_first(name, variants) for name, variants in record["groups"].items()]
    return list(records.values())


def _shared_first(name, variants):
    """A group with what all its variants have in common told once."""
    first, *rest = variants.values()
    shared_facts = {
        key: value
        for key, value in first.items()
        if not key.endswith("_s")
        and not key.startswith(("ratio_", "quartiles_", "pct_"))
        and all(info.get(key) == value for info in rest)
    }
    return {
        "group": name,
        **shared_facts,
        "rivals": {
            variant: {key: value for key, value in info.items() if key not in shared_facts}
            for variant, info in variants.items()
        },
    }


def _four_digits(value):
    """Floats to four digits: a timing has no more."""
    if isinstance(value, dict):
        return {key: _four_digits(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_four_digits(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def write(record, records=RECORDS, name=""):
    """Write a record into its device's folder, one line a variant; returns the path."""
    commit = record["machine"].get("commit")
    tag = commit[:10] + ("-changes" if "+changes" in commit else "") if commit else "none"
    path = Path(records) / slug(record["machine"]["device"]) / f"{record['date'][:10]}-{tag}{name and '-' + name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    head = ",\n".join(
        f" {json.dumps(key)}: {json.dumps(record[key])}"
        for key in ("command", "date", "machine", "took")
        if record.get(key)
    )
    groups = []
    for group in record["groups"]:
        facts = json.dumps({key: value for key, value in group.items() if key != "rivals"})[:-1]
        variants = ",\n".join(
            f"   {json.dumps(variant)}: {json.dumps(info)}" for variant, info in group["rivals"].items()
        )
        groups.append(f'  {facts}, "rivals": {{\n{variants}}}}}')
    path.write_text("{\n" + head + ',\n "groups": [\n' + ",\n".join(groups) + "]\n}\n", encoding="utf-8")
    return path


def main(arguments=None):
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description="Run the benchmarks, all or the files named, and write a record; other arguments go to pytest.",
    )
    parser.add_argument(
        "--from",
        dest="raw",
        type=Path,
        metavar="RAW.json",
        help="a file that pytest --benchmark-json wrote: nothing is run",
    )
    parser.add_argument(
        "--records", type=Path, default=RECORDS, help="where the devices' folders are (default: %(default)s)"
    )
    parser.add_argument("--commit", help="of the source, where there is no git to ask")
    parser.add_argument("--name", default="", help="a word that tells this record from others of the day")
    options, pytest_arguments = parser.parse_known_args(arguments)
    words = [
        word
        for name in ("from", "name")
        if (value := vars(options)["raw" if name == "from" else name])
        for word in (f"--{name}", str(value))
    ]
    # The record says what was run, and not where it was written.
    command, code = shlex.join(["python", "benchmarks/record.py", *words, *pytest_arguments]), 0
    if options.raw:
        raw = json.loads(options.raw.read_text(encoding="utf-8"))
    else:
        named = any((HERE.parent / word.partition("::")[0]).is_file() for word in pytest_arguments)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "raw.json"
            code = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "pytest",
                    *(() if named else [str(HERE)]),
                    "--benchmark-only",
                    f"--benchmark-json={file}",
                    *pytest_arguments,
                ],
                cwd=HERE.parent,
            ).returncode
            raw = (
                json.loads(file.read_text(encoding="utf-8"))
                if file.exists() and file.stat().st_size
                else {"benchmarks": []}
            )
    if not raw["benchmarks"]:
        print("no benchmark ran: nothing to record", file=sys.stderr)
        return code or 2
    for record in records_of(raw, command):
        if options.commit and not record["machine"].get("commit"):
            record["machine"] |= {"commit": options.commit, "dirty": "+changes" in options.commit}
        print(f"wrote {write(record, options.records, options.name)}")
    return code


if __name__ == "__main__":
    sys.exit(main())
