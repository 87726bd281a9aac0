"""What leaves is the same network: in plain torch, in ONNX Runtime, as a folder for the hub, as a program."""

import ast
import fcntl
import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from alexnet_mp.kernels import dispatch, lrn_pool
from caffe_made import SMALL
from inner_cases import every
from made_runs import logits_of, made_run, without_git
from PIL import Image
from safetensors.numpy import load_file, save_file
from tiny_run import LAYERS

import alexnet_mp
from alexnet_mp import convert, export
from alexnet_mp.evaluation.trained import class_words, trained
from alexnet_mp.interchange import export as exporting
from alexnet_mp.interchange import onnx_graph, torch_source
from alexnet_mp.interchange.model_card import model_card
from alexnet_mp.recipes.ablations import no_links, one_gpu
from alexnet_mp.recipes.named import PRESETS
from alexnet_mp.recipes.recipe import override
from alexnet_mp.runs.checkpoint_format import read_state
from alexnet_mp.runs.checkpoints import newest
from alexnet_mp.runs.directory import read_run
from alexnet_mp.runs.unit_means import UNIT_MEANS
from alexnet_mp.system import durable_files
from alexnet_mp.system.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread", "no_git")
ROOT = Path(__file__).parents[2]
TINY = ["stored_size=41", "crop_size=32", "crop_positions=8", "lrn_alpha=0.01", f"layers={json.dumps(LAYERS)}"]
FEW = [f"{name}.maps=6" for name in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7")]
SOURCE = ["stored_size=80", "crop_size=68", "crop_positions=9", "lrn_alpha=0.01", "spatial_alpha=0.01", *FEW]
RECIPES = {
    "two towers, ceil mode": ("mini", TINY),
    "source2012, two norms": ("source2012", [*SOURCE, "lrn_size=3", "spatial_size=4", "dropout=0.3"]),
    "desk": ("desk", FEW),
    "caffe, across the border": ("caffenet", [*SMALL, "lrn_alpha=0.01"]),
    "cifar, a norm over positions": ("cifar18", ["conv3.maps=8"]),
    "cifar, local layers": ("cifar11_local", ["local3.maps=6", "lrn_alpha=0.01"]),
    "cifar, tanh": ("cifar_tanh", ["conv3.maps=8"]),
    "one tower": one_gpu(override(PRESETS["mini"](), ["stored_size=80", "crop_size=67", "crop_positions=2", *FEW])),
    "no links": no_links(override(PRESETS["mini"](), ["stored_size=80", "crop_size=67", "crop_positions=2", *FEW])),
    "local of two towers": ("mini", [*TINY, "conv2.reads=own", "conv2.kind=local", "conv2.stride=2", "fc6.reads=own"]),
    "factors that can't pass": (
        "mini",
        [*TINY, "conv2.then=relu,dropout,lrn,max_pool", "fc6.then=dropout,tanh", "fc8.then=dropout", "dropout=0.3"],
    ),
}
NOT_INSTALLED = f"""
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
try:
    import alexnet_mp
    print("installed")
except ModuleNotFoundError:
    import torch
network = torch.hub.load({str(ROOT)!r}, "mini", source="local", classes=2)
print(network.recipe.name, sys.modules["alexnet_mp.kernels"].__file__)
import ast
sys.modules["alexnet_mp"].from_pretrained
files = [module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] == "alexnet_mp"]
nodes = [node for file in files for node in ast.parse(open(file, encoding="utf-8").read()).body]
names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
print(*{{name.partition(".")[0] for name in names}} - sys.stdlib_module_names)
"""
PROGRAMS = {"source2012, two norms": []}  # torch.export takes a second for each
if dispatch.resolve("auto", "cpu") == "cpu":
    PROGRAMS["two towers, ceil mode"] = ["--fused"]


@pytest.fixture
def no_git(monkeypatch):
    without_git(monkeypatch)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        without_git(patch)
        return made_run(tmp_path_factory.mktemp("made") / "run", RECIPES["two towers, ceil mode"])


def answers(to, out, pictures):
    """Logits of pictures, computed as a reader without our exporter would."""
    tensor = torch.from_numpy(pictures)
    with torch.no_grad():
        if to == "torch":
            spec = importlib.util.spec_from_file_location("theirs", out / "alexnet.py")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module.load()(tensor)
        if to == "onnx":
            session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
            return torch.from_numpy(session.run(None, {"pictures": pictures})[0])
        if to == "hub":
            return alexnet_mp.from_pretrained(out)(tensor)
        return torch.export.load(out).module()(tensor)


@pytest.mark.run
@every("name", RECIPES)
def test_every_format_is_the_network(name, tmp_path, capsys):
    """Against the two towers in float64, on three pictures and on one; what is said of the difference is true."""
    place, network, mean = made_run(tmp_path / "run", RECIPES[name])
    side = network.recipe.stored_size
    pictures = np.random.default_rng(3).integers(0, 256, (3, side, side, 3), np.uint8)
    expected = logits_of(network, mean, pictures)
    assert expected.std(0).min() > 1e-3  # the pictures matter
    formats, names = {"torch": [], "onnx": [], "hub": []}, ["run"]
    if name in PROGRAMS:
        formats["torch.export"] = PROGRAMS[name]
    for to, more in formats.items():
        out = tmp_path / f"{to}{exporting.ENDINGS.get(to, '')}"
        assert export.main([str(place), "--to", to, str(out), "--gpus", "cpu", *more]) == 0
        output = capsys.readouterr().out
        assert "on 10 pictures its logits differ from ours by" in output and "; 0 have another" in output
        for part in (pictures, pictures[:1]):
            torch.testing.assert_close(
                answers(to, out, part).double(), expected[: len(part)], rtol=0, atol=2e-5 * expected.abs().max().item()
            )
        if to == "torch.export":
            with zipfile.ZipFile(out) as archive:  # it names nobody's folders
                assert not any(str(ROOT).encode() in archive.read(name) for name in archive.namelist())
        names.append(out.name)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_a_folder_for_the_hub_comes_back_as_a_run(tmp_path, capsys):
    """With its recipe, words and bits, from a cache of links; a config of another kind leaves it to --recipe."""
    place, _, _ = made_run(tmp_path / "run", RECIPES["two towers, ceil mode"], words=["cat", "dog", "sky"])
    export.main([str(place), "--to", "hub", str(tmp_path / "hub"), "--gpus", "cpu"])
    assert alexnet_mp.from_pretrained(tmp_path / "hub").class_names == ("cat", "dog", "sky")
    cache = tmp_path / "cache"
    cache.mkdir()
    for number, path in enumerate((tmp_path / "hub").iterdir()):
        (tmp_path / f"blob{number}").write_bytes(path.read_bytes())
        (cache / path.name).symlink_to(tmp_path / f"blob{number}")
    for number, source in enumerate((cache, cache / "model.safetensors")):
        out = tmp_path / f"out{number}"
        assert convert.main([str(source), str(out)]) == 0
        own, expected = trained(out, True), trained(place, True)
        assert read_run(out)["command"] == f"python -m alexnet_mp.convert {source} {out}"
        assert own.recipe == expected.recipe and class_words(out, own.classes) == ["cat", "dog", "sky"]
        assert all(torch.equal(own.weights[name], tensor) for name, tensor in expected.weights.items())
        assert np.array_equal(own.statistics.mean, expected.statistics.mean)
    capsys.readouterr()
    other = ["--recipe", "paper", *(word for setting in TINY for word in ("--set", setting))]
    assert convert.main([str(tmp_path / "hub"), str(tmp_path / "other"), *other]) == 0
    assert "recipe paper, as --recipe says; " in (output := capsys.readouterr().out)
    assert f"{tmp_path}/hub/config.json says mini, and would be taken without --recipe\n" in output
    own = trained(tmp_path / "other")
    assert own.recipe.name == "paper" and class_words(tmp_path / "other", own.classes) == ["cat", "dog", "sky"]
    with pytest.raises(UserError, match=r"run: it is a run, .* -m alexnet_mp.export \S+run --to hub FOLDER makes one$"):
        alexnet_mp.from_pretrained(place)
    for device in ("bogus", "cuda:99", torch.device("cuda", 99), None, "cpu:x", "meta"):
        with pytest.raises(UserError, match=r"^device '.*': there is none of this name; cpu.* would work$"):
            alexnet_mp.from_pretrained(tmp_path / "hub", device)
    (tmp_path / "hub" / "config.json").write_text('{"architectures": ["AlexNet"]}')
    with pytest.raises(UserError, match="not of format 'alexnet_mp 1'; --recipe NAME would say of which network"):
        convert.main([str(tmp_path / "hub"), str(tmp_path / "a")])


@pytest.mark.process
def test_what_is_written_can_be_read(run, tmp_path, monkeypatch, capsys):
    """The file of torch is short and of no import of ours; the graph has real LRN nodes, names and classes; the folder
    for the hub tells what it is, how to use it, goes through torch.hub, and an own one is written anew."""
    place, _, _ = run
    for to in ("torch", "hub", "hub", "torch"):
        export.main([str(place), "--to", to, str(tmp_path / to) + "/", "--gpus", "cpu"])
    text = (tmp_path / "torch" / "alexnet.py").read_text()
    assert {path.name for path in (tmp_path / "torch").iterdir()} == {"alexnet.py", "alexnet.safetensors"}
    code = [line for line in text.splitlines() if line.strip()]
    assert len(code) <= 45 and max(map(len, code)) <= 120
    imports = [node for node in ast.parse(text).body if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {getattr(node, "module", None) or node.names[0].name for node in imports}
    assert modules == {"pathlib", "torch", "torch.nn.functional", "safetensors.torch"}
    weight = load_file(tmp_path / "torch" / "alexnet.safetensors")["fc8.weight"]
    assert np.array_equal(2 * weight, load_file(tmp_path / "hub" / "model.safetensors")["fc8.weight"])
    export.main([str(place), "--to", "onnx", str(tmp_path / "a.onnx"), "--gpus", "cpu"])
    model = onnx.load(tmp_path / "a.onnx")
    (norm,) = [node for node in model.graph.node if node.op_type == "LRN"]
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in norm.attribute}
    assert attributes == {"alpha": pytest.approx(0.05), "beta": 0.75, "bias": 2.0, "size": 5}
    assert model.opset_import[0].version == 20 and model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    shapes = {
        value.name: [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
        for value in model.graph.value_info
    }
    other = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "a.onnx"), strict_mode=True)
    assert shapes["image"] == ["N", 3, 32, 32] and len(shapes) == 10 and len(other.graph.value_info) > 10
    metadata = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    # The steps of a network from elsewhere were not counted; of one that was trained here they are told.
    assert "step" not in metadata and "recipe mini, 3 classes.\n" in text
    trained_here = shutil.copytree(place, tmp_path / "trained here")
    described = json.loads((trained_here / "run.json").read_text())
    described.pop("converted")
    (trained_here / "run.json").write_text(json.dumps(described))
    export.main([str(trained_here), "--to", "torch", str(tmp_path / "here"), "--gpus", "cpu"])
    assert "recipe mini, 3 classes, step 0.\n" in (tmp_path / "here" / "alexnet.py").read_text()
    assert metadata["classes"] == ["class 0", "class 1", "class 2"]
    assert metadata["input"] == "(N, 41, 41, 3) uint8, RGB: the shorter side rescaled to 41, the central square kept"
    assert "(N, 41, 41, 3) uint8, RGB: shorter side 41, central square" in text
    network = torch.hub.load(str(ROOT), "from_pretrained", str(tmp_path / "hub"), source="local")
    assert network.classes == ("class 0", "class 1", "class 2") and not network.training
    with pytest.raises(ValueError, match=r"torch.uint8 \(N, 41, 41, 3\)"):
        network(torch.zeros(1, 3, 41, 41))
    with pytest.raises(ValueError, match=r"are a ndarray; this network takes a tensor, torch.uint8"):
        network(np.zeros((1, 41, 41, 3), np.uint8))
    process = subprocess.run([sys.executable, "-c", NOT_INSTALLED], cwd=tmp_path, capture_output=True, text=True)
    first_line, packages = process.stdout.splitlines()
    assert first_line.split() == ["mini", str(ROOT / "kernels" / "__init__.py")], process.stderr
    dependencies = runpy.run_path(str(ROOT / "hubconf.py"))["dependencies"]
    assert {"torch", "mpmath"} < set(packages.split()) <= {"alexnet_mp", *dependencies}, packages
    card = (tmp_path / "hub" / "README.md").read_text()
    for words in (
        "recipe mini, 3 classes",
        "`class 1`",
        "| command | `made` |",
        "lrn_alpha=0.01",
        "seed",
        "Not tested",
    ):
        assert words in card
    assert "| seed |" not in card  # nobody knows that of a converted network
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)).save(tmp_path / "photograph.jpg")
    monkeypatch.chdir(tmp_path)
    docs = (ROOT / "docs" / "interchange.md").read_text()
    for text in (card, docs):  # as it is written there
        exec(text.split("```python\n")[1].split("```")[0].replace("FOLDER", "hub"), {})
    card = model_card(read_run(place) | {"converted": None}, read_state(newest(place)), [], ["cat", "dog", "sky"])
    assert "| seed | `0` |" in card
    assert re.fullmatch(r"(class \d)\n\1\n", capsys.readouterr().out[-16:])


