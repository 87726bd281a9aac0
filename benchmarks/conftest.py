"""Options and surroundings of all benchmarks; what is left out when nothing more is said; the table that ends a run."""

import pytest
import selection
import summary
import torch
from interleaved import LEAST_ROUNDS, MOST_ROUNDS, SECONDS, provenance

from alexnet_mp.system.memory import keep_freed_memory

# {long group: its cases that were left out}; {measurement: the long group that its time is charged to};
# {long group: seconds}; the long groups of which a case passed, and those of which one failed; cases that lack a GPU.
LEFT_OUT, CHARGED, TOOK, PASSED, FAILED, LACKING = (pytest.StashKey() for _ in range(6))


def pytest_addoption(parser):
    group = parser.getgroup("alexnet_mp benchmarks")
    group.addoption("--long", action="store_true", help=selection.help_text().replace("%", "%%"))
    group.addoption(
        "--batch",
        type=lambda text: tuple(map(int, text.split(","))),
        metavar="N[,N]",
        help="images, instead of each benchmark's own numbers; --long --batch 4 --rounds 1 is a quick look "
        "at everything",
    )
    group.addoption(
        "--rounds",
        type=int,
        help="rounds in which all variants of a group take their turn, instead of as "
        f"many as begin within {SECONDS:g} s, {LEAST_ROUNDS} at least and {MOST_ROUNDS} at most",
    )


def pytest_configure(config):
    # torch.compile's own use of it
    config.addinivalue_line("filterwarnings", "ignore:.*torch.jit.script_method:DeprecationWarning")
    config.option.benchmark_quiet = config.option.verbose <= 0  # else a table of every group's times before ours
    config.stash[LEFT_OUT], config.stash[CHARGED], config.stash[TOOK] = {}, {}, {}
    config.stash[PASSED], config.stash[FAILED], config.stash[LACKING] = set(), set(), []


def pytest_itemcollected(item):
    if name := selection.long_name(item):
        if name not in selection.LONG:
            raise pytest.UsageError(f"{item.nodeid}: {name} is no long group; there are {', '.join(selection.LONG)}")
        item.extra_keyword_matches.add(name)  # for -k


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config, items):
    collection = list(items)
    yield  # -k and node ids choose
    if config.option.collectonly:  # lists what there is on any machine
        return
    gpus = torch.cuda.device_count()
    candidates, shortfalls = selection.without_gpus(items, gpus)
    choice = set(candidates)
    if not selection.asked_by_name(config):
        for item in candidates:
            if name := selection.long_name(item):
                config.stash[LEFT_OUT][name] = config.stash[LEFT_OUT].get(name, 0) + 1
                choice.discard(item)
    for need, cases in shortfalls.items():  # one of them says it for all
        cases[0].add_marker(pytest.mark.skip(reason=selection.reason(need, gpus, cases)))
        choice.add(cases[0])
        config.stash[LACKING].extend(cases)
    config.hook.pytest_deselected(items=[item for item in items if item not in choice])
    items[:] = [item for item in items if item in choice]
    # Of a part of a group, or of other numbers than its own, the time says nothing.
    if not (config.getoption("batch") or config.getoption("rounds")):
        names = selection.whole(collection, items, gpus)
        charges = selection.names_of_measurements(candidates)
        config.stash[CHARGED].update({measurement: name for measurement, name in charges.items() if name in names})


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if name := item.config.stash[CHARGED].get(selection.measurement(item)):
        item.config.stash[TOOK][name] = item.config.stash[TOOK].get(name, 0.0) + call.duration
        if report.failed or (report.passed and report.when == "call"):
            item.config.stash[FAILED if report.failed else PASSED].add(name)
    return report


def took(config):
    """{long group: seconds} of those that ran whole."""
    groups = config.stash[PASSED] - config.stash[FAILED]
    return {name: seconds for name, seconds in config.stash[TOOK].items() if name in groups}


def pytest_benchmark_update_json(config, output_json):
    output_json["took"] = took(config)


def pytest_terminal_summary(terminalreporter, config):
    session = config._benchmarksession
    entries = [benchmark.as_dict(include_data=False) for benchmark in session.benchmarks if not benchmark.has_error]
    device = entries[0]["extra_info"].get("device") if entries else None
    times = selection.recorded_times(device)
    left_out = {name: selection.how_long(name, times) for name in config.stash[LEFT_OUT]}
    for line in summary.lines(entries, left_out, took(config), selection.files(config.stash[LACKING])):
        terminalreporter.write_line(line)


@pytest.fixture(autouse=True, scope="session")
def surroundings():
    torch.backends.cudnn.allow_tf32 = False  # as in training; on by default for convolutions
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False  # likewise
    torch.backends.cudnn.benchmark = True
    keep_freed_memory()  # as in training, and for every variant alike


@pytest.fixture(scope="session")
def variants_of_measurements(request):
    """{measurement: those of its variants that -k, names, node ids and the long groups left in}."""
    by_measurement = {}
    for item in request.session.items:
        if "variant" in getattr(getattr(item, "callspec", None), "params", ()):
            by_measurement.setdefault(selection.measurement(item), {})[item.callspec.params["variant"]] = None
    return {measurement: tuple(variants) for measurement, variants in by_measurement.items()}


@pytest.fixture
def asked(request, variants_of_measurements):
    """The variants of this case's group that were asked for: no other is built, checked and timed."""
    return variants_of_measurements[selection.measurement(request.node)]


@pytest.fixture
def rounds(request):
    """The number of rounds that was asked for, or None: `interleaved.rounds_in` then looks at the clock."""
    return 1 if request.getfixturevalue("benchmark").disabled else request.config.getoption("rounds")


@pytest.fixture(autouse=True)
def where(request):
    if "benchmark" in request.fixturenames:  # what runs on another device says so itself
        device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
        request.getfixturevalue("benchmark").extra_info.update(provenance(device))
