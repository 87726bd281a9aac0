"""Verdicts on records made by hand: each against scipy, each rule of the study's plan, each kind of claim."""

import hashlib
import math
import re
from pathlib import Path

import numpy as np
import pytest
from claim_records import BY_ID, SPREAD, errors
from claim_records import of_study as of
from inner_cases import every
from made_kernels import GREY, RED_GREEN
from made_kernels import made as made_towers
from scipy import stats

from alexnet_mp.analysis.specialisation import matching
from alexnet_mp.experiments import kept_answers, page
from alexnet_mp.experiments.entries import STUDY_PICTURES, pictures
from alexnet_mp.experiments.records import path_of
from alexnet_mp.experiments.verdict import (
    COMES_OUT,
    FAMILY,
    NO_VERDICT,
    NOT_RUN,
    OPPOSITE,
    UNDECIDED,
    Outcome,
    foretold,
    outcomes,
    verdict_of,
    verdicts,
)


def verdict(name, record, others=(), folder="nowhere"):
    return verdicts({name: [record], **dict(others)}, folder)[name]


def test_an_outcome_is_scipys_t_test():
    values = tuple(np.random.default_rng(0).normal(0.5, 1, 6))
    outcome, test = Outcome("x", values), stats.ttest_1samp(values, 0)
    assert outcome.p == pytest.approx(test.pvalue) and outcome.n == 6
    assert outcome.interval == pytest.approx(tuple(test.confidence_interval(0.95)))
    reach = stats.t.ppf(0.975, 5) * np.std(values, ddof=1) * math.sqrt(1 + 1 / 6)
    assert outcome.prediction == pytest.approx((outcome.mean - reach, outcome.mean + reach))
    for sample in ((1.0,), (2.0, 2.0), (0.3 - 0.2, 0.4 - 0.3)):  # the last are equal but for rounding
        assert Outcome("x", sample).p is Outcome("x", sample).interval is Outcome("x", sample).prediction is None


@every("name", ["lrn", "one-gpu", "colour", "pooling", "links"])
def test_a_difference_comes_out_is_opposite_or_is_not_told(name):
    assert verdict(name, of(name, 1.5)).word == COMES_OUT
    assert verdict(name, of(name, -1.5)).word == OPPOSITE
    judgement = verdict(name, of(name, 0.08))
    assert judgement.word == UNDECIDED and judgement.corrected == 1 and judgement.p > 0.2
    # of which 0.2 would count
    assert (judgement.remark == "smaller here than the effect that would count") == (name != "pooling")
    assert verdict(name, of(name, 1.5, seeds=4)).word == NO_VERDICT
    assert verdicts({}, "nowhere")[name].word == NOT_RUN


def test_the_paper_has_the_other_direction_for_what_lowers_the_error():
    for name in ("pretraining", "cifar-lrn"):
        arms = ["scratch", "fine_tuned"] if name == "pretraining" else None
        assert (
            verdict(name, of(name, -1.5, arms=arms)).word == COMES_OUT
            and verdict(name, of(name, 1.5, arms=arms)).word == OPPOSITE
        )
    for name in ("order", "sixth-conv", "schedule"):
        assert verdict(name, of(name, 1.5)).remark == "the paper has no direction"


def test_views_gap_and_training_error_are_compared_where_the_plan_says_so():
    (outcome,) = outcomes(BY_ID["views"], of("views", 0))
    assert outcome.values == pytest.approx((1.0,) * 6) and outcome.p is None  # no spread, no test
    record = of("dropout", 1.5)
    for entry in record["runs"]:
        entry["on_training_images"]["top1_error"] -= 7 * (entry["arm"] == "no_dropout")
    gap, error = outcomes(BY_ID["dropout"], record)
    assert gap.mean == pytest.approx(7) and gap.what == "validation minus training error, no dropout minus base"
    assert error.mean == pytest.approx(1.5, abs=0.1) and error.what == "error, no dropout minus base" and error.beside
    (training_error,) = outcomes(BY_ID["weight-decay"], of("weight-decay", 1.5))
    assert training_error.what == "training error, no weight decay minus base" and training_error.mean == pytest.approx(
        1.5, abs=0.1
    )


