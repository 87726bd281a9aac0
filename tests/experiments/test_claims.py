"""The list of claims, what the records say in words and numbers, the README's table, and the forecast; nothing is
trained here."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from claim_records import errors, record_of
from image_folders import make_folder
from inner_cases import every

from alexnet_mp import claims, evaluate
from alexnet_mp.experiments import page as claim_page
from alexnet_mp.experiments import plan, run_all
from alexnet_mp.experiments.arm_runs import first_gpu, training_options
from alexnet_mp.experiments.claim import BASE, command
from alexnet_mp.experiments.conduct import new_record
from alexnet_mp.experiments.elsewhere import ELSEWHERE, feeding, importance, two_gpus
from alexnet_mp.experiments.findings import findings, setting
from alexnet_mp.experiments.paper_claims import CLAIMS, KINDS
from alexnet_mp.experiments.plan import (
    arm_recipe,
    digest_of,
    last_step,
    make_run,
    operations,
    steps_per_epoch,
    work_of_steps,
    work_of_tests,
)
from alexnet_mp.experiments.records import differences, path_of, read_records, take_records, write_record
from alexnet_mp.recipes import recipe
from alexnet_mp.recipes.named import PRESETS
from alexnet_mp.recipes.recipe import to_dict
from alexnet_mp.system import durable_files
from alexnet_mp.system.errors import UserError
from alexnet_mp.training.schedule import make_schedule

BASES = ("paper", "source2012", "mini", "desk")


def options(*words, claim="lrn", data="builtin"):
    return claims._parser().parse_args(["run", claim, "--data", str(data), "--gpus", "cpu", *words])


# --- the list


def test_every_claim_is_told_whole(capsys, tmp_path):
    assert claims.main(["list", "--records", tmp_path]) == 0
    listed = capsys.readouterr().out
    assert len({claim.id for claim in CLAIMS}) == len(CLAIMS) >= 24
    for claim in CLAIMS:
        assert all(
            text in listed for text in (f"{claim.id}: {claim.sentence}", claim.paper, claim.source, command(claim))
        )
        claims._parser().parse_args(command(claim).split()[3:])  # it can be typed as it stands
    assert listed.count("here   not run here") == len(CLAIMS) + len(ELSEWHERE)
    for other in ELSEWHERE:
        told = f"{other.id}: {other.sentence}", other.paper, other.source, other.command
        assert all(text in listed for text in told)


def test_the_word_list_is_not_needed(capsys, tmp_path):
    assert claims.main(["list"]) == 0
    listed = capsys.readouterr().out
    assert claims.main([]) == 0 and capsys.readouterr().out == listed


@pytest.mark.run
@every("base", BASES)
@every("epochs", [[], ["--epochs", "7"]])
def test_the_training_is_given_exactly_the_arms_recipe(base, epochs):
    for claim in CLAIMS:
        for arm in claim.arms:
            asked = options("--base", base, *epochs)
            asked.typed = []
            _, wanted = arm_recipe(arm, asked)
            run = SimpleNamespace(recipe=wanted, data="builtin", directory="run", init=None, steps=None, level=None)
            given = training_options(run, asked, 7)
            assert given.recipe is wanted and (given.settings, given.batch_size, given.epochs, given.seed) == (
                (),
                None,
                None,
                None,
            ), (claim.id, arm.name)
            assert recipe.override(given.recipe, given.settings) == wanted  # as the training makes its own of it


@every(
    "words, run, expected",
    [
        ([], {}, {"steps": None, "init": None, "workers": None}),
        (["--steps", "9"], {"steps": 9}, {"steps": 7}),
        ([], {"level": 25.0}, {"steps": 7}),
        ([], {"init": Path("before")}, {"init": "before"}),
        (["--workers", "0"], {}, {"workers": 0}),
        (["--kernels", "reference"], {}, {"kernels": "reference"}),
        (["--gpus", "0,1"], {"recipe": PRESETS["cifar18"]()}, {"gpus": "0"}),
        (["--gpus", "0,1"], {}, {"gpus": "0,1"}),
    ],
)
def test_what_else_the_training_is_given(words, run, expected):
    asked = options(*words)
    asked.typed = ["run", "lrn", "--note", "two words"]
    given = training_options(
        SimpleNamespace(
            **{
                "recipe": PRESETS["mini"](),
                "data": "DIR",
                "directory": Path("out/base"),
                "init": None,
                "steps": None,
                "level": None,
            }
            | run
        ),
        asked,
        7,
    )
    always = {
        "data": "DIR",
        "out": "out/base",
        "resume": "auto",
        "keep": 1,
        "command": "python -m alexnet_mp.claims run lrn --note 'two words'",
    }
    assert {name: getattr(given, name) for name in always | expected} == always | expected


@pytest.mark.run
@every("base", BASES)
def test_the_arms_of_a_claim_differ(base):
    for claim in CLAIMS:
        found = [(arm_recipe(arm, options("--base", base))[1], arm.init, arm.larger) for arm in claim.arms]
        assert len(set(found)) == len(found), claim.id


@pytest.mark.run
@every("base", BASES)
def test_the_arms_of_a_claim_have_one_schedule(base):
    for claim in CLAIMS:
        recipes = [arm_recipe(arm, options("--base", base, "--epochs", "20"))[1] for arm in claim.arms]
        assert {found.epochs for found in recipes} == ({20, 40} if claim.id == "longer" else {20})
        if claim.id not in ("schedule", "pretraining", "ensemble7", "longer"):  # fine-tuning has dates of its own
            assert len({tuple(date.epoch for date in found.dates) for found in recipes}) == 1
            assert {found.schedule for found in recipes} == {"dated"}


def test_a_short_run_of_a_plateau_schedule_is_that_of_section_5():
    """Equal rates for all layers, divided by ten three times before the end, and colours shifted all the time."""
    for words in ((), ("--set", "schedule=plateau")):
        _, found = arm_recipe(BASE, options("--base", "paper" if not words else "mini", *words, "--epochs", "20"))
        schedule = make_schedule(found)
        rates = [schedule.rates(epoch) for epoch in range(1, 21)]
        assert all(of_epoch.values() and len(set(of_epoch.values())) == 1 for of_epoch in rates)
        assert [1 + epoch for epoch in range(1, 20) if rates[epoch] != rates[epoch - 1]] == [6, 12, 18]
        assert [rates[epoch - 1]["conv1.weight"] for epoch in (1, 6, 12, 18, 20)] == pytest.approx(
            [1e-2, 1e-3, 1e-4, 1e-5, 1e-5]
        )
        assert {schedule.colour_noise(epoch) for epoch in range(1, 21)} == {0.1} and found.epochs == 20


def test_the_schedule_of_a_short_run_stands_in_its_record():
    said = []
    for claim, base, epochs in (
        ("lrn", "paper", "20"),
        ("lrn", "paper", None),
        ("lrn", "mini", "20"),
        ("lrn", "paper", "1"),
        ("schedule", "paper", "20"),
    ):
        asked = options("--base", base, *(["--epochs", epochs] if epochs else []), claim=claim)
        asked.typed = []
        made = new_record(next(found for found in CLAIMS if found.id == claim), asked)
        said.append(setting(made).partition("epoch")[2])
    assert said[0].startswith("s, all rates fall at epochs 6, 12, 18 in place of plateaus, ")
    assert said[3].startswith(", all rates never fall in place of plateaus, ")
    assert all("fall" not in said[number] for number in (1, 2, 4))


def test_a_new_field_leaves_the_digests_of_older_recipes_alone():
    """The directory of a run is named by what its recipe has of its own: a field with its default names nothing."""
    recipe = PRESETS["mini"]()
    named = to_dict(recipe, defaults=False)
    assert not {"batch_file_size", "momentum", "lrn_size"} & named.keys() and named["crop_size"] == 96
    assert "weight_decay" not in named["layers"][0] and named["layers"][0]["kernel"] == 11
    assert digest_of(recipe) == digest_of(dataclasses.replace(recipe, seed=7, name="other"))
    digests = {
        digest_of(dataclasses.replace(recipe, **changed))
        for changed in ({}, {"batch_file_size": 10_000}, {"momentum": 0.5}, {"epochs": 90})
    }
    assert len(digests) == 4


@every("base", BASES)
def test_the_papers_overfitting_is_of_crops_and_mirror_images(base):
    """Colours have a sentence and a figure of their own, so they stay; each of the two alone is told beside it."""
    by_id = {claim.id: claim for claim in CLAIMS}
    changed = {}
    for name in ("augmentation", "crops-flips", "crops", "flips"):
        assert by_id[name].kind.word == "overfitting"
        before, after = (arm_recipe(arm, options("--base", base))[1] for arm in by_id[name].arms)
        changed[name] = set(differences(before, after))
    assert changed == {
        "augmentation": {"crop_positions", "flip", "colour_noise"},
        "crops-flips": {"crop_positions", "flip"},
        "crops": {"crop_positions"},
        "flips": {"flip"},
    }
    assert by_id["dropout"].kind.word == "dropout"


@every(
    "claim, field, facts",
    [
        ("ensemble5", "paper", ["38.1 / 16.4", "16.4 top-5 on its test set"]),
        ("pretraining", "paper", ["1.7 / 1.6", "conv6"]),
        ("pretraining", "source", ["145, which has no conv6"]),
        ("pretraining", "needs", ["scratch has conv6 too"]),
        ("headline-2009", "source", ["137 + conv6"]),
        ("order", "source", ["166", "41.10 / 18.67"]),
        ("lrn", "source", ["167", "40.49 / 18.12"]),
        ("depth", "paper", ["2 points"]),
    ],
)
def test_facts_of_paper_and_notes(claim, field, facts):
    text = getattr(next(found for found in CLAIMS if found.id == claim), field)
    assert [fact for fact in facts if fact not in text] == []


def test_how_the_test_figure_of_2012_is_made_can_be_typed():
    needs = next(claim for claim in CLAIMS if claim.id == "headline-2012").needs
    typed = evaluate._parser().parse_args(needs.partition("alexnet_mp.evaluate ")[2].split())
    assert (typed.split, typed.submission) == ("test", "FILE")


def test_settings_are_for_every_arm():
    for claim in CLAIMS:
        for arm in claim.arms:
            found = arm_recipe(arm, options("--base", "mini", "--set", "batch_size=17", "--set", "momentum=0.7"))[1]
            # But where the claim is of the batch: see the next test.
            assert found.batch_size == (128 if arm.name == "one_gpu_rates" else 17) and found.momentum == 0.7


def test_what_a_claim_changes_wins_over_a_setting():
    arm = next(claim for claim in CLAIMS if claim.id == "colour").arms[1]
    assert arm_recipe(arm, options("--set", "colour_noise=0.3"))[1].colour_noise == 0


# --- refusals


@pytest.mark.run
@every(
    "words, message",
    [
        (
            ["feeding"],
            "feeding has no run of its own; its figure comes from: python benchmarks/record.py --name pipeline",
        ),
        (["lrm"], "no claim is called lrm; they are specialisation, views"),
        (["lrn", "--seeds", "0"], "--seeds 0: it must be at least 1"),
        (["lrn", "--seeds", "21"], "--seeds 21: 20 at most"),
        (["lrn", "--epochs", "-1"], "--epochs -1"),
        (["all", "--steps", "0"], "--steps 0"),
        (["all", "--budget", "2 hours"], "--budget 2 hours: write hours"),
        (["all", "--budget", "0h"], "--budget 0h"),
        (["lrn", "--set", "dropuot=1"], "did you mean dropout"),
        (["lrn", "--data", "/nowhere"], "no such directory"),
        (["lrn", "--workers", "-1"], "--workers -1"),
        (["lrn", "--larger", "DIR"], "lrn trains nothing on another set"),
        (["pretraining", "--larger", "builtin", "--data", "builtin"], "it has 16 classes and --data builtin has 16"),
        (["lrn", "--search-epochs", "2"], "--search-epochs 2: lrn looks for no learning rate"),
        (["cifar-relu", "--search-epochs", "-1"], "--search-epochs -1: it must be at least 1"),
        (["lrn", "--set", "seed=7"], "--set seed=7: the arms have names of their own and the seeds 0 to K-1"),
        (["lrn", "--set", "name=x"], "--set name=x"),
        (["lrn", "--set", "lrn_size=5", "--records", "/dev/null"], "--records /dev/null: /dev/null is"),
        (["lrn", "--out", "/dev/null/x"], "--out /dev/null/x: /dev/null is not a directory that can be written to"),
        (
            ["colour", "--set", "colour_noise=0"],
            "colour: no_colour changes nothing of this network, it is the same as base",
        ),
        (["lrn", "--base", "cifar_relu"], "lrn: no_lrn changes nothing"),
        (["specialisation", "--base", "cifar18"], "this network has one tower"),
    ],
)
def test_what_cannot_be_meant_is_refused(words, message, tmp_path):
    data = [] if "--data" in words else ["--data", str(make_folder(tmp_path / "data", train=1, val=1, size=(32, 32)))]
    with pytest.raises(UserError, match=message):
        claims.main(
            ["run", "--gpus", "cpu", "--out", tmp_path / "out", "--records", tmp_path / "records", *words, *data]
        )
    assert not (tmp_path / "records").exists()


@every("text, seconds", [("2h", 7200), ("1.5h", 5400), ("90m", 5400), ("45s", 45)])
def test_budgets(text, seconds):
    assert claims._seconds(text) == seconds


def test_a_network_of_one_tower_takes_the_first_device():
    assert [first_gpu("0,1", towers) for towers in (1, 2)] == ["0", "0,1"]
    assert first_gpu("auto", 1) == "auto"


@pytest.mark.run
@every(
    "classes, labelled, size, left_out",
    [
        (10, False, 256, {"labelled test", "cifar10", "ilsvrc-2010", "ilsvrc-2012", "fall-2009"}),
        (1000, True, 256, {"cifar10", "ilsvrc-2012", "fall-2009"}),
        (1000, False, 256, {"labelled test", "cifar10", "ilsvrc-2010", "fall-2009"}),
        (10_184, False, 256, {"labelled test", "cifar10", "ilsvrc-2010", "ilsvrc-2012"}),
        (0, True, 32, {"any", "labelled test", "ilsvrc-2010", "ilsvrc-2012", "fall-2009"}),
    ],
)
def test_all_leaves_out_what_the_data_are_not_for(classes, labelled, size, left_out, monkeypatch):
    names = [str(number) for number in range(classes)] or sorted(run_all.CIFAR10)

    def opened(data, stored_size):
        if stored_size > size:
            raise UserError("its pictures are smaller")
        return SimpleNamespace(classes=names)

    monkeypatch.setattr(run_all, "opened", opened)
    monkeypatch.setattr(run_all, "has_labelled_test", lambda data, stored_size: labelled)
    found = {claim.id: run_all._unfit(claim, options("--base", "mini", claim="all")) for claim in CLAIMS}
    assert {name for name, reason in found.items() if reason} == {
        claim.id for claim in CLAIMS if claim.data in left_out
    }
    if size == 32:
        assert found["lrn"] == "which need pictures of 112x112" and found["headline-2010"] == "which are of other data"


# --- what a record says


def test_every_kind_of_claim_has_its_words():
    for claim in CLAIMS:
        arms = [{"name": arm.name, "larger": arm.larger} for arm in claim.arms]
        record = {
            "claim": claim.id,
            "kind": claim.kind.word,
            "arms": arms,
            "runs": [],
            "search": [],
            "rates": {},
            "ensembles": [],
        }
        assert findings(record) == []


THREE = {("base", seed): {"errors": errors((21.0 + seed, 5.0), (20.0 + seed, 4.0))} for seed in range(3)} | {
    ("no_lrn", seed): {"errors": errors((22.0 + 2 * seed, 5.5), (21.0 + 2 * seed, 4.5 + seed))} for seed in range(3)
}


def test_a_difference():
    # Ten views, top-1: +1, +2, +3; top-5: +0.5, +1.5, +2.5. Centre view: +1, +2, +3; +0.5 each.
    (sentence,) = findings(record_of("difference", ["base", "no_lrn"], THREE))
    assert sentence.startswith(
        "no lrn +2.00 ± 1.00 / +1.50 ± 1.00 points against base's 21.00 / 4.00 % (ten views), n = 3, "
        "p = 0.25 by sign flips, the least there can be (Welch's t-test 0.22)"
    )
    assert sentence.endswith("; centre view +2.00 ± 1.00 / +0.50 ± 0.00 points")


def test_errors_of_validation_and_test_images():
    runs = {
        ("base", seed): {
            "errors": errors((21.0 + seed, 5.0), (20.0, 4.0)),
            "on_test_images": errors((23.0, 6.0), (22.0, 5.0)),
        }
        for seed in (0, 1)
    }
    assert findings(record_of("errors", ["base"], runs)) == [
        "base: 20.00 ± 0.00 / 4.00 ± 0.00 % ten views, 21.50 ± 0.71 / 5.00 ± 0.00 % centre view; test images: "
        "22.00 ± 0.00 / "
        "5.00 ± 0.00 % ten views, 23.00 ± 0.00 / 6.00 ± 0.00 % centre view; test minus validation +2.00 ± 0.00 / "
        "+1.00 ± 0.00 points (ten views), n = 2"
    ]


def test_only_pairs_count():
    runs = {key: run for key, run in THREE.items() if key not in (("base", 0), ("no_lrn", 1))}
    (sentence,) = findings(record_of("difference", ["base", "no_lrn"], runs))
    assert "no lrn +3.00 / +2.50 points against base's 22.00 / 4.00 % (ten views), n = 1, no p" in sentence


def test_a_diverged_run_is_told_and_not_counted():
    runs = THREE | {("no_lrn", 2): {"diverged": 7}}
    difference, diverged = findings(record_of("difference", ["base", "no_lrn"], runs))
    assert "n = 2" in difference and diverged == "no lrn with seed 2 diverged at step 7"


def test_cumulative_steps_are_against_the_one_before():
    runs = {
        (arm, 0): {"errors": errors((top1, 1.0), (top1, 1.0))} for arm, top1 in (("a", 30.0), ("b", 20.0), ("c", 15.0))
    }
    first, second, third = findings(record_of("cumulative", ["a", "b", "c"], runs))
    assert first == "a: 30.00 / 1.00 % ten views, 30.00 / 1.00 % centre view, n = 1"
    assert second.startswith("b -10.00 / +0.00 points against a's 30.00")
    assert third.startswith("c -5.00 / +0.00 points against b's 20.00")


def test_views():
    (sentence,) = findings(record_of("views", ["base"], {key: run for key, run in THREE.items() if key[0] == "base"}))
    assert sentence.startswith(
        "centre view +1.00 ± 0.00 / +1.00 ± 0.00 points against 21.00 / 4.00 % of ten views, n = 3, p = 0.2"
    )


def test_nine_views_are_named():
    runs = {("base", 0): {"errors": errors((20.0, 4.0), (19.0, 3.0), "nine views")}}
    assert "of nine views" in findings(record_of("views", ["base"], runs))[0]


def test_networks_that_are_tested_on_one_view():
    runs = {
        ("base", 0): {"errors": {"centre view": errors((20.0, 4.0), (0, 0))["centre view"]}},
        ("no_lrn", 0): {"errors": {"centre view": errors((21.5, 4.5), (0, 0))["centre view"]}},
    }
    assert findings(record_of("difference", ["base", "no_lrn"], runs)) == [
        "no lrn +1.50 / +0.50 points against base's 20.00 / 4.00 % (centre view), n = 1, no p"
    ]
    assert findings(record_of("errors", ["base"], runs)) == ["base: 20.00 / 4.00 % centre view, n = 1"]


def test_dropout_has_gap_and_iterations():
    curves = {
        "base": {"steps": [10, 20, 30, 40], "loss": [2.0, 1.5, 1.0, 0.8]},
        "no_dropout": {"steps": [10, 20, 30, 40], "loss": [1.6, 0.8, 0.4, 0.2]},
    }
    runs = {
        (arm, 0): {
            "errors": errors((30.0, 5.0), (29.0, 5.0)),
            "curve": curve,
            "on_training_images": {"top1_error": {"base": 25.0, "no_dropout": 5.0}[arm], "loss": 0.5},
        }
        for arm, curve in curves.items()
    }
    _, gap, iterations = findings(record_of("dropout", ["base", "no_dropout"], runs))
    assert gap == (
        "validation minus training error, centre view, network in test mode: base 5.00 points (training images "
        "25.00 %), no dropout 25.00 points (training images 5.00 %), no dropout +20.00 points against base, n = 1, "
        "no p"
    )
    assert iterations == (
        "base takes 2.00 times the steps of no dropout to the same training loss (as it is in training, with "
        # step 40 and step 20
        "dropout where there is any), 0.80, the lowest that both curves come to, n = 1"
    )


def test_units_that_saturate_are_told_by_their_steps():
    curves = {
        "base": {"steps": [10, 20, 30, 40], "loss": [1.6, 0.8, 0.4, 0.2]},
        "tanh": {"steps": [10, 20, 30, 40], "loss": [2.0, 1.5, 1.0, 0.8]},
    }
    runs = {(arm, 0): {"errors": errors((30.0, 5.0), (29.0, 5.0)), "curve": curve} for arm, curve in curves.items()}
    steps, difference = findings(record_of("iterations", ["base", "tanh", "sigmoid"], runs))
    assert steps.startswith("tanh takes 2.00 times the steps of base to the same training loss (")
    assert steps.endswith(", 0.80, the lowest that both curves come to, both at the rates of the base, n = 1")
    assert difference.startswith("tanh +0.00 / +0.00 points against base's")


def test_masks():
    masks = {
        "masks": 64,
        "images": 6,
        "halved": 40.0,
        "geometric": 41.0,
        "arithmetic": 42.0,
        "one_mask": 50.0,
        "agree": 96.5,
        "divergence": 0.0123,
        "noise": 0.002,
        "one_mask_divergence": 0.5,
    }
    runs = {
        ("base", seed): {"errors": errors((30.0, 5.0), (29.0, 5.0)), "masks": masks | {"halved": 40.0 + seed}}
        for seed in (0, 1)
    }
    (sentence,) = findings(record_of("masks", ["base"], runs))
    assert sentence == (
        "top-1 error on 6 validation pictures, centre view: 40.50 ± 0.71 % of the network with outputs times one "
        "minus dropout, 41.00 ± 0.00 % of the geometric mean of 64 sampled networks (42.00 ± 0.00 % of their "
        "arithmetic mean), 50.00 ± 0.00 % of one of them; the first two agree on 96.5 ± 0.0 % of the pictures, "
        "0.0123 ± 0.0000 nats apart (two halves of the masks 0.0020 ± 0.0000, one sampled network 0.500 ± 0.000), "
        "n = 2"
    )


def test_importance_is_of_the_same_data_and_setting():
    def made(claim, arms, costs, **more):
        runs = {
            (arm, seed): {"errors": errors((50.0, 9.0), (40.0 + seed + costs.get(arm, 0), 9.0))}
            for arm in arms
            for seed in (0, 1)
        }
        return record_of("difference", arms, runs, claim=claim, **more)

    records = {
        "lrn": [made("lrn", ["base", "no_lrn"], {"no_lrn": 1.5})],
        "pooling": [made("pooling", ["base", "non_overlapping"], {"non_overlapping": 0.5})],
        "one-gpu": [
            made("one-gpu", ["base", "one_gpu"], {"one_gpu": 1.0}),
            made("one-gpu", ["base", "one_gpu"], {"one_gpu": 9.0}),
        ],
    }
    where = (
        "folder pictures: 90 train, 40 val images of 10 classes: points of top-1 error that each costs when it is "
        "taken away: "
    )
    told = "lrn (3.3) +1.50, one-gpu (3.2) +1.00, pooling (3.4) +0.50; not the paper's order, without saturating"
    assert importance("", records) == [where + told]
    records["saturating"] = [made("saturating", ["base", "tanh", "sigmoid"], {"tanh": 3.0, "sigmoid": 5.0}, epochs=99)]
    assert importance("", records) == [where + told]  # of other epochs
    records["saturating"] = [made("saturating", ["base", "tanh", "sigmoid"], {"tanh": 3.0, "sigmoid": 5.0})]
    records["lrn"] = [made("lrn", ["base", "no_lrn"], {"no_lrn": 0.75})]
    assert importance("", records) == [
        where + "saturating (3.1) +3.00, one-gpu (3.2) +1.00, lrn (3.3) +0.75, pooling (3.4) +0.50; the paper's order"
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
    fed = {"group": "fed-step-cpu-fp32-b128", "batch": 128, "rivals": rivals}
    towers = {"two-towers": {"median_s": 1.5}, "one-gpu": {"median_s": 1.2}}
    write("b.json", "2026-11-25T10:00:00", fed | {"rivals": {"fixed": {}, "raw": {"pct_feeding": 77.0}}})
    write(
        "a.json",
        "2026-11-26T10:00:00",
        fed,
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


def overfitting(arm, seed, validation, training):
    return {
        (arm, seed): {
            "errors": errors((validation, 5.0), (validation - 1, 4.0)),
            "curve": {"steps": [10], "loss": [1.0]},
            "on_training_images": {"top1_error": training, "loss": 0.5},
        }
    }


def test_overfitting_is_a_difference_and_a_gap():
    runs = (
        overfitting("base", 0, 30.0, 25.0)
        | overfitting("base", 1, 32.0, 25.0)
        | overfitting("no_flips", 0, 33.0, 20.0)
        | (overfitting("no_flips", 1, 34.0, 17.0))
    )
    difference, gap = findings(record_of("overfitting", ["base", "no_flips"], runs))
    assert difference.startswith("no flips +2.50 ± 0.71 / ")
    assert gap == (
        "validation minus training error, centre view, network in test mode: base 6.00 ± 1.41 points (training images "
        "25.00 %), no flips 15.00 ± 2.83 points (training images 18.50 %), no flips +9.00 ± 1.41 points against base, "
        "n = 2, p = 0.5 by sign flips, the least there can be (Welch's t-test 0.092)"
    )


def test_errors_on_training_images_and_the_loss_stand_beside_a_difference():
    runs = {
        (arm, seed): {**run, "on_training_images": {"top1_error": 20.0 + seed + 4 * (arm == "no_lrn")}}
        for (arm, seed), run in THREE.items()
    }
    (_, beside) = findings(record_of("difference", ["base", "no_lrn"], runs))
    told = (
        "on the training images, centre view, network in test mode: no lrn +4.00 ± 0.00 points against base's 21.00 %"
    )
    assert beside == told
    moved = {key: {**run, "moved": 100 + 10 * key[1] + 50 * (key[0] == "no_lrn")} for key, run in runs.items()}
    (_, beside) = findings(record_of("difference", ["base", "no_lrn"], moved))
    assert beside == f"{told}; its loss moves at step 160 ± 10, base's at 110 ± 10"
    moved["no_lrn", 1]["moved"] = None
    (_, beside) = findings(record_of("difference", ["base", "no_lrn"], moved))
    assert beside == told
    assert len(findings(record_of("difference", ["base", "no_lrn"], THREE))) == 1


def test_the_gap_of_pooling_is_told_beside_its_difference():
    """3.4: "slightly more difficult to overfit"; a record of before tells it too."""
    runs = overfitting("base", 0, 30.0, 25.0) | overfitting("non_overlapping", 0, 31.0, 24.5)
    difference, _, gap = findings(record_of("difference", ["base", "non_overlapping"], runs, claim="pooling"))
    assert difference.startswith("non overlapping +1.00 / ")
    assert gap.endswith("non overlapping +1.50 points against base, n = 1, no p")
    assert len(findings(record_of("difference", ["base", "non_overlapping"], runs, claim="lrn"))) == 2  # no gap


@every("kind", ["overfitting", "dropout", "training", "schedule", "moved", "difference"])
@every("alone", ["base", "changed"])
def test_an_arm_whose_partner_has_no_result_is_told_alone(kind, alone):
    """The other one diverged, was never begun, or is not in the record at all."""
    runs = {key: {**run, "drops": [2], "moved": 5} for key, run in overfitting(alone, 0, 30.0, 25.0).items()}
    diverged = {("changed" if alone == "base" else "base", 0): {"diverged": 7, "drops": [], "moved": None}}
    for arms, made in ((["base", "changed"], runs | diverged), (["base", "changed"], runs), ([alone], runs)):
        found = findings(record_of(kind, arms, made))
        assert not any("against" in sentence for sentence in found)
        told = [sentence for sentence in found if sentence.startswith(alone) or f": {alone} 5.00 points (" in sentence]
        assert len(told) == (kind in ("overfitting", "dropout", "schedule", "moved"))


def test_the_epochs_at_which_rates_fell():
    same = errors((1.0, 1.0), (1.0, 1.0))
    runs = {
        ("dated", 0): {"drops": [4, 8, 10], "errors": same},
        ("plateau", 0): {"drops": [7], "errors": same, "steps": 95},
        ("plateau", 1): {"drops": [], "diverged": 4, "steps": 3},
        ("plateau", 2): {"drops": [], "errors": same},
    }
    dated, plateau, difference, _ = findings(record_of("schedule", ["dated", "plateau"], runs))
    assert dated == "dated: the rates fall at epochs 4, 8, 10 of 10 (seed 0)"
    assert plateau == (
        "plateau: the rates fall at epoch 7 of 10 (seed 0), not within 1 epoch (seed 1), not within 10 epochs (seed 2)"
    )
    assert difference.startswith("plateau +0.00 / +0.00 points against dated's")


def test_training_error():
    runs = {
        (arm, seed): {
            "errors": errors((30.0, 5.0), (29.0, 5.0)),
            "on_training_images": {"top1_error": top1 + seed, "loss": top1 / 10},
        }
        for arm, top1 in (("base", 10.0), ("no_decay", 12.5))
        for seed in (0, 1)
    }
    sentence, _ = findings(record_of("training", ["base", "no_decay"], runs))
    told = "no decay +2.50 ± 0.00 points top-1 against base's 10.50 %, n = 2, p = 0.5 by sign flips, the least"
    assert told in sentence
    assert sentence.endswith("loss +0.250 ± 0.000")


def test_rates():
    runs = {
        ("relu", 0): {"epochs_to_level": 2.0},
        ("relu", 1): {"epochs_to_level": 3.0},
        ("relu", 2): {"epochs_to_level": 4.0},
        ("tanh", 0): {"epochs_to_level": 8.0},
        ("tanh", 1): {"epochs_to_level": 18.0},
        ("tanh", 2): {"epochs_to_level": None},
    }
    search = [{"arm": arm, "factor": factor} for arm in ("relu", "tanh") for factor in (1.0, 3.0, 10.0)]
    record = record_of("rates", ["relu", "tanh"], runs, search=search, rates={"relu": 3.0, "tanh": 10.0})
    relu, tanh, ratio = findings(record)
    assert (
        relu
        == "relu at 3 times its learning rate (the best of 1, 3, 10): 25 % training error after 3.00 ± 1.00 epochs, "
        "n = 3"
    )
    assert tanh == (
        "tanh at 10 times its learning rate (the best of 1, 3, 10, at the edge of what was tried): 25 % training error "
        # 100 steps of ten an epoch
        "after 13.00 ± 7.07 epochs, n = 2, not within 10 epochs with 1 of 3 seeds"
    )
    # 4, 6 and more than 10 / 4
    assert ratio.startswith("ratio at least 4.17 ± 1.76, of the logarithms n = 3, p = 0.25")
    runs["relu", 0], runs["tanh", 2] = {"epochs_to_level": None}, {"epochs_to_level": None, "diverged": 7}
    relu, tanh, ratio, diverged = findings(record | {"runs": record_of("rates", ["relu", "tanh"], runs)["runs"]})
    assert (
        "n = 2, not within 10 epochs with 1 of 3 seeds" in relu
        and "n = 2, " not in ratio
        and diverged == "tanh with seed 2 diverged at step 7"
    )
    assert tanh.endswith("after 13.00 ± 7.07 epochs, n = 2") and ratio == (
        "ratio 6.00, of the logarithms n = 1, no p (without 1 seed of which relu did not come to it)"
    )
    assert "(the best of 1, 3, 10 after 2 epochs): 25 %" in findings(record | {"search_epochs": 2})[0]


def test_when_the_loss_moves():
    same = errors((1.0, 1.0), (1.0, 1.0))
    runs = {("source", seed): {"moved": 20 + seed, "errors": same} for seed in range(3)} | {
        ("literal", seed): {"moved": moved, "errors": same} for seed, moved in enumerate((120, None, 132))
    }
    source, literal, difference, _ = findings(record_of("moved", ["source", "literal"], runs))
    runs["source", 1]["signal"], runs["source", 2]["signal"] = {"conv1": 2.0, "fc8": 0.01}, {"conv1": 4.0, "fc8": 0.03}
    assert findings(record_of("moved", ["source", "literal"], runs))[0].endswith(
        "n = 3; before training the logits differ from picture to picture by 0.02 (conv1's outputs by 3)"
    )
    assert source == "source: the loss moves at step 20, at step 21, at step 22, n = 3"
    assert literal == "literal: the loss moves at step 120, not within 100 steps, at step 132, n = 3"
    # not moved counts as 100
    assert difference.startswith("literal at least +96 ± 16 steps against source, n = 3, p = 0.25")
    runs["source", 0]["moved"] = None
    assert findings(record_of("moved", ["source", "literal"], runs))[2].endswith(
        "n = 2, p = 0.5 by sign flips, the least there can be (Welch's t-test 0.11) "
        "(without 1 seed of which source did not come to it)"
    )


def test_one_step_is_no_steps():
    same = errors((1.0, 1.0), (1.0, 1.0))
    runs = {
        ("source", 0): {"moved": 20, "errors": same},
        ("literal", 0): {"moved": 21, "errors": same},
        ("literal", 1): {"moved": None, "errors": same, "steps": 1},
    }
    _, literal, difference, _ = findings(record_of("moved", ["source", "literal"], runs))
    assert literal == "literal: the loss moves at step 21, not within 1 step, n = 2"
    assert difference.startswith("literal +1 step against source, ")


def test_ensembles():
    runs = {("base", seed): {"errors": errors((30.0 + seed, 9.0), (28.0 + seed, 8.0))} for seed in range(2)}
    ensemble = {
        "members": ["runs/base0", "runs/base1"],
        "weights": [0.5, 0.1],
        "errors": errors((27.0, 8.0), (26.0, 7.0)),
        "weighted": {"ten views": {"top1_error": 25.5, "top5_error": 6.5, "loss": 1.0, "images": 100}},
    }
    plain, weighted = findings(record_of("ensemble", ["base"], runs, ensembles=[ensemble]))
    assert plain == (
        "2 networks averaged plainly: -2.50 / -1.00 points against their mean of 28.50 / 8.00 % (ten views), n = 1, "
        "no p"
    )
    assert "tested on these same images: -3.00 / -1.50 points" in weighted


def test_seven_networks_are_compared_with_five():
    def average(*values):
        return {
            "errors": errors(values[0], values[1]),
            "weighted": {"ten views": errors((0, 0), values[2])["ten views"]},
        }

    runs = {("base", seed): {"errors": errors((30.0, 9.0), (28.0, 8.0))} for seed in range(2)}
    found = [
        {
            "members": ["runs/base0"] * 7,
            **average((24.0, 6.0), (23.0, 5.0), (22.0, 4.0)),
            "five": {"members": ["runs/base0"] * 5, **average((26.0, 7.0), (25.0, 6.5), (24.5, 6.25))},
        }
    ] * 2
    plain, weighted = findings(record_of("ensemble", ["base"], runs, ensembles=found))
    assert plain.startswith(
        "7 networks averaged plainly: -2.00 ± 0.00 / -1.50 ± 0.00 points against the average of five of them, "
        "25.00 / 6.50 % (ten views), n = 2, p = 0.5"
    )
    assert "-2.50 ± 0.00 / -2.25 ± 0.00 points against the average of five of them, 24.50 / 6.25 %" in weighted


def test_towers():
    runs = {
        ("base", seed): {"errors": errors((1.0, 1.0), (1.0, 1.0)), "chroma": chroma, "random_split_p": 0.0001}
        for seed, chroma in enumerate(([0.1, 0.8], [0.9, 0.2]))
    }
    (sentence,) = findings(record_of("towers", ["base"], runs))
    assert sentence.startswith(
        "share of chroma in the kernels' energy, tower a / b: 0.10 / 0.80 (p = 0.0001), 0.90 / 0.20 "
        "(p = 0.0001); 0.70 ± 0.00 apart, n = 2"
    )


# --- records and the table


@pytest.mark.run
def test_a_record_is_read_as_it_was_written(tmp_path):
    record = record_of("difference", ["base", "no_lrn"], THREE)
    path, written = write_record(record, tmp_path / "records")
    assert written
    assert json.loads(path.read_text()) == record and path.with_suffix(".png").stat().st_size > 1000
    assert path.read_text().count("\n") < 40
    other = dict(record, date="2026-11-27T10:00:00+00:00", epochs=20)
    others = [
        other,
        dict(record, runs=[dict(run, devices=["NVIDIA H200"] * 2) for run in record["runs"]]),
        dict(record, search_epochs=2),
        dict(record, arms=[dict(arm, digest="other") for arm in record["arms"]]),
    ]
    assert len({path_of(different, tmp_path / "records") for different in others} | {path}) == 5
    same = [
        dict(record, set=["dropout=0.5"], reported_on={"devices": ["another"]}),
        dict(record, runs=[dict(run, devices=["CPU, 64 threads"] * 2) for run in record["runs"]]),
    ]
    assert {path_of(other, tmp_path / "records") for other in same} == {path}
    write_record(other, tmp_path / "records")
    (tmp_path / "records" / "foreign.json").write_text("[1]")
    (tmp_path / "records" / "broken.json").write_text("{")
    assert read_records(tmp_path / "records") == {"lrn": [other, record]}  # the newest first


@pytest.mark.run
def test_a_record_of_fewer_runs_does_not_replace_one_of_more(tmp_path):
    whole = record_of("difference", ["base", "no_lrn"], THREE)
    one = record_of("difference", ["base", "no_lrn"], {key: run for key, run in THREE.items() if key[1] == 0})
    assert [write_record(record, tmp_path)[1] for record in (one, whole, one)] == [True, True, False]
    assert read_records(tmp_path) == {"lrn": [whole]}
    anew = dict(one, runs=[dict(run, commits=["a mended one"]) for run in one["runs"]])
    # which the whole one doesn't have
    assert write_record(anew, tmp_path)[1] and read_records(tmp_path) == {"lrn": [anew]}


def test_records_of_another_machine_are_taken_where_they_say_more(tmp_path):
    whole = record_of("difference", ["base", "no_lrn"], THREE)
    one = record_of("difference", ["base", "no_lrn"], {key: run for key, run in THREE.items() if key[1] == 0})
    other = dict(one, runs=[dict(run, commits=["another"]) for run in one["runs"]])
    path, here, there = write_record(whole, tmp_path / "there")[0], tmp_path / "here", tmp_path / "there"
    (there / "runs").mkdir()
    (there / "runs" / "base-0-seed0.npz").write_bytes(b"new")
    (there / "runs" / "base-0-seed1.npz").write_bytes(b"other")
    (here / "runs").mkdir(parents=True)
    (here / "runs" / "base-0-seed1.npz").write_bytes(b"kept")
    assert take_records(there, here) == [path.name, path.with_suffix(".png").name, "runs/base-0-seed0.npz"]
    assert read_records(here) == {"lrn": [whole]} and (here / "runs" / "base-0-seed1.npz").read_bytes() == b"kept"
    assert take_records(there, here) == []
    with pytest.raises(UserError, match="--take nowhere: no such directory"):
        take_records("nowhere", here)
    for less in (one, other):  # fewer runs, or others: what is here stays
        durable_files.replace(there / path.name, json.dumps(less).encode())
        os.utime(there / path.name, (2e9, 2e9))
        assert take_records(there, here) == [] and read_records(here) == {"lrn": [whole]}
    third, readme, page = (tmp_path / name for name in ("third", "README.md", "claims.md"))
    readme.write_text("# No table\n")
    words = ["--take", there, "--records", third, "--readme", readme, "--details", page]
    assert claims.main(["table", "--write", *map(str, words)]) == 0
    assert (third / path.name).exists()


@pytest.fixture
def place(tmp_path):
    for name in ("README.md", "claims.md"):
        (tmp_path / name).write_text(f"# Claims\n\n{claim_page.BEGIN}\n{claim_page.END}\n\nThe end.\n")
    return tmp_path, [
        "table",
        "--readme",
        tmp_path / "README.md",
        "--records",
        tmp_path / "records",
        "--details",
        tmp_path / "claims.md",
    ]


def test_recorded_rendered_checked(place, capsys):
    folder, words = place
    record = record_of("difference", ["base", "no_lrn"], THREE)
    record["data"][0]["description"] = "folder a|b"
    write_record(record, folder / "records")
    assert claims.main([*words, "--check"]) == 1
    assert claims.main([*words, "--write"]) == 0 and claims.main([*words, "--check"]) == 0
    text, page = (folder / "README.md").read_text(), (folder / "claims.md").read_text()
    assert all(written.startswith("# Claims\n") and written.endswith("\n\nThe end.\n") for written in (text, page))
    rows = [row for row in page.splitlines() if row.startswith("| `")]
    assert len(rows) == len(CLAIMS) + len(ELSEWHERE)
    assert sum(row.endswith("| not run |") for row in rows) == len(rows) - 1
    (row,) = (row for row in rows if row.startswith("| `lrn`"))
    told = "no lrn minus base: +2.00 points (-0.48 to +4.48) (on folder a\\|b)"
    assert row.endswith(f"| 1.4 / 1.2 points | {told} | 3 | no verdict |")
    short = [row for row in text.splitlines() if row.startswith("| `")]
    assert [row.split("`")[1] for row in short] == list(claim_page.MAIN)
    assert set(short) < set(rows)
    assert [line for line in page.splitlines() if line.startswith("## ")] == [
        f"## {entry.id}" for entry in (*CLAIMS, *ELSEWHERE)
    ]
    assert "**folder a|b; `mini`, 12 epochs, CPU, 1 thread, 2026-11-26**\n\n- no lrn +2.00 ± 1.00 / +1.50" in page
    (picture,) = (folder / "records").glob("*.png")
    assert f"](records/{picture.name})" in page and "Command: `python -m alexnet_mp.claims run x`" in page
    (folder / "claims.md").write_text(page.replace("+2.00 ± 1.00", "+2.50 ± 1.00"))
    assert claims.main([*words, "--check"]) == 1 and claims.main([*words, "--write"]) == 0
    assert (folder / "claims.md").read_text() == page
    (folder / "README.md").write_text(text.replace("+2.00 points", "+2.50 points"))
    capsys.readouterr()
    assert claims.main([*words, "--check"]) == 1 and "differs from the records" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["README.md", "claims.md"])
def test_a_page_without_markers_is_left_alone(place, name):
    folder, words = place
    for text, status in (
        ("# No place\n", 0),
        (f"{claim_page.END}\n{claim_page.BEGIN}\n", 1),
        (f"{claim_page.BEGIN}\n", 1),
    ):
        (folder / name).write_text(text)
        assert claims.main([*words, "--write"]) == status == claims.main([*words, "--check"])
        assert (folder / name).read_text() == text


def test_a_page_of_details_that_is_not_there_is_made(place):
    folder, words = place
    (folder / "claims.md").unlink()
    assert claims.main([*words, "--check"]) == 1 and not (folder / "claims.md").exists()
    assert claims.main([*words, "--write"]) == 0 == claims.main([*words, "--check"])
    assert (folder / "claims.md").read_text().startswith(f"{claim_page.BEGIN}\n| claim |")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_the_tables_are_printed_unless_they_are_to_be_written(place, capsys):
    folder, words = place
    write_record(record_of("difference", ["base", "no_lrn"], THREE), folder / "records")
    before = contents(folder)
    assert claims.main(words) == 0 and contents(folder) == before
    printed, errors = capsys.readouterr()
    assert errors == ""
    assert claims.main(["table", "--records", folder / "elsewhere"]) == 0
    assert "elsewhere: no such directory, so no claim was run" in capsys.readouterr().err
    assert claims.main([*words, "--write"]) == 0
    for name in before:
        made = (folder / name).read_bytes().decode().partition(claim_page.BEGIN)[2].partition(claim_page.END)[0]
        assert len(made) > 1000 and made.replace("](records/", "](").strip() in printed.replace(
            f"]({os.path.relpath(folder / 'records', claim_page.DETAILS.parent)}/", "]("
        )


def test_another_folder_of_records_never_becomes_the_checkouts_tables(place):
    folder, words = place
    for left_out in ("--readme", "--details", None):
        some = [word for at, word in enumerate(words) if left_out not in (word, words[at - 1])]
        if left_out:
            with pytest.raises(UserError, match=f"^--records {folder / 'records'}: .*name others with --readme FILE"):
                claims.main([*some, "--write"])
        assert claims.main(some) == 0


@every("failing", ["README.md.partial", "claims.md.partial"])
def test_both_pages_are_written_or_neither(place, monkeypatch, failing):
    folder, words = place
    before, function = contents(folder), durable_files.write

    def fails(path, parts):
        if str(path).endswith(failing):
            function(path, [b"half"])
            raise OSError(28, "No space left on device", str(path))
        return function(path, parts)

    monkeypatch.setattr(durable_files, "write", fails)
    with pytest.raises(UserError, match=f"cannot write .*{failing}: No space left on device; nothing was written"):
        claims.main([*words, "--write"])
    assert contents(folder) == before


@pytest.mark.process
def test_pages_are_utf_8_in_a_locale_that_knows_ascii_alone(place):
    folder, words = place
    for name in contents(folder):
        (folder / name).write_text(f"Zoë ± 1\n{claim_page.BEGIN}\n{claim_page.END}\n", encoding="utf-8")
    (folder / "records").mkdir()
    plain = {**os.environ, "PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    code = (
        "import sys; from alexnet_mp import claims; from alexnet_mp.system.errors import run_command; "
        "run_command(lambda: claims.main([*sys.argv[1:], '--write']) or claims.main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, env=plain)
    assert done.returncode == 0 and done.stdout and not done.stderr, done.stderr.decode(errors="replace")
    for content in contents(folder).values():
        assert content.decode().startswith("Zoë ± 1\n") and len(content) > 1000
    (folder / "README.md").write_bytes("Zoë".encode("latin-1"))
    with pytest.raises(UserError, match="README.md: it is not UTF-8 at byte 2"):
        claims.main([*words, "--write"])


def test_the_readmes_claims_are_the_papers_main_ones():
    """Few enough to be read, in the paper's order, at least one of every section that says what matters."""
    sections = {claim.id: claim.section for claim in CLAIMS}
    assert len(claim_page.MAIN) == len(set(claim_page.MAIN)) <= 15
    shown = [sections[id] for id in claim_page.MAIN]
    for section in ("3.1", "3.2", "3.3", "3.4", "4.1", "4.2", "6 (table 1)", "6 (table 2)", "6.1", "1, 7"):
        assert section in shown
    numbers = [float(section.split()[0]) for section in shown[:-1]]
    assert numbers == sorted(numbers)


