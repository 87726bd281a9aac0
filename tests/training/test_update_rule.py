"""The printed update on a network: rates and decays per group, frozen layers, velocities that carry the rate."""

import dataclasses

import pytest
import torch
from inner_cases import every

from alexnet_mp import TwoTowerAlexNet, mini, source2012
from alexnet_mp.recipes.recipe import change_layers
from alexnet_mp.training.schedule import make_schedule
from alexnet_mp.training.update_rule import PaperSGD


def network_of(recipe):
    return TwoTowerAlexNet(change_layers(recipe, "fc6", "fc7", maps=8), ("cpu", "cpu"), 3).double()


def set_gradients(network, value=1.0):
    for parts in network.layer_parameters().values():
        for part in parts:
            if part.requires_grad:
                part.grad = torch.full_like(part, value)


def test_three_steps_by_hand():
    """v1 = -e (d w0 + g); w1 = w0 + v1; v2 = 0.9 v1 - e (d w1 + g); ..., for weights (decay) and biases (here
    without)."""
    network = network_of(dataclasses.replace(mini(), bias_weight_decay=0.0))
    optimizer = PaperSGD(network)
    rates = {name: 0.02 if name.endswith("bias") else 0.01 for name in network.layer_parameters()}
    optimizer.set_rates(rates)
    start = {name: [part.detach().clone() for part in parts] for name, parts in network.layer_parameters().items()}
    for _ in range(3):
        set_gradients(network)
        optimizer.step()
    for name, parts in network.layer_parameters().items():
        rate, decay = rates[name], 0.0 if name.endswith("bias") else 0.0005
        for part, w in zip(parts, start[name], strict=True):
            v = torch.zeros_like(w)
            for _ in range(3):
                v = 0.9 * v - decay * rate * w - rate * 1.0
                w = w + v
            torch.testing.assert_close(part.detach(), w, rtol=1e-13, atol=1e-15)


def test_after_a_drop_the_old_velocity_coasts():
    network = network_of(dataclasses.replace(mini(), weight_decay=0.0, bias_weight_decay=0.0))
    optimizer, bias = PaperSGD(network), network.towers[0].fc8.bias
    optimizer.set_rates({name: 0.01 for name in network.layer_parameters()})
    set_gradients(network)
    optimizer.step()
    before = bias.detach().clone()
    optimizer.set_rates({name: 0.001 for name in network.layer_parameters()})
    set_gradients(network, 0.0)
    optimizer.step()
    torch.testing.assert_close(bias.detach() - before, torch.full_like(before, 0.9 * -0.01))


@pytest.mark.run
def test_a_frozen_layer_stands_still_and_gets_no_gradient():
    """Epoch 73 of the 2012 run: conv1 frozen, without decay or the rest of its momentum; backward ends at conv2."""
    recipe = change_layers(source2012(), "fc6", "fc7", maps=4)
    network = TwoTowerAlexNet(recipe, ("cpu", "cpu"), 3).double()  # in float32 a step can be below a bias of 1
    optimizer, schedule = PaperSGD(network), make_schedule(recipe)
    images, labels = 60 * torch.randn(2, 3, 224, 224, dtype=torch.float64), torch.tensor([0, 1])

    def step(epoch):
        optimizer.set_rates(schedule.rates(epoch))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images, images), labels).backward()
        optimizer.step()

    def copies(name):
        return [part.detach().clone() for part in network.layer_parameters()[name]]

    step(71)
    assert all(optimizer.state[part]["velocity"].any() for part in network.layer_parameters()["conv1.weight"])
    before = {name: copies(name) for name in network.layer_parameters()}
    step(73)
    for name in network.layer_parameters():
        same = [torch.equal(old, new) for old, new in zip(before[name], copies(name))]
        assert same == [name.startswith("conv1.")] * len(same), name
    assert all(tower.conv1.weight.grad is None for tower in network.towers)
    step(71)  # thawed again, it moves
    assert not torch.equal(before["conv1.weight"][0], copies("conv1.weight")[0])


def test_a_forgotten_backward_is_named():
    network = network_of(mini())
    optimizer = PaperSGD(network)
    optimizer.set_rates({name: 0.01 for name in network.layer_parameters()})
    with pytest.raises(RuntimeError, match="conv1.weight"):
        optimizer.step()


def test_velocities_live_with_their_tower():
    network = TwoTowerAlexNet(mini(), ("cpu", "meta"), 3)
    optimizer = PaperSGD(network)
    for tower, device in zip(network.towers, ("cpu", "meta"), strict=True):
        assert {optimizer.state[parameter]["velocity"].device.type for parameter in tower.parameters()} == {device}


def trained(device="cpu"):
    """(network, optimizer) after a step of all-one gradients."""
    network = TwoTowerAlexNet(change_layers(mini(), "fc6", "fc7", maps=8), (device, device), 3)
    optimizer = PaperSGD(network)
    optimizer.set_rates({name: 0.01 for name in network.layer_parameters()})
    set_gradients(network)
    optimizer.step()
    return network, optimizer


