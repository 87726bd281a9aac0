"""Reading a prepared set: the pictures of the folder it was made from, and no belief in what somebody else may have
written."""

import gc
import io
import multiprocessing
import os
import shutil
import zlib
from dataclasses import replace

import numpy as np
import pytest
from inner_cases import every
from PIL import Image, JpegImagePlugin
from prepared_sets import PER_SHARD, SIZE, change_columns, files, make_source, prepared, sign, sign_json
from safetensors.numpy import load_file, save

from alexnet_mp.data.dataset import Folder
from alexnet_mp.data.prepared import Prepared, jpeg_frame
from alexnet_mp.data.prepared_format import is_prepared
from alexnet_mp.data.resize import stored_picture
from alexnet_mp.system.errors import UserError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, JPEG set, raw set)."""
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as monkeypatch:
        source = make_source(root / "source")
        return (
            source,
            prepared(monkeypatch, source, root / "jpeg"),
            prepared(monkeypatch, source, root / "raw", "--raw"),
        )


@pytest.fixture
def jpeg(made, tmp_path):
    """A JPEG set to be damaged."""
    return shutil.copytree(made[1], tmp_path / "jpeg")


@pytest.fixture
def raw(made, tmp_path):
    return shutil.copytree(made[2], tmp_path / "raw")


def refused(directory, *arguments, size=SIZE):
    with pytest.raises(UserError) as refusal:
        Prepared(directory, size, *arguments)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def unreadable(directory, image, split="train", read="read"):
    with pytest.raises(UserError) as refusal:
        getattr(Prepared(directory, SIZE).splits[split], read)(image)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def place_of(directory, image, split="train"):
    """(path of the shard, offset, length) of an image."""
    columns = load_file(directory / f"{split}.safetensors")
    return (
        directory / f"{split}-{columns['shard'][image]:05d}.tar",
        int(columns["offset"][image]),
        int(columns["length"][image]),
    )


def overwrite(path, place, content):
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(content)


def replace_image(directory, image, content):
    """Put another file in an image's place, with its crc32 and all checksums right."""
    path, offset, length = place_of(directory, image)
    assert len(content) <= length
    overwrite(path, offset, content)

    def change(columns):
        columns["length"][image], columns["crc32"][image] = len(content), zlib.crc32(content)

    change_columns(directory, change)


def test_a_raw_set_has_the_folders_pictures_in_the_folders_order(made):
    source, _, directory = made
    folder, raw = Folder(source, SIZE), Prepared(directory, SIZE)
    assert raw.classes == folder.classes == raw.class_names and set(raw.splits) == {"train", "val"}
    for split in ("train", "val"):
        ours, theirs = raw.splits[split], folder.splits[split]
        assert len(ours) == len(theirs) == {"train": 27, "val": 15}[split] and ours.storage == "pixels"
        assert (
            np.array_equal(ours.labels, theirs.labels) and ours.labels.dtype == np.int64 and ours.labels.flags.writeable
        )
        assert [f"{source}/{split}/{name}" for name in ours.names] == theirs.names
        for image in range(len(ours)):
            assert np.array_equal(ours.read(image), theirs.read(image))


def test_a_jpeg_set_has_them_once_more_compressed(made):
    source, directory, _ = made
    folder, jpeg = Folder(source, SIZE), Prepared(directory, SIZE)
    for split in ("train", "val"):
        ours, theirs = jpeg.splits[split], folder.splits[split]
        assert ours.storage == "jpeg" and np.array_equal(ours.labels, theirs.labels)
        for image in range(len(ours)):
            expected = io.BytesIO()
            Image.fromarray(theirs.read(image)).save(expected, "JPEG", quality=95, subsampling="4:2:0")
            assert ours.jpeg(image).tobytes() == expected.getvalue()
            picture = ours.read(image)
            assert picture.dtype == np.uint8 and picture.flags.c_contiguous
            assert np.array_equal(picture, np.asarray(Image.open(expected)))
    example = Image.open(io.BytesIO(jpeg.splits["train"].jpeg(0)))
    assert JpegImagePlugin.get_sampling(example) == 2 and "progressive" not in example.info and example.mode == "RGB"


