"""Arrays named by layer, safetensors from anywhere, mean images and lists of classes: what is read, what is refused."""

import json
import os
import shutil
import zipfile

import numpy as np
import pytest
import torch
from caffe_made import binaryproto
from inner_cases import every
from safetensors.torch import save_file
from tiny_run import LAYERS

from alexnet_mp import convert
from alexnet_mp.evaluation.trained import load_run
from alexnet_mp.interchange import arrays, class_list, mean_image
from alexnet_mp.network.network import TwoTowerAlexNet
from alexnet_mp.recipes.named import PRESETS
from alexnet_mp.recipes.recipe import override
from alexnet_mp.runs.checkpoints import newest_weights
from alexnet_mp.system.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread", "quick")
LOCAL = {**LAYERS[1], "name": "local2", "kind": "local", "maps": 2, "reads": "own", "then": ["relu"]}
SETTINGS = (
    "stored_size=40",
    "crop_size=32",
    "crop_positions=8",
    f"layers={json.dumps([LAYERS[0], LAYERS[1], LOCAL, LAYERS[2], {**LAYERS[2], 'name': 'fc7'}, LAYERS[3]])}",
)
SET = [word for setting in SETTINGS for word in ("--set", setting)]
PATCH = "--recipe", "mini", "--mean", "120,110,100.5"


def network(dtype=torch.float32):
    return TwoTowerAlexNet(override(PRESETS["mini"](), SETTINGS), ("cpu", "cpu"), 4, "reference").to(dtype)


def arrays_of(of_2012=False):
    """{name: array} of a network in the layout of cuda-convnet, written down by hand: row by row, output by output."""
    model, by_name = network(), {}
    for tower, letter in zip(model.towers, "ab"):
        for name, layer in tower.named_children():
            weights = layer.weight.detach().numpy()
            stem = {"fc6": "fc2048", "fc7": "fc2048b", "fc8": "fc1000"}.get(name, name) if of_2012 else name
            stem += "" if name == "fc8" else letter
            if name == "local2":  # (maps, H, W, C, k, k): position after position
                maps, height, width, channels, k, _ = weights.shape
                rows = [
                    weights[:, y, x, c, i, j]
                    for y in range(height)
                    for x in range(width)
                    for c in range(channels)
                    for i in range(k)
                    for j in range(k)
                ]
            elif weights.ndim == 4:
                _, channels, k, _ = weights.shape
                rows = [weights[:, c, i, j] for c in range(channels) for i in range(k) for j in range(k)]
            else:
                rows = [weights[:, number] for number in range(weights.shape[1])]
            matrix = np.stack(rows)
            if of_2012 and name in ("conv2", "fc7"):
                middle = len(matrix) // 2
                by_name |= {f"{stem}.weights.0": matrix[:middle], f"{stem}.weights.1": matrix[middle:]}
            else:
                by_name[f"{stem}.weights"] = matrix
            by_name[f"{stem}.biases"] = layer.bias.detach().numpy().reshape(1, -1)
    return by_name


def written(place, by_name, kind):
    """A folder or an archive of arrays. Returns its path."""
    if kind == "npz":
        np.savez_compressed(place / "net.npz", **by_name)
        return place / "net.npz"
    (place / "net").mkdir()
    for number, (name, array) in enumerate(by_name.items()):
        if kind == "txt" or kind == "both" and number % 2:
            np.savetxt(place / "net" / f"{name}.txt", array, fmt="%.9g")
        else:
            np.save(place / "net" / f"{name}.npy", np.asfortranarray(array) if number % 3 else array.astype(">f4"))
    (place / "net" / "README").write_text("what else lies there")
    return place / "net"


def same_weights(run):
    expected = network().merged_state()
    _, weights = newest_weights(run)
    assert set(weights) == set(expected)
    for name in expected:
        assert torch.equal(weights[name], expected[name]), name


