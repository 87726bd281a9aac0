"""Files through failing disks, links, pipes and kills: whole or not at all, and every error names its file."""

import errno
import hashlib
import os

import pytest
from faulty_calls import Faulty, odd_files
from inner_cases import every

from alexnet_mp.system import durable_files
from alexnet_mp.system.errors import UserError


class Killed(BaseException):
    pass


class Mortal(Faulty):
    """As `Faulty`, for a process that is killed before call number `at`: nothing that would come later happens."""

    def __getattr__(self, name):
        if self.at is not None and len(self.calls) > self.at:
            raise Killed
        return super().__getattr__(name)


def kill(*_, **__):
    raise Killed


def failing(number):
    def fault(*_, **__):
        raise OSError(number, os.strerror(number))  # as os.write and os.fsync raise it: without a name

    return fault


def under(monkeypatch, fake, action):
    with monkeypatch.context() as patch:
        patch.setattr(durable_files, "os", fake)
        return action()


def calls_of(monkeypatch, action):
    counter = Faulty()
    under(monkeypatch, counter, action)
    return counter.calls


def test_a_directory_is_made_once(tmp_path):
    durable_files.make_directory(tmp_path / "new")
    assert (tmp_path / "new").is_dir()
    for name in ("new", "file", "link"):
        if name == "file":
            (tmp_path / name).write_bytes(b"")
        elif name == "link":
            (tmp_path / name).symlink_to(tmp_path / "nowhere")
        with pytest.raises(FileExistsError):
            durable_files.make_directory(tmp_path / name)
    assert not (tmp_path / "nowhere").exists()


def test_parts_are_written_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(durable_files, "CHUNK", 5)
    matrix, floats = memoryview(bytes(range(24))).cast("B", (4, 6)), memoryview(b"\0" * 16).cast("f")
    parts = [b"one", bytearray(b"two and more"), b"", matrix, floats]
    whole = b"one" + b"two and more" + bytes(range(24)) + bytes(16)
    assert durable_files.write(tmp_path / "file", iter(parts)) == (len(whole), hashlib.sha256(whole).hexdigest())
    assert (tmp_path / "file").read_bytes() == whole
    assert durable_files.write(tmp_path / "empty", []) == (0, hashlib.sha256().hexdigest())


def test_a_part_is_made_when_it_is_written(tmp_path):
    def parts():
        for number in range(3):
            assert (tmp_path / "file").stat().st_size == number
            yield b"x"

    durable_files.write(tmp_path / "file", parts())


def test_no_file_is_written_twice_and_no_link_followed(tmp_path):
    for path in odd_files(tmp_path)[:5] + [tmp_path / "file"]:
        with pytest.raises(FileExistsError):
            durable_files.write(path, [b"new"])
    assert (tmp_path / "file").read_bytes() == b"content" and not (tmp_path / "nowhere").exists()


def test_short_writes_are_continued(tmp_path, monkeypatch):
    content, fake_os = bytes(range(200)), Faulty()
    fake_os.write = lambda descriptor, chunk: os.write(descriptor, chunk[:7])
    length_and_digest = under(monkeypatch, fake_os, lambda: durable_files.write(tmp_path / "file", [content]))
    assert length_and_digest == (200, hashlib.sha256(content).hexdigest())
    assert (tmp_path / "file").read_bytes() == content


def test_a_write_of_nothing_is_an_error_and_no_endless_loop(tmp_path, monkeypatch):
    fake_os = Faulty()
    fake_os.write = lambda *_: 0
    with pytest.raises(OSError, match="no more bytes") as error:
        under(monkeypatch, fake_os, lambda: durable_files.write(tmp_path / "file", [b"content"]))
    assert error.value.filename == str(tmp_path / "file")


def test_a_disk_that_fills_up_in_the_middle(tmp_path, monkeypatch):
    room = [10]

    def write(descriptor, chunk):
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = os.write(descriptor, chunk[: room[0]])
        room[0] -= count
        return count

    fake_os = Faulty()
    fake_os.write = write
    with pytest.raises(OSError) as error:
        under(monkeypatch, fake_os, lambda: durable_files.write(tmp_path / "file", [b"x" * 30]))
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == b"x" * 10


def test_a_file_is_synced_before_it_is_closed(tmp_path, monkeypatch):
    calls = calls_of(monkeypatch, lambda: durable_files.write(tmp_path / "file", [b"a", b"b"]))
    assert calls == ["open", "write", "write", "fsync", "close"]