@pytest.mark.run
def test_the_pages_say_what_the_records_say(capsys):
    assert claims.main(["table", "--check"]) == 0
    assert capsys.readouterr().out.count("is what the records say") == 2


# --- the forecast


def planned(preset, tmp_path, *words, kind="difference"):
    found = options(*words, "--out", str(tmp_path))
    return make_run(KINDS[kind], "base", preset, PRESETS[preset](), "builtin", found)


@pytest.fixture
def thousand(monkeypatch):
    """A set of 1,000 classes, 1,280 training and 500 validation images."""
    dataset = SimpleNamespace(classes=range(1000), splits={"train": range(1280), "val": range(500)}, fingerprint="f")
    monkeypatch.setattr(plan, "opened", lambda data, stored_size, *splits: dataset)


def test_operations_of_the_papers_network(tmp_path, thousand):
    # conv1 to conv5 of 55, 27, 13, 13, 13 pixels a side, each tower's kernels seeing what they read; then fc6 to fc8.
    convolutions = 55**2 * 96 * 363 + 27**2 * 256 * 1200 + 13**2 * (384 * 2304 + 384 * 1728 + 256 * 1728)
    assert (
        operations(planned("paper", tmp_path)) == convolutions + 9216 * 4096 + 4096 * 4096 + 4096 * 1000 == 724_406_816
    )


