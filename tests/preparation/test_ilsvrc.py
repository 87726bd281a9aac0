"""ILSVRC's archives and ImageNet's tars by wnid: every image gets its own class's label, and a set with a part wrong is
refused."""

import gzip
import os
import shutil
import tarfile

import pytest
from inner_cases import every
from make_archives import (
    IDS,
    WNIDS,
    WORDS,
    ilsvrc2012_files,
    image,
    lines,
    make_ilsvrc2010,
    make_ilsvrc2012,
    make_synset_tars,
    meta,
    pixels,
    refused,
    seed_of,
    synset_tar_files,
    tar,
    write,
)

from alexnet_mp.preparation import ilsvrc
from alexnet_mp.preparation.sources import find, picture
from alexnet_mp.system.errors import UserError

SIZE = 24
LABELS = range(len(WNIDS))
MADE = [seed_of(split, label, number) for split in ("train", "val", "test") for label in LABELS for number in range(4)]
KNOWN = {pixels(seed, SIZE, SIZE + 6)[:, 3:-3].tobytes(): seed for seed in (*MADE, 9000, 9001)}


def seeds(source, split):
    """[(label, seed)] of a split: which of the made pictures each item really is."""
    return [(item.label, KNOWN[picture(item, SIZE).tobytes()]) for item in source.splits[split]]


def expected(split, count):
    return [(label, seed_of(split, label, number)) for label in LABELS for number in range(count)]


def test_every_image_of_2012_has_its_label(tmp_path):
    """Labels follow the wnids; the ground truth has the competition's numbers, which are in another order."""
    source = find(make_ilsvrc2012(tmp_path))
    assert source.classes == list(WNIDS) and source.class_names == list(WORDS) and source.ids == list(IDS)
    assert "ILSVRC-2012" in source.kind and str(tmp_path) in source.kind
    assert list(source.splits) == ["train", "val"]
    assert seeds(source, "train") == expected("train", 3) and seeds(source, "val") == expected("val", 2)
    assert [item.name for item in source.splits["train"][:4]] == [
        *(f"{WNIDS[0]}/{WNIDS[0]}_{n}.JPEG" for n in range(3)),
        f"{WNIDS[1]}/{WNIDS[1]}_0.JPEG",
    ]
    assert [item.name for item in source.splits["val"][:2]] == [
        "ILSVRC2012_val_00000002.JPEG",
        "ILSVRC2012_val_00000006.JPEG",
    ]


def test_every_image_of_2010_has_its_label_and_its_patch(tmp_path):
    notes = []
    source = find(make_ilsvrc2010(tmp_path), note=notes.append)
    assert source.classes == list(WNIDS) and source.class_names == list(WORDS) and source.ids == list(IDS)
    assert list(source.splits) == ["train", "val", "test"]
    patches = {(1, seed_of("train", 1, 0)): (1, 9000), (2, seed_of("test", 2, 0)): (2, 9001)}
    for split, count in (("train", 3), ("val", 2), ("test", 2)):
        assert seeds(source, split) == [patches.get(key, key) for key in expected(split, count)]
    assert notes == ["patch_images.tar: 2 of its 3 images replace another"]


def test_2010_without_what_need_not_be_there(tmp_path):
    make_ilsvrc2010(tmp_path, patch=False)
    (tmp_path / "ILSVRC2010_images_test.tar").unlink()
    source = find(tmp_path)
    assert list(source.splits) == ["train", "val"] and seeds(source, "train") == expected("train", 3)


