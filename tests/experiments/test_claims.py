"""The list of claims, their arms, what the command refuses, and what a run will take; nothing is trained here."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
from image_folders import make_folder
from inner_cases import every

from alexnet_mp import claims, evaluate
from alexnet_mp.experiments import plan, run_all
from alexnet_mp.experiments.arm_runs import first_gpu, training_options
from alexnet_mp.experiments.claim import BASE, command
from alexnet_mp.experiments.conduct import new_record
from alexnet_mp.experiments.elsewhere import ELSEWHERE
from alexnet_mp.experiments.findings import setting
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
from alexnet_mp.experiments.records import differences
from alexnet_mp.recipes import recipe
from alexnet_mp.recipes.named import PRESETS
from alexnet_mp.recipes.recipe import to_dict
from alexnet_mp.system.errors import UserError
from alexnet_mp.training.schedule import make_schedule

BASES = ("paper", "source2012", "mini", "desk")


def options(*words, claim="lrn", data="builtin"):
    return claims._parser().parse_args(["run", claim, "--data", str(data), "--gpus", "cpu", *words])


def test_every_claim_is_told_whole(capsys, tmp_path):
    assert claims.main(["list", "--records", tmp_path]) == 0
    output = capsys.readouterr().out
    assert len({claim.id for claim in CLAIMS}) == len(CLAIMS) >= 24
    for claim in CLAIMS:
        assert all(
            text in output for text in (f"{claim.id}: {claim.sentence}", claim.paper, claim.source, command(claim))
        )
        claims._parser().parse_args(command(claim).split()[3:])  # it can be typed as it stands
    assert output.count("here   not run here") == len(CLAIMS) + len(ELSEWHERE)
    for other in ELSEWHERE:
        texts = f"{other.id}: {other.sentence}", other.paper, other.source, other.command
        assert all(text in output for text in texts)


def test_the_word_list_is_not_needed(capsys, tmp_path):
    assert claims.main(["list"]) == 0
    output = capsys.readouterr().out
    assert claims.main([]) == 0 and capsys.readouterr().out == output


@pytest.mark.run
@every("base", BASES)
@every("epochs", [[], ["--epochs", "7"]])
def test_the_training_is_given_exactly_the_arms_recipe(base, epochs):
    for claim in CLAIMS:
        for arm in claim.arms:
            arguments = options("--base", base, *epochs)
            arguments.typed = []
            _, expected = arm_recipe(arm, arguments)
            run = SimpleNamespace(recipe=expected, data="builtin", directory="run", init=None, steps=None, level=None)
            training = training_options(run, arguments, 7)
            assert training.recipe is expected and (
                training.settings,
                training.batch_size,
                training.epochs,
                training.seed,
            ) == ((), None, None, None), (claim.id, arm.name)
            assert recipe.override(training.recipe, training.settings) == expected  # as the training makes its own


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
    arguments = options(*words)
    arguments.typed = ["run", "lrn", "--note", "two words"]
    training = training_options(
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
        arguments,
        7,
    )
    always = {
        "data": "DIR",
        "out": "out/base",
        "resume": "auto",
        "keep": 1,
        "command": "python -m alexnet_mp.claims run lrn --note 'two words'",
    }
    assert {name: getattr(training, name) for name in always | expected} == always | expected


@pytest.mark.run
@every("base", BASES)
def test_the_arms_of_a_claim_differ(base):
    for claim in CLAIMS:
        configurations = [(arm_recipe(arm, options("--base", base))[1], arm.init, arm.larger) for arm in claim.arms]
        assert len(set(configurations)) == len(configurations), claim.id
        if claim.id == "longer":  # at a plateau both would end
            assert {recipe.schedule for recipe, *_ in configurations} == {"dated"}


@pytest.mark.run
@every("base", BASES)
def test_the_arms_of_a_claim_have_one_schedule(base):
    for claim in CLAIMS:
        recipes = [arm_recipe(arm, options("--base", base, "--epochs", "20"))[1] for arm in claim.arms]
        assert {each.epochs for each in recipes} == ({20, 40} if claim.id == "longer" else {20})
        if claim.id not in ("schedule", "pretraining", "ensemble7", "longer"):  # fine-tuning has dates of its own
            assert len({tuple(date.epoch for date in each.dates) for each in recipes}) == 1
            assert {each.schedule for each in recipes} == {"dated"}


def test_a_short_run_of_a_plateau_schedule_is_that_of_section_5():
    """Equal rates for all layers, divided by ten three times before the end, and colours shifted all the time."""
    for words in ((), ("--set", "schedule=plateau")):
        _, variant = arm_recipe(BASE, options("--base", "paper" if not words else "mini", *words, "--epochs", "20"))
        schedule = make_schedule(variant)
        rates = [schedule.rates(epoch) for epoch in range(1, 21)]
        assert all(of_epoch.values() and len(set(of_epoch.values())) == 1 for of_epoch in rates)
        assert [1 + epoch for epoch in range(1, 20) if rates[epoch] != rates[epoch - 1]] == [6, 12, 18]
        assert [rates[epoch - 1]["conv1.weight"] for epoch in (1, 6, 12, 18, 20)] == pytest.approx(
            [1e-2, 1e-3, 1e-4, 1e-5, 1e-5]
        )
        assert {schedule.colour_noise(epoch) for epoch in range(1, 21)} == {0.1} and variant.epochs == 20


def test_the_schedule_of_a_short_run_stands_in_its_record():
    settings = []
    for claim, base, epochs in (
        ("lrn", "paper", "20"),
        ("lrn", "paper", None),
        ("lrn", "mini", "20"),
        ("lrn", "paper", "1"),
        ("schedule", "paper", "20"),
    ):
        arguments = options("--base", base, *(["--epochs", epochs] if epochs else []), claim=claim)
        arguments.typed = []
        record = new_record(next(each for each in CLAIMS if each.id == claim), arguments)
        settings.append(setting(record).partition("epoch")[2])
    assert settings[0].startswith("s of the recipe's 90, all rates fall at epochs 6, 12, 18 in place of plateaus, ")
    assert settings[3].startswith(" of the recipe's 90, all rates never fall in place of plateaus, ")
    assert all("fall" not in settings[number] for number in (1, 2, 4))


def test_a_new_field_leaves_the_digests_of_older_recipes_alone():
    """The directory of a run is named by what its recipe has of its own: a field with its default names nothing."""
    recipe = PRESETS["mini"]()
    fields = to_dict(recipe, defaults=False)
    assert not {"batch_file_size", "momentum", "lrn_size"} & fields.keys() and fields["crop_size"] == 96
    assert "weight_decay" not in fields["layers"][0] and fields["layers"][0]["kernel"] == 11
    assert digest_of(recipe) == digest_of(dataclasses.replace(recipe, seed=7, name="other"))
    digests = {
        digest_of(dataclasses.replace(recipe, **change))
        for change in ({}, {"batch_file_size": 10_000}, {"momentum": 0.5}, {"epochs": 90})
    }
    assert len(digests) == 4


@every("base", BASES)
def test_the_papers_overfitting_is_of_crops_and_mirror_images(base):
    """Colours have a sentence and a figure of their own, so they stay; each of the two alone is told beside it."""
    by_id = {claim.id: claim for claim in CLAIMS}
    changes = {}
    for name in ("augmentation", "crops-flips", "crops", "flips"):
        assert by_id[name].kind.word == "overfitting"
        before, after = (arm_recipe(arm, options("--base", base))[1] for arm in by_id[name].arms)
        changes[name] = set(differences(before, after))
    assert changes == {
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
    text = getattr(next(each for each in CLAIMS if each.id == claim), field)
    assert [fact for fact in facts if fact not in text] == []


def test_how_the_test_figure_of_2012_is_made_can_be_typed():
    needs = next(claim for claim in CLAIMS if claim.id == "headline-2012").needs
    arguments = evaluate._parser().parse_args(needs.partition("alexnet_mp.evaluate ")[2].split())
    assert (arguments.split, arguments.submission) == ("test", "FILE")


def test_settings_are_for_every_arm():
    for claim in CLAIMS:
        for arm in claim.arms:
            variant = arm_recipe(arm, options("--base", "mini", "--set", "batch_size=17", "--set", "momentum=0.7"))[1]
            # But where the claim is of the batch: see the next test.
            assert variant.batch_size == (128 if arm.name == "one_gpu_rates" else 17) and variant.momentum == 0.7


def test_what_a_claim_changes_wins_over_a_setting():
    arm = next(claim for claim in CLAIMS if claim.id == "colour").arms[1]
    assert arm_recipe(arm, options("--set", "colour_noise=0.3"))[1].colour_noise == 0


@pytest.mark.run
@every(
    "words, message",
    [
        (
            ["feeding"],
            "feeding has no run of its own; its figure comes from: python benchmarks/record.py --name pipeline",
        ),
        (["lrm"], "no claim is called lrm; they are specialisation, views, .*, owt; all; study"),
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
        (["pretraining", "--larger", "/nowhere"], "--larger /nowhere: no such directory"),
        (["pretraining", "--larger", "builtin", "--data", "builtin"], "it has 16 classes and --data builtin has 16"),
        (["lrn", "--search-epochs", "2"], "--search-epochs 2: lrn looks for no learning rate"),
        (["cifar-relu", "--search-epochs", "-1"], "--search-epochs -1: it must be at least 1"),
        (["lrn", "--set", "seed=7"], "--set seed=7: the arms have names of their own, and their seeds by --seeds K"),
        (["lrn", "--first-seed", "-1"], "--first-seed -1: it must be at least 0"),
        (["lrn", "--set", "name=x"], "--set name=x"),
        (["lrn", "--set", "epochs=12"], "--set epochs=12: --epochs N says it"),
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
    reasons = {claim.id: run_all._unfit(claim, options("--base", "mini", claim="all")) for claim in CLAIMS}
    assert {name for name, reason in reasons.items() if reason} == {
        claim.id for claim in CLAIMS if claim.data in left_out
    }
    if size == 32:
        assert (
            reasons["lrn"] == "which need pictures of 112x112" and reasons["headline-2010"] == "which are of other data"
        )


def planned(preset, tmp_path, *words, kind="difference"):
    arguments = options(*words, "--out", str(tmp_path))
    return make_run(KINDS[kind], "base", preset, PRESETS[preset](), "builtin", arguments)


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
    file_run = dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, batch_file_size=500))  # 4 + 4 + 3 steps
    assert (steps_per_epoch(run), steps_per_epoch(file_run), last_step(file_run)) == (10, 11, 140 * 11)
    assert work_of_steps(file_run, 0, 22) == operations(file_run) * 2 * (3 * 1280 + 500)
    # the centre is one of ten
    for kind, images in (("rates", 10 * 500), ("difference", 10 * 500 + 1280), ("ensemble", 20 * 500 + 1280)):
        assert work_of_tests(planned("paper", tmp_path, kind=kind)) == one * images
