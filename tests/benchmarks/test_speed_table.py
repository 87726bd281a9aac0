"""The pages' speed tables are those of the records: written anew they don't change, an edit by hand is found out."""

import json

import pytest
import record
import table


def test_the_pages_say_what_the_records_say(capsys):
    assert table.main(["--check"]) == 0
    assert capsys.readouterr().out.count("are those of the records") == 2


@pytest.fixture
def place(tmp_path):
    """Two pages with the markers and a folder of records, and the options that name them."""
    for name in ("README.md", "benchmarks.md"):
        (tmp_path / name).write_text(f"# Speed\n\n{table.BEGIN}\n{table.END}\n\nThe end.\n")
    return tmp_path, [
        "--readme",
        str(tmp_path / "README.md"),
        "--page",
        str(tmp_path / "benchmarks.md"),
        "--records",
        str(tmp_path / "records"),
    ]


def raw(ours=0.001, device="NVIDIA H200", commit="0123456789abcdef", date="2026-11-24T10:00:00.123"):
    """What pytest --benchmark-json writes, as far as it counts: one operation in two passes and both together, and an
    update."""
    machine = {"device": device, "torch": "2.13.0", "commit": commit, "dirty": False}
    entries = []
    for step, share in (("fwd", 0.4), ("bwd", 0.6), ("fwdbwd", 1.0)):
        for variant, seconds in (("ours-cuda", ours), ("eager", 0.0142), ("compile", 0.0031), ("copy", 0.0008)):
            ratios = {
                "ratio_to_eager": 0.0142 / seconds,
                "ratio_to_compile": 0.0031 / seconds,
                "pct_of_roof": 0.08 / seconds,
            }
            entries.append(
                {
                    "group": f"lrnpool1-{step}-bf16-b128-channels_last",
                    "name": f"test[{variant}]",
                    "stats": {
                        "median": seconds * share,
                        "iqr": 1e-5,
                        "min": 1e-4,
                        "rounds": 15,
                        "data": [seconds] * 15,
                    },
                    "extra_info": {
                        **machine,
                        **ratios,
                        "variant": variant,
                        "op": "lrnpool1",
                        "pass": step,
                        "dtype": "bf16",
                        "batch": 128,
                        "layout": "channels_last",
                        "bytes": 96_700_000,
                    },
                }
            )
    entries.append(
        {
            "group": "sgd-fp32",
            "name": "test_sgd[fused]",
            "stats": {"median": 0.05, "iqr": 0.001, "min": 0.04, "rounds": 15},
            "extra_info": {**machine, "variant": "fused", "op": "sgd", "pct_of_roof": 80.0},
        }
    )
    return {"datetime": date, "benchmarks": entries}


def test_recorded_rendered_checked(place, capsys):
    folder, options = place
    (folder / "raw.json").write_text(json.dumps(raw()))
    assert record.main(["--from", str(folder / "raw.json"), "--records", str(folder / "records")]) == 0
    (path,) = (folder / "records").glob("*/*.json")
    assert path.parent.name == "nvidia-h200" and path.name == "2026-11-24-0123456789.json"
    assert "data" not in path.read_text() and path.stat().st_size < 5000
    content = json.loads(path.read_text())
    assert content["machine"] == {
        "device": "NVIDIA H200",
        "torch": "2.13.0",
        "commit": "0123456789abcdef",
        "dirty": False,
    }
    assert (
        content["groups"][0]["bytes"] == 96_700_000 and content["groups"][0]["rivals"]["eager"]["median_s"] == 0.00568
    )

    assert table.main([*options, "--check"]) == 1  # the records are not in the pages yet
    assert table.main(options) == 0 and table.main([*options, "--check"]) == 0
    text = (folder / "benchmarks.md").read_text()
    assert text.startswith("# Speed\n") and text.endswith("\n\nThe end.\n")
    assert (
        "| lrnpool1 | bf16 | channels_last | 128 | cuda | 1 ms | 14.2 ms | 3.1 ms | 14 | 3.1 | 80 % | 80 % |"
    ) in text
    assert (
        "| sgd-fp32 | fused | 50 ms |  | 80 % |" in text
        and "- 2026-11-24, torch 2.13.0, commit 0123456789: `python" in text
    )

    (folder / "benchmarks.md").write_text(text.replace("| 14 | 3.1 |", "| 15 | 3.1 |"))
    capsys.readouterr()
    assert table.main([*options, "--check"]) == 1
    assert "differs from the records" in capsys.readouterr().out


