"""The files of a checkpoint: all that a run needs to go on, and nothing that is believed unchecked. Never pickle.

    weights.safetensors     the merged network's tensors, float32: conv1.weight (96, 3, 11, 11) to fc8.bias
    velocity.safetensors    the optimiser's velocities (paper 5), of the same names and shapes
    statistics.safetensors  mean image and RGB components, float64, as `pixel_statistics.py` saves them
    state.json              where the run is, its recipe, data and schedule, what computed it: `checkpoint_state.py`
    manifest.json           bytes and sha256 of the four files, and of itself; written last

This is format 6; formats 3 to 5 are read (`checkpoint_state.py`). Formats 0 (weights.safetensors alone), 1 and 2 are
refused, with the name of the last version that reads them.

What is read may be damaged or made to harm. A file's size is compared before it is read, its sha256 before it is
believed, names, shapes and dtypes with what follows from the recipe; whatever is wrong becomes a `UserError` that
begins with the file's path."""

import errno
import hashlib
import json
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.torch import load as load_tensors

from ..data.pixel_statistics import STATISTICS, Statistics
from ..recipes import shapes
from ..system import durable_files
from ..system.errors import UserError, need
from . import checkpoint_state, safetensors_file
from .checkpoint_state import MOST_STATE, VERSION, State
from .safetensors_file import parse

OLDEST, READS_OLDER = 3, "0bb1361"  # the oldest format that is read, and the last commit that reads those before
WEIGHTS, VELOCITY, STATE, MANIFEST = "weights.safetensors", "velocity.safetensors", "state.json", "manifest.json"
FILES = (WEIGHTS, VELOCITY, STATISTICS, STATE)  # what the manifest lists
MOST_MANIFEST = 1 << 20  # bytes
DTYPES = {"F64": "float64", "F32": "float32"}

# what `durable_files` says of a file itself
WRONG_FILES = {errno.ELOOP, errno.EINVAL, errno.EFBIG, errno.ENOTDIR, errno.EISDIR, errno.ENODATA}


@dataclass(frozen=True)
class Checkpoint:
    weights: dict  # name -> float32 tensor on the CPU, or array, as `TwoTowerAlexNet.merged_state` gives them
    velocity: dict  # the same names and shapes
    statistics: Statistics
    state: State


