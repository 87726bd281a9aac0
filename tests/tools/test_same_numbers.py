"""tools/same_numbers.py: what is the same and what isn't, whose code computes, what a digest tells apart."""

import json
import subprocess

import pytest
import same_numbers
import torch
from inner_cases import every
from same_numbers_probe import __main__ as probe
from same_numbers_probe.digests import digest, lasting, timeless

BEFORE = {"loss": "aa", "weights": "bb"}


@every(
    "after, last, marked",
    [
        (BEFORE, "2 values, all the same", []),
        (dict(reversed(BEFORE.items())), "2 values, all the same", []),
        (BEFORE | {"weights": "bc"}, "1 of 2 values differ", ["DIFFERS  weights"]),
        ({"loss": "aa"}, "1 of 2 values differ", ["DIFFERS  weights (missing: after)"]),
        (BEFORE | {"index": "cc"}, "1 of 3 values differ", ["DIFFERS  index (missing: before)"]),
        ({}, "2 of 2 values differ", ["DIFFERS  loss (missing: after)", "DIFFERS  weights (missing: after)"]),
    ],
)
def test_a_line_a_value(after, last, marked):
    lines, same = same_numbers.compare(BEFORE, after)
    assert lines[-1] == last and same == (not marked)
    assert [line for line in lines[:-1] if not line.startswith("same ")] == marked
    assert len(lines) == 1 + len(BEFORE | after)


def test_nothing_is_not_the_same():
    assert same_numbers.compare({}, {}) == (["no value at all"], False)


def made_tree(root, name):
    """A checkout with nothing but its two packages, whose modules say whose they are."""
    for folder in ("alexnet_mp", "alexnet_mp/network", "kernels"):
        (root / name / folder).mkdir(parents=True)
        (root / name / folder / "__init__.py").touch()
    for place in ("alexnet_mp/command.py", "alexnet_mp/network/tower.py", "kernels/reference.py"):
        (root / name / place).write_text(f"OF = {name!r}\n")
    return root / name


@pytest.mark.run
def test_each_side_has_its_own_code(tmp_path):
    """Beside an editable installation of this checkout, which is where the running Python's package comes from."""
    code = (
        "from alexnet_mp import command; from alexnet_mp.kernels import reference\n"
        "from alexnet_mp.network import tower; import numpy, sys\n"
        "print(command.OF, reference.OF, tower.OF, 'kernels' in sys.modules)"
    )
    for name in ("before", "after"):
        python = same_numbers.environment(made_tree(tmp_path, name), tmp_path / f"{name}-python")
        for flags in ([], ["-P"]):
            process = subprocess.run(
                [python, *flags, "-c", code], capture_output=True, text=True, cwd=same_numbers.ROOT
            )
            assert (process.stdout, process.stderr) == (f"{name} {name} {name} False\n", "")


def fake_probe(tmp_path, paths, status=0):
    """(a tree, a probe that writes one value and where it says it imported the code from)."""
    probe = tmp_path / "probe.py"
    probe.write_text(
        f"import json, sys\nfound = {{'imported': {paths!r}, 'loss': 'aa'}}\n"
        f"json.dump(found, open(sys.argv[1], 'w'))\nsys.exit({status})\n"
    )
    return made_tree(tmp_path, "tree"), probe


def test_another_trees_code_is_refused(tmp_path):
    tree, probe = fake_probe(tmp_path, [str(tmp_path / "tree" / "alexnet_mp"), "/elsewhere/kernels"])
    with pytest.raises(SystemExit, match="'/elsewhere/kernels'.* instead of .*nothing was compared"):
        same_numbers.numbers(tree, probe, tmp_path, "before")


@pytest.mark.parametrize("status", [0, 1])
def test_a_probe_that_fails_on_both_sides_is_not_the_same(tmp_path, status):
    paths = [str(tmp_path / "tree" / folder) for folder in ("alexnet_mp", "kernels")]
    tree, probe = fake_probe(tmp_path, paths, status)
    sides = [same_numbers.numbers(tree, probe, tmp_path, side) for side in ("before", "after")]
    assert sides[0]["loss"] == "aa"
    assert same_numbers.compare(*sides)[1] == (status == 0)


def test_the_library_is_copied_or_built_in_both(tmp_path, monkeypatch):
    trees = [made_tree(tmp_path, name) for name in ("here", "there")]
    builds = []
    monkeypatch.setattr(subprocess, "run", lambda command, cwd, **options: builds.append(cwd))
    for tree in trees:
        (tree / "csrc").mkdir()
        (tree / "csrc" / "ops.cpp").write_text("int one = 1;\n")
        (tree / "setup.py").write_text('COMPILE = ["-O3"]\n')
    (trees[0] / "kernels" / "compiled.so").write_text("machine code")
    same_numbers.give_library(*trees)
    assert not builds and (trees[1] / "kernels" / "compiled.so").read_text() == "machine code"
    for file, text in (("csrc/ops.cpp", "int one = 2;\n"), ("setup.py", 'COMPILE = ["-O2"]\n')):
        before = (trees[1] / file).read_text()
        (trees[1] / file).write_text(text)
        same_numbers.give_library(*trees)
        assert builds == trees
        builds.clear()
        (trees[1] / file).write_text(before)


def test_digests():
    numbers = torch.tensor([[1.0, 0.0], [2.0, 3.0]])
    others = [
        numbers.clone(),
        numbers.nextafter(torch.tensor(9.0)),
        numbers * torch.tensor([1.0, -1.0]),
        numbers.bfloat16(),
        numbers[None],
        numbers.t().contiguous().t(),
    ]
    assert [digest(other) == digest(numbers) for other in others] == [True] + [False] * 5
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 2.0})


def test_times_are_left_out_and_numbers_stay():
    text = "error 12.345678901234 %, 20 s, 3 min, 1,234 images/s, 2026-11-29 13:01:02, of " + 10 * "0a9f" + "+changes"
    assert timeless(text) == "error 12.345678901234 %, TIME, TIME, TIME, TIME, of COMMIT"
    content = [{"loss": 1.5, "images_per_second": 9, "in": {"saved": "now", "step": 3}, "command": "x"}]
    assert lasting(content, {"command"}) == [{"loss": 1.5, "in": {"step": 3}}]


def test_a_probe_that_raises_leaves_a_gap_and_a_status(tmp_path, monkeypatch, capsys):
    def broken():
        raise RuntimeError("no such option")

    def whole():
        return {"value": "aa"}

    monkeypatch.setattr(probe, "PROBES", (broken, whole))
    assert probe.main(tmp_path / "found.json") == 1
    values = json.loads((tmp_path / "found.json").read_text())
    assert values.keys() == {"imported", "whole: value"}
    assert "no such option" in capsys.readouterr().err
    assert probe.main(tmp_path / "found.json", "whole") == 0
    assert probe.main(tmp_path / "found.json", "whole", "hole") == 1
    assert "failed: hole" in capsys.readouterr().err
