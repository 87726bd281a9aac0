"""The report, from a tiny run to the page: what it holds, that it loads nothing, hostile names, controls, a browser's
word."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from browser import PAPER, needs_chromium, rendered
from image_folders import make_folder, needs_faiss
from inner_cases import every
from PIL import Image
from tiny_run import LAYERS, run

from alexnet_mp import convert, export, report, retrieve
from alexnet_mp.analysis import altered_pictures, figure_4, figures
from alexnet_mp.analysis import similarity as alike
from alexnet_mp.data import synthetic
from alexnet_mp.data.dataset import evenly
from alexnet_mp.recipes.architectures import mini
from alexnet_mp.reporting import code_lengths, memory, provenance, sight, similarity
from alexnet_mp.reporting import page as report_page
from alexnet_mp.reporting.first_layer import specialisation
from alexnet_mp.reporting.forward_passes import forward_passes
from alexnet_mp.reporting.lesions import lesions as lesions_part
from alexnet_mp.reporting.page import NAME, pictures_of
from alexnet_mp.reporting.pages_of_runs import named
from alexnet_mp.retrieval import contact_sheet, measures, short_codes
from alexnet_mp.runs import checkpoints, directory, first_layers
from alexnet_mp.system.errors import UserError, run_command

pytestmark = [pytest.mark.run, pytest.mark.usefixtures("one_thread", "quick", "small")]
FIGURE_3 = "The kernels of each GPU (figure 3)"
GROWS = "How the kernels grow (figure 3 over training)"
ANSWERS = "What it answers to pictures (figure 4, left)"
NEAREST = "The training pictures nearest to a picture (figure 4, right)"
HEADINGS = [
    FIGURE_3,
    "Specialisation, measured",
    GROWS,
    "Do the towers see alike?",
    "Lesions",
    "What a tower sees",
    "Training",
    "The exchange",
    "Why two GPUs",
    ANSWERS,
    NEAREST,
    "Short codes",
    "Provenance",
]
MACHINE = ["--gpus", "cpu", "--pipeline", "torch", "--workers", "0"]
OF_TOWERS = report._of_towers


@pytest.fixture(scope="module")
def small():
    """Codes of few bits after few passes, one picture of each sort, towers compared on six, and a small network for
    the paper's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(short_codes, "EPOCHS", 3)
        for module in (report, code_lengths):
            patch.setattr(module, "BITS", (8, 16))
        patch.setattr(similarity, "FEWEST", 6)
        patch.setattr(alike, "GROUPS", 3)
        patch.setattr(memory, "paper", lambda: replace(mini(), name="paper"))
        for module in (figure_4, sight):
            patch.setattr(module, "EACH", 1)
        for name in list(altered_pictures.ALTERATIONS)[3:-1]:
            patch.delitem(altered_pictures.ALTERATIONS, name)
        # Four figures more take a second: few of these reports have them.
        parts = [report_page.Part("lesions", HEADINGS[4], []), report_page.Part("sight", HEADINGS[5], [])]
        patch.setattr(report, "_of_towers", lambda *_: parts)
        patch.setattr(directory, "source_commit", lambda: "0123abc")
        patch.setattr(provenance, "source_commit", lambda: "0123abc")
        yield


@pytest.fixture
def undrawn(monkeypatch):
    """Charts of one pixel, of tests that read the page."""
    pixel = contact_sheet.png(Image.new("RGB", (1, 1)))
    monkeypatch.setattr(figures, "_save", lambda figure, path, *_: path.write_bytes(pixel))


def changed(**fields):
    """The layers of the tiny network with these fields, but for those of the first and the last layer."""
    return ["--set", f"layers={json.dumps([LAYERS[0], *({**layer, **fields} for layer in LAYERS[1:-1]), LAYERS[-1]])}"]


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory, small):
    return run(data, tmp_path_factory.mktemp("runs") / "run", "--seed", "3", "--keep-every", "4")


@pytest.fixture(scope="module")
def others(data, tmp_path_factory, small):
    """A run without links, and one of one tower."""
    root = tmp_path_factory.mktemp("others")
    return (
        run(data, root / "no-links", "--steps", "1", *changed(reads="own")),
        run(data, root / "single", "--steps", "3", "--set", "towers=1"),
    )


