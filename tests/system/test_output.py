"""What a command prints arrives, or its status says that it didn't: odd sizes of a terminal, a full disk, streams that
are closed, readers that leave."""

import os
import subprocess
import sys

import pytest
from inner_cases import every

pytestmark = pytest.mark.process

LINE = "An answer of some length, in one line: 41.25 % of 1,234 pictures are cats of which none is black."
FULL = "error: can't write all of standard output: No space left on device\n"
WAYS = {  # of printing, as commands do it
    "say": f"say({LINE!r})",
    "print": f"print({LINE!r})",
    "much": f"print({LINE * 1000!r})",
    "progress": "say('first')\n    with progress('images', 2) as advance: advance(2)\n    say('last')",
    "help": "command_parser('name', 'What it does.').parse_args(['--help'])",
}


def ended(way, before="", **streams):
    """A command in a process of its own: (status, what it wrote on its standard output and standard error if these are
    pipes)."""
    code = (
        "import argparse, os, sys\n"
        "from alexnet_mp.system.errors import UserError, run_command\n"
        "from alexnet_mp.system.terminal import lines_on_stderr, progress, say\n"
        + ("from alexnet_mp.system.command_line import command_parser\n" if "command_parser" in way else "")
        + f"def main():\n    {way}\n    return 0\n{before}\nrun_command(main)"
    )
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    process = subprocess.run([sys.executable, "-c", code], text=True, **streams)
    return process.returncode, process.stdout, process.stderr


@pytest.mark.slow
@every("size", ["0", "00", "1", "-3", "", "\N{SUPERSCRIPT TWO}", "999999999999"])
@every("name", ["COLUMNS", "LINES"])
def test_a_size_of_the_terminal_that_is_none_hides_nothing(name, size):
    outcome = ended(WAYS["say"], env=os.environ | {name: size, "PYTHONIOENCODING": "utf-8"})
    assert outcome == (0, LINE + "\n", "")


@every("way", WAYS.values(), ids=WAYS)
def test_a_full_disk_is_an_error(way):
    """command > a file on a disk that is full"""
    with open("/dev/full", "w") as full:
        status, _, errors = ended(way, stdout=full)
    assert (status, errors) == (2, FULL)


def test_what_has_to_be_done_is_done_on_a_full_disk_all_the_same(tmp_path):
    """A training run outlives its log."""
    way = f"say({LINE!r}); open({str(tmp_path / 'kept')!r}, 'w').close(); say({LINE!r})"
    with open("/dev/full", "w") as full:
        assert ended(way, stdout=full)[::2] == (2, FULL)
    assert (tmp_path / "kept").exists()


@every("way", WAYS.values(), ids=WAYS)
def test_a_reader_that_has_left_is_no_error(way):
    """command | head -1"""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        status, _, errors = ended(way, stdout=writer)
    finally:
        os.close(writer)
    assert (status, errors) == (0, "")


def test_answers_arrive_where_standard_error_is_full():
    """Neither the remarks that can't be written nor an error's line take the answers with them."""
    way = f"with lines_on_stderr(): say('a remark')\n    say({LINE!r})"
    with open("/dev/full", "w") as full:
        assert ended(way, stderr=full)[:2] == (2, LINE + "\n")
        assert ended(f"say({LINE!r}); raise UserError('wrong')", stderr=full)[:2] == (2, LINE + "\n")


@pytest.mark.slow
@every("way", WAYS.values(), ids=WAYS)
@every("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_a_stream_that_is_closed_from_the_beginning(closed, way, tmp_path):
    """command <&-, >&-, 2>&-: nothing that is opened afterwards gets its number, and is printed into. What is printed
    and lost is an error, as of `cat`."""
    path = str(tmp_path / "kept")
    code = f"with open({path!r}, 'w') as file: file.write(sys.stdin.read()); os.write(1, b'more'); file.write('whole')"
    status, output, errors = ended(
        f"{code}\n    {way}", preexec_fn=lambda: [os.close(number) for number in closed], stdin=subprocess.DEVNULL
    )
    assert open(path).read() == "whole" and bool(output) is (1 not in closed)
    message = "error: can't write all of standard output: it is closed\n"
    assert (status, errors) == ((2, "" if 2 in closed else message) if 1 in closed else (0, ""))


def test_remarks_that_are_lost_are_a_status():
    """As on a full disk; where nothing is said on a stream that is closed, nothing is lost."""
    for way, descriptor, expected in (
        (f"with lines_on_stderr(): say('a remark')\n    say({LINE!r})", 2, (2, LINE + "\n", "")),
        ("with lines_on_stderr(): say('a remark')", 1, (0, "", "a remark\n")),
        ("raise UserError('wrong')", 1, (2, "", "error: wrong\n")),
    ):
        assert ended(way, preexec_fn=lambda: os.close(descriptor)) == expected


@every("unbuffered", ["", "1"])
def test_lines_on_standard_error_arrive_though_the_process_is_killed(unbuffered):
    """Both streams where the user wants nothing buffered."""
    way = "complain('too late'); print('out'); os.kill(os.getpid(), 9)"
    before = "from alexnet_mp.system.errors import complain"
    outcome = ended(way, before, env=os.environ | {"PYTHONUNBUFFERED": unbuffered})
    assert outcome == (-9, "out\n" if unbuffered else "", "error: too late\n")


@pytest.mark.slow
def test_a_command_whose_modules_open_files_says_that_its_answers_are_lost():
    """What an import opens doesn't get the number of standard output: nothing but a command's own words is lost."""
    for arguments in (["checkpoint", "--help"], ["predict", "--help"]):
        process = subprocess.run(
            [sys.executable, "-m", f"alexnet_mp.{arguments[0]}", *arguments[1:]],
            stderr=subprocess.PIPE,
            preexec_fn=lambda: os.close(1),
        )
        assert (process.returncode, process.stderr) == (2, b"error: can't write all of standard output: it is closed\n")
