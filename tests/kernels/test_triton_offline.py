"""The Triton kernels compiled for GPUs that are not there: registers, spills, and the state that compiled loops
carry."""

import collections
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.process, pytest.mark.compile]

pytest.importorskip("triton", reason="triton is not installed")
CAPABILITIES = (80, 90)  # A100, H100 and H200
WITHOUT_LOOPS = (
    "_paper_sgd_kernel",
    "_augment_kernel",
    "_relu_dropout_kernel",
    "_relu_dropout_backward_kernel",
    "_topk_credit_kernel",
)
LAUNCHES = {  # of every kernel, for one GPU
    "_forward_kernel": 17,
    "_backward_kernel": 14,
    "_spatial_kernel": 3,
    "_spatial_backward_kernel": 1,
    "_paper_sgd_kernel": 4,
    "_sum_kernel": 2,
    "_augment_kernel": 4,
    "_relu_dropout_kernel": 5,
    "_relu_dropout_backward_kernel": 5,
    "_topk_credit_kernel": 2,
}


# Every kernel at least once, in the launch that asks most of it, for one of the GPUs: a tenth of the time.
ONE_OF_EACH = (
    "layer 2 float32 NCHW",
    "source2012 float32 NCHW",
    "sgd float32 with sums, bfloat16 copies",
    "augment float32 NCHW",
    "credit 1000",
    "relu_dropout fc6 bfloat16",
    "check of the check",
)


@pytest.fixture(scope="module", params=["one of each", pytest.param("all", marks=pytest.mark.slow)])
def reports(request):
    """What `triton_offline.py` says of launches, in processes of their own: the interpreter, once on, stays on."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).parents[1].joinpath("triton_offline.py")
    jobs = [(str(CAPABILITIES[-1]), *ONE_OF_EACH)]
    if request.param == "all":
        jobs = [(str(capability),) for capability in CAPABILITIES]
    processes = [
        subprocess.Popen(
            [sys.executable, script, *arguments],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for arguments in jobs
    ]
    lines = []
    for process in processes:
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        lines += [json.loads(line) for line in output.splitlines()]
    return lines


def kernels(reports):
    return [report for report in reports if not report["kernel"].startswith("fibonacci")]


def test_every_launch_of_the_network_is_compiled(reports):
    """And none of the kernels is missing among those that stand for all."""
    capabilities = {report["capability"] for report in reports}
    counts = collections.Counter((report["capability"], report["kernel"]) for report in kernels(reports))
    assert {kernel for _, kernel in counts} == set(LAUNCHES)
    if capabilities == {CAPABILITIES[-1]}:
        assert {report["case"] for report in reports} == set(ONE_OF_EACH)
    else:
        assert capabilities == set(CAPABILITIES)
        for capability in CAPABILITIES:
            assert {kernel: counts[capability, kernel] for kernel in LAUNCHES} == LAUNCHES


# (capability, kernel, cases): Triton 3.8 (its ptxas is of CUDA 12.9) stores one value a map and reads it once, comes
# to 80 registers instead of 96, and so to six blocks of 128 threads a multiprocessor instead of five.
ONE_VALUE_IN_MEMORY = (90, "_backward_kernel", ("layer 1 float32 NCHW", "layer 2 float32 NCHW"))


def test_no_register_is_spilled(reports):
    import triton

    capability, kernel, cases = ONE_VALUE_IN_MEMORY
    for report in kernels(reports):
        exception = (
            triton.__version__.startswith("3.8") and report["capability"] == capability and report["case"] in cases
        )
        exception = exception and report["kernel"] == kernel and report["stack"] == 8 and report["registers"] <= 80
        assert report["stack"] == 0 or exception, report


def test_weights_are_written_sixteen_bytes_at_a_time(reports):
    """Also beside copies of half as many bits, with which nothing has to be handed from thread to thread."""
    for report in kernels(reports):
        if report["kernel"] == "_paper_sgd_kernel":
            sums, copies = "sums" in report["case"], "bfloat16 copies" in report["case"]
            assert set(report["stores"]) - {"b32", "b16"} == {"v4.b32"} | ({"v2.b32"} if copies else set()), report
            assert report["shared"] <= (1024 if sums else 0), report  # the sum's own


def test_pictures_are_written_sixteen_bytes_at_a_time(reports):
    for report in kernels(reports):
        if report["kernel"] == "_augment_kernel":
            assert set(report["stores"]) == {"v4.b32"}, report


def test_activations_are_written_sixteen_bytes_at_a_time(reports):
    """And, in the backward pass, the sums of a tile."""
    cases = [
        report
        for report in kernels(reports)
        if report["case"].startswith("relu_dropout") and "NCHW" not in report["case"]
    ]
    for report in cases:
        assert set(report["stores"]) == {"v4.b32"} | ({"b32"} if "backward" in report["kernel"] else set()), report


def test_compiled_loops_carry_what_the_source_carries(reports):
    for report in kernels(reports):
        assert report["loops"] or report["kernel"] in WITHOUT_LOOPS, report
        assert all(count == report["expected"] for count in report["loops"]), report


def test_the_check_of_the_loops_notices_a_dropped_name(reports):
    """Two names that start as the same tensor: Triton 3.6 and 3.7 drop one. A Triton without the fault carries both."""
    loops = {report["kernel"]: report["loops"] for report in reports if report["kernel"].startswith("fibonacci")}
    assert loops["fibonacci"] == [2]
    assert loops["fibonacci_of_one_zero"] in ([1], [2])
    import triton

    if triton.__version__.startswith(("3.6", "3.7")):
        assert loops["fibonacci_of_one_zero"] == [1]
