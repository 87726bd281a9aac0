"""The report's ledger and its drawing, against the geometry, the facts, and what a network says itself."""

import torch
from inner_cases import every

from alexnet_mp.recipes import ablations
from alexnet_mp.recipes.architectures import mini, paper
from alexnet_mp.recipes.shapes import crossings as geometry_of
from alexnet_mp.reporting import exchange as report_exchange
from alexnet_mp.reporting.exchange import drawing, exchange, timed_crossings

CPU = torch.device("cpu")


def test_the_ledger_is_the_geometrys_and_the_papers():
    rows = timed_crossings(paper(), 1000, [CPU, CPU])
    assert [(row["edge"], row["direction"], row["pass"], row["bytes"]) for row in rows] == geometry_of(
        paper(), 128, 1000
    )
    assert sum(row["bytes"] for row in rows) == 60_030_976 and all(row["seconds"] is None for row in rows)


def test_between_two_devices_every_copy_is_timed(monkeypatch):
    """ "meta" stands for the second GPU: it holds nothing, and copies to it take no time."""
    copies = []
    monkeypatch.setattr(
        report_exchange, "_seconds", lambda count, source, target: copies.append((count, source, target)) or 0.25
    )
    devices = [CPU, torch.device("meta")]
    rows = timed_crossings(mini(), 10, devices)
    assert all(row["seconds"] == 0.25 for row in rows)
    for (count, source, target), row in zip(copies, rows, strict=True):
        assert count == row["bytes"] and [source, target] == [
            devices["ab".index(row["direction"][place])] for place in (0, -1)
        ]
    part = exchange(mini(), 10, devices, [], "nowhere")
    assert f"they take {250 * len(rows):.2f} ms" in part.pieces[0]["text"] and "A step" not in part.pieces[0]["text"]
    assert part.pieces[-1]["table"]["names"][-1] == "ms" and part.pieces[-1]["table"]["rows"][0][-1] == "250.000"


def test_a_copys_time_is_the_median_of_those_after_the_first(monkeypatch):
    """A clock that only copies move: by what each is said to take."""
    now, copies, times = [0.0], [], iter([1000, 3, 1, 7, 2, 900, 4, 8])

    def copy(tensor, target, copy_stream):
        copies.append((tensor.nbytes, tensor.device, target))
        now[0] += next(times)

    monkeypatch.setattr(report_exchange, "copy", copy)
    monkeypatch.setattr(report_exchange.time, "perf_counter", lambda: now[0])
    meta = torch.device("meta")
    assert report_exchange._seconds(4000, CPU, meta) == 4  # of 3, 1, 7, 2, 900, 4, 8
    assert copies == [(4000, CPU, meta)] * 8


@every("recipe", [paper(), mini(), ablations.no_links(paper()), ablations.one_gpu(paper())])
def test_every_crossing_is_drawn(recipe):
    diagram = drawing(recipe, 1000)
    rows = [row for row in geometry_of(recipe, recipe.batch_size, 1000) if row[2] == "forward"]
    middle = {tower["name"][-1]: tower["x"] for tower in diagram["towers"]}
    crossing = [(link["edge"], link["x1"], link["x2"]) for link in diagram["links"] if link["crosses"]]
    assert sorted(crossing) == sorted((row[0], middle[row[1][0]], middle[row[1][-1]]) for row in rows)
    # fc8 has one box, and each tower has its image
    assert len(diagram["boxes"]) == recipe.towers * len(recipe.layers) + 1
    assert len(diagram["labels"]) == len({edge for edge, *_ in rows})
    for link in diagram["links"]:  # from the lower edge of one box to the upper edge of the next
        ends = {
            (box["x"] + diagram["column"] / 2, box["y"] + edge)
            for box in diagram["boxes"]
            for edge in (0, diagram["box"])
        }
        assert {(link["x1"], link["y1"]), (link["x2"], link["y2"])} <= ends
    assert all(box["x"] + diagram["column"] <= diagram["width"] for box in diagram["boxes"])
    assert all(box["y"] + diagram["box"] < diagram["height"] for box in diagram["boxes"])


def test_the_drawing_says_shapes_and_bytes():
    diagram = drawing(paper(), 1000)
    boxes = {(box["title"], box["tower"]): box["what"] for box in diagram["boxes"]}
    assert boxes["image", 1] == "3 x 224 x 224" and boxes["conv1", 0] == "48 x 27 x 27" and boxes["fc7", 1] == "2,048"
    assert boxes["fc8", 0] == "1,000" and ("fc8", 1) not in boxes
    assert [label["text"] for label in diagram["labels"]] == ["22.2 MB", "4.7 MB", "2.1 MB", "1.0 MB"]


def test_the_time_of_a_step_is_told_beside_it():
    lines = [{"kind": "train", "images_per_second": rate} for rate in (100, 256, 1e9)] + [{"kind": "val"}]
    words = exchange(paper(), 1000, [CPU, CPU], lines, "tower a: H100").pieces[0]["text"]
    assert (
        "60,030,976 bytes a step of 128 images" in words
        and "nothing is copied, so many bytes would be between two, and no time can be measured" in words
    )
    assert "A step of this run took 500 ms, median, where it was trained (tower a: H100)." in words
