"""What `retrieve index` leaves on the disk.

    index.json             what the vectors are of: run, checkpoint, data, versions; every other file's sha256
    train.safetensors      features (N, units) float32, pixels (N, 3072) float16, labels (N,) int64; and val
    names.json             the pictures' names, by split
    codes_128.safetensors  the codes of both splits, (N, 16) uint8, and their encoder; a file a length

The directory appears by one rename when all of it is on the disk. A length of code that is added later is a file of its
own, which counts from the moment when `index.json` names it. There are no dates in it: the same features and versions
give the same bytes."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors.numpy import load, save

from ..system import durable_files
from ..system.command_line import typed
from ..system.errors import UserError
from . import short_codes
from .features import Features

INDEX, NAMES = "index.json", "names.json"
SPLITS = ("train", "val")
MOST_BYTES = 1 << 38  # of a file: 16 million pictures of 4096 numbers
BY = ("fc7", "codes", "pixels")  # "fc7": the last hidden layer, whatever its name
_STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True)
class Source:
    """What the vectors are of. Two indices with the same one hold the same numbers, up to rounding."""

    __pydantic_config__ = _STRICT

    run: str  # the run's directory, as it is reached from the index's
    checkpoint: str  # "step_00001884"
    weights_sha256: str  # of the network's weights
    recipe: str
    layer: str  # the last hidden layer
    units: int  # of all towers
    data: str
    fingerprint: str
    classes: tuple[str, ...]
    class_names: tuple[str, ...]  # the same in words, where the data set has them
    images: dict[Literal["train", "val"], int]


@dataclass(frozen=True)
class Codes:
    """How codes of one length were learned."""

    __pydantic_config__ = _STRICT

    sha256: str
    epochs: int
    seed: int
    loss: float  # share of the training features' variance that is lost
    # the share of training pictures in which a bit is 1: of the bit with the smallest, and the largest
    least_ones: float
    most_ones: float


@dataclass(frozen=True)
class Described:
    """The content of `index.json`."""

    __pydantic_config__ = _STRICT

    format: Literal["alexnet_mp retrieval index"]
    version: Literal[1]
    source: Source
    packages: dict[str, str | None]
    commit: str | None
    sha256: dict[str, str]  # of the files that are always there
    codes: dict[str, Codes]  # by number of bits

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode() + b"\n"


class Index:
    """An index on the disk. Raises UserError, with the file's name, where it is none, or is damaged."""

    def __init__(self, directory: str | Path):
        self.path = Path(directory)
        self.read_again()

    def read_again(self) -> None:
        """Take in the codes that another process has added since."""
        self.described = _manifest(self.path)

    @property
    def lengths(self) -> list[int]:
        """The numbers of bits of the codes that are there, ascending."""
        return sorted(map(int, self.described.codes))

    def features(self, split: str) -> Features:
        """The `Features` of a split; pixels as float32."""
        tensors = load(self._content(f"{split}.safetensors", self.described.sha256))
        count, units = self.described.source.images[split], self.described.source.units
        if (
            tensors["features"].shape != (count, units)
            or len(tensors["pixels"]) != count
            or tensors["labels"].shape != (count,)
        ):
            raise UserError(f"{self.path / split}.safetensors: its tensors don't have the shapes that {INDEX} says")
        return Features(tensors["features"], tensors["pixels"].astype(np.float32), tensors["labels"])

    def names(self, split: str) -> list[str]:
        """The names of a split's pictures: paths in the data set."""
        return json.loads(self._content(NAMES, self.described.sha256))[split]

    def codes(self, bits: int) -> tuple[short_codes.Encoder, dict[str, np.ndarray]]:
        """(their encoder, {"train": (N, bits / 8) uint8, "val": ...}). Raises UserError where it has no such
        length."""
        if str(bits) not in self.described.codes:
            remark = f", only of {', '.join(map(str, self.lengths))}" if self.lengths else ""
            raise UserError(
                f"{self.path}: it has no codes of {bits} bits{remark}; retrieve index with --bits {bits} adds them"
            )
        file = _codes_file(bits)
        tensors = load(self._content(file, {file: self.described.codes[str(bits)].sha256}))
        codes = {split: tensors.pop(split) for split in SPLITS}
        return short_codes.Encoder(**tensors), codes

    def add_codes(self, bits: int, seed: int, advance: Callable[[int], None]) -> Codes:
        """Learn codes of this length from the training pictures, keep them, and return how."""
        train, val = (self.features(split).hidden for split in SPLITS)
        training = short_codes.train(train, bits, seed, advance)
        tensors = {**vars(training.encoder), "train": training.encoder.codes(train), "val": training.encoder.codes(val)}
        content = save(tensors)
        codes = Codes(
            hashlib.sha256(content).hexdigest(),
            training.epochs,
            seed,
            training.loss,
            float(training.ones.min()),
            float(training.ones.max()),
        )
        manifest = replace(_manifest(self.path), codes={**_manifest(self.path).codes, str(bits): codes})
        with durable_files.writing(self.path):
            durable_files.replace(self.path / _codes_file(bits), content)
            durable_files.replace(self.path / INDEX, manifest.to_bytes())
        self.described = manifest
        return codes

    def _content(self, name, sha256):
        return _read(self.path / name, sha256[name])


