"""CIFAR-10 as distributed: the binary and the Python version, as a folder or as the tar.gz.

A picture is 3,072 bytes: 32x32 of red, then green, then blue, row by row. The binary version puts a label byte before
each; the Python version is pickles. A pickle is a program that may do anything to whoever loads it, so these are never
loaded: `unpickled` follows the few steps that such files need and refuses every other."""

import functools
import pickletools
from pathlib import Path

import numpy as np

from ..data.file_ranges import Descriptor
from ..system.errors import UserError
from .items import Item, Source, whole_file
from .tar_archives import gzip_members, shown

PICTURE = 3 * 32 * 32  # bytes
CLASSES = 10
BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
LARGEST_BATCH = 128 << 20  # bytes; those distributed have 30.7 million
LARGEST_META = 64 << 10
LARGEST_ARCHIVE = 1 << 30  # bytes, unpacked
# folder, archive, ending of the batches, file of the class names
VERSIONS = (
    ("cifar-10-batches-bin", "cifar-10-binary.tar.gz", ".bin", "batches.meta.txt"),
    ("cifar-10-batches-py", "cifar-10-python.tar.gz", "", "batches.meta"),
)
# What the pickle of an array of uint8 calls, by Python 2 and 3, NumPy 1 and 2, protocols 2 to 5.
GLOBALS = {
    "numpy.core.multiarray _reconstruct": "array",
    "numpy._core.multiarray _reconstruct": "array",
    "numpy.core.numeric _frombuffer": "buffer",
    "numpy._core.numeric _frombuffer": "buffer",
    "numpy ndarray": "class",
    "numpy dtype": "dtype",
    "_codecs encode": "encode",
}


def find(path: str | Path) -> Source | None:
    """The CIFAR-10 set that `path` is or holds, a `Source` with train and val (the test batch); None where there is
    none.

    A directory that has it more than once: the folder is taken before the archive, the binary version before the other.
    Raises UserError where a part is missing or damaged.
    """
    path = Path(path)
    if path.is_file():
        return _from_archive(path) if _is_gzip(path) else None
    for folder, _, ending, meta in VERSIONS:
        for place in (path, path / folder):
            if any((place / f"{batch}{ending}").is_file() for batch in BATCHES):
                return _from_folder(place, ending, meta)
    return next((_from_archive(path / archive) for _, archive, *_ in VERSIONS if (path / archive).is_file()), None)


def read(path: str, offset: int, length: int) -> bytes:
    """The bytes of a picture of the form "cifar batch"; `offset` counts through the batches of `path`, one after the
    other."""
    batches = _batches(path)[0]
    number, start = divmod(offset, len(batches[0]))
    return batches[number][start : start + length].tobytes()


def _from_folder(folder, ending, meta):
    for name in (*(f"{batch}{ending}" for batch in BATCHES), meta):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder}: no file {name}; CIFAR-10 has {BATCHES[0]}{ending} to {BATCHES[4]}{ending}, "
                f"{BATCHES[5]}{ending} and {meta}"
            )
    classes = _class_names(whole_file(folder / meta, LARGEST_META), folder / meta)
    labels, places = [], []
    for batch in BATCHES:
        path = str(folder / f"{batch}{ending}")
        if ending:
            labels.append(_binary_batch(whole_file(path, LARGEST_BATCH), path)[1])
            places.append((path, 1, 1 + PICTURE, "cifar"))
        else:
            labels += _batches(path)[1]
            places.append((path, 0, PICTURE, "cifar batch"))
    return _source(
        f"CIFAR-10, {'binary' if ending else 'Python'} version, in {folder}", classes, labels, places, folder
    )


def _from_archive(path):
    batches, labels, classes = _batches(str(path))
    places, start = [], 0
    for batch in batches:
        places.append((str(path), start, PICTURE, "cifar batch"))
        start += len(batch)
    return _source(f"CIFAR-10 archive {path}", classes, labels, places, path)