def reported(*runs, out, options=(), speed=("--no-speed",)):
    """The page of a report as text. It searches for neighbours."""
    needs_faiss()
    assert report.main([*map(str, runs), "--out", str(out), *MACHINE, *options, *speed]) == 0
    return (out / NAME).read_text()


@pytest.fixture(scope="module")
def page(trained, tmp_path_factory, small):
    """The directory of a report on one run, of whose charts none is cut. What `--data` would say is left out."""
    out, save, cut = tmp_path_factory.mktemp("report"), figures._save, {}

    def save_whole(figure, path, *resolution):
        save(figure, path, *resolution)
        box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        margin = min(box.x0, box.y0, width - box.x1, height - box.y1)
        cut.update({path.name: margin} if margin < -0.01 else {})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_of_towers", OF_TOWERS)
        patch.setattr(figures, "_save", save_whole)
        reported(trained, out=out)
    assert not cut
    return out


def test_the_parts_and_their_headings(page, trained, data):
    text = (page / NAME).read_text()
    assert re.findall(r"<h2>(.*?)</h2>", text) == HEADINGS
    parts = dict(zip(HEADINGS, text.split("<h2>")[1:]))
    assert all(f"Tower {tower}: 3 kernels, 5x5x3; share of" in parts[FIGURE_3] for tower in "ab")
    assert "one scale for both towers" in parts[FIGURE_3]
    assert "eight pictures at random" in parts[ANSWERS]
    assert "One run says nothing about how often" in parts["Specialisation, measured"] and ">run<" in parts[HEADINGS[1]]
    assert "Top-1 error on 6 pictures of val;" in parts["Lesions"] and "5 lesions" not in parts["Lesions"]
    assert all(
        f"<td>{place}</td><td>tower a</td>" in parts["Lesions"] for place in ("all that read both", "fc6", "fc8")
    )
    assert (
        "<td>fc6</td><td>b \N{RIGHTWARDS ARROW} a</td>" in parts["Lesions"]
        and "kernel 3 of tower b" in parts["Lesions"]
    )
    assert (
        "Each kernel removed in turn; 6 pictures of val." in parts["Lesions"]
        and "of 20 random deals" in parts["What a tower sees"].lower()
    )
    assert "<td>all in magenta</td>" in parts["What a tower sees"] and "of all 3 classes" in parts["What a tower sees"]
    assert (
        "9 steps, into epoch 3 of 3; batch size 9, seed 3." in parts["Training"] and ">ten views<" in parts["Training"]
    )
    assert (
        "at conv2, fc6, fc8 and nowhere else" in parts["The exchange"]
        and "no time can be measured" in parts["The exchange"]
    )
    growth, cka, reason = (parts[name] for name in (GROWS, "Do the towers see alike?", "Why two GPUs"))
    moments = len({*checkpoints.listing(trained), *first_layers.listing(trained)})  # which checkpoint is best, varies
    assert "kept its first layer at 3 moments" in growth and f"{moments} moments from step 0 to 9" in growth
    assert '<details class="moving" open>' in growth and ".moving { display: none; }" in text
    assert growth.count('data-file="growth_') == 4 and f"<td>run</td><td>{moments}</td><td>0</td><td>9</td>" in growth
    assert "6 pictures of val, centre view" in cka and "conv1 to conv2" in cka and "conv2 to fc6" in cka
    assert "fc8" not in re.sub('base64,[^"]*', "", cka) and ">as drawn</th>" in cka and ">step 3</th>" in cka
    assert 'data-file="similarity_training.png"' in cka
    row = re.search(r"<td>conv1</td>(.*?)</tr>", cka[cka.index(">as drawn</th>") :])[1]
    assert len(re.findall(r"<td>\S+ \(\S+ to \S+\)</td>", row)) == row.count("<td>") > 2
    assert "A training step of 9 images of recipe mini holds" in reason and "of recipe paper holds" in reason
    assert re.search(r"<td>in all</td><td>one GPU</td><td>0\.\d</td>", reason) and "PCIe 2.0 x16" in reason
    assert "A step of this run took" in parts["The exchange"] and parts["The exchange"].count('class="crossing"') == 5
    assert "Some of 6 pictures that the network has not learned from" in parts[ANSWERS]
    assert "6 training pictures whose fc6 vectors (16 numbers)" in text
    assert parts[NEAREST].count('data-file="neighbours_') == 2 * 3
    assert all(f"{bits} bits, {kind}" in parts["Short codes"] for bits in (8, 16) for kind in ("learned", "random"))
    assert "chance finds 33.3 %" in parts["Short codes"] and "ms a query" not in text
    fingerprint = json.loads((trained / "run.json").read_text())["data"]["fingerprint"][:16]
    assert parts["Provenance"].count(fingerprint) == 2 and str(data) in parts["Provenance"]
    assert "recipe mini" in parts["Provenance"]
    assert parts["Provenance"].count("0123abc") == 2 and "step 9" in parts["Provenance"]


