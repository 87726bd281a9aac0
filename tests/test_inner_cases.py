"""Loops in place of parametrised tests: every combination runs, and those that fail are named."""

import inspect

import pytest
from inner_cases import every


def test_all_combinations_run(tmp_path):
    calls = []

    @every("a", [1, 2])
    @every("b, c", [(3, "x"), (4, "y")])
    def test(fixture, a, b, c):
        calls.append((fixture, a, b, c))

    assert list(inspect.signature(test).parameters) == ["fixture", "tmp_path"]  # what pytest looks for
    test(fixture="f", tmp_path=tmp_path)
    assert calls == [("f", 1, 3, "x"), ("f", 1, 4, "y"), ("f", 2, 3, "x"), ("f", 2, 4, "y")]


def test_failures_are_named_and_do_not_end_the_loop(tmp_path):
    calls = []

    @every("a", [1, 2, 3, 4])
    @every("b", [lambda: 0], ids=["nothing"])
    def test(a, b):
        calls.append(a)
        assert a != 2, "two\nlines"
        if a == 3:
            pytest.fail("three")

    with pytest.raises(AssertionError, match="two") as error:
        test(tmp_path=tmp_path)
    assert calls == [1, 2, 3, 4]
    first, second = error.value.__notes__
    assert first.startswith("inner case a=2; nothing: AssertionError: two") and "lines" not in first
    assert second == "failed as well: a=3; nothing: Failed: three"


def test_a_combination_that_is_skipped_is_not_passed_over(tmp_path):
    calls = []

    @every("a", [1, 2])
    def test(a):
        calls.append(a)
        if a == 1:
            pytest.skip("no one")

    with pytest.raises(pytest.skip.Exception, match="a=1: no one"):
        test(tmp_path=tmp_path)
    assert calls == [1, 2]


@pytest.fixture
def made(tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "file").write_text("as it was")
    return tmp_path / "made"


@every("number", [0, 1])
def test_folders_patches_and_output_are_of_one_combination(made, tmp_path, monkeypatch, capsys, number):
    assert not hasattr(inspect, "planted")
    monkeypatch.setattr(inspect, "planted", number, raising=False)
    assert made.parent == tmp_path and (made / "file").read_text() == "as it was"
    (made / "file").write_text("damaged")
    print("said")
    assert capsys.readouterr().out == "said\n"
    print("unread")


@every("number", [0, 1])
def test_what_a_fixture_made_is_new_in_each_combination(made, number):
    (made / "file").unlink()


def test_a_loop_over_nothing_is_refused():
    with pytest.raises(AssertionError, match="no values for"):
        every("a", [])
    with pytest.raises(ValueError):
        every("a, b", [(1,)])


def test_the_suite_has_few_cases(pytestconfig):
    assert pytestconfig.collected_cases < 3000, "cheap rows belong in `every`"
