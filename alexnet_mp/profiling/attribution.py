"""Which layer an operation of a recorded training step belongs to.

Forward, an operation belongs to the range that it lies in: `profiler.py` opens one around every layer and every other
part of a step. Backward there are no ranges: autograd numbers a backward node when the forward operation makes it, and
the profiler records that number with both, so a node belongs where its forward operation does. A kernel belongs to the
operation that launched it."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent

RANGE = "alexnet_mp: "  # what the names of our own ranges begin with
STEP, INPUT, FORWARD_BACKWARD, NETWORK, UPDATE = (
    RANGE + name for name in ("step", "input", "forward and backward", "network", "update")
)
LAYER = RANGE + "layer "  # and then its name and its tower's letter
NODE = "autograd::engine::evaluate_function: "
# Of `network/exchange.py`, `network/split_product.py`, `kernels/linear_op.py`.
CROSSING, SPLIT_INPUT, ONEDNN = "_Whole", "_SplitInputFunction", "_OneDnn"
OPTIMIZER = "Optimizer.step#"  # torch's own range around every optimizer's step
PRODUCTS = {
    "aten::conv2d",
    "aten::convolution",
    "aten::linear",
    "aten::addmm",
    "aten::mm",
    "aten::matmul",
    "aten::bmm",
    "aten::baddbmm",
    SPLIT_INPUT,
    ONEDNN,
}


@dataclass
class Operation:
    """An operation, an autograd node or a range, as the host's threads ran it. Times in microseconds."""

    name: str
    start: float
    end: float
    thread: int
    forward_thread: int = 0  # of a backward node: where its forward operation ran; 0 where it isn't known
    sequence: int = -1  # autograd's number; of a forward operation, the number that the next node gets
    kernels: tuple = ()  # ((index of the GPU, microseconds), ...) that it launched itself
    parent: "Operation | None" = None
    inner: float = 0.0  # microseconds of its children

    @property
    def own(self) -> float:
        """Microseconds without its children's."""
        return self.end - self.start - self.inner


class Place(NamedTuple):
    """A row of the table, and the pass."""

    part: str  # a layer's name, "loss", "exchange", "update", "input" or "other"
    kind: str = ""  # of a layer: "product", or "then" for what follows it
    tower: str = ""  # of a layer: "a" or "b"
    backward: bool = False


OTHER = Place("other")


@dataclass
class Times:
    """Microseconds of all recorded steps together."""

    whole: float  # steps and the waiting for their input, on the host
    waited: float  # for input, on the host
    host: dict  # {Place: µs} of the thread that trains
    gpus: dict  # {index: {Place: µs of kernels}}


def attribute(operations: Sequence[Operation]) -> Times:
    """`Times` of all operations. What can't be told is `OTHER`. Sets their `parent` and `inner`."""
    threads = _nest(operations)
    times = Times(0.0, 0.0, defaultdict(float), defaultdict(lambda: defaultdict(float)))
    steps = [operation for operation in operations if operation.name in (STEP, INPUT)]
    if not steps:
        return times
    main = steps[0].thread
    times.whole = sum(operation.end - operation.start for operation in steps)
    times.waited = sum(operation.end - operation.start for operation in steps if operation.name == INPUT)
    ends, origins = _ends_of_products(threads[main]), {}
    # The thread that trains is the first: what it did forward says where the nodes of the others, one thread a GPU,
    # belong.
    for thread in sorted(threads, key=lambda thread: thread != main):
        places, node_place = {}, OTHER
        for operation in threads[thread]:
            scope = places.get(id(operation.parent)) if operation.parent else None
            if operation.name.startswith(NODE):
                place = node_place = _place_of_node(operation, origins, main, node_place)
            elif scope is not None and scope.backward:
                # Between the nodes that it runs itself, this one sends the other tower's gradient.
                place = Place("exchange", backward=True) if operation.parent.name == SPLIT_INPUT + "Backward" else scope
            elif thread == main:
                place = _forward(operation, scope, ends)
                if place is not None and operation.sequence >= 0 and not operation.name.startswith(RANGE):
                    origins[thread, operation.sequence] = place  # the last one with this number made the node
            else:
                place = None
            if place is None:
                continue
            places[id(operation)] = place
            if thread == main:
                times.host[_host_place(operation, place)] += operation.own
            for index, duration in operation.kernels:
                times.gpus[index][place] += duration
    return times


def _nest(operations):
    """{thread: its operations by start}, each with the smallest one around it as its parent."""
    threads = defaultdict(list)
    for operation in operations:
        threads[operation.thread].append(operation)
    for timeline in threads.values():
        timeline.sort(key=lambda operation: (operation.start, -operation.end))
        stack = []
        for operation in timeline:
            while stack and (operation.start >= stack[-1].end or operation.end > stack[-1].end):
                stack.pop()
            if stack:
                operation.parent = stack[-1]
                stack[-1].inner += operation.end - operation.start
            stack.append(operation)
    return threads


def _ends_of_products(operations):
    """{id of a layer's range: when its last product ended}."""
    return {
        id(operation.parent): operation.end
        for operation in operations
        if operation.name in PRODUCTS and operation.parent and operation.parent.name.startswith(LAYER)
    }


def _forward(operation, scope, ends):
    """The place of an operation on the thread that trains, in a range whose place is `scope`; None outside of all
    steps."""
    name = operation.name
    if name == INPUT:
        return Place("input")
    if name == STEP:
        return OTHER
    if scope is None:
        return None
    if name.startswith(LAYER):
        layer, tower = name.removeprefix(LAYER).split()
        return Place(layer, "product", tower)
    if name == FORWARD_BACKWARD:
        return Place("loss")
    if name == NETWORK or name == CROSSING:
        return Place("exchange")
    if name == UPDATE or name.startswith(OPTIMIZER):
        return Place("update")
    parent = operation.parent
    if parent.name.startswith(LAYER) and operation.start >= ends.get(id(parent), operation.end):
        return scope._replace(kind="then")
    return scope


def _host_place(operation, place):
    """Where the host's own time in an operation counts: what lies between the parts of a step belongs to none of
    them."""
    return OTHER if operation.name in (FORWARD_BACKWARD, NETWORK, UPDATE) else place


def _place_of_node(operation, origins, main, node_place):
    """The place of a backward node. One without a number adds up a parameter's gradient, straight after the node that
    made it."""
    place = (
        origins.get((operation.forward_thread or main, operation.sequence)) if operation.sequence >= 0 else node_place
    )
    return (place or OTHER)._replace(backward=True)


def from_torch(events: Iterable[FunctionEvent]) -> list[Operation]:
    """`Operation`s from the events of a torch.profiler.profile, those of the host: each knows the kernels that it
    launched."""
    operations = []
    for event in events:
        if event.device_type != DeviceType.CPU or event.is_async:
            continue
        # A range has a shadow on the GPU, from its first kernel to its last: no kernel.
        kernels = (
            () if event.is_user_annotation else tuple((kernel.device, kernel.duration) for kernel in event.kernels)
        )
        operations.append(
            Operation(
                event.name,
                event.time_range.start,
                event.time_range.end,
                event.thread,
                event.fwd_thread or 0,
                event.sequence_nr,
                kernels,
            )
        )
    return operations