def test_a_claim_of_every_arm_needs_every_arm():
    assert verdict("depth", of("depth", 1.5)).word == COMES_OUT
    record = of("depth", 1.5)
    for entry in record["runs"]:
        if entry["arm"] == "no_conv5":
            entry["errors"] = errors((61.0 + entry["seed"], 1.0), (60.0 + entry["seed"] + SPREAD[entry["seed"]], 1.0))
    judgement = verdict("depth", record)
    assert judgement.word == UNDECIDED and judgement.p == max(outcome.p for outcome in judgement.outcomes)
    record["runs"] = [entry for entry in record["runs"] if entry["arm"] != "no_conv5"]
    judgement = verdict("depth", record)
    assert judgement.remark == "not all arms have results" and len(judgement.outcomes) == 3
    record["runs"] += [{"arm": "no_conv5", "seed": seed, "diverged": 9} for seed in range(6)]
    assert verdict("depth", record).remark == "not all arms have results; no conv5 diverged with 6 seeds"
    record = of("depth", 1.5)
    for entry in record["runs"]:
        if entry["arm"] == "no_conv4":
            entry["errors"] = errors((0, 0), (50.0 + entry["seed"] + SPREAD[entry["seed"]], 1.0))
    both_ways = verdict("depth", record)
    assert both_ways.word == UNDECIDED and both_ways.corrected < 0.05 and both_ways.remark == "its arms go both ways"
    for entry in record["runs"]:
        if entry["arm"] == "no_conv4":  # a mean below 0, an interval on both sides of it
            entry["errors"] = errors((0, 0), (59.9 + entry["seed"] + 2 * SPREAD[entry["seed"]], 1.0))
    assert (verdict("depth", record).word, verdict("depth", record).remark) == (UNDECIDED, "")
    assert verdict("curve", of("curve", -1.5)).word == COMES_OUT and verdict("curve", of("curve", 1.5)).word == OPPOSITE


def test_a_study_has_no_verdict_before_all_its_seeds():
    five = of("lrn", 1.5, seeds=5)
    assert verdict("lrn", five).word == COMES_OUT  # on other pictures nobody said that there will be more
    for record in (five, of("lrn", 1.5)):
        record["data"] = [dict(record["data"][0], fingerprint=STUDY_PICTURES[0])]
    first = verdict("lrn", five)
    assert (first.word, first.remark, first.p, len(first.outcomes)) == (NO_VERDICT, "5 of 6 seeds so far", None, 1)
    other = verdict("colour", of("colour", 1.5), {"lrn": [five]}.items())
    assert (other.among, other.missing) == (1, 0)  # it is of other pictures than the study
    record["runs"][0] = {"arm": "base", "seed": 0, "diverged": 7}
    last = verdict("lrn", record)
    assert (last.word, last.remark) == (COMES_OUT, "base diverged with 1 seed") and last.outcomes[0].n == 5


def test_a_claim_all_of_whose_runs_diverged_was_run():
    record = of("lrn", 1.5)
    record["runs"] = [{name: run[name] for name in ("arm", "seed")} | {"diverged": 3} for run in record["runs"]]
    judgement = verdict("lrn", record)
    remark = "no run came to its end; base diverged with 6 seeds; no lrn diverged with 6 seeds"
    assert (judgement.word, judgement.remark) == (NO_VERDICT, remark)


def test_a_small_effect_that_comes_out_is_called_small():
    record = of("dropout", 1.5)
    for entry in record["runs"]:
        if entry["arm"] == "no_dropout":  # a gap of 2 more points
            entry["errors"] = errors((55.0, 20.0), (54.0, 19.0))
            entry["on_training_images"]["top1_error"] = 42.0 + SPREAD[entry["seed"]]
    judgement = verdict("dropout", record)
    assert (judgement.word, judgement.remark) == (COMES_OUT, "smaller here than the effect that would count")
    assert judgement.p == judgement.outcomes[0].p and judgement.outcomes[1].mean < 0


