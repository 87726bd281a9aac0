"""What `export` writes of a run, each with its preprocessing inside, each compared with our own logits before it is
put in its place."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..data.pixel_statistics import Statistics
from ..data.synsets import in_words
from ..data.synthetic import Builtin
from ..evaluation.predict_images import centre_images
from ..evaluation.trained import class_words, load_run
from ..kernels import dispatch
from ..network.network import MergedAlexNet, TwoTowerAlexNet
from ..runs import checkpoint_format, safetensors_file
from ..runs.checkpoints import CHECKPOINTS
from ..runs.directory import read_run
from ..runs.metrics import read_metrics
from ..runs.unit_means import UNIT_MEANS, UnitMeans, load_unit_means
from ..system import durable_files
from ..system.errors import UserError
from ..system.file_lock import alone
from ..system.provenance import package_version
from . import hub, onnx_graph, torch_program, torch_source
from .model_card import model_card
from .picture_network import PictureNetwork, told_input
from .plain_steps import plain_steps, refuse_last_layer

FORMATS = ("torch", "onnx", "hub", "torch.export")
ENDINGS = {"onnx": ".onnx", "torch.export": ".pt2"}  # the others are folders
FILES = {"torch": {torch_source.SOURCE, torch_source.WEIGHTS}, "hub": {hub.CONFIG, hub.MODEL, hub.CARD, hub.STATISTICS}}
MAY_BE = {"torch": set(), "hub": {UNIT_MEANS}}  # beside them
PICTURES, TOLERANCE = 10, 1e-4  # largest difference of logits, as a share of the largest logit


@dataclass(frozen=True)
class Difference:
    """Between our own logits and those of what was written, on `PICTURES` pictures."""

    largest: float
    scale: float  # the largest |logit| of ours
    other_answers: int  # pictures with another most probable class

    def __str__(self) -> str:
        return (
            f"on {PICTURES} pictures its logits differ from ours by {self.largest:.2e} at most, of {self.scale:.3g}; "
            f"{self.other_answers} have another most probable class"
        )


def export(
    run: str | Path,
    to: str,
    out: str | Path,
    gpus: str = "auto",
    kernels: str = "auto",
    *,
    fused: bool = False,
    half: bool = False,
    synsets: str | None = None,
    means: Callable[[TwoTowerAlexNet, Statistics], UnitMeans] | None = None,
) -> Difference:
    """Write the newest weights of a run as one of `FORMATS`. The file or folder is there whole or not at all.

    out: a file with its ending (`ENDINGS`), or a folder: a new or an empty one, or one that an export of the same kind
    wrote. gpus, kernels: who computes the logits that it is compared with. fused: of torch.export, with our compiled
    operators. half: of hub, weights rounded to float16; it is compared with a network of the rounded weights. synsets:
    see `data.synsets.in_words`. means: of hub, computes what is kept of the network that is written; default: those
    that the run came with, unless half. Raises UserError if a package is missing, `out` is another's or can't be
    written, the network can't be told in this format, a weight is beyond float16's range, the run's own means are
    damaged, or the logits differ by more than TOLERANCE allows."""
    path = Path(out)
    refuse_out(run, to, out)
    if to == "onnx":
        onnx_graph.need_packages()
    if half and to != "hub":
        raise UserError("--half is for --to hub")
    if fused:
        _refuse_fused(to)
    network, training = load_run(run, gpus, kernels)
    recipe, classes = network.recipe, len(training.classes)
    refuse_last_layer(recipe)
    if half:
        network.load_merged({name: _rounded(name, tensor) for name, tensor in network.merged_state().items()})
    pictures = test_pictures(recipe.stored_size)
    with torch.inference_mode():
        logits = network(*centre_images(network, training.statistics, list(pictures.numpy()))).double().cpu()
    if not logits.isfinite().all():
        raise UserError(f"{run}: its network answers with NaN or infinity, and can't be exported")
    described, state = read_run(run), checkpoint_format.read_state(training.checkpoint)
    step = None if described.get("converted") else state.step  # of a network from elsewhere nobody counted them
    version = package_version("alexnet_mp")
    weights = {name: tensor.numpy() for name, tensor in network.merged_state().items()}
    mean, words = training.statistics.mean, in_words(training.classes, class_words(run, training.classes), synsets)
    metadata = {"input": told_input(recipe), "recipe": recipe.name, **({} if step is None else {"step": step})}
    metadata |= {"classes": list(training.classes), "class_names": words}
    with alone(path), durable_files.writing(path):
        refuse_out(run, to, out)  # another may have written it meanwhile
        if to == "hub":
            unit_means = means and means(network, training.statistics)
            if means is None and not half:
                unit_means = load_unit_means(run, recipe, classes)
            card = model_card(described, state, _tests(run), words, half)
            with durable_files.new_directory(path, instead=True) as folder:
                hub.write(folder, recipe, weights, training.statistics, training.classes, words, card, half, unit_means)
                return compared(logits, _answers_of(hub.from_pretrained(folder), pictures))
        if to == "torch":
            steps = plain_steps(recipe, weights, classes)
            tensors = torch_source.tensors(recipe, steps, mean)
            layout = {name: ("F32", tensor.shape) for name, tensor in tensors.items()}
            text = torch_source.source(recipe, steps, classes, step, version)
            with durable_files.new_directory(path, instead=True) as folder:
                durable_files.write(folder / torch_source.WEIGHTS, safetensors_file.parts(layout, tensors))
                durable_files.write(folder / torch_source.SOURCE, [text.encode()])
                return compared(logits, torch_source.answers(folder, pictures))
        if to == "onnx":
            steps = plain_steps(recipe, weights, classes)
            content, answers = onnx_graph.graph(recipe, steps, classes, mean, version, metadata), onnx_graph.answers
        else:
            merged_network = MergedAlexNet(recipe, "cpu", classes, "auto" if fused else "reference")
            merged_network.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in weights.items()})
            content = torch_program.program(PictureNetwork(merged_network, mean, training.classes, words), metadata)
            answers = torch_program.answers
        return durable_files.new_file(path, content, lambda file_bytes: compared(logits, answers(file_bytes, pictures)))


def _refuse_fused(to):
    if to != "torch.export":
        raise UserError(f"--fused is for --to torch.export, not for --to {to}")
    try:
        if dispatch.resolve("auto", "cpu") == "cpu":
            return
        reason = dispatch.description().partition(";")[0]
    except RuntimeError as error:  # built for another torch
        reason = str(error)
    raise UserError(f"--fused: {reason}; without --fused the program holds PyTorch's operations alone")


def test_pictures(side: int) -> torch.Tensor:
    """The embedded pictures that an export is compared on: (PICTURES, side, side, 3) uint8."""
    split = Builtin(max(side, 32)).splits["val"]
    return torch.stack([torch.from_numpy(split.read(number)[:side, :side]) for number in range(PICTURES)])


def compared(logits: torch.Tensor, other_logits: torch.Tensor) -> Difference:
    """The difference of two (N, classes). Raises UserError where it is too large."""
    if other_logits.shape != logits.shape:
        raise UserError(
            f"what was written gives logits of {tuple(other_logits.shape)}, not {tuple(logits.shape)}: not kept"
        )
    largest = (other_logits.double().cpu() - logits).abs().max().item()
    scale = logits.abs().max().item()
    difference = Difference(largest, scale, int((other_logits.cpu().argmax(1) != logits.argmax(1)).sum()))
    if not largest <= TOLERANCE * scale:
        raise UserError(f"what was written is not the same network: {difference}; not kept")
    return difference


def refuse_out(run: str | Path, to: str, out: str | Path) -> None:
    """Raise UserError early where `out` is another's, or can't be written."""
    path = Path(out)
    if not str(out) or not path.name:
        raise UserError(f"OUT {str(out)!r}: write the name of a {'file' if to in ENDINGS else 'new folder'}")
    if Path(os.path.realpath(Path(run) / CHECKPOINTS)) in Path(os.path.realpath(path)).parents:
        raise UserError(f"OUT {out}: what else lies in a checkpoint makes it count as damaged; choose another place")
    if to in ENDINGS:
        if path.suffix != ENDINGS[to]:
            raise UserError(f"OUT {out}: of --to {to} it is a file whose name ends with {ENDINGS[to]}")
        durable_files.refuse_output("OUT", path)
    elif not os.path.lexists(path):
        durable_files.refuse_unwritable("OUT", path, path.absolute().parent)
    elif path.is_symlink() or not path.is_dir():
        raise UserError(f"OUT {out}: it is there already, and is no folder; choose another name")
    else:
        durable_files.refuse_unwritable("OUT", path, path.absolute().parent)
        with durable_files.writing(path):
            names = set(durable_files.names(path, 100))
            if names and (names - MAY_BE[to] != FILES[to] or not _is_ours(path, to)):
                raise UserError(f"OUT {out}: it is there already, and not an export --to {to}; choose another name")


def _is_ours(folder, to):
    if to == "torch":
        return durable_files.head(folder / torch_source.SOURCE, 200)[1].startswith(torch_source.FIRST.encode())
    try:
        hub.read_config(folder)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False
    return True


def _rounded(name, tensor):
    """To the nearest float16, as float32."""
    nearest = tensor.half().to(tensor.dtype)
    if not nearest.isfinite().all():
        raise UserError(f"--half: {name} has values beyond float16's range, 65,504")
    return nearest


def _answers_of(network: Callable, pictures):
    with torch.inference_mode():
        return network(pictures)


def _tests(run):
    try:
        return [line for line in read_metrics(run) if line["kind"] == "test"]
    except OSError:
        return []
