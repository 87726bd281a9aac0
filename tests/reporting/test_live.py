"""The page of a run while it trains: who is answered, what is shown of runs of every kind, and that nothing is
written."""

import dataclasses
import json
import re
import shutil
import socket
import threading
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest
from browser import PAPER, needs_chromium, rendered, shown
from made_runs import made_run, without_git
from PIL import Image
from tiny_checkpoint import tiny_recipe
from told_runs import judged, save, step, told_run

from alexnet_mp import watch
from alexnet_mp.reporting import live, live_server
from alexnet_mp.reporting.line_chart import Line, chart, ticks
from alexnet_mp.reporting.live import Watched, kernel_grid
from alexnet_mp.reporting.live_server import HEADERS, LiveServer
from alexnet_mp.runs import first_layers
from alexnet_mp.system.errors import UserError, run_command

pytestmark = pytest.mark.usefixtures("one_thread")
HOSTILE = "<script>alert(1)</script>"


def without_tags(page):
    return re.sub(r"<[^>]*>", " ", page)


def inside(path):
    """Every file below a directory, with its content and time."""
    return {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.rglob("*") if file.is_file()}


def test_who_and_what_is_answered(tmp_path, monkeypatch):
    without_git(monkeypatch)
    run = told_run(tmp_path / "run", [step(1)], checkpoint=True)
    before = inside(run)
    with LiveServer(Watched(run), 0) as server:
        port = server.server_port
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:

            def asked(path, method="GET", **headers):
                connection = HTTPConnection("127.0.0.1", port, timeout=20)
                connection.putrequest(method, path, skip_host=True)
                for name, value in ({"Host": f"127.0.0.1:{port}"} | headers).items():
                    for one in [value] if isinstance(value, str) else value:
                        connection.putheader(name, one)
                connection.endheaders()
                answer = connection.getresponse()
                assert {name: answer.getheader(name) for name in HEADERS} == HEADERS
                assert "unsafe" not in HEADERS["Content-Security-Policy"]
                return answer, answer.read()

            kinds = {"/": "text/html", "/live.js": "text/javascript", "/live.css": "text/css"}
            kinds |= {"/kernels-a.png": "image/png", "/kernels-b.png?3": "image/png"}
            for path, kind in kinds.items():
                answer, content = asked(path)
                assert answer.status == 200 and answer.getheader("Content-Type").startswith(kind) and content, path
                head, body = asked(path, "HEAD", Host=f"LOCALHOST:{port}")
                assert head.status == 200 and not body
                assert int(head.getheader("Content-Length")) == len(content)
            for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"localhost:{port}.evil.example", "", ()):
                answer, content = asked("/", Host=host)
                assert answer.status == 421 and b"run" not in content, host
            assert asked("/", Host=(f"127.0.0.1:{port}", "evil.example"))[0].status == 421
            elsewhere = ("/run.json", "/../run.json", "/..%2frun.json", "/live.css/../live.js", f"//{run}/run.json")
            for path in (*elsewhere, "/live.html", "/kernels-c.png", "http://evil.example/", "*", "/%00"):
                assert asked(path)[0].status == 404, path
            for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "NONSENSE"):
                answer, _ = asked("/", method)
                assert answer.status == 405 and answer.getheader("Allow") == "GET, HEAD", method
            for request in (b"\r\n\r\n", b"GET / HTTP/9.9.9\r\n\r\n", b"GET " + b"/" * 70_000, b"GET /\r\n\r\n"):
                with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
                    connection.sendall(request)
                    connection.shutdown(socket.SHUT_WR)
                    reply = b"".join(iter(lambda: connection.recv(65536), b""))
                    assert b"<main>" not in reply
            assert {name for name, *_ in [server.server_address]} == {"127.0.0.1"}
            with pytest.raises(UserError, match=f"--port {port}: something listens there already"):
                LiveServer(server.watched, port)
        finally:
            server.shutdown()
            thread.join()
    assert inside(run) == before