def write(directory: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint into a new directory, on the disk when this returns. `checkpoint`'s tensors must not change
    meanwhile.

    Tensors are written from where they are, without a copy. Raises OSError; and before anything is written NotFinite,
    and ValueError where a tensor isn't what the recipe has or a field of the state is wrong: a checkpoint that can't be
    loaded is never written."""
    directory, state = Path(directory), _dump(checkpoint_state.fields_of(checkpoint.state))
    layouts = _layouts(checkpoint_state.read(state, VERSION))
    tensors = {WEIGHTS: checkpoint.weights, VELOCITY: checkpoint.velocity, STATISTICS: vars(checkpoint.statistics)}
    arrays = {file: _arrays(file, tensors[file], layout, checkpoint.state.step) for file, layout in layouts.items()}

    durable_files.make_directory(directory)
    entries = {
        file: durable_files.write(directory / file, safetensors_file.parts(layout, arrays[file]))
        for file, layout in layouts.items()
    }
    entries[STATE] = durable_files.write(directory / STATE, [state])
    durable_files.write(
        directory / MANIFEST,
        [
            _manifest_bytes(
                VERSION, {name: {"bytes": length, "sha256": digest} for name, (length, digest) in entries.items()}
            )
        ],
    )
    durable_files.sync(directory)


def read_state(directory: str | Path) -> State:
    """The `State` of a checkpoint; of the tensors only the files' sizes are looked at. Raises UserError."""
    directory = Path(directory)
    return _read_state(directory, *_manifest(directory))


def load(directory: str | Path) -> Checkpoint:
    """A `Checkpoint`, everything in it checked. Raises UserError."""
    directory = Path(directory)
    number, entries = _manifest(directory)
    state = _read_state(directory, number, entries)
    layouts = _layouts(state)
    for file, layout in layouts.items():
        _check_length(directory / file, entries[file], layout)
    weights, velocity = (
        _load_whole(directory / file, entries[file], load_tensors, layouts[file]) for file in (WEIGHTS, VELOCITY)
    )
    return Checkpoint(weights, velocity, _load_statistics(directory, entries, layouts), state)


def load_statistics(directory: str | Path, state: State) -> Statistics:
    """The statistics of a checkpoint of this state, compared with its sha256 and its recipe. Raises UserError."""
    directory = Path(directory)
    entries, layouts = _manifest(directory)[1], _layouts(state)
    _check_length(directory / STATISTICS, entries[STATISTICS], layouts[STATISTICS])
    return _load_statistics(directory, entries, layouts)


def load_weights(directory: str | Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint, name -> tensor, without a look at the recipe. Raises UserError."""
    directory = Path(directory)
    return _load_whole(directory / WEIGHTS, _manifest(directory)[1][WEIGHTS], load_tensors)


def verify(directory: str | Path) -> State:
    """Compare every file with the manifest, a piece at a time. Returns the `State`. Raises UserError."""
    directory = Path(directory)
    number, entries = _manifest(directory)
    for file, entry in entries.items():
        _check_digest(directory / file, entry)
    return _read_state(directory, number, entries)


def verify_file(path: str | Path) -> None:
    """Compare one file of a checkpoint with the manifest beside it. Raises UserError, also if it isn't listed there."""
    path = Path(path)
    entries = _manifest(path.parent)[1]
    with _damage(path):
        need(path.name in entries, f"{MANIFEST} doesn't list it")
    _check_digest(path, entries[path.name])


def _check_digest(path, entry):
    with _damage(path):
        need(
            durable_files.digest(path) == (entry["bytes"], entry["sha256"]), f"its sha256 is not the one in {MANIFEST}"
        )


def _manifest(directory):
    """(format, {file: {"bytes": n, "sha256": hex}}), with all sizes compared. Raises UserError for anything else."""
    path = directory / MANIFEST
    with _damage(directory):
        names = durable_files.names(directory, 2 * len(FILES) + 2)
    foreign_names = [name for name in names if name not in (*FILES, MANIFEST)]
    try:
        with _damage(path):
            content = durable_files.read(path, MOST_MANIFEST)
            fields = parse(content)
            need(isinstance(fields, dict), "it is no manifest")
            _check_version(path, fields.get("format"))
            _check_foreign(directory, foreign_names)
            need(set(fields) == {"format", "files", "sha256"}, f"its fields are {sorted(fields)!r:.200}")
            _check_entries(fields["files"])
            need(
                _manifest_bytes(fields["format"], fields["files"]) == content,
                "it is not what was written, its sha256 differs",
            )
            if fields["format"] < OLDEST:
                raise OldFormat(path, fields["format"])
    except _MissingFile:
        _check_foreign(directory, foreign_names)
        if names == [WEIGHTS]:
            raise OldFormat(directory, 0) from None
        raise
    _check_sizes(directory, fields["files"])
    return fields["format"], fields["files"]


def _check_version(path, number):
    need(type(number) is int and number >= 1, f"its format is {number!r:.50}")
    if number > VERSION:
        raise NewerFormat(f"{path}: made by a newer alexnet_mp (format {number}); this one reads {OLDEST} to {VERSION}")


def _check_foreign(directory, foreign_names):
    if foreign_names:
        raise UserError(
            f"{directory / foreign_names[0]}: no file of a checkpoint, and nothing else may be in its directory; "
            "remove it"
        )


def _check_entries(entries):
    need(isinstance(entries, dict), "its list of files")
    for name, entry in entries.items():
        need(name in FILES, f"it lists {name!r:.100}, which is no file of a checkpoint")
        need(
            isinstance(entry, dict)
            and set(entry) == {"bytes", "sha256"}
            and type(entry["bytes"]) is int
            and entry["bytes"] >= 0
            and isinstance(entry["sha256"], str),
            f"its entry for {name}",
        )
    need(len(entries) == len(FILES), f"it lists {len(entries)} files instead of {len(FILES)}")


def _check_sizes(directory, entries):
    for file, entry in entries.items():
        with _damage(directory / file):
            size, start = durable_files.head(directory / file, 8)
            safetensors_file.refuse_pickle(start)
            need(size >= entry["bytes"], f"{size:,} of {entry['bytes']:,} bytes are left of it")
            need(size == entry["bytes"], f"it has {size:,} bytes, {MANIFEST} says {entry['bytes']:,}")


def _content(path, entry, most):
    content = durable_files.read(path, most)
    need(hashlib.sha256(content).hexdigest() == entry["sha256"], f"its sha256 is not the one in {MANIFEST}")
    return content


def _read_state(directory, number, entries):
    with _damage(directory / STATE):
        return checkpoint_state.read(_content(directory / STATE, entries[STATE], MOST_STATE), number)


def _layouts(state):
    """{file: {name: (dtype, shape)}} of the three tensor files."""
    layout = {
        name: ("F32", shape) for name, shape in shapes.merged_shapes(state.recipe, len(state.data.classes)).items()
    }
    side = state.recipe.stored_size
    return {
        WEIGHTS: layout,
        VELOCITY: layout,
        STATISTICS: {"mean": ("F64", (side, side, 3)), "eigenvalues": ("F64", (3,)), "eigenvectors": ("F64", (3, 3))},
    }


def _arrays(file, tensors, layout, step):
    """{name: array}, views where the tensors are contiguous. Raises ValueError where one isn't of the layout,
    NotFinite where one, after this step, isn't finite."""
    need(
        safetensors_file.length(layout) <= safetensors_file.MOST_BYTES,
        f"{file}: it would have {safetensors_file.length(layout):,} bytes",
    )
    need(set(tensors) == set(layout), f"{file}: {sorted(set(tensors) ^ set(layout))} are missing or foreign")
    arrays = {}
    for name, (dtype, shape) in layout.items():
        tensor = tensors[name]
        on_host = not isinstance(tensor, torch.Tensor) or tensor.device.type == "cpu"
        tensor_dtype = str(tensor.dtype).removeprefix("torch.")
        need(
            on_host and tensor_dtype == DTYPES[dtype] and tuple(tensor.shape) == shape,
            f"{file}: {name} is {tensor_dtype} {tuple(tensor.shape)}{'' if on_host else f' on {tensor.device}'}; "
            f"it has to be {DTYPES[dtype]} {shape} on the CPU",
        )
        arrays[name] = np.ascontiguousarray(tensor.detach().numpy() if isinstance(tensor, torch.Tensor) else tensor)
        if not safetensors_file.finite(arrays[name]):
            raise NotFinite(f"{file}: {name} has values that are not finite after step {step}")
    need(file != STATISTICS or (arrays["eigenvalues"] >= 0).all(), f"{file}: a variance is negative")
    return arrays


def _check_length(path, entry, layout):
    with _damage(path):
        length, expected_length = entry["bytes"], safetensors_file.length(layout)
        need(length == expected_length, f"it has {length:,} bytes, that of this recipe has {expected_length:,}")


def _load_statistics(directory, entries, layouts):
    path = directory / STATISTICS
    arrays = _load_whole(path, entries[STATISTICS], load_arrays, layouts[STATISTICS])
    with _damage(path):
        need((arrays["eigenvalues"] >= 0).all(), "a variance is negative")
    return Statistics(**arrays)


def _load_whole(path, entry, load_content, layout=None):
    """{name: tensor} of a file, in the layout's order; if none is given, unchecked against it."""
    with _damage(path):
        content = _content(path, entry, safetensors_file.MOST_BYTES)
        file_layout = safetensors_file.read_layout(len(content), content)
        if layout is None:
            return load_content(content)
        need(set(file_layout) == set(layout), f"{sorted(set(file_layout) ^ set(layout))!r:.200} are missing or foreign")
        for name, spec in layout.items():
            need(
                file_layout[name] == spec,
                f"{name} is {_words(file_layout[name])}; a checkpoint of this recipe has {_words(spec)}",
            )
        tensors = load_content(content)
        for name, tensor in tensors.items():
            values = tensor.numpy() if isinstance(tensor, torch.Tensor) else tensor
            need(safetensors_file.finite(values), f"{name} has values that are not finite")
        return {name: tensors[name] for name in layout}


def _words(tensor):
    return f"{tensor[0]} {tensor[1]}"


def _dump(content):
    """JSON in the one form that a manifest may have."""
    return json.dumps(content, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"


def _manifest_bytes(number, entries):
    rest = {"format": number, "files": entries}
    return _dump({**rest, "sha256": hashlib.sha256(_dump(rest)).hexdigest()})


class NotFinite(UserError):
    """A tensor that would be saved is NaN or infinite somewhere."""


class NewerFormat(UserError):
    """Nothing is wrong with the checkpoint: no older one may quietly take its place."""


class Unreadable(UserError):
    """The machine can't read what may be whole: nothing may be put in its place."""


class OldFormat(UserError):
    """Nothing is wrong with the checkpoint, but this version no longer reads its format."""

    def __init__(self, path: Path, number: int):
        super().__init__(f"{path}: checkpoint format {number}: the last version that reads it is commit {READS_OLDER}")


class _MissingFile(UserError):
    pass


@contextmanager
def _damage(path):
    """What goes wrong within becomes a UserError of one line that begins with the path."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise _MissingFile(f"{error.filename}: it is missing") from None
    except OSError as error:
        kind = UserError if error.errno in WRONG_FILES else Unreadable
        raise kind(f"{error.filename}: {error.strerror or error}") from None
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        if problem["type"] == "value_error":  # raised by the recipe, which names the field
            text = str(problem["ctx"]["error"])
        else:
            text = f"{'.'.join(map(str, problem['loc'])):.200} is {problem['input']!r:.100}: {problem['msg']}"
        raise UserError(f"{path} is damaged: {_line(text)}") from None
    except RecursionError:
        raise UserError(f"{path} is damaged: it is nested too deeply") from None
    except (ValueError, SafetensorError) as error:
        raise UserError(f"{path} is damaged: {_line(str(error))}") from None


def _line(text):
    return f"{' '.join(text.split()):.400}"  # a name in a file may be as long as the file
