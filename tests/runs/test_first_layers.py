"""First layers that a run keeps: at which steps, after a resume and in a branch, on a full disk, and hostile files."""

import errno
import json
import os
import shutil

import numpy as np
import pytest
from inner_cases import every
from safetensors.numpy import save
from tiny_run import assert_same_end, newest, resume, run, tensors

from alexnet_mp.runs import first_layers
from alexnet_mp.runs.first_layers import FIRST_LAYER, listing, read
from alexnet_mp.system.errors import UserError

pytestmark = [pytest.mark.run, pytest.mark.usefixtures("one_thread", "quick")]
KERNELS = np.zeros((6, 3, 5, 5), np.float32)


def kept(out):
    return {step: read(path).tobytes() for step, path in listing(out).items()}


def test_what_a_run_keeps(data, tmp_path, monkeypatch, capsys):
    """The initial weights, those after every third step, the last of them the checkpoint's; and nothing else is
    changed. A run that was cut, and goes on, has the same, whatever was there of later steps and half written."""
    plain, whole = run(data, tmp_path / "plain"), run(data, tmp_path / "whole", "--keep-every", 3)
    assert listing(plain) == {} and not (plain / FIRST_LAYER).exists()
    assert_same_end(whole, plain)
    assert list(listing(whole)) == [0, 3, 6, 9] and len(set(kept(whole).values())) == 4
    assert kept(whole)[9] == tensors(newest(whole))["weights"]["conv1.weight"].numpy().tobytes()
    assert np.allclose(read(listing(whole)[0]).std(), 0.02, rtol=0.1)  # init_std

    cut = run(data, tmp_path / "cut", "--keep-every", 3, "--steps", 4)
    assert list(listing(cut)) == [0, 3]
    for name in ("step_00000006.safetensors", "step_00000003.safetensors.partial"):
        (cut / FIRST_LAYER / name).write_bytes(save({"conv1.weight": KERNELS}))
    for name in ("step_7.safetensors", "notes.txt"):
        (cut / FIRST_LAYER / name).write_text("somebody's")
    branch = run(data, tmp_path / "branch", "--resume", cut, "--keep-every", 2)
    assert (
        kept(branch).keys() == {0, 3, 6, 8} and kept(branch).items() >= {s: kept(whole)[s] for s in (0, 3, 6)}.items()
    )
    resume(data, cut, "--keep-every", 3)
    assert kept(cut) == kept(whole) and not list((cut / FIRST_LAYER).glob("*.partial"))
    shutil.rmtree(whole / "checkpoints")
    restart = resume(data, whole, "--steps", 1, "--keep-every", 1)  # from the beginning: nothing is lost, nothing mixed
    assert list(listing(restart)) == [0, 1] and (restart / f"{FIRST_LAYER}-1").is_dir()

    # A full disk ends nothing, unless that is asked for.
    def write(run, step, weights):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"{run}/first")

    monkeypatch.setattr(first_layers, "write", write)
    capsys.readouterr()
    run(data, tmp_path / "on", "--keep-every", 1, "--steps", 2)
    output = "".join(capsys.readouterr())
    assert output.count("WARNING: cannot write the first layer") == output.count("the first layer of step 0") == 1
    with pytest.raises(UserError, match="cannot write the first layer of step 0: .*first: No space left"):
        run(data, tmp_path / "stop", "--keep-every", 1, "--on-save-error", "stop")
    with pytest.raises(UserError, match="--keep-every 0: a number of steps, 1 at least"):
        run(data, tmp_path / "none", "--keep-every", 0)


def edited(change):
    """The bytes of a kept layer with another header."""
    content = save({"conv1.weight": KERNELS})
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header["conv1.weight"])
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


@every(
    "content, problem",
    [
        (b"", "is damaged: 0 bytes"),
        (save({"conv1.weight": KERNELS})[:-1], "is damaged: it has"),
        (b"\x80\x04K\x01.", "is damaged: it is a pickle"),
        (save({"a": KERNELS, "b": KERNELS}), "is damaged: it holds 2 tensors"),
        (save({"conv1.weight": KERNELS[:, :2]}), r"is damaged: 'conv1.weight' is F32 \(6, 2, 5, 5\)"),
        (save({"conv1.weight": KERNELS.astype(np.float64)}), "is damaged: 'conv1.weight' is F64"),
        (save({"conv1.weight": KERNELS[:0]}), "is damaged"),
        (save({"conv1.weight": KERNELS + np.float32("inf")}), "is damaged: 'conv1.weight' has values that are not"),
        (edited(lambda entry: entry.update(shape=[1 << 40, 3, 5, 5])), "is damaged: the offsets"),
        (edited(lambda entry: entry.update(shape=[-6, 3, -5, 5])), "is damaged: the shape"),
        ((1 << 60).to_bytes(8, "little") + b"{}", "is damaged: its header would have"),
        ((20000).to_bytes(8, "little") + 20000 * b"[", "is damaged"),
        (None, "No such file"),
        ("folder", "not a regular file"),
        ("link", "link"),
    ],
)
def test_what_is_no_first_layer_is_said_in_one_line(content, problem, tmp_path):
    path = tmp_path / "step_00000003.safetensors"
    if content == "folder":
        path.mkdir()
    elif content == "link":
        path.symlink_to(tmp_path / "elsewhere")
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=problem) as error:
        read(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