def test_work_of_a_run(tmp_path, thousand):
    run = planned("paper", tmp_path, "--steps", "20")  # ten steps an epoch
    one = operations(run)
    assert work_of_steps(run, 0, 20) == one * (3 * 20 * 128 + 2 * 500)  # two validations
    assert work_of_steps(run, 10, 20) == one * (3 * 10 * 128 + 500)
    run = planned("cifar18", tmp_path)
    filed = dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, batch_file_size=500))  # 4 + 4 + 3 steps
    assert (steps_per_epoch(run), steps_per_epoch(filed), last_step(filed)) == (10, 11, 140 * 11)
    assert work_of_steps(filed, 0, 22) == operations(filed) * 2 * (3 * 1280 + 500)
    # the centre is one of ten
    for kind, images in (("rates", 10 * 500), ("difference", 10 * 500 + 1280), ("ensemble", 20 * 500 + 1280)):
        assert work_of_tests(planned("paper", tmp_path, kind=kind)) == one * images


def test_a_damaged_record_is_left_alone(tmp_path, capsys):
    for name, content in (
        ("short", '{"format": 1, "claim": "lrn", "kind": "difference", "runs": []}'),
        ("garbage", "{"),
        ("deep", "[" * 100_000),
        ("list", "[]"),
        ("bytes", "\udcff"),
        ("kind", json.dumps(record_of("difference", ["base"], THREE) | {"kind": "unknown"})),
        ("kinds", json.dumps(record_of("difference", ["base"], THREE) | {"kind": []})),
        ("count", json.dumps(record_of("difference", ["base"], THREE) | {"runs": 5})),
        ("run", json.dumps(record_of("difference", ["base"], THREE) | {"runs": [{"seed": 0}]})),
    ):
        (tmp_path / f"{name}.json").write_text(content, errors="surrogateescape")
    assert claims.main(["list", "--records", str(tmp_path)]) == 0
    assert "not run here" in capsys.readouterr().out
