"""The command predict: any file Pillow opens, files that are none, views, words, JSON."""

import csv
import dataclasses
import fcntl
import io
import json
import os
import re
import subprocess
import sys
import types

import forked_process
import numpy as np
import pytest
import torch
from inner_cases import every
from PIL import Image
from tiny_run import run

from alexnet_mp import predict
from alexnet_mp.data import image_files, synsets
from alexnet_mp.data.dataset import open_dataset
from alexnet_mp.data.synsets import read_synsets
from alexnet_mp.evaluation import predict_images
from alexnet_mp.evaluation.ensembles import open_runs
from alexnet_mp.evaluation.protocol import both_protocols, log_probabilities
from alexnet_mp.evaluation.trained import class_words, load_run
from alexnet_mp.system.errors import UserError
from alexnet_mp.system.terminal import CONSOLE

pytestmark = pytest.mark.usefixtures("one_thread", "quick")


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    return run(data, tmp_path_factory.mktemp("runs") / "run", "--steps", "3")


@pytest.fixture
def photograph(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (44, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photograph.png")
    return tmp_path / "photograph.png"


def answered(capsys, *arguments, status=0):
    assert predict.main([*map(str, arguments), "--gpus", "cpu"]) == status
    return capsys.readouterr()


@pytest.mark.run
def test_it_says_what_the_test_of_the_run_says(trained, data):
    """The pictures of the validation split, given one by one, have the probabilities that evaluate finds."""
    (open_run,) = open_runs([trained], data, ("val",), "cpu", workers=0)
    network, training = load_run(trained, "cpu")
    pictures = [open_run.dataset.splits["val"].read(number) for number in range(len(open_run.dataset.splits["val"]))]
    protocols = dict(zip(("one", "ten"), both_protocols(network.recipe).values()))
    ((means, _),) = log_probabilities(network, open_run.pipeline, "val", protocols, 99)
    for views in ("one", "ten"):
        probabilities, labels = predict_images.predict(network, training.statistics, pictures, views, top=3)
        expected = means[views].exp()
        torch.testing.assert_close(probabilities, expected.gather(1, labels), rtol=1e-5, atol=1e-7)
        assert (probabilities.diff(dim=1) <= 0).all() and torch.allclose(
            probabilities.sum(1), torch.ones(6, dtype=torch.float64)
        )
    assert not torch.equal(means["one"], means["ten"])


def test_lines_and_json_say_the_same(trained, photograph, capsys):
    lines = answered(capsys, trained, photograph, "--top", "2").out.splitlines()
    document = json.loads(answered(capsys, trained, photograph, "--json").out)
    assert document["run"] == str(trained) and document["checkpoint"] == "step_00000003" and document["views"] == "one"
    (picture,) = document["pictures"]
    assert picture["file"] == str(photograph) and len(picture["top"]) == 3  # there are three classes
    assert lines[0] == str(photograph) and len(lines) == 3
    for line, place in zip(lines[1:], picture["top"]):
        assert line == f"  {100 * place['probability']:6.2f} %  {place['class']}"
    assert {place["class"] for place in picture["top"]} == {"apple", "leaf", "sky"}
    assert not CONSOLE.stderr


FORMATS = [
    ("L", "png"),
    ("1", "png"),
    ("P", "png"),
    ("P", "gif"),
    ("RGBA", "png"),
    ("LA", "png"),
    ("CMYK", "jpeg"),
    ("I;16", "png"),
    ("RGB", "webp"),
    ("RGB", "bmp"),
    ("RGB", "tiff"),
    ("F", "tiff"),
]


@every("mode, kind", FORMATS)
def test_every_kind_of_file_is_answered(trained, tmp_path, capsys, mode, kind):
    grey = np.random.default_rng(0).integers(0, 256, (50, 45), dtype=np.uint8)
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    options = {"transparency": 3} if mode == "P" else {}
    image.save(tmp_path / f"picture.{kind}", **options)
    document = json.loads(answered(capsys, trained, tmp_path / f"picture.{kind}", "--json").out)
    assert sum(place["probability"] for place in document["pictures"][0]["top"]) == pytest.approx(1)


def test_an_orientation_tag_is_ignored_as_in_training(trained, tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    document = json.loads(answered(capsys, trained, tmp_path / "plain.png", tmp_path / "turned.png", "--json").out)
    assert document["pictures"][0]["top"] == document["pictures"][1]["top"]


def test_bad_files_are_named_and_the_others_answered(trained, photograph, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(image_files, "AT_ONCE", 2)
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text\x1b[2J.jpg").write_bytes(b"no picture")
    (tmp_path / "none").mkdir()
    files = [
        tmp_path / "empty.jpg",
        tmp_path / "text\x1b[2J.jpg",
        photograph,
        tmp_path / "missing.jpg",
        tmp_path / "none",
        photograph,
    ]
    output = answered(capsys, trained, *files, status=2)
    errors = [line for line in output.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 4 and "empty.jpg: it is empty" in errors[0] and r"text\x1b[2J.jpg" in errors[1]
    assert "missing.jpg: No such file" in errors[2] and "a folder without pictures" in errors[3]
    assert "\x1b" not in output.err and output.out.splitlines().count(str(photograph)) == 2
    document = json.loads(answered(capsys, trained, *files, "--json", status=2).out)
    assert [("error" in picture, "top" in picture) for picture in document["pictures"]] == [
        (True, False),
        (True, False),
        (False, True),
        (True, False),
        (True, False),
        (False, True),
    ]
    assert document["pictures"][2]["top"] == document["pictures"][5]["top"]


def test_a_pipe_is_not_waited_for(trained, photograph, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.jpg")
    output = answered(capsys, trained, tmp_path / "pipe.jpg", photograph, status=2)
    assert (
        f"cannot read image {tmp_path}/pipe.jpg: it is not a regular file" in output.err
        and str(photograph) in output.out
    )


@pytest.mark.slow
@pytest.mark.process
def test_a_reader_that_leaves_is_no_error(trained, photograph):
    """Its buffer is too small for the answer, and it reads nothing at all."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    process = subprocess.Popen(
        [sys.executable, "-m", "alexnet_mp.predict", trained, *[photograph] * 64, "--gpus", "cpu", "--json"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer), os.close(reader)
    stderr = process.communicate()[1]
    assert process.returncode == 0 and "error" not in stderr.lower()


def test_standard_input(trained, photograph, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO(photograph.read_bytes())))
    document = json.loads(answered(capsys, trained, "-", photograph, "--json").out)
    assert document["pictures"][0]["top"] == document["pictures"][1]["top"]
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO(b"")))
    assert "cannot read image -: it is empty" in answered(capsys, trained, "-", status=2).err
    monkeypatch.setattr(image_files, "MOST_BYTES", 10)
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO(bytes(11))))
    ((_, problem, answer),) = image_files.map_pictures(["-"], 40, lambda batch: pytest.fail("there is no picture"))
    assert answer is None
    assert isinstance(problem, UserError) and "more than 10 bytes" in str(problem)


def album(tmp_path):
    """A folder of three pictures, one damaged one, and files that are none."""
    pixels = np.random.default_rng(0).integers(0, 256, (44, 60, 3), dtype=np.uint8)
    for name in ("b.png", "a/c.webp", "a/d", ".hidden/e.png", "a/.f.png"):
        (tmp_path / "album" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "album" / name, "WEBP" if name.endswith("webp") else "PNG")
    (tmp_path / "album" / "a" / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "album" / "notes\x1b.txt").write_bytes(b"no picture")
    os.symlink(tmp_path / "album", tmp_path / "album" / "again")
    os.mkfifo(tmp_path / "album" / "pipe")
    return tmp_path / "album"


def test_a_folder_stands_for_its_pictures(trained, photograph, tmp_path, capsys, monkeypatch):
    """Each folder is listed once, however many files it has."""
    folder, listed_folders, scandir = album(tmp_path), [], os.scandir
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", lambda path=".": listed_folders.append(str(path)) or scandir(path))
        output = answered(capsys, trained, folder, photograph, "--json", status=2)
    assert [path for path in listed_folders if path.startswith(str(folder))] == [str(folder), f"{folder}/a"]
    pictures = json.loads(output.out)["pictures"]
    assert [(picture["file"], "top" in picture) for picture in pictures] == [
        (f"{folder}/b.png", True),
        (f"{folder}/a/broken.jpg", False),
        (f"{folder}/a/c.webp", True),
        (f"{folder}/a/d", True),
        (str(photograph), True),
    ]
    for line in (
        "hidden: 2 (.hidden, a/.f.png)",
        "a link to a folder: 1 (again)",
        "no picture: 1 (notes\\x1b.txt); pictures are JPEG,",
        "can't be looked at: 1 (pipe: it is not a file)",
    ):
        assert f"{folder}: passed over, {line}" in output.err
    assert f"error: cannot read image {folder}/a/broken.jpg: cannot identify" in output.err
    (folder / "a" / "broken.jpg").unlink()
    assert answered(capsys, trained, folder).out.splitlines()[0] == f"{folder}/b.png"
    assert image_files.pictures_below("gone\n") == ["gone\n"]
    assert capsys.readouterr().err == "error: cannot read folder gone\\n: No such file or directory\n"


def test_a_table_of_the_answers(trained, photograph, tmp_path, capsys):
    """The CSV says what the JSON says; it is written whole, or printed, and overwrites nothing."""
    path = tmp_path / os.fsdecode(b'odd, \xff "name"\n.png')
    path.write_bytes(photograph.read_bytes())
    (tmp_path / "empty.jpg").touch()
    files = [photograph, path, tmp_path / "empty.jpg"]
    document = json.loads(answered(capsys, trained, *files, "--json", status=2).out)
    output = answered(capsys, trained, *files, "--csv", tmp_path / "classes.csv", "--top", 9, status=2).out
    assert str(photograph) in output
    content = (tmp_path / "classes.csv").read_bytes()
    rows = list(csv.reader(io.StringIO(content.decode(errors="surrogateescape"), newline="")))
    assert rows[0] == [
        "file", *(f"{field} {place}" for place in (1, 2, 3) for field in ("class", "name", "probability")), "error"
    ]  # fmt: skip
    for row, file, picture in zip(rows[1:], files, document["pictures"], strict=True):
        assert row[0] == str(file) and row[-1] == picture.get("error", "")
        cells = [(row[at], row[at + 1], float(row[at + 2] or 0)) for at in (1, 4, 7)]
        assert cells == [(item["class"], item["name"], item["probability"]) for item in picture.get("top", ())] or (
            row[1:-1] == [""] * 9 and "error" in picture
        )
    with pytest.raises(UserError, match="--csv .*classes.csv: it is there already"):
        answered(capsys, trained, *files, "--csv", tmp_path / "classes.csv")
    with pytest.raises(SystemExit):
        answered(capsys, trained, photograph, "--csv", "-", "--json")


@pytest.mark.process
def test_a_table_on_standard_output_is_nothing_else(trained, photograph, tmp_path):
    process = forked_process.command(predict.main, trained, photograph, "--gpus", "cpu", "--top", "1", "--csv", "-")
    assert process.wait() == 0
    header, row = process.out.splitlines()
    assert header == "file,class 1,name 1,probability 1,error" and row.startswith(f"{photograph},") and row[-1] == ","


SYNSETS = [
    (b"n01440764 tench, Tinca tinca\nn03126707\tcrane\n\nn99999999  another\n", None),
    (b"n99999999 another\n", "none of the 3 classes, such as 'n01440764'"),
    (b"tench\n", "line 1 is not like"),
    (b"n01440764\n", "line 1 is not like"),
    (b"n01440764 t\xff\n", "no text of UTF-8"),
]


def test_a_run_keeps_the_words_of_its_classes(trained, data, photograph, capsys, monkeypatch, tmp_path):
    """And wnids have those of a file that the user gives, where it knows them."""
    content = json.loads((trained / "run.json").read_text())
    assert content["data"]["class_names"] == open_dataset(str(data), 40).class_names
    before = (trained / "run.json").read_bytes()
    try:
        content["data"]["class_names"] = ["an apple\x1b[0m", "a leaf", "the sky"]
        (trained / "run.json").write_text(json.dumps(content))
        output = answered(capsys, trained, photograph)
        assert "the sky (sky)" in output.out and r"an apple\x1b[0m (apple)" in output.out and "\x1b" not in output.out
        for words in (["too", "few"], [1, 2, 3], None):
            content["data"]["class_names"] = words
            (trained / "run.json").write_text(json.dumps(content))
            assert class_words(trained, ["apple", "leaf", "sky"]) == ["apple", "leaf", "sky"]
    finally:
        (trained / "run.json").write_bytes(before)

    def load(*arguments):
        network, training = load_run(*arguments)
        return network, dataclasses.replace(training, classes=["n01440764", "n02012849", "n03126707"])

    monkeypatch.setattr(predict, "load_run", load)
    arguments = trained, photograph, "--synsets", tmp_path / "synsets.txt"
    with pytest.raises(UserError, match="No such file"):
        answered(capsys, *arguments)
    for lines, message in SYNSETS:
        (tmp_path / "synsets.txt").write_bytes(lines)
        if message:
            with pytest.raises(UserError, match=re.escape(message)):
                answered(capsys, *arguments)
        else:
            text = answered(capsys, *arguments).out
            assert "%  tench, Tinca tinca (n01440764)\n" in text and "%  crane (n03126707)\n" in text
            assert "%  n02012849\n" in text
    assert read_synsets(str(data)) == {}  # a prepared set, whose classes are no wnids
    index = types.SimpleNamespace(classes=["n01440764", "n02012849"], class_names=["tench", "n02012849"])
    monkeypatch.setattr(synsets, "read_index", lambda path: index)
    assert read_synsets(str(data)) == {"n01440764": "tench"}  # nobody knew words for the other
    (tmp_path / "link.txt").symlink_to("words.txt")
    (tmp_path / "words.txt").write_bytes(SYNSETS[0][0])
    assert read_synsets(str(tmp_path / "link.txt"))["n03126707"] == "crane"


def test_classes_that_accents_alone_tell_apart_have_their_number(trained, photograph, tmp_path, capsys, monkeypatch):
    """In lines and in the table; the JSON has them as they are, and their labels."""
    classes = ["cafe\u0301", "leaf", "caf\u00e9"]

    def load(*arguments):
        network, training = load_run(*arguments)
        return network, dataclasses.replace(training, classes=classes)

    monkeypatch.setattr(predict, "load_run", load)
    names = ["cafe\u0301 (class 1)", "leaf", "caf\u00e9 (class 3)"]
    lines = answered(capsys, trained, photograph, "--csv", tmp_path / "classes.csv").out.splitlines()[1:]
    assert sorted(line.split("%  ")[1] for line in lines) == sorted(names)
    (row,) = list(csv.reader((tmp_path / "classes.csv").read_text("utf-8").splitlines()))[1:]
    assert sorted(row[1:-1:3]) == sorted(names) and sorted(row[2:-1:3]) == sorted(classes)
    (picture,) = json.loads(answered(capsys, trained, photograph, "--json").out)["pictures"]
    assert {entry["label"]: entry["class"] for entry in picture["top"]} == dict(enumerate(classes))


def test_ties_keep_the_order_of_the_classes_and_nan_is_refused(trained, photograph, monkeypatch):
    network, training = load_run(trained, "cpu")
    picture = np.zeros((40, 40, 3), np.uint8)
    with torch.no_grad():
        network.towers[0].fc8.weight.zero_()
        network.towers[0].fc8.bias.zero_()
        probabilities, labels = predict_images.predict(network, training.statistics, [picture], top=9)
        assert labels.tolist() == [[0, 1, 2]] and probabilities.tolist() == [[pytest.approx(1 / 3)] * 3]
        network.towers[0].fc8.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="NaN"):
        predict_images.predict(network, training.statistics, [picture])


def test_what_can_not_be_asked(trained, photograph, tmp_path):
    with pytest.raises(UserError, match="--top 0"):
        predict.main([str(trained), str(photograph), "--top", "0"])
    with pytest.raises(UserError, match="is not a run directory"):
        predict.main([str(tmp_path), str(photograph)])
