"""A checkpoint of a few kB, the fixtures that were written of it, and what tests of its files have in common."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_mutations import manifest_of, sealed

from alexnet_mp.data.pixel_statistics import STATISTICS, Statistics
from alexnet_mp.recipes import shapes
from alexnet_mp.recipes.architectures import paper
from alexnet_mp.recipes.recipe import Layer
from alexnet_mp.runs.checkpoint_format import MANIFEST, STATE, VELOCITY, WEIGHTS, Checkpoint, write
from alexnet_mp.runs.checkpoint_state import Data, Environment, Scheduled, State, Validation
from alexnet_mp.system.errors import UserError

HERE = Path(__file__).parent
V3, V4, V5, V6 = (HERE / f"checkpoint_v{number}" / "step_00000003" for number in (3, 4, 5, 6))
ALL = (WEIGHTS, VELOCITY, STATISTICS, STATE, MANIFEST)
CLASSES = ("ant", "bee", "fly")
NO_LONGER_READ = "checkpoint format {}: the last version that reads it is commit 0bb1361"


def tiny_recipe():
    layers = (
        Layer("conv1", "conv", 2, "image", ("relu",), kernel=2),
        Layer("fc2", "fc", 3, "both", ("relu", "dropout")),
        Layer("fc8", "fc", None, "both", (), towers="first"),
    )
    return dataclasses.replace(
        paper(), name="tiny", layers=layers, stored_size=5, crop_size=4, crop_positions=2, batch_size=4
    )


def tiny():
    """The checkpoint in checkpoint_v3 to _v6: some hundred numbers, -0.0, the least denormal, the largest float."""
    recipe, random = tiny_recipe(), np.random.Generator(np.random.Philox(key=5))
    weights, velocity = (
        {
            name: torch.from_numpy(random.standard_normal(shape, np.float32))
            for name, shape in shapes.merged_shapes(recipe, len(CLASSES)).items()
        }
        for _ in range(2)
    )
    velocity["fc8.bias"] = torch.tensor([-0.0, 1e-45, 3.4028235e38])
    statistics = Statistics(
        255 * random.random((5, 5, 3)),
        np.array([0.0, 5e-324, 0.2]),
        np.array([[0.6, -0.8, 0.0], [0.8, 0.6, 0.0], [-0.0, 0.0, 1.0]]),
    )
    rates = {name: 0.01 for name in weights}
    state = State(
        step=3,
        epoch=1,
        recipe=recipe,
        data=Data("builtin", "drawn pictures", "5f" * 32, CLASSES),
        schedule={"drops": 0, "best": 12.5, "since_best": 0},
        scheduled=Scheduled(rates, 0.1),
        validated=True,
        validation=Validation(12.5, 0.0, 1.0986122886681098, 8),
        metrics_bytes=1234,
        made_by=Environment(
            ("cpu", "cpu"), "cpu", "fp32", "torch", "off", 2, {"torch": "2.13.0", "triton": None}, None, 1
        ),
        saved="2025-01-31T12:00:00+00:00",
    )
    return Checkpoint(weights, velocity, statistics, state)


@pytest.fixture(scope="module")
def original():
    return tiny()


@pytest.fixture
def place(original, tmp_path):
    write(tmp_path / "step_00000003", original)
    return tmp_path / "step_00000003"


def bits(checkpoint):
    """All values of a checkpoint, NaN-proof and with the sign of zero."""
    arrays = [*checkpoint.weights.items(), *checkpoint.velocity.items(), *vars(checkpoint.statistics).items()]
    return checkpoint.state, [
        (name, tuple(values.shape), str(values.dtype), np.asarray(values).tobytes()) for name, values in arrays
    ]


def refused(action, place, name=None):
    """The message of the UserError that an action on the directory ends in; it begins with the file's path, and is one
    line."""
    with pytest.raises(UserError) as error:
        action(place)
    message = str(error.value)
    assert message.startswith(str(place / name if name else place)) and "\n" not in message
    return message


def rewrite(place, name, content):
    """Replace a file and make the checksums fit again."""
    (place / name).write_bytes(content)
    (place / MANIFEST).write_bytes(manifest_of({file: (place / file).read_bytes() for file in ALL[:4]}))


def rewrite_state(place, change):
    fields = json.loads((place / STATE).read_bytes())
    change(fields)
    rewrite(place, STATE, json.dumps(fields).encode())


def rewrite_manifest(place, change):
    fields = json.loads((place / MANIFEST).read_bytes())
    change(fields)
    (place / MANIFEST).write_bytes(sealed(fields))


def as_old_format(place, number):
    """Make a checkpoint look like one of format 0 to 2. Returns the path that its refusal begins with."""
    if number:
        rewrite_manifest(place, lambda fields: fields.update(format=number))
        return place / MANIFEST
    for name in ALL:
        if name != WEIGHTS:
            (place / name).unlink()
    return place


def with_header(entries, data):
    """A safetensors file with this header, JSON or bytes."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data