def test_the_page_loads_nothing(page):
    text = (page / NAME).read_text()
    assert not any(word in text for word in ("http", "<script", "<link", "url(", "@import"))
    sources, pictures = re.findall(r'src="([^"]*)', text), pictures_of(page / NAME)
    sources += re.findall(r'srcset="([^"]*)', text)
    assert all(re.fullmatch(r"data:image/png;base64,[\w+/=]+", source) for source in sources)
    assert text.count("src=") + text.count("srcset=") == len(sources) > len(pictures) >= 20
    assert pictures == {path.name for path in page.iterdir()} - {NAME}
    charts = {path.name for path in page.iterdir() if path.stem.startswith(("training", "speci", "short", "figure4"))}
    assert {name.replace("_dark", "") for name in charts if "_dark" in name} == {n for n in charts if "_dark" not in n}
    assert text.count("alt=") == text.count("<img") and 'alt=""' not in text


@pytest.mark.slow
def test_a_second_report_has_the_same_bytes_and_clears_up_after_the_first(page, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_of_towers", OF_TOWERS)
    out = tmp_path / "again"
    out.mkdir()
    text = (page / NAME).read_text().replace("figure4_", "figure4_9")
    (out / NAME).write_text(text)
    leftovers = pictures_of(out / NAME) - pictures_of(page / NAME)
    for name in (*leftovers, "figure4_000007.png", "notes.txt"):
        (out / name).write_bytes(b"x")
    assert leftovers
    reported(trained, out=out)
    (out / "notes.txt").unlink(), (out / "figure4_000007.png").unlink()  # of somebody else: both are still there
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in page.iterdir()
    }


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_several_runs_and_their_controls(trained, others, tmp_path):
    """The one that is shown in full has no links."""
    text = reported(
        others[0], trained, others[1], out=tmp_path / "three", options=["--sort", "--kernel-scale", "kernel"]
    )
    rows = [
        re.findall(r"<td>(.*?)</td>", row) for row in text.split("<h3>Over the runs")[1].split("<h2>")[0].split("<tr>")
    ]
    rows = {row[0]: row[1:] for row in rows if row}
    assert rows["two towers with links"][0] == rows["two towers without links (control)"][0] == "1"
    assert rows["one tower, its kernels split at random (control)"][0] == "100 splits of 1"
    assert len(rows["run"]) == len(rows["no-links"]) == 8 and rows["single"][:4] == ["-"] * 4
    assert rows["run"][4:7] == ["mini", "3", "9"] and rows["no-links"][4:7] == ["mini", "0", "1"]
    assert "differ in more than their seeds" in text and "One run says nothing" in text
    assert (
        "with 2 other runs for comparison" in text
        and "from grey to colourful" in text
        and "each kernel by itself" in text
    )
    assert "at fc8 and nowhere else" in text and text.count('class="crossing"') == 1
    assert re.findall(r"<h2>(.*?)</h2>", text) == HEADINGS
    assert "there is no crossing to compare across" in text
    assert "single, one tower" in text and '<th scope="col">towers with links</th>' in text
    # Ten runs, the towers of nine of which divide.
    kernels = np.random.default_rng(0).normal(size=(10, 16, 3, 5, 5)).astype(np.float32)
    kernels[:9, :8] = kernels[:9, :8].mean(2, keepdims=True)
    runs = {f"seed {number}": (of_run, 2, True) for number, of_run in enumerate(kernels)}
    words = {name: ["mini", name[5:], "9", "0123abcd"] for name in runs}
    part = specialisation(tmp_path, kernels[0], 2, runs, words)
    *_, counts, of_runs = (piece["table"]["rows"] for piece in part.pieces if "table" in piece)
    assert counts == [["two towers with links", "10", "9", "60 to 98 %", "9 of 9"]]
    assert [row[:1] + row[4:7] for row in of_runs] == [
        [f"seed {number}", "yes" if number < 9 else "no", "mini", f"{number}"] for number in range(10)
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_one_tower_and_the_time_of_a_query(others, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measures, "SYNTHETIC", 1000)
    monkeypatch.setattr(report, "_of_towers", OF_TOWERS)
    capsys.readouterr()
    text = reported(others[1], out=tmp_path / "report", speed=(), options=["--pictures", "4"])
    passes = forward_passes(directory.read_run(others[1])["recipe"], 3)
    work = 4 * (passes["lesions"] + passes["altered pictures"]) + 2 * passes["single kernels"]
    output = capsys.readouterr().out
    assert f": as much work as {work:,.0f} forward passes of a picture, with --pictures 4; fewer" in output
    assert output.index("forward passes") < output.index("retrieval")
    (piece,) = lesions_part(tmp_path, None, None, None, "9 pictures of test", "").pieces  # without labels
    assert piece["text"] == "Nobody knows the classes of the 9 pictures of test: no errors."
    assert (
        "No layer reads two towers" in text
        and "4 pictures of val, spread evenly" in text
        and "2 pictures of val, spread evenly" in text
    )
    assert "kernel 3 of tower a" in text and "Brightness and colour" not in text and "McNemar" in text
    assert "This network has one tower: nothing crosses." in text and 'class="crossing"' not in text
    assert (
        "Tower a: 3 kernels, 5x5x3" in text
        and "Tower b" not in text
        and "Tower a against tower b" not in text
        and re.findall(r"<h2>(.*?)</h2>", text) == HEADINGS
        and "one tower: there is nothing to compare" in text
        and "PCIe" not in text
        and "There is one moment, step 3" in text
    )
    assert "ms a query" in text and "1,000 random codes: 8 bits" in text


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_left_little(trained, tmp_path):
    """Without TensorBoard's events, and with the lines of one step alone, as after a kill."""
    out = shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("tensorboard"))
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    (out / "metrics.jsonl").write_text("".join(line for line in lines if '"step": 1,' in line))
    text = reported(out, out=out / "report")
    assert "1 step, into epoch 1 of 3" in text and "test at the end" not in text and "Validation minus" not in text


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_the_embedded_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "COUNTS", {"train": 48, "val": 32, "test": 16})
    out = run("builtin", tmp_path / "run", "--steps", "2")
    text = reported(out, out=tmp_path / "report", options=["--split", "test"])
    assert "Some of 16 pictures that the" in text and "horizontal-coarse-red" in text and "prepared" not in text


