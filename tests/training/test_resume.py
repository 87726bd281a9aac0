"""A run that was cut and went on equals the one that was not, bit for bit, wherever it was cut and whatever goes on
with it."""

import gc
import json
import weakref

import pytest
from tiny_run import (
    DATED,
    EPOCHS,
    LAST,
    PER_EPOCH,
    PLATEAU,
    SOURCE2012,
    assert_same_end,
    lines,
    make_quick,
    newest,
    resume,
    run,
    see_steps,
    signalled_after,
    signalled_in_test,
    state,
)

from alexnet_mp.data.pipeline_dali import available
from alexnet_mp.runs.checkpoint_writer import Saver
from alexnet_mp.training import run as training_run
from alexnet_mp.training.trainer import Trainer

pytestmark = [pytest.mark.run, pytest.mark.usefixtures("one_thread", "quick")]
needs_dali = pytest.mark.skipif(not available(), reason="DALI is not installed")
RECIPES = {"mini": [], "dated": DATED, "plateau": PLATEAU, "source2012": SOURCE2012}
FILES = ["--set", "batch_file_size=11"]  # 9 + 2, 9 + 2 and 2 of 24 images


ONE_STEP = Trainer.one_step


@pytest.fixture(scope="module")
def wholes(data, tmp_path_factory):
    """whole(recipe) -> (the uninterrupted run of one of `RECIPES`, what its steps read), made when it is first asked
    for."""
    runs = {}

    def whole(recipe):
        if recipe not in runs:
            with pytest.MonkeyPatch.context() as patch:
                make_quick(patch)
                patch.setattr(Trainer, "one_step", ONE_STEP)  # the test that asks first sees no step of this run
                reads = see_steps(patch)
                runs[recipe] = run(data, tmp_path_factory.mktemp(recipe) / "whole", *RECIPES[recipe]), reads
        return runs[recipe]

    return whole


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_whole_run_has_what_a_resume_could_get_wrong(recipe, wholes):
    whole, reads = wholes(recipe)
    rates = [line["learning_rates"]["fc8.weight"] for line in lines(whole) if line["kind"] == "schedule"]
    noise = [line["colour_noise"] for line in lines(whole) if line["kind"] == "schedule"]
    assert [step for step, *_ in reads] == list(range(1, LAST + 1))
    order = [
        [number for step, epoch, numbers, *_ in reads if epoch == target_epoch for number in numbers]
        for target_epoch in (1, 2)
    ]
    if recipe == "plateau":
        assert [line["epoch"] for line in lines(whole) if line["kind"] == "schedule"] == [1, 3]
    assert sorted(order[0]) == sorted(order[1]) == list(range(24)) and (order[0] == order[1]) == (
        recipe == "source2012"
    )
    assert len(set(line["loss"] for line in lines(whole) if line["kind"] == "train")) == LAST
    changes = {"mini": ([0.002], [0.1]), "plateau": ([1e-6, 1e-7], [0.1, 0.1])}
    assert (rates, noise) == changes.get(
        recipe, ([0.002, pytest.approx(0.0002), pytest.approx(0.0002)], [0.1, 0.3, 0.3])
    )


# --- wherever it is cut


@pytest.mark.parametrize("step", range(1, LAST))
def test_a_cut_after_any_step(step, data, tmp_path, wholes, seen):
    whole, reads = wholes("source2012")
    out = run(data, tmp_path / "run", *SOURCE2012, "--steps", step)
    assert newest(out).name == f"step_{step:08d}" and len(seen) == step
    resume(data, out, *SOURCE2012)
    assert seen == reads
    assert_same_end(out, whole)


@pytest.mark.parametrize("recipe", ["plateau", "source2012"])
def test_a_stop_after_every_single_step(recipe, data, tmp_path, wholes, seen):
    whole, reads = wholes(recipe)
    for step in range(1, LAST + 1):
        resume(data, tmp_path / "run", *RECIPES[recipe], "--steps", step)
    assert seen == reads
    assert_same_end(tmp_path / "run", whole)
    assert len(json.loads((tmp_path / "run" / "run.json").read_text())["resumed"]) == LAST - 1


