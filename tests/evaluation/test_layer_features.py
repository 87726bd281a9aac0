"""`evaluate --features`: what each layer says of every picture, against the merged network's modules in turn."""

import json

import numpy as np
import pytest
import torch
from inner_cases import every
from made_runs import made_run, without_git
from safetensors import safe_open
from tiny_run import LAYERS

from alexnet_mp import evaluate
from alexnet_mp.data.dataset import open_dataset
from alexnet_mp.evaluation import layer_features
from alexnet_mp.system.errors import UserError

TINY = ["stored_size=41", "crop_size=32", "crop_positions=8", "lrn_alpha=0.01", f"layers={json.dumps(LAYERS)}"]
CLASSES = ["apple", "leaf", "sky"]


def by_hand(network, mean, split):
    """{layer: (N, ...) float64} of the centre view of a split's pictures."""
    pictures = np.stack([split.read(number) for number in range(len(split))]).astype(np.float64)
    x = torch.from_numpy((pictures - mean)[:, 4:36, 4:36].transpose(0, 3, 1, 2).copy())
    outputs = {}
    with torch.no_grad():
        for name, module in network.merge().named_children():
            outputs[name] = x = module(x)
    return outputs


@pytest.mark.run
@every("settings", [TINY, [*TINY, "lrn_crosses=true"]], ids=["towers", "across the border"])
def test_features_of_any_layer_and_split(settings, folder, tmp_path, monkeypatch, capsys):
    """Two ways to write them, values of the same bits; batches that don't divide a split; what doesn't go together is
    one line; a network that answers with NaN leaves no file."""
    without_git(monkeypatch)
    run, network, mean = made_run(tmp_path / "run", ("mini", settings), words=CLASSES)
    options = ["--data", str(folder), "--gpus", "cpu", "--workers", "0", "--batch-size", "4"]
    for layer, split in (("conv1", "val"), ("conv2", "train"), ("fc6", "val"), ("fc8", "val")):
        data = open_dataset(str(folder), 41, (split,)).splits[split]
        expected = by_hand(network, mean, data)[layer].numpy()
        paths = [tmp_path / f"{layer}{ending}" for ending in layer_features.ENDINGS]
        for path in paths:
            views = ["--views", "centre"] if layer == "conv1" else []  # as it is without
            command = [str(run), "--features", layer, "--split", split, "--out", str(path), *options, *views]
            assert evaluate.main(command) == 0
        assert f"features {expected.shape}, labels ({len(data)},)" in capsys.readouterr().out
        archive = np.load(paths[0])
        np.testing.assert_allclose(archive["features"], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
        assert archive["labels"].tolist() == data.labels.tolist() and archive["names"].tolist() == list(data.names)
        assert archive["classes"].tolist() == CLASSES
        with safe_open(paths[1], "np") as file:
            assert all(np.array_equal(file.get_tensor(name), archive[name]) for name in ("features", "labels"))
            metadata = file.metadata()
        assert metadata["layer"] == layer and metadata["split"] == split and json.loads(metadata["classes"]) == CLASSES
    dest = str(tmp_path / "new.npz")
    for words, message in (
        (["--features", "conv9", "--out", dest], "its layers are conv1, conv2, fc6, fc8"),
        (["--features", "fc6"], "go together"),
        (["--out", dest], "go together"),
        (["--split", "train"], "--split train is for --features LAYER --out FILE; tests are of val or test"),
        (["--features", "fc6", "--out", str(tmp_path / "new.pt")], "has to end with .npz or .safetensors"),
        (["--features", "fc6", "--out", str(paths[0])], "is there already"),
        (["--features", "fc6", "--out", dest, "--views", "ten"], "--features are of the centre view, and --views ten"),
        (["--features", "fc6", "--out", dest, "--split", "test"], "it has no test/ folder, only train/, val/; images"),
        (["--features", "fc6", "--out", dest, "--confusion", str(tmp_path / "x")], "without --confusion"),
        ([str(run), "--features", "fc6", "--out", dest], "of one RUN"),
    ):
        with pytest.raises(UserError) as refusal:
            evaluate.main([str(run), *words, *options])
        assert message in str(refusal.value) and "\n" not in str(refusal.value), refusal.value
    # the last batch is not; the statistics of the checkpoint have fewer dimensions
    monkeypatch.setattr(layer_features.safetensors_file, "finite", lambda array: array.ndim < 4 or len(array) == 4)
    with pytest.raises(UserError, match="conv1 gives NaN or infinity"):
        evaluate.main([str(run), "--features", "conv1", "--out", dest, *options])
    assert not list(tmp_path.glob("new*"))
