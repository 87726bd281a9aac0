"""Folders of images: the awkward files of a real set are read right, the useless ones are refused by name."""
import io
import multiprocessing
import os

import numpy as np
import pytest
from PIL import Image

from alexnet_mp import dataset
from alexnet_mp.builtin import Builtin
from alexnet_mp.dataset import CachedSplit, Folder, cached, open_dataset, stored_picture
from alexnet_mp.errors import UserError

SIZE = 24


def noise(height, width, channels=3, seed=1):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(picture, kind="PNG", **options):
    """A file's bytes, from an array or a Pillow image."""
    buffer = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(buffer, kind, **options)
    return buffer.getvalue()


def write(root, files):
    """Write {"train/cat/1.png": bytes, ...} and return the folder."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def small_set():
    """Two classes; three training images, two validation images, each with its own pixels."""
    names = ("train/cat/c.png", "train/cat/b.png", "train/ant/a.png", "val/ant/d.png", "val/cat/e.png")
    return {name: encoded(noise(SIZE, SIZE, seed=seed)) for seed, name in enumerate(names)}


def stored(tmp_path, content, name="x.jpg", size=SIZE):
    """The stored picture of one image file, by the way that training takes."""
    files = {f"train/a/{name}": content, "train/b/y.png": encoded(noise(8, 8))}
    files |= {name.replace("train", "val"): data for name, data in files.items()}
    return Folder(write(tmp_path, files), size).splits["train"].read(0)


def test_classes_and_labels_follow_the_order_of_the_names(tmp_path):
    ignored = dict.fromkeys(("train/cat/.hidden.png", "train/cat/notes.txt", "train/list.txt", "train/.git/x.png"), b"")
    root = write(tmp_path, small_set() | ignored | {"val/cat/upper.JPEG": encoded(noise(9, 9), "JPEG")})
    folder = open_dataset(str(root), SIZE)
    assert folder.classes == ["ant", "cat"] and list(folder.splits) == ["train", "val"]
    train, val = folder.splits["train"], folder.splits["val"]
    assert train.names == [str(root / "train" / name) for name in ("ant/a.png", "cat/b.png", "cat/c.png")]
    assert train.labels.tolist() == [0, 1, 1] and train.labels.dtype == np.int64 and len(train) == 3
    assert [os.path.basename(name) for name in val.names] == ["d.png", "e.png", "upper.JPEG"]
    assert val.labels.tolist() == [0, 1, 1] and len(val) == 3
    for index, seed in enumerate((2, 1, 0)):
        assert np.array_equal(train.read(index), noise(SIZE, SIZE, seed=seed))
    assert "3 train" in folder.description and "2 classes" in folder.description


def test_only_the_splits_asked_for_are_read(tmp_path):
    write(tmp_path, small_set() | {"test/ant/f.png": encoded(noise(5, 5)), "test/cat/g.png": encoded(noise(5, 5))})
    assert list(Folder(tmp_path, SIZE).splits) == ["train", "val"]
    folder = Folder(tmp_path, SIZE, ("test",))  # for a test alone neither train/ nor val/ is looked at
    assert list(folder.splits) == ["test"] and len(folder.splits["test"]) == 2 and folder.classes == ["ant", "cat"]
    with pytest.raises(UserError, match="no extra/ folder"):
        Folder(tmp_path, SIZE, ("extra",))


def test_builtin_is_a_word_and_not_a_folder():
    assert isinstance(open_dataset("builtin", 32), Builtin)


def test_the_fingerprint_sees_every_change_of_the_file_list(tmp_path):
    files = small_set()
    first = Folder(write(tmp_path / "0", files), SIZE).fingerprint
    assert Folder(write(tmp_path / "elsewhere", files), SIZE).fingerprint == first  # moving a set does not change it
    for number, changed in enumerate((
            files | {"train/cat/new.png": encoded(noise(3, 3))}, files | {"val/cat/new.png": encoded(noise(3, 3))},
            files | {"val/cat/e.png": files["val/cat/e.png"] + b"\0"},
            {name.replace("c.png", "z.png"): data for name, data in files.items()},
            {name.replace("cat/b.png", "ant/b.png"): data for name, data in files.items()}), start=1):  # same order of names
        assert Folder(write(tmp_path / str(number), changed), SIZE).fingerprint != first


@pytest.mark.parametrize("kind, name", [("PNG", "x.JPEG"), ("JPEG", "x.png")])
def test_the_content_decides_the_format(tmp_path, kind, name):
    """ILSVRC has a PNG named .JPEG."""
    content = encoded(noise(SIZE, SIZE), kind)
    assert np.array_equal(stored(tmp_path, content, name), np.asarray(Image.open(io.BytesIO(content))))


@pytest.mark.parametrize("grey", [noise(SIZE, SIZE, 1), noise(SIZE, SIZE, 1) > 127], ids=["8 bits", "1 bit"])
def test_grey_becomes_rgb(tmp_path, grey):
    expected = np.repeat((grey if grey.dtype == np.uint8 else grey * np.uint8(255))[:, :, None], 3, axis=2)
    assert np.array_equal(stored(tmp_path, encoded(grey)), expected)


def test_cmyk_becomes_rgb(tmp_path):
    """Cyan, magenta, yellow, black, no ink: JPEG at its best quality is within 4 of the colours."""
    inks = np.zeros((SIZE, 5 * SIZE, 4), np.uint8)
    for i in range(4):
        inks[:, i * SIZE:(i + 1) * SIZE, i] = 255
    content = encoded(Image.frombytes("CMYK", (5 * SIZE, SIZE), inks.tobytes()), "JPEG", quality=100, subsampling=0)
    assert Image.open(io.BytesIO(content)).mode == "CMYK"
    whole = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    colours = np.repeat([[0, 255, 255], [255, 0, 255], [255, 255, 0], [0, 0, 0], [255, 255, 255]], SIZE, axis=0)
    assert np.abs(whole - colours).max() <= 4
    assert np.array_equal(stored(tmp_path, content), whole[:, 2 * SIZE:3 * SIZE])  # the central square: yellow


def test_transparency_is_dropped(tmp_path):
    """The colour under a transparent pixel stays; nothing is blended with a background."""
    rgba = noise(SIZE, SIZE, 4)
    assert np.array_equal(stored(tmp_path / "rgba", encoded(rgba)), rgba[:, :, :3])
    grey = Image.merge("LA", [Image.fromarray(rgba[:, :, i]) for i in (0, 3)])
    assert np.array_equal(stored(tmp_path / "la", encoded(grey)), rgba[:, :, [0, 0, 0]])


def palette_png(**transparency):
    """A PNG with 256 colours, and what its pixels should be."""
    indices, palette = noise(SIZE, SIZE, 1), noise(256, 3, 1, seed=2)
    image = Image.fromarray(indices)
    image.putpalette(palette.tobytes())
    content = encoded(image, **transparency)
    assert Image.open(io.BytesIO(content)).mode == "P"
    return content, palette[indices]


ALPHA_TABLE = {"transparency": bytes(range(256))}


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("transparency", [{}, {"transparency": 7}, ALPHA_TABLE], ids=["none", "one colour", "table"])
def test_a_palette_becomes_rgb(tmp_path, transparency):
    content, expected = palette_png(**transparency)
    assert np.array_equal(stored(tmp_path, content), expected)


def test_a_palette_is_no_reason_to_warn(tmp_path, recwarn):
    stored(tmp_path, palette_png(**ALPHA_TABLE)[0])
    assert not recwarn.list


def test_sixteen_bits_keep_their_greys(tmp_path):
    """Pillow's own conversion clips at 255: mid-grey, 32768, would become white."""
    greys = np.tile(np.arange(SIZE, dtype=np.uint16) * 2800, (SIZE, 1))
    greys[0, :4] = 0, 255, 32768, 65535
    expected = greys >> 8
    assert expected[0, :4].tolist() == [0, 0, 128, 255]
    content = encoded(greys)
    assert Image.open(io.BytesIO(content)).mode.startswith("I")
    assert np.array_equal(stored(tmp_path, content, "x.png"), np.repeat(expected[:, :, None], 3, axis=2))


