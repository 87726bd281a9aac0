"""A training step as CUDA graphs: its few hundred kernels are launched at once, so that the devices need not wait for
the host.

With both towers on one device forward and backward are one graph. On two devices each has its graphs from one crossing
to the next, and the copies between them are launched one by one (`graph_segments.py`, `cuda_graphs.Tape`). So has each
process that holds one tower; its crossings are sends and receives. Two processes capture, compare and give up at the
same step, since the other waits in a crossing for each pass of the one.

The first steps of a shape are eager, on the stream that will capture: they load kernels, and make cuDNN's and cuBLAS's
workspaces, which belong to a stream. Then forward and backward are captured, once a shape of batch, and compared with
an eager pass over the same batch: graphs whose results are others are given up. The update is a graph of its own, one a
device: its kernel finds weights, gradients and rates in tables on the device, which an eager call has to make before a
capture. So after the capture of a new forward and backward pass, whose gradients lie elsewhere, or after a change of
rates, one update is eager.

What a replay does not read again is how a graph is found, or why it is dropped: shape, dtype and order in memory of the
batch; which layers are trained; rates. Weights, velocities and the passes counted for the dropout masks are changed in
place, so that eager steps, replays, validation and checkpoints all see the same memory, and a run has the same bits
with graphs and without."""

import gc
from collections.abc import Sequence

import torch

from ..data.step_input import kind
from ..kernels.sgd import update_tables_in
from ..network.exchange import Entry
from ..system.errors import UserError
from ..system.ranks import InVain
from ..system.terminal import say
from . import graph_segments
from .cuda_graphs import CudaGraphs, Tape
from .step import TrainingStep

CHOICES = ("auto", "on", "off")
WARM_UP = 3  # eager steps of a shape
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


def resolve(
    choice: str, devices: Sequence[torch.device], overlap: bool | None = None, never: str = "", apart: bool = False
) -> tuple[bool, str]:
    """What `--graphs` means for towers on these devices: (whether there are graphs, of what, or "off" and why).

    overlap: see `Exchange`. never: why there can't be any yet, whatever the devices. apart: whether each tower has a
    process, and the device is this one's. Raises UserError where "on" can't be.
    """
    kinds = list(dict.fromkeys(devices))
    if choice == "off":
        return False, "off"
    if never:
        if choice == "on":
            raise UserError(f"--graphs on: not yet with {never}; --graphs auto would work")
        return False, f"off ({never})"
    if all(device.type == "cuda" for device in kinds):
        if len(kinds) == 1 and not apart:
            return True, "whole step"
        if overlap is not False:
            return True, "from crossing to crossing"
        if choice == "on":  # `graph_segments.py` computes by halves
            where = "in two processes" if apart else "on two devices"
            raise UserError(f"--graphs on: {where} it goes with --overlap on alone; --graphs auto would work")
        return False, "off (--overlap off)"
    where = " and ".join(map(str, kinds))
    if choice == "on":
        needs = (
            "its tower must be on a CUDA device, and it is"
            if apart
            else "both towers must be on CUDA devices, and they are"
        )
        gpu = next((device.index or 0 for device in kinds if device.type == "cuda"), 0)
        remedy = f"--gpus {gpu}, or --graphs auto" if torch.cuda.device_count() else "--graphs auto"
        raise UserError(f"--graphs on: {needs} on {where}; {remedy} would work")
    return False, f"off ({where})"


def graphed(step: TrainingStep, choice: str) -> "TrainingStep | GraphedStep":
    """The `TrainingStep`, or a `GraphedStep` of it, as `resolve` has it."""
    exchange = step.network.exchange
    devices = exchange.devices
    has_graphs, _ = resolve(choice, devices, exchange.chosen_overlap, apart=exchange.between == "processes")
    if not has_graphs:
        return step
    return GraphedStep(step, CudaGraphs(dict.fromkeys(devices)), must=choice == "on")


