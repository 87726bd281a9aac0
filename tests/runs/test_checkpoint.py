"""A run's checkpoints through failing disks and kills at every system call: whole or not at all, and the old ones
stay."""

import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from disk import (
    Dying,
    below_files,
    checkpoint_of,
    failing,
    forked,
    holds_what_it_should,
    kill_saves,
    killed,
    names,
    put_all,
)
from faulty_calls import Faulty, odd_files
from inner_cases import every

from alexnet_mp.runs import checkpoint_format, checkpoints
from alexnet_mp.runs.checkpoints import best, listing, newest, newest_weights, prune, put, recover, set_aside, step_of
from alexnet_mp.system import durable_files
from alexnet_mp.system.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")


def test_what_is_put_is_found_again(tmp_path):
    for step in (9, 100, 20):
        assert put(tmp_path, checkpoint_of(step)) == tmp_path / "checkpoints" / f"step_{step:08d}"
    assert list(listing(tmp_path)) == [9, 20, 100] and newest(tmp_path).name == "step_00000100"
    assert [holds_what_it_should(directory).step for directory in listing(tmp_path).values()] == [9, 20, 100]
    directory, weights = newest_weights(tmp_path)
    assert directory == newest(tmp_path) and weights.keys() == checkpoint_of(100).weights.keys()


def test_a_step_is_put_again(tmp_path):
    """A run that was stopped in a validation goes on, and saves the same step after it."""
    put_all(tmp_path, 3, 6)
    put(tmp_path, checkpoint_of(6, 12.5))
    assert names(tmp_path) == ["step_00000003", "step_00000006"]
    assert holds_what_it_should(newest(tmp_path)).validation.top1_error == 12.5


def test_no_checkpoint_is_said(tmp_path):
    assert listing(tmp_path) == {} and best(tmp_path) is None
    recover(tmp_path)
    for _ in range(2):
        for look in (newest, newest_weights):
            with pytest.raises(UserError, match="no checkpoint"):
                look(tmp_path)
        (tmp_path / "checkpoints").mkdir(exist_ok=True)


@every(
    "name, step",
    [
        ("step_00000005", 5),
        ("step_123456789", 123456789),
        ("step_5", None),
        ("step_000000005", None),
        ("step_0000000x", None),
        ("step_00000005.old", None),
        (".partial_00000005", None),
        (".replaced_00000005", None),
        ("damaged_step_00000005", None),
        ("step_٠٠٠٠٠٠٠٥", None),
        ("step_00000005\n", None),
    ],
)
def test_one_name_a_step(name, step):
    assert step_of(f"a/{name}") == step


def test_the_best_is_the_earliest_of_equals(tmp_path):
    put_all(tmp_path, 1, 2, 3, 4, 5, top1_errors=[None, 30.0, 20.0, 20.0])
    step, state = best(tmp_path)
    assert step == 3 and state.validation.top1_error == 20.0


@every("keep, left", [(1, [3, 6]), (2, [3, 5, 6]), (9, [1, 2, 3, 4, 5, 6])])
def test_the_newest_and_the_best_stay(keep, left, tmp_path):
    put_all(tmp_path, 1, 2, 3, 4, 5, 6, top1_errors=[40.0, None, 20.0, 30.0, 20.0])
    assert prune(tmp_path, keep) == sorted({1, 2, 3, 4, 5, 6} - set(left))
    assert list(listing(tmp_path)) == left and len(names(tmp_path)) == len(left)


def test_what_cannot_be_read_is_neither_counted_nor_removed(tmp_path):
    put_all(tmp_path, 1, 2, 3, 4, 5)
    for step, name in ((2, "state.json"), (5, "manifest.json")):
        (listing(tmp_path)[step] / name).write_bytes(b"{}")
    shutil.copytree(newest(tmp_path), tmp_path / "checkpoints" / "damaged_step_00000007")
    assert prune(tmp_path, 1) == [1, 3] and list(listing(tmp_path)) == [2, 4, 5]
    assert "damaged_step_00000007" in names(tmp_path)


def test_a_damaged_one_is_set_aside_and_its_step_is_free(tmp_path):
    put_all(tmp_path, 1, 2)
    for content in (b"first", b"second"):  # damaged twice: the later takes the name
        (newest(tmp_path) / "state.json").write_bytes(content)
        place = set_aside(newest(tmp_path))
        assert place.name == "damaged_step_00000002" and (place / "state.json").read_bytes() == content
        assert newest(tmp_path).name == "step_00000001"
        put(tmp_path, checkpoint_of(2))
    assert holds_what_it_should(newest(tmp_path)).step == 2


# --- faults at every system call


