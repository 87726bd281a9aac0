"""A layer that reads both towers computes with its own half while the other half crosses; the results don't know.

On a CPU nothing runs beside anything: here a copy that arrives late is one whose values are NaN until somebody waits
for it. The streams themselves are tested where there is a GPU, with delays injected on every one of them."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from inner_cases import every
from overlapped import FROZEN, LABELS, Called, Products, apart, delayed, gradients, images

from alexnet_mp import mini
from alexnet_mp.network import exchange, split_product
from alexnet_mp.network import layer as layers
from alexnet_mp.recipes.recipe import change_layers
from alexnet_mp.recipes.shapes import crossings


def local_conv4(recipe):
    """A locally connected layer that reads both towers, with a window that hangs over the edge."""
    return change_layers(recipe, "conv4", kind="local", reads="both", kernel=4, stride=2, pad=1, maps=5)


@every(
    "recipe",
    [mini(), change_layers(mini(), "conv4", reads="both"), local_conv4(mini())],
    ids=["four edges", "a fifth", "a local one"],
)
def test_two_halves_make_the_whole(recipe):
    """Logits and every gradient are those of the merged network."""
    network, x = apart(recipe), images(recipe)
    merged = network.merge()
    logits, by_name = gradients(network, x)
    expected = merged(x)
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-14)
    F.cross_entropy(expected, LABELS).backward()
    for name, parameter in merged.named_parameters():
        largest = parameter.grad.abs().max()
        assert largest > 0 and (by_name[name] - parameter.grad).abs().max() <= 1e-12 * largest, name
    with torch.no_grad():
        network.eval()
        torch.testing.assert_close(network(x, x), network.merge()(x), rtol=1e-12, atol=1e-14)


@every("without", [torch.no_grad, torch.inference_mode])
def test_a_pass_without_gradients_gives_the_same_bits_and_has_no_history(without, monkeypatch):
    network, x = apart(mini(), dtype=torch.float32).eval(), images(mini(), torch.float32)
    expected = network(x, x)
    monkeypatch.setattr(split_product, "SplitInputProduct", None)
    with without():
        assert torch.equal(network(*(x.clone() for _ in "ab")), expected)


@every("overlap", [True, False])
def test_either_arrangement_has_the_bits_of_the_other(overlap):
    """One device that is made to compute by halves, and two that wait for the whole."""
    one, two = apart(mini(), dtype=torch.float32), apart(mini(), dtype=torch.float32)
    one.exchange.shared = True
    for network in (one, two):
        network.exchange.chosen_overlap = overlap
    x = images(mini(), torch.float32)
    (logits, own), (expected, others) = gradients(one, x), gradients(two, x)
    assert torch.equal(logits, expected)
    for name, gradient in own.items():
        assert torch.equal(gradient, others[name]), name
    assert [entry[:3] for entry in map(dataclasses.astuple, one.ledger())] == [
        entry[:3] for entry in map(dataclasses.astuple, two.ledger())
    ]
    assert sum(entry.bytes for entry in one.ledger()) == 0
    assert sum(entry.bytes for entry in two.ledger()) == sum(row[3] for row in crossings(mini(), len(x)))


@every("shared", [True, False])
def test_by_default_two_devices_compute_by_halves(shared, monkeypatch):
    network, calls = apart(mini()), []
    network.exchange.shared = shared
    split = layers.split_input_product
    monkeypatch.setattr(layers, "split_input_product", lambda *parts: calls.append(1) or split(*parts))
    network(images(mini()), images(mini()))
    assert len(calls) == (0 if shared else 7)


@pytest.fixture
def late(monkeypatch):
    """Copies that are NaN until they are waited for, and the order of what happens: "send", "receive" and products."""
    events = []

    class Late(exchange.Arrival):
        def receive(self, stream=None):
            events.append("receive")
            self.tensor.copy_(self.event)
            return self.tensor

    def begin(tensor, device, copy_stream):
        events.append("send")
        return Late(torch.full_like(tensor, torch.nan), tensor.clone())

    monkeypatch.setattr(exchange, "copy", begin)
    return events


def test_nothing_is_read_before_it_arrives(late):
    recipe, x = mini(), images(mini(), torch.float32)
    late_logits, late_gradients = gradients(apart(recipe, dtype=torch.float32), x)
    assert late.count("send") == late.count("receive") == 14
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exchange, "copy", lambda tensor, device, copy_stream: exchange.Arrival(tensor.clone()))
        logits, expected = gradients(apart(recipe, dtype=torch.float32), x)
    assert torch.equal(logits, late_logits)
    for name, gradient in expected.items():
        assert torch.equal(gradient, late_gradients[name]), name


def test_the_own_half_is_computed_while_the_other_flies(late):
    """conv3 forward: both crossings begin, and each tower's own product comes before it waits. Backward: what has to
    cross is computed first and sent, and everything else before the towers wait for it."""
    network, x = apart(mini()), images(mini())
    with Products(late):
        logits = network(x, x)
        forward = late.copy()
        late.clear()
        F.cross_entropy(logits, LABELS).backward()
    conv3 = forward[forward.index("send") :][:8]
    assert conv3 == ["send", "send", *["product", "receive", "product"] * 2]
    # conv3's are the last to cross.
    rest = ["gradient of weight", "gradient of x and weight and bias"]
    for send in [index for index, event in enumerate(late) if event == "send"][-2:]:
        assert late[send - 1] == "gradient of x" and sorted(late[send + 1 : send + 3]) == sorted(rest)
        assert late[send + 3] == "receive"


def test_frozen_layers_send_nothing_back():
    """Without a gradient below conv3 there is none to return there; a frozen layer returns the others' all the same."""
    network, x = apart(mini()), images(mini())
    for tower in network.towers:
        for layer in (tower.conv1, tower.conv2, tower.fc6):
            layer.requires_grad_(False)
    _, by_name = gradients(network, x)
    assert {entry.edge for entry in network.ledger() if entry.pass_ == "backward"} == {"fc6", "fc7", "fc8"}
    assert (
        not {"conv1.weight", "conv2.bias", "fc6.weight", "fc6.bias"} & by_name.keys()
        and by_name["conv3.weight"].abs().max() > 0
    )
    free_network = apart(mini())
    _, expected = gradients(free_network, x)
    for name in by_name:
        torch.testing.assert_close(by_name[name], expected[name], rtol=1e-12, atol=0, msg=name)


