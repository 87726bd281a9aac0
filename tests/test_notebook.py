"""notebooks/two_gpus.ipynb: its cells, in this process on a tiny network, and as a person runs them."""

import json
import re
import tempfile
from pathlib import Path

import matplotlib
import pytest
from tiny_run import TINY

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "two_gpus.ipynb"


def sources():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") for cell in cells), "clear its outputs: they age"
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.run
def test_its_cells_run_in_three_steps(data, quick, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (options,) = (cell for cell in sources() if "TRAIN = " in cell)
    names = {}
    for cell in sources():
        if cell == options:
            before = capsys.readouterr().out  # all of the network that the repository has
            names |= {"TRAIN": [*TINY, "--data", str(data), "--steps", "3"], "TRAINED": tmp_path / "run"}
            continue
        cell = cell.replace('Image.open(TRAINED / "curves.png")', "pass")  # which `quick` leaves out
        exec(compile(cell, str(NOTEBOOK), "exec"), names)
    assert {"photograph.png", "exported"} <= {path.name for path in names["FOLDER"].iterdir()} and " MB" in before
    assert names["first_layer"](names["RUN"])[0].shape == (96, 3, 11, 11)
    assert set(names["errors"]) == {"both towers", "without tower a", "without tower b"}
    assert names["result"].n == 6 and all(0 <= error <= 100 for error in names["errors"].values())
    assert "without tower b" in capsys.readouterr().out


@pytest.mark.slow
def test_it_runs_as_a_person_runs_it(tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("MPLBACKEND", matplotlib.get_backend())
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = {cell["id"]: cell["outputs"] for cell in notebook.cells if cell.cell_type == "code"}
    text = "\n".join(
        output.get("text", "") + output.get("data", {}).get("text/plain", "")
        for of_cell in outputs.values()
        for output in of_cell
    )
    errors = [float(error) for error in re.findall(r"([\d.]+) % top-1 error on 256", text)]
    assert "done after step" in text and "exported: " in text, text
    assert len(errors) == 3 and errors[0] < min(errors[1:]), errors
    pictures = [output for of_cell in outputs.values() for output in of_cell if "image/png" in output.get("data", {})]
    assert len(pictures) == 4
