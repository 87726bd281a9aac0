"""The rounds within a group's seconds, the spread of a ratio, how long a group takes, and the lines that end a run."""

import json
from pathlib import Path

import interleaved
import pytest
import record
import selection
import summary


@pytest.mark.parametrize(
    "round_takes, rounds, expected",
    [
        (10.0, None, range(-2, 5)),
        (0.001, None, range(-2, 15)),
        (2.5, None, range(-2, 9)),
        (10.0, 7, range(-2, 7)),
        (0.001, 1, range(-1, 1)),
    ],
    ids=["slow", "fast", "between", "asked for", "a quick look"],
)
def test_rounds(monkeypatch, round_takes, rounds, expected):
    """Five at least, fifteen at most, as many as begin within 20 s; warming up takes nothing of it."""
    now = [0.0]
    monkeypatch.setattr(interleaved.time, "perf_counter", lambda: now[0])
    numbers = []
    for number in interleaved.rounds_in(rounds=rounds, warm_up=2):
        numbers.append(number)
        now[0] += round_takes
    assert numbers == list(expected)


def test_the_quartiles_of_a_ratio_are_those_of_its_rounds():
    seconds = {"ours": {"step": [1.0, 1.0, 2.0, 2.0, 4.0]}, "eager": {"step": [2.0, 4.0, 2.0, 6.0, 16.0]}}
    figures = interleaved.compare(seconds, "step", None, ("eager", "absent"))
    assert figures["ours"] == {"ratio_to_eager": 2.0, "quartiles_to_eager": [2.0, 4.0]}
    assert figures["eager"] == {"ratio_to_eager": 1.0}
    one_round = {name: {"step": steps["step"][:1]} for name, steps in seconds.items()}
    assert interleaved.compare(one_round, "step", None, ("eager",))["ours"] == {"ratio_to_eager": 2.0}


def entry(group, variant, median, **info):
    machine = {"device": "AMD EPYC, 2 threads", "torch": "2.13.0", "commit": "0123456789abcdef", "dirty": False}
    return {
        "group": group,
        "name": f"test[{variant}]",
        "stats": {"median": median, "iqr": 0.0, "min": median, "rounds": 5},
        "extra_info": {**machine, "variant": variant, **info},
    }


def entries():
    """An operation in two passes and both together, an update, a step, a checkpoint, a pipeline."""
    operations = []
    for step, part, share in (("fwd", 0.4, 20.2), ("bwd", 0.6, 21.9), ("fwdbwd", 1.0, 21.0)):
        fields = {"op": "lrnpool1", "pass": step}
        group = f"lrnpool1-{step}-fp32-b128-channels_last"
        operations += [
            entry(
                group,
                "ours-cpu",
                0.0271 * part,
                **fields,
                ratio_to_eager=20.44,
                quartiles_to_eager=[19.8, 21.0],
                ratio_to_compile=12.7,
                pct_of_roof=share,
            ),
            entry(group, "eager", 0.554 * part, **fields, ratio_to_eager=1.0),
            entry(group, "copy", 0.005 * part, **fields, pct_of_roof=100.0),
        ]
    return [
        *operations,
        entry(
            "sgd-fp32",
            "ours-cpu",
            0.0233,
            op="sgd",
            ratio_to_foreach=2.57,
            ratio_to_fused=0.97,
            ratio_to_reference=2.2,
            pct_of_roof=157.0,
        ),
        entry(
            "step-fp32-b128",
            "towers",
            2.551,
            op="step",
            ratio_to_eager=1.85,
            quartiles_to_eager=[1.8, 1.9],
            ratio_to_towers=1.0,
            images_per_s=50.2,
        ),
        entry("step-fp32-b128", "eager", 4.7, op="step", ratio_to_eager=1.0, ratio_to_towers=0.54),
        entry("checkpoint-cpu-fp32-b16", "step-meanwhile", 1.5, op="checkpoint", ratio_to_step=0.63),
        entry(
            "pipeline-cpu-fp32-b128",
            "raw",
            0.00465,
            op="pipeline",
            ratio_to_dali=13.3,
            ratio_to_raw=1.0,
            images_per_s=27530.4,
        ),
    ]


def test_ratios_come_first_and_each_of_ours_has_a_line():
    lines = summary.lines(entries(), {"step-all": "181 s on AMD EPYC, 2026-11-29"}, {"exchange": 71.4}, "sgd 5")
    assert (
        [line for line in lines if line]
        == """\
AMD EPYC, 2 threads, torch 2.13.0, commit 0123456789
ratios of the medians of interleaved rounds; in brackets the quartiles of the rounds' own ratios
times as fast as (quartiles)              eager             torch.compile     others                               time
----------------------------------------  ----------------  ----------------  ------------------------------  ---------
lrnpool1-fp32-b128-channels_last cpu      20.4 (19.8-21.0)  12.7              20 and 22 % of a copy             27.1 ms
sgd-fp32 cpu                                                                  foreach 2.57, fused 0.97,         23.3 ms
                                                                              reference 2.20; 157 % of a
                                                                              copy
step-fp32-b128 towers                     1.85 (1.80-1.90)                    50 images/s                      2,551 ms
checkpoint-cpu-fp32-b16 step-meanwhile                                        step 0.63                        1,500 ms
pipeline-cpu-fp32-b128 raw                                                    dali 13.3; 27,530 images/s        4.65 ms
long groups, with building and checking: exchange 71 s
long groups, not run; --long runs all, -k NAME one:
  step-all      181 s on AMD EPYC, 2026-11-29
cases not run for lack of GPUs: sgd 5""".splitlines()
    )
    assert summary.lines([], {}, {}) == []