def _source(kind, classes, labels, places, where):
    counts = {batch: len(batch_labels) for batch, batch_labels in zip(BATCHES, labels)}
    if len(set(counts.values())) > 1:  # a batch that was cut between two pictures shows only here
        raise UserError(
            f"{where}: its batches should be of one size, but have "
            + ", ".join(f"{batch} {count:,}" for batch, count in counts.items())
            + " pictures"
        )
    splits = {"train": [], "val": []}
    for batch, batch_labels, (path, start, step, form) in zip(BATCHES, labels, places):
        splits["val" if batch == "test_batch" else "train"] += [
            Item(f"{batch}/{row:05}", label, path, start + row * step, PICTURE, form)
            for row, label in enumerate(batch_labels)
        ]
    for images in splits.values():
        images.sort(key=lambda image: image.label)  # within a class they are in the order of their names already
    return Source(kind, classes, classes, splits)


@functools.lru_cache(8)
def _batches(path):
    """([pixels of each batch], [labels of each], class names or None) of a Python batch file or of a tar.gz.

    Kept by the process that read it, up to 184 MB, and shared with those forked from it later.
    """
    if not _is_gzip(path):
        pixels, labels = _python_batch(whole_file(path, LARGEST_BATCH), path)
        return [pixels], [labels], None
    batches, classes = {}, None
    names = {
        f"{folder}/{name}": (batch, ending)
        for folder, _, ending, meta in VERSIONS
        for name, batch in [(f"{batch}{ending}", batch) for batch in BATCHES] + [(meta, meta)]
    }
    for name, content in gzip_members(path, names.__contains__, LARGEST_BATCH, LARGEST_ARCHIVE):
        batch, ending = names[name]
        if batch in BATCHES:
            batches[batch] = (_binary_batch if ending else _python_batch)(content, f"{path}: {name}")
        else:
            classes = _class_names(content, f"{path}: {name}")
    missing_names = [batch for batch in BATCHES if batch not in batches] + ([] if classes else ["the class names"])
    if missing_names:
        raise UserError(
            f"{path}: it lacks {', '.join(missing_names)}; of compressed archives only CIFAR-10's are read, "
            f"{VERSIONS[0][1]} and {VERSIONS[1][1]}"
        )
    return [batches[batch][0] for batch in BATCHES], [batches[batch][1] for batch in BATCHES], classes


def _is_gzip(path):
    with Descriptor(path, path) as file:
        return file.read(0, 2) == b"\x1f\x8b"


def _binary_batch(content, where):
    """-> pixels (N * 3072,) uint8, labels: N integers."""
    if not content or len(content) % (1 + PICTURE):
        raise UserError(
            f"{where}: {len(content):,} bytes are not a whole number of pictures of {1 + PICTURE:,}; is it incomplete?"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, 1 + PICTURE)
    return np.ascontiguousarray(records[:, 1:]).reshape(-1), _checked(records[:, 0].tolist(), where)


def _python_batch(content, where):
    """-> pixels (N * 3072,) uint8, labels: N integers."""
    batch = _dictionary(content, where)
    pixels, labels = batch.get("data"), batch.get("labels")
    if not isinstance(pixels, _Array) or not isinstance(labels, list):
        raise UserError(f"{where}: it has no data and labels of CIFAR-10")
    if pixels.shape != (len(labels), PICTURE) or len(pixels.content) != len(labels) * PICTURE or not labels:
        raise UserError(
            f"{where}: its {len(labels):,} labels and {len(pixels.content):,} bytes of pixels don't belong together"
        )
    return np.frombuffer(pixels.content, np.uint8), _checked(labels, where)


def _checked(labels, where):
    for row, label in enumerate(labels):
        if type(label) is not int or not 0 <= label < CLASSES:
            raise UserError(f"{where}: the label of picture {row} is not one of 0 to {CLASSES - 1}")
    return labels


def _class_names(content, where):
    if str(where).endswith(".txt"):
        names = content.decode(errors="replace").split("\n")
        names = [name.strip() for name in names if name.strip()]
    else:
        names = _dictionary(content, where).get("label_names")
        names = [_text(name) for name in names] if isinstance(names, list) else []
    if len(names) != CLASSES or len(set(names)) != CLASSES or not all(name and name.isprintable() for name in names):
        raise UserError(f"{where}: {len(names)} class names; CIFAR-10 has {CLASSES}, all different")
    return names