@every("frozen", FROZEN)
def test_a_matrix_gets_its_gradient_half_by_half(frozen):
    """Where it belongs at once, and with nothing to transpose: no `cat` of halves; the numbers are autograd's."""
    x, results, counters = images(mini()), [], []
    for by_hand in (False, True):
        network = apart(mini())
        for name, parts in network.layer_parameters().items():
            for part in parts:
                part.requires_grad_(not any(name.startswith(start) for start in frozen.split()))
        counters.append(Called())
        with pytest.MonkeyPatch.context() as patch, counters[-1]:
            if not by_hand:
                patch.setattr(split_product, "written_by_halves", lambda weight: False)
            results.append(gradients(network, x)[1])
        weights = [
            part
            for name, parts in network.layer_parameters().items()
            for part in parts
            if name in ("fc6.weight", "fc7.weight", "fc8.weight") and part.requires_grad
        ]
        assert all(weight.grad.is_contiguous() for weight in weights)
    assert results[0].keys() == results[1].keys()
    for name, expected in results[0].items():
        torch.testing.assert_close(results[1][name], expected, rtol=1e-12, atol=1e-15, msg=name)
    products, joins = [
        [counter.counts[operator] for counter in counters]
        for operator in (torch.ops.aten.mm.out, torch.ops.aten.cat.default)
    ]
    assert products == [0, 2 * len(weights)] and joins[0] - joins[1] == len(weights) > 0


def test_a_network_whose_towers_are_apart_can_be_copied():
    network, x = apart(mini()).eval(), images(mini())
    before = network(x, x)
    assert torch.equal(copy.deepcopy(network)(x, x), before)