@every("kind", ["npy", "txt", "both", "npz"])
@every("of_2012", [False, True])
def test_arrays_by_layer_are_the_network(of_2012, kind, tmp_path, capsys):
    """Bit by bit, of convolutions, local layers and products, in one matrix or one for each input."""
    path = written(tmp_path, arrays_of(of_2012), kind)
    convert.main([str(path), str(tmp_path / "out"), *PATCH, *SET])
    same_weights(tmp_path / "out")
    model, training = load_run(tmp_path / "out", "cpu", "reference")
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(images, images), network().eval()(images, images))
    assert training.classes == ["class 0", "class 1", "class 2", "class 3"]
    assert training.statistics.mean[7, 9].tolist() == [120, 110, 100.5] and not training.statistics.eigenvalues.any()


def in_archive(change):
    """A change of the entries of an archive: (name, bytes, compression)."""

    def spoil(place, path):
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(place / "new.npz", "w") as new:
            for name in old.namelist():
                content, compression = change(name, old.read(name))
                new.writestr(name, content, compression)
        (place / "new.npz").rename(path)

    return spoil


def npy(dtype, shape, fortran=False):
    """What a .npy file begins with."""
    text = f"{{'descr': '{dtype}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@every(
    "kind, name, content, words",
    [
        ("npy", "conv1a.weights.npy", None, "conv1a.weights is missing"),
        ("npy", "fc8.biases.npy", None, "fc8.biases is missing"),
        ("npy", "conv9a.weights.npy", b"", "conv9a.weights is no array of recipe mini"),
        ("npy", "conv1a.weights.txt", b"", "conv1a.weights is there twice"),
        ("npy", "fc6a.biases.npy", b"", "fc6a.biases: it is no array"),
        ("npy", "fc6a.biases.npy", npy("|O", "(8,)"), "values are |O"),
        ("npy", "fc6a.biases.npy", npy("<f4", "(9,)"), "it is (9,), and"),
        ("npy", "fc6a.biases.npy", npy("<f4", "(8,)"), "it has 68 bytes"),
        ("npy", "fc6a.biases.npy", npy("<f4", "__import__('os').abort()"), "its header is"),
        ("npy", "fc6a.weights.npy", npy("<f8", "(999999999999999999, 9)", True),
         "it is (999999999999999999, 9), and"),
        ("txt", "fc6a.biases.txt", b"1 2 3", "fc6a.biases: it has 3 numbers, and 8"),
        ("txt", "fc6a.biases.txt", b"1 2 3 4\n5 6 7 eight", "fc6a.biases: it holds something that is no number"),
        ("txt", "fc6a.biases.txt", b"1 2 3 4\n5 6 7 nan", "fc6a.biases: it has values that are not finite"),
        ("txt", "fc6a.biases.txt", b"1" * 9999, "fc6a.biases: it is longer than 8 numbers"),
        ("txt", "conv1a.weights.txt", b"1 2 3\n1 2\n", "conv1a.weights: line 2 has 2 numbers, and 3"),
        ("txt", "conv1a.weights.txt", b"1 2 3\n", "conv1a.weights: it has 1 lines, and 75"),
        ("txt", "conv1a.weights.txt", b"1 2 3\n" * 76, "conv1a.weights: it has more than 75 lines"),
        ("txt", "conv1a.weights.txt", b"1" * 9999, "conv1a.weights: a line has more than"),
        ("npz", None, in_archive(lambda name, content: (content + b"x", zipfile.ZIP_STORED)), "bytes, its header says"),
        ("npz", None, in_archive(lambda name, content: (content, zipfile.ZIP_LZMA)), "compressed in another way"),
        ("npz", None, lambda place, path: path.write_bytes(path.read_bytes()[:-9]), "net.npz: "),
        ("npz", None, lambda place, path: path.write_bytes(b"PK"), "net.npz: "),
    ],
)  # fmt: skip
def test_wrong_arrays_are_refused_by_name(kind, name, content, words, tmp_path):
    path = written(tmp_path, arrays_of(), kind)
    if name is None:
        content(tmp_path, path)
    elif content is None:
        (path / name).unlink()
    else:
        (path / name).write_bytes(content)
    refused(tmp_path, path, words)


def refused(place, path, words, *options):
    with pytest.raises(UserError) as error:
        convert.main([str(path), str(place / "out"), *PATCH, *SET, *options])
    assert words in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 800, error.value
    assert not (place / "out").exists() and not list(place.glob("out*"))