def write_index(
    directory: Path,
    source: Source,
    packages: dict[str, str | None],
    commit: str | None,
    features: Mapping[str, Features],
    names: Mapping[str, Sequence[str]],
) -> Index:
    """Write an index without codes: whole, under its final name, or not at all. Raises UserError where it can't be, or
    is there.

    features, names: by split.
    """
    contents = {
        f"{split}.safetensors": save(
            {"features": of_split.hidden, "pixels": of_split.pixels.astype(np.float16), "labels": of_split.labels}
        )
        for split, of_split in features.items()
    }
    contents[NAMES] = json.dumps(names).encode() + b"\n"
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    manifest = Described("alexnet_mp retrieval index", 1, source, packages, commit, digests, {})
    with durable_files.writing(directory), durable_files.new_directory(directory) as staging:
        for name, content in {**contents, INDEX: manifest.to_bytes()}.items():
            durable_files.write(staging / name, [content])
    return Index(directory)


def source_difference(source: Source, other: Source) -> str | None:
    """In words, why an index of one `Source` can't serve for another; None where it can. A run and its data may have
    moved."""
    if source.weights_sha256 != other.weights_sha256:
        same = source.checkpoint == other.checkpoint
        return f"it is of other weights, {source.recipe} at {source.checkpoint}" + (
            "" if same else f", and the run is at {other.checkpoint}"
        )
    if source.fingerprint != other.fingerprint or source.classes != other.classes or source.images != other.images:
        return f"it is of other pictures, {source.data}"
    return None


def _codes_file(bits):
    return f"codes_{bits}.safetensors"


def _manifest(directory):
    file = directory / INDEX
    try:
        content = durable_files.read(file, 64 << 20)
    except OSError as error:
        raise UserError(
            f"{directory} is no index: cannot read {file}: {error.strerror}; "
            f"{typed('retrieve', 'index', 'RUN')} makes one"
        ) from None
    try:
        fields = json.loads(content)
        # A name may be no UTF-8. Python's surrogates for it are no JSON text to pydantic, so they are put back
        # afterwards.
        manifest = _ADAPTER.validate_json(json.dumps(fields, ensure_ascii=False).encode(errors="replace"))
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"])) or "(all)"
        raise UserError(f"{file} is damaged, or of another version: {place}: {problem['msg']}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged, or of another version: it is no JSON ({error})") from None
    source = fields["source"]
    names = {name: tuple(source[name]) for name in ("classes", "class_names")}
    return replace(manifest, source=replace(manifest.source, run=source["run"], data=source["data"], **names))


def _read(path, sha256):
    """A file's bytes, compared with its checksum."""
    try:
        content = durable_files.read(path, MOST_BYTES)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{path} is damaged: its sha256 is not the one in {INDEX}; remove the index and make it anew")
    return content


_ADAPTER = TypeAdapter(Described)