def test_a_cut_anywhere_in_an_epoch_of_files(data, tmp_path, seen):
    """Each file's minibatches by themselves: an epoch has five of them, the run's validations and its last line say
    so."""
    whole = run(data, tmp_path / "whole", *SOURCE2012, *FILES)
    reads, seen[:] = list(seen), []
    assert [(epoch, len(numbers)) for _, epoch, numbers, *_ in reads] == [
        (epoch, size) for epoch in (1, 2, 3) for size in (9, 2, 9, 2, 2)
    ]
    assert [(line["step"], line["epoch"]) for line in lines(whole) if line["kind"] == "val"] == [
        (5, 1),
        (10, 2),
        (15, 3),
    ]
    assert [line["epoch"] for line in lines(whole) if line["kind"] == "train"] == [1] * 5 + [2] * 5 + [3] * 5
    for step in (2, 5, 9, 12):
        resume(data, tmp_path / "run", *SOURCE2012, *FILES, "--steps", step)
    resume(data, tmp_path / "run", *SOURCE2012, *FILES)
    assert seen == reads
    assert_same_end(tmp_path / "run", whole)


def cut(monkeypatch, where):
    """An interrupt somewhere in the next run."""
    {
        "before the first step": lambda: signalled_after(monkeypatch, Trainer, "__init__", 1),
        "in a step": lambda: signalled_after(monkeypatch, Trainer, "one_step", 2),
        "in the last step of an epoch": lambda: signalled_after(monkeypatch, Trainer, "one_step", PER_EPOCH),
        "at the start of an epoch": lambda: signalled_after(monkeypatch, Trainer, "start_epoch", 2),
        "in a validation": lambda: signalled_in_test(monkeypatch, 1),
        "after a validation": lambda: signalled_after(monkeypatch, Trainer, "validate", 1),
        "in the last validation": lambda: signalled_in_test(monkeypatch, EPOCHS),
        "after the last validation": lambda: signalled_after(monkeypatch, Trainer, "validate", EPOCHS),
        "in the final test": lambda: signalled_in_test(monkeypatch, EPOCHS + 1),
    }[where]()


WHERE = {
    "before the first step": 0,
    "in a step": 2,
    "in the last step of an epoch": PER_EPOCH,
    "at the start of an epoch": PER_EPOCH + 1,
    "in a validation": PER_EPOCH,
    "after a validation": PER_EPOCH,
    "in the last validation": LAST,
    "after the last validation": LAST,
    "in the final test": LAST,
}


@pytest.mark.parametrize(
    "recipe, where",
    [*(("plateau", where) for where in WHERE), ("dated", "at the start of an epoch"), ("dated", "in a validation")],
)
def test_an_interrupt_anywhere(recipe, where, data, tmp_path, wholes, seen, monkeypatch, capsys):
    whole, reads = wholes(recipe)
    with monkeypatch.context() as patch:
        cut(patch, where)
        out = run(data, tmp_path / "run", *RECIPES[recipe])
    output = capsys.readouterr().out
    assert f"stopped as asked after step {WHERE[where]}" in output
    line, command = output.splitlines()[-1], f"the same command with --out {out} --resume auto"
    if WHERE[where] == LAST:
        assert line.startswith(f"all its steps are taken, but it is not tested; {command} tests it, or ")
    else:
        assert line.startswith(f"of {LAST} steps at most; to go on, {command}; to test it as it is, ")
    assert line.endswith(f" -m alexnet_mp.evaluate {out}") and line.count("--resume") == 1
    end_state = state(newest(out))
    assert end_state["step"] == WHERE[where]
    unseen = where in ("in the last step of an epoch", "in a validation", "in the last validation")
    assert end_state["validated"] == (not unseen)
    resume(data, out, *RECIPES[recipe])
    assert ("in the middle of its validation" in capsys.readouterr().out) == unseen
    assert seen == reads
    assert_same_end(out, whole)


