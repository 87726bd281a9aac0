"""A training step of the paper's network by one process, by a process a tower, and by two pairs of towers.

    pytest benchmarks/test_speed_scaling.py --benchmark-only [--batch 128] [--rounds 7]

On a CPU `one-process` has two threads, and each of two processes one: the same two cores. `towers-apart`: a process a
tower. `two-pairs`: a pair of towers each, half of the minibatch each, the gradients by the library's all-reduce;
`two-pairs-fixed`: by a microbatch of half the minibatch and the fixed tree, whose bits depend on no number of pairs. On
two GPUs `one-process` and `towers-apart` have a tower on each, the pairs a GPU each. The clock is the host's, around
the whole step of all processes, CUDA graphs are off.
"""

import statistics
from contextlib import ExitStack, closing

import pytest
import torch
from interleaved import REPLAY, clocks, compare, once, provenance, replay, time_interleaved
from jobs import Job

# {place: {variant: (devices of each process, threads of each)}}
PLACES = {
    "cpu": {
        "one-process": ([["cpu", "cpu"]], 2),
        "towers-apart": ([["cpu"], ["cpu"]], 1),
        "two-pairs": ([["cpu", "cpu"]] * 2, 1),
        "two-pairs-fixed": ([["cpu", "cpu"]] * 2, 1),
    },
    "two-gpus": {
        "one-process": ([["cuda:0", "cuda:1"]], 1),
        "towers-apart": ([["cuda:0"], ["cuda:1"]], 1),
        "two-pairs": ([["cuda:0"] * 2, ["cuda:1"] * 2], 1),
        "two-pairs-fixed": ([["cuda:0"] * 2, ["cuda:1"] * 2], 1),
    },
}
VARIANTS = tuple(PLACES["cpu"])


@pytest.fixture(scope="module")
def measured():
    return once(measure)


@pytest.mark.benchmark(timer=REPLAY)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("place", ["cpu", pytest.param("two-gpus", marks=pytest.mark.gpus(2))])
def test_scaling(place, variant, benchmark, measured, rounds, request):
    batch = (request.config.getoption("batch") or (2 if benchmark.disabled else 128,))[0]
    seconds, conditions = measured(place, batch, rounds)
    benchmark.group = f"scaling-{place}-fp32-b{batch}"
    replay(benchmark, seconds[variant]["step"])
    devices, threads = PLACES[place][variant]
    benchmark.extra_info.update(
        provenance(torch.device(devices[0][0]))
        | conditions
        | compare(seconds, "step", None, VARIANTS)[variant]
        | {
            "op": "scaling",
            "variant": variant,
            "dtype": "fp32",
            "batch": batch,
            "place": place,
            "processes": len(devices),
            "threads_each": threads,
            "images_per_s": batch / statistics.median(seconds[variant]["step"]),
        }
    )


def measure(place, batch, rounds):
    """The steps timed, interleaved; a job that has no turn waits."""
    device = torch.device(PLACES[place]["one-process"][0][0][0])
    with ExitStack() as stack:
        jobs = {}
        for name, (devices, threads) in PLACES[place].items():
            microbatch = -(-batch // 2) if name == "two-pairs-fixed" else None
            job = Job(devices, threads, batch, apart=name == "towers-apart", microbatch=microbatch)
            jobs[name] = stack.enter_context(closing(job))
        for name, job in jobs.items():  # of the same network, and the same images
            assert all(loss == pytest.approx(jobs["one-process"].losses[0], rel=1e-4) for loss in job.losses), name
        before = clocks(device)
        seconds, _ = time_interleaved(jobs, torch.device("cpu"), rounds)
        return seconds, {"clocks_before": before, "clocks_after": clocks(device), "seed": 0}
