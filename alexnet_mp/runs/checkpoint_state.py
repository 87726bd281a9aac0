"""The state of a checkpoint, which state.json holds: where the run is, its recipe, data and schedule, what it computed
with; strictly as it was written.

This is format 6. Format 5 lacks `Environment.microbatch` and `pairs`, format 4 its `overlap`, and the recipe of format
3 `batch_file_size` (`recipe.upgraded`)."""

import json
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from ..recipes.recipe import Recipe, upgraded
from ..system.errors import need
from .safetensors_file import parse

VERSION = 6
# What the environment of a run has had since which format, as it was before.
SINCE = {5: {"overlap": None}, 6: {"microbatch": None, "pairs": 1}}
MOST_STATE = 4 << 20  # bytes; 22,000 class names are less than two million
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
Count = Annotated[int, Field(ge=0, lt=2**53)]  # what every reader of JSON holds exactly
Amount = Annotated[float, Field(ge=0)]
Percent = Annotated[float, Field(ge=0, le=100)]


@dataclass(frozen=True)
class Data:
    """The training data, as the run's data set describes itself."""

    __pydantic_config__ = _STRICT

    source: str
    description: str
    fingerprint: str
    classes: tuple[str, ...]  # in the order of their labels; like `source` they may hold names that are no UTF-8


@dataclass(frozen=True)
class Validation:
    __pydantic_config__ = _STRICT

    top1_error: Percent
    top5_error: Percent
    loss: Annotated[float, Field(ge=-1e-6)]  # a probability of 1 may round to more
    images: Count


@dataclass(frozen=True)
class Scheduled:
    """The rates that the run logged last."""

    __pydantic_config__ = _STRICT

    learning_rates: dict[str, Amount]  # {"conv1.weight": 0.01, ...}, of every layer
    colour_noise: Amount


@dataclass(frozen=True)
class Environment:
    """What decides about rounding: only the same of all this promises the same bits."""

    __pydantic_config__ = _STRICT

    devices: tuple[str, ...]
    kernels: str
    precision: Literal["fp32", "tf32", "bf16"]
    pipeline: str
    overlap: Literal["on", "off"] | None  # None: not recorded, before format 5
    threads: Count
    packages: dict[str, str | None]  # versions
    microbatch: Count | None  # images whose gradients were computed at once; None: all that a pair has
    pairs: Count  # of towers, that computed a part of each minibatch; 1 with a microbatch, which knows no pairs


@dataclass(frozen=True)
class State:
    """Where a run is, and what it is. Everything else that it needs follows from these numbers and the tensors."""

    __pydantic_config__ = _STRICT

    step: Count  # taken
    epoch: Count
    recipe: Recipe
    data: Data
    schedule: dict[str, Count | Amount | None]  # what the schedule's `state` gave
    scheduled: Scheduled | None
    validated: bool  # False: the validation that is due after this step is still to come
    validation: Validation | None  # of exactly this step
    metrics_bytes: Count  # length of metrics.jsonl at this step
    made_by: Environment
    saved: str  # ISO time; information only


_ADAPTER = TypeAdapter(State)


def fields_of(state: State) -> dict:
    """As state.json has them."""
    return _ADAPTER.dump_python(state, mode="json", warnings=False)


def read(content: bytes, number: int) -> State:
    """The `State` in the bytes of state.json, written in format `number`. Raises ValueError or RecursionError."""
    need(len(content) <= MOST_STATE, f"it has {len(content):,} bytes, {MOST_STATE:,} at most are read")
    fields = parse(content)
    if number < VERSION and isinstance(fields, dict):
        _upgrade(fields, number)
    # A folder's name may be no UTF-8. Python's surrogates for it are no JSON text to pydantic, so they are put back
    # afterwards.
    state = _ADAPTER.validate_json(json.dumps(fields, ensure_ascii=False).encode(errors="replace"))
    data = fields["data"]
    state = replace(state, data=Data(data["source"], data["description"], data["fingerprint"], tuple(data["classes"])))
    # A default of the recipe must not fill in for a number that the run didn't record.
    need(fields_of(state) == fields, "a field is missing, or was written in another way")
    need(state.data.classes, "data.classes is empty")
    need(state.validated or state.validation is None, "it has a validation that is still to come")
    rate_names = {f"{layer.name}.{kind}" for layer in state.recipe.layers for kind in ("weight", "bias")}
    need(
        state.scheduled is None or set(state.scheduled.learning_rates) == rate_names,
        "the names in scheduled.learning_rates are not those of the recipe",
    )
    return state


def _upgrade(fields, number):
    """Give the fields of an older format what they lack, which none of them may have. Raises ValueError."""
    complaint = f"a field that format {number} had not is there"
    environment = fields.get("made_by")
    if isinstance(environment, dict):  # anything else is refused with all the rest
        for defaults in (defaults for since, defaults in SINCE.items() if since > number):
            need(not environment.keys() & defaults, f"its environment is none of format {number}: {complaint}")
            environment = {**environment, **defaults}
        fields["made_by"] = environment
    if number < 4:
        recipe = fields.get("recipe")
        fields["recipe"] = upgraded(recipe)
        need(fields["recipe"] is not recipe, f"its recipe is none of format {number}: {complaint}")