@pytest.mark.usefixtures("undrawn")
def test_without_pictures_the_other_parts_are_there(trained, data, tmp_path, monkeypatch, capsys):
    """Of a network that came as a folder for the hub, and of a run whose data were moved."""
    monkeypatch.chdir(tmp_path)
    assert export.main([str(trained), "--to", "hub", "hub", "--gpus", "cpu"]) == 0
    assert convert.main(["hub", "converted"]) == 0
    run(shutil.copytree(data, "set"), "moved", "--steps", "1")
    shutil.move("set", "elsewhere")
    headings = (HEADINGS[3], "Lesions", "What a tower sees", ANSWERS, NEAREST, "Short codes")
    for name, reason, epochs in (
        ("converted", "converted was converted, its data were never here; say with --data DIR what to use", "no step"),
        ("moved", "set, where the data of moved were: no such directory; the same command with --data DIR", "1 step"),
    ):
        capsys.readouterr()
        text = reported(name, out=Path(name) / "report")
        assert re.findall(r"<h2>(.*?)</h2>", text) == HEADINGS
        parts = dict(zip(HEADINGS, text.split("<h2>")[1:]))
        assert [heading for heading in HEADINGS if "It needs pictures: " in parts[heading]] == list(headings)
        assert all(reason in parts[heading] and parts[heading].count("<p") == 1 for heading in headings)
        assert reason in "".join(capsys.readouterr()) and epochs in parts["Training"]
        assert (f"Run {name}, converted, not trained here." in text) == (name == "converted")
        assert "<td>data of this page</td><td>none</td>" in parts["Provenance"] and not Path(name, "retrieval").exists()
        with pytest.raises(UserError, match="^--data nowhere: no such directory"):
            reported(name, out=Path(name) / "report", options=["--data", "nowhere"])
    assert "It needs pictures" not in reported("moved", out=Path("report"), options=["--data", "elsewhere"])