def spoilt(change):
    """A change of config.json as a function of its fields."""

    def spoil(folder, patch):
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return spoil


def with_tensors(name, **changes):
    def spoil(folder, patch):
        tensors = {key.replace(".", "_"): value for key, value in load_file(folder / name).items()}
        tensors = {
            key.replace("_", ".", 1) if "_" in key else key: value for key, value in {**tensors, **changes}.items()
        }
        save_file({key: value for key, value in tensors.items() if value is not None}, folder / name)

    return spoil


def absurd(**fields):
    return spoilt(lambda config: config["recipe"].update(fields))


def layer(number, **fields):
    return spoilt(lambda config: config["recipe"]["layers"][number].update(fields))


def replaced(name, content):
    return lambda folder, patch: (folder / name).write_bytes(content)


@every(
    "spoil, words",
    [
        (lambda folder, patch: (folder / "config.json").unlink(), "No such file"),
        (replaced("config.json", b'{"architectures": ["BertModel"]}'), "is not of format 'alexnet_mp 1'"),
        (replaced("config.json", b"[" * 100_000), ""),
        (replaced("config.json", b"\x80\x04."), "a pickle is never loaded"),
        (replaced("model.safetensors", b"\x80\x04K\x01." * 9), "a pickle is never loaded"),
        (replaced("model.safetensors", (1 << 60).to_bytes(8, "little")), "its header would have"),
        (replaced("statistics.safetensors", b""), "0 bytes"),
        (spoilt(lambda config: config.pop("recipe")), "recipe is missing"),
        (spoilt(lambda config: config["recipe"].update(layers=[1])), "recipe field layers"),
        (spoilt(lambda config: config["recipe"].update(layers="os")), "recipe field layers"),
        (spoilt(lambda config: config.update(classes=["a"])), "no list of 2 to"),
        (spoilt(lambda config: config.update(classes=["a", 2, "c"])), "no list of 2 to"),
        (spoilt(lambda config: config.update(classes=["a", "b"])), "but recipe mini has"),
        (absurd(stored_size=10**4, crop_size=10**4, crop_positions=1), "would have"),
        (absurd(stored_size=10**4), "the mean image is"),
        (absurd(lrn_size=10**9), "lrn_size is 1000000000: it must be less than 1024"),
        (layer(0, pad=10**8), "conv1 would have"),
        (layer(2, maps=2**31 - 1), "but recipe mini has"),
        (layer(3, reads="own"), "reads is 'own'"),
        (
            lambda folder, patch: (layer(2, kind="conv")(folder, patch), layer(3, kind="conv")(folder, patch)),
            "no logits",
        ),
        (with_tensors("model.safetensors", fc6_bias=None), "fc6.bias is missing"),
        (with_tensors("model.safetensors", fc9_bias=np.zeros(3, np.float32)), "fc9.bias is no tensor"),
        (with_tensors("model.safetensors", fc6_bias=np.zeros((4, 4), np.float32)), "fc6.bias is (4, 4)"),
        (with_tensors("model.safetensors", fc6_bias=np.full(16, np.nan, np.float32)), "not finite"),
        (with_tensors("statistics.safetensors", mean=np.full((41, 41, 3), np.inf)), "no grey levels"),
        (with_tensors("statistics.safetensors", mean=np.zeros((41, 41), np.float64)), "the mean image is"),
    ],
)
def test_a_folder_that_does_not_fit_is_one_line(run, spoil, words, tmp_path, monkeypatch):
    folder = tmp_path / "hub"
    export.main([str(run[0]), "--to", "hub", str(folder), "--gpus", "cpu"])
    cache = tmp_path / "cache"
    cache.mkdir()
    for path in folder.iterdir():  # as the hub's cache has it
        (cache / path.name).symlink_to(path)
    alexnet_mp.from_pretrained(cache)
    spoil(folder, monkeypatch)
    with pytest.raises(UserError) as refusal:
        alexnet_mp.from_pretrained(folder)
    text = str(refusal.value)
    assert text.startswith(f"{folder}: ") and words in text and "\n" not in text and len(text) < 700, text