def test_a_primary_arm_without_a_pair_is_not_replaced_by_another():
    for name, other in (("links", "no_links_same_width"), ("pretraining", "fine_tuned_bottleneck")):
        first, second = [arm.name for arm in BY_ID[name].arms if not arm.larger][:2]
        record = of(name, 1.5, arms=[first, second, other])
        assert verdict(name, record).word in (COMES_OUT, OPPOSITE)
        record["runs"] = [entry for entry in record["runs"] if entry["arm"] != second]
        judgement = verdict(name, record)
        assert (judgement.word, judgement.remark, judgement.outcomes) == (NO_VERDICT, "not all arms have results", ())


def test_all_claims_of_the_study_share_one_correction():
    lrn = of("lrn", 0.27)  # p = 0.005
    alone = verdict("lrn", lrn)
    assert alone.p < 0.05 and alone.corrected == pytest.approx(15 * alone.p) and alone.word == UNDECIDED
    assert (alone.among, alone.missing) == (15, 14)
    others = {
        name: [of(name, 9 * BY_ID[name].direction)]
        for name in ("one-gpu", "colour", "pooling", "depth", "links", "curve")
    }
    with_others = verdict("lrn", lrn, others.items())  # six of the other claims have a smaller p
    assert with_others.corrected == pytest.approx(9 * alone.p) and (with_others.among, with_others.missing) == (15, 8)
    beside = verdict("lrn", lrn, {name: [of(name, 0.05)] for name in ("larger", "crops", "order")}.items())
    assert beside.corrected == alone.corrected  # they are not of the study's table
    # a correction of their own
    records = {name: [of(name, shift)] for name, shift in (("larger", -0.27), ("crops", 0.05), ("order", 9))}
    flips = of("flips", 0.05)
    for entry in (*records["crops"][0]["runs"], *flips["runs"]):  # else all gaps are equal
        entry["on_training_images"]["top1_error"] += SPREAD[entry["seed"]] * (entry["arm"] != "base")
    outside = verdicts(records, "nowhere")
    assert outside["larger"].corrected == outside["larger"].p
    assert outside["order"].corrected is None  # no direction
    assert [(each.among, each.missing) for each in (outside["larger"], outside["crops"])] == [(1, 0), (2, 1)]
    both = verdicts(records | {"flips": [flips], "cifar-lrn": [of("cifar-lrn", -1)]}, "nowhere")
    assert [(each.among, each.missing) for each in (both["larger"], both["crops"])] == [(2, 0), (2, 0)]


def test_the_record_with_most_seeds_counts_and_one_of_the_study_before_all():
    study, many = of("lrn", 1.5, seeds=3), of("lrn", -1.5) | {"base": "mini"}
    assert verdicts({"lrn": [many, study]}, "nowhere")["lrn"].record is study
    assert verdicts({"lrn": [study | {"base": "mini"}, many]}, "nowhere")["lrn"].record is many
    other = of("lrn", -1.5) | {"data": [dict(study["data"][0], fingerprint="g")]}
    views = of("views", 0)
    others = (other, *(of("lrn", -1.5) | more for more in ({"epochs": 1}, {"set": ["momentum=0.8"]}, {"steps": 9})))
    for record in others:  # more seeds, but not the study's pictures or recipe
        assert verdicts({"views": [views], "lrn": [record, study]}, "nowhere")["lrn"].record is study
        alone = verdicts({"views": [views], "lrn": [record]}, "nowhere")["lrn"]
        assert alone.record is record and alone.among == 1
    few = of("links", 1.5, seeds=2)
    few["data"] = [dict(few["data"][0], fingerprint=STUDY_PICTURES[0])]
    repetitions = {name: [of(name, 1.5)] for name in ("links", "lrn", "colour")}  # the study again, on other pictures
    judgements = verdicts(repetitions | {"links": [*repetitions["links"], few]}, "nowhere")
    assert judgements["links"].record is few and judgements["links"].of_study and not judgements["lrn"].of_study
    assert verdicts(repetitions, "nowhere")["lrn"].of_study
    lopsided_record = of("lrn", 1.5)
    lopsided_record["runs"] = [run for run in lopsided_record["runs"] if run["arm"] == "base" or run["seed"] < 2]
    assert verdicts({"lrn": [lopsided_record, study]}, "nowhere")["lrn"].record is study


