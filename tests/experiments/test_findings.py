"""What the records say, in words and numbers; nothing is trained here."""

from claim_records import THREE, errors, record_of
from inner_cases import every

from alexnet_mp.experiments.findings import findings
from alexnet_mp.experiments.paper_claims import CLAIMS, KINDS


def test_a_record_without_runs_says_nothing():
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


def test_a_difference():
    # Ten views, top-1: +1, +2, +3; top-5: +0.5, +1.5, +2.5. Centre view: +1, +2, +3; +0.5 each.
    (sentence,) = findings(record_of("difference", ["base", "no_lrn"], THREE))
    assert sentence.startswith(
        "no lrn +2.00 ± 1.00 / +1.50 ± 1.00 points against base's 21.00 / 4.00 % (ten views), n = 3, "
        "p = 0.25 by sign flips, the least there can be"
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
    difference, divergence = findings(record_of("difference", ["base", "no_lrn"], runs))
    assert "n = 2" in difference and divergence == "no lrn with seed 2 diverged at step 7"


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
            "moved": {"base": 30, "no_dropout": 12}[arm],
            "drops": [],
        }
        for arm, curve in curves.items()
    }
    _, gap, move, iterations = findings(record_of("dropout", ["base", "no_dropout"], runs))
    assert gap == (
        "validation minus training error, centre view, network in test mode: base 5.00 points (training images "
        "25.00 %), no dropout 25.00 points (training images 5.00 %), no dropout +20.00 points against base, n = 1, "
        "no p"
    )
    assert move == "the loss of no dropout moves at step 12, base's at step 30"
    runs["base", 1], runs["no_dropout", 1] = runs["base", 0] | {"moved": None}, runs["no_dropout", 0] | {"moved": 14}
    sentence = findings(record_of("dropout", ["base", "no_dropout"], runs))[2]
    assert sentence == "the loss of no dropout moves at step 13 ± 1, base's at step 30 and never with 1 seed"
    flat_runs = {key: run | {"moved": None} for key, run in runs.items()}
    assert findings(record_of("dropout", ["base", "no_dropout"], flat_runs))[2] == (
        "the loss of no dropout moves in no run, base's in no run"
    )
    for run in runs.values():
        del run["drops"]  # a record of older code: nobody knows where its rates fell
    assert len(findings(record_of("dropout", ["base", "no_dropout"], runs))) == 3
    assert iterations == (
        "base takes 2.00 times the steps of no dropout to the same training loss (as it is in training, with "
        # step 40 and step 20
        "dropout where there is any), 0.80, the lowest that both curves come to before the rates fall, n = 1"
    )


def test_units_that_saturate_are_told_by_their_steps():
    curves = {
        "base": {"steps": [10, 20, 30, 40], "loss": [1.6, 0.8, 0.4, 0.2]},
        "tanh": {"steps": [10, 20, 30, 40], "loss": [2.0, 1.5, 1.0, 0.8]},
    }
    runs = {
        (arm, 0): {"errors": errors((30.0, 5.0), (29.0, 5.0)), "curve": curve, "drops": []}
        for arm, curve in curves.items()
    }
    steps, difference = findings(record_of("iterations", ["base", "tanh", "sigmoid"], runs))
    assert steps.startswith("tanh takes 2.00 times the steps of base to the same training loss (")
    assert steps.endswith(
        ", 0.80, the lowest that both curves come to before the rates fall, both at the rates of the base, n = 1"
    )
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
        "n = 2, p = 0.5 by sign flips, the least there can be"
    )


