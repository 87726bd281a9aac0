"""Tar archives read in place: where each file in them begins and how long it is. Nothing is ever unpacked to disk.

Archives come from elsewhere, so they are not trusted. Every header is checked (its checksum, a plain file or a folder,
a name that stays below the archive's own root, a size that lies within the archive), and an archive must end with its
zero blocks, with nothing behind them: one that was cut, even exactly between two files, is refused. Python's `tarfile`
ends in silence there, and spends hours or gigabytes on some headers. Everything wrong is a UserError of one line that
names the archive and the file in it."""

import gzip
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..data import file_ranges
from ..data.class_folders import is_hidden
from ..data.file_ranges import Descriptor
from ..system.errors import UserError
from ..system.terminal import printable

BLOCK = 512
LARGEST_NAME = 64 * 1024  # bytes of an extended header, which holds a name of more than 100 characters
LONGEST_PATH = 1024  # characters; those of ILSVRC have 30
LARGEST_PADDING = 1 << 20  # bytes behind the end of an archive: tape records of 10 KiB are usual
CHUNK = 1 << 20
KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"S": "a sparse file",
    b"M": "the rest of a file from another volume",
}


class Member(NamedTuple):
    """A file in an archive: `size` bytes at `offset` of the file on disk. `name` is relative, with "/" between its
    parts."""

    name: str
    offset: int
    size: int


def members(path: str | Path, inside: Member | None = None, folders: list[str] | None = None) -> Iterator[Member]:
    """The files of the tar archive at `path`, in its order; with `inside` (a Member) those of the archive that lies
    there. The names of its folders are added to the list `folders`."""
    where = str(path) if inside is None else f"{path}: {inside.name}"
    with Descriptor(path, where) as file:
        # Headers are a picture apart: without this the kernel would read the pictures as well.
        os.posix_fadvise(file.number, 0, 0, os.POSIX_FADV_RANDOM)
        start, size = (0, file.size) if inside is None else inside[1:]
        yield from _members(file.read, start, start + size, where, folders)


def gzip_members(
    path: str | Path, is_wanted: Callable[[str], object], largest: int, total: int
) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of the files in a tar.gz for which `is_wanted(name)`, in its order, from one pass through it.

    Raises UserError where a file wanted has more than `largest` bytes, or the archive unpacks to more than `total`.
    """
    with (
        Descriptor(path, path) as file,
        open(file.number, "rb", closefd=False) as source,
        gzip.GzipFile(fileobj=source) as stream,
    ):
        reader = _Forward(stream, path, total)
        for member in _members(reader.read, 0, math.inf, str(path)):  # where the data end shows in reading
            if is_wanted(member.name):
                if member.size > largest:
                    raise UserError(
                        f"{path}: {shown(member.name)}: {member.size:,} bytes, more than the {largest:,} it may have"
                    )
                content = reader.read(member.offset, member.size)
                if len(content) < member.size:
                    raise UserError(f"{path}: {shown(member.name)}: the archive ends inside it; is it incomplete?")
                yield member.name, content


def shown(name: str) -> str:
    """A name from an archive as an error may print it: short, on one line, with all that can't be printed escaped."""
    name = name if len(name) <= 200 else name[:200] + "..."
    return printable(name)


def beginning(path: str | Path, member: Member) -> Callable[[int, int], bytes]:
    """read(start, count), as `image_formats.is_picture` takes it, of a file in the archive at `path`."""
    return lambda start, count: file_ranges.read(
        str(path), member.offset + start, max(min(count, member.size - start), 0)
    )


class TarFolder:
    """A folder in an archive, as `class_folders.DiskFolder` is one on a disk; files: {name: Member}.

    Files are added in the order of the parts of their names."""

    def __init__(self, where: str, name: str = ""):
        self.where, self.name = where, name
        self.folders, self.files, self.hidden = {}, {}, []
        self._pictures, self._all_hidden = set(), []

    def add(self, parts: Sequence[str], member: Member | None, is_picture: bool) -> None:
        """Put a file into it, or into a folder below; None: the folder alone. parts: of its name, from here."""
        if not parts:
            return
        name = parts[0]
        if is_hidden(name):
            if member:
                self._all_hidden.append("/".join(parts))
            if name not in self.hidden[-1:]:
                self.hidden.append(name)
        elif len(parts) > 1 or not member:
            if name not in self.folders:
                self.folders[name] = TarFolder(f"{self.where}{'/' if self.name else ': '}{shown(name)}", name)
            self.folders[name].add(parts[1:], member, is_picture)
        else:
            self.files[name] = member
            if is_picture:
                self._pictures.add(name)

    def is_picture(self, name: str) -> bool:
        return name in self._pictures

    @property
    def identity(self) -> int:
        return id(self)

    def is_lost(self, name: str) -> bool:
        return False  # an archive with links is refused

    def below(self) -> Iterator[str]:
        """The names of all files, relative."""
        yield from self._all_hidden
        yield from self.files
        for name, folder in self.folders.items():
            yield from (f"{name}/{file}" for file in folder.below())


class _Forward:
    """The bytes of a gzip stream by position; positions may only grow. Bytes are counted, as 1 MB may unpack to 1
    GB."""

    def __init__(self, stream, path, total):
        self.stream, self.path, self.total, self.position = stream, path, total, 0

    def read(self, position, count):
        while self.position < position and self._next(min(position - self.position, CHUNK)):
            pass
        parts = []
        while count > 0 and (part := self._next(min(count, CHUNK))):
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _next(self, count):
        try:
            part = self.stream.read(count)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{self.path}: damaged or incomplete gzip data ({error})") from None
        self.position += len(part)
        if self.position > self.total:
            raise UserError(
                f"{self.path}: it unpacks to more than {self.total:,} bytes, which is more than it may hold"
            )
        return part


