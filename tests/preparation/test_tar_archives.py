"""Reading tars in place: every kind that programs write is read as `tarfile` reads it, everything hostile or damaged is
refused."""

import functools
import gzip
import io
import multiprocessing
import os
import resource
import tarfile

import pytest
from inner_cases import every
from make_archives import tar

from alexnet_mp.data import file_ranges
from alexnet_mp.data.image_formats import gunzipped
from alexnet_mp.preparation import tar_archives
from alexnet_mp.preparation.items import Progress
from alexnet_mp.preparation.tar_archives import gzip_members, members, shown
from alexnet_mp.system.errors import UserError

KINDS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def refused(path, **options):
    with pytest.raises(UserError) as refusal:
        list(members(path, **options))
    message = str(refusal.value)
    assert message.isprintable() and message.startswith(str(path)), message
    return message


def with_header(content, place, changes):
    """The tar with bytes of the header at `place` changed, {offset: bytes}, and its checksum right again."""
    header = bytearray(content[place : place + 512])
    for offset, value in changes.items():
        header[offset : offset + len(value)] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return content[:place] + bytes(header) + content[place + 512 :]


def entry(**values):
    """A tar with one entry; `values` are attributes of tarfile's header."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        header = tarfile.TarInfo(values.pop("name", "a.jpg"))
        for name, value in values.items():
            setattr(header, name, value)
        archive.addfile(header)
    return buffer.getvalue()


@every("kind", KINDS)
def test_files_are_found_where_tarfile_finds_them(tmp_path, kind):
    """Sizes around a block, empty files, folders, a name in two fields of the header, and one that fits into none."""
    files = {
        "train": None,
        "train/a.jpg": b"x" * 511,
        "./b.jpg": b"y" * 512,
        "c//d.jpg": b"z" * 513,
        "empty.jpg": b"",
        f"{'folder' * 16}/{'name' * 20}.jpg": b"two fields",
        "last.jpg": b"!" * 1500,
    }
    if kind != "ustar":
        files |= {f"{'long' * 60}/é.jpg": b"long"}
    path = tmp_path / "x.tar"
    path.write_bytes(tar(files, KINDS[kind]))
    with tarfile.open(path) as archive:
        expected = [(entry.offset_data, entry.size) for entry in archive if entry.isfile()]
    listing = list(members(path))
    assert [(member.offset, member.size) for member in listing] == expected
    assert [member.name for member in listing] == [
        name.removeprefix("./").replace("//", "/") for name in files if name != "train"
    ]
    contents = [content for content in files.values() if content is not None]
    assert [file_ranges.read(str(path), member.offset, member.size) for member in listing] == contents


def test_a_folder_called_by_a_slash_alone_is_the_archives_own_root(tmp_path):
    """As Python's `add(folder, arcname="")` writes it."""
    (tmp_path / "folder" / "cat").mkdir(parents=True)
    (tmp_path / "folder" / "cat" / "1.jpg").write_bytes(b"abc")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path / "folder", "")
        assert archive.getnames()[0] == ""
    assert [member.name for member in members(tmp_path / "x.tar")] == ["cat/1.jpg"]


def test_headers_from_before_posix(tmp_path):
    """No magic word, a folder known by its last letter alone, a checksum over signed bytes."""
    content = tar({"f/": b"", "f/é.jpg": b"123"}, tarfile.USTAR_FORMAT)
    content = with_header(content, 0, {156: b"\0", 257: bytes(8), 345: b"junk"})
    content = with_header(content, 512, {156: b"\0", 257: bytes(8), 345: b"junk"})
    path = tmp_path / "x.tar"
    path.write_bytes(content)
    assert [member.name for member in members(path)] == ["f/é.jpg"]
    header = bytearray(content[512:1024])
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % (sum(header) - 2 * 256)  # the two bytes of é
    path.write_bytes(content[:512] + bytes(header) + content[1024:])
    assert [tuple(member) for member in members(path)] == [("f/é.jpg", 1024, 3)]