# --- safetensors


def test_merged_tensors_from_anywhere(tmp_path):
    """A file, and a folder of several; four dtypes; links, as in a cache of models; statistics beside them."""
    state = network().merged_state()
    names = list(state)
    save_file(state, tmp_path / "all.safetensors")
    folder = tmp_path / "folder"
    folder.mkdir()
    save_file({name: state[name].double() for name in names[:5]}, folder / "1.safetensors")
    save_file({name: state[name] for name in names[5:]}, folder / "2.safetensors")
    (tmp_path / "link.safetensors").symlink_to("all.safetensors")
    for number, source in enumerate(("all.safetensors", "folder", "link.safetensors")):
        convert.main([str(tmp_path / source), str(tmp_path / f"out{number}"), *PATCH, *SET])
        same_weights(tmp_path / f"out{number}")
    shutil.copy(tmp_path / "out0" / "statistics.safetensors", folder)  # its own mean image, without --mean
    convert.main([str(folder), str(tmp_path / "out"), "--recipe", "mini", *SET])
    same_weights(tmp_path / "out")
    cache = tmp_path / "cache"
    cache.mkdir()
    for number, path in enumerate(list(folder.iterdir())):  # links to what has no ending
        (cache / path.name).symlink_to(path.rename(tmp_path / f"blob{number}"))
    convert.main([str(cache), str(tmp_path / "out3"), "--recipe", "mini", *SET])
    same_weights(tmp_path / "out3")
    (cache / "all.safetensors").symlink_to((tmp_path / "all.safetensors").rename(tmp_path / "blob"))
    convert.main([str(cache / "all.safetensors"), str(tmp_path / "out4"), "--recipe", "mini", *SET])
    same_weights(tmp_path / "out4")
    for dtype in (torch.bfloat16, torch.float16):
        half_state = {name: tensor.to(dtype) for name, tensor in state.items()}
        save_file(half_state, tmp_path / f"{dtype}.safetensors")
        convert.main([str(tmp_path / f"{dtype}.safetensors"), str(tmp_path / str(dtype)), *PATCH, *SET])
        _, weights = newest_weights(tmp_path / str(dtype))
        assert all(torch.equal(weights[name], half_state[name].float()) for name in names)


@every(
    "change, words",
    [
        (lambda state: state.pop("conv2.bias"), "conv2.bias is missing"),
        (lambda state: state.pop("fc8.bias"), "fc8.bias is missing"),
        (lambda state: state.update({"conv7.weight": torch.zeros(2)}), "conv7.weight is no tensor of recipe mini"),
        (lambda state: state.update({"fc6.weight": torch.zeros(2, 3)}), "fc6.weight is (2, 3), but recipe mini has"),
        (lambda state: state.update({"fc8.bias": torch.zeros(2, 3)}), "fc8.bias is (2, 3)"),
        (lambda state: state.update({"fc8.bias": torch.zeros(1)}), "its last layer has 1 outputs"),
        (lambda state: state["conv1.bias"].fill_(float("nan")), "conv1.bias has values that are not finite"),
        (lambda state: state.update({"conv1.bias": torch.zeros(6, dtype=torch.int32)}), "dtype of 'conv1.bias' is"),
        (None, "conv1.bias' is in 2.safetensors and in 1.safetensors"),
        ("recipe", "--recipe NAME"),
        ("mean", "no mean image beside the weights; --mean takes"),
        ("nothing", "nothing in it that is known"),
        ("gone", "no such file"),
        ("ending", "told by their names' endings"),
        ("empty", "net/1.safetensors: 0 bytes are"),
        ("pipe", "net.npz: it is not a regular file"),
    ],
)
def test_wrong_tensors_are_refused_by_name(change, words, tmp_path):
    state, folder = network().merged_state(), tmp_path / "net"
    folder.mkdir()
    if callable(change):
        change(state)
    save_file(state, folder / "1.safetensors")
    if change is None:
        save_file(state, folder / "2.safetensors")
    if change == "nothing":
        (folder / "1.safetensors").unlink()
    if change == "empty":
        folder = folder / "1.safetensors"
        folder.write_bytes(b"")
    if change == "pipe":
        folder = tmp_path / "net.npz"
        os.mkfifo(folder)
    if change == "ending":
        folder = (folder / "1.safetensors").rename(tmp_path / "net.pth")
    if change in ("recipe", "mean"):
        options = {"recipe": ["--mean", "1,2,3"], "mean": ["--recipe", "mini"]}[change]
        with pytest.raises(UserError, match=words):
            convert.main([str(folder), str(tmp_path / "out"), *options, *SET])
        return
    refused(tmp_path, tmp_path / "gone" if change == "gone" else folder, words)