def test_other_seeds_are_a_record_of_their_own_that_the_first_ones_foretell(tmp_path):
    study = of("lrn", 1.5)
    study["data"] = [dict(study["data"][0], fingerprint=STUDY_PICTURES[0])]
    repeat = of("lrn", 1.5, shift_of_seed=lambda seed: 9.0 if seed == 2 else 0.0) | {
        "data": study["data"],
        "first_seed": 6,
    }
    for entry in repeat["runs"]:
        entry["seed"] += 6
    assert path_of(repeat, tmp_path) != path_of(study, tmp_path) == path_of(study | {"first_seed": 0}, tmp_path)
    records = {"lrn": [repeat, study], "views": [of("views", 0)]}
    assert verdicts(records, "nowhere")["lrn"].record is study
    alone = verdict_of(repeat, records, "nowhere")
    assert alone.record is repeat and alone.among == 1 and not alone.of_study
    assert verdict_of(study, records, "nowhere").record is study
    assert foretold(BY_ID["lrn"], repeat, records["lrn"]) == (5, 6)
    assert foretold(BY_ID["lrn"], study, records["lrn"]) is None  # what came before it is nothing
    again = repeat | {"runs": [entry | {"seed": entry["seed"] - 1} for entry in repeat["runs"]], "first_seed": 5}
    assert foretold(BY_ID["lrn"], again, [again, study]) is None  # seed 5 is in both
    copies = [one | {"base": "mini"} for one in (repeat, study)]
    assert verdicts({"lrn": copies}, "nowhere")["lrn"].record is copies[1]  # the repetition is the newer one
    assert verdicts({"lrn": copies[:1]}, "nowhere")["lrn"].record is copies[0]
    assert foretold(BY_ID["lrn"], repeat | {"epochs": 9}, records["lrn"]) is None
    assert foretold(BY_ID["lrn"], repeat, [of("lrn", 1.5, seeds=1) | {"data": study["data"]}]) is None
    assert page.repetition(BY_ID["lrn"], repeat, records["lrn"], tmp_path) == [
        "5 of 6 differences lie where the earlier seeds foretold, at 95 %"
    ]


def keep_answers(record, folder, random):
    """Which of 100 pictures each run got right, at random: means that vary with the pictures by some points."""
    (folder / "runs").mkdir(exist_ok=True)
    for entry in record["runs"]:
        entry["directory"] = f"out/{record['data'][0]['fingerprint']}-{entry['arm']}-{entry['seed']}"
        answers = {protocol: np.packbits(random.random((2, 100)) < 0.5, axis=1) for protocol in entry["errors"]}
        np.savez(folder / "runs" / f"{Path(entry['directory']).name}.npz", images=100, **answers)


def test_other_pictures_are_held_against_the_older_record_of_as_many(tmp_path):
    older = of("lrn", 1.5)
    newer = of("lrn", 1.5, shift_of_seed=lambda seed: (3.0, 30.0)[seed] if seed < 2 else 0.0)
    newer["date"] = "2026-12-02T10:00:00+00:00"
    newer["data"] = [dict(older["data"][0], fingerprint="g")]
    for record in (older, newer):
        keep_answers(record, tmp_path, np.random.default_rng(3))
    (outcome,) = outcomes(BY_ID["lrn"], older)
    errors_of_pictures = [kept_answers.of_pictures(one, "base", "no_lrn", tmp_path) for one in (older, newer)]
    reach = stats.t.ppf(0.975, 5) * (outcome.sd**2 * (1 + 1 / 6) + sum(np.square(errors_of_pictures))) ** 0.5
    interval = outcome.prediction_elsewhere(sum(np.square(errors_of_pictures)))
    assert interval == pytest.approx((outcome.mean - reach, outcome.mean + reach))
    values = outcomes(BY_ID["lrn"], newer)[0].values
    assert outcome.prediction[1] < values[0] < interval[1] < values[1]  # other pictures may do 3 points, not 30
    (sentence,) = page.repetition(BY_ID["lrn"], newer, [newer, older], tmp_path)
    assert sentence.startswith("5 of 6 differences lie where the record of other pictures, ")
    assert sentence.endswith("; in its interval of the seeds alone 4")
    assert page.repetition(BY_ID["lrn"], older, [newer, older], tmp_path) == []
    fewer = dict(older["data"][0], images={"train": 90, "val": 39})
    for other in ({"data": [fewer]}, {"first_seed": 6}, {"base": "mini"}, {"epochs": 9}, {"date": newer["date"]}):
        assert page.repetition(BY_ID["lrn"], newer, [newer, older | other], tmp_path) == [], other
    study = [dict(older["data"][0], fingerprint=fingerprint) for fingerprint in STUDY_PICTURES]
    same = [record | {"data": [data]} for record, data in zip((newer, older), study)]
    assert page.repetition(BY_ID["lrn"], same[0], same, tmp_path) == []  # the same pictures, prepared anew
    next((tmp_path / "runs").glob("*-no_lrn-4.npz")).unlink()  # how much pictures vary isn't known any more
    assert page.repetition(BY_ID["lrn"], newer, [newer, older], tmp_path) == []