def test_one_pixel_fills_the_picture(tmp_path):
    picture = stored(tmp_path, encoded(np.array([[[9, 90, 200]]], np.uint8)))
    assert picture.shape == (SIZE, SIZE, 3) and picture.dtype == np.uint8
    assert (picture == [9, 90, 200]).all()


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_orientation_tags_are_ignored(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = encoded(noise(SIZE, SIZE), "JPEG")
    turned = encoded(noise(SIZE, SIZE), "JPEG", exif=exif)
    assert Image.open(io.BytesIO(turned)).getexif()[0x0112] == orientation
    assert np.array_equal(stored(tmp_path / "turned", turned), stored(tmp_path / "upright", upright))


@pytest.mark.parametrize("factor", [2, 3])
def test_reduction_is_the_mean_of_each_block(factor):
    blocks = noise(SIZE, SIZE)
    picture = np.kron(blocks, np.ones((factor, factor, 1), np.uint8))
    assert np.array_equal(stored_picture(Image.fromarray(picture), SIZE), blocks)
    if factor == 2:  # pixels of a block that differ, by amounts whose means along each axis are whole numbers
        spread = np.tile([[-20, 4], [6, 10]], (SIZE, SIZE))[:, :, None]
        uneven = np.kron(noise(SIZE, SIZE) // 2 + 60, np.ones((2, 2, 1), int)) + spread
        expected = uneven.reshape(SIZE, 2, SIZE, 2, 3).mean((1, 3))
        assert np.array_equal(stored_picture(Image.fromarray(uneven.astype(np.uint8)), SIZE), expected)


def test_enlargement_is_smooth():
    """Bicubic: a ramp stays a ramp, where the nearest pixel would make stairs."""
    ramp = np.tile((np.arange(12) * 20)[None, :, None], (12, 1, 3)).astype(np.uint8)
    row = stored_picture(Image.fromarray(ramp), 48)[24, 8:40, 0].astype(int)
    assert np.abs(np.diff(row) - 5).max() <= 1


@pytest.mark.parametrize("height, width, top, left", [
    (SIZE, SIZE, 0, 0), (SIZE, SIZE + 20, 0, 10), (SIZE + 20, SIZE, 10, 0), (SIZE, SIZE + 7, 0, 3),
])
def test_the_right_size_is_cropped_centrally_and_left_as_it_is(height, width, top, left):
    picture = noise(height, width)
    assert np.array_equal(stored_picture(Image.fromarray(picture), SIZE), picture[top:top + SIZE, left:left + SIZE])


@pytest.mark.parametrize("turn", [lambda a: a, lambda a: a.transpose(1, 0, 2)], ids=["landscape", "portrait"])
def test_the_central_square_of_a_larger_picture(turn):
    picture = np.kron(noise(SIZE, SIZE + 30), np.ones((2, 2, 1), np.uint8))
    expected = noise(SIZE, SIZE + 30)[:, 15:15 + SIZE]
    assert np.array_equal(stored_picture(Image.fromarray(turn(picture)), SIZE), turn(expected))


def refused(directory):
    with pytest.raises(UserError) as raised:
        Folder(directory, SIZE)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("change, named", [
    (lambda files: {}, ["no such directory", "folder"]),
    (lambda files: {name: data for name, data in files.items() if "train" not in name}, ["train/"]),
    (lambda files: {name: data for name, data in files.items() if "val" not in name}, ["val/"]),
    (lambda files: {name: data for name, data in files.items() if "cat" not in name}, ["train", "single class"]),
    (lambda files: {"train/x.png": b"", "val/x.png": b""}, ["train", "no class folders"]),
    (lambda files: {name: data for name, data in files.items() if "d.png" not in name} | {"val/ant/notes.txt": b""},
     [os.path.join("val", "ant"), "empty"]),
    (lambda files: files | {"val/dog/x.png": b""}, ["val", "extra dog"]),
    (lambda files: files | {"train/dog/x.png": b"", "train/elk/x.png": b""}, ["val", "missing dog, elk"]),
    (lambda files: files | {f"train/new{i}/x.png": b"" for i in range(7)}, ["new0", "new4 and 2 more"]),
    (lambda files: {name.replace("val/cat", "val/dog"): data for name, data in files.items()}, ["val", "missing cat; extra dog"]),
])
def test_a_wrong_folder_is_refused_by_name(tmp_path, change, named):
    message = refused(write(tmp_path / "folder", change(small_set())))
    assert all(part in message for part in named), message


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "archive.tar").write_bytes(b"")
    assert "archive.tar" in refused(tmp_path / "archive.tar")


def test_a_dangling_link_is_named(tmp_path):
    root = write(tmp_path, small_set())
    (root / "train" / "cat" / "gone.png").symlink_to(root / "nowhere.png")
    assert "gone.png" in refused(root)


def test_a_pipe_is_not_read(tmp_path):
    """Opening it would wait for ever."""
    root = write(tmp_path, small_set())
    os.mkfifo(root / "train" / "cat" / "pipe.png")
    assert "pipe.png" in refused(root)


@pytest.mark.parametrize("content", [
    encoded(noise(40, 40), "JPEG")[:700], encoded(noise(40, 40))[:2000], b"no image at all\n" * 9, b"", b"\xff\xd8\xff",
], ids=["truncated JPEG", "truncated PNG", "garbage", "empty", "JPEG header alone"])
def test_an_unreadable_image_is_named(tmp_path, content):
    with pytest.raises(UserError, match="cannot read image .*train/a/broken.jpg: .") as raised:
        stored(tmp_path, content, "broken.jpg")
    assert "\n" not in str(raised.value) and str(raised.value).count("broken.jpg") == 1


def recording(split, log):
    """Note every file that is really read."""
    read = split.read
    split.read = lambda index: (log.append(index), read(index))[1]
    return split


def test_the_cache_reads_a_file_once(tmp_path):
    split, log = Folder(write(tmp_path, small_set()), SIZE).splits["train"], []
    expected = [split.read(index).copy() for index in range(3)]
    cache = CachedSplit(recording(split, log), SIZE)
    for index in (2, 0, 2, 1, 0, np.int64(1)):
        assert np.array_equal(cache.read(index), expected[index])
    assert log == [2, 0, 1]
    assert len(cache) == 3 and cache.names == split.names and np.array_equal(cache.labels, split.labels)


def test_what_a_forked_process_read_is_in_the_parents_cache(tmp_path):
    split, log = Folder(write(tmp_path, small_set()), SIZE).splits["train"], []
    expected = [split.read(index).copy() for index in range(3)]
    cache = CachedSplit(recording(split, log), SIZE)
    worker = multiprocessing.get_context("fork").Process(target=lambda: [cache.read(index) for index in (0, 2)])
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    assert np.array_equal(cache.read(0), expected[0]) and np.array_equal(cache.read(2), expected[2]) and log == []
    assert np.array_equal(cache.read(1), expected[1]) and log == [1]


def test_an_unreadable_image_is_not_cached(tmp_path):
    root = write(tmp_path, small_set() | {"train/ant/a.png": b""})
    cache = CachedSplit(Folder(root, SIZE).splits["train"], SIZE)
    for _ in range(2):
        with pytest.raises(UserError, match="a.png"):
            cache.read(0)
    write(root, {"train/ant/a.png": encoded(noise(SIZE, SIZE, seed=9))})
    assert np.array_equal(cache.read(0), noise(SIZE, SIZE, seed=9))


PICTURE = SIZE * SIZE * 3  # bytes


@pytest.mark.parametrize("free, held", [
    (2 * 5 * PICTURE, ["train", "val"]), (2 * 5 * PICTURE - 2, ["train"]), (2 * 3 * PICTURE, ["train"]),
    (2 * 3 * PICTURE - 2, ["val"]), (2 * 2 * PICTURE - 2, []), (0, [])])
def test_half_of_the_free_memory_is_the_caches(tmp_path, monkeypatch, free, held):
    folder = Folder(write(tmp_path, small_set()), SIZE)
    monkeypatch.setattr(dataset, "free_memory", lambda: free)
    assert cached(folder, SIZE) == list(held)
    assert [name for name, split in folder.splits.items() if isinstance(split, CachedSplit)] == held
    assert np.array_equal(folder.splits["train"].read(0), noise(SIZE, SIZE, seed=2))


def test_free_memory_is_a_plausible_number_of_bytes():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < dataset.free_memory() <= total