# --- mean image and classes


def test_mean_images(tmp_path):
    image = np.random.default_rng(0).uniform(0, 255, (40, 40, 3)).astype(np.float32)
    (tmp_path / "mean.binaryproto").write_bytes(binaryproto(image))
    np.save(tmp_path / "mean.npy", image)
    for name in ("mean.binaryproto", "mean.npy"):
        assert np.array_equal(mean_image.read_mean(tmp_path / name, 40).mean, image.astype(np.float64))
    assert mean_image.read_mean("1,2.5,3", 2).mean.tolist() == [[[1, 2.5, 3]] * 2] * 2
    np.save(tmp_path / "dark.npy", image - 255)
    np.save(tmp_path / "flat.npy", image[0])
    (tmp_path / "blob.binaryproto").write_bytes(binaryproto(image)[:-1])
    for name, words in (
        ("mean.npy", "mean is (40, 40, 3), and (41, 41, 3) is needed"),
        ("dark.npy", "no grey levels"),
        ("flat.npy", "mean is (40, 3)"),
        ("blob.binaryproto", "ends early"),
        ("1,2", "three grey levels"),
        ("1,2,300", "no grey levels"),
        ("mean.txt", "three grey levels"),
    ):
        with pytest.raises((UserError, ValueError)) as refusal:
            mean_image.read_mean(tmp_path / name if "." in name else name, 41 if name == "mean.npy" else 40)
        assert words in str(refusal.value), name


def test_lists_of_classes(tmp_path):
    path = tmp_path / "classes.txt"
    for text, classes, words in (
        ("n01440764 tench\nn01443537\tgoldfish\nn02\n", ["n01440764 tench", "n01443537 goldfish", "n02"], None),
        ("n01440764 tench, Tinca\r\nn01443537\tgoldfish\n", ["n01440764", "n01443537"], ["tench, Tinca", "goldfish"]),
        ("n01440764\nn01443537", ["n01440764", "n01443537"], ["n01440764", "n01443537"]),
        ("\ufeffcat\nhound dog\n\n", ["cat", "hound dog"], ["cat", "hound dog"]),
    ):
        path.write_bytes(text.encode())
        assert class_list.read_classes(path) == (classes, words or classes)  # no wnid in one line: all are names
    for content, words in (
        (b"a\n\nb", "line 2 is empty"),
        (b"a\nb\na", "two classes have one name"),
        (b"a\n\x1b[31m", "line 2 is no name"),
        (b"a\n\xff", "can't decode"),
        (b"a\n" + b"b" * 2000, "line 2 is no name"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=words):
            class_list.read_classes(path)
    assert class_list.numbered(11)[10] == "class 10" and class_list.numbered(1000)[7] == "class 007"


def test_an_archive_that_lies_allocates_nothing(tmp_path):
    """A header of exabytes, and 64 MB of zeros in 64 kB: both refused by what the recipe needs."""
    with zipfile.ZipFile(tmp_path / "net.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", npy("<f8", "(1152921504606846, 64)"))
        with archive.open("y.npy", "w", force_zip64=True) as entry:
            entry.write(npy("<f8", "(524288, 16)"))
            for _ in range(64):
                entry.write(bytes(1 << 20))
    reader = arrays.Arrays(tmp_path / "net.npz")
    for name in "xy":
        with pytest.raises(ValueError, match=r"and \(8, 8\) is needed"):
            reader.read(name, (8, 8))
    reader.close()
