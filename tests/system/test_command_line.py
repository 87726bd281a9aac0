"""Every command's options: typed in full, and refused in one line."""

import argparse
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from inner_cases import every

import alexnet_mp.claims  # noqa: F401
from alexnet_mp.system.command_line import python_command, typed
from alexnet_mp.system.errors import run_command

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = sorted(
    path.stem for path in (ROOT / "alexnet_mp").glob("*.py") if "run_command(main" in path.read_text(encoding="utf-8")
)


class _Asked(BaseException):
    pass


def parsers(command, monkeypatch):
    """{as it is typed: its parser} of a command and its sub-commands."""

    def ask(parser, *_):
        raise _Asked(parser)

    with monkeypatch.context() as patch, pytest.raises(_Asked) as request:
        patch.setattr(argparse.ArgumentParser, "parse_args", ask)
        importlib.import_module(f"alexnet_mp.{command}").main([])
    by_line = {command: request.value.args[0]}
    for action in by_line[command]._actions:
        if isinstance(action, argparse._SubParsersAction):
            by_line |= {f"{command} {name}": parser for name, parser in action.choices.items()}
    return by_line


def needed(parser):
    """The least that can be typed."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            action.required = False
        elif action.required:
            yield from [*action.option_strings[:1], *list(action.choices or ["x"])[:1]]


def test_no_option_of_any_command_can_be_abbreviated(monkeypatch):
    assert len(COMMANDS) >= 9
    count = 0
    for command in COMMANDS:
        for line, parser in parsers(command, monkeypatch).items():
            options = set(parser._option_string_actions)
            for option in options:
                for length in range(3, len(option)):
                    prefix = option[:length]
                    if option.startswith("--") and prefix not in options:
                        namespace, unknown = parser.parse_known_args([*needed(parser), prefix])
                        assert unknown == [prefix], f"{line} {prefix} is taken for {option}"
                        count += 1
    assert count > 300


def test_no_script_takes_abbreviations():
    for path in (*(ROOT / "tools").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        arguments = re.findall(r"ArgumentParser\(\s*(\S+)", text)
        assert all(argument == "allow_abbrev=False," for argument in arguments), path


@every(
    "command, words, wrong",
    [
        ("train", ["--recip", "mini"], "unrecognized arguments: --recip mini"),
        ("evaluate", ["RUN", "--batch", "16"], "unrecognized arguments: --batch 16"),
        ("claims", ["run", "lrn", "--data", "builtin", "--see", "2"], "unrecognized arguments: --see 2"),
        ("retrieve", ["query", "RUN", "FILE", "--she", "x.png"], "unrecognized arguments: --she x.png"),
        ("train", ["--epochs", "many"], "argument --epochs: invalid int value: 'many'"),
        ("train", ["two\nlines"], "unrecognized arguments: two lines"),
        ("predict", [], "the following arguments are required: RUN, FILE|FOLDER"),
    ],
)
def test_what_is_wrong_is_one_line(command, words, wrong, capsys, monkeypatch):
    for name in ("training.run.train", "claims.run_one"):
        monkeypatch.setattr(f"alexnet_mp.{name}", lambda *_: pytest.fail("it was taken for something else"))
    with pytest.raises(SystemExit) as system_exit:
        run_command(lambda: importlib.import_module(f"alexnet_mp.{command}").main(words))
    output = capsys.readouterr()
    assert system_exit.value.code == 2 and not output.out
    assert re.fullmatch(
        rf"error: [^\n]*{re.escape(wrong)}; python -m alexnet_mp\.{command}.* --help [^\n]*\n", output.err
    )


CLOSED = """
import os, sys
if len(sys.argv) == 2:
    os.closerange(0, 3)
    os.execv(sys.executable, [sys.executable, "-c", os.environ["CODE"], sys.argv[1], "closed"])
assert sys.stdin is sys.stdout is sys.stderr is None
import importlib
import alexnet_mp.claims  # noqa: F401
from alexnet_mp.system.errors import run_command
statuses = []
for name in os.environ["COMMANDS"].split():
    main = importlib.import_module(f"alexnet_mp.{name}").main
    for words in (["--help"], ["--nonsense"]):
        if os.fork() == 0:
            sys.argv[1:] = words
            try:
                run_command(main)
            except SystemExit as ended:
                os._exit(ended.code)  # at once: torch takes its time
        statuses.append(os.waitstatus_to_exitcode(os.wait()[1]))
with open(sys.argv[1], "w") as file:
    print(*statuses, file=file)
"""


@pytest.mark.slow
@pytest.mark.process
def test_commands_whose_streams_are_closed(tmp_path):
    """<&- >&- 2>&-: they end without a traceback, which would be status 1, and say by theirs that help is lost, too."""
    environment = os.environ | {"CODE": CLOSED, "COMMANDS": " ".join(COMMANDS)}
    process = subprocess.run(
        [sys.executable, "-c", CLOSED, tmp_path / "statuses"], capture_output=True, text=True, env=environment
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
    assert (tmp_path / "statuses").read_text().split() == ["2", "2"] * len(COMMANDS)


def interpreter(path):
    path.parent.mkdir(parents=True)
    path.symlink_to(os.path.realpath(sys.executable))
    return path


@every(
    "own, on_path, directory, expected",
    [
        ("venv/bin/python", "venv/bin", ".", "python"),  # an environment that is active
        ("venv/bin/python3", "venv/bin", ".", "python3"),
        ("venv/bin/python3.11", "other/bin", ".", "venv/bin/python3.11"),  # python is another one
        ("venv/bin/python", "other/bin", "venv", "bin/python"),
        ("venv/bin/python", "other/bin", "elsewhere/far/away", "{root}/venv/bin/python"),  # never ../../../venv
        ("a b/bin/python", "other/bin", "elsewhere", "'{root}/a b/bin/python'"),
        ("", "other/bin", ".", "python"),
    ],
)
def test_the_interpreter_that_hints_print_works_and_is_short(own, on_path, directory, expected, tmp_path, monkeypatch):
    interpreter(tmp_path / "other/bin/python")
    (tmp_path / directory).mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(sys, "executable", str(interpreter(tmp_path / own)) if own else "")
    monkeypatch.setenv("PATH", str(tmp_path / on_path))
    monkeypatch.chdir(tmp_path / directory)
    assert typed("evaluate", "my runs/1") == f"{expected.format(root=tmp_path)} -m alexnet_mp.evaluate 'my runs/1'"
    if own:
        path = [os.path.abspath(shutil.which(word) or word) for word in shlex.split(python_command())]
        assert path == [os.path.abspath(sys.executable)] or os.path.samefile(path[0], sys.executable)


def test_a_path_that_leads_through_a_link_is_the_same(tmp_path, monkeypatch):
    """As /bin leads to /usr/bin."""
    monkeypatch.setattr(sys, "executable", str(interpreter(tmp_path / "usr/bin/python3")))
    (tmp_path / "bin").symlink_to("usr/bin")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert python_command() == "python3"
