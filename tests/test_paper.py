"""docs/paper.md: what it names is there; and the paper's own arithmetic, of neurons, parameters, crops and labels."""

import ast
import math
import re
from functools import cache
from pathlib import Path

import torch
from alexnet_mp.kernels.reference import lrn
from inner_cases import every

from alexnet_mp import claims, evaluate, paper, prepare, report, retrieve, train
from alexnet_mp.experiments.elsewhere import ELSEWHERE
from alexnet_mp.experiments.paper_claims import CLAIMS
from alexnet_mp.network.network import TwoTowerAlexNet
from alexnet_mp.recipes import shapes as geometry
from alexnet_mp.recipes.ablations import zero_biases
from alexnet_mp.recipes.architectures import mini

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "paper.md").read_text()
ROWS = [
    line.strip("|").split(" | ")
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith("| sentence")
]
MODULES = {
    "claims": claims,
    "evaluate": evaluate,
    "prepare": prepare,
    "report": report,
    "retrieve": retrieve,
    "train": train,
}
IDS = {claim.id for claim in CLAIMS} | {other.id for other in ELSEWHERE}


@cache
def names_of(path):
    """Functions, classes and constants at the top of a file."""
    tree = ast.parse((ROOT / path).read_text())
    defined = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    return defined | {target.id for target in targets if isinstance(target, ast.Name)}


def quoted(cell):
    return re.findall(r"`([^`]+)`", cell)


def test_every_row_has_its_three_cells_and_something_that_stands_for_it():
    assert len(ROWS) > 100
    for row in ROWS:
        assert len(row) == 3, row
        sentence, here, commands = (cell.strip() for cell in row)
        assert sentence.endswith(".") and here, row
        assert quoted(here) or quoted(commands) or "not testable without" in here, row


@every(
    "section",
    [
        "Abstract",
        "1 Introduction",
        "2 The data",
        "3 The architecture",
        "3.1 ReLU",
        "3.2 Two GPUs",
        "3.3 Local response normalisation",
        "3.4 Overlapping pooling",
        "3.5 The whole",
        "4 Reducing overfitting",
        "4.1 Augmentation",
        "4.2 Dropout",
        "5 Learning",
        "6 Results",
        "6.1 What was learned",
        "7 Discussion",
    ],
)
def test_every_section_of_the_paper_is_there(section):
    assert len(re.findall(rf"^##+ {re.escape(section)}$", PAGE, re.M)) == 1


def test_files_functions_and_tests_are_there():
    names = [name for row in ROWS for name in quoted(row[1]) if "/" in name]
    assert len(names) > 100
    for name in names:
        path, _, inside = name.partition("::")
        assert (ROOT / path).is_file(), name
        assert not inside or inside in names_of(path), name


def test_claims_and_commands_are_there():
    claim_ids = set()
    for row in ROWS:
        for name in quoted(row[2]):
            if name.startswith("python -m alexnet_mp."):
                module, *words = name.removeprefix("python -m alexnet_mp.").split()
                MODULES[module]._parser().parse_args(words)
            else:
                assert name in IDS, name
                claim_ids.add(name)
    assert claim_ids == IDS  # no claim stands for a sentence that the page lacks


def test_what_is_named_elsewhere_in_the_rows_is_a_flag_or_a_command():
    for row in ROWS:
        for name in quoted(row[1]):
            assert "/" in name or name.startswith("--") or name in MODULES, name


# --- the paper's arithmetic


def test_neurons():
    """Figure 2 prints 253,440 for the first layer, which fits no 55x55x96; the rest of its list is the network's."""
    sizes = geometry.sizes(paper())
    neurons = [math.prod(size.computed) * (1 if size.layer.towers == "first" else 2) for size in sizes]
    figure_2 = [253_440, 186_624, 64_896, 64_896, 43_264, 4_096, 4_096, 1_000]
    assert neurons == [290_400, *figure_2[1:]]
    assert sum(neurons) == 659_272 and sum(figure_2) == 622_312 and 224 * 224 * 3 == 150_528


