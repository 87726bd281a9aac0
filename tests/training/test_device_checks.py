"""What the self-check calls: all is right here, and each planted fault is seen."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from alexnet_mp.kernels import dispatch, lrn_pool, reference, sgd
from checked_devices import needs_kernels, one_wrong_pixel
from inner_cases import every
from pipeline_sets import needs_dali
from planted import CPU, OTHER, asked, deliver_stale, one_element_of_the_gradient, plant

from alexnet_mp.data import pipeline_raw
from alexnet_mp.network.exchange import Exchange
from alexnet_mp.recipes.named import PRESETS
from alexnet_mp.recipes.recipe import Layer
from alexnet_mp.system.isolated import Unfit, Wrong
from alexnet_mp.training import device_checks, needed_checks, pipeline_check

pytestmark = pytest.mark.usefixtures("one_thread")


def run(checks):
    for check in checks:
        check.function(check.devices, *check.arguments)


def checks_of(kind, operation="", **changes):
    checks = [
        check
        for check in needed_checks.checks(asked(**changes))
        if check.kind == kind and (kind != "kernel" or check.operation == operation)
    ]
    assert checks
    return checks


# --- kernels


@pytest.mark.run
@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str)
@every("preset", PRESETS)
def test_the_cpus_kernels_are_right(preset, dtype):
    """Those of every preset: the bound is not met by chance."""
    recipe = PRESETS[preset]()
    checks = needed_checks.checks(dataclasses.replace(asked(dtype=dtype), recipe=recipe))
    run(check for check in checks if check.kind in ("kernel", "augment"))
    operations = {check.operation for check in checks if check.kind == "kernel"}
    assert {"paper_sgd_"} < operations and operations <= {
        "lrn_max_pool",
        "max_pool",
        "lrn",
        "spatial_norm_max_pool",
        "relu_dropout",
        "linear",
        "paper_sgd_",
    }


@needs_kernels
@every("settings", [["pool_ties=all"], ["dropout=0"], ["lrn_alpha=0"], ["pool_size=2"], ["lrn_size=4", "lrn_beta=0.5"]])
def test_other_constants_are_right(settings):
    run(check for check in needed_checks.checks(asked(settings=settings)) if check.kind == "kernel")


def off_by(what, amount):
    """A fault: one element of an output, the argument of this number, is off by a share of the largest."""

    def fault(real, *arguments):
        real(*arguments)
        values = arguments[what]
        flat = values.view(-1) if values.is_contiguous() else values.permute(0, 2, 3, 1).view(-1)
        flat[len(flat) // 3] += amount * flat.abs().max()

    return fault


@needs_kernels
@every(
    "kernel, fault, operation, dtype, words",
    [
        ("lrn_pool_backward", one_element_of_the_gradient, "lrn_max_pool", torch.float32, "in the gradient: off by"),
        ("lrn_pool_backward", off_by(4, 0.02), "lrn_max_pool", torch.bfloat16, "in the gradient: off by"),
        ("lrn_pool_backward", off_by(5, 0.001), "lrn_max_pool", torch.float32, "in the gradient of the bias: off by"),
        ("lrn_pool_backward", off_by(4, float("nan")), "max_pool", torch.float32, "in the gradient: off by nan"),
        ("lrn_pool_forward", off_by(2, 1e-5), "lrn_max_pool", torch.float32, "in the output of a test: off by"),
        ("lrn_pool_forward", off_by(2, 0.02), "max_pool", torch.bfloat16, "in the output of a test: off by"),
        ("paper_sgd_", off_by(0, 1e-5), "paper_sgd_", torch.float32, "in the weights: off by"),
        ("paper_sgd_", off_by(2, 1e-5), "paper_sgd_", torch.float32, "in the (weights|velocity): off by"),
    ],
)
def test_a_wrong_element_is_seen(kernel, fault, operation, dtype, words, monkeypatch):
    checks = checks_of("kernel", operation, dtype=dtype)
    plant(monkeypatch, kernel, fault)
    with pytest.raises(Wrong, match=f"differs from the reference {words}") as error:
        run(checks)
    assert "\n" not in str(error.value) and ", PyTorch in " in str(error.value)


@needs_kernels
def test_a_gpus_approximations_are_those_of_the_implementation_that_computes(monkeypatch):
    """Not of "auto", which is what a run asks for."""
    calls = []
    monkeypatch.setattr(device_checks, "approximation", lambda *who: calls.append(who) or (0.0, 0.0))
    (check, *_) = checks_of("kernel", "lrn_max_pool", kernels="auto")
    check.function(check.devices, *check.arguments)
    assert calls == [("cpu", torch.device("cpu"))]


@needs_kernels
def test_a_wrong_rule_for_ties_is_seen(monkeypatch):
    """Only ties can tell the two rules apart."""
    checks = checks_of("kernel", "max_pool", settings=["pool_ties=all"])
    plant(monkeypatch, "lrn_pool_backward", lambda real, *arguments: real(*arguments[:-1], 0))
    real = lrn_pool._outputs
    monkeypatch.setattr(lrn_pool, "_outputs", lambda x, pool, stride, ties: real(x, pool, stride, "first"))
    with pytest.raises(Wrong, match="in the gradient"):
        run(checks)


def test_rounding_decides_no_gradient():
    """Windows of 3x3, two apart: a clear maximum, an exact tie, two that rounding may order, and one that is all
    zeros."""
    x = torch.zeros(4, 1, 3, 3, dtype=torch.float64)
    x[:, 0, 1, 1], x[3] = 5, 0
    x[0, 0, 0, 0], x[1, 0, 0, 0], x[2, 0, 0, 0] = 4.99, 5, 5 * (1 - 1e-7)
    constants = {field: getattr(asked().recipe, field) for field in needed_checks.CONSTANTS}
    for fused in (("max_pool",), ("relu", "max_pool"), ("relu", "lrn", "max_pool")):
        layer = Layer("any", "conv", None, "own", fused)
        for bias in (None, torch.ones(1, dtype=torch.float64)):
            clear = device_checks._clear(layer, fused, x, bias, constants)
            assert clear.shape == (4, 1, 1, 1) and clear[[0, 2]].flatten().tolist() == [1, 0]
            assert "lrn" in fused or clear[[1, 3]].flatten().tolist() == [1, 1]  # of equal values pow may make two
    wide = torch.arange(16.0, dtype=torch.float64).view(1, 1, 4, 4)  # the last windows hang over the edges
    assert device_checks._clear(layer, ("max_pool",), wide, None, constants).tolist() == [[[[1, 1], [1, 1]]]]
    assert device_checks._clear(layer, ("relu",), x, None, constants) == 1


@needs_kernels
def test_a_wrong_mask_of_dropout_is_seen(monkeypatch):
    checks = checks_of("kernel", "relu_dropout")

    def fault(real, x, step, threshold, seed, *others):
        real(x, step, threshold, seed + 1, *others)

    plant(monkeypatch, "relu_dropout", fault)
    with pytest.raises(Wrong, match="in the output: off by"):
        run(checks)


@needs_kernels
@every("dtype", [torch.float32, torch.bfloat16])
def test_what_an_update_writes_beside_the_weights_is_seen(dtype, monkeypatch):
    """The copies in which the next step computes, and the sums that watch for NaN."""
    (check,) = checks_of("kernel", "paper_sgd_", dtype=dtype)
    real = reference.note_weights

    def copies_are_old(number, w, copies, sums):
        real(number, w, copies and [torch.empty_like(copy) for copy in copies], sums)

    def sums_are_not_written(number, w, copies, sums):
        real(number, w, copies)

    def nan_counts_as_zero(number, w, copies, sums):
        real(number, w, copies)
        sums[number] = w.nansum()

    def infinity_counts_as_zero(number, w, copies, sums):
        real(number, w, copies)
        sums[number] = w.nan_to_num(math.nan, 0, 0).sum()

    faults = {
        sums_are_not_written: "sums of the weights: off by",
        nan_counts_as_zero: "finite where a gradient is nan",
        infinity_counts_as_zero: "finite where a gradient is inf",
    }
    if dtype != torch.float32:
        faults[copies_are_old] = "copies of the weights: off by"
    for fault, words in faults.items():
        monkeypatch.setattr(sgd, "reference", SimpleNamespace(paper_sgd_=reference.paper_sgd_, note_weights=fault))
        with pytest.raises(Wrong, match=words):
            check.function(check.devices, *check.arguments)


@every("classes", [10, 1000])
def test_credit_that_is_wrong_is_seen(classes, monkeypatch):
    device_checks.credit((CPU,), classes, "auto")
    real = device_checks.topk_credit

    def equals_count_as_right(scores, labels):
        return real(scores + 1e-6 * torch.nn.functional.one_hot(labels, scores.shape[1]), labels)

    def nothing_is_right(scores, labels):
        return torch.zeros(2, dtype=torch.float64)

    for fault in (equals_count_as_right, nothing_is_right):
        choices = {"auto": fault, "reference": real}
        monkeypatch.setattr(device_checks, "topk_credit", lambda *batch: choices[batch[2]](*batch[:2]))
        with pytest.raises(Wrong, match="in the answers that are right: off by"):
            device_checks.credit((CPU,), classes, "auto")


def test_on_a_gpu_credit_is_checked_and_can_be_left_out(with_gpu_kernels):
    first = torch.device("cuda:0")
    checks = checks_of("kernel", "topk_credit", devices=(first, first))
    assert [check.what for check in checks] == ["topk_credit by triton on cuda:0"]
    dispatch.leave_out({("topk_credit", "triton", "cuda:0")})
    assert dispatch.resolve("auto", first, "topk_credit") == "reference"
    assert not [check for check in needed_checks.checks(asked((first, first))) if check.operation == "topk_credit"]


@needs_kernels
def test_a_product_that_is_wrong_is_seen(monkeypatch):
    device_checks.product((CPU,), (256, 4096), "auto")
    real = device_checks.linear
    monkeypatch.setattr(
        device_checks, "linear", lambda x, *others, kernels: real(x, *others, kernels=kernels) + 0.01 * x[:, :1]
    )
    with pytest.raises(Wrong, match="in the output: off by"):
        device_checks.product((CPU,), (256, 4096), "auto")


@needs_kernels
def test_an_augmentation_that_is_wrong_is_seen(monkeypatch):
    checks = checks_of("augment")
    plant(monkeypatch, "augment", lambda real, *arguments: (real(*arguments), arguments[-1][2, 1, 5:6, 7].add_(0.01)))
    with pytest.raises(Wrong, match="in the output: off by 0.01"):
        run(checks)


# --- crossings


@every("overlap", [None, False])
@every("dtype", [torch.float32, torch.bfloat16])
def test_crossings_are_right(dtype, overlap):
    """Those that the run will make: what doesn't overlap waits for the whole."""
    checks = checks_of("crossing", devices=(CPU, OTHER), dtype=dtype, overlap=overlap)
    run(checks)
    assert all(check.arguments[-1] is (overlap is None) for check in checks)
    assert [check.what for check in checks] == [
        f"the exchange for {layers} between cpu and cpu:0" for layers in ("conv3", "fc6", "fc7, fc8")
    ]
    exchange = Exchange([CPU, OTHER], overlap)
    device_checks.cross(exchange, (2, 3, 4, 4), dtype)
    assert len(exchange.ledger) == 4 * device_checks.ROUNDS  # both ways, forward and backward


