"""The page of one picture, from `predict --page` to a browser: networks of all kinds, hostile names, no data."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
import torch
from browser import PAPER, needs_chromium, rendered
from image_folders import make_folder
from inner_cases import every
from made_runs import made_run, without_git
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_run import LAYERS

from alexnet_mp import convert, export, predict
from alexnet_mp.runs.unit_means import UNIT_MEANS
from alexnet_mp.system.errors import UserError

TINY = ["stored_size=41", "crop_size=32", "crop_positions=8", "lrn_alpha=0.01", f"layers={json.dumps(LAYERS)}"]
HOSTILE = '<script>alert("1")<|script>', "\u202eolleh'&\udcff三\x1b[31m" + 60 * "w"
NAME = "<script>\"\u202e'&.png"


@pytest.fixture
def photograph(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (44, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / NAME)
    return tmp_path / NAME


def paged(run, photograph, *options):
    out = run.parent / "page.html"
    assert predict.main([str(run), str(photograph), "--page", str(out), "--gpus", "cpu", *options]) == 0
    return out


def parts(text, what):
    return re.findall(rf'<section class="{what}" data-name="(.*?)">', text)


@pytest.mark.run
def test_means_travel_with_a_network_whose_pictures_stay(photograph, tmp_path, monkeypatch, capsys):
    """Exported with the means of its units and converted, it shows a tower off as it did beside its pictures."""
    without_git(monkeypatch)
    run, *_ = made_run(tmp_path / "run", ("mini", TINY), 3, ["a", "b", "c"])
    pictures = make_folder(tmp_path / "pictures", train=1, val=2, size=(48, 44))
    folder, target = tmp_path / "hub", tmp_path / "there"
    answers = answers_of(paged(run, photograph, "--data", str(pictures)))
    export.main([str(run), "--to", "hub", str(folder), "--data", str(pictures), "--gpus", "cpu"])
    convert.main([str(folder), str(target)])
    (tmp_path / "page.html").unlink()
    text = paged(target, photograph).read_text()
    assert answers_of(tmp_path / "page.html") == answers and [row.count("%") for row in answers] == [4] * 3
    assert "mean over 6 pictures of pictures, split val" in text
    with pytest.raises(UserError, match="--data is for --to hub"):
        export.main([str(run), "--to", "torch", str(tmp_path / "torch"), "--data", str(pictures)])

    cache = tmp_path / "linked"  # as in a cache of models
    cache.mkdir()
    for path in folder.iterdir():
        (cache / path.name).symlink_to(path)
    for source, options, with_means in (
        (cache, (), True),
        (cache / "model.safetensors", (), True),
        (folder, ("--mean", "120,120,120"), False),  # means under another mean image would be others
        (folder, ("--set", "lrn_alpha=0.02"), False),
    ):
        convert.main([str(source), str(tmp_path / "run2"), *options])
        assert (tmp_path / "run2" / UNIT_MEANS).exists() is with_means
        shutil.rmtree(tmp_path / "run2")
    export.main([str(run), "--to", "hub", str(folder), "--gpus", "cpu"])  # without means, in the same place
    assert not (folder / UNIT_MEANS).exists()
    content = (target / UNIT_MEANS).read_bytes()
    capsys.readouterr()
    for options, with_means in (("--half",), False), ((), True):  # rounded weights have other means
        export.main([str(target), "--to", "hub", str(folder), "--gpus", "cpu", *options])
        assert (folder / UNIT_MEANS).exists() is with_means
        assert ("without the run's unit means" in capsys.readouterr().out) is not with_means
    assert (folder / UNIT_MEANS).read_bytes() == content
    tensors = load_file(target / UNIT_MEANS)
    (tmp_path / "page.html").unlink()
    for damage in (
        {name: tensor for name, tensor in tensors.items() if name != "conv2.b"},
        tensors | {"conv2.b": tensors["conv2.b"][..., :1].contiguous()},
        tensors | {"conv2.a": torch.full_like(tensors["conv2.a"], torch.nan)},
        tensors,
        b"",
        content[:-1],
        about(content, {"over": "pictures", "number": 1}),
        about(content, {"other": "pictures"}),
        about(content, {"over": "\ud800"}),
    ):
        (target / UNIT_MEANS).write_bytes(damage) if isinstance(damage, bytes) else save_file(
            damage, target / UNIT_MEANS
        )
        with pytest.raises(UserError, match=f"^cannot read {target / UNIT_MEANS}: "):
            paged(target, photograph)
    (target / UNIT_MEANS).write_bytes(content)
    assert answers_of(paged(target, photograph)) == answers
    (tmp_path / "page.html").unlink()
    paged(target, photograph, "--data", str(make_folder(tmp_path / "other", train=1, val=1, size=(48, 44))))
    assert answers_of(tmp_path / "page.html") != answers  # other pictures were named


def about(content, fields):
    """A file of safetensors whose metadata are others."""
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + size]) | {"__metadata__": fields}).encode()
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def answers_of(page):
    """The rows of the table at the top: a class, and its probability in each state."""
    return re.findall(r"<tr><td>(.*?)</tr>", page.read_text())


@pytest.mark.run
@every(
    "settings, classes, data",
    [((), 3, True), ((), 3, False), (("towers=1",), 2, True), (("lrn_crosses=true",), 2, True), ((), 1000, False)],
    ids=["two towers", "no data", "one tower", "Caffe's border", "1,000 classes"],
)
def test_every_kind_of_network(settings, classes, data, photograph, tmp_path, monkeypatch, capsys):
    without_git(monkeypatch)
    words = [*HOSTILE, *(f"class {number}" for number in range(2, classes))]
    words[-1:] = ["n01440764"] if classes == 1000 else words[-1:]
    run, *_ = made_run(tmp_path / "run", ("mini", [*TINY, *settings]), classes, words)
    folder = make_folder(tmp_path / "<b>&\u202e", train=1, val=2, size=(48, 44)) if data else None
    page = paged(run, photograph, *(["--data", str(folder)] if data else []))
    text, streams = page.read_text(), capsys.readouterr()
    two, states = "towers=1" not in settings, ["whole"]
    if two and data:
        states += ["a off", "b off", "links cut"]
        assert "mean over 6 pictures of" in text
    if not data:
        assert "was converted, its data were never here" in streams.err and "Nothing is shown as off" in text
    assert parts(text, "state") == states
    assert parts(text, "layer") == len(states) * ["conv1", "conv2", "fc6", *(["fc8"] if two else [])]
    assert text.count('class="side b') == (3 * len(states) if two else 0)
    assert text.count('class="kernel"') == len(states) * 3 * (2 if two else 1)
    assert set(re.findall(r'class="kernel" alt="kernel (\d+)"', text)) == {"1", "2", "3"}  # as in the report
    assert ("past the border" in text) is ("lrn_crosses=true" in settings)
    bars = re.findall(r'<i style="width: ([\d.]+)%"></i><span><bdi>(.*?)</bdi> <span>(.*?)</span>', text)
    assert len(bars) == len(states) * min(classes, 5)
    widths = [float(width) for width, *_ in bars[: min(classes, 5)]]
    assert widths == sorted(widths, reverse=True) and 0 < sum(widths) < 100.2
    assert ("Of the classes 1 have no words but their wnids; --synsets FILE" in text) is (classes == 1000)
    if classes == 2:
        assert "&lt;script&gt;alert(&#34;1&#34;)" in text and r"\u202eolleh" in text and r"\x1b[31m" in text
    assert text.count("<script") == 1 and "<b>&" not in text and not {"\u202e", "\x1b"} & set(text)
    assert "&lt;script&gt;&#34;" in text and not any(word in text for word in ("http", "<link", "url(", "@import"))
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)', text))
    assert text.count("alt=") == text.count("<img") and len(text) < 300_000


@pytest.mark.run
def test_what_does_and_does_not_go_together(photograph, tmp_path, monkeypatch, capsys):
    """A document on standard output is whole beside a page. A refusal is one line, and an earlier page stays."""
    without_git(monkeypatch)
    run, *_ = made_run(tmp_path / "run", ("mini", TINY))
    page = paged(run, photograph, "--json")
    streams = capsys.readouterr()
    assert len(json.loads(streams.out)["pictures"]) == 1 and f"wrote {page}\n" in streams.err
    before, new_page = page.read_bytes(), str(tmp_path / "new.html")
    for words, problem in (
        ([str(photograph), str(photograph), "--page", new_page], "--page shows one picture"),
        ([str(tmp_path), "--page", new_page], "--page shows one picture"),
        ([str(photograph), "--data", "builtin"], "they go together"),
        ([str(photograph), "--page", str(page)], "is there already"),
        ([str(photograph), "--page", str(tmp_path / "new.jpg")], "has to end with .html or .png"),
        ([str(photograph), "--page", new_page, "--data", str(tmp_path / "nowhere")], "no such directory"),
    ):
        with pytest.raises(UserError) as error:
            predict.main([str(run), *words, "--gpus", "cpu"])
        assert problem in str(error.value) and "\n" not in str(error.value), error.value
    path = tmp_path / "new.png"
    predict.main(
        [
            str(run),
            str(photograph),
            "--page",
            str(path),
            "--gpus",
            "cpu",
            "--data",
            str(make_folder(tmp_path / "set", 1, 2)),
            "--csv",
            "-",
        ]
    )
    heads, _ = csv.reader(capsys.readouterr().out.splitlines())
    assert heads[0] == "file"
    with Image.open(path) as picture:
        assert picture.width == 9 * 160 and picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
        maps = np.asarray(picture.convert("RGB")).astype(int)[picture.height // 2 :]
    for half, (more, less) in ((maps[:, :600], (0, 1)), (maps[:, 840:], (1, 0))):  # a is purple, b green
        assert (half[..., more] - half[..., less]).mean() > 5
    (tmp_path / "text.png").write_text("no picture")
    assert predict.main([str(run), str(tmp_path / "text.png"), "--page", new_page, "--gpus", "cpu"]) == 2
    assert page.read_bytes() == before and not (tmp_path / "new.html").exists()


@pytest.mark.slow
@pytest.mark.run
@needs_chromium
def test_in_a_browser(photograph, tmp_path, monkeypatch):
    """Light and dark, telephone and desktop: nothing overflows; the script shows one state and one layer, and without
    it all of them are there."""
    without_git(monkeypatch)
    run, *_ = made_run(tmp_path / "run", ("mini", TINY), 2, HOSTILE)
    page = paged(run, photograph, "--data", str(make_folder(tmp_path / "data", train=1, val=2, size=(48, 44))))
    for scripts, states, choices in (
        (True, 1, [["b off"], ["conv2"]]),
        (False, 4, [["whole", "a off", "b off", "links cut"], 4 * ["conv1", "conv2", "fc6", "fc8"]]),
    ):
        for (theme, width), layout in rendered(page, tmp_path, scripts).items():
            assert layout["width"] == width and layout["scroll"] <= width and not layout["cut"], (theme, width, layout)
            assert not layout["scrolling"] and layout["paper"] == PAPER[theme], (theme, width, layout)
            assert layout["states"] == states and layout["layers"] == 4 * states, (theme, width, layout)
            assert layout["buttons"] == (9 if scripts else 0) and layout["pressed"] == choices, (theme, width, layout)