def _dictionary(content, where):
    """A pickled dictionary, its keys as text, whether Python 2 or 3 wrote it."""
    try:
        dictionary = unpickled(content)
        if isinstance(dictionary, dict):
            return {_text(key): value for key, value in dictionary.items()}
        reason = "no dictionary"
    except Exception as error:  # `pickletools` and the steps below raise many types on damaged files
        reason = shown(str(error)) or type(error).__name__
    raise UserError(f"{where}: it is not a file of CIFAR-10's Python version: {reason}") from None


def _text(name):
    return name.decode("latin-1") if isinstance(name, bytes) else name if isinstance(name, str) else ""


class _Array:
    """What stands for an array of uint8: its shape and its bytes."""

    shape, content = None, b""


class _Global:
    """What stands for a class or function that the file names."""

    def __init__(self, name):
        if name not in GLOBALS:
            raise ValueError(f"it names {name.replace(' ', '.')}, which such a file has no use for")
        self.meaning = GLOBALS[name]


def unpickled(content: bytes) -> object:
    """What a pickle of dictionaries, lists, text, bytes, integers and arrays of uint8 describes; nothing in it is
    called.

    Raises some exception for every other file. Memory and time are bounded by the length of `content`.
    """
    stack, marks, memo = [], [], {}  # `marks`: the stacks that wait below
    budget = 2 * len(content)  # a few bytes that repeat a long text would otherwise become gigabytes

    def encode(text):
        nonlocal budget
        budget -= len(text)
        if budget < 0:
            raise ValueError("it repeats itself")
        return text.encode("latin-1") if isinstance(text, str) else bytes(text)

    for code, argument, _ in pickletools.genops(content):
        name = code.name
        if name in ("PROTO", "FRAME"):
            continue
        if name in (
            "BININT",
            "BININT1",
            "BININT2",
            "LONG1",
            "BINSTRING",
            "SHORT_BINSTRING",
            "BINUNICODE",
            "SHORT_BINUNICODE",
            "BINBYTES",
            "SHORT_BINBYTES",
            "BINBYTES8",
            "BYTEARRAY8",
        ):
            stack.append(argument)
        elif name in ("NONE", "NEWTRUE", "NEWFALSE"):
            stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            marks.append(stack)
            stack = []
        elif name in ("TUPLE", "APPENDS", "SETITEMS"):
            items, stack = stack, marks.pop()
            if name == "TUPLE":
                stack.append(tuple(items))
            elif name == "APPENDS":
                list.extend(stack[-1], items)
            else:
                _set(stack[-1], items)
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "APPEND":
            item = stack.pop()
            list.append(stack[-1], item)
        elif name == "SETITEM":
            items = [stack.pop(), stack.pop()][::-1]
            _set(stack[-1], items)
        elif name == "GLOBAL":
            stack.append(_Global(argument))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_Global(f"{module:s} {attribute:s}"))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack[-1] = _call(stack[-1].meaning, arguments, encode)
        elif name == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], _Array):
                _, shape, dtype, fortran, data = state
                _fill(stack[-1], shape, dtype, fortran, encode(data))
            elif stack[-1] != "u1":  # the rest of a dtype says nothing of bytes
                raise ValueError("it sets what can't be set")
        elif name == "STOP":
            return stack.pop()
        else:
            raise ValueError(f"the step {name} has no place in such a file")
    raise ValueError("it has no end")


def _set(dictionary, items):
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, (str, bytes)):  # to hash a tuple of tuples of the same tuple takes for ever
            raise ValueError("a key is no text")
        dict.__setitem__(dictionary, key, value)


def _call(meaning, arguments, encode):
    if meaning == "encode":  # how Python 3 writes bytes for Python 2
        text, encoding = arguments
        if encoding != "latin1":
            raise ValueError("text in an unknown encoding")
        return encode(text)
    if meaning == "dtype":
        if arguments[0] not in ("u1", b"u1"):
            raise ValueError("its array is not of bytes")
        return "u1"
    array = _Array()
    if meaning == "buffer":
        data, dtype, shape, order = arguments
        _fill(array, shape, dtype, order != "C", encode(data))
    elif meaning != "array":
        raise ValueError("it makes what can't be made")
    return array


def _fill(array, shape, dtype, fortran, content):
    if dtype != "u1" or fortran or type(shape) is not tuple or not all(type(side) is int for side in shape):
        raise ValueError("its array is not of bytes, row by row")
    array.shape, array.content = shape, content