def test_errors_on_training_images_and_the_loss_stand_beside_a_difference():
    runs = {
        (arm, seed): {**run, "on_training_images": {"top1_error": 20.0 + seed + 4 * (arm == "no_lrn")}}
        for (arm, seed), run in THREE.items()
    }
    (_, text) = findings(record_of("difference", ["base", "no_lrn"], runs))
    start = (
        "on the training images, centre view, network in test mode: no lrn +4.00 ± 0.00 points against base's 21.00 %"
    )
    assert text == start
    moving_runs = {key: {**run, "moved": 100 + 10 * key[1] + 50 * (key[0] == "no_lrn")} for key, run in runs.items()}
    (_, text) = findings(record_of("difference", ["base", "no_lrn"], moving_runs))
    assert text == f"{start}; the loss of no lrn moves at step 160 ± 10, base's at step 110 ± 10"
    moving_runs["no_lrn", 1]["moved"] = None
    (_, text) = findings(record_of("difference", ["base", "no_lrn"], moving_runs))
    assert text == f"{start}; the loss of no lrn moves at step 160 ± 14 and never with 1 seed, base's at step 110 ± 10"
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
    partner = {("changed" if alone == "base" else "base", 0): {"diverged": 7, "drops": [], "moved": None}}
    for arms, record_runs in ((["base", "changed"], runs | partner), (["base", "changed"], runs), ([alone], runs)):
        texts = findings(record_of(kind, arms, record_runs))
        assert not any("against" in sentence for sentence in texts)
        own = [sentence for sentence in texts if sentence.startswith(alone) or f": {alone} 5.00 points (" in sentence]
        assert len(own) == (kind in ("overfitting", "dropout", "schedule", "moved"))