@every(
    "pass_, words",
    [
        ("forward", "other values arrive than were sent from cpu"),
        ("backward", "other gradients arrive than were sent from cpu"),
    ],
)
def test_stale_data_is_seen(pass_, words, monkeypatch):
    deliver_stale(monkeypatch, pass_)
    with pytest.raises(Wrong, match=words):
        device_checks.crossing((CPU, OTHER), (2, 3, 4, 4), torch.float32)


def test_on_one_device_nothing_crosses():
    assert not [check for check in needed_checks.checks(asked()) if check.kind == "crossing"]


# --- pipelines


@pytest.mark.process
@pytest.mark.parametrize(
    "name, storage",
    [
        ("raw", "pixels"),
        ("torch", "files"),
        *(pytest.param("dali", storage, marks=needs_dali) for storage in ("pixels", "jpeg", "files")),
    ],
)
def test_pipelines_are_right(name, storage):
    for settings in ([], ["mean_follows_crop=false", "crop_share=4", "colour_shrink=true", "crop_positions=9"]):
        run(checks_of("pipeline", pipeline=name, storage=storage, settings=settings, devices=(CPU, OTHER)))


@every("in_test, words", [(False, "in the pixels of a batch: off by 0.1"), (True, "in the pixels of a view of a test")])
def test_one_wrong_pixel_is_seen(in_test, words, monkeypatch):
    one_wrong_pixel(monkeypatch, in_test)
    with pytest.raises(Wrong, match=words):
        run(checks_of("pipeline"))


