"""Options and surroundings of all benchmarks: float32 stays float32, freed memory is kept, and each records where it ran."""
import pytest
import torch
from in_turn import provenance

from alexnet_mp.system.memory import keep_freed_memory


def pytest_addoption(parser):
    group = parser.getgroup("alexnet_mp benchmarks")
    group.addoption("--batch", type=lambda text: tuple(map(int, text.split(","))), metavar="N[,N]",
                    help="images, instead of each benchmark's own numbers; --batch 4 --rounds 1 is a quick look at everything")
    group.addoption("--rounds", type=int, help="rounds in which all rivals of a group take their turn, instead of 15")


@pytest.fixture(autouse=True, scope="session")
def surroundings():
    torch.backends.cudnn.allow_tf32 = False  # as in training; on by default for convolutions
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False  # likewise
    torch.backends.cudnn.benchmark = True
    keep_freed_memory()  # as in training, and for every rival alike


@pytest.fixture(scope="session")
def rivals_of_groups(request):
    """{group: those of its rivals that -k, names and node ids left in}; its tests differ in the rival and the pass."""
    groups = {}
    for item in request.session.items:
        if "rival" in getattr(getattr(item, "callspec", None), "params", ()):
            groups.setdefault(_group(item), {})[item.callspec.params["rival"]] = None
    return {group: tuple(rivals) for group, rivals in groups.items()}


@pytest.fixture
def asked(request, rivals_of_groups):
    """The rivals of this test's group that were asked for: nobody waits for another to be built, checked and timed."""
    return rivals_of_groups[_group(request.node)]


def _group(item):
    shared = {name: value for name, value in item.callspec.params.items() if name not in ("rival", "step")}
    return item.path, item.originalname, tuple(shared.items())


@pytest.fixture(autouse=True)
def where(request):
    if "benchmark" in request.fixturenames:  # what runs on another device says so itself
        device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
        request.getfixturevalue("benchmark").extra_info.update(provenance(device))