def test_the_studys_pictures_are_the_same_ones_on_every_processor():
    """A set that was made before components of colour were exact has a fingerprint of its processor's rounding."""
    study, *others = (of("lrn", 1.5) for _ in STUDY_PICTURES)
    for record, fingerprint in zip((study, *others), STUDY_PICTURES):
        record["data"] = [dict(record["data"][0], fingerprint=fingerprint)]
        assert verdicts({"lrn": [record], "views": [of("views", 0)]}, "nowhere")["lrn"].of_study
    assert all(pictures(other) == pictures(study) for other in others)
    for other in others:  # a later run of the same seeds, with another result
        again = other | {"runs": of("lrn", -1.5)["runs"], "date": "2027-01-01T10:00:00+00:00"}
        for records in ([again, study], [study, again]):
            assert verdicts({"lrn": records, "views": [of("views", 0)]}, "nowhere")["lrn"].record is study
    for other in others:
        for entry in other["runs"]:
            entry["seed"] += 6
        other["first_seed"] = 6
        assert foretold(BY_ID["lrn"], other, [other, study]) == (6, 6)
        links = of("links", 1.5) | {"data": study["data"], "first_seed": 6}
        assert verdict_of(other, {"links": [links]}, "nowhere").among == 2


def test_a_record_is_judged_among_those_that_share_its_pictures():
    """Pre-training has two sets, the other claims of the study one of them; a fuller record is another one."""
    whole_set = dict(of("lrn", 1.5)["data"][0], fingerprint=STUDY_PICTURES[0])
    half_set, other_set = dict(whole_set, fingerprint="half", classes=5), dict(whole_set, fingerprint="other")
    records = {
        "pretraining": [of("pretraining", -1.5) | {"data": [half_set, whole_set]}],
        "lrn": [of("lrn", 1.5) | {"data": [whole_set]}],
        "links": [of("links", 1.5) | {"data": [other_set]}],
    }
    (record,) = records["pretraining"]
    judgement = verdict_of(record, records, "nowhere")
    assert judgement.record is record and (judgement.among, judgement.missing) == (15, 13)
    assert judgement.corrected == verdicts(records, "nowhere")["pretraining"].corrected
    assert page._here(BY_ID["pretraining"], judgement).endswith(" (on 5 classes, pre-training on 10)")
    few = of("pretraining", -1.5, seeds=5) | {"data": [half_set, whole_set]}
    assert verdict_of(few, records | {"pretraining": [record, few]}, "nowhere").record is few


def test_times_are_ratios_and_a_run_that_never_comes_there_is_a_lower_bound():
    record = of("biases", 0)
    for entry in record["runs"]:
        entry["moved"] = {"base": 100, "zero_biases": 200 + entry["seed"]}[entry["arm"]]
    (outcome,) = outcomes(BY_ID["biases"], record)
    assert math.exp(outcome.mean) == pytest.approx(2.02, abs=0.02) and outcome.unit == "times" and outcome.bound == ""
    assert verdict("biases", record).word == COMES_OUT
    for entry in record["runs"]:
        if entry["arm"] == "zero_biases":
            entry["moved"] = 105 + entry["seed"] % 2
    remark = "smaller here than the effect that would count"
    assert (verdict("biases", record).word, verdict("biases", record).remark) == (COMES_OUT, remark)
    record["runs"][-1]["moved"] = None  # it may be as large as any
    record["runs"][-1]["steps"] = 107
    assert (verdict("biases", record).word, verdict("biases", record).remark) == (COMES_OUT, "")
    record["runs"][-1]["steps"] = 3000
    (outcome,) = outcomes(BY_ID["biases"], record)
    assert outcome.bound == "at least " and max(outcome.values) == pytest.approx(math.log(30))
    assert outcome.interval and outcome.prediction is None  # the size isn't known
    assert page._mean(outcome) == f"at least {math.exp(outcome.mean):.2f} times"
    record["runs"][0]["moved"] = None
    (outcome,) = outcomes(BY_ID["biases"], record)
    assert outcome.bound == "" and outcome.what.endswith("over base, never in some runs of both")
    record["runs"][-1]["moved"] = 200
    (outcome,) = outcomes(BY_ID["biases"], record)
    assert outcome.bound == "at most " and min(outcome.values) == pytest.approx(math.log(105 / 3000))


