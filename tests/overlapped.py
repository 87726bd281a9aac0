"""Networks whose crossings overlap with products, on stand-ins for streams."""

import collections
import contextlib

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from alexnet_mp import TwoTowerAlexNet
from alexnet_mp.network import exchange
from alexnet_mp.network.network import merge_tensors

LABELS = torch.tensor([1, 6, 0])


def apart(recipe, devices=("cpu", "cpu"), dtype=torch.float64):
    """A network whose towers carry everything to each other, although they may share a device."""
    network = TwoTowerAlexNet(recipe, devices, 7).to(dtype)
    with torch.no_grad():
        for number, parameter in enumerate(network.parameters()):
            if parameter.dim() == 1:
                parameter.add_(torch.linspace(-0.1, 0.2, len(parameter)).to(parameter) * (1 + number % 3))
    network.exchange.shared = False
    return network


def images(recipe, dtype=torch.float64, count=3):
    return 60 * torch.randn(
        count, 3, recipe.crop_size, recipe.crop_size, generator=torch.Generator().manual_seed(5), dtype=dtype
    )


def gradients(network, x):
    """Logits and {name: merged gradient} of one training pass."""
    logits = network(*(x.to(device) for device in network.exchange.devices))
    F.cross_entropy(logits, LABELS.to(logits.device)).backward()
    tower_gradients = {
        name: [part.grad for part in parts if part.grad is not None]
        for name, parts in network.layer_parameters().items()
    }
    return logits.detach(), merge_tensors({name: parts for name, parts in tower_gradients.items() if parts})


class Called(TorchDispatchMode):
    """Counts the calls of operators."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[function] += 1
        return function(*args, **(kwargs or {}))


class Products(TorchDispatchMode):
    """Writes down each convolution and product, and which gradients a convolution's backward pass computes."""

    def __init__(self, events):
        super().__init__()
        self.happened = events

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.convolution_backward.default:
            self.happened.append(
                "gradient of "
                + " and ".join(what for what, wanted in zip(("x", "weight", "bias"), args[-1], strict=True) if wanted)
            )
        elif function is torch.ops.aten.convolution.default:
            self.happened.append("product")
        return function(*args, **(kwargs or {}))


FROZEN = ["", "fc6.weight", "fc6.bias fc7.bias fc8.bias", "conv1. conv2. conv3. conv4. conv5. fc6.", "fc8."]


# --- on GPUs: real streams

CYCLES = 20_000_000  # of the GPU's clock: some 10 ms, longer than any copy here


@contextlib.contextmanager
def delayed(monkeypatch, where):
    """Every copy with a pause of the device: before it on the copy's streams, "out" of the source or "into" the target,
    or on the streams that "compute", just after the copy is begun."""
    copy, streams = exchange.copy, exchange._copy_streams

    def slow(tensor, device, copy_stream, place=None):
        out, into = streams(tensor.device, device)
        if where in ("out", "into"):
            with torch.cuda.stream(out if where == "out" else into):
                torch.cuda._sleep(CYCLES)
        arrival = copy(tensor, device, copy_stream, place)
        if where == "compute":
            for place in {tensor.device, device}:
                with torch.cuda.device(place):
                    torch.cuda._sleep(CYCLES)
        return arrival

    with monkeypatch.context() as patch:
        patch.setattr(exchange, "copy", slow)
        yield