def test_a_step_leaves_no_history():
    """What backward has used is let go of, and a second backward pass is refused instead of half computed."""
    network, x = apart(mini()), images(mini())
    loss = F.cross_entropy(network(x, x), LABELS)
    loss.backward(retain_graph=True)
    with pytest.raises(AttributeError):
        loss.backward()


def test_a_gradient_that_returns_is_awaited_by_the_stream_that_goes_on_with_it(monkeypatch):
    """That of the forward pass, whatever is current where backward runs."""
    waits = []

    class Recorder(exchange.Arrival):
        def receive(self, stream=None):
            waits.append(stream)
            return self.tensor

    monkeypatch.setattr(exchange, "copy", lambda tensor, device, copy_stream: Recorder(tensor.clone()))
    network, x = apart(mini()), images(mini())
    with monkeypatch.context() as patch:
        patch.setattr(exchange, "current_stream", lambda tensor: "the forward pass's")
        loss = F.cross_entropy(network(x, x), LABELS)
    assert waits == [None] * 7
    loss.backward()
    assert waits[7:] == ["the forward pass's"] * 7


def test_copies_and_computation_settle(monkeypatch):
    """Each of the four streams of copies waits for its device's computation, and that for it."""
    waits = []

    class Stream:
        def __init__(self, name, device):
            self.name, self.device = name, device

        def wait_stream(self, other):
            waits.append((self.name, other.name))

    devices = [torch.device("cuda:0"), torch.device("cuda:1")]
    streams = {
        (source, target): (Stream(f"out {source}", source), Stream(f"into {target}", target))
        for source, target in (devices, devices[::-1])
    }
    monkeypatch.setattr(exchange, "_copy_streams", lambda *way: streams[way])
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(f"current {device}", device))
    exchange.settle(devices)
    assert set(waits) == {
        pair
        for name in ("out", "into")
        for device in devices
        for pair in [(f"{name} {device}", f"current {device}"), (f"current {device}", f"{name} {device}")]
    }
    exchange.settle([torch.device("cpu")] * 2)
    assert len(waits) == 8


def test_a_standing_copy_lies_on_the_targets_device():
    carrier = exchange.Exchange(("cpu", "meta"))
    tensors = {tower: torch.ones(2, device=device) for tower, device in enumerate(("cpu", "meta"))}
    copies = carrier.standing("conv3", "forward", tensors, tensors)
    assert [copies[tower].place.device.type for tower in (0, 1)] == ["cpu", "meta"]
    assert [(entry.direction, entry.bytes) for entry in carrier.ledger] == [("b->a", 8), ("a->b", 8)]


@pytest.mark.parametrize("where", ["out", "into", "compute", "nowhere"])
@pytest.mark.gpu(reason="needs a GPU")
@pytest.mark.parametrize(
    "devices",
    [("cuda:0", "cuda:0"), pytest.param(("cuda:0", "cuda:1"), marks=pytest.mark.gpu(2, reason="needs two GPUs"))],
    ids=",".join,
)
def test_no_race_between_computation_and_copies(devices, where, monkeypatch):
    """Overlapped, with delays on either stream, three steps are bit for bit those without overlap; memory is given back
    meanwhile."""
    if where == "out" and devices[0] == devices[1]:
        pytest.skip("within one device the copy runs on the target's stream alone")
    results = []
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, benchmark=False, allow_tf32=False):
        for copy_stream in (False, True):
            network, x = apart(mini(), devices, torch.float32), images(mini(), torch.float32, 3)
            network.exchange.copy_stream = copy_stream
            with delayed(monkeypatch, where if copy_stream else "nowhere"):
                # New images in every step: what lies in memory from the step before is wrong.
                results.append([gradients(network, x * (1 + number)) for number in range(3)])
    for (logits, expected), (late_logits, late_gradients) in zip(*results, strict=True):
        assert torch.equal(logits, late_logits)
        for name, gradient in expected.items():
            assert torch.equal(gradient, late_gradients[name]), name
