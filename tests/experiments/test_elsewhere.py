"""Claims whose figures come from other commands."""

import json

from claim_records import errors, record_of

from alexnet_mp.experiments.elsewhere import feeding, importance, two_gpus


def test_importance_is_of_the_same_data_and_setting():
    def claim_record(claim, arms, costs, **more):
        runs = {
            (arm, seed): {"errors": errors((50.0, 9.0), (40.0 + seed + costs.get(arm, 0), 9.0))}
            for arm in arms
            for seed in (0, 1)
        }
        return record_of("difference", arms, runs, claim=claim, **more)

    records = {
        "lrn": [claim_record("lrn", ["base", "no_lrn"], {"no_lrn": 1.5})],
        "pooling": [claim_record("pooling", ["base", "non_overlapping"], {"non_overlapping": 0.5})],
        "one-gpu": [
            claim_record("one-gpu", ["base", "one_gpu"], {"one_gpu": 1.0}),
            claim_record("one-gpu", ["base", "one_gpu"], {"one_gpu": 9.0}),
        ],
    }
    setting = (
        "folder pictures: 90 train, 40 val images of 10 classes: points of top-1 error that each costs when it is "
        "taken away: "
    )
    ranking = "lrn (3.3) +1.50, one-gpu (3.2) +1.00, pooling (3.4) +0.50; not the paper's order, without saturating"
    ranking += "; estimates, no test"
    assert importance("", records) == [setting + ranking]
    records["saturating"] = [
        claim_record("saturating", ["base", "tanh", "sigmoid"], {"tanh": 3.0, "sigmoid": 5.0}, epochs=99)
    ]
    assert importance("", records) == [setting + ranking]  # of other epochs
    records["saturating"] = [claim_record("saturating", ["base", "tanh", "sigmoid"], {"tanh": 3.0, "sigmoid": 5.0})]
    records["lrn"] = [claim_record("lrn", ["base", "no_lrn"], {"no_lrn": 0.75})]
    assert importance("", records) == [
        setting + "saturating (3.1) +3.00, one-gpu (3.2) +1.00, lrn (3.3) +0.75, pooling (3.4) +0.50; the paper's order"
        "; estimates, no test"
    ]
    assert importance("", {"lrn": records["lrn"]}) == importance("", {}) == []


def test_what_the_benchmarks_recorded(tmp_path):
    folder, records = tmp_path / "claims" / "records", tmp_path / "benchmarks" / "records" / "cpu"
    records.mkdir(parents=True)
    assert feeding(folder, {}) == two_gpus(folder, {}) == []

    def write(name, date, *groups):
        (records / name).write_text(
            json.dumps({"machine": {"device": "CPU"}, "date": date, "command": "x", "groups": groups})
        )

    rivals = {"fixed": {"pct_feeding": 0.0}, "raw": {"pct_feeding": -0.04}}
    group = {"group": "fed-step-cpu-fp32-b128", "batch": 128, "rivals": rivals}
    towers = {"two-towers": {"median_s": 1.5}, "one-gpu": {"median_s": 1.2}}
    write("b.json", "2026-11-25T10:00:00", group | {"rivals": {"fixed": {}, "raw": {"pct_feeding": 77.0}}})
    write(
        "a.json",
        "2026-11-26T10:00:00",
        group,
        {"group": "two-gpus-cpu-fp32-b64", "place": "cpu", "batch": 64, "rivals": towers},
    )
    (records / "broken.json").write_text("{")
    assert feeding(folder, {}) == [
        "CPU, 2026-11-26: a step of 128 images takes -0.0 % longer with `raw` than with images that are there already"
    ]
    assert two_gpus(folder, {}) == [
        "CPU, 2026-11-26, both towers on one CPU: a step of 64 images takes 1,500.0 ms "
        "with two towers and 1,200.0 ms with the one-GPU network, 1.25 times as long"
    ]
