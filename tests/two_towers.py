"""What a process with one tower, or with both, computes in some steps: for `test_exchange_processes.py`."""

import dataclasses

import torch
import torch.distributed as dist

from alexnet_mp import TwoTowerAlexNet, mini, paper, source2012
from alexnet_mp.recipes.desk_study import desk
from alexnet_mp.recipes.recipe import change_layers
from alexnet_mp.training.schedule import make_schedule
from alexnet_mp.training.step import TrainingStep
from alexnet_mp.training.update_rule import PaperSGD

CLASSES, STEPS, BATCH, LAST = 7, 10, 5, 2
RECIPES = {
    "mini": mini,
    "paper": lambda: narrow(paper()),
    "source2012": lambda: narrow(source2012()),
    "desk": lambda: narrow(desk()),
    "local": lambda: change_layers(mini(), "conv4", kind="local", reads="both", kernel=4, stride=2, pad=1, maps=6),
}

FROZEN = ("conv1", "conv2", "conv3", "fc6")
CASES = {
    **{(name, overlap): {} for name in ("mini", "paper", "source2012", "desk") for overlap in (False, True)},
    **{("local", overlap): {"steps": 2} for overlap in (False, True)},
    **{("frozen", overlap): {"frozen": FROZEN, "steps": 4} for overlap in (False, True)},
    **{("bfloat16", overlap): {"dtype": "bfloat16", "steps": 2} for overlap in (False, True)},
}


def narrow(recipe):
    """A sixteenth of the maps."""
    widths = {layer.name: max(layer.maps // 16, 2) for layer in recipe.layers if layer.maps}
    for name, maps in widths.items():
        recipe = change_layers(recipe, name, maps=maps)
    return recipe


def batches(recipe, steps=STEPS):
    """Images and labels; the last batch is short."""
    draws = torch.Generator().manual_seed(3)
    for step in range(steps):
        count = LAST if step == steps - 1 else BATCH
        size = recipe.crop_size
        images = 60 * torch.randn(count, 3, size, size, generator=draws)
        yield (images.to(memory_format=torch.channels_last), torch.randint(0, CLASSES, (count,), generator=draws))


def ten_steps(ranks, name, overlap, frozen=(), dtype="float32", steps=STEPS):
    """Losses and right answers, ledgers, merged weights and velocities, logits of a test: of steps with dropout."""
    recipe = RECIPES[name]()
    torch.backends.cudnn.deterministic = True
    towers = 1 if ranks else 2
    network = TwoTowerAlexNet(recipe, ["cpu"] * towers, CLASSES, overlap=overlap, ranks=ranks).train()
    optimizer = PaperSGD(network)
    step = TrainingStep(network, optimizer)
    rates = make_schedule(recipe).rates(1)
    numbers, ledgers, wire = [], [], []
    sizes = watched(ranks)
    for number, (images, labels) in enumerate(batches(recipe, steps)):
        layers = frozen if number >= steps // 2 else ()
        optimizer.set_rates({key: 0.0 if key.partition(".")[0] in layers else rate for key, rate in rates.items()})
        sizes.clear()
        images = images.to(getattr(torch, dtype))
        loss, right, *_ = step([images] * towers, labels, lambda loss: None)
        numbers.append((loss.item(), right.item()))
        ledgers.append(sorted(dataclasses.astuple(entry) for entry in network.ledger()))
        wire.append(list(sizes))
    sizes.clear()
    weights, velocities = network.merged_state(), network.merged(optimizer.velocities())
    total = sum(sizes)
    network.eval()
    with torch.inference_mode():
        logits = network(*[images] * towers)
    return {
        "numbers": numbers,
        "ledgers": ledgers,
        "wire": wire,
        "weights": as_bytes(weights),
        "velocities": as_bytes(velocities),
        "collected": total,
        "logits": logits.numpy().tobytes(),
        "layouts": [(*key[:3], *strides) for key, strides in getattr(network.exchange, "layouts", {}).items()],
    }


def all_cases(ranks):
    """{case: what `ten_steps` gives}"""
    return {
        (name, overlap): ten_steps(ranks, name if name in RECIPES else "mini", overlap, **more)
        for (name, overlap), more in CASES.items()
    }


def as_bytes(tensors):
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def watched(ranks):
    """Of every tensor that is sent, how many bytes."""
    sizes = []
    if ranks is not None:
        send = dist.batch_isend_irecv

        def counted(operations):
            sizes.extend(
                operation.tensor.numel() * operation.tensor.element_size()
                for operation in operations
                if operation.op is dist.isend
            )
            return send(operations)

        dist.batch_isend_irecv = counted
    return sizes