def _members(read, position, end, where, folders=None):
    """Walk over the headers from `position` to `end`; `read(position, count)` gives the bytes."""
    names, fields = set(), {}
    while True:
        header = read(position, BLOCK) if position + BLOCK <= end else b""
        if len(header) < BLOCK:
            raise UserError(
                f"{where}: it ends without the zero block that closes a tar archive, at byte {position:,}; "
                "is it incomplete?"
            )
        if not any(header):
            break
        kind, raw_name, size = _header(header, where, position)
        data = position + BLOCK
        if kind in b"LKxg" and size > LARGEST_NAME:
            raise UserError(
                f"{where}: an extended header of {size:,} bytes, at byte {position:,}; {LARGEST_NAME:,} is the most"
            )
        if kind in b"LKxg":
            fields |= _extended_fields(kind, read(data, size), where, position)
        else:
            raw_name = fields.get(b"path", raw_name)
            name = _name(raw_name, where)
            size = _extended_size(fields[b"size"], where, name) if b"size" in fields else size
            fields = {}
            if kind == b"5" or kind in b"0\0" and raw_name.endswith(b"/"):
                size = 0  # a folder; what is written as its size is no data
                if name and folders is not None:
                    folders.append(name)
            elif kind not in b"0\x007":
                raise UserError(
                    f"{where}: {shown(name)}: {KINDS.get(kind, 'an entry of unknown kind')}; only files can be used"
                )
            else:
                if not name:
                    raise UserError(f"{where}: a file without a name, at byte {position:,}")
                if name in names:
                    raise UserError(f"{where}: {shown(name)}: it is there twice")
                if data + size > end:
                    raise UserError(
                        f"{where}: {shown(name)}: {size:,} bytes, more than the archive has; is it incomplete?"
                    )
                names.add(name)
                yield Member(name, data, size)
        position = data + -(-size // BLOCK) * BLOCK
    if fields:
        raise UserError(f"{where}: it ends with an extended header that belongs to no file")
    # In a gzip file this reads its end as well, where the checksum is.
    rest = read(position, min(end - position, LARGEST_PADDING + 1))
    if len(rest) > LARGEST_PADDING or rest.strip(b"\0"):
        raise UserError(f"{where}: there is more behind its end, at byte {position:,}; is it damaged?")


def _header(header, where, position):
    """(kind, name, size) of a 512-byte header: POSIX ustar, GNU, or the older form without a magic word."""
    checksum = _number(header[148:156])
    content = header[:148] + b" " * 8 + header[156:]  # the checksum takes its own field as spaces
    # some early programs took bytes as signed
    if checksum != sum(content) and checksum != sum(memoryview(content).cast("b")):
        raise UserError(f"{where}: no tar header at byte {position:,}; is it damaged?")
    size = _number(header[124:136])
    name, prefix = header[:100].split(b"\0")[0], header[345:500].split(b"\0")[0]
    if header[257:263] == b"ustar\0" and prefix:
        name = prefix + b"/" + name
    if size is None:
        raise UserError(f"{where}: {shown(name.decode(errors='backslashreplace'))}: its size is no number")
    return header[156:157], name, size


def _number(field):
    """Octal digits, or GNU's binary form for sizes of 8 GiB and more. None for what is neither, and for less than
    nothing."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:])
    digits = field.rstrip(b" \0").lstrip(b" ")
    return int(digits or b"0", 8) if re.fullmatch(rb"[0-7]*", digits) else None


def _extended_fields(kind, content, where, position):
    """What an extended header says of the file that follows: b"path", b"size"; other keys don't matter here."""
    if kind == b"L":
        return {b"path": content.split(b"\0")[0]}
    fields = {}
    start = 0 if kind in b"xg" else len(content)
    while start < len(content):  # records "LENGTH KEY=VALUE\n"; LENGTH counts the whole record
        space = content.find(b" ", start, start + 8)
        length = int(content[start:space]) if re.fullmatch(rb"[0-9]{1,6}", content[start : max(space, start)]) else 0
        record = content[start : start + length]
        key, equals, value = record[space + 1 - start : -1].partition(b"=")
        if len(record) < length or record[-1:] != b"\n" or not equals:
            raise UserError(f"{where}: a damaged extended header at byte {position:,}")
        if key.startswith(b"GNU.sparse"):
            raise UserError(f"{where}: a sparse file at byte {position:,}; only files can be used")
        if key in (b"path", b"size"):
            fields[key] = value
        start += length
    if kind == b"g" and fields:
        raise UserError(f"{where}: a header at byte {position:,} gives one name or size to all files")
    return fields


def _extended_size(value, where, name):
    if not re.fullmatch(rb"[0-9]{1,19}", value):
        raise UserError(f"{where}: {shown(name)}: its size is no number")
    return int(value)


def _name(raw, where):
    """The name as text, without "./" and doubled "/". It never names a file on disk; one that tries to is refused all
    the same."""
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise UserError(f"{where}: {shown(raw.decode(errors='backslashreplace'))}: its name is not UTF-8") from None
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") and parts or ".." in parts:  # "/" alone is the archive's own root
        raise UserError(f"{where}: {shown(name)}: its name leads out of the archive")
    if not name.isprintable() or len(name) > LONGEST_PATH:
        raise UserError(f"{where}: {shown(name)}: its name is {'too long' if name.isprintable() else 'not printable'}")
    return "/".join(parts)
