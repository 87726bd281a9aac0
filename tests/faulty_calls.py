"""System calls that fail where a test wants it, and files that nobody expects."""

import os
import socket

SYSTEM_CALLS = {
    "open",
    "write",
    "read",
    "fsync",
    "close",
    "fstat",
    "lstat",
    "scandir",
    "rename",
    "mkdir",
    "rmdir",
    "unlink",
}


class Faulty:
    """Stands in for `os` below `files`: counts its system calls, and lets `fault` take the place of call number
    `at`."""

    def __init__(self, at=None, fault=None):
        self.at, self.fault, self.calls = at, fault, []

    def __getattr__(self, name):
        original = getattr(os, name)
        if name not in SYSTEM_CALLS:
            return original

        def call(*arguments, **options):
            self.calls.append(name)
            if len(self.calls) - 1 == self.at:
                return self.fault(original, *arguments, **options)
            return original(*arguments, **options)

        return call


def odd_files(root):
    """One of each kind that is no regular file."""
    (root / "file").write_bytes(b"content")
    (root / "link").symlink_to(root / "file")
    (root / "dangling").symlink_to(root / "nowhere")
    (root / "directory").mkdir()
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(root / "socket"))  # its name may have 107 bytes
    return [root / name for name in ("link", "dangling", "directory", "pipe", "socket")] + [
        root / "missing",
        "/dev/zero",
    ]