def test_velocities_are_the_ones_that_are_used():
    """Not copies: what is written into them is the next step's."""
    network, optimizer = trained()
    velocities, parameters = optimizer.velocities(), network.layer_parameters()
    assert velocities.keys() == parameters.keys()
    for name, parts in velocities.items():
        assert [part.shape for part in parts] == [part.shape for part in parameters[name]]
        for part, parameter in zip(parts, parameters[name]):
            assert part is optimizer.state[parameter]["velocity"] and part.any()


@every("value", [float("nan"), float("inf"), -float("inf")])
@every("what", ["gradient", "velocity", "weights"])
def test_what_is_not_finite_is_seen_in_the_sums_and_named(what, value):
    network, optimizer = trained()
    assert all(torch.isfinite(sums).all() for sums in optimizer.step()) and optimizer.non_finite() == []
    for name, tower in (("conv4.weight", 1), ("fc8.bias", 0)):
        part = network.layer_parameters()[name][tower]
        {"gradient": part.grad, "velocity": optimizer.velocities()[name][tower], "weights": part.data}[what][
            (-1,) * part.dim()
        ] = value
    assert optimizer.non_finite() == [f"{what} of conv4.weight on tower b", f"{what} of fc8.bias on tower a"]
    sums = optimizer.step()  # carries it into the weights
    assert not all(torch.isfinite(values).all() for values in sums)
    assert sum(values.isfinite().logical_not().sum() for values in sums) == 2
    set_gradients(network, float("nan"))
    optimizer.step()  # now everything is
    assert optimizer.non_finite_in(sums) == ["weights of conv4.weight on tower b", "weights of fc8.bias on tower a"]


def test_the_first_kind_found_is_named():
    network, optimizer = trained()
    part = network.layer_parameters()["fc6.weight"][1]
    part.data.view(-1)[0] = optimizer.velocities()["fc6.weight"][0].view(-1)[0] = float("nan")
    assert optimizer.non_finite() == ["velocity of fc6.weight on tower a"]
    part.grad.view(-1)[0] = float("inf")
    assert optimizer.non_finite() == ["gradient of fc6.weight on tower b"]


def test_a_sum_that_overflows_names_nobody():
    network, optimizer = trained()
    network.layer_parameters()["fc6.bias"][0].data.fill_(3e38)
    sums = optimizer.step()
    assert not all(torch.isfinite(values).all() for values in sums)
    assert optimizer.non_finite() == [] == optimizer.non_finite_in(sums)


def test_frozen_layers_are_not_summed():
    network, optimizer = trained()
    rates = {name: 0.0 if name.startswith("conv1") else 0.01 for name in network.layer_parameters()}
    optimizer.set_rates(rates)
    count = sum(len(parts) for name, parts in network.layer_parameters().items() if rates[name])
    assert sum(len(sums) for sums in optimizer.step()) == count
    optimizer.set_rates(dict.fromkeys(rates, 0.0))
    assert optimizer.step() == [] and optimizer.non_finite() == []


def test_a_layers_own_rate_is_of_its_weights():
    """A first step with gradients of 1 takes the rate off: conv2's weights move at a tenth of it, its biases at the
    whole."""
    recipe = change_layers(dataclasses.replace(mini(), weight_decay=0.0, bias_weight_decay=0.0), "conv2", rate=0.1)
    network = network_of(recipe)
    optimizer = PaperSGD(network)
    optimizer.set_rates(make_schedule(recipe).rates(1))
    before = {name: parts[0].detach().clone() for name, parts in network.layer_parameters().items()}
    set_gradients(network)
    optimizer.step()
    for name, parts in network.layer_parameters().items():
        step = 0.001 if name == "conv2.weight" else 0.01
        torch.testing.assert_close(parts[0].detach(), before[name] - step, rtol=1e-13, atol=1e-15)


def test_a_layer_can_decay_at_its_own_pace():
    """With gradients of 0 a first step takes rate * decay off every weight. A layer's own decay is none of its
    biases'."""
    recipe = change_layers(dataclasses.replace(mini(), bias_weight_decay=0.25), "conv1", weight_decay=0.5)
    network = network_of(change_layers(recipe, "fc8", weight_decay=0.0))
    optimizer = PaperSGD(network)
    optimizer.set_rates({name: 0.01 for name in network.layer_parameters()})
    before = {name: parts[0].detach().clone() for name, parts in network.layer_parameters().items()}
    set_gradients(network, 0.0)
    optimizer.step()
    for name, parts in network.layer_parameters().items():
        decay = {"conv1.weight": 0.5, "fc8.weight": 0.0}.get(name, 0.25 if name.endswith("bias") else 0.0005)
        torch.testing.assert_close(parts[0].detach(), (1 - 0.01 * decay) * before[name], rtol=1e-13, atol=0)
