"""Calls for `isolated.py` that return, raise, die or hang; what imports this needs no torch."""

import os
import signal
import sys
import time

from alexnet_mp.system.isolated import Unfit, Wrong


def append(path, text):
    with open(path, "a") as file:
        file.write(text)


def chatter():
    """Whatever a kernel's compiler prints must not be taken for an answer."""
    print("noise")
    os.write(1, b"noise")
    os.write(2, b"noise")


def fail(kind):
    raise {
        "wrong": Wrong("differs by 3"),
        "unfit": Unfit("no room"),
        "exit": SystemExit(3),
        "memory": MemoryError(),
        "error": RuntimeError("an illegal address\nand a trace"),
        "interrupt": KeyboardInterrupt(),
        "wordless": ValueError(),
    }[kind]


def die(number):
    os.kill(os.getpid(), number)


def leave():
    os._exit(7)


def hang(path):
    """With a child of its own, as a pipeline has."""
    child = os.fork()
    if child == 0:
        time.sleep(600)
    append(path, f"{os.getpid()} {child}\n")
    time.sleep(600)


def die_with_heir(path):
    """A child of the process lives on, and with it the process's end of every connection."""
    child = os.fork()
    if child == 0:
        time.sleep(600)
    append(path, f"{child}\n")
    die(signal.SIGSEGV)


def needs_no_torch():
    assert "torch" not in sys.modules and not os.path.exists("core")


class Unreadable:
    """Can be sent, and not be read."""

    def __reduce__(self):
        return fail, ("error",)
