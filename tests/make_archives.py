"""Archives that imitate those of ILSVRC, ImageNet and CIFAR-10, with small made pictures in them."""

import io
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image
from small_set import write

from alexnet_mp.preparation.sources import find
from alexnet_mp.system.errors import UserError

WNIDS = ("n01440764", "n02102040", "n03394916", "n07753592")  # sorted, as labels are
WORDS = ("tench, Tinca tinca", "English springer", "French horn, horn", "banana")
IDS = (3, 1, 4, 2)  # the competitions' numbers are not in the order of the wnids
PARENT = ("n00001740", "entity", 5)  # a synset with children: no class
CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def pixels(seed, height=24, width=30):
    """(height, width, 3) uint8, another for every seed."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def image(seed, kind="PNG", **size):
    """The bytes of an image file of `pixels(seed)`."""
    buffer = io.BytesIO()
    Image.fromarray(pixels(seed, **size)).save(buffer, kind)
    return buffer.getvalue()


def tar(files, kind=tarfile.GNU_FORMAT, mode="w"):
    """The bytes of a tar of {name: bytes}; None in place of bytes makes a folder. `mode` "w:gz" compresses it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=kind) as archive:
        for name, content in files.items():
            header = tarfile.TarInfo(name)
            header.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            header.size = len(content or b"")
            archive.addfile(header, io.BytesIO(content or b""))
    return buffer.getvalue()


def seed_of(split, label, number):
    """The seed of image `number` of a class, in every set that is made here."""
    return 1000 * ("train", "val", "test").index(split) + 100 * label + number


def synset_tar_files(images=3, wnids=WNIDS, kind="PNG"):
    """{"n01440764.tar": bytes, ...}: each a tar of `images` images, not in the order of their names."""
    return {
        f"{wnid}.tar": tar(
            {
                f"{wnid}_{number}.JPEG": image(seed_of("train", label, number), kind)
                for number in reversed(range(images))
            }
        )
        for label, wnid in enumerate(wnids)
    }


def meta(key, extra=()):
    """A devkit's meta.mat; `key` is "ILSVRC2012" or "ILSVRC2010", `extra` more (wnid, words, number) without
    children."""
    from scipy.io import savemat

    rows = sorted(
        [(number, wnid, words, 0) for wnid, words, number in (*zip(WNIDS, WORDS, IDS), *extra)]
        + [(PARENT[2], PARENT[0], PARENT[1], 4)]
    )
    fields = [
        (f"{key}_ID", "O"),
        ("WNID", "O"),
        ("words", "O"),
        ("gloss", "O"),
        ("num_children", "O"),
        ("children", "O"),
        ("wordnet_height", "O"),
        ("num_train_images", "O"),
    ]
    table = np.empty((len(rows), 1), fields)
    for row, (number, wnid, words, children) in enumerate(rows):
        table[row, 0] = (
            float(number),
            wnid,
            words,
            f"what {words} is",
            float(children),
            np.arange(1.0, children + 1),
            0.0,
            3.0,
        )
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": table}, do_compression=True)
    return buffer.getvalue()


def numbered(prefix, split, each):
    """({number: (name, bytes)}, [ID of each]): `each` images of every class, the classes mixed."""
    order = [(label, number) for number in range(each) for label in (2, 0, 3, 1)]
    files = {
        place: (f"{prefix}_{split}_{place:08}.JPEG", image(seed_of(split, *which)))
        for place, which in enumerate(order, start=1)
    }
    return files, [IDS[label] for label, _ in order]


def lines(values):
    return "".join(f"{value}\n" for value in values).encode()


def ilsvrc2012_files(train=3, val=2):
    """{name: bytes} of ILSVRC-2012's archives."""
    images, answers = numbered("ILSVRC2012", "val", val)
    devkit = {
        "ILSVRC2012_devkit_t12/readme.txt": b"made",
        "ILSVRC2012_devkit_t12/data": None,
        "ILSVRC2012_devkit_t12/data/meta.mat": meta("ILSVRC2012"),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": lines(answers),
    }
    return {
        "ILSVRC2012_img_train.tar": tar(synset_tar_files(train)),
        "ILSVRC2012_img_val.tar": tar(dict(images[place] for place in sorted(images, reverse=True))),
        "ILSVRC2012_devkit_t12.tar.gz": tar(devkit, mode="w:gz"),
    }


def make_ilsvrc2012(root, train=3, val=2):
    """ILSVRC-2012 in the directory `root`: four classes, `train` and `val` images of each."""
    return write(root, ilsvrc2012_files(train, val))