def drawings(place):
    assert ticks(4.7, 5) == [0, 1, 2, 3, 4, 5] and ticks(100, 5) == [0, 20, 40, 60, 80, 100]
    assert ticks(3910, 4) == [0, 1000, 2000, 3000, 4000] and ticks(1, 4)[-1] == 1 and len(ticks(1, 4)) == 3
    plot = chart("Loss", [Line("a", "training", [(0, 0.0), (10, 2.0)]), Line("b", "guess", [])], None, [0, 5])
    assert [line["points"] for line in plot["lines"]] == ["44,200 386,12"] and plot["said"] == "a 2"
    assert plot["falls"] == [215.0] and plot["y_ticks"][-1] == (12.0, "2") and plot["x_ticks"][-1][1] == "10"
    assert chart("Loss", [])["lines"] == []
    pixels = np.arange(5 * 2 * 2 * 3, dtype=np.uint8).reshape(5, 2, 2, 3)
    (place / "grid.png").write_bytes(kernel_grid(pixels))
    with Image.open(place / "grid.png") as image:
        grid = np.asarray(image)
    assert grid.shape == (25, 40, 4) and (grid[0, 0] == [0, 1, 2, 255]).all()
    assert (
        (grid[15 + 9, 15 + 9] == [*pixels[4, 1, 1], 255]).all()
        and not grid[:, 10:15].any()
        and not grid[15:, 30:].any()
    )


def test_runs_of_every_kind(tmp_path, monkeypatch):
    """What the page says of them, with names that are HTML; a checkpoint that vanishes, and a run that goes away and
    comes back."""
    without_git(monkeypatch)

    def page(run, kind):
        text = Watched(run).page().decode()
        assert HOSTILE not in text and f'<span class="state {kind}">' in text
        return text

    one_tower = dataclasses.replace(tiny_recipe(), towers=1)
    directory, two = tmp_path / HOSTILE.replace("/", "\N{DIVISION SLASH}"), ("no", "yes")
    text = page(told_run(directory, [step(1)], command=HOSTILE, classes=(HOSTILE, "b", "\u202e")), "stopped")
    assert "&lt;script&gt;" in text and "There is no checkpoint yet" in text and "\u202e" not in text
    assert "before its first step" in page(told_run(tmp_path / "begins"), "stopped")
    lines = [
        step(1),
        step(2),
        judged(2),
        step(3, loss=0.5),
        step(4),
        judged(4),
        judged(4, "test", protocol="ten views"),
    ]
    text = page(told_run(tmp_path / "ended", lines, classes=two, checkpoint=True), "finished")
    assert "4 of 180" in text and "epoch 2 of 90" in text and "top-1 error, ten views" in text and "top-5" not in text
    assert "conv1 after step 3, by tower" in text and "2 kernels of tower b, 2x2x3" in text
    assert "at fc2, fc8 and nowhere else" in text and text.count("<polyline") == 3 + 3 + 1
    text = page(told_run(tmp_path / "single", lines[:5], recipe=one_tower), "stopped")
    assert "This network has one tower: nothing crosses." in text and "4 of 180" in text
    text = page(made_run(tmp_path / "converted", tiny_recipe(), classes=1000)[0], "converted")
    assert (
        "from made" in without_tags(text)
        and "was converted, not trained here" in text
        and "<h2>conv1, by tower" in text
    )
    monkeypatch.setattr(live, "is_held", lambda _: True)
    text = page(tmp_path / "single", "running")
    assert "step 4, the last line" in text and "of steps left" in text

    run = told_run(tmp_path / "run", [step(1)], checkpoint=True, images=None)
    view = Watched(run)
    assert "conv1 after step 3" in view.page().decode()
    listing = live.checkpoints.listing

    def vanishes(run):
        checkpoints = listing(run)
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
        return checkpoints

    save(run, 5)
    with monkeypatch.context() as patch:
        patch.setattr(live.checkpoints, "listing", vanishes)
        text = view.page().decode()
    assert "conv1 after step 3" in text and 'class="problem"' in text
    save(run, 6)
    text = view.page().decode()
    assert "conv1 after step 6" in text and "problem" not in text and text.count("<td>") >= 2 * 3
    kernels = first_layers.of_checkpoint(run / "checkpoints/step_00000006")[1]
    for number, newest in ((5, 6), (8, 8), (9, 9)):  # `train --keep-every`: what is newer than the checkpoint
        first_layers.write(run, number, {"conv1.weight": (1 + number) * kernels})
        assert f"conv1 after step {newest}" in view.page().decode()
    assert np.array_equal(view.first_layer.kernels, 10 * kernels)
    first_layers.write(run, 9, {"conv1.weight": kernels[:-1]})
    assert "are no kernels of colour images" in view.page().decode()
    first_layers.forget_after(run, 6)
    assert "conv1 after step 6" in (text := view.page().decode()) and "<td>8</td>" not in text
    weights = run / "checkpoints/step_00000007"
    save(run, 7)
    (weights / "weights.safetensors").write_bytes(b"damaged")
    assert "conv1 after step 6" in (text := view.page().decode()) and 'class="problem"' in text
    run.rename(tmp_path / "away")
    assert "what follows is from before" in view.page().decode()
    (tmp_path / "away").rename(run)
    shutil.rmtree(weights)
    assert "problem" not in view.page().decode()
    assert view.kernels(0)[:4] == b"\x89PNG" and view.kernels(2) is None
    drawings(tmp_path)


