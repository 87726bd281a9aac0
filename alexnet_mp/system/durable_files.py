"""Files that are written whole or not at all, and read without trusting what lies there: what runs and checkpoints
stand on.

Every system call is spelled `os.name(...)` here, so that a test can put its own `os` under this module and let any call
fail. Every OSError that leaves it has its `filename`, also from calls that know a descriptor alone."""

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TypeVar

from .errors import UserError

CHUNK = 16 << 20  # bytes: os.write and hashlib let go of the GIL for each, and a signal is seen between two
PARTIAL = ".partial"  # what `replace` adds to a name until the content is on the disk
OLD = ".replaced"  # what `new_directory` adds to the name of a directory that another takes the place of
_Verdict = TypeVar("_Verdict")


def make_directory(path: str | Path) -> None:
    """Make a directory. Raises FileExistsError where there is anything of that name."""
    with _about(path):
        os.mkdir(path)


def write(path: str | Path, parts: Iterable[bytes | memoryview]) -> tuple[int, str]:
    """Write a new file from an iterable of bytes-like parts, on the disk when this returns: (bytes, sha256 hex).

    A part is taken when it is written, and nothing is copied. On an error the half-written file stays.
    """
    length, digest = 0, hashlib.sha256()
    with _about(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            for part in parts:
                content = memoryview(part).cast("B")
                for start in range(0, len(content), CHUNK):
                    chunk = content[start : start + CHUNK]
                    digest.update(chunk)
                    length += len(chunk)
                    while chunk:
                        count = os.write(descriptor, chunk)
                        if count <= 0:
                            raise OSError(errno.EIO, "the disk takes no more bytes")
                        chunk = chunk[count:]
            os.fsync(descriptor)
        except BaseException:
            with suppress(OSError):  # the first error is the one to tell
                os.close(descriptor)
            raise
        os.close(descriptor)  # the last moment at which a network file system can say that it failed
    return length, digest.hexdigest()


def read(path: str | Path, most: int) -> bytes:
    """A file's bytes. Raises OSError, in clear words, for a link, for what is no file, and for more than `most`
    bytes."""
    with _about(path), _regular_file(path) as (descriptor, size):
        if size > most:
            raise OSError(errno.EFBIG, f"it has {size:,} bytes, {most:,} at most are read", str(path))
        content = b"".join(_parts(descriptor, size, 1 << 30))  # in one piece where it fits: no second copy
        if len(content) != size:
            raise OSError(
                errno.ENODATA, f"it shrank to {len(content):,} of {size:,} bytes while it was read", str(path)
            )
        return content


def head(path: str | Path, most: int) -> tuple[int, bytes]:
    """(bytes that the file has, its first `most` bytes). Raises OSError for a link and for what is no file."""
    with _about(path), _regular_file(path) as (descriptor, size):
        return size, b"".join(_parts(descriptor, min(size, most), CHUNK))


def part(path: str | Path, start: int, most: int) -> bytes:
    """A file's bytes from `start` on, `most` at most; none where it ends before. Raises OSError for a link and for what
    is no file."""
    with _about(path), _regular_file(path) as (descriptor, _):
        os.lseek(descriptor, start, os.SEEK_SET)
        return b"".join(_parts(descriptor, most, CHUNK))


def digest(path: str | Path) -> tuple[int, str]:
    """(bytes, sha256 hex) of a file of any size, CHUNK bytes in memory. Raises OSError for a link and for what is no
    file."""
    length, digest = 0, hashlib.sha256()
    with _about(path), _regular_file(path) as (descriptor, size):
        for part in _parts(descriptor, size, CHUNK):
            length += len(part)
            digest.update(part)
    return length, digest.hexdigest()


def names(directory: str | Path, most: int) -> list[str]:
    """The names in a directory, sorted; `most` of them, in no order that counts, where there are more."""
    with _about(directory), os.scandir(directory) as entries:
        return sorted(entry.name for entry in islice(entries, most))


def replace(path: str | Path, content: bytes | Iterable[bytes | memoryview]) -> tuple[int, str]:
    """Give the file at `path` this content; whatever happens, a reader finds the old content or the new one.

    content: bytes, or an iterable of parts for `write`, whose result is returned. The new content is on the disk under
    another name before a rename puts it in place. On an error that name is removed again, and if only the directory's
    sync failed the file has the new content.
    """
    draft = f"{path}{PARTIAL}"
    with _about(draft), suppress(FileNotFoundError):
        os.unlink(draft)  # what a crash left; not a directory, which is somebody's
    try:
        length_and_digest = write(draft, [content] if isinstance(content, bytes) else content)
        with _about(path):
            os.rename(draft, path)
    except BaseException:
        with suppress(OSError):
            remove(draft)
        raise
    sync(Path(path).parent)
    return length_and_digest


def replace_all(contents: Mapping[Path, bytes]) -> None:
    """`replace` for several files, {path: bytes}: a disk that is full, or a name that can't be written, changes none.

    All contents are on the disk under other names before the first rename.
    """
    try:
        for path, content in contents.items():
            with _about(f"{path}{PARTIAL}"), suppress(FileNotFoundError):
                os.unlink(f"{path}{PARTIAL}")
            write(f"{path}{PARTIAL}", [content])
        for path in contents:
            rename(f"{path}{PARTIAL}", path)
    except BaseException:
        for path in contents:
            with suppress(OSError):
                remove(f"{path}{PARTIAL}")
        raise


def write_output(path: str | Path, content: bytes | Iterable[bytes | memoryview]) -> None:
    """`replace` for a file that the user asked for: raises UserError if it can't be written."""
    with writing(path):
        replace(path, content)


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """An OSError within becomes a UserError: "cannot write" the file that it is of, by its final name, else `path`.

    path: the file or directory that the user asked for."""
    try:
        yield
    except OSError as error:
        name = Path(path).name
        place = str(error.filename or path).replace(f"{name}{PARTIAL}", name, 1)
        raise UserError(f"cannot write {place}: {error.strerror or error}") from None


def refuse_output(flag: str, path: str | Path) -> None:
    """Raise UserError early for a file that is there already or can't be written. flag: what asks for it."""
    if not Path(path).name:
        raise UserError(f"{flag} {str(path)!r}: write the name of a file")
    if os.path.lexists(path):
        raise UserError(f"{flag} {path}: it is there already; choose another name")
    refuse_unwritable(flag, path, Path(path).absolute().parent)


def refuse_unwritable(flag: str, path: str | Path, folder: Path | None = None) -> None:
    """Raise UserError early if what `flag` asks for can't be put into a folder; None: the nearest that is there."""
    folder = folder or next(place for place in (Path(path), *Path(path).absolute().parents) if os.path.lexists(place))
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{flag} {path}: {folder} is not a directory that can be written to")


@contextmanager
def new_directory(path: str | Path, instead: bool = False) -> Iterator[Path]:
    """A directory to be filled, under another name until it is whole; after an error nothing stays. Raises OSError.

    instead: whether a directory that is there then is replaced, else that is an error unless it is empty. A process
    that is killed between the two renames leaves the former one as `path`.replaced."""
    path = Path(path)  # without a slash at its end
    draft, predecessor = Path(f"{path}{PARTIAL}"), Path(f"{path}{OLD}")
    remove(draft)  # what a crash left
    make_directory(draft)
    try:
        yield draft
        sync(draft)
        if instead and os.path.lexists(path):
            remove(predecessor)
            try:
                rename(path, predecessor)
                rename(draft, path)
            except BaseException:
                if not os.path.lexists(path):
                    os.rename(predecessor, path)
                raise
            remove(predecessor)
        else:
            rename(draft, path)
    except BaseException:
        with suppress(OSError):
            remove(draft)
        raise


def new_file(path: str | Path, content: bytes, check: Callable[[bytes], _Verdict]) -> _Verdict:
    """What `check` says of a new file's bytes, as they were read back; then the file gets its name. After an error
    nothing stays. Raises OSError."""
    draft = f"{path}{PARTIAL}"
    remove(draft)  # what a crash left
    try:
        write(draft, [content])
        verdict = check(read(draft, len(content)))
        rename(draft, path)
    except BaseException:
        with suppress(OSError):
            remove(draft)
        raise
    return verdict


def rename(source: str | Path, target: str | Path) -> None:
    """Rename a file or directory; the new name is on the disk when this returns."""
    with _about(source):
        os.rename(source, target)
    sync(Path(target).parent)


def remove(path: str | Path) -> None:
    """Remove a file, a link or a whole tree, and nothing behind a link. What is missing is removed already."""
    with _about(path), suppress(FileNotFoundError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            with os.scandir(path) as entries:
                children = [entry.path for entry in entries]
            for child in children:
                remove(child)
            os.rmdir(path)
        else:
            os.unlink(path)


def sync(path: str | Path) -> None:
    """Wait until a file, or a directory's list of names, is on the disk."""
    with _about(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _about(path):
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def _regular_file(path):
    """(descriptor, bytes) of a regular file. O_NONBLOCK: a pipe that nobody writes to would be waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise OSError(errno.ELOOP, "it is a link, which is not followed", str(path)) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        yield descriptor, status.st_size
    finally:
        os.close(descriptor)


def _parts(descriptor, size, most):
    """The next `size` bytes, `most` at a time; fewer where the file ends before."""
    while size > 0 and (part := os.read(descriptor, min(size, most))):
        size -= len(part)
        yield part
