"""Which pipeline a data set gets, and that a run comes out the same whichever it is and wherever its pictures come
from."""

import json
import os
import shutil
import sys
from types import ModuleType

import pytest
from image_folders import make_folder

from alexnet_mp import evaluate, prepare, train
from alexnet_mp.data import pipeline_dali, survey
from alexnet_mp.data.dataset import open_dataset
from alexnet_mp.data.pipeline import make_pipeline
from alexnet_mp.recipes.architectures import mini
from alexnet_mp.runs.metrics import read_metrics
from alexnet_mp.system.errors import UserError

SMALL = [
    "--gpus",
    "cpu",
    "--recipe",
    "mini",
    "--batch-size",
    "10",
    "--workers",
    "1",
    "--set",
    "fc6.maps=16",
    "--set",
    "fc7.maps=16",
    "--epochs",
    "2",
]
# On a busy machine a second thread costs more than it brings.
pytestmark = [pytest.mark.process, pytest.mark.usefixtures("one_thread")]
DALI = pytest.mark.skipif(not pipeline_dali.available(), reason="DALI is not installed")


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """The same pictures as a folder, as raw pixels and as JPEGs of the recipe's size, and as JPEGs of a larger one."""
    root = tmp_path_factory.mktemp("sets")
    folder = str(make_folder(root / "folder"))
    for name, flags in (
        ("raw", ["--raw", "--recipe", "mini"]),
        ("jpeg", ["--recipe", "mini"]),
        ("larger", ["--size", "128"]),
    ):
        assert prepare.main([folder, str(root / name), "--workers", "1", *flags]) == 0
    return {name: str(root / name) for name in ("folder", "raw", "jpeg", "larger")} | {"builtin": "builtin"}


def chosen(data, choice="auto", size=112):
    return make_pipeline(choice, open_dataset(data, size), mini(), ["cpu"], 1).name