HOSTILE = '<script>alert("1")<|script>$x^{2$', "\u202eolleh\n'&\udcff三\x1b[31m" + 60 * "w"


@pytest.mark.slow
@pytest.mark.parametrize("drawn", [False, True])
def test_two_classes_of_hostile_names(drawn, tmp_path, monkeypatch, request):
    if drawn:
        monkeypatch.setattr(report, "_of_towers", OF_TOWERS)
    else:
        request.getfixturevalue("undrawn")
    make_folder(tmp_path / "<b>&\u202e", train=3, val=2, size=(48, 44), classes=HOSTILE)
    out = run(tmp_path / "<b>&\u202e", tmp_path / "<i>\u202e\udcfe", "--steps", "1")
    text = reported(out, out=tmp_path / "report")
    assert "<script" not in text and "<b>" not in text and "<i>" not in text and not {"\u202e", "\x1b"} & set(text)
    assert "&lt;script&gt;alert(&#34;1&#34;)" in text and r"\u202eolleh" in text and r"\udcff三\x1b[31m" in text
    assert re.findall(r"<h2>(.*?)</h2>", text) == HEADINGS
    assert "mini on 2 classes" in text and "its 2 most probable classes" in text


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_wnids_have_the_words_of_a_file(tmp_path, monkeypatch):
    """A file that has none is refused before anything is made; which classes have no words, the page says."""
    make_folder(tmp_path / "data", train=3, val=2, size=(48, 44), classes=("n01440764", "n02012849"))
    out, words = run(tmp_path / "data", tmp_path / "run", "--steps", "1"), tmp_path / "words.txt"
    words.write_text("n01440764 tench, <i>Tinca</i>\nn03126707 another\n")
    text = reported(out, out=tmp_path / "report", options=["--synsets", str(words)])
    assert "tench, &lt;i&gt;Tinca&lt;/i&gt;" in text and "<i>" not in text and "another" not in text
    assert "Of the classes 1 have no words but their wnids" in text
    words.write_text("n03126707 another\n")
    monkeypatch.setattr(report, "build_index", None)
    with pytest.raises(UserError, match="it has words of none of the 2 classes, such as 'n01440764'"):
        reported(out, out=tmp_path / "other", options=["--synsets", str(words)])
    assert not (tmp_path / "other").exists()


@every(
    "arguments, problem",
    [
        (
            ["RUN", "--split", "test"],
            "no test split; it has train, val; the same command with --data DIR takes others$",
        ),
        (
            ["RUN", "--data", "OTHER"],
            "its 2 classes are not the 3 that .* was trained on; its class \\d is .*, and .* in ",
        ),
        (["RUN", "--data", "nowhere"], "no such directory"),
        (["RUN", "RUN"], "named twice"),
        (["RUN", "--pictures", "0"], "^--pictures 0: it must be at least 1"),
        (["OTHER"], "is not a run directory"),
        (["RUN", "--out", "RUN/run.json"], "--out .*: File exists"),
        (["RUN", "--out", "RUN/run.json/x"], "--out .*: Not a directory"),
        (["RUN", "--out", "OTHER"], "is there already and no report's"),
        (["RUN", "--index", "RUN/checkpoints"], "is no index"),
    ],
)
def test_what_can_not_be_asked(trained, tmp_path, arguments, problem):
    make_folder(tmp_path, train=1, val=1, size=(48, 44), classes=("a", "b"))
    (tmp_path / NAME).write_text("somebody's")
    arguments = [word.replace("RUN", str(trained)).replace("OTHER", str(tmp_path)) for word in arguments]
    out = [] if "--out" in arguments else ["--out", str(tmp_path / "new" / "report")]
    with pytest.raises(UserError, match=problem):
        report.main([*arguments, *out, "--gpus", "cpu", "--workers", "0"])
    assert (tmp_path / NAME).read_text() == "somebody's" and not (tmp_path / "new" / "report").exists()


