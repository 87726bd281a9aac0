"""The crossings and their ledger; and that no operation outside the exchange ever mixes the towers' devices."""

import pytest
import torch
import torch.nn.functional as F
from inner_cases import every
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alexnet_mp import TwoTowerAlexNet, mini, paper, source2012
from alexnet_mp.network import exchange
from alexnet_mp.recipes.recipe import change_layers
from alexnet_mp.recipes.shapes import crossings
from alexnet_mp.training.schedule import make_schedule
from alexnet_mp.training.update_rule import PaperSGD

pytestmark = pytest.mark.run


class OneDevicePerOperation(TorchDispatchMode):
    """Raises where one operation reads or writes tensors of two devices. Sees what autograd runs, too."""

    def __init__(self):
        super().__init__()
        self.devices, self.operations = set(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        # A tensor without dimensions counts as a number: torch lets every device read it.
        devices = {
            leaf.device
            for leaf in tree_leaves((args, kwargs, result))
            if isinstance(leaf, torch.Tensor) and leaf.dim() > 0
        }
        if len(devices) > 1:
            raise AssertionError(f"{function} mixes {sorted(map(str, devices))}")
        self.devices |= devices
        self.operations += 1
        return result


@pytest.fixture
def teleport(monkeypatch):
    """The exchange's copy, replaced: nothing can leave `meta`, so zeros arrive. Making them reads no tensor of the
    other device."""

    def copy(tensor, device, copy_stream):
        assert tensor.device != device
        return exchange.Arrival(torch.zeros(tensor.shape, dtype=tensor.dtype, device=device))

    monkeypatch.setattr(exchange, "copy", copy)


def network_on(devices, recipe, classes=10):
    return TwoTowerAlexNet(recipe, devices, classes)


def one_step(network, batch, recipe):
    """Forward, loss, backward and update, each tower on its own device."""
    a, b = network.exchange.devices
    optimizer = PaperSGD(network)
    optimizer.set_rates(make_schedule(recipe).rates(1))
    images = [torch.zeros(batch, 3, recipe.crop_size, recipe.crop_size, device=device) for device in (a, b)]
    labels = torch.zeros(batch, dtype=torch.int64, device=a)
    with OneDevicePerOperation() as check:
        F.cross_entropy(network(*images), labels).backward()
        optimizer.step()
    return check


@every("devices", [("cpu", "meta"), ("meta", "cpu")])
@every("preset", [mini, paper, source2012])
def test_no_operation_mixes_devices(preset, devices, teleport):
    recipe = change_layers(preset(), "fc6", "fc7", maps=32)
    check = one_step(network_on(devices, recipe), 2, recipe)
    assert check.devices == {torch.device("cpu"), torch.device("meta")}
    assert check.operations > 200  # forward, backward and update were all seen


@every("where", ["bias", "product", "gradient"])
def test_an_operation_moved_across_is_seen(where, teleport):
    """torch runs each of these on cpu and meta together without a word: only the check can see them."""
    network = network_on(("cpu", "meta"), mini())
    a, b = network.towers
    if where == "bias":  # tower b adds tower a's bias
        b.conv4.forward = lambda x, step: F.conv2d(x, b.conv4.weight, a.conv4.bias, 1, 1)
    elif where == "product":  # tower b multiplies by tower a's weights
        b.conv4.forward = lambda x, step: F.conv2d(x, a.conv4.weight, None, 1, 1)
    else:  # only in backward: a gradient is scaled by a tensor of the other device
        b.conv4.weight.register_hook(lambda gradient: gradient.mul_(torch.ones(96, 1, 1, 1)))
    with pytest.raises(AssertionError, match="mixes"):
        one_step(network, 2, mini())


def test_a_missing_crossing_is_seen(teleport, monkeypatch):
    """Without the copy tower b's conv3 would read tower a's tensor where it lies."""
    monkeypatch.setattr(exchange, "copy", lambda tensor, device, copy_stream: exchange.Arrival(tensor))
    with pytest.raises(AssertionError, match="convolution.default mixes"):
        one_step(network_on(("cpu", "meta"), mini()), 2, mini())


@every("preset", [paper, mini])
def test_the_ledger_equals_the_analytic_table(preset, teleport):
    """Batch 128 in float32; for the paper's network 60.0 MB a step, 11,075,584 bytes each way at conv3."""
    recipe = preset()
    network = network_on(("cpu", "meta"), recipe, 1000)
    batch = 128 if preset is mini else 4  # the bytes are proportional to the batch: 4 images are enough to count
    one_step(network, batch, recipe)
    rows = sorted((entry.edge, entry.direction, entry.pass_, entry.bytes * 128 // batch) for entry in network.ledger())
    assert rows == sorted(crossings(recipe, 128))
    if preset is paper:
        assert sum(row[3] for row in rows) == 60_030_976
        assert {row[3] for row in rows if row[0] == "conv3"} == {11_075_584}


def test_the_ledger_is_of_one_step(teleport):
    network = network_on(("cpu", "meta"), mini())
    one_step(network, 2, mini())
    ledger = network.ledger()
    one_step(network, 2, mini())
    assert network.ledger() == ledger
    images = [torch.zeros(2, 3, 96, 96, device=device) for device in ("cpu", "meta")]
    with torch.no_grad():
        network(*images)
    assert network.ledger() == [entry for entry in ledger if entry.pass_ == "forward"]


def test_nothing_is_copied_on_one_device():
    network = network_on(("cpu", "cpu"), mini())
    images = torch.randn(2, 3, 96, 96)
    outputs = [torch.randn(2, 4), torch.randn(2, 4)]
    inputs = network.exchange.gather("fc6", outputs, 2)
    assert inputs[0][1].data_ptr() == outputs[1].data_ptr() and inputs[1][0].data_ptr() == outputs[0].data_ptr()
    network(images, images).sum().backward()
    assert len(network.ledger()) == 14 and all(entry.bytes == 0 for entry in network.ledger())


def test_gradients_return_through_the_crossing():
    """What a tower sends is used twice, by itself and by the other tower: its gradient is the sum of both."""
    carrier = exchange.Exchange(("cpu", "cpu"))
    a, b = torch.randn(3, 2, requires_grad=True), torch.randn(3, 2, requires_grad=True)
    (input_a, input_b) = carrier.gather("edge", [a, b], 2)
    (2 * input_a[0] + 3 * input_a[1] + 5 * input_b[0] + 7 * input_b[1]).sum().backward()
    assert (a.grad == 7).all() and (b.grad == 10).all()
    assert [(entry.direction, entry.pass_) for entry in carrier.ledger[:2]] == [
        ("b->a", "forward"),
        ("a->b", "forward"),
    ]
    assert sorted(entry.direction for entry in carrier.ledger[2:]) == ["a->b", "b->a"]


@pytest.mark.gpu(reason="needs a GPU")
@pytest.mark.parametrize(
    "devices",
    [
        ("cuda:0", "cuda:0"),
        ("cpu", "cuda:0"),
        pytest.param(("cuda:0", "cuda:1"), marks=pytest.mark.gpu(2, reason="needs two GPUs")),
    ],
    ids=",".join,
)
def test_a_gpu_pair_computes_what_the_cpu_does(devices):
    recipe = mini()
    x, labels = torch.randn(4, 3, 96, 96, dtype=torch.float64) * 60, torch.tensor([1, 2, 3, 4])
    results = []
    for place in (("cpu", "cpu"), devices):
        network = TwoTowerAlexNet(recipe, place, 10).double()
        loss = F.cross_entropy(network(x.to(place[0]), x.to(place[1])), labels.to(place[0]))
        loss.backward()
        results.append(
            (
                loss.item(),
                {name: torch.cat([p.grad.cpu() for p in parts]) for name, parts in network.layer_parameters().items()},
            )
        )
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)
    for name, gradient in results[0][1].items():
        assert (gradient - results[1][1][name]).abs().max() <= 1e-10 * gradient.abs().max(), name
    total = sum(entry.bytes for entry in network.ledger())
    assert total == (0 if devices[0] == devices[1] else sum(row[3] for row in crossings(recipe, 4, 10, 8)))