class GraphedStep:
    """Called like its `TrainingStep`, with the same effects; the tensors that it returns are overwritten by the next
    call.

    graphs: a `CudaGraphs`. must: graphs that can't be had are a UserError; else it is said in a line, and this and all
    further steps are eager. Whichever pass was tried for it, none is counted, and no weight has changed."""

    def __init__(self, step: TrainingStep, graphs: CudaGraphs, must: bool = False):
        self.step, self.graphs, self.must = step, graphs, must
        # {key: `_Shape`}, and what all of their graphs were captured with
        self.shapes, self.trained, self.rates = {}, None, None
        self.given_up = False

    def __call__(self, images, labels, check_loss, count=None):
        self.step.network.keep_copies(images[0].dtype)  # graphs read them
        self._drop_what_is_out_of_date()
        shape = self._shape_of(images, labels)
        loss, right = self._forward_and_backward(shape, images, labels, check_loss)
        return [loss, right, *self._update(shape)]

    def ledger(self, count: int) -> list[Entry]:
        """What crossed between the towers in the last step."""
        return self.step.ledger(count)

    def _drop_what_is_out_of_date(self):
        """At most one set of graphs a shape is kept: rates hardly ever return, and a layer that thaws is worth another
        capture. What another process's tower alone has, as the last layer, counts too: both capture at the same
        step."""
        network, optimizer = self.step.network, self.step.optimizer
        flags = [parameter.requires_grad for parameter in network.parameters()]
        trained = network.training, network.kept_dtype, flags, [rate > 0 for rate in optimizer.rates.values()]
        rates = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups], optimizer.rates
        if trained != self.trained:
            self._drop_all()
        elif rates != self.rates:
            for shape in self.shapes.values():
                shape.drop_update()
        self.trained, self.rates = trained, rates

    def _drop_all(self):
        for shape in self.shapes.values():
            shape.drop()
        self.shapes = {}

    def _shape_of(self, images, labels):
        # On one device both towers' images are one tensor, and a graph copies it once.
        key = tuple(map(kind, (*images, labels))), images[0] is images[-1]
        return self.shapes.setdefault(key, _Shape())

    def _forward_and_backward(self, shape, images, labels, check_loss):
        """Loss and right answers; the gradients are left with the parameters."""
        if not self.given_up and not shape.captured and shape.eager_steps == WARM_UP:
            self._capture_forward_and_backward(shape, images, labels)
        if self.given_up:
            return self.step.forward_and_backward(images, labels, check_loss)
        with self.graphs.aside():
            if not shape.captured:
                shape.eager_steps += 1
                return self.step.forward_and_backward(images, labels, check_loss)
            shape.take(images, labels)
            shape.forward_and_backward.replay()
        for parameter in self.step.network.parameters():
            parameter.grad = shape.gradients.get(parameter)
        self.step.network.exchange.ledger = list(shape.ledger)
        check_loss(shape.numbers[0])
        return shape.numbers

    def _capture_forward_and_backward(self, shape, images, labels):
        """Leaves the shape captured, or this object given up and everything as it was."""
        counts = [tower.step.clone() for tower in self.step.network.towers]
        try:
            with self.graphs.aside():
                error = self._failure_in_any(lambda: self._capture(shape, images, labels))
                if error or (error := self._difference(shape, images, labels, counts)):
                    self._give_up(error)
        finally:
            self._set_counters(counts)

    def _failure_in_any(self, capture):
        """Call capture(). Returns what failed here, or else that it failed in the other tower's process; None where it
        has failed in none: so all of them give up, or none does."""
        error = None
        try:
            capture()
        except Exception as failure:  # whatever it is, the step can be taken without
            error = failure
        if self.step.network.exchange.any(error is not None):
            return error or RuntimeError("the other tower's process can't capture it")
        return None

    def _capture(self, shape, images, labels):
        network, pool = self.step.network, next((other.pool for other in self.shapes.values() if other.captured), None)
        gc.collect()  # what lets go of memory of the device in its own way must not be found in the middle of a capture
        shape.make_room(images, labels)
        # So that their memory is free; without gradients at the beginning, those that backward makes lie in the graph's
        # own.
        self.step.optimizer.zero_grad(set_to_none=True)
        shape.pool = pool or self.graphs.new_pool()
        shape.forward_and_backward, shape.numbers = self._captured_pass(shape)
        shape.gradients = {
            parameter: parameter.grad for parameter in network.parameters() if parameter.grad is not None
        }
        shape.ledger = network.ledger()

    def _captured_pass(self, shape):
        """(what has replay() and reset(), [loss, right answers])"""
        network = self.step.network
        if network.exchange.shared:
            return self.graphs.capture(
                lambda: self.step.forward_and_backward(shape.images, shape.labels, lambda loss: None),
                shape.pool,
                network.exchange.devices[0],
            )
        tape = Tape(self.graphs, shape.pool, network.exchange)
        try:
            return tape, graph_segments.forward_and_backward(network, shape.images, shape.labels, tape)
        except Exception:
            tape.reset()
            raise

    def _difference(self, shape, images, labels, counts):
        """What is wrong with a replay; None."""
        try:
            same = self._computes_the_same(shape, images, labels, counts)
        except Exception as error:
            if self.step.network.exchange.between == "processes":
                raise  # the other one waits in a crossing of the pass that failed here
            return error
        return None if same else RuntimeError("a replay has other bits than an eager step")

    def _computes_the_same(self, shape, images, labels, counts):
        """Whether a replay has the bits of an eager pass, in every process, if that has the same bits twice. Called
        `aside`. counts: passes, a tower."""
        network = self.step.network

        def results(numbers):
            return [*numbers, *(parameter.grad for parameter in network.parameters())]

        def eager():
            self._set_counters(counts)
            return results(self.step.forward_and_backward(images, labels, lambda loss: None))

        baseline = eager()
        self._set_counters(counts)
        shape.forward_and_backward.replay()
        for parameter in network.parameters():
            parameter.grad = shape.gradients.get(parameter)
        same = _same_bits(baseline, results(shape.numbers))
        if not network.exchange.any(not same):
            return True
        repeat = eager()  # in every process, since the other waits for it
        return not network.exchange.any(not same and _same_bits(baseline, repeat))

    def _set_counters(self, counts):
        for tower, passes in zip(self.step.network.towers, counts, strict=True):
            tower.step.copy_(passes)

    def _update(self, shape):
        """Sums of the weights, one tensor a device."""
        if not self.given_up and shape.captured and shape.updated and shape.update is None:
            self._capture_update(shape)
        if self.given_up:
            return self.step.update()
        with self.graphs.aside():
            if shape.update:
                for graph in shape.update:
                    graph.replay()
                return shape.sums
            shape.updated = shape.captured
            if not shape.gradients:  # not captured yet; or no layer is trained here, and there is nothing to capture
                return self.step.update()
            with update_tables_in(shape.tables):
                return self.step.update()

    def _capture_update(self, shape):
        shape.update = []

        def capture():
            with update_tables_in(shape.tables):
                gc.collect()
                for device in self.step.optimizer.devices() if shape.gradients else ():
                    graph, sums = self.graphs.capture(
                        lambda device=device: [self.step.update_on(device)], shape.pool, device, update=True
                    )
                    shape.update.append(graph)
                    shape.sums += sums

        with self.graphs.aside():
            if error := self._failure_in_any(capture):
                shape.drop_update()
                self._give_up(error)

    def _give_up(self, error):
        reason = " ".join((str(_root_cause(error)).splitlines() or [type(error).__name__])[0].split())
        if self.must:
            raise InVain(
                f"--graphs on: no CUDA graphs can be had of this step: {reason}; --graphs auto goes on without"
            ) from error
        say(
            f"WARNING: no CUDA graphs can be had of this step: {reason}; the training goes on without, with the same "
            "numbers"
        )
        self.given_up = True
        for shape in self.shapes.values():  # but not the gradients: they may be those of this very step
            shape.drop()