def test_what_can_not_be_watched_and_what_is_waited_for(tmp_path, monkeypatch, capsys):
    without_git(monkeypatch)
    monkeypatch.chdir(tmp_path)
    told_run(tmp_path / "RUN")
    (tmp_path / "run.json").write_text("{}")
    for name in ("devices", "resumed", "packages", "converted", "command", "started", "kernels", "pairs"):
        for value in (1.5, ["x"], [None], [{}], {"a": []}):
            told_run(tmp_path / "wrong", **{name: value})
            with pytest.raises(UserError, match=f"{name} is not what a run writes"):
                Watched(tmp_path / "wrong")
            shutil.rmtree(tmp_path / "wrong")
    refusal = "is not a run directory: "
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        for words, problem in (
            (["none/RUN"], f"none/RUN {refusal}cannot read .*: No such file or directory"),
            (["."], rf"\. {refusal}.*damaged"),
            (["run.json"], f"run.json {refusal}cannot read .*: Not a directory"),
            (["RUN", "--port", "65536"], "--port 65536: ports are 0 to 65535"),
            (["RUN", "--port", "-1"], "--port -1: ports are 0 to 65535"),
            (["RUN", "--port", f"{port}"], f"--port {port}: something listens there already; --port 0 .* is free"),
        ):
            with pytest.raises(SystemExit) as exit_info:
                run_command(lambda: watch.main(words))
            streams = capsys.readouterr()
            assert (
                exit_info.value.code == 2 and not streams.out and re.fullmatch(f"error: {problem}[^\n]*\n", streams.err)
            ), words
    waits = []

    def begins(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            told_run(tmp_path / "later")

    def stops(server):
        assert "before its first step" in server.watched.page().decode()
        raise KeyboardInterrupt

    monkeypatch.setattr(watch.time, "sleep", begins)
    monkeypatch.setattr(LiveServer, "serve_forever", stops)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as exit_info:
        run_command(lambda: watch.main([str(tmp_path / "later"), "--port", "0"]))
    streams = capsys.readouterr()
    assert exit_info.value.code == 130 and streams.err == "stopped\n" and len(waits) == 2
    notice, address = streams.out.splitlines()
    assert "it is waited for" in notice and re.fullmatch(r".*: http://127\.0\.0\.1:\d+/ until Ctrl-C", address)


@pytest.mark.slow
@needs_chromium
def test_in_a_browser_it_updates_and_fits(tmp_path, monkeypatch):
    """The script, which the policy lets run, shows new lines; nothing overflows on telephones and desktops, in either
    theme."""
    without_git(monkeypatch)
    run = told_run(tmp_path / f"{HOSTILE[:8]}-{'long' * 30}", [step(1), step(2), judged(2)], checkpoint=True)
    view, pages = Watched(run), []

    def page(_):
        pages.append(view.page())
        with open(run / "metrics.jsonl", "a") as file:
            file.write(json.dumps(step(2 + len(pages))) + "\n")
        return pages[-1]

    monkeypatch.setitem(live_server.ROUTES, "/", ("text/html; charset=utf-8", page))
    with LiveServer(view, 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            text = shown(f"http://127.0.0.1:{server.server_port}/", tmp_path, "--virtual-time-budget=10000")
        finally:
            server.shutdown()
            thread.join()
    last_step = int(re.search(r"step (\d+)</title>", text)[1])  # that of an answer which came in time
    assert 2 < last_step <= 1 + len(pages) and "<dd>2<" in pages[0].decode()
    assert f"<dd>{last_step} of 180<" in text and re.search('id="silent" hidden', text)

    style = (Path(live_server.HERE) / "live.css").read_text()
    for letter in "ab":
        (tmp_path / f"kernels-{letter}.png").write_bytes(view.kernels("ab".index(letter)))
    text = pages[-1].decode().replace('src="/kernels', 'src="kernels').replace('<script src="/live.js"', "<script")
    (tmp_path / "page.html").write_text(text.replace("</head>", f"<style>{style}</style></head>"))
    for (theme, width), layout in rendered(tmp_path / "page.html", tmp_path).items():
        assert layout["width"] == width and layout["scroll"] <= width and not layout["cut"], (theme, width, layout)
        assert layout["pictures"] == 2 and layout["paper"] == PAPER[theme], (theme, width, layout)
