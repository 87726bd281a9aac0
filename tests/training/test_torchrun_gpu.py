"""Jobs of several processes on GPUs, which torchrun starts and NCCL connects: each is the run of one process within
rounding."""

import pytest
from inner_cases import every
from tiny_run import lines, run
from torchrun_jobs import ended, torchrun

pytestmark = [pytest.mark.process, pytest.mark.run, pytest.mark.usefixtures("quick")]
TOWERS = "devices: tower a on cuda:0, tower b on cuda:1, in a process each"
PAIRS = "devices: 2 pairs of towers, pair 0: tower a on cuda:0, tower b on cuda:0; pair 1: tower a on cuda:1, "
APART, MICROBATCH = ["--towers", "apart", "--gpus", "0,1"], ["--microbatch", "3"]


@pytest.mark.gpu(2, reason="needs two GPUs")
@every(
    "job, one, devices",
    [
        ([*APART, "--graphs", "off"], ["--gpus", "0,1", "--graphs", "off"], TOWERS),
        ([*APART, "--graphs", "on"], ["--gpus", "0,1", "--graphs", "off"], TOWERS),
        (["--gpus", "0,0,1,1", *MICROBATCH], ["--gpus", "0", *MICROBATCH], PAIRS),  # two never share a GPU
    ],
    ids=["a process a tower", "with graphs", "two pairs"],
)
def test_a_job_is_the_run_of_one_process_within_rounding(job, one, devices, data, tmp_path):
    status, output, errors = ended(torchrun(data, tmp_path / "job", *job))
    assert status == 0 and devices in output and errors == []
    run(data, tmp_path / "one", *one)
    for line, expected in zip(lines(tmp_path / "job"), lines(tmp_path / "one"), strict=True):
        for name in ("kind", "step", "loss", "top1_error"):
            value = expected.get(name)
            assert line.get(name) == (pytest.approx(value, 1e-4) if isinstance(value, float) else value), line