def test_a_stop_in_the_same_validation_again_and_again(data, tmp_path, wholes, seen, monkeypatch):
    whole, reads = wholes("plateau")
    with monkeypatch.context() as patch:
        signalled_in_test(patch, 1)
        run(data, tmp_path / "run", *PLATEAU)
    for _ in range(2):
        with monkeypatch.context() as patch:
            signalled_in_test(patch, 1)
            resume(data, tmp_path / "run", *PLATEAU)
        assert not state(newest(tmp_path / "run"))["validated"]
    resume(data, tmp_path / "run", *PLATEAU, "--steps", PER_EPOCH)  # the validation alone
    assert state(newest(tmp_path / "run"))["validated"]
    resume(data, tmp_path / "run", *PLATEAU)
    assert seen == reads
    assert_same_end(tmp_path / "run", whole)


@pytest.mark.parametrize("recipe", ["plateau", "dated"])
def test_more_epochs_after_the_end(recipe, data, tmp_path, wholes):
    whole, _ = wholes(recipe)
    out = run(data, tmp_path / "run", *RECIPES[recipe], "--epochs", 2)
    assert [line["kind"] for line in lines(out)].count("test") == 2
    resume(data, out, *RECIPES[recipe])
    assert_same_end(out, whole)


def test_plateaus_that_end_a_run(data, tmp_path, monkeypatch):
    """Rates too small to change an answer: a drop after every second epoch, then the end; cut before and after each."""
    flags = [
        *PLATEAU,
        "--epochs",
        20,
        "--set",
        "plateau_drops=2",
        "--set",
        "learning_rate=1e-9",
        "--set",
        "bias_learning_rate=1e-9",
    ]
    whole = run(data, tmp_path / "whole", *flags)
    rates = [line["learning_rates"]["fc8.weight"] for line in lines(whole) if line["kind"] == "schedule"]
    assert rates == pytest.approx([1e-9, 1e-10, 1e-11], rel=1e-9, abs=0) and newest(whole).name == "step_00000018"
    for name, cuts in (("a", (3, 5, 6, 7, 9, 12, 17, 18)), ("b", (8, 13))):
        for step in cuts:
            resume(data, tmp_path / name, *flags, "--steps", step)
        resume(data, tmp_path / name, *flags)
        assert_same_end(tmp_path / name, whole)
        resume(data, tmp_path / name, *flags)  # it has ended: nothing is trained any more
        assert_same_end(tmp_path / name, whole)


# --- whatever goes on with it

PIPELINES = [["torch", 0], ["torch", 2], ["raw", 0], pytest.param(["dali", 0], marks=needs_dali)]


@pytest.mark.process
@pytest.mark.parametrize("pipeline", PIPELINES, ids=lambda pair: f"{pair[0]}, {pair[1]} workers")
def test_every_pipeline_cut_in_the_middle_of_an_epoch(pipeline, data, tmp_path, wholes, seen):
    whole, reads = wholes("source2012")
    reader = ["--pipeline", pipeline[0], "--workers", pipeline[1]]
    run(data, tmp_path / "run", *SOURCE2012, *reader, "--steps", 4)
    resume(data, tmp_path / "run", *SOURCE2012, *reader)
    assert seen == reads
    assert_same_end(tmp_path / "run", whole, but=["made_by"])


@pytest.mark.process
@needs_dali
def test_another_pipeline_and_other_workers_at_every_resume(data, tmp_path, wholes, seen, capsys):
    whole, reads = wholes("dated")
    for step, pipeline, workers in ((2, "raw", 1), (3, "torch", 2), (5, "dali", 1), (8, "torch", 0), (LAST, "raw", 0)):
        resume(data, tmp_path / "run", *DATED, "--pipeline", pipeline, "--workers", workers, "--steps", step)
    assert "no longer bit for bit" not in capsys.readouterr().out  # on a CPU all pipelines give the same
    assert seen == reads
    assert_same_end(tmp_path / "run", whole, but=["made_by"])


