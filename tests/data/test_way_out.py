"""Data that can't be opened: what to type is said, and does it."""

import os
import shlex
import shutil
import sys

import pytest
import torch
from image_folders import make_folder
from inner_cases import every
from PIL import Image
from tiny_run import TINY, run

from alexnet_mp import evaluate, prepare, retrieve, train
from alexnet_mp.data.dataset import open_dataset
from alexnet_mp.recipes.named import PRESETS
from alexnet_mp.system.errors import UserError

MAINS = {"prepare": prepare.main, "train": train.main}


def commands(line):
    """[(command, its arguments)] of what a message says to type."""
    words = shlex.split(line)
    for start in [place for place, word in enumerate(words) if word == "-m"]:
        assert os.path.samefile(shutil.which(words[start - 1]) or words[start - 1], sys.executable)
        end = words.index("&&", start) if "&&" in words[start:] else len(words)
        yield words[start + 1].removeprefix("alexnet_mp."), words[start + 2 : end]


def photographs(root, classes=("a cat", "dog", "owl")):
    """A plain folder of class folders."""
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for index in range(10):
            Image.new("RGB", (60, 50), (40 * index, 80 * number, 9)).save(root / name / f"{index}.png")
    return root


@pytest.mark.run
@every("name, inside", [("my photos", False), ("photos", True), ("photos/", False)])
def test_a_plain_folder_of_class_folders(name, inside, tmp_path, monkeypatch):
    photographs(tmp_path / name)
    monkeypatch.chdir(tmp_path / name if inside else tmp_path)
    with pytest.raises(UserError) as refusal:
        open_dataset("." if inside else name, 48)
    message = str(refusal.value)
    assert "it has no train/ folder; of its 3 class folders (a cat, dog, owl)" in message and "\n" not in message
    line, rest = message.partition("validation: ")[2].split(", then the same command with --data ")
    ((command, arguments),) = commands(line)
    assert command == "prepare" and prepare.main([*arguments, "--workers", "0"]) == 0
    assert len(open_dataset(*shlex.split(rest), 48).splits["val"]) == 3
    assert not (tmp_path / name / "photos-prepared").exists()


def test_a_folder_with_training_images_alone(folder):
    shutil.rmtree(folder / "val")
    with pytest.raises(UserError, match="it has no val/ folder; of its 3 class folders .* -m alexnet_mp.prepare "):
        open_dataset(str(folder), 48)
    with pytest.raises(UserError, match="it has no test/ folder, only train/; images belong in test/<class>/$"):
        open_dataset(str(folder), 48, ("test",))


@every("make", [lambda root: root.mkdir(), lambda root: photographs(root, ("cat",))])
def test_a_folder_of_something_else(make, tmp_path):
    make(tmp_path / "photos")
    with pytest.raises(UserError, match="it has no train/ folder; images belong in train/<class>/$"):
        open_dataset(str(tmp_path / "photos"), 48)


@pytest.mark.run
@every(
    "gpus, options, expected",
    [
        (0, [], []),  # mini reduces them
        (2, [], []),
        (0, ["--recipe", "mini"], []),
        (2, ["--recipe", "mini"], ["--recipe", "mini"]),
        (0, ["--recipe", "cifar18"], ["--recipe", "cifar18"]),
        (0, ["--size", "64"], ["--recipe", "desk"]),
        (2, ["--size", "200"], ["--recipe", "mini"]),
        (2, ["--size", "300"], []),
        (0, ["--size", "8"], None),
        (0, ["--val-fraction", "0"], None),
    ],
)
def test_prepare_ends_with_the_command_that_comes_next(gpus, options, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    source, dest = photographs(tmp_path / "photos"), str(tmp_path / "a set")
    for _ in ("made", "there already"):
        assert prepare.main([str(source), dest, "--workers", "0", *options]) == 0
        output = capsys.readouterr().out
        if expected is None:  # nothing can be trained from it
            assert "alexnet_mp.train" not in output
            continue
        (command, arguments), *others = commands(output.splitlines()[-1])
        assert command == "train" and arguments == ["--data", dest, *expected] and not others
    if expected is not None:
        name = (expected or ["paper" if gpus else "mini"])[-1]
        assert len(open_dataset(dest, PRESETS[name]().stored_size).splits["val"]) == 3


@pytest.mark.usefixtures("quick", "one_thread")
def test_a_run_whose_data_have_moved(tmp_path, data):
    shutil.copytree(data, tmp_path / "before")
    out = run(tmp_path / "before", tmp_path / "run", "--steps", "1")
    (tmp_path / "before").rename(tmp_path / "after")
    prefix = f"{tmp_path / 'before'}, where the data of "
    options = ["--gpus", "cpu", "--workers", "0"]
    for main, words in (
        (evaluate.main, [str(out)]),
        (retrieve.main, ["index", str(out), "--out", str(tmp_path / "index")]),
        (train.main, [*TINY, "--out", str(out), "--resume", "auto"]),
    ):
        with pytest.raises(UserError) as refusal:
            main([*words, *options])
        message = str(refusal.value)
        assert message.startswith(prefix) and "no such directory; the same command with --data DIR reads" in message
        assert "--data /" not in message
    with pytest.raises(UserError, match=f"^--data {tmp_path / 'nowhere'}: no such directory; it takes"):
        evaluate.main([str(out), *options, "--data", str(tmp_path / "nowhere")])  # somebody typed it
    assert evaluate.main([str(out), *options, "--data", str(tmp_path / "after")]) == 0


@pytest.mark.usefixtures("quick", "one_thread")
def test_a_run_in_whose_datas_place_others_are(tmp_path, data):
    shutil.copytree(data, tmp_path / "before")
    out = run(tmp_path / "before", tmp_path / "run", "--steps", "1")
    shutil.rmtree(tmp_path / "before")
    make_folder(tmp_path / "before", 1, 1, classes=("a", "b"))
    with pytest.raises(UserError, match=f"^{tmp_path / 'before'}, where the data of {out} were: its 2 classes are not"):
        evaluate.main([str(out), "--gpus", "cpu", "--workers", "0"])