def missing(*names):
    def spoil(place, patch):
        for name in names:
            patch.setitem(sys.modules, name, None)

    return spoil


def interrupted(place, patch):
    def answers(*_):
        raise KeyboardInterrupt

    patch.setattr(onnx_graph, "answers", answers)
    patch.setattr(torch_source, "answers", answers)


def other_weights(place, patch):
    """A translation that forgets what a test halves."""
    steps = exporting.plain_steps

    def forgetful(recipe, weights, classes):
        return steps(override(recipe, ["dropout=0"]), weights, classes)

    patch.setattr(exporting, "plain_steps", forgetful)


def full_disk(place, patch):
    original = durable_files.write

    def write(path, parts):
        original(path, [b"".join(parts)[:100]])
        raise OSError(28, "No space left on device")

    patch.setattr(durable_files, "write", write)


def being_written(place, patch):
    lock = open(place / "a.onnx.lock", "ab")
    fcntl.flock(lock, fcntl.LOCK_EX)
    patch.setattr(exporting, "lock_of_a_test", lock, raising=False)  # open until the test ends


def uncompiled(why):
    """No kernels for CPUs; or such that can't be loaded."""

    def compiled():
        if why is not None:
            raise RuntimeError(why)

    def spoil(place, patch):
        patch.setattr(dispatch, "compiled", compiled)
        patch.setattr(dispatch, "built", lambda: () if compiled() is None else ("cpu",))

    return spoil