def test_processes_of_one_machine_share_its_cores(sets, monkeypatch):
    dataset = open_dataset(sets["builtin"], 112)
    for cores, processes, workers in ((16, 1, 16), (16, 4, 4), (64, 2, 16), (7, 2, 3), (2, 4, 1)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
        monkeypatch.setattr(os, "process_cpu_count", lambda: cores, raising=False)
        assert make_pipeline("torch", dataset, mini(), ["cpu"], processes=processes).workers == workers
        assert make_pipeline("torch", dataset, mini(), ["cpu"], 5, processes=processes).workers == 5


def test_auto_takes_raw_pixels_as_they_are_and_everything_else_to_dali(sets, monkeypatch):
    monkeypatch.setattr(pipeline_dali, "available", lambda: True)
    assert {name: chosen(data) for name, data in sets.items()} == {
        "folder": "dali",
        "builtin": "dali",
        "jpeg": "dali",
        "larger": "dali",
        "raw": "raw",
    }
    assert chosen(sets["raw"], "torch") == "torch" and chosen(sets["raw"], "dali") == "dali"


def test_without_dali_auto_is_torch_and_says_so(sets, monkeypatch, capsys):
    monkeypatch.setattr(pipeline_dali, "available", lambda: False)
    assert chosen(sets["jpeg"]) == "torch" and "pip install nvidia-dali-cuda130" in capsys.readouterr().out
    assert chosen(sets["raw"]) == "raw" and not capsys.readouterr().out
    with pytest.raises(UserError, match="pip install nvidia-dali-cuda130"):
        chosen(sets["jpeg"], "dali")


@pytest.mark.parametrize("error", [RuntimeError, ImportError, TypeError, SystemExit])  # TypeError with PYTHONOPTIMIZE=2
def test_where_dali_is_broken_auto_is_torch_and_says_so(sets, error, monkeypatch, capsys):
    class Broken:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "nvidia.dali.fn":
                raise error("libnvcomp.so.5: no version information")

    monkeypatch.setattr(pipeline_dali, "available", lambda: True)
    for name in ("nvidia", "nvidia.dali"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
        sys.modules[name].__path__ = []
    monkeypatch.delitem(sys.modules, "nvidia.dali.fn", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken, *sys.meta_path])
    assert chosen(sets["jpeg"]) == "torch"
    assert "WARNING: pipeline torch: DALI can't be loaded (libnvcomp.so.5: no version" in capsys.readouterr().out
    with pytest.raises(UserError, match="DALI can't be loaded.*--pipeline torch"):
        chosen(sets["jpeg"], "dali")


def test_a_package_nvidia_that_raises_is_no_dali(monkeypatch, tmp_path):
    (tmp_path / "nvidia").mkdir()
    (tmp_path / "nvidia" / "__init__.py").write_text("raise RuntimeError('broken')")
    for name in [name for name in sys.modules if name.split(".")[0] == "nvidia"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not pipeline_dali.available()


@pytest.mark.parametrize("name", ["folder", "jpeg", "larger", "builtin"])
def test_raw_is_refused_where_the_pixels_are_not_raw(sets, name):
    with pytest.raises(UserError, match="prepare --raw"):
        chosen(sets[name], "raw")


def losses(data, out, *flags):
    assert train.main([*SMALL, "--data", data, "--out", str(out), *flags]) == 0
    return [
        (line["kind"], line["loss"], line["top1_error"]) for line in read_metrics(out) if line["kind"] != "schedule"
    ]


@pytest.mark.slow
@DALI
def test_a_run_is_the_same_from_the_folder_and_from_its_raw_pixels_by_every_pipeline(sets, tmp_path):
    runs = {
        (name, choice): losses(sets[name], tmp_path / f"{name}-{choice}", "--pipeline", choice)
        for name, choice in (("folder", "torch"), ("folder", "dali"), ("raw", "torch"), ("raw", "dali"), ("raw", "raw"))
    }
    first, *others = runs.values()
    assert len(first) == 6 + 2 + 2 and all(run == first for run in others), runs


@pytest.mark.slow
@DALI
def test_a_run_is_the_same_from_jpegs_by_every_pipeline(sets, tmp_path):
    runs = [losses(sets["jpeg"], tmp_path / choice, "--pipeline", choice) for choice in ("torch", "dali")]
    assert runs[0] == runs[1]
    assert runs[0] != losses(sets["raw"], tmp_path / "raw")  # JPEG has changed the pixels


def test_a_larger_set_is_reduced_and_a_smaller_one_refused(sets, tmp_path, capsys):
    losses(sets["larger"], tmp_path / "run", "--steps", "1")
    assert "128x128, reduced to 112x112" in capsys.readouterr().out
    with pytest.raises(UserError, match="smaller than the recipe's stored_size 256"):
        open_dataset(sets["jpeg"], 256)


@pytest.mark.parametrize("name, words", [("folder", "folder "), ("jpeg", "prepared set"), ("raw", "raw pixels")])
def test_a_run_says_what_data_it_found(sets, tmp_path, capsys, name, words):
    losses(sets[name], tmp_path / "run", "--steps", "1")
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("data: "))
    assert words in line and "24 train, 15 val images of 3 classes" in line
    assert json.loads((tmp_path / "run" / "run.json").read_text())["data"]["description"] == line.removeprefix("data: ")


@pytest.mark.parametrize("name", ["jpeg", "raw"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_damage_in_a_prepared_set_is_named_before_the_first_step(sets, tmp_path, name, split):
    copy = shutil.copytree(sets[name], tmp_path / "copy")
    shard = copy / f"{split}-00000.tar"
    content = bytearray(shard.read_bytes())
    content[512 + 700] ^= 1  # in the first image, behind its header of 512 bytes
    shard.write_bytes(content)
    with pytest.raises(UserError, match=rf"cannot read image .*{split}-00000.tar.*crc32.*prepare --check"):
        losses(str(copy), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_set_that_memory_does_not_hold_is_checked_image_by_image(sets, tmp_path, monkeypatch):
    expected = losses(sets["jpeg"], tmp_path / "whole", "--steps", "2")
    monkeypatch.setattr(survey, "free_memory", lambda: 100)
    monkeypatch.setattr(survey, "read_through", lambda *_: pytest.fail("it was read through"))
    assert losses(sets["jpeg"], tmp_path / "run", "--steps", "2") == expected


def test_a_run_on_a_prepared_set_is_tested_on_it(sets, tmp_path, capsys):
    records = losses(sets["jpeg"], tmp_path / "run")
    assert evaluate.main([str(tmp_path / "run"), "--gpus", "cpu"]) == 0
    output = capsys.readouterr().out
    assert f"top-1 error {records[-1][2]:6.2f} %" in output.splitlines()[-1]
