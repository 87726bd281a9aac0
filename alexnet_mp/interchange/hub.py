"""A folder as the Hugging Face hub has them: weights, a config, the mean image and a model card; read without a
network and without trust."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load

from ..data.pixel_statistics import MOST_BYTES, STATISTICS, Statistics
from ..network.network import MergedAlexNet
from ..recipes import shapes
from ..recipes.recipe import Recipe, from_dict, to_dict
from ..runs import safetensors_file
from ..runs.directory import RUN
from ..runs.unit_means import UNIT_MEANS, UnitMeans
from ..system import durable_files
from ..system.command_line import typed
from ..system.devices import check_kernels, named
from ..system.errors import UserError, need
from . import merged_tensors
from .damage import about
from .picture_network import PictureNetwork, told_input
from .plain_steps import refuse_last_layer

CONFIG, MODEL, CARD = "config.json", "model.safetensors", "README.md"
FORMAT = "alexnet_mp 1"
MOST_CONFIG = 16 << 20  # bytes
MOST_CLASSES = 1 << 17
MOST_VALUES = 1 << 27  # a layer's of one picture
DAMAGE = (*merged_tensors.DAMAGE, LookupError, TypeError, AttributeError)


def write(
    folder: Path,
    recipe: Recipe,
    weights: Mapping[str, np.ndarray],
    statistics: Statistics,
    classes: Sequence[str],
    words: Sequence[str],
    card: str,
    half: bool = False,
    means: UnitMeans | None = None,
) -> None:
    """Fill an empty folder. weights: merged, float32; words: the classes' names as a person knows them; card: the text
    of README.md; half: the weights are written as float16; means: of the network as it is written. Raises OSError."""
    config = {
        "format": FORMAT,
        "input": told_input(recipe),
        "recipe": to_dict(recipe),
        "classes": list(classes),
        "class_names": list(words),
    }
    letter, dtype = ("F16", np.float16) if half else ("F32", np.float32)
    layout = {name: (letter, tensor.shape) for name, tensor in weights.items()}
    arrays = {name: np.ascontiguousarray(tensor, dtype) for name, tensor in weights.items()}
    durable_files.write(folder / MODEL, safetensors_file.parts(layout, arrays))
    durable_files.write(folder / CONFIG, [(json.dumps(config, indent=1) + "\n").encode()])
    durable_files.write(folder / CARD, [card.encode()])
    statistics.save(folder)
    if means is not None:
        means.save(folder)


def from_pretrained(folder: str | Path, device: torch.device | str = "cpu", kernels: str = "auto") -> PictureNetwork:
    """The network of a folder that `export --to hub` wrote, in test mode: a `PictureNetwork`, from pictures to logits.

    Nothing is downloaded, and nothing in the folder is run. device: where it computes, both towers as one network;
    kernels: see `kernels.dispatch.resolve`. Raises UserError, one line that begins with the folder, for a config of
    another format, and for tensors that are missing, foreign, of another shape or not finite: before anything is
    allocated that the files don't hold; and for a device that is not there."""
    device = named(device)
    check_kernels(kernels, [device])
    with about(folder, DAMAGE):
        need(os.path.isdir(folder), "no such folder; nothing is downloaded")
        path = Path(folder)
        run = (path / RUN).exists() and not (path / CONFIG).exists()
        need(
            not run,
            f"it is a run, and no folder for the hub; {typed('export', folder, '--to', 'hub', 'FOLDER')} makes one",
        )
        config = read_config(path)
        recipe, classes = config.recipe, config.classes
        layouts = merged_tensors.layouts_of([path / MODEL])
        weights = merged_tensors.merged_of(layouts, recipe, len(classes))
        mean = _mean(_real(path / STATISTICS), recipe.stored_size)
    network = MergedAlexNet(recipe, device, len(classes), kernels)
    network.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in weights.items()})
    return PictureNetwork(network, mean, classes, config.words).eval()


@dataclass(frozen=True)
class Config:
    """What config.json says."""

    recipe: Recipe
    classes: list[str]
    words: list[str]  # the classes' names as a person knows them; the classes where it has none


def read_config(folder: Path) -> Config:
    """Raises ValueError, OSError, and what comes of fields of other types (`DAMAGE`)."""
    content = durable_files.read(_real(folder / CONFIG), MOST_CONFIG)
    try:
        config = safetensors_file.parse(content)
    except ValueError as error:
        raise ValueError(f"{CONFIG}: {error}") from None
    need(isinstance(config, dict) and config.get("format") == FORMAT, f"{CONFIG} is not of format {FORMAT!r}")
    classes, words = config.get("classes"), config.get("class_names")
    need(
        _are_names(classes) and 2 <= len(classes) <= MOST_CLASSES,
        f"{CONFIG}: classes are no list of 2 to {MOST_CLASSES:,} names",
    )
    need(isinstance(config.get("recipe"), dict), f"{CONFIG}: recipe is missing")
    recipe = from_dict(config["recipe"])
    refuse_last_layer(recipe)
    _refuse_absurd(recipe, len(classes))
    return Config(recipe, classes, words if _are_names(words) and len(words) == len(classes) else classes)


def _are_names(names):
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def _refuse_absurd(recipe, classes):
    """What no tensor in the folder bounds: maps that a stride makes small again."""
    for size in shapes.sizes(recipe, classes):
        layer, (channels, height, _) = size.layer, size.reads
        if layer.kind != "fc":
            extra = shapes.ceil_mode_padding(height, layer.kernel, layer.stride, layer.pad)
            inputs = channels * (height + 2 * layer.pad + extra) ** 2
            values = max(inputs, size.computed[0] * size.computed[1] ** 2)
            need(values <= MOST_VALUES, f"{layer.name} would have {values:.3g} values a picture")


def _mean(path, side):
    layout, expected = safetensors_file.read_head(path).get("mean"), ("F64", (side, side, 3))
    need(layout == expected, f"the mean image is {layout}, and this recipe has {expected}")
    mean = load(durable_files.read(path, MOST_BYTES))["mean"]
    need(((mean >= 0) & (mean <= 255)).all(), "the mean image has values that are no grey levels, 0 to 255")
    return mean


def _real(path):
    """In a cache of the hub a file is a link."""
    return Path(os.path.realpath(path))


def push(folder: Path, name: str) -> str:
    """Upload a folder as the model `name` ("owner/model") of the hub, which is made if it isn't there; its address.

    Raises UserError where the package is missing, or the hub refuses."""
    need_hub()
    import huggingface_hub

    try:
        hub = huggingface_hub.HfApi()
        hub.create_repo(name, exist_ok=True)
        # Means of earlier weights may not stay there; those of this folder come again in the same commit.
        return str(hub.upload_folder(repo_id=name, folder_path=str(folder), delete_patterns=UNIT_MEANS))
    except Exception as error:  # of the network, of the hub, of a name that is none
        raise UserError(f"--push {name}: {' '.join(str(error).split()):.300}") from None


def need_hub() -> None:
    """Raise UserError, with what to install, where `huggingface_hub` is not there."""
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        raise UserError(f"--push needs the package huggingface_hub ({error}); pip install 'alexnet_mp[hub]'") from None