def test_one_line_and_exit_code_2(trained, tmp_path, monkeypatch, capsys):
    """Of a picture that can't be written, too."""
    report_page.begin(tmp_path / NAME)
    (tmp_path / "figure3_a.png").mkdir()
    monkeypatch.setattr(
        sys, "argv", ["report", str(trained), "--out", str(tmp_path), "--gpus", "cpu", "--workers", "0"]
    )
    with pytest.raises(SystemExit) as exit_info:
        run_command(report.main)
    assert (
        exit_info.value.code == 2
        and capsys.readouterr().err == f"error: {tmp_path}/figure3_a.png.partial: Is a directory\n"
    )


@pytest.mark.usefixtures("undrawn")
def test_what_is_not_the_reports_own_stays(trained, tmp_path):
    """Neither a directory that holds something else nor what a link leads to; an interrupted report's is gone on
    with."""
    (tmp_path / "precious.txt").write_text("precious")
    with pytest.raises(UserError, match="it is no report's and holds precious.txt; choose a new or empty directory"):
        reported(trained, out=tmp_path)
    out = tmp_path / "report"
    out.mkdir()
    report_page.begin(out / NAME)
    (out / "figure3_a.png").symlink_to(tmp_path / "precious.txt")
    reported(trained, out=out)
    assert (tmp_path / "precious.txt").read_text() == "precious" and not (out / "figure3_a.png").is_symlink()


def test_one_network_counts_once(trained, tmp_path):
    copy = shutil.copytree(trained, tmp_path / "copied", ignore=shutil.ignore_patterns("retrieval", "report"))
    with pytest.raises(UserError, match="copied has the same first-layer weights as run: they are one network"):
        reported(trained, copy, out=tmp_path / "report")


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_thousand_classes(tmp_path, monkeypatch):
    """Some pictures are answered and some are searched with; all classes are tested for a leaning, some are shown."""
    monkeypatch.setattr(report, "_of_towers", OF_TOWERS)
    monkeypatch.setattr(report, "MOST_ANSWERED", 30)
    make_folder(tmp_path / "data", train=1, val=1, size=(8, 8), classes=[f"class {number}" for number in range(1000)])
    out = run(tmp_path / "data", tmp_path / "run", "--steps", "1", "--batch-size", "500")
    text = reported(out, out=tmp_path / "report", options=["--pictures", "100"])
    parts = dict(zip(HEADINGS, text.split("<h2>")[1:]))
    assert "mini on 1,000 classes" in text and "with its 5 most probable classes" in parts[ANSWERS]
    assert "Some of 30 pictures, spread over the 1,000, that the network has not learned from" in parts[ANSWERS]
    assert {int(number) for number in re.findall(r"figure4_(\d+)", text)} <= set(evenly(1000, 30))
    assert parts[NEAREST].count('data-file="neighbours_') == 2 * 5 and "chance finds 0.1 %" in parts["Short codes"]
    assert "of 1,000 classes whose 95 % intervals" in parts["What a tower sees"]


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_goes_on_is_compared_up_to_the_network_that_was_loaded(tmp_path, monkeypatch):
    """Its checkpoints when it was loaded were those of steps 2 and 4; those of 6 and 8 came meanwhile."""
    network = SimpleNamespace(recipe=mini(), load_merged=lambda weights: None)
    pictures = SimpleNamespace(seen_by=lambda network, statistics: None)
    estimate, moments = alike.Estimate(0.25, (0.0, 0.5), 0.1), []
    monkeypatch.setattr(similarity.checkpoints, "listing", lambda run: {step: step for step in (2, 4, 6, 8)})
    monkeypatch.setattr(similarity, "read_state", lambda place: SimpleNamespace(recipe=network.recipe))
    monkeypatch.setattr(similarity, "load_weights", lambda place: {})
    monkeypatch.setattr(similarity, "own_cka", lambda representation: {"conv1": alike.Estimate(0.5, (0.0, 1.0), 0.1)})
    monkeypatch.setattr(similarity, "_draw_training", lambda history, layers: moments.extend(history))
    monkeypatch.setattr(similarity, "write_figure", lambda figure, path: path)
    monkeypatch.setattr(report_page, "image", lambda *words: None)
    likenesses = [alike.Alike("conv1", estimate, 0.1, 0.1)]
    _, _, table = similarity._over_training(tmp_path, "run", 4, network, None, pictures, {}, likenesses)
    assert [step for step, _ in moments] == [0, 2, 4] and moments[-1][1] == {"conv1": estimate}
    assert table["table"]["names"] == ["CKA of the towers", "as drawn", "step 2", "newest"]
    assert table["table"]["rows"][0][2:] == ["0.50 (0.00 to 1.00)", "0.25 (0.00 to 0.50)"]