@every("kind", ["gnu", "pax"])
def test_a_file_larger_than_eight_gigabytes(tmp_path, kind):
    """Its size doesn't fit into octal digits. ILSVRC's training images are 138 GB in one tar."""
    path, size = tmp_path / "x.tar", (9 << 30) + 5
    header = tarfile.TarInfo("large.tar")
    header.size = size
    with open(path, "wb") as file:
        file.write(header.tobuf(KINDS[kind]))
        start = file.tell()
        file.seek(start + -(-size // 512) * 512)  # a hole: takes no room
        file.write(tar({"next.jpg": b"abc"}))
    assert [member.name for member in members(path)] == ["large.tar", "next.jpg"]
    assert next(members(path))[1:] == (start, size)


def test_a_tar_in_a_tar(tmp_path):
    path = tmp_path / "outer.tar"
    path.write_bytes(tar({"a.tar": tar({"1.jpg": b"one"}), "b.tar": tar({"2.jpg": b"two", "3.jpg": b"three"})}))
    first, second = members(path)
    contents = [
        file_ranges.read(str(path), member.offset, member.size)
        for archive in (first, second)
        for member in members(path, archive)
    ]
    assert contents == [b"one", b"two", b"three"]


def test_a_tar_in_a_tar_ends_where_it_ends(tmp_path):
    """What is wrong inside is not made good by what follows outside; and the message names both."""
    path, archive = tmp_path / "outer.tar", tar({"1.jpg": b"one"})
    path.write_bytes(tar({"a.tar": archive[:1024], "b.tar": archive}))
    assert "a.tar: it ends without" in refused(path, inside=next(members(path)))
    path.write_bytes(tar({"a.tar": with_header(archive, 0, {124: b"00000040000\0"}), "b.tar": bytes(20000)}))
    assert "a.tar: 1.jpg: 16,384 bytes, more than" in refused(path, inside=next(members(path)))


LONG = tar({"n" * 200: b""})  # an extended header, its 512 bytes of name, then the file
PAX = tar({"é" * 60: b""}, tarfile.PAX_FORMAT)


def pax(record):
    """A pax archive whose extended header is `record`."""
    return with_header(PAX, 0, {124: b"%011o\0" % len(record)})[:512] + record.ljust(512, b"\0") + PAX[1024:]


HOSTILE = {
    "absolute": (entry(name="/etc/passwd"), "/etc/passwd: its name leads out"),
    "dots": (entry(name="a/../../b.jpg"), "a/../../b.jpg: its name leads out"),
    "symbolic link": (entry(type=tarfile.SYMTYPE, linkname="/etc/passwd"), "a.jpg: a symbolic link"),
    "a link that ends like a folder": (entry(name="a/", type=tarfile.SYMTYPE), "a: a symbolic link"),
    "hard link": (entry(type=tarfile.LNKTYPE, linkname="b.jpg"), "a.jpg: a hard link"),
    "device": (entry(type=tarfile.CHRTYPE), "a.jpg: a device"),
    "block device": (entry(type=tarfile.BLKTYPE), "a.jpg: a device"),
    "pipe": (entry(type=tarfile.FIFOTYPE), "a.jpg: a pipe"),
    "sparse": (entry(type=tarfile.GNUTYPE_SPARSE), "a.jpg: a sparse file"),
    "sparse, pax": (pax(b"22 GNU.sparse.major=1\n"), "a sparse file"),
    "unknown": (entry(type=b"Z"), "a.jpg: an entry of unknown kind"),
    "twice": (tar({"a.jpg": b"", "./a.jpg": b""}), "a.jpg: it is there twice"),
    "no name": (entry(name="./", type=tarfile.DIRTYPE), None),  # the folder itself
    "a file without a name": (with_header(entry(), 0, {0: bytes(100)}), "a file without a name"),
    "newline": (entry(name="a\nerror: b.jpg"), r"a\nerror: b.jpg: its name is not printable"),
    "escape": (entry(name="a\x1b[2Jb.jpg"), r"a\x1b[2Jb.jpg: its name is not printable"),
    "not UTF-8": (with_header(entry(), 0, {0: b"\xff.jpg"}), r"\xff.jpg: its name is not UTF-8"),
    "long": (entry(name="n" * 1100), f"{'n' * 200}...: its name is too long"),
    "too large": (entry(size=1 << 40), "a.jpg: 1,099,511,627,776 bytes, more than the archive has"),
    "less than nothing": (with_header(entry(), 0, {124: b"\xff" * 12}), "a.jpg: its size is no number"),
    "size of letters": (with_header(entry(), 0, {124: b"12x"}), "a.jpg: its size is no number"),
    "vast name": (with_header(LONG, 0, {124: b"77777777777\0"}), "an extended header of 8,589,934,591 bytes"),
    "vast pax": (with_header(PAX, 0, {124: b"00000200001\0"}), "an extended header of 65,537 bytes"),
    "pax without end": (pax(b"9999 path=a\n"), "a damaged extended header"),
    "pax of nothing": (pax(b"0 path=a\n"), "a damaged extended header"),
    "pax that stands still": (pax(b"2 2 2 2 2 2 2 2 2=\n"), "a damaged extended header"),
    "pax without newline": (pax(b"9 path=a-"), "a damaged extended header"),
    "pax without number": (pax(b"path=a\n"), "a damaged extended header"),
    "pax, dots": (pax(b"13 path=../a\n"), "../a: its name leads out"),
    "pax, size": (pax(b"12 size=-99\n"), "its size is no number"),
    "pax for all": (with_header(pax(b"10 path=a\n"), 0, {156: b"g"}), "gives one name or size to all"),
    "pax for none": (PAX[:1024] + bytes(1024), "an extended header that belongs to no file"),
}


@every("case", HOSTILE)
def test_hostile_entries_are_refused_by_name(tmp_path, case):
    content, message = HOSTILE[case]
    path = tmp_path / "x.tar"
    path.write_bytes(content)
    if message is None:
        assert list(members(path)) == []
    else:
        assert message in refused(path)


FILES = {f"{number}.jpg": bytes([number]) * 700 for number in range(1, 4)}  # each takes 512 + 1,024 bytes
END = 3 * 1536


@every("cut", [*range(0, END + 512, 256), 1, 1535, 1537, END - 1, END + 511])
def test_an_archive_that_was_cut_is_refused(tmp_path, cut):
    """Exactly between two files as well, where other programs see a shorter archive."""
    path = tmp_path / "x.tar"
    path.write_bytes(tar(FILES)[:cut])
    assert "incomplete?" in refused(path)


def test_the_size_of_a_folder_is_no_data(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(with_header(tar({"f": None, "f/a.jpg": b"abc"}), 0, {124: b"00000001000\0"}))
    assert [tuple(member) for member in members(path)] == [("f/a.jpg", 1024, 3)]


def test_a_single_zero_block_is_an_end(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(tar(FILES)[: END + 512])
    assert len(list(members(path))) == 3


def test_a_header_that_was_lost_is_noticed(tmp_path):
    """Zeros in place of the second header look like the end of the archive."""
    path, content = tmp_path / "x.tar", tar(FILES)
    path.write_bytes(content[:1536] + bytes(512) + content[2048:])
    assert "behind its end, at byte 1,536" in refused(path)
    path.write_bytes(content[:1536] + bytes(END - 1536) + bytes(2 << 20))  # and zeros for megabytes
    assert "behind its end" in refused(path)


def test_every_byte_of_a_header_is_checked(tmp_path):
    path, content = tmp_path / "x.tar", tar(FILES)
    for offset in range(1536, 2048):
        path.write_bytes(content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :])
        assert "x.tar: " in refused(path)


@every(
    "make, message",
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "not a file"),
        (os.mkfifo, "not a file"),
        (lambda path: path.write_bytes(b""), "incomplete"),
        (lambda path: path.write_bytes(b"no archive" * 99), "no tar header"),
    ],
)
def test_what_is_no_archive(tmp_path, make, message):
    make(tmp_path / "x.tar")
    assert message in refused(tmp_path / "x.tar")


def packed(tmp_path, content):
    path = tmp_path / "x.tar.gz"
    path.write_bytes(content)
    return path


def unpack(path, wanted=lambda name: name != "2.jpg", largest=700, total=1 << 20):
    return dict(gzip_members(path, wanted, largest, total))


def test_files_wanted_from_a_compressed_archive(tmp_path):
    path = packed(tmp_path, tar(FILES, mode="w:gz"))
    assert unpack(path) == {name: content for name, content in FILES.items() if name != "2.jpg"}


@every(
    "content, options, message",
    [
        (tar(FILES, mode="w:gz"), {"largest": 699}, "1.jpg: 700 bytes, more than the 699"),
        (tar(FILES, mode="w:gz"), {"total": 4000}, "unpacks to more than 4,000 bytes"),
        (gzip.compress(entry(size=1 << 40)), {"wanted": lambda name: False}, "it ends without"),
        (gzip.compress(entry(size=700)[:800]), {}, "a.jpg: the archive ends inside it"),
        (gzip.compress(bytes(5 << 20)), {"total": 9 << 20}, "behind its end"),
        (gzip.compress(tar({}) + tar(FILES)), {}, "behind its end"),
        (tar(FILES, mode="w:gz")[:-9], {}, "incomplete gzip data"),
        (tar(FILES, mode="w:gz")[:-8] + b"12345678", {}, "damaged or incomplete gzip data"),
        (tar(FILES), {}, "damaged or incomplete gzip data"),
        (gzip.compress(tar(FILES)[:1536]), {}, "it ends without"),
        (gzip.compress(entry(type=tarfile.SYMTYPE)), {}, "a symbolic link"),
        (b"", {}, "it ends without"),
    ],
    ids=[
        "large file",
        "large archive",
        "large claim",
        "cut in a file",
        "zeros",
        "two archives",
        "cut",
        "checksum",
        "not compressed",
        "cut between files",
        "link",
        "empty",
    ],
)
def test_compressed_archives_that_are_refused(tmp_path, content, options, message):
    path = packed(tmp_path, content)
    with pytest.raises(UserError) as error:
        unpack(path, **options)
    assert str(error.value).startswith(str(path)) and message in str(error.value) and str(error.value).isprintable()


def test_a_bomb_is_not_unpacked_to_its_end(tmp_path, monkeypatch):
    """64 MB in 64 kB: reading stops at the limit, and never asks for much at once."""
    counts = []
    read = tar_archives._Forward._next
    monkeypatch.setattr(tar_archives._Forward, "_next", lambda self, count: counts.append(count) or read(self, count))
    header = tarfile.TarInfo("x")
    header.size = 64 << 20
    path = packed(tmp_path, gzip.compress(header.tobuf() + bytes(64 << 20)))
    with pytest.raises(UserError, match="unpacks to more than"):
        unpack(path, wanted=lambda name: False, total=3 << 20)
    assert sum(counts) < 5 << 20 and max(counts) <= 1 << 20


def test_reading_past_the_end_is_an_error(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"0123456789")
    assert file_ranges.read(str(path), 3, 4) == b"3456" and file_ranges.read(str(path), 10, 0) == b""
    with pytest.raises(UserError, match="ends at byte 10, 2 bytes too early"):
        file_ranges.read(str(path), 8, 4)
    with pytest.raises(UserError, match="No such file"):
        file_ranges.read(str(tmp_path / "gone"), 0, 1)


def test_thousands_of_archives_do_not_use_up_the_descriptors(tmp_path, monkeypatch):
    assert [file_ranges.most_open(limit) for limit in (24, 1024, 1 << 20, resource.RLIM_INFINITY)] == [
        12,
        512,
        2048,
        2048,
    ]
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert file_ranges._opened.cache_info().maxsize == file_ranges.most_open(limit)
    monkeypatch.setattr(file_ranges, "_opened", functools.lru_cache(64)(file_ranges._opened.__wrapped__))
    before = len(os.listdir("/proc/self/fd"))
    for number in range(200):
        path = tmp_path / str(number)
        path.write_bytes(b"%03d" % number)
        assert file_ranges.read(str(path), 0, 3) == b"%03d" % number
    assert len(os.listdir("/proc/self/fd")) - before < 70
    file_ranges._opened.cache_clear()
    assert len(os.listdir("/proc/self/fd")) <= before  # less what an earlier test had left open


@pytest.mark.process
def test_forked_processes_read_on_their_own(tmp_path):
    """A descriptor that is shared has one position for all; these reads don't use it."""
    path, content = tmp_path / "x.bin", os.urandom(1 << 16)
    path.write_bytes(content)
    file_ranges.read(str(path), 0, 1)

    def check(start):
        assert all(
            file_ranges.read(str(path), place, 64) == content[place : place + 64] for place in range(start, 60000, 97)
        )

    workers = [multiprocessing.get_context("fork").Process(target=check, args=(start,)) for start in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]


def test_a_gzip_file_in_memory():
    assert gunzipped(gzip.compress(b"x" * 100), 100) == b"x" * 100
    for content in (gzip.compress(b"x" * 101), gzip.compress(b"x" * 50)[:-1], b"\x1f\x8bgarbage, garbage", b""):
        with pytest.raises(ValueError, match="gzip"):
            gunzipped(content, 100)


def test_names_are_shown_on_one_short_line():
    assert shown("n1/é 1.jpg") == "n1/é 1.jpg" and shown("a\n\x1b\u2028b") == r"a\n\x1b\u2028b"
    assert len(shown("x" * 10**6)) == 203


def test_progress_is_told_now_and_then():
    messages, progress = [], Progress(None, 0)
    progress(lambda: 1 / 0)  # nobody listens: the text is not even made
    Progress(messages.append, 1000)(lambda: "too early")
    Progress(messages.append, 0)(lambda: "now")
    assert messages == ["now"]