def test_the_epochs_at_which_rates_fell():
    same_errors = errors((1.0, 1.0), (1.0, 1.0))
    runs = {
        ("dated", 0): {"drops": [4, 8, 10], "errors": same_errors},
        ("plateau", 0): {"drops": [7], "errors": same_errors, "steps": 95},
        ("plateau", 1): {"drops": [], "diverged": 4, "steps": 3},
        ("plateau", 2): {"drops": [], "errors": same_errors},
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
    difference = "no decay +2.50 ± 0.00 points top-1 against base's 10.50 %, n = 2, p = 0.5 by sign flips, the least"
    assert difference in sentence
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
    relu, tanh, ratio, divergence = findings(record | {"runs": record_of("rates", ["relu", "tanh"], runs)["runs"]})
    assert (
        "n = 2, not within 10 epochs with 1 of 3 seeds" in relu
        and "n = 2, " not in ratio
        and divergence == "tanh with seed 2 diverged at step 7"
    )
    assert tanh.endswith("after 13.00 ± 7.07 epochs, n = 2") and ratio == (
        "ratio 6.00, of the logarithms n = 1, no p (without 1 seed of which relu did not come to it)"
    )
    assert "(the best of 1, 3, 10 after 2 epochs): 25 %" in findings(record | {"search_epochs": 2})[0]


def test_when_the_loss_moves():
    same_errors = errors((1.0, 1.0), (1.0, 1.0))
    runs = {("source", seed): {"moved": 20 + seed, "errors": same_errors} for seed in range(3)} | {
        ("literal", seed): {"moved": step, "errors": same_errors} for seed, step in enumerate((120, None, 132))
    }
    source, literal, difference, _ = findings(record_of("moved", ["source", "literal"], runs))
    runs["source", 1]["signal"], runs["source", 2]["signal"] = {"conv1": 2.0, "fc8": 0.01}, {"conv1": 4.0, "fc8": 0.03}
    assert findings(record_of("moved", ["source", "literal"], runs))[0].endswith(
        "n = 3; before training the logits differ from picture to picture by 0.02 (conv1's outputs by 3)"
    )
    assert source == "source: the loss moves at step 20, at step 21, at step 22, n = 3"
    assert literal == "literal: the loss moves at step 120, not within 100 steps, at step 132, n = 3"
    # not moved counts as 100
    assert difference == (
        "literal at least +96 ± 16 steps against source, n = 3; of the logarithms n = 3, p = 0.25 by sign flips, "
        "the least there can be"
    )
    runs["source", 0]["moved"] = None
    # p is of what the verdict rests on, in which the 100 steps of a run that never moved count
    text = "n = 2 (without 1 seed of which source did not come to it); of the logarithms n = 3, p = 0.25 by sign flips"
    assert text in findings(record_of("moved", ["source", "literal"], runs))[2]
    runs["literal", 2] = {"moved": None, "diverged": 60}
    source, literal, difference, _, divergence = findings(record_of("moved", ["source", "literal"], runs))
    assert literal == "literal: the loss moves at step 120, not within 100 steps, n = 2"
    assert divergence == "literal with seed 2 diverged at step 60"


def test_errors_on_more_classes_are_told_beside():
    runs = {(arm, 0): {"errors": errors((30.0, 9.0), (28.0, 8.0))} for arm in ("larger_set", "scratch", "fine_tuned")}
    record = record_of("difference", ["larger_set", "scratch", "fine_tuned"], runs)
    record["arms"][0]["larger"] = True
    difference, *_, larger_set = findings(record)
    assert difference.startswith("fine tuned +0.00 / +0.00 points against scratch's 28.00 / 8.00 %")
    assert larger_set == "on more classes, larger set: 28.00 / 8.00 % ten views, 30.00 / 9.00 % centre view, n = 1"


def test_one_step_is_no_steps():
    same_errors = errors((1.0, 1.0), (1.0, 1.0))
    runs = {
        ("source", 0): {"moved": 20, "errors": same_errors},
        ("literal", 0): {"moved": 21, "errors": same_errors},
        ("literal", 1): {"moved": None, "errors": same_errors, "steps": 1},
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
    plain_average, weighted_average = findings(record_of("ensemble", ["base"], runs, ensembles=[ensemble]))
    assert plain_average == (
        "2 networks averaged plainly: -2.50 / -1.00 points against their mean of 28.50 / 8.00 % (ten views), n = 1, "
        "no p"
    )
    assert "tested on these same images: -3.00 / -1.50 points" in weighted_average


def test_seven_networks_are_compared_with_five():
    def average(*values):
        return {
            "errors": errors(values[0], values[1]),
            "weighted": {"ten views": errors((0, 0), values[2])["ten views"]},
        }

    runs = {("base", seed): {"errors": errors((30.0, 9.0), (28.0, 8.0))} for seed in range(2)}
    ensembles = [
        {
            "members": ["runs/base0"] * 7,
            **average((24.0, 6.0), (23.0, 5.0), (22.0, 4.0)),
            "five": {"members": ["runs/base0"] * 5, **average((26.0, 7.0), (25.0, 6.5), (24.5, 6.25))},
        }
    ] * 2
    plain_average, weighted_average = findings(record_of("ensemble", ["base"], runs, ensembles=ensembles))
    assert plain_average.startswith(
        "7 networks averaged plainly: -2.00 ± 0.00 / -1.50 ± 0.00 points against the average of five of them, "
        "25.00 / 6.50 % (ten views), n = 2, p = 0.5"
    )
    assert "-2.50 ± 0.00 / -2.25 ± 0.00 points against the average of five of them, 24.50 / 6.25 %" in weighted_average


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


def test_the_towers_of_every_seed_are_a_table():
    measures = {"colourfulness": {"holm_p": 0.0005}, "selectivity": {"holm_p": 0.21}, "phase": {"holm_p": None}}
    many_kernels = {"learned": [48, 47], "distance": 0.161, "p": 0.0009, "measures": measures}
    few_kernels = {"learned": [3, 47], "distance": None, "p": None, "measures": {}}
    runs = {
        ("base", seed): {
            "errors": errors((1.0, 1.0), (1.0, 1.0)),
            "chroma": [0.1, 0.8],
            "random_split_p": 0.0001,
            "division": division,
        }
        for seed, division in enumerate((many_kernels, few_kernels))
    }
    record = record_of("towers", ["base"], runs)
    first, second = ([*row.values()] for row in KINDS["towers"].seed_by_seed(record))
    assert first == ["base, 0", "0.16", "0.0009", "0.10 / 0.80 (0.0001)", "0.0005", "0.21", "", "", ""]
    assert second == ["base, 1", "too few kernels", "", "0.10 / 0.80 (0.0001)", "", "", "", "", ""]
    assert findings(record)[0].endswith("the shares of chroma in their energy lie 0.70 ± 0.00 apart, n = 2")
    del runs["base", 0]["division"], runs["base", 1]["division"]
    assert KINDS["towers"].seed_by_seed(record_of("towers", ["base"], runs)) == []