@pytest.mark.slow
def test_the_index_of_earlier_weights_is_named(trained, data, tmp_path):
    needs_faiss()
    out = shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("retrieval"))
    assert retrieve.main(["index", str(out), "--bits", "16", "--gpus", "cpu"]) == 0
    run(data, out, "--resume", "auto", "--epochs", "4", "--seed", "3")
    with pytest.raises(
        UserError, match="run/retrieval: it is of other weights, .*; choose another directory for the index"
    ):
        reported(out, out=tmp_path / "report")
    assert "step 12 of its training" in reported(
        out, out=tmp_path / "report", options=["--index", str(tmp_path / "index")]
    )


def test_runs_of_one_name_keep_their_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert named(["a/run", "b/run", "c"]) == {f"{tmp_path}/a/run": "a/run", f"{tmp_path}/b/run": "b/run", "c": "c"}
    with pytest.raises(UserError, match="^c is named twice"):
        named(["c", "a", "./a/../c"])


@pytest.mark.process
def test_the_templates_are_installed(tmp_path):
    """By what setup.py declares; the compiler is hidden, nothing is compiled."""
    root = Path(__file__).parents[2]
    command = [
        sys.executable,
        "setup.py",
        "-q",
        "egg_info",
        "--egg-base",
        tmp_path,
        "build_py",
        "--build-lib",
        tmp_path / "lib",
    ]
    subprocess.run(command, cwd=root, env={**os.environ, "CXX": "none"}, check=True, capture_output=True)
    templates = {
        path.name: path.read_bytes()
        for path in (root / "alexnet_mp/reporting").iterdir()
        if path.suffix in (".html", ".css", ".js")
    }
    target = tmp_path / "lib/alexnet_mp/reporting"
    assert {name: (target / name).read_bytes() for name in templates} == templates and len(templates) >= 6


@pytest.mark.slow
@needs_chromium
def test_nothing_overflows_in_a_browser(page, tmp_path):
    """At the width of telephones and of a desktop, light and dark; nothing shrinks until it can't be read; and nothing
    but a table scrolls sideways."""
    layouts = rendered(page / NAME, tmp_path)
    for (theme, width), layout in layouts.items():
        assert layout["width"] == width and layout["scroll"] <= width and not layout["cut"], (theme, layout)
        assert layout["least"] > 0.7 and layout["letters"] > 10, (theme, layout)
        assert not layout["scrolling"], (theme, width, layout)
        assert layout["paper"] == PAPER[theme] and layout["charts"] == [theme], (theme, layout)
    columns = {width: layout["columns"] for (_, width), layout in layouts.items()}
    assert set(columns[390]) == {1} and max(columns[1280]) > 1
