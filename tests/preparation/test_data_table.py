"""The table of docs/data.md, row by row: what `prepare` does with each kind of file and folder, on a disk and in a tar,
and what training from the folder does."""

import gzip
import io
import os
import re
import struct
import tarfile
from pathlib import Path

import pytest
from PIL import Image, TiffImagePlugin
from small_set import encoded, noise

from alexnet_mp import prepare
from alexnet_mp.data.dataset import Folder
from alexnet_mp.data.prepared import Prepared
from alexnet_mp.data.remarks import SEVERAL
from alexnet_mp.system.errors import UserError
from alexnet_mp.system.terminal import printable

pytestmark = pytest.mark.run

DOCS = Path(__file__).parents[2] / "docs" / "data.md"
SIZE = 8
PIPE, FOLDER, LINK = object(), object(), "to:"  # what is no file: a pipe, a folder, and a link to what follows


def picture(seed, kind="PNG", **options):
    return encoded(noise(SIZE, SIZE, seed=seed), kind, **options)


BASE = {f"{split}/{name}/{n}.png": picture(n) for split in ("train", "val") for name in ("cat", "dog") for n in (1, 2)}
TRAIN = {name: content for name, content in BASE.items() if name.startswith("train")}
RAW = TiffImagePlugin.ImageFileDirectory_v2()
RAW[254] = 1


def extra(**files):
    """The sound set and more in train/cat/."""
    return BASE | {f"train/cat/{name}": content for name, content in files.items()}


def several(kind):
    if kind == "PPM":
        return picture(5, kind) + picture(6, kind)
    return picture(5, kind, save_all=True, append_images=[Image.fromarray(noise(SIZE, SIZE, seed=6))])


def pyramid():
    buffer = io.BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(buffer, new=True) as writer:
        for tags in ({}, RAW):
            Image.fromarray(noise(SIZE, SIZE)).save(writer, "TIFF", tiffinfo=tags)
            writer.newFrame()
        return buffer.getvalue()


def damaged_metadata():
    content = picture(5, "JPEG")
    data = b"Exif\0\0II*\0\x08\0\0\0\xff\xff"
    return content[:2] + b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data + content[2:]


def vast():
    content = bytearray(picture(5, "BMP"))
    content[18:26] = struct.pack("<ii", 30_000, 20_000)
    return bytes(content)


def moved(old, new, files=BASE):
    return {name.replace(old, new): content for name, content in files.items()}


FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000", "PPM")
ENDINGS = ".jpg .jpeg .jpe .jfif .png .gif .bmp .tif .tiff .webp .jp2 .j2k .ppm".split()
OTHERS = {
    "a.txt": b"Some notes.",
    "a": b"",
    "a.heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "a.psd": b"8BPS\0\1" + bytes(60),
    "a.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "a.pdf": b"%PDF-1.7\n",
    "a.zip": b"PK\3\4" + bytes(60),
    "Thumbs.db": b"\xd0\xcf\x11\xe0" + bytes(60),
    "a.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "a.ico": b"\0\0\1\0\1\0" + bytes(60),
    "a.tar": bytes(1024),
    "a.gz": gzip.compress(b"text"),
}
# What each row means: the files, and the names that come into training or are named.
CASES = {
    "a picture of the list": (
        extra(**{f"x{ending}": picture(5, kind) for ending in ENDINGS for kind in ("JPEG",)}),
        [f"cat/x{ending}" for ending in ENDINGS],
    ),
    "the same by any other name": (
        extra(
            **{f"x{kind}": picture(5, kind) for kind in FORMATS},
            **{f"{kind} x.jpg ": picture(5, kind) for kind in FORMATS},
            **{"x.orig": picture(5), "x.JPG_large": picture(5, "JPEG")},
        ),
        ["cat/x.orig", "cat/x.JPG_large", *(f"cat/x{kind}" for kind in FORMATS), *(f"cat/{k} x.jpg " for k in FORMATS)],
    ),
    "a gzipped picture": (
        extra(**{"x.jpg.gz": gzip.compress(picture(5, "JPEG")), "y.JPEG": gzip.compress(picture(6))}),
        ["cat/x.jpg.gz", "cat/y.JPEG"],
    ),
    "several pictures in one file": [
        (extra(**{f"x.{kind}": several(kind)}), [f"cat/x.{kind}"]) for kind in ("GIF", "PNG", "WEBP", "TIFF", "PPM")
    ],
    "smaller versions, masks or a JPEG's further pictures behind it": [
        (extra(**{"x.tif": pyramid()}), ["cat/x.tif"]),
        (extra(**{"x.jpg": several("MPO")}), ["cat/x.jpg"]),
    ],
    "damaged or vast metadata in a sound picture": (extra(**{"x.jpg": damaged_metadata()}), ["cat/x.jpg"]),
    "a damaged picture": (extra(**{"x.jpg": picture(5, "JPEG")[:300]}), ["cat/x.jpg"]),
    "an empty file with a picture's ending": (extra(**{"x.webp": b""}), ["cat/x.webp"]),
    "anything else with a picture's ending": (extra(**{"x.jpg": OTHERS["a.eps"]}), ["cat/x.jpg"]),
    "a picture that takes more than 2 GB": (extra(**{"x.bmp": vast()}), ["cat/x.bmp"]),
    "a pipe, or a link to nothing, with a picture's ending": [
        (extra(**{"x.jpg": PIPE}), ["cat/x.jpg"]),
        (extra(**{"x.jpg": LINK + "nowhere"}), ["cat/x.jpg"]),
    ],
    "the same by another name": [(extra(x=PIPE), ["train/cat/x"]), (extra(x=LINK + "nowhere"), ["train/cat/x"])],
    "a file of another kind": [(extra(**{name: content}), [f"train/cat/{name}"]) for name, content in OTHERS.items()],
    "a camera's raw file": (extra(**{"x.dng": picture(5, "TIFF", tiffinfo=RAW)}), ["train/cat/x.dng"]),
    "the same with a picture's ending": (extra(**{"x.tif": picture(5, "TIFF", tiffinfo=RAW)}), ["cat/x.tif"]),
    "a name with control characters": (extra(**{"\x1b[2J.jpg": picture(5)}), ["cat/\x1b[2J.jpg"]),
    "a name that is no UTF-8": (extra(**{"\udcff.jpg": picture(5)}), ["cat/\udcff.jpg"]),
    "a hidden file": (extra(**{".x.jpg": picture(5), "._y.jpg": b""}), ["train/cat/.x.jpg", "train/cat/._y.jpg"]),
    "a hidden folder": (
        BASE | {"train/.cache/1.jpg": b"", "train/cat/.cache/1.jpg": b"", ".git/1.jpg": b""},
        ["train/.cache", "train/cat/.cache", ".git"],
    ),
    "a system's own folder": (
        BASE
        | {
            "__MACOSX/train/cat/._1.png": b"",
            "train/@eaDir/1.png/thumb.jpg": picture(5),
            "train/cat/@eaDir/1.png": picture(5),
            "val/lost+found": FOLDER,
        },
        ["__MACOSX", "train/@eaDir", "train/cat/@eaDir", "val/lost+found"],
    ),
    "a file in a folder within a class": (
        extra(**{"more/x.jpg": picture(5), "more/yet/.z": b""}),
        ["train/cat/more/x.jpg", "train/cat/more/yet/.z"],
    ),
    "a link to a folder within a class": (extra(all=LINK + ".."), ["train/cat/all"]),
    "a file outside the class folders": (
        BASE | {"train/x.jpg": picture(5), "labels.txt": b"", "x.jpg": picture(5)},
        ["train/x.jpg", "labels.txt", "x.jpg"],
    ),
    "a link to nothing in a class's place": [
        (BASE | {"train/elk": LINK + where}, ["train/elk"]) for where in ("nowhere", "elk")
    ],
    "a class without a picture": [
        (BASE | {"train/elk": FOLDER}, ["train/elk"]),
        (BASE | {"train/elk": FOLDER, "val/elk": FOLDER}, ["train/elk"]),
        (BASE | {"train/elk/notes.txt": b""}, ["train/elk"]),
        (TRAIN | {"train/elk/notes.txt": b"", "val/cat/1.png": b"", "val/dog/1.png": b""}, ["train/elk"]),
    ],
    "a class with pictures in folders alone": (moved("train/dog", "train/dog/more"), ["train/dog"]),
    "one class": ({name: content for name, content in BASE.items() if "cat" in name}, ["train"]),
    "no classes": ({"train/x.jpg": picture(5), "train/y.jpg": picture(5), "val/x.jpg": picture(5)}, ["train"]),
    "classes that look alike": [
        (
            BASE | {f"{split}/{name}/x.jpg": picture(5) for split in ("train", "val") for name in names},
            [f"classes {ascii(names[0])} and {ascii(names[-1])}", how],
        )
        for names, how in (
            (["Cat", "cat"], "capitals alone"),
            (["cafe\u0301", "café"], "how accents are written"),
            (["polar bear", "polar  bear"][::-1], "spaces alone"),
        )
    ],
    "a class that is a link to another": (BASE | {"train/elk": LINK + "cat", "val/elk": LINK + "cat"}, ["train/elk"]),
    "other classes in val": [
        (BASE | {"val/elk/x.jpg": picture(5)}, ["val", "elk"]),
        ({name: content for name, content in BASE.items() if "val/dog" not in name}, ["val", "dog"]),
    ],
    "val that is a link to train": (TRAIN | {"val": LINK + "train"}, ["val"]),
    "val by another name": [(moved("val/", f"{name}/"), []) for name in ("valid", "validation", "Val", "VALIDATION")],
    "the same without class folders": [
        *((TRAIN | {f"{name}/x.jpg": picture(5)}, [name]) for name in ("val", "valid", "Validation")),
        (TRAIN | {"val": FOLDER}, ["val"]),
    ],
    "a file called val, and no other val": [(TRAIN | {name: b"train"}, [name]) for name in ("val", "Valid")],
    "a link to nothing called val": (TRAIN | {"val": LINK + "nowhere"}, ["val"]),
    "two folders that mean val": (moved("val/", "valid/") | moved("val/", "validation/"), ["valid/", "validation/"]),
    "another folder with train's classes, and no val": (moved("val/", "dev/"), ["dev/"]),
    "another folder beside train and val": (BASE | moved("val/", "dev/"), ["dev/"]),
    "pictures in test itself": (BASE | {"test/x.jpg": picture(5), "test/notes.txt": b""}, ["test/x.jpg"]),
    "no train": ({name: content for name, content in BASE.items() if "train" not in name}, ["train/"]),
    "all in one folder more": ({f"photos/{name}": content for name, content in BASE.items()}, ["photos/"]),
    "class folders alone": (moved("train/", "", TRAIN), []),
}


