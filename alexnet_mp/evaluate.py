"""The paper's test protocol: top-1 and top-5 error on the centre view and on ten views, always both.

python -m alexnet_mp.evaluate RUN
python -m alexnet_mp.evaluate runs/2026-11-23-101500-paper --data /data/ilsvrc2012 --split val --gpus 0,1
"""
import argparse
import math
from contextlib import closing
from dataclasses import dataclass

import torch

from . import checkpoint
from .allocator import keep_freed_memory
from .console import progress, say
from .dataset import open_dataset
from .devices import resolve
from .errors import UserError, run_command
from .loader import centre_view, ten_views
from .network import TwoTowerAlexNet
from .options import add_machine_options, check_kernels
from .pipelines import make_pipeline
from .run_directory import read_run
from .statistics import Statistics


@dataclass(frozen=True)
class Errors:
    """Of one protocol over one split: errors in % of its images, and the loss, -log of the mean probability, in nats."""

    top1_error: float
    top5_error: float
    loss: float
    images: int


def evaluate(network, pipeline, split, protocols, batch_size, advance):
    """Test a network on every image of a split, once each.

    protocols: {name: list of views}; a view that several protocols share is computed once. Probabilities are averaged over a
    protocol's views (paper 4.1). advance(n) is called for every n images. Returns {name: `Errors`}.
    """
    views = list(dict.fromkeys(view for protocol in protocols.values() for view in protocol))
    sums, images = {name: torch.zeros(3, dtype=torch.float64) for name in protocols}, 0
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode(), closing(pipeline.views(split, batch_size, views)) as batches_of_views:
            for batches, labels in batches_of_views:
                # In logarithms: a probability of 1e-50 is 0 in float32, and its loss would be infinite.
                logs = {view: network(*towers).double().log_softmax(1) for view, towers in zip(views, batches, strict=True)}
                for name, protocol in protocols.items():
                    mean = torch.stack([logs[view] for view in protocol]).logsumexp(0) - math.log(len(protocol))
                    loss = -mean.gather(1, labels[:, None]).sum(0)
                    sums[name] = sums[name].to(labels.device) + torch.cat((credits(mean, labels), loss))
                images += len(labels)
                advance(len(labels))
    finally:
        network.train(was_training)
    means = {name: (total / images).tolist() for name, total in sums.items()}
    return {name: Errors(100 - 100 * top1, 100 - 100 * top5, loss, images) for name, (top1, top5, loss) in means.items()}


def credits(scores, labels):
    """How many of N images count as right under top-1 and top-5: float64 tensor (2,).

    scores: (N, classes); labels: (N,). A label that ties with others for the last places gets the fraction that random tie-breaking
    would give on average (2012 source, `src/layer_kernels.cu:114-117`); a NaN is never right.
    """
    own = scores.gather(1, labels[:, None])
    above, tied = (scores > own).sum(1).double(), (scores == own).sum(1).double()
    # NaN equals nothing: tied is 0 where the own score is NaN; NaNs beside a finite score count as above it.
    above = above + scores.isnan().sum(1)
    return torch.stack([((k - above) / tied.clamp(min=1)).clamp(0, 1).mul(tied > 0).sum() for k in (1, 5)])


def both_protocols(recipe):
    """{"centre view": one view, "ten views": ten}."""
    return {"centre view": centre_view(recipe), "ten views": ten_views(recipe)}


def print_errors(errors, split):
    """The table of both protocols."""
    for name, error in errors.items():
        say(f"{split}, {name:11}  top-1 error {error.top1_error:6.2f} %   top-5 error {error.top5_error:6.2f} %   "
            f"({error.images:,} images)")


def load_run(directory, gpus="auto", kernels="auto"):
    """(network in test mode, `run.json`) of a run directory's newest weights. Raises UserError where it can't be used."""
    run = read_run(directory)
    recipe = run["recipe"]
    weights, state = checkpoint.newest_weights(directory)
    devices = resolve(gpus, recipe.towers)
    check_kernels(kernels, devices)
    network = TwoTowerAlexNet(recipe, devices, len(run["data"]["classes"]), kernels)
    try:
        network.load_merged(state)
    except ValueError as error:
        raise UserError(f"{weights} doesn't fit {directory}/run.json: {error}") from None
    say(f"{weights} on {', '.join(map(str, devices))}, kernels {network.kernels_used()}")
    return network.eval(), run


def main(arguments=None):
    options = _parser().parse_args(arguments)
    if options.batch_size is not None and options.batch_size < 1:
        raise UserError(f"--batch-size {options.batch_size}: it must be at least 1")
    keep_freed_memory()
    torch.backends.cudnn.allow_tf32 = False  # as in training
    network, run = load_run(options.run, options.gpus, options.kernels)
    recipe = run["recipe"]
    data = options.data or run["data"]["source"]
    dataset = open_dataset(data, recipe.stored_size, (options.split,))
    say(f"data: {dataset.description}")
    if dataset.classes != run["data"]["classes"]:
        raise UserError(f"--data {data}: its {len(dataset.classes)} classes are not the {len(run['data']['classes'])} that "
                        f"{options.run} was trained on")
    pipeline = make_pipeline(options.pipeline, dataset, recipe, network.exchange.devices, options.workers)
    pipeline.use(Statistics.load(options.run))
    batch_size = options.batch_size or recipe.batch_size
    with progress(f"{options.split}, ten views", len(dataset.splits[options.split])) as advance:
        errors = evaluate(network, pipeline, options.split, both_protocols(recipe), batch_size, advance)
    print_errors(errors, options.split)
    return 0


def _parser():
    parser = argparse.ArgumentParser(prog="python -m alexnet_mp.evaluate", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="the directory of a run")
    parser.add_argument("--data", help="DIR with val/<class>/* or test/<class>/*, or builtin; default: what it was trained on")
    parser.add_argument("--split", choices=("val", "test"), default="val", help="default: val")
    add_machine_options(parser)
    parser.add_argument("--batch-size", type=int, help="images at a time; default: the recipe's")
    return parser


if __name__ == "__main__":
    run_command(main)