def test_read_is_bounded(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    assert durable_files.read(tmp_path / "file", 7) == durable_files.read(str(tmp_path / "file"), 100) == b"content"
    with pytest.raises(OSError, match="it has 7 bytes, 6 at most are read") as error:
        durable_files.read(tmp_path / "file", 6)
    assert (error.value.errno, error.value.filename) == (errno.EFBIG, str(tmp_path / "file"))
    os.truncate(tmp_path / "file", 1 << 42)  # sparse: nobody has memory for it
    with pytest.raises(OSError, match="at most are read"):
        durable_files.read(tmp_path / "file", 1 << 20)
    assert durable_files.head(tmp_path / "file", 9) == (1 << 42, b"content\0\0")


def test_head_and_digest(tmp_path, monkeypatch):
    monkeypatch.setattr(durable_files, "CHUNK", 3)
    (tmp_path / "file").write_bytes(b"content")
    assert durable_files.head(tmp_path / "file", 4) == (7, b"cont") and durable_files.head(tmp_path / "file", 100) == (
        7,
        b"content",
    )
    assert durable_files.digest(tmp_path / "file") == (7, hashlib.sha256(b"content").hexdigest())


@every(
    "reading",
    [lambda path: durable_files.read(path, 100), lambda path: durable_files.head(path, 4), durable_files.digest],
    ids=["read", "head", "digest"],
)
def test_what_is_no_file_is_neither_read_nor_waited_for(reading, tmp_path):
    messages = []
    for path in odd_files(tmp_path):
        with pytest.raises(OSError) as error:
            reading(path)
        assert error.value.filename == str(path)
        messages.append(error.value.strerror)
    assert messages[:4] == ["it is a link, which is not followed"] * 2 + ["it is not a regular file"] * 2
    assert messages[5:] == ["No such file or directory", "it is not a regular file"]


def test_a_file_that_shrinks_while_it_is_read(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"content")

    def read(descriptor, count):
        os.truncate(tmp_path / "file", 3)
        return os.read(descriptor, count)

    fake_os = Faulty()
    fake_os.read = read
    with pytest.raises(OSError, match="it shrank to 3 of 7 bytes"):
        under(monkeypatch, fake_os, lambda: durable_files.read(tmp_path / "file", 100))


def test_names_are_bounded(tmp_path):
    for name in "cab":
        (tmp_path / name).write_bytes(b"")
    assert (
        durable_files.names(tmp_path, 3) == durable_files.names(tmp_path, 9) == ["a", "b", "c"]
        and len(durable_files.names(tmp_path, 2)) == 2
    )
    with pytest.raises(NotADirectoryError):
        durable_files.names(tmp_path / "a", 3)


def test_rename_syncs_the_new_parent(tmp_path, monkeypatch):
    (tmp_path / "parent").mkdir()
    (tmp_path / "old").write_bytes(b"content")
    paths = []
    fake_os = Faulty()
    fake_os.fsync = lambda descriptor: paths.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    under(monkeypatch, fake_os, lambda: durable_files.rename(tmp_path / "old", tmp_path / "parent" / "new"))
    assert (tmp_path / "parent" / "new").read_bytes() == b"content" and paths == [str(tmp_path / "parent")]


def test_names_without_a_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    durable_files.replace("a", b"content")
    durable_files.rename("a", "b")
    assert durable_files.read("b", 7) == b"content" and os.listdir() == ["b"]


def test_remove_follows_no_link(tmp_path):
    folder, tree = tmp_path / "kept", tmp_path / "tree"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "file").write_bytes(b"content")
    (tree / "deep" / "deeper").mkdir(parents=True)
    (tree / "deep" / "file").write_bytes(b"")
    odd_files(tree / "deep" / "deeper")
    (tree / "to directory").symlink_to(folder)
    (tree / "to file").symlink_to(folder / "inner" / "file")
    durable_files.remove(tree)
    (tmp_path / "alias").symlink_to(folder)
    durable_files.remove(tmp_path / "alias")
    durable_files.remove(tmp_path / "missing")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"] and (
        folder / "inner" / "file"
    ).read_bytes() == b"content"
    durable_files.remove(folder / "inner" / "file")
    assert not (folder / "inner" / "file").exists()


def test_remove_beside_another_that_removes(tmp_path, monkeypatch):
    (tmp_path / "tree" / "inner").mkdir(parents=True)

    def vanish(original, path, *_):
        durable_files.remove(tmp_path / "tree")
        return original(path)

    for at in range(len(calls_of(monkeypatch, lambda: durable_files.remove(tmp_path / "tree")))):
        (tmp_path / "tree" / "inner").mkdir(parents=True)
        under(monkeypatch, Faulty(at, vanish), lambda: durable_files.remove(tmp_path / "tree"))
        assert not (tmp_path / "tree").exists()


def make_whole(path, instead=False):
    with durable_files.new_directory(path, instead) as directory:
        durable_files.write(directory / "file", [b"content"])