def test_it_says_what_it_is(made):
    source, directory, raw = made
    assert Prepared(directory, SIZE).description == (
        f"prepared set {directory}: 27 train, 15 val images of 3 classes, JPEG of quality 95, {SIZE}x{SIZE}"
    )
    assert Prepared(raw, SIZE, ("val",)).description.endswith(
        f": 15 val images of 3 classes, raw pixels, {SIZE}x{SIZE}"
    )
    assert Prepared(directory, SIZE).source == str(directory) and list(Prepared(raw, SIZE, ("val",)).splits) == ["val"]


def test_pictures_and_files_can_be_written_by_nobody(made):
    for directory, read in ((made[1], "jpeg"), (made[2], "read")):
        split = Prepared(directory, SIZE).splits["train"]
        array, other = getattr(split, read)(3), getattr(split, read)(np.int64(3))
        assert np.array_equal(array, other) and not array.flags.writeable
        assert np.shares_memory(array, other) == (read == "read")  # pixels are a view of the shard, JPEGs are read
        with pytest.raises(ValueError):
            array[0] = 0


def test_a_shard_that_becomes_shorter_is_named(made, tmp_path):
    copy = shutil.copytree(made[1], tmp_path / "copy")
    split = Prepared(copy, SIZE).splits["train"]
    split.read(0)
    for shard in copy.glob("train-*.tar"):
        os.truncate(shard, 100)
    with pytest.raises(UserError, match="cannot read image .* in .*train-0000.*.tar: it ends at byte"):
        split.read(0)


def test_a_view_outlives_the_set(made):
    split = Prepared(made[2], SIZE).splits["train"]
    picture = split.read(5)
    expected = picture.copy()
    del split
    gc.collect()
    assert np.array_equal(picture, expected)


def test_shards_take_no_file_descriptors_and_give_their_memory_back(made):
    """ImageNet has 1,300 shards; a process may usually have 1,024 files open."""

    def mappings():
        with open("/proc/self/maps") as file:
            return sum(str(made[2]) in line for line in file)

    before = set(os.listdir("/proc/self/fd"))
    split = Prepared(made[2], SIZE).splits["train"]
    for _ in range(2):
        for image in range(len(split)):
            split.read(image)
    assert mappings() == 3  # 27 images, 10 a shard
    assert len(set(os.listdir("/proc/self/fd")) - before) <= 1  # of the listing itself
    del split
    gc.collect()
    assert mappings() == 0


@every("which", [1, 2], ids=["jpeg", "raw"])
def test_larger_pictures_are_reduced_as_those_of_a_folder_are(made, which):
    large, small = Prepared(made[which], SIZE), Prepared(made[which], 20)
    assert small.statistics is None and large.statistics is not None
    for image in range(27):
        assert small.splits["train"].storage == "files"
        expected = stored_picture(Image.fromarray(large.splits["train"].read(image)), 20)
        assert np.array_equal(small.splits["train"].read(image), expected)


def test_smaller_pictures_are_refused(made):
    message = refused(made[1], size=SIZE + 1)
    assert f"{SIZE}x{SIZE}" in message and f"--size {SIZE + 1}" in message


def test_a_missing_split_is_named(made):
    assert "no test split" in refused(made[1], ("train", "test"))


def test_the_fingerprint_is_of_what_training_sees(made, jpeg):
    before = Prepared(jpeg, SIZE).fingerprint
    assert before != Prepared(made[2], SIZE).fingerprint
    sign(jpeg, lambda index: replace(index, source="moved"))
    assert Prepared(jpeg, SIZE).fingerprint == before
    change_columns(jpeg, lambda columns: columns["label"].__setitem__(0, 1))
    assert Prepared(jpeg, SIZE).fingerprint != before