def there(name, content=b"x"):
    def make(place, patch):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_bytes(content)

    return make


def large_weights(place, patch):
    def load(run, *_, __load=exporting.load_run):
        network, training = __load(run, "cpu")
        state = network.merged_state()
        state["fc6.weight"][0, 0] = 1e5
        network.load_merged(state)
        return network, training

    patch.setattr(exporting, "load_run", load)


@every(
    "to, out, spoil, words",
    [
        ("onnx", "a.onnx", missing("onnx"), "needs the packages onnx and onnxruntime"),
        ("onnx", "a.onnx", missing("onnxruntime"), "pip install 'alexnet_mp[export]'"),
        ("hub --push me/it", "a", missing("huggingface_hub"), "pip install 'alexnet_mp[hub]'"),
        ("torch --push me/it", "a", None, "--push is for --to hub"),
        ("onnx --half", "a.onnx", None, "--half is for --to hub"),
        ("hub --half", "a", large_weights, "--half: fc6.weight has values beyond float16's range"),
        ("hub --synsets no_file", "a", None, "--synsets no_file: No such file"),
        ("onnx --fused", "a.onnx", None, "--fused is for --to torch.export, not for --to onnx"),
        ("torch.export --fused", "a.pt2", uncompiled(None), "--fused: no compiled kernels: a C++ compiler and"),
        ("torch.export --fused", "a.pt2", uncompiled("of another torch"), "--fused: of another torch; without --fused"),
        ("onnx", "a.pb", None, "whose name ends with .onnx"),
        ("torch.export", "a", None, "whose name ends with .pt2"),
        ("onnx", "", None, "write the name of a file"),
        ("onnx", "a.onnx", there("a.onnx"), "it is there already"),
        ("onnx", "a.onnx", being_written, "a.onnx: another process is writing it"),
        ("torch", "a", there("a"), "and is no folder"),
        ("torch", "a", there("a/thesis.txt"), "not an export --to torch"),
        ("hub", "a", there("a/config.json"), "not an export --to hub"),
        ("torch", "a/b", None, "is not a directory that can be written to"),
        ("torch", "RUN/checkpoints/a", None, "choose another place"),
        ("torch", "RUN", None, "not an export --to torch"),
        ("onnx", "a.onnx", other_weights, "is not the same network"),
        ("torch", "a", other_weights, "is not the same network"),
        ("onnx", "a.onnx", interrupted, None),
        ("torch", "a", interrupted, None),
        ("onnx", "a.onnx", full_disk, "cannot write"),
        ("hub", "a", full_disk, "cannot write"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(run, to, out, spoil, words, tmp_path, monkeypatch):
    (spoil or (lambda *_: None))(tmp_path, monkeypatch)
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    place = str(run[0]) + out[3:] if out.startswith("RUN") else str(tmp_path / out) if out else ""
    with pytest.raises(UserError if words else KeyboardInterrupt) as error:
        export.main([str(run[0]), place, "--to", *to.split(), "--gpus", "cpu"])
    assert words is None or words in str(error.value) and "\n" not in str(error.value), error.value
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_half_of_the_bytes(run, tmp_path):
    """Of each weight its float16; the card says that it was tested before."""
    place, network, mean = run
    classes = trained(place).classes
    half, full = tmp_path / "half", tmp_path / "full"
    export.main([str(place), "--to", "hub", str(full), "--gpus", "cpu"])
    export.main([str(place), "--to", "hub", str(half), "--gpus", "cpu", "--half"])
    full_weights, half_weights = load_file(full / "model.safetensors"), load_file(half / "model.safetensors")
    assert {tensor.dtype for tensor in half_weights.values()} == {np.dtype(np.float16)}
    assert any((full_weights[name] != tensor).any() for name, tensor in half_weights.items())
    assert all((full_weights[name].astype(np.float16) == tensor).all() for name, tensor in half_weights.items())
    words = "before the weights were rounded to float16"
    assert words in (half / "README.md").read_text() and words not in (full / "README.md").read_text()
    model = alexnet_mp.from_pretrained(half)
    assert list(model.classes) == classes
    state = model.network.state_dict()
    assert all((state[name].numpy() == tensor.astype(np.float32)).all() for name, tensor in half_weights.items())
    convert.main([str(half), str(tmp_path / "again")])
    copy_weights = trained(tmp_path / "again", with_weights=True).weights
    assert all((copy_weights[name].numpy() == tensor.astype(np.float32)).all() for name, tensor in half_weights.items())


def test_networks_that_no_format_holds_and_the_hub(run, tmp_path, monkeypatch, capsys):
    """An even window in ONNX, answers that are NaN; and what the hub is asked for, and refuses."""
    place, _, _ = made_run(tmp_path / "even", ("mini", [*TINY, "lrn_size=4"]))
    with pytest.raises(UserError, match="lrn_size is 4: ONNX normalises over an odd"):
        export.main([str(place), "--to", "onnx", str(tmp_path / "a.onnx"), "--gpus", "cpu"])
    export.main([str(place), "--to", "torch", str(tmp_path / "even.torch"), "--gpus", "cpu"])
    export.main([str(run[0]), "--to", "torch", str(tmp_path / "plain"), "--gpus", "cpu"])
    for options in ([], ["--recipe", "mini"]):
        with pytest.raises(UserError, match="plain: export --to torch wrote it, .* what comes back is --to hub$"):
            convert.main([str(tmp_path / "plain"), str(tmp_path / "b"), *options])
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="no compiled kernels: a C"):
        for module in (dispatch, lrn_pool):
            patch.setattr(module, "compiled", lambda: None)
        maps = torch.ones(1, 8, 5, 5)  # as a program asks that was made with --fused
        torch.ops.alexnet_mp.lrn_pool(maps, None, "lrn", 5, 1e-4, 0.75, 2.0, "none", 3, 2, "first", "cpu")
    calls = []

    class Hub:
        def create_repo(self, name, exist_ok):
            if name == "nobody/here":
                raise RuntimeError("401 Client Error.\nRepository Not Found")
            calls.append((name, exist_ok))

        def upload_folder(self, repo_id, folder_path, delete_patterns):
            assert delete_patterns == UNIT_MEANS  # of an earlier push
            calls.append((repo_id, sorted(os.listdir(folder_path))))
            return "https://example.org/me/it"

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(HfApi=Hub))
    command = [str(run[0]), "--to", "hub", str(tmp_path / "hub"), "--gpus", "cpu", "--push"]
    assert export.main([*command, "me/it"]) == 0
    assert "pushed: https://example.org/me/it" in capsys.readouterr().out
    assert calls == [
        ("me/it", True),
        ("me/it", ["README.md", "config.json", "model.safetensors", "statistics.safetensors"]),
    ]
    with pytest.raises(UserError, match="--push nobody/here: 401 Client Error. Repository Not Found"):
        export.main([*command, "nobody/here"])
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # which nothing but --push needs
    alexnet_mp.from_pretrained(tmp_path / "hub")
