"""What `convert` is given, found by looking, and made into a `Converted`."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from ..recipes.named import PRESETS
from ..recipes.recipe import Recipe, override
from ..system import durable_files
from ..system.errors import UserError
from ..system.terminal import printable
from . import arrays, caffe, caffe_files, class_list, cuda_convnet, mean_image, merged_tensors
from .converted_run import Converted
from .damage import about

CAFFE = ("caffe_alexnet", "caffenet")
TAKES = (
    "convert takes Caffe's .caffemodel, .safetensors with the names of a merged network (a file, or a folder of them), "
    "or a folder or .npz of arrays named by layer"
)
CLASSES_BESIDE = ("synset_words.txt", "classes.txt")
_DAMAGE = (*arrays.DAMAGE, *caffe_files.DAMAGE, *merged_tensors.DAMAGE)


def convert(
    source: str | Path,
    recipe: str | None = None,
    settings: Sequence[str] = (),
    mean: str | None = None,
    classes: str | None = None,
    note: Callable[[str], None] = print,
) -> Converted:
    """Read a network, its mean image and the names of its classes.

    recipe: the name of a preset; None: what the file says. settings: `--set` FIELD=VALUE. mean, classes: None: what
    lies beside the weights under a usual name. note(line) is told what was found. Raises UserError, one line that
    begins with the file."""
    path = Path(os.path.realpath(source))  # in a cache of models it is a link
    with about(source, _DAMAGE):
        kind = _kind(path)
    folder = path if path.is_dir() else path.parent
    made, weights, count, what = {"caffe": _caffe, "tensors": _tensors, "arrays": _arrays}[kind](
        source, path, recipe, settings
    )
    names, words = _classes(classes, folder, count, note)
    statistics = _mean(mean, folder, made, note)
    note(f"{printable(str(source))}: {what}, {len(weights)} tensors, {count:,} classes; recipe {made.name}")
    digest = "" if path.is_dir() else durable_files.digest(path)[1]
    return Converted(made, weights, statistics, names, words, f"{path.name} ({what})", digest)


def _kind(path):
    if not path.exists():
        raise UserError("no such file or directory")
    if path.is_dir():
        names = durable_files.names(path, arrays.MOST_NAMES)
        if any(name.endswith((".weights.npy", ".weights.txt", ".weights.0.npy", ".weights.0.txt")) for name in names):
            return "arrays"
        if merged_tensors.files_of(path):
            return "tensors"
        raise UserError(f"nothing in it that is known; {TAKES}")
    kind = {".caffemodel": "caffe", ".safetensors": "tensors", ".npz": "arrays"}.get(path.suffix)
    if kind is None:
        raise UserError(f"{TAKES}; files are told by their names' endings")
    return kind


def _caffe(source, path, recipe, settings):
    with about(source, _DAMAGE):
        net = caffe_files.read_net(durable_files.read(path, caffe_files.MOST_BYTES))
        if recipe is not None and recipe not in CAFFE:
            raise UserError(f"--recipe {recipe}: Caffe's networks are of {' or '.join(CAFFE)}")
        made = _recipe(recipe or caffe.recipe_of(net), settings)
        count = _count(caffe.classes_of(net, made))
        return made, caffe.merged_of(net, made, count), count, f"Caffe's {net.name or 'network'}, {caffe.told(made)}"


def _tensors(source, path, recipe, settings):
    if recipe is None:
        raise UserError(f"{source}: tensors don't say of which network they are; --recipe NAME does")
    with about(source, _DAMAGE):
        made, layouts = _recipe(recipe, settings), merged_tensors.layouts_of(merged_tensors.files_of(path))
        count = _count(merged_tensors.classes_of(layouts, made))
        return made, merged_tensors.merged_of(layouts, made, count), count, "tensors of a merged network"


def _arrays(source, path, recipe, settings):
    with about(source, _DAMAGE):
        made, found = _recipe(recipe or "source2012", settings), arrays.Arrays(path)
        try:
            count = _count(cuda_convnet.classes_of(made, found))
            return made, cuda_convnet.merged_of(found, made, count), count, "arrays named by layer"
        finally:
            found.close()


def _recipe(name, settings) -> Recipe:
    return override(PRESETS[name](), settings)


def _count(classes):
    if not 2 <= classes <= arrays.MOST_VALUES:
        raise UserError(f"its last layer has {classes:,} outputs, and 2 to {arrays.MOST_VALUES:,} classes are read")
    return classes


def _classes(given, folder, count, note):
    """(classes, words)"""
    path = given or next((folder / name for name in CLASSES_BESIDE if (folder / name).is_file()), None)
    if path is None:
        note("no names of classes: they are numbered; --classes FILE names them, and evaluate needs those of its data")
        return [class_list.numbered(count)] * 2
    with about(path, _DAMAGE):
        names, words = class_list.read_classes(os.path.realpath(path))
        if len(names) != count:
            raise UserError(f"it has {len(names):,} classes, and the network {count:,}")
    note(f"classes: {path}, from {printable(words[0])} to {printable(words[-1])}")
    return names, words


def _mean(given, folder, recipe, note):
    path = given or mean_image.beside(folder)
    if path is None:
        raise UserError(f"{folder}: no mean image beside the weights; --mean names one: {mean_image.TAKES}")
    with about(path, _DAMAGE):
        found = mean_image.read_mean(os.path.realpath(path) if os.path.exists(path) else path, recipe.stored_size)
    levels = ", ".join(f"{level:.1f}" for level in found.mean.mean((0, 1)))
    note(f"mean image: {path}, on average {levels} (RGB)")
    return found