ACTIONS = {
    "make_directory": lambda root: durable_files.make_directory(root / "made"),
    "write": lambda root: durable_files.write(root / "written", [b"a", b"b"]),
    "read": lambda root: durable_files.read(root / "old", 100),
    "head": lambda root: durable_files.head(root / "old", 2),
    "digest": lambda root: durable_files.digest(root / "old"),
    "names": lambda root: durable_files.names(root, 3),
    "replace": lambda root: durable_files.replace(root / "old", b"new"),
    "new_directory": lambda root: make_whole(root / "filled"),
    "new_directory instead": lambda root: make_whole(root / "tree", True),
    "new_file": lambda root: durable_files.new_file(root / "new", b"content", len),
    "rename": lambda root: durable_files.rename(root / "old", root / "renamed"),
    "remove": lambda root: durable_files.remove(root / "tree"),
    "sync": lambda root: durable_files.sync(root),
}


@every("number", [errno.EIO, errno.ENOSPC, errno.EROFS])
@every("action", ACTIONS.values(), ids=ACTIONS)
def test_every_call_may_fail_and_the_file_is_named(action, number, tmp_path, monkeypatch):
    def fresh(name):
        root = tmp_path / str(name)
        (root / "tree" / "inner").mkdir(parents=True)
        (root / "old").write_bytes(b"content")
        return root

    root = fresh("whole")
    before, calls = len(os.listdir("/proc/self/fd")), calls_of(monkeypatch, lambda: action(root))
    assert calls
    for at, call in enumerate(calls):
        root = fresh(at)

        def fault(original, *arguments, call=call, **options):
            if call == "close":
                original(*arguments)
            raise OSError(number, os.strerror(number))

        with pytest.raises(OSError) as error:
            under(monkeypatch, Faulty(at, fault), lambda root=root: action(root))
        assert error.value.errno == number and error.value.filename.startswith(str(root)), call
    assert len(os.listdir("/proc/self/fd")) == before  # nothing stays open


def old_or_new(tmp_path, monkeypatch, fake, error):
    """The content after `replace` ended in an error, and the other names that there are."""
    (tmp_path / "file").write_bytes(b"old" * 1000)
    with pytest.raises(error):
        under(monkeypatch, fake, lambda: durable_files.replace(tmp_path / "file", b"new" * 1000))
    return (tmp_path / "file").read_bytes(), sorted(path.name for path in tmp_path.iterdir() if path.name != "file")


def half_written(original, descriptor, chunk):
    original(descriptor, chunk[:100])
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("leftover", [False, True])
def test_replace_gives_the_old_or_the_new_content(leftover, tmp_path, monkeypatch):
    def prepare():
        if leftover:
            (tmp_path / "file.partial").write_bytes(b"half")

    prepare()
    (tmp_path / "file").write_bytes(b"old" * 1000)
    calls = calls_of(monkeypatch, lambda: durable_files.replace(tmp_path / "file", b"new" * 1000))
    assert (tmp_path / "file").read_bytes() == b"new" * 1000 and os.listdir(tmp_path) == ["file"]
    rename_index = calls.index("rename")
    assert calls[:rename_index].count("fsync") == 1 and calls[rename_index:] == ["rename", "open", "fsync", "close"]

    for at, call in enumerate(calls):
        prepare()
        fault = half_written if call == "write" else failing(errno.EIO)
        content, others = old_or_new(tmp_path, monkeypatch, Faulty(at, fault), OSError)
        assert content == (b"old" if at <= rename_index else b"new") * 1000
        assert others == (["file.partial"] if leftover and at < calls.index("open") else [])

        prepare()
        content, others = old_or_new(tmp_path, monkeypatch, Mortal(at, kill), Killed)
        assert content == (b"old" if at <= rename_index else b"new") * 1000
        assert set(others) <= {"file.partial"}
        durable_files.replace(tmp_path / "file", b"once more")  # what the kill left is no obstacle
        assert durable_files.read(tmp_path / "file", 9) == b"once more" and os.listdir(tmp_path) == ["file"]