@pytest.mark.parametrize(
    "flags",
    [
        ["--gpus", "cpu,cpu"],
        ["--set", "towers=1"],
        ["--kernels", "reference"],
        ["--set", "learning_rate=0", "--set", "bias_learning_rate=0"],
    ],
    ids=["two entries", "one tower", "reference kernels", "all frozen"],
)
def test_other_networks(flags, data, tmp_path, seen):
    whole = run(data, tmp_path / "whole", *flags)
    reads = seen.copy()
    seen.clear()
    for step in (2, PER_EPOCH, LAST):
        resume(data, tmp_path / "run", *flags, "--steps", step)
    assert seen == reads
    assert_same_end(tmp_path / "run", whole)


def test_many_saves_change_nothing(data, tmp_path, wholes, monkeypatch):
    """What is copied for a checkpoint isn't changed by the next step, nor the other way round;
    and any of them can be gone on from."""
    whole, _ = wholes("plateau")
    start = Saver.start
    # else a slow disk skips one
    monkeypatch.setattr(Saver, "start", lambda self, content: (start(self, content), self.wait()))
    out = run(data, tmp_path / "run", *PLATEAU, "--checkpoint-every", 1, "--keep", 100)
    assert_same_end(out, whole)
    assert [path.name for path in sorted((out / "checkpoints").iterdir())] == [
        f"step_{step:08d}" for step in range(1, LAST + 1)
    ]
    for step in (1, 3, 7):
        run(data, tmp_path / f"from {step}", *PLATEAU, "--resume", out / "checkpoints" / f"step_{step:08d}")
        assert_same_end(tmp_path / f"from {step}", whole)


def test_a_resume_of_a_finished_run_changes_nothing(data, tmp_path, wholes):
    whole, _ = wholes("dated")
    out = run(data, tmp_path / "run", *DATED)
    for _ in range(2):
        resume(data, out, *DATED)
        assert_same_end(out, whole)


def test_an_error_in_a_validation_costs_no_step(data, tmp_path, wholes, seen, monkeypatch):
    whole, reads = wholes("plateau")

    def fail():
        raise RuntimeError("a cable was pulled")

    with monkeypatch.context() as patch:
        signalled_in_test(patch, 1, then=fail)
        with pytest.raises(RuntimeError, match="a cable"):
            run(data, tmp_path / "run", *PLATEAU)
    assert (state(newest(tmp_path / "run"))["step"], state(newest(tmp_path / "run"))["validated"]) == (PER_EPOCH, False)
    resume(data, tmp_path / "run", *PLATEAU)
    assert seen == reads
    assert_same_end(tmp_path / "run", whole)


def test_what_a_run_goes_on_from_or_begins_with_is_out_of_memory_before_its_first_step(data, tmp_path, monkeypatch):
    """Of the paper's network a checkpoint is half a gigabyte."""
    first, alive = run(data, tmp_path / "first", "--steps", 2), []
    resolve, train = training_run.resolve, Trainer.train

    def watched(*arguments):
        plan = resolve(*arguments)
        tensors = plan.weights or plan.point.checkpoint.weights | plan.point.checkpoint.velocity
        alive.extend(map(weakref.ref, tensors.values()))
        return plan

    def begin(self, interrupted):
        gc.collect()
        assert alive and not any(reference() is not None for reference in alive)
        train(self, interrupted)

    monkeypatch.setattr(training_run, "resolve", watched)
    monkeypatch.setattr(Trainer, "train", begin)
    resume(data, first, "--steps", 3)
    run(data, tmp_path / "branch", "--resume", first, "--steps", 4)
    run(data, tmp_path / "second", "--init", first, "--steps", 1)
