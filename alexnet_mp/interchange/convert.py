"""What `convert` is given, found by looking, and made into a `Converted`."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from ..recipes.named import PRESETS
from ..recipes.recipe import Recipe, override
from ..runs import checkpoint_format, checkpoints
from ..runs.unit_means import UNIT_MEANS, load_unit_means
from ..system import durable_files
from ..system.errors import UserError
from ..system.terminal import printable
from . import arrays, caffe, caffe_files, class_list, cuda_convnet, hub, mean_image, merged_tensors, torch_source
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

    recipe: the name of a preset; None: what the file says, or a config.json beside it that `export --to hub` wrote,
    whose classes are taken in any case.
    settings: `--set` FIELD=VALUE. mean, classes: None: what lies beside the weights under a usual name. Any of the
    files may be a link, as in a cache of models. note(line) is told what was found. Raises UserError, one line that
    begins with the file."""
    path = Path(source)
    for option, file in (("--mean", mean), ("--classes", classes)):
        if file == "":
            raise UserError(f"{option} '': name a file; without {option} one that lies beside the weights is taken")
    with about(source, _DAMAGE):
        kind = _kind(path)
    # a link has what lies beside it, and beside what it leads to
    folders = [path] if path.is_dir() else [path.parent, Path(os.path.realpath(path)).parent]
    config = _config_beside(folders, recipe, note) if kind == "tensors" else None
    network_recipe, weights, count, what = {"caffe": _caffe, "tensors": _tensors, "arrays": _arrays}[kind](
        source, path, config.recipe if config is not None and recipe is None else recipe, settings
    )
    names, words = _classes(classes, folders, config, count, note)
    statistics = _mean(mean, folders, network_recipe, note)
    note(f"{printable(str(source))}: {what}, {len(weights)} tensors, {count:,} classes; recipe {network_recipe.name}")
    # A hub's folder as it is may have means; with other sizes, weights or another mean image they would be wrong.
    whole = (
        config is not None
        and network_recipe == config.recipe
        and mean is None
        and (path.is_dir() or path.name == hub.MODEL)
    )
    means_path = _beside(folders, (UNIT_MEANS,)) if whole else None
    means = means_path and load_unit_means(means_path.parent, network_recipe, count)
    digest = "" if path.is_dir() else durable_files.digest(os.path.realpath(path))[1]
    return Converted(
        network_recipe, weights, statistics, names, words, f"{Path(os.path.abspath(path)).name} ({what})", digest, means
    )


def _config_beside(folders, recipe, note):
    """What `export --to hub` wrote beside the tensors, or None. recipe: what `--recipe` says, which goes before it."""
    path = _beside(folders, (hub.CONFIG,))
    if path is None:
        return None
    with about(path, hub.DAMAGE):
        try:
            config = hub.read_config(path.parent)
        except hub.DAMAGE as error:
            if recipe is not None:
                return None  # of another program
            raise ValueError(f"{error}; --recipe NAME would say of which network the tensors are") from None
    if recipe is None:
        note(f"recipe and classes: {path}")
    else:
        note(
            f"recipe {recipe}, as --recipe says; {path} says {config.recipe.name}, and would be taken without --recipe"
        )
    return config


def _beside(folders, names):
    return next((folder / name for folder in folders for name in names if (folder / name).is_file()), None)


def _compare_with_manifest(path):
    """Raise UserError if a file of a checkpoint isn't what was written."""
    real = Path(os.path.realpath(path))
    if checkpoints.step_of(real.parent) is not None and (real.parent / checkpoint_format.MANIFEST).exists():
        checkpoint_format.verify_file(real)


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
    kinds = {".caffemodel": "caffe", ".safetensors": "tensors", ".npz": "arrays"}
    kind = kinds.get(path.suffix) or kinds.get(Path(os.path.realpath(path)).suffix)
    if kind is None:
        raise UserError(f"{TAKES}; files are told by their names' endings")
    return kind


def _caffe(source, path, base, settings):
    with about(source, _DAMAGE):
        net = caffe_files.read_net(durable_files.read(os.path.realpath(path), caffe_files.MOST_BYTES))
        if base is not None and base not in CAFFE:
            raise UserError(f"--recipe {base}: Caffe's networks are of {' or '.join(CAFFE)}")
        recipe = _recipe(base or caffe.recipe_of(net), settings)
        count = _count(caffe.classes_of(net, recipe))
        return (
            recipe,
            caffe.merged_of(net, recipe, count),
            count,
            f"Caffe's {net.name or 'network'}, {caffe.told(recipe)}",
        )


def _tensors(source, path, base, settings):
    with about(source, _DAMAGE):
        _compare_with_manifest(path)
        layouts = merged_tensors.layouts_of(merged_tensors.files_of(path))
        if torch_source.MEAN in layouts:
            raise UserError(
                "export --to torch wrote it, with factors of the test in its weights; what comes back is --to hub"
            )
        if base is None:
            raise UserError("tensors don't say of which network they are; --recipe NAME does")
        recipe = _recipe(base, settings)
        count = _count(merged_tensors.classes_of(layouts, recipe))
        return recipe, merged_tensors.merged_of(layouts, recipe, count), count, "tensors of a merged network"


def _arrays(source, path, base, settings):
    with about(source, _DAMAGE):
        recipe, matrices = _recipe(base or "source2012", settings), arrays.Arrays(path)
        try:
            count = _count(cuda_convnet.classes_of(recipe, matrices))
            return recipe, cuda_convnet.merged_of(matrices, recipe, count), count, "arrays named by layer"
        finally:
            matrices.close()


def _recipe(base, settings) -> Recipe:
    """base: the name of a preset, or a `Recipe`."""
    return override(base if isinstance(base, Recipe) else PRESETS[base](), settings)


def _count(classes):
    if not 2 <= classes <= arrays.MOST_VALUES:
        raise UserError(f"its last layer has {classes:,} outputs, and 2 to {arrays.MOST_VALUES:,} classes are read")
    return classes


def _classes(file, folders, config, count, note):
    """(classes, words)"""
    path = file or _beside(folders, CLASSES_BESIDE)
    if path is None and config is not None and len(config.classes) == count:
        return config.classes, config.words
    if path is None:
        note("no names of classes: they are numbered; --classes FILE names them, and evaluate needs those of its data")
        return [class_list.numbered(count)] * 2
    with about(path, _DAMAGE):
        names, words = class_list.read_classes(os.path.realpath(path))
        if len(names) != count:
            raise UserError(f"it has {len(names):,} classes, and the network {count:,}")
    note(f"classes: {path}, from {printable(words[0])} to {printable(words[-1])}")
    return names, words


def _mean(file, folders, recipe, note):
    path = file or _beside(folders, mean_image.BESIDE)
    if path is None:
        raise UserError(f"{folders[0]}: no mean image beside the weights; {mean_image.TAKES}")
    with about(path, _DAMAGE):
        _compare_with_manifest(path)
        statistics = mean_image.read_mean(path, recipe.stored_size)
    levels = ", ".join(f"{level:.1f}" for level in statistics.mean.mean((0, 1)))
    note(f"mean image: {path}, on average {levels} (RGB)")
    return statistics