def test_shares_of_the_parameters():
    shapes = geometry.merged_shapes(paper(), 1000)
    counts = {
        name: sum(math.prod(shape) for other, shape in shapes.items() if other.startswith(f"{name}."))
        for name in (layer.name for layer in paper().layers)
    }
    shares = {name: round(100 * count / sum(counts.values()), 2) for name, count in counts.items()}
    assert sum(counts.values()) == 60_965_224
    assert [shares[f"conv{number}"] for number in range(1, 6)] == [0.06, 0.5, 1.45, 1.09, 0.73]
    assert shares["fc6"] > 50


def test_kernels():
    shapes = geometry.merged_shapes(paper(), 1000)
    assert [shapes[f"conv{number}.weight"] for number in range(1, 6)] == [
        (96, 3, 11, 11),
        (256, 48, 5, 5),
        (384, 256, 3, 3),
        (384, 192, 3, 3),
        (256, 192, 3, 3),
    ]
    assert [shapes[f"fc{number}.weight"] for number in (6, 7, 8)] == [(4096, 9216), (4096, 4096), (1000, 4096)]
    assert [layer.then for layer in paper().layers[2:4]] == [("relu",)] * 2 and paper().layers[0].stride == 4


def test_convolutions_have_far_fewer_parameters_than_products():
    """Each convolution against a product from all that it reads to all its outputs."""
    for size in geometry.sizes(paper())[:5]:
        dense = math.prod(size.reads) * math.prod(size.computed)
        assert math.prod(size.weight_shape) * 1000 < dense, size.layer.name


def inputs_of_relus(recipe):
    """{layer's name: what its ReLUs get, (N, ...)} of tower a of a new network, for noisy images."""
    network, inputs = TwoTowerAlexNet(recipe, ("cpu", "cpu"), classes=5, overlap=False).eval(), {}
    for name, layer in network.towers[0].named_children():
        layer.register_forward_pre_hook(
            lambda layer, args, name=name: inputs.update({name: layer.product(args[0], layer.weight, layer.bias)})
        )
    images = 60 * torch.randn(4, 3, recipe.crop_size, recipe.crop_size, generator=torch.Generator().manual_seed(0))
    return network, inputs, images


def test_a_neuron_learns_if_some_example_gives_it_positive_input():
    """3.3: no other learns; fc7's weights have gradients in the rows of these units alone."""
    network, inputs, images = inputs_of_relus(mini())
    layer = network.towers[0].fc7
    with torch.no_grad():
        layer.bias.copy_(torch.linspace(-0.02, 0.02, len(layer.bias)))
    torch.nn.functional.cross_entropy(network(images, images), torch.tensor([0, 1, 2, 3])).backward()
    some = (inputs["fc7"] > 0).any(0)
    assert 0 < some.sum() < len(some) and (inputs["fc7"] > 0).all(0).sum() < some.sum()
    assert torch.equal((layer.weight.grad != 0).any(1), some)


def test_biases_of_one_give_the_relus_positive_inputs():
    """5: in layers 2, 4, 5 and the hidden fully connected ones; at 0 about half of the inputs are."""
    shares = {}
    for recipe in (mini(), zero_biases(mini())):
        network, inputs, images = inputs_of_relus(recipe)
        network(images, images)
        for layer in mini().layers:
            if layer.init_bias:
                shares.setdefault(layer.name, []).append((inputs[layer.name] > 0).float().mean().item())
    assert shares.keys() == {"conv2", "conv4", "conv5", "fc6", "fc7"}
    for with_ones, with_zeros in shares.values():
        assert 0.4 < with_zeros < 0.6 and with_ones > with_zeros + 0.1, shares


def test_maps_inhibit_their_neighbours():
    """A larger activity lowers those of the two maps on either side at the same place, and nothing else."""
    x = torch.full((1, 9, 2, 2), 100.0, dtype=torch.float64)
    louder = x.clone()
    louder[0, 4, 0, 1] = 1000.0
    change = lrn(louder, size=5, alpha=1e-4, beta=0.75, k=2.0) - lrn(x, size=5, alpha=1e-4, beta=0.75, k=2.0)
    lower = torch.zeros_like(x, dtype=torch.bool)
    lower[0, [2, 3, 5, 6], 0, 1] = True
    assert torch.equal(change < 0, lower) and change[0, 4, 0, 1] > 0 and int((change != 0).sum()) == 5


def test_the_factor_of_the_crops():
    assert paper().crop_positions ** 2 * 2 == 2048 and paper().flip


def test_bits_of_a_label():
    assert round(math.log2(1000)) == 10