def test_what_counts_as_a_prepared_set(made, tmp_path):
    source, directory, _ = made
    assert (
        is_prepared(directory)
        and is_prepared(str(directory))
        and not is_prepared(source)
        and not is_prepared(tmp_path / "no")
    )
    (tmp_path / "begun" / "work").mkdir(parents=True)
    assert not is_prepared(tmp_path / "begun")
    (tmp_path / "begun" / "work" / "plan.json").write_text("{}")
    assert is_prepared(tmp_path / "begun")
    assert "not finished" in refused(tmp_path / "begun")
    (tmp_path / "folder" / "train").mkdir(parents=True)
    (tmp_path / "folder" / "index.json").write_text("{}")
    assert not is_prepared(tmp_path / "folder")  # of images, with a file of somebody's beside them
    assert "index.json" in refused(tmp_path / "no")


@every("read", ["read", "jpeg"])
def test_a_flipped_byte_is_named_when_its_image_is_read(jpeg, read):
    path, offset, length = place_of(jpeg, 7)
    byte = path.read_bytes()[offset + length // 2] ^ 1
    overwrite(path, offset + length // 2, bytes([byte]))
    message = unreadable(jpeg, 7, read=read)
    assert "apple/7.jpg" in message and path.name in message and f"prepare --check {jpeg}" in message
    split = Prepared(jpeg, SIZE).splits["train"]
    for image in set(range(27)) - {7}:
        split.read(image)


def test_a_flipped_byte_of_raw_pixels_is_named(raw):
    path, offset, length = place_of(raw, 20)
    overwrite(path, offset + length - 1, bytes([path.read_bytes()[offset + length - 1] ^ 0x80]))
    assert "sky/2.jpg" in unreadable(raw, 20)


@pytest.mark.process
def test_what_one_process_has_checked_is_checked_for_all(jpeg):
    split = Prepared(jpeg, SIZE).splits["train"]
    worker = multiprocessing.get_context("fork").Process(target=lambda: [split.read(image) for image in (2, 4)])
    worker.start()
    worker.join()
    assert worker.exitcode == 0 and np.flatnonzero(split.checked).tolist() == [2, 4]
    split.read(5)
    assert np.flatnonzero(split.checked).tolist() == [2, 4, 5]


def small_jpeg(size=(SIZE, SIZE), mode="RGB", **options):
    content = io.BytesIO()
    Image.new(mode, size).save(content, "JPEG", **options)
    return content.getvalue()


def with_size(content, width, height):
    """A JPEG whose header claims another size."""
    place = content.index(b"\xff\xc0") + 5
    return content[:place] + height.to_bytes(2) + width.to_bytes(2) + content[place + 4 :]


def two_frames(first, second):
    """A JPEG with the frame header of `first`, then all of `second` from its frame header on."""
    place = first.index(b"\xff\xc0")
    length = 2 + int.from_bytes(first[place + 2 : place + 4])
    return first[: place + length] + second[place:]


@every(
    "content",
    [
        with_size(small_jpeg(), 50000, 50000),
        with_size(small_jpeg(), SIZE, SIZE + 1),
        small_jpeg((SIZE, 20)),
        small_jpeg(mode="L"),
        small_jpeg(mode="CMYK"),
        two_frames(small_jpeg(), with_size(small_jpeg(), 60000, 60000)),
        two_frames(with_size(small_jpeg(), 60000, 60000), small_jpeg()),
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"\xff\xd8",
        b"\xff\xd8" + b"\xff" * 90,
        b"\xff\xd8\xff\xe0\x00",
        small_jpeg()[:200],
    ],
    ids=[
        "50,000 pixels",
        "a row more",
        "not square",
        "grey",
        "CMYK",
        "a large second frame",
        "a large first frame",
        "PNG",
        "two bytes",
        "fill",
        "cut marker",
        "no scan",
    ],
)
def test_another_file_in_the_place_of_a_jpeg_is_refused_before_it_is_decoded(jpeg, content, monkeypatch):
    replace_image(jpeg, 6, content)
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("it was decoded"))
    for read in ("read", "jpeg"):
        message = unreadable(jpeg, 6, read=read)
        assert "apple/6.jpg" in message and f"not a JPEG of {SIZE}x{SIZE}" in message


@every(
    "content",
    [small_jpeg(), small_jpeg(progressive=True), small_jpeg(comment=b"x" * 3000)],
    ids=["baseline", "progressive", "with a comment"],
)
def test_jpegs_of_any_usual_kind_are_taken(content):
    assert jpeg_frame(content) == (SIZE, SIZE, 3)


def test_another_file_in_the_place_of_raw_pixels_is_refused(raw):
    _, _, length = place_of(raw, 3)
    header = b"P6\n%d %d\n255\n" % (SIZE * 2, SIZE // 2)
    replace_image(raw, 3, header + bytes(length - len(header)))
    assert "apple/3.jpg" in unreadable(raw, 3) and "PPM" in unreadable(raw, 3)


def test_a_jpeg_that_cannot_be_decoded_is_named(jpeg):
    content = small_jpeg()
    replace_image(jpeg, 6, content[: content.index(b"\xff\xda") + 14])
    assert "apple/6.jpg" in unreadable(jpeg, 6)


def at(field, image, value):
    def change(columns):
        columns[field][image] = value

    return change


def field_is(field, values):
    return lambda columns: columns | {field: values}


@every(
    "change, named",
    [
        (at("offset", 3, 1 << 40), "place"),
        (at("offset", 3, -512), "place"),
        (at("offset", 3, 0), "place"),
        (at("offset", 3, 2**63 - 10), "place"),
        (at("length", 3, 0), "place"),
        (at("length", 3, -1), "place"),
        (at("length", 3, 2**63 - 1), "place"),
        (at("label", 3, 3), "label"),
        (at("label", 3, -1), "label"),
        (at("shard", 3, 3), "shard"),
        (at("shard", 3, -1), "shard"),
        (at("crc32", 3, 1 << 32), "crc32"),
        (at("crc32", 3, -1), "crc32"),
        (at("name_ends", 3, 10**6), "names"),
        (at("name_ends", 0, -5), "names"),
        (at("name_ends", -1, 5), "names"),
        (lambda columns: columns["name_ends"].__setitem__(-1, columns["name_ends"][-1] - 1), "names"),
        (lambda columns: columns["name_ends"].__setitem__(-1, columns["name_ends"][-1] + 1), "names"),
        (
            lambda columns: columns["shard"].__setitem__(slice(None), np.roll(np.sort(columns["shard"]), 1) // 2),
            "number of images",
        ),
        (field_is("label", np.zeros(27, np.float64)), "type of label"),
        (field_is("shard", np.zeros(27, np.int64)), "type of shard"),
        (field_is("offset", np.zeros((27, 1), np.int64)), "type of offset"),
        (field_is("label", np.zeros(26, np.int64)), "26 values"),
        (field_is("more", np.zeros(1, np.int64)), "more"),
        (lambda columns: {field: values for field, values in columns.items() if field != "crc32"}, "crc32"),
    ],
)
def test_impossible_columns_are_refused(jpeg, change, named):
    change_columns(jpeg, change)
    message = refused(jpeg)
    assert "train.safetensors is damaged" in message and named in message


@every(
    "change, refused_splits",
    [
        (lambda columns: columns["label"].fill(-1), ("train", "val")),
        (lambda columns: columns["label"].fill(-2), ("train", "val", "test")),
        (lambda columns: columns["label"].put(3, -1), ("train", "val", "test")),
    ],
    ids=["none", "-2", "some"],
)
def test_only_test_images_may_have_no_labels_and_then_none_has(made, tmp_path, monkeypatch, change, refused_splits):
    source = shutil.copytree(made[0], tmp_path / "source")
    shutil.copytree(source / "val", source / "test")
    directory = prepared(monkeypatch, source, tmp_path / "set")
    for split in ("train", "val", "test"):
        copy = shutil.copytree(directory, tmp_path / split)
        change_columns(copy, change, split)
        if split in refused_splits:
            assert f"{split}.safetensors is damaged: a label that there is not" in refused(copy, (split,))
        else:
            assert Prepared(copy, SIZE, (split,)).splits[split].labels.tolist() == [-1] * 15


def test_a_jpeg_much_longer_than_its_pixels_is_refused(jpeg):
    path, offset, _ = place_of(jpeg, 3)
    overwrite(path, path.stat().st_size, bytes(1 << 20))
    change_columns(jpeg, at("length", 3, 1 << 20))
    assert "length of a picture" in refused(jpeg)


def test_a_picture_of_another_length_is_refused_in_a_raw_set(raw):
    change_columns(raw, at("length", 3, 3 * SIZE**2))
    assert "length of a picture" in refused(raw)


@every(
    "content",
    [
        b"",
        b"\xff" * 8,
        (1 << 62).to_bytes(8, "little") + b"{}",
        (1 << 26).to_bytes(8, "little") + b"{",
        b"\x02" + bytes(7) + b"[]",
    ],
    ids=["empty", "no header", "huge header", "cut", "no tensors"],
)
def test_columns_that_are_no_safetensors_file_are_refused(jpeg, content):
    (jpeg / "train.safetensors").write_bytes(content)
    sign(jpeg)
    assert "train.safetensors is damaged" in refused(jpeg)


def split_is(**fields):
    return lambda index: index["splits"]["train"].update(fields)


def shard_is(**fields):
    return lambda index: index["splits"]["train"]["shards"][1].update(fields)


@every(
    "change, named",
    [
        (shard_is(file="../jpeg/train-00001.tar"), "../"),
        (shard_is(file="/etc/passwd"), "passwd"),
        (shard_is(file="train-00000.tar"), "shard 1"),
        (split_is(index="../train.safetensors"), "splits.train.index"),
        (split_is(index="val.safetensors"), "splits.train.index"),
        (shard_is(images=11), "number of train images"),
        (shard_is(images=-1), "sizes"),
        (shard_is(bytes=0), "sizes"),
        (shard_is(bytes=2**63), "sizes"),
        (shard_is(bytes=2**70), "sizes"),
        (shard_is(bytes="10"), "bytes"),
        (shard_is(images=True), "images"),
        (split_is(images=28), "number of train images"),
        (split_is(images=0, shards=[]), "number of train images"),
        (split_is(more=1), "more"),
        (lambda index: index.update(stored_size=0), "stored_size"),
        (lambda index: index.update(stored_size=10**6), "stored_size"),
        (lambda index: index.update(encoding="bmp"), "encoding"),
        (lambda index: index.update(jpeg_quality=None), "jpeg_quality"),
        (lambda index: index.update(encoding="raw"), "jpeg_quality"),
        (lambda index: index.update(jpeg_quality=101), "jpeg_quality"),
        (lambda index: index.update(classes=["a", "a", "b"]), "classes"),
        (lambda index: index.update(class_names=["a"]), "classes"),
        (lambda index: index.update(ids=[1, 2]), "ids"),
        (lambda index: index.update(ids=[1, 2, 2]), "ids"),
        (lambda index: index.update(ids=[0, 1, 2]), "ids"),
        (lambda index: index.update(ids=[1, 2, "3"]), "ids"),
        (lambda index: index.update(ids=[1, 2, True]), "ids"),
        (lambda index: index.update(ids=None), "not what prepare wrote"),
        (lambda index: index["splits"].update({"../x": index["splits"]["val"]}), "../x"),
        (lambda index: index["splits"].pop("train"), "train"),
        (split_is(skipped=[{"number": 99, "name": "x", "reason": "y"}]), "left out"),
        (
            split_is(skipped=[{"number": 2, "name": "x", "reason": "y"}, {"number": 1, "name": "x", "reason": "y"}]),
            "left out",
        ),
        (lambda index: index.pop("plan"), "plan"),
    ],
)
def test_an_impossible_index_is_refused(jpeg, change, named):
    sign_json(jpeg, change)
    message = refused(jpeg)
    assert "index.json is damaged" in message and named in message, message


@every(
    "content, named",
    [
        (b"", "damaged"),
        (b"{", "damaged"),
        (b"[" * 100000, "damaged"),
        (b"\xff\xfe", "damaged"),
        (b"9" * 5000, "damaged"),
        (b"[]", "not the index"),
        (b'{"format": "other"}', "not the index"),
        (b'{"format": "alexnet_mp prepared set", "version": 2}', "version 2"),
        (b'{"format": "alexnet_mp prepared set"}', "version None"),
    ],
)
def test_what_is_no_index_is_refused(jpeg, content, named):
    (jpeg / "index.json").write_bytes(content)
    assert named in refused(jpeg)


def test_every_byte_of_the_index_counts(jpeg):
    content = (jpeg / "index.json").read_bytes()
    places = [content.index(text) + 2 for text in (b'"apple"', b'"source"', b"folder source", b'"plan": "')] + [
        3,
        len(content) - 1,
    ]
    for place in places:
        for bit in (1, 0x20):
            (jpeg / "index.json").write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
            assert "index.json" in refused(jpeg)


@every(
    "change, named",
    [
        (lambda path: path.unlink(), "No such file"),
        (lambda path: os.truncate(path, 10240), "10,240 bytes"),
        (lambda path: overwrite(path, path.stat().st_size, b"x"), "index.json says"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "not a file"),
    ],
    ids=["missing", "cut", "longer", "a pipe"],
)
@every("name", ["train-00001.tar", "val-00000.tar"])
def test_a_shard_that_is_not_whole_is_named_at_once(jpeg, name, change, named):
    change(jpeg / name)
    message = refused(jpeg)
    assert name in message and named in message
    if name.startswith("train"):
        Prepared(jpeg, SIZE, ("val",))  # the other split alone is whole


@every("name", ["train.safetensors", "statistics.safetensors"])
def test_a_flipped_byte_of_another_file_is_named(jpeg, name):
    content = (jpeg / name).read_bytes()
    overwrite(jpeg / name, len(content) - 1, bytes([content[-1] ^ 1]))
    assert name in refused(jpeg)


@every(
    "change",
    [
        lambda fields: fields.update(mean=fields["mean"].astype(np.float32)),
        lambda fields: fields.update(mean=fields["mean"][1:]),
        lambda fields: fields["mean"].__setitem__((0, 0, 0), np.nan),
        lambda fields: fields["eigenvalues"].__setitem__(0, -1),
        lambda fields: fields.pop("mean"),
    ],
    ids=["float32", "shape", "NaN", "negative", "missing"],
)
def test_impossible_statistics_are_refused(jpeg, change):
    fields = {name: values.copy() for name, values in load_file(jpeg / "statistics.safetensors").items()}
    change(fields)
    (jpeg / "statistics.safetensors").write_bytes(save(fields))
    sign(jpeg)
    assert "statistics.safetensors" in refused(jpeg)


def test_names_are_a_list_of_any_characters(made, tmp_path, monkeypatch):
    source = shutil.copytree(made[0], tmp_path / "source")
    name = os.fsdecode(b"latin-\xe9 and \xc3\xa9\n.jpg")
    os.rename(source / "train" / "apple" / "0.jpg", source / "train" / "apple" / name)
    names = Prepared(prepared(monkeypatch, source, tmp_path / "set"), SIZE).splits["train"].names
    assert len(names) == 27 and f"apple/{name}" in list(names) and names[-1] == names[26] == "sky/p.png"
    assert names[-3:] == list(names)[-3:] and names.index("sky/p.png") == 26
    with pytest.raises(IndexError):
        names[27]


def test_each_shard_holds_its_share(made):
    assert [name for name in sorted(files(made[1])) if name.endswith("tar")] == [
        "train-00000.tar",
        "train-00001.tar",
        "train-00002.tar",
        "val-00000.tar",
        "val-00001.tar",
    ]
    shard = load_file(made[1] / "train.safetensors")["shard"]
    assert np.bincount(shard).tolist() == [PER_SHARD, PER_SHARD, 7]