class _Shape:
    """What is known of batches of one shape, with one set of trained layers."""

    def __init__(self):
        self.eager_steps, self.pool = 0, None
        # Graphs, of the update one a device; None: not captured yet.
        self.forward_and_backward = self.update = None
        self.images = self.labels = None  # where the first graph reads them
        self.numbers, self.sums = [], []  # loss and right answers, sums of the weights: what replays write
        self.gradients, self.ledger = {}, []  # {parameter: where backward writes its gradient}
        # the update's, on the device; whether it ran eagerly with these gradients and rates
        self.tables, self.updated = {}, False

    @property
    def captured(self):
        return self.forward_and_backward is not None

    def make_room(self, images, labels):
        places = {id(image): image.clone() for image in images}
        self.images, self.labels = [places[id(image)] for image in images], labels.clone()

    def take(self, images, labels):
        """Copy a batch to where the graph reads it."""
        for place, image in {
            id(place): (place, image) for place, image in zip(self.images, images, strict=True)
        }.values():
            place.copy_(image, non_blocking=True)
        self.labels.copy_(labels, non_blocking=True)

    def drop_update(self):
        for graph in self.update or ():
            graph.reset()
        self.update, self.sums, self.tables, self.updated = None, [], {}, False

    def drop(self):
        """Free both graphs, to be used no more. Replays on their way are finished all the same (CUDA,
        `cudaGraphExecDestroy`)."""
        self.drop_update()
        if self.captured:
            self.forward_and_backward.reset()
        self.forward_and_backward = self.images = self.labels = None
        self.numbers, self.gradients = [], {}


def _same_bits(left, right):
    """Of two lists of tensors, or None; they have to lie in memory alike, too."""
    return all(
        a is b
        or a is not None
        and b is not None
        and a.stride() == b.stride()
        and torch.equal(*(tensor.view(INTEGERS[tensor.element_size()]) for tensor in (a, b)))
        for a, b in zip(left, right, strict=True)
    )


def _root_cause(error):
    """The first of errors that followed each other: that a capture can't be ended says less than what broke it."""
    while isinstance(error.__context__, RuntimeError):
        error = error.__context__
    return error
