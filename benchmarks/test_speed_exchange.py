"""The four layers that read both towers, forward and backward, by themselves: what the crossings and their overlap cost
and gain.

    pytest benchmarks/test_speed_exchange.py --benchmark-only [--batch 128] [--rounds 15]

`concatenated`: both towers on one device; the halves are joined, one product is made. `overlapped`: each half is
carried to the other tower while the own half is multiplied (`split_product.split_input_product`); `in-order`: the same
without overlap. On one GPU these two carry to the same device, on a CPU they carry nothing: there they show what two
products instead of one cost, and no figure of two GPUs.
"""

import pytest
import torch
from interleaved import REPLAY, clocks, compare, once, provenance, replay, time_interleaved

from alexnet_mp import TwoTowerAlexNet, paper
from alexnet_mp.recipes import shapes

EDGES = [size.layer.name for size in shapes.sizes(paper()) if size.layer.reads == "both"]
PLACES = {"cpu": ("cpu", "cpu"), "one-gpu": ("cuda:0", "cuda:0"), "two-gpus": ("cuda:0", "cuda:1")}
GPUS = {"one-gpu": 1, "two-gpus": 2}
VARIANTS = ("overlapped", "in-order", "concatenated")
SEED = 0


@pytest.fixture(scope="module")
def measured():
    return once(measure)


@pytest.mark.benchmark(timer=REPLAY)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize(
    "place", [pytest.param(place, marks=[pytest.mark.gpus(GPUS[place])] if place in GPUS else ()) for place in PLACES]
)
@pytest.mark.long("exchange")
def test_exchange(place, edge, variant, benchmark, measured, asked, rounds, request):
    devices = tuple(map(torch.device, PLACES[place]))
    batch = (request.config.getoption("batch") or (2 if benchmark.disabled else 128,))[0]
    seconds, bytes_, conditions = measured(devices, edge, batch, rounds, asked)
    if variant not in seconds:
        pytest.skip("on two devices there is nothing to concatenate before it has crossed")
    benchmark.group = f"exchange-{place}-{edge}-fp32-b{batch}"
    replay(benchmark, seconds[variant]["fwdbwd"])
    figures = compare(seconds, "fwdbwd", None, VARIANTS[1:])[variant]
    benchmark.extra_info.update(
        provenance(devices[0])
        | conditions
        | figures
        | {
            "op": "exchange",
            "variant": variant,
            "dtype": "fp32",
            "batch": batch,
            "edge": edge,
            "place": place,
            "carried_bytes": bytes_[variant],
        }
    )


def measure(devices, edge, batch, rounds, names):
    """The answers compared, then the variants timed: (seconds, bytes carried, the conditions, for the record)."""
    network = TwoTowerAlexNet(paper(), devices)
    alone = devices[0] == devices[1]
    variants = {name: Edge(network, edge, batch, name) for name in names if alone or name != "concatenated"}
    oracle = variants.get("in-order") or Edge(network, edge, batch, "in-order")
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, benchmark=False, allow_tf32=False):
        answers, targets = {name: variant.answers() for name, variant in variants.items()}, oracle.answers()
    for name, tensors in answers.items():
        for tensor, target in zip(tensors, targets, strict=True):
            error = ((tensor - target).norm() / target.norm()).item()
            # With and without overlap the same operations are done in the same order.
            assert error <= (1e-5 if name == "concatenated" else 0), f"{name}: {error:.1e} off"
    before = clocks(devices[0])
    seconds, _ = time_interleaved(variants, devices[0], rounds, seed=SEED)
    on_gpu = devices[0].type == "cuda"
    bytes_ = {name: on_gpu * sum(entry.bytes for entry in variant.ledger) for name, variant in variants.items()}
    return (
        seconds,
        bytes_,
        {"kernels": network.kernels_used(), "clocks_before": before, "clocks_after": clocks(devices[0]), "seed": SEED},
    )


class Edge:
    """One layer of both towers, from the halves to its output and back."""

    calls, sets = 1, 1

    def __init__(self, network, edge, batch, way):
        self.network, self.edge, self.way = network, edge, way
        sizes = shapes.sizes(paper())
        place = next(number for number, size in enumerate(sizes) if size.layer.name == edge)
        self.readers = 1 if sizes[place].layer.towers == "first" else 2
        shape = sizes[place - 1].output if sizes[place - 1].layer.kind != "fc" else sizes[place - 1].output[:1]
        generator = torch.Generator().manual_seed(SEED)
        self.halves = [
            self._maps(torch.randn(batch, *shape, generator=generator), device).requires_grad_()
            for device in network.exchange.devices
        ]
        self.runs = {"fwdbwd": self.run}

    @staticmethod
    def _maps(tensor, device):
        return tensor.to(device, memory_format=torch.channels_last) if tensor.dim() == 4 else tensor.to(device)

    def run(self):
        exchange, a, b = self.network.exchange, *self.network.exchange.devices
        if a != b:  # the clock is the first device's: it must not start before the second, nor stop
            torch.cuda.current_stream(b).wait_stream(torch.cuda.current_stream(a))
        exchange.clear()
        exchange.shared, exchange.copy_stream = self.way == "concatenated", self.way == "overlapped"
        self.network.zero_grad()
        for half in self.halves:
            half.grad = None
        outputs = [
            tower(self.edge, parts)
            for tower, parts in zip(self.network.towers, exchange.gather(self.edge, self.halves, self.readers))
        ]
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
        self.ledger = list(exchange.ledger)
        if a != b:
            torch.cuda.current_stream(a).wait_stream(torch.cuda.current_stream(b))

    def answers(self):
        self.run()
        weights = [getattr(tower, self.edge).weight for tower in self.network.towers[: self.readers]]
        return [tensor.grad.cpu() for tensor in (*self.halves, *weights)]