def test_wrong_labels_and_a_missing_batch_are_seen(monkeypatch):
    monkeypatch.setattr(
        pipeline_raw.RawPipeline,
        "_labels",
        lambda self, split, images: torch.from_numpy(split.labels[images[::-1].copy()]),
    )
    with pytest.raises(Wrong, match="other images, or with other labels"):
        run(checks_of("pipeline"))
    monkeypatch.setattr(pipeline_raw.RawPipeline, "train", lambda self, *arguments: iter(()))
    with pytest.raises(Wrong, match="other images, or with other labels"):
        run(checks_of("pipeline"))


def test_the_decoder_of_a_gpu_has_a_bound(monkeypatch):
    """Its JPEGs may be some grey levels off, and no more; whatever else is exact."""
    images, exact = torch.zeros(4, 3, 8, 8), torch.zeros(4, 3, 8, 8, dtype=torch.float64)
    reader = type("Reader", (), {"name": "dali", "devices": [torch.device("cuda:0")]})()

    class OnGpu:
        device = torch.device("cuda:0")

        def __init__(self, values):
            self.values = values

        def cpu(self):
            return self.values

    pipeline_check._compare_images("batch", [OnGpu(images + 0.9)], images, exact, "jpeg", reader)
    for off in (images + 1.1, images.index_fill(3, torch.tensor([0]), 5.0)):
        with pytest.raises(Wrong, match="decodes JPEGs for cuda:0 unlike pipeline torch: grey levels off by"):
            pipeline_check._compare_images("batch", [OnGpu(off)], images, exact, "jpeg", reader)
    with pytest.raises(Wrong, match="in the pixels of a batch"):
        pipeline_check._compare_images("batch", [OnGpu(images + 0.9)], images, exact, "pixels", reader)
    with pytest.raises(Wrong, match="makes a batch for cuda:0 on cpu"):
        pipeline_check._compare_images("batch", [images], images, exact, "pixels", reader)