def test_an_unpacked_devkit_will_do(tmp_path):
    make_ilsvrc2012(tmp_path)
    with tarfile.open(tmp_path / "ILSVRC2012_devkit_t12.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    source = find(tmp_path)
    (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    assert find(tmp_path) == source
    (tmp_path / "ILSVRC2012_devkit_t12/data/meta.mat").unlink()
    assert "no data/meta.mat; it has classes" in refused(tmp_path)


def test_the_test_images_of_2012_are_left_aside(tmp_path):
    make_ilsvrc2012(tmp_path)
    (tmp_path / "ILSVRC2012_img_test_v10102019.tar").write_bytes(b"whatever")
    notes = []
    assert list(find(tmp_path, note=notes.append).splits) == ["train", "val"]
    assert (
        len(notes) == 1
        and "ILSVRC2012_img_test_v10102019.tar is not used" in notes[0]
        and "--unlabelled-test" in notes[0]
    )


TEST = "ILSVRC2012_img_test_v10102019.tar"


def numbered_tar(numbers, folder=""):
    return tar({f"{folder}ILSVRC2012_test_{number:08}.JPEG": image(seed_of("test", 0, number)) for number in numbers})


@every("folder", ["", "test/"])
def test_the_test_images_of_2012_where_they_are_asked_for(tmp_path, folder):
    """They have no labels, and the order of their numbers, whatever the archive's; of two archives the later one is
    taken."""
    make_ilsvrc2012(tmp_path)
    (tmp_path / TEST).write_bytes(numbered_tar((3, 1, 2), folder))
    (tmp_path / "ILSVRC2012_img_test.tar").write_bytes(b"not looked at")
    notes = []
    source = find(tmp_path, note=notes.append, unlabelled_test=True)
    assert notes == ["ILSVRC2012_img_test.tar is not used: a newer one is"]
    assert list(source.splits) == ["train", "val", "test"]
    assert seeds(source, "test") == [(-1, seed_of("test", 0, number)) for number in (1, 2, 3)]
    assert [item.name for item in source.splits["test"]] == [
        f"ILSVRC2012_test_{number:08}.JPEG" for number in (1, 2, 3)
    ]
    assert seeds(source, "train") == expected("train", 3) and seeds(source, "val") == expected("val", 2)


@every(
    "content, message",
    [
        (numbered_tar((1, 2, 4)), "00000004.JPEG: expected is ILSVRC2012_test_00000003.JPEG"),
        (numbered_tar((2, 3)), "00000002.JPEG: expected is ILSVRC2012_test_00000001.JPEG"),
        (numbered_tar(()), "no images in it"),
        (tar({"ILSVRC2012_val_00000001.JPEG": b""}), "expected is ILSVRC2012_test_00000001.JPEG"),
        (numbered_tar((1,)).rstrip(b"\0"), "it ends without the zero block"),
        (numbered_tar((1,), "a/b/"), "more folders around it"),
    ],
)
def test_a_test_image_that_is_missing_is_named(tmp_path, content, message):
    """A submission without its line would be wrong from there on."""
    make_ilsvrc2012(tmp_path)
    (tmp_path / TEST).write_bytes(content)
    assert message in refused(tmp_path, unlabelled_test=True)


def test_where_there_are_no_test_images_without_labels_none_are_made(tmp_path):
    make_ilsvrc2012(tmp_path / "12")
    make_ilsvrc2010(tmp_path / "10")
    make_synset_tars(tmp_path / "tars")
    for name in ("12", "10", "tars"):
        with pytest.raises(UserError, match="--unlabelled-test: .* has no test images without labels"):
            find(tmp_path / name, unlabelled_test=True)


def test_a_part_of_the_classes_says_so(tmp_path):
    """A leaf without training images is no class."""
    files = ilsvrc2012_files() | {"ILSVRC2012_devkit_t12.tar.gz": None}
    devkit = {
        "data/meta.mat": meta("ILSVRC2012", [("n00000001", "first", 9)]),
        "data/ILSVRC2012_validation_ground_truth.txt": lines([IDS[label] for _ in range(2) for label in (2, 0, 3, 1)]),
    }
    files["ILSVRC2012_devkit_t12.tar.gz"] = tar(devkit, mode="w:gz")
    notes = []
    source = find(write(tmp_path, files), note=notes.append)
    assert source.classes == list(WNIDS) and source.ids == list(IDS) and seeds(source, "val") == expected("val", 2)
    assert notes == ["ILSVRC2012_img_train.tar has 4 of the 5 classes of the devkit"]


@every(
    "make, name, message",
    [
        (
            make_ilsvrc2012,
            "ILSVRC2012_img_train.tar",
            "no ILSVRC2012_img_train.tar; it has ILSVRC-2012's training images",
        ),
        (
            make_ilsvrc2012,
            "ILSVRC2012_img_val.tar",
            "no ILSVRC2012_img_val.tar; it has ILSVRC-2012's validation images",
        ),
        (
            make_ilsvrc2012,
            "ILSVRC2012_devkit_t12.tar.gz",
            "no ILSVRC2012_devkit_t12.tar.gz; it has the classes and the labels",
        ),
        (make_ilsvrc2010, "ILSVRC2010_images_train.tar", "no ILSVRC2010_images_train.tar; it has"),
        (make_ilsvrc2010, "ILSVRC2010_images_val.tar", "no ILSVRC2010_images_val.tar; it has"),
        (make_ilsvrc2010, "ILSVRC2010_devkit-1.0.tar.gz", "no ILSVRC2010_devkit-1.0.tar.gz; it has"),
        (
            make_ilsvrc2010,
            "ILSVRC2010_test_ground_truth.txt",
            "no ILSVRC2010_test_ground_truth.txt; it has the labels of",
        ),
    ],
)
def test_a_missing_part_is_named(tmp_path, make, name, message):
    make(tmp_path)
    (tmp_path / name).unlink()
    assert message in refused(tmp_path)


FILES = ilsvrc2012_files()
TRAIN, VAL, DEVKIT = FILES
TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
ANSWERS = [IDS[label] for _ in range(2) for label in (2, 0, 3, 1)]


def devkit(**changes):
    """The devkit's archive with other contents for its two files."""
    files = {"meta": meta("ILSVRC2012"), "truth": lines(ANSWERS)} | changes
    places = {"meta": "kit/data/meta.mat", "truth": f"kit/{TRUTH}"}
    return {DEVKIT: tar({places[name]: content for name, content in files.items() if content}, mode="w:gz")}


def replaced(content):
    """The training images with another tar of the third class."""
    return {TRAIN: tar(synset_tar_files() | {f"{WNIDS[2]}.tar": content})}


def val_images(numbers, folder=""):
    return {VAL: tar({f"{folder}ILSVRC2012_val_{number:08}.JPEG": image(number) for number in numbers})}


@every(
    "changes, message",
    [
        (devkit(truth=lines(ANSWERS[:-1])), "00000008.JPEG: its number is not one of the ground truth's 1 to 7"),
        (devkit(truth=lines([*ANSWERS, 1])), "8 images for the 9 lines of the ground truth; number 9 is missing"),
        (devkit(truth=lines([99, *ANSWERS[1:]])), "00000001.JPEG: its class, 99, is none of the devkit's"),
        (devkit(truth=lines([5, *ANSWERS[1:]])), "its class, 5, is n00001740, which has no training images"),
        (
            devkit(truth=lines([IDS[1] if number == IDS[0] else number for number in ANSWERS])),
            "its val split has no image of class n01440764",
        ),
        (devkit(truth=b"4\n3\nx\n"), "line 3 is no number of a class: x"),
        (devkit(truth=b"4\n\n3\n"), "line 2 is no number"),
        (devkit(truth=None), f"no {TRUTH} in it"),
        (devkit(meta=None), "no data/meta.mat in it"),
        (devkit(meta=meta("ILSVRC2010")), "meta.mat: it can't be read: no field ILSVRC2012_ID"),
        (devkit(meta=meta("ILSVRC2012")[:-50]), "meta.mat: it can't be read: it is cut short"),
        (devkit(meta=b"damaged"), "meta.mat: it can't be read: it is no MATLAB file"),
        (devkit(meta=meta("ILSVRC2012", [("n02222222", "two", IDS[0])])), "two synsets have the same number"),
        (devkit(meta=meta("ILSVRC2012", [(WNIDS[0], "two", 9)])), "two synsets have the same wnid"),
        (devkit(meta=meta("ILSVRC2012", [("n1/../../x", "two", 9)])), "n1/../../x, two: no synset"),
        (devkit(meta=meta("ILSVRC2012", [("n02222222", "two\nlines", 9)])), r"two\nlines: no synset"),
        ({DEVKIT: b"no gzip"}, "damaged or incomplete gzip data"),
        (val_images(range(0, 8)), "00000000.JPEG: its number is not one of"),
        (val_images([1, 2, 3, 4, 5, 6, 8]), "7 images for the 8 lines of the ground truth; number 7 is missing"),
        ({VAL: tar({"val_1.JPEG": b"", "val_01.JPEG": b""})}, "val_01.JPEG: its number"),
        ({VAL: tar({"a/x_1.JPEG": b"", "b/x_1.JPEG": b""})}, "x_1.JPEG: it is there twice, in two folders"),
        (val_images(range(1, 9), "a/b/"), "a/b/ILSVRC2012_val_00000001.JPEG: more folders"),
        ({VAL: tar({"picture.JPEG": b""})}, "picture.JPEG: its number"),
        ({VAL: FILES[VAL].rstrip(b"\0")}, "it ends without the zero block"),
        ({TRAIN: tar({"readme.txt": b""})}, "0 n########.tar in it"),
        ({TRAIN: FILES[VAL]}, "0 n########.tar in it"),
        ({TRAIN: tar(dict([*synset_tar_files().items()][:1]))}, "1 n########.tar in it"),
        ({TRAIN: tar(dict([*synset_tar_files().items()][:3]))}, "is n07753592, which has no training images"),
        (
            {TRAIN: tar(synset_tar_files() | {"n09999999.tar": tar({})})},
            "n09999999 is not one of the low-level synsets",
        ),
        (
            {TRAIN: tar(synset_tar_files() | {"n00001740.tar": tar({})})},
            "n00001740 is not one of the low-level synsets",
        ),
        ({TRAIN: tar(synset_tar_files() | {f"more/{WNIDS[0]}.tar": b""})}, f"{WNIDS[0]}.tar: it is there twice"),
        (replaced(tar({"x.txt": b""})), f"{WNIDS[2]}.tar: the class is empty"),
        (replaced(tar({"x.JPEG": b"x"})[:1024]), f"{WNIDS[2]}.tar: it ends without"),
        (replaced(tar({"../x.JPEG": b"x"})), f"{WNIDS[2]}.tar: ../x.JPEG: its name leads out"),
        (replaced(tar({"n1.tar": tar({})})), f"{WNIDS[2]}.tar: n1.tar: an archive where images belong"),
        (replaced(tar({"a/b/x.JPEG": b"x"})), f"{WNIDS[2]}.tar: a/b/x.JPEG: more folders"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(tmp_path, changes, message):
    assert message in refused(write(tmp_path, FILES | changes))


def test_an_image_far_too_large_is_refused_when_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("ALEXNET_MP_PICTURE_GB", "0.000002")
    item = find(make_ilsvrc2012(tmp_path)).splits["train"][0]
    with pytest.raises(UserError, match="image .*tar: n01440764/.*: a file of 0.1 GB, more than the 2e-06 GB"):
        picture(item, 24)


def test_meta_may_not_grow_without_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr(ilsvrc, "LARGEST_FILE", 300)
    make_ilsvrc2012(tmp_path)
    assert "data/meta.mat: " in refused(tmp_path) and "more than the 300" in refused(tmp_path)


def test_a_pipe_in_place_of_an_archive_is_not_waited_for(tmp_path):
    make_ilsvrc2012(tmp_path)
    (tmp_path / VAL).unlink()
    os.mkfifo(tmp_path / VAL)
    assert "ILSVRC2012_img_val.tar: it is not a file" in refused(tmp_path)


@every("one_tar", [False, True])
def test_tars_by_wnid(tmp_path, one_tar):
    source = find(make_synset_tars(tmp_path / "x", 4, one_tar), 0.5)
    assert source.classes == source.class_names == list(WNIDS) and source.ids is None
    assert sorted(seeds(source, "train") + seeds(source, "val")) == expected("train", 4)
    assert [item.label for item in source.splits["val"]] == [label for label in LABELS for _ in range(2)]


def test_tars_by_wnid_as_they_are_met(tmp_path):
    """A folder around the tars, one around the images, hidden files, other files, capital letters."""

    def images_of(label, wnid):
        return tar(
            {
                "readme.txt": b"",
                f"{wnid}/": None,
                f"{wnid}/._a_1.jpeg": b"",
                f"{wnid}/.x/a_1.jpeg": b"",
                f"{wnid}/a_1.jpeg": image(seed_of("train", label, 0)),
                f"{wnid}/a_2.PNG": image(seed_of("train", label, 1)),
            }
        )

    (tmp_path / "all.tar").write_bytes(
        tar(
            {"fall11": None, "fall11/list.txt": b""}
            | {f"fall11/{wnid}.tar": images_of(label, wnid) for label, wnid in enumerate(WNIDS)}
        )
    )
    source = find(tmp_path / "all.tar", 0.5)
    assert sorted(seeds(source, "train") + seeds(source, "val")) == expected("train", 2)


def test_a_single_tar_by_wnid_is_a_single_class(tmp_path):
    write(tmp_path, dict([*synset_tar_files().items()][:1]))
    assert "a single class, n01440764" in refused(tmp_path)


def test_two_sources_in_one_directory_are_not_guessed_at(tmp_path):
    make_ilsvrc2012(tmp_path)
    shutil.copy(tmp_path / TRAIN, tmp_path / "ILSVRC2010_images_train.tar")
    assert "more than one source, ILSVRC2012_img_train.tar and ILSVRC2010_images_train.tar" in refused(tmp_path)


def test_gzipped_images_are_unpacked(tmp_path):
    """ILSVRC-2010 has some."""
    files = synset_tar_files(2)
    images = {f"{WNIDS[0]}_{number}.JPEG": gzip.compress(image(seed_of("train", 0, number))) for number in range(2)}
    source = find(write(tmp_path, files | {f"{WNIDS[0]}.tar": tar(images)}), 0.5)
    assert sorted(seeds(source, "train") + seeds(source, "val")) == expected("train", 2)
