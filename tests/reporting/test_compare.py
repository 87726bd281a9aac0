"""What `compare` says of runs of every kind, as text and as a page, and what it refuses."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from browser import PAPER, needs_chromium, rendered
from made_runs import made_run, without_git
from tiny_checkpoint import tiny_recipe
from told_runs import judged, step, told_run

from alexnet_mp import compare
from alexnet_mp.analysis.hypothesis_tests import mcnemar
from alexnet_mp.reporting.comparison import differences, grouped, paired_errors, read_compared
from alexnet_mp.reporting.page import pictures_of
from alexnet_mp.runs.metrics import TESTED, TRAIN
from alexnet_mp.system.errors import run_command

TEN, CENTRE = "ten views", "centre view"
HOSTILE = "<script>$\\frac$"


KERNELS = {f"kernels_{run}_{tower}.png" for run in ("01", "06") for tower in "ab"}
CURVES = {f"{name}{theme}.png" for name in ("loss", "error") for theme in ("", "_dark")}


def right(*images, of=20):
    return {TEN: np.isin(np.arange(of), images), CENTRE: np.arange(of) < 3}


def test_runs_compared(tmp_path, monkeypatch, capsys):
    without_git(monkeypatch)
    monkeypatch.chdir(tmp_path)
    tests = [judged(4, "test", protocol=name, split="val", images=20, top1_error=60.0) for name in (CENTRE, TEN)]
    lines = [*(step(number) for number in range(1, 5)), judged(2, images=20), judged(4, images=20), *tests]
    recipe = tiny_recipe()
    wide_layer = dataclasses.replace(recipe.layers[1], maps=5)
    other = dataclasses.replace(recipe, seed=7, layers=(recipe.layers[0], wide_layer, recipe.layers[2]))
    one_tower = dataclasses.replace(recipe, towers=1, layers=(recipe.layers[0], recipe.layers[2]))
    told_run(tmp_path / "a", lines, right=right(*range(8)), checkpoint=True)
    told_run(tmp_path / HOSTILE, lines, recipe=other, right=right(*range(2, 8), *range(10, 19)), pipeline="torch")
    told_run(tmp_path / "c", lines, right=right(0, 1))
    told_run(tmp_path / "elsewhere", lines, right=right(0), fingerprint="6a" * 32)
    told_run(tmp_path / "fewer", lines, right=right(0, of=19))
    told_run(tmp_path / "begins", [step(1)], recipe=one_tower, classes=("no", "yes"))
    told_run(tmp_path / "went-on", [*lines, step(5)], right=right(0))
    made_run(tmp_path / "converted", recipe, classes=1000)
    (tmp_path / "fewer/checkpoints").mkdir()

    def opened(*names):
        return [read_compared(name, name) for name in names]

    sections = differences(opened("a", HOSTILE, "begins"))
    assert sections["recipe"]["fc2.maps"] == ["3", "5", "-"] and sections["recipe"]["seed"] == ["0", "7", "0"]
    assert sections["recipe"]["towers"] == ["2", "2", "1"] and sections["recipe"]["layers"][2] == "conv1, fc8"
    # A layer that one run lacks: what the others share is one word.
    cells = sections["recipe"]["fc2"]
    assert cells[0] == cells[1] and cells[0].startswith("kind fc, ") and cells[2] == "-" and "maps" not in cells[0]
    assert {name for name in sections["recipe"] if name.startswith("fc2")} == {"fc2", "fc2.maps"}
    assert grouped(["48", "96", "48", "-", "-", "-"]) == [("48", "1, 3"), ("96", "2"), ("-", "4-6")]
    assert "name" not in sections["recipe"] and "fc8.reads" not in sections["recipe"]
    assert sections["environment"] == {"pipeline": ["raw", "torch", "raw"]}
    assert set(sections["data"]) == {"classes", "sha256 of the classes"}
    assert not any(differences(opened("a", "c")).values())

    pairs, reasons = paired_errors(opened("a", HOSTILE, "c"))
    assert not reasons and [(pair.a, pair.b, pair.change.only_a, pair.change.only_b) for pair in pairs] == [
        ("a", HOSTILE, 2, 9),
        ("a", "c", 6, 0),
        (HOSTILE, "c", 15, 2),
    ]
    p = [mcnemar(np.arange(20) < a, np.arange(20) >= 20 - b).p for a, b in ((2, 9), (6, 0), (15, 2))]
    assert [pair.change.p for pair in pairs] == p and p[1] == 2 / 2**6
    assert [pair.holm_p for pair in pairs] == pytest.approx([p[0], 2 * p[1], 3 * p[2]])  # the third has the least
    assert pairs[1].change.difference == 30 and pairs[1].protocol == TEN and pairs[1].change.n == 20
    assert pairs[1].change.interval[0] > 0
    names = ("a", "elsewhere", "fewer", "begins", "went-on", "converted")
    for name, reason in {
        "elsewhere": "a and elsewhere: their data are not the same",
        "fewer": "a and fewer: they were tested on different numbers of images",
        "begins": "begins: it has no final test",
        "went-on": "went-on: it was trained on after its final test",
        "converted": "converted: it was converted, and nobody knows its data",
    }.items():
        pairs, (text,) = paired_errors(opened("a", name))
        assert not pairs and text.startswith(reason)
    capsys.readouterr()
    with open(tmp_path / "c/metrics.jsonl", "a") as file:  # what is no line of a run counts for nothing
        for damage in (None, [], {}, 10**400, float("nan")):
            for line, fields in ((step(9), TRAIN), (judged(9), TESTED), (tests[1], (*TESTED, "protocol", "split"))):
                file.writelines(json.dumps(line | {name: damage}) + "\n" for name in fields)
    assert opened("c")[0].lines == opened("a")[0].lines

    assert compare.main(["a", HOSTILE, "c", "--out", "out"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^  fc2\.maps +3 \(1, 3\) \| 5 \(2\)$", text, re.M) and "data: the same in all" in text
    assert re.search(r"^  1  ten views +top-1 60\.00 % \(38\.66 to 78\.12\) +20 images$", text, re.M)
    assert re.search(
        r"^  3 minus 1 +\+30\.00 points +\(.*\) +p = 0\.06\d +3 alone right 0, 1 alone 6 of 20, ten", text, re.M
    )
    page = (tmp_path / "out/comparison.html").read_text()
    assert "<script>" not in page and "2: &lt;script&gt;$\\frac$" in page and "http" not in page
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["The runs", "What differs", "Curves", "Errors", "Kernels"]
    assert "<span>3 <small>1, 3</small></span><span>5 <small>2</small></span>" in page and ">directory<" not in page
    assert "run 3 minus run 1" in page and page.count("no checkpoint in it") == 2
    assert pictures_of(tmp_path / "out/comparison.html") == CURVES | {"kernels_01_a.png", "kernels_01_b.png"}
    assert compare.main([*names, "--out", "out"]) == 0
    page = (tmp_path / "out/comparison.html").read_text()
    assert pictures_of(tmp_path / "out/comparison.html") == CURVES | KERNELS
    assert "Without a step that was recorded: 6: converted" in page and "Over the same images" not in page
    assert "Not tested yet: 4: begins, 6: converted." in page
    assert {path.name for path in (tmp_path / "out").iterdir()} == CURVES | KERNELS | {"comparison.html"}
    told_run(tmp_path / "report")
    shutil.copytree("a", "copy")
    capsys.readouterr()
    for words, problem in (
        (["a", "./a"], "a is named twice; each run counts once"),
        (["a", "c", "copy"], "copy is a copy of a; each run counts once"),
        (["a"], "1 run: 2 to 20 can be compared; .*"),
        (["a", *map(str, range(20))], "21 runs: 2 to 20 can be compared; .*"),
        (["a", "out"], "out is not a run directory: .*"),
        (["a", "c", "--out", "report"], "--out report: it is no report's and holds .*"),
        (["a", "c", "--out", "a/run.json"], "--out a/run.json: File exists"),
    ):
        with pytest.raises(SystemExit) as exit_info:
            run_command(lambda: compare.main(words))
        assert exit_info.value.code == 2 and re.fullmatch(f"error: {problem}\n", capsys.readouterr().err), words


@pytest.mark.slow
@needs_chromium
def test_in_a_browser(tmp_path, monkeypatch):
    """Light and dark, telephone and desktop: nothing of a page of runs with long names overflows."""
    without_git(monkeypatch)
    tests = [judged(4, "test", protocol=name, split="val", images=20, top1_error=60.0) for name in (CENTRE, TEN)]
    lines = [*(step(number) for number in range(1, 5)), judged(2, images=20), judged(4, images=20), *tests]
    names = [f"{HOSTILE[:8]}-{letter}-{'long' * 30}" for letter in "ab"]
    runs = [
        told_run(tmp_path / name, lines, right=right(number), checkpoint=True, command="words " * number)
        for number, name in enumerate(names)
    ]
    compare.main([*map(str, runs), "--out", str(tmp_path / "out")])
    for (theme, width), layout in rendered(tmp_path / "out" / compare.NAME, tmp_path).items():
        assert layout["width"] == width and layout["scroll"] <= width and not layout["cut"], (theme, width, layout)
        assert not layout["scrolling"], (theme, width, layout)
        assert layout["charts"] == [theme] and layout["pictures"] == 6, (theme, width, layout)
        assert layout["paper"] == PAPER[theme], (theme, width, layout)
