"""The command retrieve: an index of a tiny run, queries, contact sheets, measures; runs and data that moved, hostile
names."""

import io
import json
import os
import shutil

import forked_process
import numpy as np
import pytest
import torch
from image_folders import make_folder, needs_faiss
from inner_cases import every
from PIL import Image
from tiny_run import run

from alexnet_mp import retrieve
from alexnet_mp.data.dataset import Folder
from alexnet_mp.retrieval import build, short_codes
from alexnet_mp.retrieval import features as features_module
from alexnet_mp.retrieval import measures as retrieval_record
from alexnet_mp.retrieval.contact_sheet import SIDE, contact_sheet, png, shortened
from alexnet_mp.retrieval.index import Index
from alexnet_mp.retrieval.measures import measures
from alexnet_mp.system.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread", "quick", "few_passes")
WHERE = ["--gpus", "cpu", "--pipeline", "torch", "--workers", "0"]


@pytest.fixture
def few_passes(monkeypatch):
    monkeypatch.setattr(short_codes, "EPOCHS", 3)


@pytest.fixture(scope="module")
def original(data, tmp_path_factory):
    """A run on a prepared set, and its index with codes of 16 bits."""
    before, short_codes.EPOCHS = short_codes.EPOCHS, 3
    out = run(data, tmp_path_factory.mktemp("runs") / "run", "--steps", "3")
    assert retrieve.main(["index", str(out), "--bits", "16", *WHERE]) == 0
    short_codes.EPOCHS = before
    return out


@pytest.fixture
def trained(original, tmp_path):
    return shutil.copytree(original, tmp_path / "run")


@pytest.fixture
def photograph(data, tmp_path):
    """The first training picture, as a file."""
    from alexnet_mp.data.dataset import open_dataset

    Image.fromarray(open_dataset(str(data), 40).splits["train"].read(0)).save(tmp_path / "photograph.png")
    return tmp_path / "photograph.png"


def said(capsys, *arguments, status=0):
    if "query" in arguments or "--speed" in arguments:
        needs_faiss()
    where = [] if arguments[0] == "measure" else ["--gpus", "cpu"]
    assert retrieve.main([*map(str, arguments), *where]) == status
    return capsys.readouterr()


@pytest.mark.run
def test_an_index_that_fits_is_used_and_lengths_are_added(trained, capsys):
    index = trained / "retrieval"
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in index.iterdir()}
    assert retrieve.main(["index", str(trained), "--bits", "16,8", *WHERE]) == 0
    out = capsys.readouterr().out
    assert f"{index} is there and fits" in out and "codes of 8 bits: " in out and "codes of 16 bits" not in out
    for name, (time, content) in before.items():
        if name != "index.json":
            assert (index / name).stat().st_mtime_ns == time and (index / name).read_bytes() == content
    assert Index(index).lengths == [8, 16] and Index(index).described.source.units == 16  # 8 of each tower


