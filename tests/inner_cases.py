"""Many small cases as one test: a runner spends more time on a case than most of them take."""

import functools
import inspect
import shutil
from pathlib import Path

import pytest


def every(names, rows, ids=None):
    """`pytest.mark.parametrize` within a test; on top of each other they give all combinations.

    All of them run, whatever fails. The test raises the first error; its notes name its combination, and the others
    that failed. The test counts as skipped if one combination is. Each combination finds `tmp_path`, and what fixtures
    have put there, as new, and `capsys` empty, and is rid of the patches of `monkeypatch` afterwards; whatever else
    fixtures make is shared.

    names: of arguments, with commas between. rows: a value for each name; of a single name the value itself.
    """
    names, rows = [name.strip() for name in names.split(",")], list(rows)
    assert rows, f"no values for {names}"
    ways = []
    for number, (row, case_id) in enumerate(zip(rows, ids or [None] * len(rows), strict=True)):
        arguments = dict(zip(names, [row] if len(names) == 1 else row, strict=True))
        ways.append(
            (case_id or ", ".join(f"{name}={_text(value, number)}" for name, value in arguments.items()), arguments)
        )

    def decorate(test):
        function, inner = getattr(test, "inner_cases", (test, [("", {})]))
        combinations = [
            (f"{name}; {rest}".strip("; "), row | arguments) for name, row in ways for rest, arguments in inner
        ]

        @functools.wraps(test)
        def looped(**fixtures):
            __tracebackhide__ = True
            _run_all(function, combinations, fixtures)

        parameters = [name for name in inspect.signature(test).parameters if name not in {*names, "tmp_path"}]
        looped.__signature__ = inspect.Signature(
            [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in (*parameters, "tmp_path")]
        )
        looped.inner_cases = function, combinations
        return looped

    return decorate


def _text(value, number):
    if inspect.isroutine(value):  # most are lambdas
        return f"{value.__name__} {number}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text:.80}... {number}"


def _run_all(test, combinations, fixtures):
    __tracebackhide__ = True
    errors, skip_reason = [], None
    for number, (name, arguments) in enumerate(combinations):
        try:
            _run(test, number, fixtures, arguments)
        except pytest.skip.Exception as reason:
            skip_reason = f"{name}: {reason}"
        except (Exception, pytest.fail.Exception) as error:
            errors.append((name, error))
    if errors:
        first = errors[0][1]
        for name, error in errors:
            word = "inner case" if error is first else "failed as well:"
            first.add_note(f"{word} {name}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]:.200}")
        raise first
    if skip_reason:
        pytest.skip(skip_reason)


def _run(test, number, fixtures, arguments):
    __tracebackhide__ = True
    place, test_parameters = fixtures["tmp_path"], inspect.signature(test).parameters
    ours = [
        name
        for name, value in fixtures.items()
        if isinstance(value, Path) and value.is_relative_to(place) and name in test_parameters
    ]
    values = {name: value for name, value in (fixtures | arguments).items() if name in test_parameters}
    if ours:
        folder_copy = shutil.copytree(place, place.with_name(f"{place.name}-{number}"), symlinks=True)
        values |= {name: folder_copy / fixtures[name].relative_to(place) for name in ours}
    if "capsys" in values:
        values["capsys"].readouterr()
    if "monkeypatch" in values:
        with values["monkeypatch"].context() as values["monkeypatch"]:
            return test(**values)
    return test(**values)