def keep_kernels(record, arm, folder, *towers):
    """A kept first layer for every run of an arm: towers of these colours."""
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    for entry in record["runs"]:
        if entry["arm"] == arm:
            np.savez(
                folder / "runs" / Path(entry["directory"]).name,
                conv1=made_towers(entry["seed"] + 1, *towers).astype(np.float16),
            )


@pytest.mark.parametrize("divided, word", [(6, COMES_OUT), (3, UNDECIDED), (0, OPPOSITE), (8, COMES_OUT)])
def test_the_towers_are_counted(divided, word, tmp_path):
    """Also of more runs than can be paired in every way: p is of the first of them."""
    seeds = max(6, divided)
    record = of("specialisation", 0, seeds=seeds)
    for entry in record["runs"]:
        entry["division"] = {
            "p": 0.001 if entry["seed"] < divided and entry["arm"] == "base" else 0.2,
            "measures": {"colourfulness": {"holm_p": 0.01 if entry["seed"] % 2 else 0.3}},
        }
    record["runs"][0]["division"]["p"] = record["runs"][0]["division"]["p"] if divided else None
    del record["runs"][-1]["division"]  # of the network of one tower, which has none
    keep_kernels(record, "base", tmp_path, GREY, RED_GREEN)
    judgement = verdict("specialisation", record, folder=tmp_path)
    assert judgement.word == word
    assert judgement.remark.startswith(f"with links: towers differ in {divided} of {seeds} runs (")
    kernels = [made_towers(seed + 1, GREY, RED_GREEN).astype(np.float16) for seed in range(min(seeds, 7))]
    first = " (the first 7)" if seeds > 7 else ""
    p = f"{matching(kernels)[1]:.2g}"
    assert f"in chroma in {divided // 2} of these; against towers of other runs{first} p = {p};" in judgement.remark
    assert f"without links: towers differ in 0 of {seeds} runs" in judgement.remark
    assert (
        judgement.counted.startswith(f"with links: towers differ in {divided} of {seeds} runs (")
        and judgement.n == seeds
    )
    assert f"; without links: 0 of {seeds} runs (" in judgement.counted
    fisher = stats.fisher_exact([[divided, seeds - divided], [0, seeds]]).pvalue
    assert f"with links against without p = {fisher:.2g}" in judgement.remark


def test_divided_towers_that_other_runs_towers_match_do_not_come_out(tmp_path):
    record = of("specialisation", 0)
    for entry in record["runs"]:
        entry["division"] = {"p": 0.001, "measures": {"colourfulness": {"holm_p": 0.3}}}
    assert verdict("specialisation", record, folder=tmp_path).word == UNDECIDED  # no kernels are kept
    keep_kernels(record, "base", tmp_path, *[GREY, RED_GREEN] * 6)
    assert verdict("specialisation", record, folder=tmp_path).word == UNDECIDED
    assert verdict("specialisation", of("specialisation", 0)).remark == "a record of an older version"