# --- devices

needs_gpu = pytest.mark.gpu(reason="needs a GPU")


@needs_gpu
@every("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("part", range(6))  # every shape is compiled anew: several workers share them out
@every("kernels", ["auto", "triton"])
def test_a_gpus_kernels_are_right(kernels, part, dtype):
    first = torch.device("cuda:0")
    for preset in [*PRESETS][part::6]:
        request = dataclasses.replace(asked((first, first), dtype, kernels), recipe=PRESETS[preset]())
        run(check for check in needed_checks.checks(request) if check.kind in ("kernel", "augment"))


@needs_gpu
@pytest.mark.parametrize("other", ["cpu", pytest.param("cuda:1", marks=pytest.mark.gpu(2, reason="needs two GPUs"))])
def test_crossings_of_gpus_are_right(other):
    for dtype in (torch.float32, torch.bfloat16):
        run(checks_of("crossing", devices=(torch.device("cuda:0"), torch.device(other)), dtype=dtype))


@needs_gpu
@pytest.mark.parametrize(
    "name, storage",
    [
        ("raw", "pixels"),
        ("torch", "files"),
        *(pytest.param("dali", storage, marks=needs_dali) for storage in ("pixels", "jpeg")),
    ],
)
def test_pipelines_to_gpus_are_right(name, storage):
    for devices in ((torch.device("cuda:0"),) * 2, (CPU, torch.device("cuda:0"))):
        run(checks_of("pipeline", pipeline=name, storage=storage, devices=devices))


def test_a_device_that_can_t_be_used_is_no_kernels_fault():
    with pytest.raises(Unfit, match="^cuda:7 can't be used: [^\n]+$"):
        device_checks.prepare((CPU, torch.device("cuda:7")), frozenset())
    device_checks.prepare((CPU,), {("lrn", "cpu", "cpu")})
    assert dispatch.resolve("auto", CPU, "lrn") == "reference"
    dispatch.leave_out(())