def make_ilsvrc2010(root, train=3, val=2, test=2, patch=True):
    """ILSVRC-2010, with folders in the archives, and with a patch of image 0 of class 1 (seed 9000) and of test image 1
    (9001)."""
    files = {}
    for split, each in (("val", val), ("test", test)):
        images, answers = numbered("ILSVRC2010", split, each)
        files[f"ILSVRC2010_images_{split}.tar"] = tar({f"{split}/{name}": content for name, content in images.values()})
        if split == "test":
            files["ILSVRC2010_test_ground_truth.txt"] = lines(answers)
        else:
            devkit = {
                "devkit-1.0/data/meta.mat": meta("ILSVRC2010"),
                "devkit-1.0/data/ILSVRC2010_validation_ground_truth.txt": lines(answers),
            }
    files["ILSVRC2010_devkit-1.0.tar.gz"] = tar(devkit, mode="w:gz")
    files["ILSVRC2010_images_train.tar"] = tar(
        {f"train/{name}": content for name, content in synset_tar_files(train).items()}
    )
    if patch:
        files["patch_images.tar"] = tar(
            {
                f"patch_images/train/{WNIDS[1]}_0.JPEG": image(9000),
                "patch_images/test/ILSVRC2010_test_00000001.JPEG": image(9001),
                "patch_images/train/n09999999_7.JPEG": image(9002),
            }
        )
    return write(root, files)


def make_synset_tars(root, images=4, one_tar=False):
    """ImageNet's tars by wnid in the directory `root`; or the one tar of them, `root`."""
    files = synset_tar_files(images)
    if not one_tar:
        return write(root, files)
    root.parent.mkdir(parents=True, exist_ok=True)
    root.write_bytes(tar(files))
    return root


def cifar_batch(number, pictures=20):
    """(pixels (pictures, 3072) uint8, labels) of batch 1 to 5, or of the test batch, number 6."""
    rows = np.random.default_rng(number).integers(0, 256, (pictures, 3072), dtype=np.uint8)
    return rows, [(3 * row + number) % 10 for row in range(pictures)]


def python2(batch):
    """The bytes that Python 2 wrote for {b"data": array, b"labels": [...], ...}: protocol 2, text and bytes the
    same."""

    def text(value):
        return (b"U" + bytes([len(value)]) if len(value) < 256 else b"T" + len(value).to_bytes(4, "little")) + value

    def put(value):
        if isinstance(value, bytes):
            return text(value)
        if isinstance(value, int):
            return b"K" + bytes([value]) if value < 256 else b"M" + value.to_bytes(2, "little")
        if isinstance(value, list):
            return b"](" + b"".join(map(put, value)) + b"e"
        if isinstance(value, dict):
            return b"}(" + b"".join(put(key) + put(item) for key, item in value.items()) + b"u"
        dtype = (
            b"cnumpy\ndtype\n"
            + text(b"u1")
            + b"K\0K\1\x87R(K\3"
            + text(b"|")
            + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
        )
        shape = b"".join(b"M" + side.to_bytes(2, "little") for side in value.shape) + b"\x86"
        return (
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85"
            + text(b"b")
            + b"\x87R(K\1"
            + shape
            + dtype
            + b"\x89"
            + text(value.tobytes())
            + b"tb"
        )

    return b"\x80\2" + put(batch) + b"."


def cifar_files(version="binary", pictures=20, dump=python2):
    """{name: bytes} of CIFAR-10's folder; `dump` writes the pickles of the Python version."""
    files = {}
    for number, name in enumerate([*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"], start=1):
        rows, labels = cifar_batch(number, pictures)
        if version == "binary":
            files[f"{name}.bin"] = np.concatenate([np.array(labels, np.uint8)[:, None], rows], axis=1).tobytes()
        else:
            files[name] = dump(
                {
                    b"batch_label": b"made",
                    b"labels": labels,
                    b"data": rows,
                    b"filenames": [b"%d.png" % row for row in range(pictures)],
                }
            )
    if version == "binary":
        files["batches.meta.txt"] = "".join(f"{name}\n" for name in (*CIFAR_CLASSES, "")).encode()
    else:
        files["batches.meta"] = dump({b"label_names": [name.encode() for name in CIFAR_CLASSES], b"num_vis": 3072})
    return files


def python3(protocol):
    """Writes pickles as Python 3 does."""
    return lambda batch: pickle.dumps(batch, protocol=protocol)


def make_cifar10(root, version="binary", archive=False, pictures=20, dump=python2):
    """CIFAR-10 in the directory `root`, as its folder or as the tar.gz; returns the path of that folder or archive."""
    folder = "cifar-10-batches-bin" if version == "binary" else "cifar-10-batches-py"
    files = {f"{folder}/{name}": content for name, content in cifar_files(version, pictures, dump).items()}
    if not archive:
        return write(root, files) / folder
    name = f"cifar-10-{version}.tar.gz"
    return write(root, {name: tar({folder: None} | files, mode="w:gz")}) / name


def refused(path, **options):
    """The one line with which `find` refuses; it begins with the path."""
    with pytest.raises(UserError) as error:
        find(path, **options)
    message = str(error.value)
    assert message.isprintable() and message.startswith(str(path)), message
    return message