def test_the_same_run_gives_the_same_bytes(trained, capsys):
    assert retrieve.main(["index", str(trained), "--bits", "16", "--out", str(trained / "again"), *WHERE]) == 0
    for path in (trained / "retrieval").iterdir():
        assert (trained / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_an_index_of_another_run_is_refused(trained, data, tmp_path):
    other = run(data, tmp_path / "other", "--steps", "2", "--seed", "5")
    with pytest.raises(
        UserError,
        match="it is of other weights, mini at step_00000003, and the run is at step_00000002; choose another",
    ):
        retrieve.main(["index", str(other), "--out", str(trained / "retrieval"), *WHERE])
    with pytest.raises(UserError, match="is of the weights of step_00000003, and .*other has others at step_00000002"):
        retrieve.main(["query", str(trained / "retrieval"), "x.png", "--run", str(other), "--gpus", "cpu"])
    with pytest.raises(UserError, match="is no index"):
        retrieve.main(["index", str(trained), "--out", str(trained / "checkpoints"), *WHERE])


def test_an_index_refuses_a_picture_that_was_replaced_by_one_of_equal_size(tmp_path, capsys):
    """An index of a former version, whose fingerprint has no times, counts still, and that is said."""
    make_folder(tmp_path / "data", 4, 2, size=(48, 44))
    trained = run(tmp_path / "data", tmp_path / "run", "--steps", "1")
    command = ["index", str(trained), "--bits", "16", *WHERE]
    assert retrieve.main(command) == 0 and retrieve.main(command) == 0
    assert capsys.readouterr().out.endswith("retrieval is there and fits\n")
    path = trained / "retrieval" / "index.json"
    place, fingerprint = (
        next((tmp_path / "data/train/apple").iterdir()),
        Index(path.parent).described.source.fingerprint,
    )
    content = bytearray(place.read_bytes())
    content[-3] ^= 1  # within the end marker's padding or the last bits of the scan
    status = place.stat()
    place.write_bytes(content)
    os.utime(place, ns=(0, status.st_mtime_ns + 1))
    with pytest.raises(UserError, match="of other pictures, .*names and sizes of its pictures are the same, their tim"):
        retrieve.main(command)
    old_fingerprint = Folder(tmp_path / "data", 40).names_and_sizes
    path.write_text(path.read_text(encoding="utf-8").replace(fingerprint, old_fingerprint), encoding="utf-8")
    assert retrieve.main(command) == 0
    assert "is there and fits (it was made without the times of the pictures)" in capsys.readouterr().out


@pytest.mark.process
@pytest.mark.parametrize("second", ["the index", "the codes"])
def test_two_processes_that_write_one_index_do_so_one_after_the_other(trained, monkeypatch, capsys, second):
    """The second waits, finds what the first has made, and learns what is still missing."""
    out, function = trained / "two", build.write_index if second == "the index" else Index.add_codes
    if second == "the codes":
        assert retrieve.main(["index", str(trained), "--out", str(out), "--bits", "8", *WHERE]) == 0
    others, place = [], (build, "write_index") if second == "the index" else (Index, "add_codes")

    def meanwhile(*arguments):
        """Begins the other process, and writes when it has said that it waits."""
        monkeypatch.undo()
        others.append(forked_process.command(retrieve.main, "index", trained, "--out", out, "--bits", "16,24", *WHERE))
        others[0].until(lambda: "another process is writing this index; waiting for it" in others[0].out)
        return function(*arguments)

    monkeypatch.setattr(*place, meanwhile)
    assert retrieve.main(["index", str(trained), "--out", str(out), "--bits", "16", *WHERE]) == 0
    assert others[0].wait() == 0 and not others[0].err, others[0].err
    output = others[0].out
    assert "codes of 24 bits: " in output
    if second == "the codes":  # of an index, the first lets go of the lock before it learns codes
        assert "codes of 16 bits: " not in output
    assert Index(out).lengths == ([16, 24] if second == "the index" else [8, 16, 24])
    assert sorted(path.name for path in trained.glob("two*")) == ["two"]


@every("by", ["fc7", "codes", "pixels"])
def test_a_training_picture_finds_itself(trained, photograph, capsys, by):
    document = json.loads(said(capsys, "query", trained / "retrieval", photograph, "--by", by, "-k", 24, "--json").out)
    assert document["by"] == by and document["bits"] == (16 if by == "codes" else None)
    (query,) = document["queries"]
    names = Index(trained / "retrieval").names("train")
    assert query["file"] == str(photograph) and len(query["nearest"]) == 24
    assert sorted(one["number"] for one in query["nearest"]) == list(range(24))
    distances = [one["distance"] for one in query["nearest"]]
    assert distances == sorted(distances) and distances[0] == pytest.approx(0, abs=1e-3)
    own = next(one for one in query["nearest"] if one["number"] == 0)
    assert own["name"] == names[0] and own["class"] == "apple" and own["distance"] == distances[0]
    lines = said(capsys, "query", trained / "retrieval", photograph, "--by", by, "-k", 3).out.splitlines()
    assert (
        lines[0] == str(photograph)
        and len(lines) == 4
        and (by == "codes" or lines[1].split()[1:] == ["apple", query["nearest"][0]["name"]])
    )


@pytest.mark.run
def test_classes_of_one_name_are_told_apart(trained, photograph, monkeypatch, capsys):
    entries, sheet = [], retrieve.contact_sheet
    monkeypatch.setattr(retrieve, "contact_sheet", lambda rows: (entries.extend(rows), sheet(rows))[1])
    path = trained / "retrieval" / "index.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["source"]["class_names"] = ["crane", "crane", "sky"]
    path.write_text(json.dumps(content), encoding="utf-8")
    words = ["query", trained, photograph, "-k", 24, "--sheet", trained / "nearest.png"]
    lines = said(capsys, *words).out.splitlines()[1:]
    names = {lines[1] for _, lines in entries[0][1:]}
    assert names == {"crane (apple)", "crane (leaf)", "sky"}
    assert {line.split("  ")[-2].strip() for line in lines} == names


def test_a_run_stands_for_its_index(trained, photograph, tmp_path, capsys):
    answers = [
        json.loads(said(capsys, "query", place, photograph, "--json").out) for place in (trained, trained / "retrieval")
    ]
    assert answers[0] == answers[1] and answers[0]["index"] == str(trained / "retrieval")
    assert said(capsys, "measure", trained, "--json").out and (trained / "retrieval" / "measures.json").exists()
    shutil.rmtree(trained / "retrieval")
    with pytest.raises(UserError, match=f"^{trained} is a run without an index; .*retrieve index {trained} makes one$"):
        retrieve.main(["query", str(trained), str(photograph), "--gpus", "cpu"])
    with pytest.raises(UserError, match="is no index"):
        retrieve.main(["query", str(tmp_path), str(photograph), "--gpus", "cpu"])


def test_a_run_that_moved_with_its_index_is_found(trained, photograph, tmp_path, capsys):
    shutil.move(trained, tmp_path / "moved")
    assert said(capsys, "query", tmp_path / "moved" / "retrieval", photograph).out.startswith(str(photograph))


def test_bad_pictures_are_named_and_the_others_answered(trained, photograph, tmp_path, capsys):
    (tmp_path / "text\x1b[2J.jpg").write_bytes(b"no picture")
    streams = said(capsys, "query", trained / "retrieval", tmp_path / "text\x1b[2J.jpg", photograph, "--json", status=2)
    one, other = json.loads(streams.out)["queries"]
    assert "cannot identify" in one["error"] and len(other["nearest"]) == 6 and "\x1b" not in streams.err + streams.out
    assert len([line for line in streams.err.splitlines() if line.startswith("error: ")]) == 1
    assert said(
        capsys, "query", trained / "retrieval", tmp_path / "text\x1b[2J.jpg", "--sheet", tmp_path / "s.png", status=2
    )
    assert not (tmp_path / "s.png").exists()


@pytest.mark.run
def test_the_sheet_shows_what_was_found_the_same_bytes_every_time(trained, photograph, tmp_path, capsys):
    for name in ("one.png", "two.png"):
        said(
            capsys, "query", trained / "retrieval", photograph, photograph, "--by", "pixels", "--sheet", tmp_path / name
        )
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    sheet = np.asarray(Image.open(tmp_path / "one.png"))
    query, nearest = sheet[8 : 8 + SIDE, 8 : 8 + SIDE], sheet[8 : 8 + SIDE, 24 + SIDE : 24 + 2 * SIDE]
    assert np.array_equal(query, nearest) and query.std() > 10  # it found itself, and it is that picture which is drawn
    with pytest.raises(UserError, match="it is there already"):
        said(capsys, "query", trained / "retrieval", photograph, "--sheet", tmp_path / "one.png")
    with pytest.raises(UserError, match="not a directory"):
        said(capsys, "query", trained / "retrieval", photograph, "--sheet", tmp_path / "no" / "one.png")


@pytest.mark.run
def test_without_the_data_names_are_said_and_the_sheet_says_what_is_missing(tmp_path, capsys):
    make_folder(tmp_path / "data", train=3, val=2, size=(48, 44))
    out = run(tmp_path / "data", tmp_path / "run", "--steps", "2")
    assert retrieve.main(["index", str(out), "--bits", "8", *WHERE]) == 0
    photograph = shutil.copy(tmp_path / "data/val/sky/0.jpg", tmp_path / "query.jpg")
    capsys.readouterr()
    before = said(capsys, "query", out, photograph)
    assert "what is found" not in before.err
    picture, backup = tmp_path / "data/train/sky/1.jpg", tmp_path / "kept.jpg"
    shutil.copy2(picture, backup)
    os.utime(picture, ns=(0, 0))
    for command in ("query", out, photograph), ("measure", out):
        line = (
            f"what is found is as it was when {out}/retrieval was made: {tmp_path}/data holds other pictures now: names"
        )
        after = said(capsys, *command)
        assert line in after.err and (after.out == before.out or command[0] == "measure")
    shutil.copy2(backup, picture)
    shutil.move(tmp_path / "data", tmp_path / "moved")
    assert f"was made: {tmp_path}/data: no such directory\n" in said(capsys, "query", out, photograph).err
    streams = said(
        capsys, "query", out / "retrieval", photograph, "--by", "pixels", "--sheet", tmp_path / "missing.png"
    )
    assert "the sheet shows no training pictures" in streams.err and "train/sky/0.jpg" in streams.out
    said(
        capsys,
        "query",
        out / "retrieval",
        photograph,
        "--by",
        "pixels",
        "--sheet",
        tmp_path / "there.png",
        "--data",
        tmp_path / "moved",
    )
    pictures = [
        np.asarray(Image.open(tmp_path / name))[8 : 8 + SIDE, 24 + SIDE : 24 + 2 * SIDE]
        for name in ("missing.png", "there.png")
    ]
    assert pictures[0].min(2).max() == 0xE4 and pictures[1].std() > 10
    (tmp_path / "moved/train/sky/0.jpg").write_bytes(b"other")
    streams = said(
        capsys, "query", out / "retrieval", photograph, "--sheet", tmp_path / "other.png", "--data", tmp_path / "moved"
    )
    assert "holds other pictures now" in streams.err


def test_hostile_names_are_escaped(tmp_path, capsys):
    make_folder(tmp_path / "data", train=3, val=2, size=(48, 44), classes=("a\x1b[31m", "b\u202e", "[bold]<c>"))
    for number, path in enumerate(sorted((tmp_path / "data" / "train" / "a\x1b[31m").iterdir())):
        path.rename(path.with_name(f"{number}\n\x07.jpg"))
    out = run(tmp_path / "data", tmp_path / "run", "--steps", "2")
    assert retrieve.main(["index", str(out), "--bits", "8", *WHERE]) == 0
    capsys.readouterr()
    photograph = tmp_path / "data/val/[bold]<c>/0.jpg"
    streams = said(capsys, "query", out / "retrieval", photograph, "-k", 9, "--sheet", tmp_path / "sheet.png")
    assert not set("\x1b\x07\u202e") & set(streams.out + streams.err) and len(streams.out.splitlines()) == 10
    assert r"a\x1b[31m  train/a\x1b[31m/0\n\x07.jpg" in streams.out and "[bold]<c>  train/[bold]<c>/" in streams.out
    text = said(capsys, "query", out / "retrieval", photograph, "-k", 9, "--json").out
    assert text.isascii() and "\x1b" not in text
    assert {one["name"] for one in json.loads(text)["queries"][0]["nearest"]} >= {"train/a\x1b[31m/0\n\x07.jpg"}


@pytest.mark.run
def test_measures_are_those_of_the_searches(trained, capsys):
    """Against rankings by hand: of every validation picture all training pictures, ties broken in every order by
    `measures`."""
    streams = said(capsys, "measure", trained / "retrieval", "--bits", "8,16", "--json")
    record = json.loads(streams.out)
    assert record == json.loads((trained / "retrieval" / "measures.json").read_bytes())
    assert [(one["by"], one["bits"], one["codes"], one["bytes_per_picture"]) for one in record["searches"]] == [
        ("pixels", None, None, 3072),
        ("fc7", None, None, 64),
        ("codes", 8, "learned", 1),
        ("codes", 8, "random", 1),
        ("codes", 8, "pixel", 1),
        ("codes", 16, "learned", 2),
        ("codes", 16, "random", 2),
        ("codes", 16, "pixel", 2),
    ]
    index = Index(trained / "retrieval")
    train, val = index.features("train"), index.features("val")
    distances = ((val.hidden[:, None].astype(np.float64) - train.hidden) ** 2).sum(2)
    right = (train.labels[distances.argmin(1)] == val.labels).mean()
    assert record["searches"][1]["precision"]["1"] == pytest.approx(right) and record["chance"] == pytest.approx(1 / 3)
    assert record["searches"][0]["precision"]["1"] == 1  # a class is a tint: pixels tell them
    assert record["train"] == 24 and record["queries"] == 6 and index.lengths == [8, 16]
    lines = said(capsys, "measure", trained / "retrieval").out.splitlines()
    assert len(lines) == 11 and "fc6" in lines[3] and "learned codes, 16 bits" in lines[7] and "pixel" in lines[9]
    pixels = np.sqrt(((val.pixels[:, None].astype(np.float64) - train.pixels) ** 2).sum(2))
    neighbours = np.argsort(distances, axis=1, kind="stable")[:, :6]
    gaps = np.take_along_axis(pixels, neighbours, 1)
    assert record["pixel_distance"] == pytest.approx(
        {
            "neighbours": 6,
            "by_layer": gaps.mean(),
            "by_pixels": np.sort(pixels, 1)[:, :6].mean(),
            "any": pixels.mean(),
            "nearer": np.mean(
                [((row < one).sum() + (row <= one).sum()) / 2 / 24 for row, of in zip(pixels, gaps) for one in of]
            ),
        },
        rel=1e-3,
    )
    assert f"in pixels: {gaps.mean():,.0f} grey levels to the 6 nearest by fc6" in lines[10]
    pixel_encoder = short_codes.train(train.pixels, 16, index.described.codes["16"].seed).encoder
    codes = [np.unpackbits(pixel_encoder.codes(split.pixels), axis=1) for split in (train, val)]
    precision, average = measures((codes[1][:, None] != codes[0]).sum(2), val.labels[:, None] == train.labels)
    assert record["searches"][7]["mean_average_precision"] == pytest.approx(average.mean())
    assert record["searches"][7]["precision"]["6"] == pytest.approx(precision[6].mean())


def test_the_speed_is_measured(trained, capsys, monkeypatch):
    monkeypatch.setattr(retrieval_record, "SYNTHETIC", 1000)
    record = json.loads(said(capsys, "measure", trained / "retrieval", "--speed", "--queries", "3", "--json").out)
    assert record["queries"] == 3 and all(
        one["queries_per_second"] > 0 for one in record["searches"] + record["synthetic"]
    )
    assert record["synthetic_codes"] == 1000 and record["device"]
    assert "1,000 random codes of 16 bits" in said(capsys, "measure", trained / "retrieval", "--speed").out


@every(
    "arguments, problem",
    [
        (["index", "RUN", "--bits", "12"], "multiples of 8"),
        (["index", "RUN", "--bits", "0"], "multiples of 8"),
        (["index", "RUN", "--bits", "x"], "multiples of 8"),
        (["query", "INDEX", "x.png", "-k", "0"], "-k 0"),
        (["query", "INDEX", "x.png", "--bits", "16"], "only a search --by codes"),
        (["query", "INDEX", "x.png", "--by", "codes", "--bits", "64"], "no codes of 64 bits, only of 16"),
        (["measure", "INDEX", "--queries", "0"], "--queries 0"),
        (["query", "RUN/checkpoints", "x.png"], "is no index"),
        (["index", "RUN", "--out", "RUN/no/where"], "not a directory"),
    ],
)
def test_what_can_not_be_asked(trained, arguments, problem):
    arguments = [word.replace("RUN", str(trained)).replace("INDEX", str(trained / "retrieval")) for word in arguments]
    machine = {"index": WHERE, "query": ["--gpus", "cpu"], "measure": []}[arguments[0]]
    with pytest.raises(UserError, match=problem):
        retrieve.main([*arguments, *machine])


def test_a_network_that_diverged_is_not_indexed(trained, monkeypatch):
    function = features_module.features

    def features(*arguments):
        vectors = function(*arguments)
        vectors.hidden[2, 3] = np.nan
        return vectors

    monkeypatch.setattr(build, "features", features)
    with pytest.raises(UserError, match="not finite"):
        retrieve.main(["index", str(trained), "--out", str(trained / "new"), *WHERE])
    assert not (trained / "new").exists()
    monkeypatch.setattr(build, "free_memory", lambda: 1000)
    with pytest.raises(UserError, match="GB of memory"):
        retrieve.main(["index", str(trained), "--out", str(trained / "new"), *WHERE])


def test_sheets_of_long_names_and_missing_pictures():
    picture = np.full((5, 5, 3), 200, np.uint8)
    sheet = contact_sheet([[(picture, ["x" * 99, "two"]), (None, ["三"])], [(picture, [])]])
    assert (
        sheet.size == (8 + 2 * (SIDE + 8) + 8, 8 + 2 * (SIDE + 48))
        and Image.open(io.BytesIO(png(sheet))).size == sheet.size
    )
    assert shortened("a" * 22) == "a" * 22 and shortened("a" * 20 + "bcd.jpg") == "..." + "a" * 12 + "bcd.jpg"


def test_the_digest_is_of_the_weights():
    from alexnet_mp import TwoTowerAlexNet
    from alexnet_mp.recipes.cifar import cifar18

    network = TwoTowerAlexNet(cifar18(), ["cpu"], 10)
    before = build.weights_digest(network)
    assert before == build.weights_digest(TwoTowerAlexNet(cifar18(), ["cpu"], 10)) and len(before) == 64
    with torch.no_grad():
        network.towers[0].conv1.weight[0, 0, 0, 0] += 1e-3
    assert build.weights_digest(network) != before
