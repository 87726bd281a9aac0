"""What is kept: written in one go, packed before a machine goes away, unpacked on the next; and its sources."""

import hashlib
import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

STATE, ARCHIVE = "check.json", "gpu-check.tar.gz"
MOST = 4 << 20  # bytes of a file that is packed
LOG = 1 << 20  # bytes that stay of a log


class Refused(Exception):
    """A user's error, in one line."""


def replace(path, content):
    """Write a file, text or bytes, in one go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.new")
    with open(draft, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def pack(home, results):
    """The state, and the archive of all that is in `home` but scratch/, into `results`. Raises OSError."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for top in sorted(home.iterdir()):
            if top.name == "scratch" or top.name.endswith(".new"):
                continue
            for path in [top] if top.is_file() else sorted(top.rglob("*")):
                try:
                    if not path.is_file() or path.stat().st_size > MOST:
                        continue
                    content, mtime = path.read_bytes(), path.stat().st_mtime
                except FileNotFoundError:
                    continue  # a stage is at work
                member = tarfile.TarInfo(str(path.relative_to(home)))
                member.size, member.mtime = len(content), int(mtime)
                tar.addfile(member, io.BytesIO(content))
    replace(results / ARCHIVE, buffer.getvalue())
    replace(results / STATE, (home / STATE).read_bytes())


def unpack(home, device, results, earlier):
    """Fill `home` with what an earlier command left in `results` or `earlier`, unless this machine has its own.

    Raises Refused for an archive that is missing, damaged, or of another device.
    """
    places = [results / ARCHIVE]
    if earlier:
        places.append(earlier if earlier.is_file() else earlier / ARCHIVE)
        if not places[1].exists():
            raise Refused(f"--from {earlier}: there is no {ARCHIVE}")
    for archive in filter(Path.exists, places):
        try:
            with tarfile.open(archive) as tar:
                archive_device = json.load(tar.extractfile(STATE))["device"]
                if archive_device == device and not (home / STATE).exists():
                    tar.extractall(home, filter="data")
                    print(f"going on from {archive}")
        except (OSError, EOFError, KeyError, ValueError, tarfile.TarError) as error:
            raise Refused(f"{archive} can't be read ({error}); move it away, or name another") from None
        if archive_device != device:
            raise Refused(f"{archive} is of the device {archive_device}, this is {device}; name another folder")


def shorten(log):
    """Keep the beginning and the end of a log that has grown too long."""
    content = log.read_bytes()
    if len(content) > LOG:
        log.write_bytes(content[: LOG // 4] + b"\n... (left out)\n" + content[-3 * LOG // 4 :])


def source_hash(root, names):
    """Of all files in these folders, with their names; not of what is built from them, or measured with them."""
    digest = hashlib.sha1()
    for name in names:
        for path in sorted([root / name] if (root / name).is_file() else (root / name).rglob("*")):
            if path.is_file() and path.suffix not in (".so", ".pyc", ".json"):
                digest.update(f"{path.relative_to(root)} {hashlib.sha1(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def source_commit(root):
    """As `alexnet_mp.system.provenance.source_commit`, without the package, which may not be built yet."""

    def git(*words):
        return subprocess.run(
            ["git", *words], cwd=root, capture_output=True, text=True, check=True, encoding="utf-8"
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != root:
            return None
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
