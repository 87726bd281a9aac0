"""notebooks/two_gpus.ipynb: its cells, in this process on a tiny network, and as a person runs them."""

import json
import re
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
def test_its_cells_run_in_three_steps(data, quick, tmp_path, capsys):
    first, *cells = sources()
    assert "TRAIN = " in first and "RUN = " in first
    names = {"TRAIN": [*TINY, "--data", str(data), "--steps", "3"], "RUN": tmp_path / "run"}
    for cell in cells:
        cell = cell.replace('Image.open(RUN / "curves.png")', "pass")  # which `quick` leaves out
        exec(compile(cell, str(NOTEBOOK), "exec"), names)
    assert set(names["errors"]) == {"both towers", "without tower a", "without tower b"}
    assert len(names["pictures"]) == 6 and all(0 <= error <= 100 for error in names["errors"].values())
    output = capsys.readouterr().out
    assert "without tower b" in output and " MB" in output and f"wrote {tmp_path / 'run' / 'exported'}: " in output


@pytest.mark.slow
def test_it_runs_as_a_person_runs_it(tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("MPLBACKEND", matplotlib.get_backend())
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
