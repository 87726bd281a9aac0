"""A process a tower, asked for wrongly: one line of all processes, exit code 2, and nothing is written."""

import apart
import pytest
from alexnet_mp.kernels import dispatch
from inner_cases import every
from tiny_run import TINY, make_quick, run

from alexnet_mp.system.errors import UserError
from alexnet_mp.training import self_check

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("one_thread", "quick")]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        return run(data, tmp_path_factory.mktemp("whole") / "run")


WRONG = {
    "one tower": (
        [
            "--set",
            "towers=1",
            "--set",
            'layers=[{"name": "fc8", "kind": "fc", "maps": null, "reads": "image", "then": [], "towers": "first"}]',
        ],
        "--towers apart: the recipe mini has 1 tower",
    ),
    "no such GPU": (
        ["--gpus", "0,1"],
        "--gpus 0,1: GPU 0 is not there; no CUDA device was found here; --gpus cpu would",
    ),
    "no such data": (["--data", "/nowhere"], "/nowhere"),
    "a profile": (["--profile"], "--profile: not yet with --towers apart"),
    "graphs": (["--graphs", "on"], "--graphs on: its tower must be on a CUDA device, and it is on cpu; --graphs auto"),
    "an option that nobody knows": (["--tower", "apart"], "unrecognized arguments: --tower apart"),
    "nothing to go on from": (["--resume", "/nowhere"], "--resume '/nowhere': no such directory"),
    "nothing to begin with": (["--init", "/nowhere"], "--init /nowhere"),
}


@every("case", WRONG)
def test_wrong_use_is_one_line_of_all(case, data, tmp_path):
    more, words = WRONG[case]
    line = apart.ends(data, tmp_path / "run", *more, before=lambda: None)
    assert line.startswith("error: ") and words in line and not (tmp_path / "run").exists()


def test_a_directory_that_is_there_already(data, tmp_path, whole):
    assert "is there already" in apart.ends(data, whole, before=lambda: None)


APART, ONE_TOWER = ["--towers", "apart"], ["--set", "towers=1"]
UPDATED_WITHIN = [*ONE_TOWER, "--set", "fc_batch_size=4"]
DIFFERENT = {  # (of rank 0, of rank 1, words)
    "seed": (APART, [*APART, "--seed", "1"], "differ in seed: 0 in rank 0, 1 in rank 1"),
    "steps": (APART, [*APART, "--steps", "3"], "differ in --steps: None in rank 0, 3 in rank 1"),
    "overlap": (APART, [*APART, "--overlap", "off"], "differ in --overlap: None in rank 0, off in rank 1"),
    "data": (APART, [*APART, "--data", "builtin"], "differ in the data's fingerprint"),
    # what a recipe doesn't store
    "a field in rank 0": (UPDATED_WITHIN, ONE_TOWER, "differ in fc_batch_size: 4 in rank 0, None in rank 1"),
    "a field in rank 1": (ONE_TOWER, UPDATED_WITHIN, "differ in fc_batch_size: None in rank 0, 4 in rank 1"),
    "apart in rank 0": (APART, [], "differ in --towers: apart in rank 0, together in rank 1"),
    "apart in rank 1": ([], APART, "differ in --towers: together in rank 0, apart in rank 1"),
}


@pytest.mark.slow
@every("case", DIFFERENT)
def test_processes_that_were_started_differently_are_refused(case, data, tmp_path):
    *flags, words = DIFFERENT[case]
    shared = [*TINY, "--data", data, "--out", tmp_path / "run"]
    processes = apart.begin(*(apart.training(*shared, *of_rank) for of_rank in flags))
    assert apart.end(processes) == [2, 2]
    (line,) = apart.said(processes)
    assert words in line and line.endswith("all have to be started alike") and not (tmp_path / "run").exists()


def another_commit(patch):
    patch.setattr("alexnet_mp.training.plan.source_commit", lambda: "fedcba9")


def a_kernel_that_fails(patch):
    """The self-check leaves it out, here alone."""
    original = self_check.before_run

    def before_run(*what, **how):
        result = original(*what, **how)
        dispatch.leave_out({("lrn_max_pool", "cpu", "cpu")})
        return result

    patch.setattr(self_check, "before_run", before_run)


@every(
    "change, words",
    [
        (another_commit, "differ in the code"),
        (a_kernel_that_fails, "differ in the kernels: cpu in rank 0, cpu (lrn_max_pool: reference) in rank 1"),
    ],
)
def test_what_computes_otherwise_is_refused(change, words, data, tmp_path):
    if change is a_kernel_that_fails and dispatch.resolve("auto", "cpu") != "cpu":
        pytest.skip("no kernels are built for CPUs")
    assert words in apart.ends(data, tmp_path / "run", before=apart.in_rank(1, change))


@every(
    "count, more, words",
    [
        (
            3,
            ["--towers", "apart"],
            "--towers apart: a process a tower is an even number of them, not 3; torchrun --nproc-",
        ),
        (
            1,
            ["--towers", "apart"],
            "--towers apart: a process a tower is an even number of them, not 1; torchrun --nproc-",
        ),
    ],
)
def test_a_number_of_processes_that_does_not_fit(count, more, words, data, tmp_path):
    command = apart.training(*TINY, *more, "--data", data, "--out", tmp_path / "run")
    processes = apart.begin(*[command] * count)
    assert apart.end(processes) == [2] * count
    (line,) = apart.said(processes)
    assert words in line and not (tmp_path / "run").exists()


def test_without_torchrun(data, tmp_path):
    with pytest.raises(UserError, match="^--towers apart: a process a tower, and torchrun starts them: torchrun --npr"):
        run(data, tmp_path / "run", "--towers", "apart")