def test_literal_weights_come_out_where_every_run_learns():
    record = of("init", 0)
    record["data"][0]["classes"] = 100
    assert verdict("init", record).word == COMES_OUT
    stuck_run = next(entry for entry in record["runs"] if entry["arm"] == "literal_init")
    stuck_run["moved"] = None
    assert verdict("init", record).word == UNDECIDED and verdict("init", record).counted == "5 of 6 runs learn"
    assert verdict("init", record).n == 6
    stuck_run |= {"diverged": 9}
    del stuck_run["errors"]
    judgement = verdict("init", record)
    assert judgement.remark == "5 of 6 runs learn; literal init diverged with 1 seed" and judgement.n == 6
    few = of("init", 0, seeds=5)
    few["data"][0]["fingerprint"] = STUDY_PICTURES[0]
    few = verdict("init", few)  # what is shown is what is counted, not a difference of errors
    assert (few.word, few.counted, few.n, few.remark) == (NO_VERDICT, "5 of 5 runs learn", 5, "5 of 6 seeds so far")
    assert page._word(few) == "no verdict; 5 of 6 seeds so far"
    assert verdict("init", of("init", 0, seeds=3) | {"base": "mini"}).remark == "too few seeds"


def test_an_average_of_five_is_tested_against_its_members():
    record = of("ensemble5", 0, seeds=5)
    members = [entry["directory"] for entry in record["runs"]]
    record["ensembles"] = [{"members": members, "errors": errors((1.0, 1.0), (55.0, 10.0))}]
    (outcome,) = outcomes(BY_ID["ensemble5"], record)
    assert outcome.prediction is None and outcome.interval  # another average is no sixth member
    assert page._outcome(outcome).endswith("; this is one average, and interval and p are of its members against it")
    assert (
        outcome.values == pytest.approx((-5.0, -6.0, -7.0, -8.0, -9.0))
        and verdict("ensemble5", record).word == COMES_OUT
    )
    seven = record | {
        "claim": "ensemble7",
        "ensembles": [record["ensembles"][0] | {"five": {"errors": errors((1, 1), (56.0, 10.0))}}],
    }
    assert (
        outcomes(BY_ID["ensemble7"], seven)[0].values == pytest.approx((-1.0,))
        and verdict("ensemble7", seven).remark == "one difference, so no test"
    )


def test_steps_to_the_same_training_loss_are_a_ratio():
    record = of("saturating", 0, arms=["base", "tanh"])
    for entry in record["runs"]:
        slowdown = 1 if entry["arm"] == "base" else 4
        entry["curve"] = {
            "steps": [10 * slowdown, 20 * slowdown, 40 * slowdown, 200, 210],
            "loss": [4.0, 3.0, 2.0 + 0.001 * entry["seed"] * slowdown, 1.9 + 0.1 / slowdown, 0.1],
        }
        entry |= {"drops": [3], "steps_per_epoch": 90}  # after step 180 the loss of both falls at once
    (outcome,) = outcomes(BY_ID["saturating"], record)
    assert outcome.unit == "times" and math.exp(outcome.mean) == pytest.approx(4, rel=0.01)
    assert verdict("saturating", record).word == COMES_OUT
    assert verdict("masks", of("masks", 0, arms=["base"])).word == NO_VERDICT


def test_the_correction_is_over_the_claims_of_the_studys_table():
    table = (Path(__file__).resolve().parents[2] / "claims" / "desk-study.md").read_text(encoding="utf-8")
    rows = [
        line.split("|")[1].strip()
        for line in table.split("## Tests and verdicts")[0].splitlines()
        if line.startswith("| ")
    ]
    with_direction = [
        name for name in rows[1:] if name in BY_ID and BY_ID[name].direction and name not in ("specialisation", "init")
    ]
    with_direction.remove("ensemble7")  # which is told, and never has a p
    assert set(with_direction) == set(FAMILY) and len(FAMILY) == 15


def test_the_plan_is_only_added_to():
    """All text above the addition that says so, as it was then."""
    page = (Path(__file__).resolve().parents[2] / "claims" / "desk-study.md").read_text(encoding="utf-8")
    for heading, digest in (("14:50", "071bf0a99248eec9"), ("18:45", "74ac6d79d2370131")):
        before = page.partition(f"**2026-11-30, {heading}")[0]
        assert hashlib.sha256(before.encode()).hexdigest()[:16] == digest
    additions = [line for line in page.splitlines() if re.match(r"\*\*20\d\d-\d\d-\d\d, \d\d:\d\d", line)]
    assert additions == sorted(additions)  # dated, the newest last
