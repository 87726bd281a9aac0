"""The file for ILSVRC-2012's test server: a line an image, in the order of their numbers; classes by the competition's
numbers."""

import numpy as np
import pytest
import torch
from inner_cases import every
from make_archives import IDS, WNIDS, image, make_ilsvrc2012, seed_of, tar
from tiny_run import run

from alexnet_mp import evaluate, prepare
from alexnet_mp.data import pixel_statistics
from alexnet_mp.data.prepared import Prepared
from alexnet_mp.evaluation import protocol, trained
from alexnet_mp.evaluation.submission import describe, order, text
from alexnet_mp.system.errors import UserError


def names(*numbers, split="val", folder=""):
    return [f"{folder}ILSVRC2012_{split}_{number:08}.JPEG" for number in numbers]


def test_lines_are_in_the_order_of_the_images_numbers():
    """A split has its images class by class; the file does not."""
    assert order(names(3, 1, 4, 2)) == [1, 3, 0, 2]
    assert order(names(2, 1, split="test", folder="/data/val/n01440764/")) == [1, 0]


def test_without_numbers_lines_are_in_the_order_of_the_split():
    assert order(["b/2.jpg", "a/1.jpg"]) == [0, 1]
    assert order([*names(2), "a/1.jpg"]) == [0, 1]
    assert order(["n01440764_10026_00000002.JPEG", "n01440764_10026_00000001.JPEG"]) == [0, 1]


@every(
    "numbers, named",
    [
        ((1, 2, 4), "number 3 is missing, the next is ILSVRC2012_val_00000004.JPEG"),
        ((2, 3), "number 1 is missing"),
        ((1, 2, 2, 3), "the number of ILSVRC2012_val_00000002.JPEG is there twice"),
        ((0, 1), "is there twice"),
    ],
)
def test_a_line_that_would_be_missing_is_refused(numbers, named):
    with pytest.raises(UserError, match=named):
        order(names(*numbers))


def test_lines_by_hand():
    top = torch.tensor([[0, 1, 2, 3, 4], [5, 4, 3, 2, 1], [2, 0, 5, 1, 3]])
    ids = [30, 10, 60, 20, 50, 40]
    assert text([2, 0, 1], ids, top) == "60 30 40 10 20\n30 10 60 20 50\n40 50 20 60 10\n"
    assert text([0, 1, 2], None, top) == "1 2 3 4 5\n6 5 4 3 2\n3 1 6 2 4\n"
    assert "3 lines, the competition's numbers" in describe([0, 1, 2], ids) and "from 1" in describe([0], None)


@pytest.fixture(scope="module")
def ilsvrc(tmp_path_factory):
    """(sources, prepared set): ILSVRC-2012 with five test images, of which the archive doesn't have the first one
    first."""
    root = tmp_path_factory.mktemp("ilsvrc")
    make_ilsvrc2012(root / "source", train=4)
    tests = {
        f"test/{name}": image(seed_of("test", 0, number))
        for number, name in enumerate(names(3, 5, 1, 2, 4, split="test"))
    }
    (root / "source" / "ILSVRC2012_img_test_v10102019.tar").write_bytes(tar(tests))
    options = ["--size", "40", "--raw", "--workers", "0", "--unlabelled-test"]
    assert prepare.main([str(root / "source"), str(root / "set"), *options]) == 0
    return root / "source", root / "set"


def expected_lines(directory, data, split, places):
    """The lines from the network itself: its ten views of each picture, one after the other."""
    network, training = trained.load_run(directory, "cpu")
    statistics, recipe, pictures = (
        pixel_statistics.Statistics.load(directory),
        training.recipe,
        Prepared(data, 40, (split,)).splits[split],
    )
    lines = []
    for place in places:
        pixels = pictures.read(place).astype(np.float32)
        views = []
        for top, left, flip in protocol.both_protocols(recipe)["ten views"]:
            crop, mean = (
                array[top : top + 32, left : left + 32] for array in (pixels, np.asarray(statistics.mean, np.float32))
            )
            crop = (crop - mean)[:, ::-1] if flip else crop - mean
            views.append(torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1))))
        views = torch.stack(views)
        with torch.inference_mode():
            mean = network(views, views).double().softmax(1).mean(0)
        lines.append(" ".join(str(IDS[label]) for label in mean.argsort(descending=True).tolist()))
    return lines


def test_the_unlabelled_test_images_of_ilsvrc_come_out_in_their_order_and_numbers(ilsvrc, tmp_path, quick):
    _, data = ilsvrc
    # Without biases and untrained, a network answers pictures of noise one way or the other.
    directory = run(data, tmp_path / "run", "--steps", "1", "--set", "learning_rate=0", "--set", "fc6.init_bias=0")
    assert (
        evaluate.main([str(directory), "--gpus", "cpu", "--split", "test", "--submission", str(tmp_path / "file")]) == 0
    )
    lines = (tmp_path / "file").read_text().splitlines()
    split = Prepared(data, 40, ("test",)).splits["test"]
    assert list(split.names) == names(1, 2, 3, 4, 5, split="test") and split.labels.tolist() == [-1] * 5
    assert lines == expected_lines(directory, data, "test", range(5)) and len(set(lines)) > 1

    with pytest.raises(UserError, match="have no labels"):
        evaluate.main([str(directory), "--gpus", "cpu", "--split", "test"])
    with pytest.raises(UserError, match="have no labels"):
        evaluate.main(
            [
                str(directory),
                "--gpus",
                "cpu",
                "--split",
                "test",
                "--submission",
                str(tmp_path / "g"),
                "--per-class",
                str(tmp_path / "h"),
            ]
        )

    # The validation images lie class by class in the set; their lines are in the order of their numbers all the same.
    assert evaluate.main([str(directory), "--gpus", "cpu", "--submission", str(tmp_path / "val")]) == 0
    val_names = list(Prepared(data, 40, ("val",)).splits["val"].names)
    places = [val_names.index(name) for name in names(*range(1, 9))]
    lines = (tmp_path / "val").read_text().splitlines()
    assert lines == expected_lines(directory, data, "val", places) != expected_lines(directory, data, "val", range(8))


def test_a_set_with_unlabelled_test_images_is_whole(ilsvrc, capsys):
    _, data = ilsvrc
    assert prepare.main(["--check", str(data), "--workers", "0"]) == 0
    assert "16 train, 8 val, 5 test" in capsys.readouterr().out
    dataset = Prepared(data, 40, ("train", "val", "test"))
    assert dataset.ids == list(IDS) and dataset.classes == list(WNIDS)