def leftovers(run):
    """What kills leave: a half-written one, one that has its successor, and one that waits for its successor in
    vain."""
    put_all(run, 1, 2, 4)
    parent = run / checkpoints.CHECKPOINTS
    shutil.copytree(parent / "step_00000002", parent / ".partial_00000003")
    (parent / ".partial_00000003" / "manifest.json").unlink()
    shutil.copytree(parent / "step_00000002", parent / ".replaced_00000002")
    (parent / "step_00000004").rename(parent / ".replaced_00000004")


ACTIONS = {  # name: (what is there, what is done, the steps that must be there afterwards, those that may be)
    "first put": (lambda run: run.mkdir(), lambda run: put(run, checkpoint_of(1)), [], [1]),
    "put": (lambda run: put_all(run, 1, 2), lambda run: put(run, checkpoint_of(3)), [1, 2], [3]),
    "put again": (lambda run: put_all(run, 1, 3), lambda run: put(run, checkpoint_of(3, 12.5)), [1, 3], []),
    "prune": (lambda run: put_all(run, 1, 2, 3, 4, top1_errors=[None, 9.0]), lambda run: prune(run, 1), [2, 4], [1, 3]),
    "recover": (leftovers, recover, [1, 2, 4], []),
}


@pytest.fixture(scope="module")
def memory():
    """A directory in memory where there is one: thousands of syncs of a real disk take minutes."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as directory:
        yield Path(directory)


@pytest.fixture(scope="module")
def actions(memory):
    """{name: (a new directory as it is before an action, the action, must be, may be, the system calls that it
    makes)}."""
    return {name: counted_action(memory / name, *parts) for name, parts in ACTIONS.items()}


def counted_action(root, prepare, act, must, may):
    count = 0
    root.mkdir()
    prepare(root / "before")

    def fresh():
        nonlocal count
        count += 1
        shutil.copytree(root / "before", root / str(count))
        return root / str(count)

    calls = Faulty()
    with below_files(calls):
        act(fresh())
    assert len(calls.calls) > 10
    return fresh, act, must, may, calls.calls


def looked_through(run, must, may):
    """After a recovery every checkpoint is whole, all that have to be there are, and nothing else is."""
    recover(run)
    steps = [holds_what_it_should(directory).step for directory in listing(run).values()]
    assert set(must) <= set(steps) <= {*must, *may}
    assert (
        names(run) == [f"step_{step:08d}" for step in steps] if (run / checkpoints.CHECKPOINTS).exists() else not must
    )
    put(run, checkpoint_of(9))  # and the run can go on
    prune(run, 1)
    assert holds_what_it_should(newest(run)).step == 9 and not [name for name in names(run) if name.startswith(".")]


def changing(calls):
    """The numbers of the calls that change the disk: whoever dies before another one leaves what the last of these
    left."""
    return [at for at, call in enumerate(calls) if call in kill_saves.CHANGING]


# Of the calls every fifth, or every one.
some_or_all = pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "all"])


@pytest.mark.run
@some_or_all
@every("name", ACTIONS)
def test_an_error_at_any_call(step, name, actions):
    fresh, act, must, may, calls = actions[name]
    for at, call in list(enumerate(calls))[::step]:
        run, before = fresh(), len(os.listdir("/proc/self/fd"))
        inodes = {path: path.stat().st_ino for path in run.glob("checkpoints/step_*/*")}
        try:
            with below_files(Faulty(at, failing)):
                act(run)
            failed = False
        except OSError as error:
            assert error.filename.startswith(str(run)), call
            failed = True
        if act not in (recover, ACTIONS["prune"][1]) and (run / checkpoints.CHECKPOINTS).exists():
            debris = [name for name in names(run) if name.startswith(".")]
            assert not debris if failed else set(debris) <= {".replaced_00000003"}, f"{call}, call {at}"
            if failed:  # the old ones are the same files as before
                assert {path: path.stat().st_ino for path in inodes} == inodes, f"{call}, call {at}"
        assert len(os.listdir("/proc/self/fd")) == before
        looked_through(run, must, may)


@pytest.mark.run
@every("name", ACTIONS)
def test_a_disk_that_does_not_come_back_until_the_next_start(name, actions):
    fresh, act, must, may, calls = actions[name]
    for at in changing(calls):
        run = fresh()
        try:
            with below_files(Dying(at, failing)):
                act(run)
        except OSError:
            pass
        looked_through(run, must, may)


@pytest.mark.process
@some_or_all
@every("name", ACTIONS)
def test_a_kill_at_any_call(step, name, actions):
    fresh, act, must, may, calls = actions[name]
    for at in changing(calls)[::step]:
        run = fresh()

        def work(run=run, at=at):
            durable_files.os = Faulty(at, killed)
            act(run)

        assert os.WTERMSIG(os.waitpid(forked(work), 0)[1]) == signal.SIGKILL
        looked_through(run, must, may)


def test_what_a_reader_sees_while_one_is_put_and_old_ones_are_removed(tmp_path):
    """Between any two system calls all that is listed is whole, and nothing that was there is missing."""
    put_all(tmp_path, 1, 2)
    listings = []

    class Reader(Faulty):
        def __getattr__(self, name):
            if name in kill_saves.CHANGING:
                durable_files.os = os
                listings.append([holds_what_it_should(directory).step for directory in listing(tmp_path).values()])
                durable_files.os = self
            return super().__getattr__(name)

    with below_files(Reader()):
        put(tmp_path, checkpoint_of(3))
        prune(tmp_path, 1)
        put(tmp_path, checkpoint_of(3, 50.0))
    assert [steps for number, steps in enumerate(listings) if steps != listings[number - 1]] == [
        [1, 2],
        [1, 2, 3],
        [2, 3],
        [3],
    ]


def test_weights_that_are_removed_while_they_are_read(tmp_path, monkeypatch):
    """An evaluation beside a run: the newest one is removed, or replaced, after it was found."""
    put_all(tmp_path, 1)
    load, loads = checkpoint_format.load_weights, []

    def load_late(directory):
        if not loads:
            put(tmp_path, checkpoint_of(2))
            prune(tmp_path, 1)
        loads.append(directory.name)
        return load(directory)

    monkeypatch.setattr(checkpoint_format, "load_weights", load_late)
    assert newest_weights(tmp_path)[0].name == "step_00000002" and loads == ["step_00000001", "step_00000002"]
    (newest(tmp_path) / "weights.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="0 of .* bytes are left"):  # and no endless loop where it is simply damaged
        newest_weights(tmp_path)


# --- hostile directories


def test_what_is_no_checkpoint_is_left_alone(tmp_path):
    put_all(tmp_path, 1, 2)
    parent, before = tmp_path / "checkpoints", None
    for number, path in enumerate(odd_files(tmp_path)[:5]):
        path.rename(parent / f"step_{number + 5:08d}")
    shutil.copytree(parent / "step_00000001", parent / "notes")
    before = names(tmp_path)
    recover(tmp_path)
    assert best(tmp_path) is None and prune(tmp_path, 1) == [1]
    assert names(tmp_path) == [name for name in before if name != "step_00000001"]
    with pytest.raises(UserError, match="step_00000009"):
        newest_weights(tmp_path)
    put(tmp_path, checkpoint_of(7))  # in the place of an empty directory
    assert holds_what_it_should(parent / "step_00000007").step == 7


@every("prefix", [".partial_", ".replaced_"])
def test_remains_that_are_links_lose_only_the_link(prefix, tmp_path):
    put_all(tmp_path / "run", 1)
    put_all(tmp_path / "other", 2)
    target = newest(tmp_path / "other")
    for name in ("00000001", "00000003", "x"):
        (tmp_path / "run" / "checkpoints" / f"{prefix}{name}").symlink_to(target)
    recover(tmp_path / "run")
    put(tmp_path / "run", checkpoint_of(3))
    assert holds_what_it_should(target).step == 2 and holds_what_it_should(listing(tmp_path / "run")[3]).step == 3
    assert not [name for name in names(tmp_path / "run") if name.startswith(".")]


def test_checkpoints_on_another_disk(tmp_path):
    """`checkpoints` may be a link to a directory; one that leads nowhere, or a file, is an error with its name."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    place = tmp_path / "run" / "checkpoints"
    place.symlink_to(tmp_path / "elsewhere")
    put_all(tmp_path / "run", 1, 2)
    assert prune(tmp_path / "run", 1) == [1] and os.listdir(tmp_path / "elsewhere") == ["step_00000002"]
    place.unlink()
    place.symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError) as error:
        put(tmp_path / "run", checkpoint_of(3))
    assert error.value.filename.startswith(str(place)) and listing(tmp_path / "run") == {}
    place.unlink()
    place.write_bytes(b"a file")
    recover(tmp_path / "run")
    with pytest.raises(NotADirectoryError):
        put(tmp_path / "run", checkpoint_of(3))
    with pytest.raises(UserError, match="cannot list"):
        listing(tmp_path / "run")
    assert place.read_bytes() == b"a file"


def test_nothing_that_cannot_be_loaded_is_put(tmp_path):
    put_all(tmp_path, 1)
    checkpoint = checkpoint_of(2)
    checkpoint.velocity["fc8.bias"][1] = float("nan")
    with pytest.raises(ValueError, match="fc8.bias has values that are not finite"):
        put(tmp_path, checkpoint)
    assert names(tmp_path) == ["step_00000001"]