def test_a_new_directory_or_file_is_whole_or_not_there(tmp_path, monkeypatch):
    (tmp_path / "filled.partial" / "of a crash").mkdir(parents=True)
    calls = calls_of(monkeypatch, lambda: make_whole(tmp_path / "filled"))
    assert names_below(tmp_path) == ["filled", "filled/file"]
    for at, call in enumerate(calls):
        durable_files.remove(tmp_path / "filled")
        (tmp_path / "filled.partial" / "of a crash").mkdir(parents=True)
        with pytest.raises(OSError):
            under(monkeypatch, Faulty(at, failing(errno.EIO)), lambda: make_whole(tmp_path / "filled"))
        assert "filled" not in names_below(tmp_path) or (tmp_path / "filled" / "file").read_bytes() == b"content"
        assert at < calls.index("mkdir") or not (tmp_path / "filled.partial").exists(), call
        durable_files.remove(tmp_path / "filled.partial")

    # instead of one that is there; with a slash at its end
    directory = tmp_path / "filled"
    for at in range(100):
        durable_files.remove(directory)
        (directory / "of before").mkdir(parents=True)
        if at == 0:
            calls = calls_of(monkeypatch, lambda: make_whole(f"{directory}/", True))
            assert names_below(tmp_path) == ["filled", "filled/file"]
        elif at <= len(calls):
            with pytest.raises(OSError):
                under(monkeypatch, Faulty(at - 1, failing(errno.EIO)), lambda: make_whole(directory, True))
            assert names_below(directory) in (["of before"], ["file"]), calls[at - 1]
            assert not (tmp_path / "filled.replaced").exists() or names_below(directory) == ["file"]
    path = tmp_path / "new"  # a file, once it was found to be right

    def wrong(content):
        assert content == b"content" and not path.exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        durable_files.new_file(path, b"content", wrong)
    assert not list(tmp_path.glob("new*"))
    assert durable_files.new_file(path, b"content", len) == 7 and path.read_bytes() == b"content"


def names_below(path):
    return sorted(str(file.relative_to(path)) for file in path.rglob("*"))


def test_replace_in_parts_tells_what_was_written(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    assert durable_files.replace(tmp_path / "file", iter([b"n", b"ew"])) == (3, hashlib.sha256(b"new").hexdigest())

    def broken_off():
        yield b"half"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        durable_files.replace(tmp_path / "file", broken_off())
    assert (tmp_path / "file").read_bytes() == b"new" and os.listdir(tmp_path) == ["file"]


def test_an_output_is_refused_early(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for path, problem in (
        (tmp_path / "file", "it is there already"),
        (tmp_path / "nowhere", "it is there already"),
        ("", "write the name of a file"),
        (tmp_path / "file" / "new", f"{tmp_path}/file is not a directory"),
        (tmp_path / "no" / "new", f"{tmp_path}/no is not a directory"),
    ):
        with pytest.raises(UserError, match=f"^--flag {path or repr('')}: {problem}"):
            durable_files.refuse_output("--flag", path)
    durable_files.refuse_output("--flag", tmp_path / "new")
    durable_files.refuse_unwritable("--flag", tmp_path / "no" / "new" / "one")
    with pytest.raises(UserError, match=f"--flag {tmp_path}/file/a/b: {tmp_path}/file is not a directory that can be"):
        durable_files.refuse_unwritable("--flag", tmp_path / "file" / "a" / "b")


def test_replace_makes_a_new_file_and_no_directory_gives_way(tmp_path):
    durable_files.replace(tmp_path / "file", b"new")
    (tmp_path / "directory" / "inner").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        durable_files.replace(tmp_path / "directory", b"new")
    assert sorted(os.listdir(tmp_path)) == ["directory", "file"] and (tmp_path / "file").read_bytes() == b"new"


def test_replace_takes_the_place_of_a_link_and_leaves_its_target(tmp_path):
    (tmp_path / "target").write_bytes(b"target")
    (tmp_path / "file").symlink_to(tmp_path / "target")
    (tmp_path / "file.partial").symlink_to(tmp_path / "target")
    durable_files.replace(tmp_path / "file", b"new")
    assert (tmp_path / "target").read_bytes() == b"target" and (tmp_path / "file").read_bytes() == b"new"
    assert not (tmp_path / "file").is_symlink()


def test_what_cannot_be_written_is_named_as_it_would_have_been(tmp_path):
    """The file that failed, without the ending of its time in the making; what was asked for if the error has none."""
    for filename, message in (
        (None, f"{tmp_path}/out: No space left on device"),
        (f"{tmp_path}/out.partial", f"{tmp_path}/out: No space left on device"),
        (f"{tmp_path}/out.partial/a/b.png", f"{tmp_path}/out/a/b.png: No space left on device"),
        ("/elsewhere/out", "/elsewhere/out: No space left on device"),
    ):
        with pytest.raises(UserError) as error, durable_files.writing(tmp_path / "out"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), filename)
        assert str(error.value) == f"cannot write {message}"
    with pytest.raises(UserError, match="cannot write out: encoder error -2$"), durable_files.writing("out"):
        raise OSError("encoder error -2")
    with pytest.raises(KeyError), durable_files.writing("out"):
        raise KeyError
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"cannot write {tmp_path}/file/new: Not a directory$"):
        durable_files.write_output(tmp_path / "file" / "new", b"")