def test_baselines_alone_have_their_lines():
    baselines = [one for one in entries() if one["extra_info"]["variant"] == "eager"]
    names = [line.split("  ")[0] for line in summary.lines(baselines, {}, {})[6:]]
    assert names == ["lrnpool1-fp32-b128-channels_last eager", "step-fp32-b128 eager"]


def test_all_that_was_ever_recorded_fits_the_columns():
    for path in record.RECORDS.glob("*/*.json"):
        content = json.loads(path.read_text())
        if "groups" in content:
            measurements = [
                {
                    "group": group["group"],
                    "name": "",
                    "stats": {"median": info["median_s"]},
                    "extra_info": {**content["machine"], **group, **info, "variant": variant},
                }
                for group in content["groups"]
                for variant, info in group["rivals"].items()
            ]
            lines = summary.lines(measurements, {}, {})
            assert len(lines) > 6 and max(map(len, lines)) <= 120


def test_the_newest_record_of_this_device_says_how_long_a_group_takes(tmp_path, monkeypatch):
    for device, date, durations in (
        ("A", "2026-11-24T10:00:00", {"exchange": 71.44444, "step-all": 181.0}),
        ("A", "2026-11-25T10:00:00", {"exchange": 60.0}),
        ("B", "2026-11-26T10:00:00", {"exchange": 9.0}),
    ):
        one = entry("exchange-cpu", "overlapped", 1.0)
        one["extra_info"] |= {"device": device}
        (content,) = record.records_of({"datetime": date, "benchmarks": [one], "took": durations}, "record.py")
        record.write(content, tmp_path)
    (tmp_path / "a" / "profile.json").write_text("[]")  # another tool's file
    times = selection.recorded_times("A", tmp_path)
    assert times == {"exchange": (60.0, "A", "2026-11-25"), "step-all": (181.0, "A", "2026-11-24")}
    assert selection.recorded_times("C", tmp_path)["exchange"] == (9.0, "B", "2026-11-26")
    assert selection.how_long("exchange", times) == "60 s on A, 2026-11-25"
    assert selection.how_long("fed-step", times) == "no record says how long it takes"
    monkeypatch.setattr(selection.recorded_times, "__defaults__", (None, tmp_path))
    assert "exchange: the four layers that read both towers, with and without overlap (9 s on B, 2026-11-26); " in (
        selection.help_text()
    )
    assert json.loads((tmp_path / "a" / "2026-11-24-0123456789.json").read_text())["took"]["exchange"] == 71.44


class Marker:
    def __init__(self, *arguments):
        self.args = arguments


class Case:
    """A case of pytest, as far as the selection looks at it."""

    def __init__(self, file, parameters, gpus=0, long=None):
        self.path, self.originalname = Path(f"test_speed_{file}.py"), f"test_{file}"
        self.callspec, self.gpus, self.long = type("", (), {"params": parameters}), gpus, long

    def iter_markers(self, name):
        return [Marker(self.gpus)] * (name == "gpus" and self.gpus > 0)

    def get_closest_marker(self, name):
        return Marker(self.long) if self.long else None


def test_cases_that_lack_gpus_are_told_together():
    cases = [
        Case("exchange", {"place": place, "variant": variant}, gpus)
        for place, gpus in (("cpu", 0), ("one-gpu", 1), ("two-gpus", 2))
        for variant in "ab"
    ]
    sgd = [Case("sgd", {"variant": variant}, 1) for variant in "abc"]
    rest, shortfalls = selection.without_gpus([*cases, *sgd], 0)
    assert rest == cases[:2] and shortfalls == {1: [*cases[2:4], *sgd], 2: cases[4:]}
    assert selection.reason(1, 0, shortfalls[1]) == "needs 1 CUDA device, found 0 (5 cases in one line)"
    assert selection.files(shortfalls[1]) == "exchange 2, sgd 3"
    rest, shortfalls = selection.without_gpus([*cases, *sgd], 1)
    assert len(rest) == 7
    assert selection.reason(2, 1, shortfalls[2]) == "needs 2 CUDA devices, found 1 (2 cases in one line)"
    assert selection.without_gpus([*cases, *sgd], 2)[1] == {}


def test_a_time_is_charged_to_a_group_of_which_all_was_chosen():
    """A step's baselines are timed beside the two steps that are always there: with these, or not at all."""
    step = [Case("step", {"variant": variant}, long=None if variant in "ab" else "step-all") for variant in "abcd"]
    others = [Case("exchange", {"edge": edge, "variant": "a"}, long="exchange") for edge in ("fc6", "fc7")]
    gpu = Case("exchange", {"edge": "fc6", "place": "one-gpu", "variant": "a"}, 1, "exchange")
    all_cases = [*step, *others, gpu]
    assert selection.whole(all_cases, [*step, *others], 0) == {"step-all", "exchange"}
    assert selection.whole(all_cases, [*step[1:], *others], 0) == {"exchange"}
    assert selection.whole(all_cases, [*step, others[0]], 0) == {"step-all"}
    assert selection.whole(all_cases, [*step, *others], 1) == {"step-all"}
    assert set(selection.names_of_measurements(all_cases).values()) == {"step-all", "exchange"}
