"""What a layer says of every picture of a split, written as it is computed: no split is held in memory."""

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import torch

from ..network.network import MergedAlexNet, TwoTowerAlexNet
from ..recipes.recipe import Recipe
from ..runs import safetensors_file
from ..system import durable_files
from ..system.errors import UserError
from ..system.terminal import printable, progress, say
from .ensembles import Run
from .protocol import centre_view
from .trained import load_run

ENDINGS = (".npz", ".safetensors")


def refuse_layer(recipe: Recipe, name: str) -> None:
    """Raise UserError for a layer that a recipe hasn't."""
    names = [layer.name for layer in recipe.layers]
    if name not in names:
        raise UserError(f"--features {name}: recipe {recipe.name} has no such layer; its layers are {', '.join(names)}")


def refuse_out(path: str) -> None:
    """Raise UserError early for a file of another kind, or one that can't be written."""
    if Path(path).suffix not in ENDINGS:
        raise UserError(f"--out {path}: its name has to end with {' or '.join(ENDINGS)}")
    durable_files.refuse_output("--out", path)


def write_features(run: Run, split: str, layer: str, out: str) -> tuple[int, ...]:
    """Write a layer's output for every picture of a split, in its order, under the centre view; the shape of all.

    out: .npz, with `features` (N, maps, height, width) or (N, units) float32, maps of tower a first, `labels` (N,)
    int64, -1 of a picture without one, and `names` and `classes` as texts; or .safetensors, with features and labels,
    and as metadata the names of the classes. The values are what follows the layer's operations (`Layer.then`) in test
    mode: hidden units are already multiplied by 1 - dropout (4.2). Raises UserError where the file can't be written,
    and for values that are not finite."""
    network, training = load_run(run.directory, run.gpus, run.kernels)
    images, views = run.dataset.splits[split], centre_view(network.recipe)
    about = {
        "layer": layer,
        "split": split,
        "run": printable(run.directory),
        "checkpoint": training.checkpoint.name,
        "classes": json.dumps(training.classes),
    }
    with (
        progress(f"{split}, {layer}", len(images)) as advance,
        closing(run.pipeline.views(split, run.batch_size, views)) as batches,
        closing(_of_batches(network, batches, layer, advance)) as parts,
    ):
        first = next(parts, None)
        if first is None:
            raise UserError(f"{run.dataset.source}: its split {split} has no pictures")
        shape = (len(images), *first.shape[1:])
        say(f"{layer}: {' x '.join(map(str, shape))}, {4 * int(np.prod(shape, dtype=np.float64)):,} bytes")
        if Path(out).suffix == ".npz":
            content = _npz(shape, first, parts, images, training.classes)
        else:
            content = _safetensors(shape, first, parts, np.asarray(images.labels, np.int64), about)
        durable_files.write_output(out, content)
    return shape


@contextmanager
def outputs_of(network: TwoTowerAlexNet | MergedAlexNet, layer: str) -> Iterator[list[torch.Tensor]]:
    """A list that every forward pass fills: a layer's output of each tower that has it, on the tower's device; of a
    merged network one tensor, maps of tower a first."""
    holders = [network] if isinstance(network, MergedAlexNet) else network.towers
    modules = [holder.get_submodule(layer) for holder in holders if hasattr(holder, layer)]
    outputs = [None] * len(modules)

    def keeper(number):
        def keep(module, inputs, output):
            outputs[number] = output

        return keep

    hooks = [module.register_forward_hook(keeper(number)) for number, module in enumerate(modules)]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def _of_batches(network, batches, layer, advance: Callable[[int], None]):
    """Yields the layer's output of each batch, (n, ...) float32 on the CPU, maps of tower a first."""
    # With lrn_crosses layers of both towers are computed at once.
    model = network.merge() if network.recipe.lrn_crosses else network
    with outputs_of(model, layer) as outputs:
        for views, labels in batches:
            (images,) = views
            model(*(images if model is network else images[:1]))
            features = np.ascontiguousarray(torch.cat([output.float().cpu() for output in outputs], 1).numpy())
            if not safetensors_file.finite(features):
                raise UserError(f"{layer} gives NaN or infinity: the network diverged, and has no features")
            yield features
            advance(len(labels))


def _safetensors(shape, first, parts, labels, about):
    """The bytes of a file, part by part."""
    layout = {"features": ("F32", shape), "labels": ("I64", labels.shape)}
    yield safetensors_file.header(layout, about)
    yield memoryview(labels).cast("B")  # the wider values come first
    for part in _all(first, parts):
        yield memoryview(part).cast("B")


def _npz(shape, first, parts, images, classes):
    """The same of a zip archive, which is not compressed."""
    pipe = _Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_STORED) as archive:
        texts = {"names": list(images.names), "classes": list(classes)}
        for name, array in {"labels": np.asarray(images.labels, np.int64), **texts}.items():
            with archive.open(f"{name}.npy", "w") as entry:
                np.lib.format.write_array(entry, np.asarray(array), allow_pickle=False)
        with archive.open("features.npy", "w", force_zip64=True) as entry:
            np.lib.format.write_array_header_1_0(entry, {"descr": "<f4", "fortran_order": False, "shape": shape})
            for part in _all(first, parts):
                entry.write(memoryview(part).cast("B"))
                yield pipe.drain()
    yield pipe.drain()


def _all(first, parts):
    yield first
    yield from parts


class _Pipe(io.RawIOBase):
    """What an archive writes, until it is taken; nothing goes back in it."""

    def __init__(self):
        self.content = []

    def writable(self) -> bool:
        return True

    def write(self, content: bytes) -> int:
        self.content.append(bytes(content))
        return len(content)

    def drain(self) -> bytes:
        content, self.content = b"".join(self.content), []
        return content
