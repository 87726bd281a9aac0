"""Options and surroundings of all benchmarks: float32 stays float32, freed memory is kept, and each records where it ran."""
import pytest
import torch
from interleaved import provenance

from alexnet_mp.allocator import keep_freed_memory


def pytest_addoption(parser):
    group = parser.getgroup("alexnet_mp benchmarks")
    group.addoption("--batch", type=lambda text: tuple(map(int, text.split(","))), metavar="N[,N]",
                    help="images, instead of each benchmark's own numbers; --batch 4 --rounds 1 is a quick look at everything")
    group.addoption("--rounds", type=int, help="rounds in which all variants of a group take their turn, instead of 15")


@pytest.fixture(autouse=True, scope="session")
def surroundings():
    torch.backends.cudnn.allow_tf32 = False  # as in training; on by default for convolutions
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False  # likewise
    torch.backends.cudnn.benchmark = True
    keep_freed_memory()  # as in training, and for every variant alike


@pytest.fixture(scope="session")
def variants_of_groups(request):
    """{group: those of its variants that -k, names and node ids left in}; its tests differ in the variant and the pass."""
    groups = {}
    for item in request.session.items:
        if "variant" in getattr(getattr(item, "callspec", None), "params", ()):
            groups.setdefault(_group(item), {})[item.callspec.params["variant"]] = None
    return {group: tuple(variants) for group, variants in groups.items()}


@pytest.fixture
def asked(request, variants_of_groups):
    """The variants of this test's group that were asked for: nobody waits for another to be built, checked and timed."""
    return variants_of_groups[_group(request.node)]


def _group(item):
    shared = {name: value for name, value in item.callspec.params.items() if name not in ("variant", "step")}
    return item.path, item.originalname, tuple(shared.items())


@pytest.fixture(autouse=True)
def where(request):
    if "benchmark" in request.fixturenames:  # what runs on another device says so itself
        device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
        request.getfixturevalue("benchmark").extra_info.update(provenance(device))