def rows():
    """{what: (outcome and words of prepare, of a tar, of train)}."""
    table = re.search(r"\| what \| example .*?\n\n", DOCS.read_text("utf-8"), re.DOTALL)[0]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:] if line]
    return {what: (folder, tar or folder, train or folder) for what, _, folder, tar, train in cells}


def make_folder(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is PIPE:
            os.mkfifo(path)
        elif content is FOLDER:
            path.mkdir()
        elif isinstance(content, str):
            path.symlink_to(content.removeprefix(LINK))
        else:
            path.write_bytes(content)
    return root


def make_tar(path, files):
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            header = tarfile.TarInfo(name)
            if content is PIPE:
                header.type = tarfile.FIFOTYPE
            elif content is FOLDER:
                header.type = tarfile.DIRTYPE
            elif isinstance(content, str):
                header.type, header.linkname = tarfile.SYMTYPE, content.removeprefix(LINK)
            else:
                header.size = len(content)
            archive.addfile(header, io.BytesIO(content) if isinstance(content, bytes) else None)
    return path


def prepared(source, dest, capsys):
    """({split: names}, lines) of what `prepare` makes."""
    SEVERAL.forget()
    capsys.readouterr()
    arguments = [str(source), str(dest), "--size", str(SIZE), "--workers", "0", "--raw"]
    assert prepare.main(arguments) == 0
    dataset = Prepared(dest, SIZE)
    return {name: list(split.names) for name, split in dataset.splits.items()}, said(capsys)


def said(capsys):
    output = capsys.readouterr()
    return (output.out + output.err).splitlines()


def trained(root, _, capsys):
    """({split: names}, lines) of what `train` reads of a folder."""
    SEVERAL.forget()
    folder = Folder(root, SIZE)
    for split in folder.splits.values():
        for index in range(len(split)):
            split.read(index)
    names = {name: ["/".join(Path(file).parts[-2:]) for file in split.names] for name, split in folder.splits.items()}
    return names, [*folder.passed_over, *said(capsys)]


def check(answer, expected, mentions, source, *arguments):
    """That answer(source, ...) is as a cell of the table says."""
    outcome, words = expected.split(":")[0], re.search("`(.*)`", expected)
    if outcome == "refused":
        with pytest.raises(UserError) as refusal:
            answer(source, *arguments)
        for name in mentions:
            text = name.encode(errors="surrogateescape").decode(errors="backslashreplace")  # of no UTF-8: its bytes
            assert printable(name) in str(refusal.value) or text in str(refusal.value), refusal.value
        assert words[1] in str(refusal.value) and "\n" not in str(refusal.value)
        return
    splits, lines = answer(source, *arguments)
    remarks = [line for line in lines if line.startswith("passed over, ")]
    if outcome == "read":
        additions = set() if "without" in expected else {name for name in mentions if not name.endswith("/")}
        if "said" in expected:
            (line,) = (line for line in lines if words[1] in line and all(name in line for name in mentions))
            additions, mentions = additions if "the first" in expected else set(), ()
        elif "the first" in expected:
            assert not any(name in line for name in mentions for line in lines)
        if "as val" in expected:
            assert [len(splits[name]) for name in ("train", "val")] == [4, 4]
        assert additions <= set(splits["train"]) and splits.keys() >= {"train", "val"}
        assert len(splits["train"]) + len(splits["val"]) >= 4 and not any(name in "".join(remarks) for name in mentions)
    else:
        assert outcome == "passed over"
        assert {name: len(names) for name, names in splits.items()} == {"train": 4, "val": 4}
        (line,) = (line for line in remarks if line.startswith(f"passed over, {words[1]}"))
        assert f": {len(mentions)} (" in line and all(name in line for name in mentions), line


def test_the_table_has_every_case_and_no_other():
    assert list(rows()) == list(CASES)


@pytest.mark.slow
def test_every_row_is_true(tmp_path, capsys):
    """Of all forms; a refusal or a line names what it is about."""
    for what, (on_disk, in_tar, in_training) in rows().items():
        cases = CASES[what] if isinstance(CASES[what], list) else [CASES[what]]
        for number, (files, mentions) in enumerate(cases):
            place = tmp_path / f"{list(CASES).index(what)}-{number}"
            folder, archive = make_folder(place / "folder", files), make_tar(place / "set.tar", files)
            for answer, source, expected, dest in (
                (prepared, folder, on_disk, "of folder"),
                (prepared, archive, in_tar, "of tar"),
                (trained, folder, in_training, ""),
            ):
                try:
                    check(answer, expected, mentions, source, place / dest, capsys)
                except BaseException as error:
                    error.add_note(f"{what}, {number}, {source.name}, {answer.__name__}: {expected}")
                    raise