def test_the_newest_record_of_a_group_counts_and_devices_stay_apart(place):
    folder, options = place
    for content in (
        raw(ours=0.002, date="2026-11-25T10:00:00", commit="b" * 40),
        raw(),
        raw(device="AMD EPYC, 2 threads"),
    ):
        for one in record.records_of(content, "python benchmarks/record.py"):
            record.write(one, folder / "records")
    (folder / "records" / "nvidia-h200" / "build.json").write_text('{"kernels": ["cuda"]}')  # another tool's file
    assert table.main(options) == 0
    text = (folder / "benchmarks.md").read_text()
    assert text.index("**AMD EPYC, 2 threads**") < text.index("**NVIDIA H200**")
    assert (
        "| cuda | 2 ms |" in text.split("**NVIDIA H200**")[1]
        and "| cuda | 1 ms |" not in text.split("**NVIDIA H200**")[1]
    )


def test_the_readme_has_the_ratios_in_float32_alone(place, capsys):
    folder, options = place
    content, fp32 = raw(), raw(ours=0.002)["benchmarks"][:-1]
    for entry in fp32:
        entry["group"] = entry["group"].replace("bf16", "fp32")
        entry["extra_info"]["dtype"] = "fp32"
    update = {"variant": "ours-cuda", "op": "sgd", "dtype": "fp32", "ratio_to_foreach": 2.6, "ratio_to_fused": 0.97}
    content["benchmarks"][-1]["extra_info"].update(update)
    content["benchmarks"] += fp32
    for one in record.records_of(content, "python benchmarks/record.py"):
        record.write(one, folder / "records")
    assert table.main(options) == 0
    text = (folder / "README.md").read_text()
    assert text.startswith("# Speed\n") and text.endswith("\n\nThe end.\n")
    assert [line for line in text.splitlines() if line.startswith("| ")][2:] == [
        "| conv1's bias, ReLU, LRN, max-pool | NVIDIA H200, cuda | 7.1 | 1.6 | 2026-11-24 |",
        "| update of all parameters | NVIDIA H200, cuda | 2.6 (foreach), 0.97 (fused) |  | 2026-11-24 |",
    ]
    (folder / "README.md").write_text(text.replace("| 7.1 |", "| 71 |"))
    capsys.readouterr()
    assert table.main([*options, "--check"]) == 1 and "README.md differs from the records" in capsys.readouterr().out


def test_a_record_holds_one_state_of_a_machine():
    content = raw()
    content["benchmarks"] += raw(commit="f" * 40)["benchmarks"]
    with pytest.raises(ValueError, match="ffff.*record them apart"):
        record.records_of(content, "")


def test_no_markers_and_no_records_are_said(place, capsys):
    folder, options = place
    assert table.main([*options, "--check"]) == 0
    assert "no records" in capsys.readouterr().out
    assert table.main(options) == 0
    (folder / "README.md").write_text(f"{table.BEGIN}\n| lrnpool1 | 1000 times faster |\n{table.END}\n")
    assert table.main([*options, "--check"]) == 1  # nothing was recorded, so nothing may be claimed
    (folder / "README.md").write_text("# No table\n")
    capsys.readouterr()
    assert table.main([*options, "--check"]) == 0 and "no place for the speed tables" in capsys.readouterr().out
    (folder / "README.md").write_text(f"{table.END}\n")
    assert table.main([*options, "--check"]) == 1
