"""A network as a program of torch.export, for any number of pictures."""

import io
import json
import logging
import warnings
from collections.abc import Mapping
from contextlib import contextmanager

import torch

from ..system.errors import UserError
from .picture_network import PictureNetwork

ABOUT = "alexnet_mp.json"  # the name, within the file, of what it says of itself


def program(network: PictureNetwork, metadata: Mapping[str, object]) -> bytes:
    """The bytes of a .pt2 file: pictures (N, stored, stored, 3) uint8 -> logits (N, classes), any N, on the network's
    device. metadata: kept in it as JSON.

    With the reference kernels it holds PyTorch's operations alone. With others it holds `alexnet_mp::lrn_pool`, which
    is there where `alexnet_mp.kernels` was imported. Raises UserError where torch can't trace it."""
    side = network.recipe.stored_size
    example = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    with _quiet():
        try:
            exported_program = torch.export.export(
                network.eval(), (example,), dynamic_shapes=({0: torch.export.Dim("N", min=1)},), strict=False
            )
        except (RuntimeError, torch._dynamo.exc.UserError) as error:
            raise UserError(f"torch.export can't trace it: {' '.join(str(error).split()):.300}") from None
        for node in exported_program.graph.nodes:
            node.meta.pop("stack_trace", None)  # it has the paths of this machine
        buffer = io.BytesIO()
        torch.export.save(exported_program, buffer, extra_files={ABOUT: json.dumps(metadata)})
    return buffer.getvalue()


def answers(content: bytes, pictures: torch.Tensor) -> torch.Tensor:
    """The logits (N, classes) that a file's bytes give of pictures (N, stored, stored, 3) uint8."""
    with _quiet(), torch.inference_mode():
        return torch.export.load(io.BytesIO(content)).module()(pictures).cpu()


@contextmanager
def _quiet():
    """Without torch's warnings about what its own serialisation does."""
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch._export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "No complete tensor found")  # of weights in channels_last: they are whole
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
