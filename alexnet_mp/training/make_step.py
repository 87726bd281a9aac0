"""Which training step a run takes: in pieces, as CUDA graphs, or plainly."""

from ..data.pipeline import Pipeline
from ..data.pipeline_raw import RawPipeline
from ..kernels import augmentation
from ..network.network import TwoTowerAlexNet
from ..network.worker_network import WorkerAlexNet
from ..parallel.pairs import Pairs
from ..system.ranks import Ranks
from . import graphed_step
from .piecewise_step import PiecewiseStep
from .step import TrainingStep
from .update_rule import PaperSGD
from .worker_step import WorkerStep


def make_step(
    network: TwoTowerAlexNet, optimizer: PaperSGD, pipeline: Pipeline, graphs: str, ranks: Ranks
) -> "TrainingStep | graphed_step.GraphedStep | PiecewiseStep | WorkerStep":
    """The step of a run, and who augments the images of a `RawPipeline`: it, or its graphs.

    graphs: "auto" | "on" | "off", see `graphed_step.py`. With several pairs of towers, or a microbatch, it is a
    `PiecewiseStep`.
    """
    if isinstance(network, WorkerAlexNet):
        step = WorkerStep(network, optimizer, pipeline.pieces)
    elif ranks.pairs > 1 or pipeline.pieces.microbatch:
        step = PiecewiseStep(network, optimizer, Pairs(ranks, network.exchange.devices), pipeline.pieces)
    else:
        step = graphed_step.graphed(TrainingStep(network, optimizer), graphs)
    if isinstance(pipeline, RawPipeline):
        pipeline.left_to_step = isinstance(step, graphed_step.GraphedStep) and all(
            map(augmentation.augments_in_graphs, network.exchange.devices)
        )
    return step
