"""README, docs/ and the pages beside them: commands parse, links lead somewhere, figures say where they come from."""

import argparse
import importlib
import re
from functools import cache

import pytest
from inner_cases import every
from pages import PAGES, ROOT, blocks, sections, spans, text, typed
from torch.distributed.run import get_args_parser

COMMANDS = (
    "train",
    "evaluate",
    "predict",
    "prepare",
    "convert",
    "export",
    "checkpoint",
    "retrieve",
    "report",
    "watch",
    "compare",
    "claims",
    "doctor",
)
COMMAND = "python -m alexnet_mp."
WIDTH = 120  # columns of prose


class _Asked(BaseException):
    """Carries a command's parser out of it: nothing else of the command is run."""


@cache
def parser(command):
    def ask(parser, *_):
        raise _Asked(parser)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(_Asked) as request:
        patch.setattr(argparse.ArgumentParser, "parse_args", ask)
        importlib.import_module(f"alexnet_mp.{command}").main([])
    return request.value.args[0]


@cache
def options():
    """Every option of every command, and of what else is typed."""

    def of(one):
        for action in one._actions:
            yield from action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                for inner in action.choices.values():
                    yield from of(inner)

    names = {option for command in COMMANDS for option in of(parser(command))}
    for path in (*(ROOT / "tools").rglob("*"), *(ROOT / "benchmarks").glob("*.py")):
        if path.suffix in (".py", ".sh"):
            names |= set(re.findall(r"--[a-z][a-z-]+", path.read_text(encoding="utf-8")))
    return names


@every("page", PAGES)
def test_every_command_of_the_project_parses(page, capsys):
    for words in typed(page):
        try:
            if words[0] == "torchrun" and "-m" in words:
                job = get_args_parser().parse_args(words[1:])
                words = ["python", "-m", job.training_script, *job.training_script_args]
            if " ".join(words[:3]).startswith(COMMAND) and words[2] != "alexnet_mp.":
                parser(words[2].removeprefix("alexnet_mp.")).parse_args(words[3:])
        except SystemExit as end:
            assert end.code == 0, (words, capsys.readouterr().err)  # --help


@every("page", [page for page in PAGES if page != "CONTRIBUTING.md"])
def test_scripts_targets_and_options_are_there(page):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    for words in typed(page):
        if words[0] == "make":
            assert len(words) == 1 or words[1] in targets, words
        else:
            for word in words[:2]:
                assert not re.match(r"(tools|benchmarks|tests)/", word) or (ROOT / word).exists(), words
    for span in spans(page):
        if match := re.match(r"--[a-z-]+", span):
            assert match[0] in options(), span


def anchors(page):
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text(page), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every("page", PAGES)
def test_every_link_leads_somewhere(page):
    prose = re.sub(r"^```.*?^```$", "", text(page), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)]+)\)", prose):
        if not link.startswith("https://"):
            path, _, anchor = link.partition("#")
            target = (ROOT / page).parent / path if path else ROOT / page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target.resolve().relative_to(ROOT).as_posix()), link


def test_every_page_and_picture_is_linked():
    targets = {
        ((ROOT / page).parent / link.partition("#")[0]).resolve()
        for page in PAGES
        for link in re.findall(r"\]\(([^)]+)\)", text(page))
        if link[:1] != "#"
    }
    assert {path for path in (ROOT / "docs").iterdir() if path.resolve() not in targets} == set()


@every("page", PAGES)
def test_lines_of_prose_are_short(page):
    prose = re.sub(r"<!-- (claims|speed): begin -->.*?<!-- \1: end -->", "", text(page), flags=re.S)
    prose = re.sub(r"^```.*?^```$", "", prose, flags=re.M | re.S)
    assert [line for line in prose.splitlines() if len(line) > WIDTH and line[0] != "|" and line[:2] != "!["] == []


def test_the_readme_is_short_and_begins_with_the_two_commands():
    assert len(text("README.md").splitlines()) <= 200
    assert [line.split()[:2] for line in blocks("README.md")[0]] == [["make", "train"], ["make", "test"]]
    assert text("README.md").index("![") < text("README.md").index("```")


def test_the_readmes_network_runs():
    (code,) = re.findall(r"^```python\n(.*?)^```$", text("README.md"), re.M | re.S)
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    exec(code, {"print": lambda entry: None})


MEASURED = re.compile(r"\d (ms|s|%|GB/s|MB)(?![\w/])")


@every("page", ["first-runs", "checkpoints", "retrieval", "report", "benchmarks", "profiling"])
def test_figures_have_machine_versions_date_and_command(page):
    passages = {heading: prose for heading, prose in sections(f"docs/{page}.md").items() if MEASURED.search(prose)}
    assert passages
    for heading, prose in passages.items():
        if heading:  # what stands before the first heading is how to run it
            prose = " ".join(prose.split())
            for pattern in (r"AMD EPYC|NVIDIA", r"torch 2\.\d+", r"20\d\d-\d\d-\d\d(?!-)", r"python |records?\b"):
                assert re.search(pattern, prose), (heading, pattern)


def test_every_deviation_has_its_five_cells():
    rows = [line for line in text("docs/deviations.md").splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]
    assert cells[0] == ["what", "paper", "2012 source", "here", "why"] and len(cells) > 50
    for row in cells[1:]:
        assert len(row) == 5 and row[0] and row[2] and row[3], row
        assert re.search(r"`[\w./:-]+:\d[\d,-]*`|`[\w./:-]+`, (counted|\w+::\w+)|page on parallelism", row[2]), row
    assert len({row[0] for row in cells}) == len(cells)


def test_the_changelog_names_the_version():
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert version in text("CHANGELOG.md")
