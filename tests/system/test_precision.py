"""`--precision`: what is computed in, what stays float32, who is refused, and a run in bf16 from its beginning to a
resumed end."""

import json

import pytest
import torch
import torch.nn.functional as F
from golden import GOLDEN, ten_losses
from inner_cases import every
from tiny_run import assert_same_end, resume, run

from alexnet_mp import TwoTowerAlexNet, mini, source2012, train
from alexnet_mp.command_options import compute_as_in_training
from alexnet_mp.recipes.cifar import cifar11_local
from alexnet_mp.recipes.recipe import change_layers
from alexnet_mp.system import precision
from alexnet_mp.system.errors import UserError

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


@pytest.fixture(autouse=True)
def flags():
    """What a test makes of this process is undone."""
    matmul = torch.backends.cuda.matmul
    before = torch.backends.cudnn.allow_tf32, matmul.allow_tf32, matmul.allow_bf16_reduced_precision_reduction
    yield
    torch.backends.cudnn.allow_tf32, matmul.allow_tf32, matmul.allow_bf16_reduced_precision_reduction = before


def small(recipe):
    """The recipe with few units where it has fully connected layers."""
    names = [layer.name for layer in recipe.layers[:-1] if layer.kind == "fc"]
    return change_layers(recipe, *names, maps=8) if names else recipe


@pytest.mark.run
@every("recipe", [mini(), small(source2012()), cifar11_local()])
@every("merged", [False, True])
def test_in_bf16_all_between_images_and_logits_is_bf16_and_nothing_else(recipe, merged):
    network = TwoTowerAlexNet(recipe, (CPU,) * recipe.towers, classes=3)
    network = network.merge() if merged else network
    tensors = []
    for module in network.modules():
        if hasattr(module, "fused_operations"):
            module.register_forward_hook(lambda module, inputs, output: tensors.extend([*inputs[:1], output]))
    images = 60 * torch.randn(2, 3, recipe.crop_size, recipe.crop_size)
    logits = network(*[images.bfloat16()] * (1 if merged else recipe.towers))
    F.cross_entropy(logits, torch.tensor([0, 2])).backward()
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16} and logits.dtype == torch.float32
    parameters = dict(network.named_parameters())
    assert {tensor.dtype for each in parameters.values() for tensor in (each, each.grad)} == {torch.float32}
    assert all(parameter.grad.abs().sum() > 0 for name, parameter in parameters.items() if "fc8" in name)


@pytest.mark.slow
@pytest.mark.run
@pytest.mark.usefixtures("one_thread")
def test_ten_losses_in_bf16():
    """Near those of float64, and not the same: 8 bits of mantissa instead of 53, ten steps on each other."""
    losses = ten_losses(torch.float32, "auto", images=torch.bfloat16)
    assert losses == pytest.approx(GOLDEN, rel=0.03) and losses != pytest.approx(GOLDEN, rel=1e-5)


def test_only_tf32_lets_cuda_round_to_it():
    for choice in ("fp32", "bf16"):
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
        assert precision.use(choice, [CPU]) == (torch.float32 if choice == "fp32" else torch.bfloat16)
        assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


def test_commands_with_a_network_let_no_convolution_round_to_it():
    torch.backends.cudnn.allow_tf32 = True
    compute_as_in_training()
    assert not torch.backends.cudnn.allow_tf32


@every("choice, devices", [("fp32", [CPU]), ("bf16", [CPU]), ("bf16", [CPU, GPU]), ("tf32", [GPU])])
def test_cublas_adds_no_parts_of_a_product_in_bf16(choice, devices, monkeypatch):
    """By default it may. What is left to it is to cut a long sum into parts that it adds in float32."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = True
    precision.use(choice, devices)
    assert not torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction


@pytest.mark.gpu(reason="needs a GPU")
def test_a_long_bf16_product_on_a_gpu_adds_in_float32():
    """As long as fc6's. Parts of a sum that were rounded before they are added would show beside a small sum.

    A tensor core adds 16 products to a sum at a time, and may cut off what is beyond float32's 24 bits instead of
    rounding it: of sums below 128 less than 9216 / 16 * 2^-17 = 4.4e-3 in all. A part of 50 in bfloat16 errs by 0.1.
    """
    precision.use("bf16", [GPU])
    draws = torch.Generator("cuda").manual_seed(0)
    x, w = (torch.randn(size, 9216, generator=draws, device=GPU).bfloat16() for size in (8, 2048))
    expected = x.double() @ w.double().t()
    error = ((x @ w.t()).double() - expected).abs()
    assert (error <= 2**-8 * expected.abs() + 5e-3).all()  # half a unit of the last rounding, and the sum's own error


def test_tf32_on_a_gpu_that_has_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert precision.use("tf32", [CPU, GPU]) == torch.float32
    assert torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32


@every("choice", ["tf32", "bf16"])
def test_an_older_gpu_is_refused(choice, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(UserError, match=f"--precision {choice}: Tesla T4 is older than Ampere; fp32 works"):
        precision.use(choice, [GPU])
    assert precision.use("fp32", [GPU]) == torch.float32


def test_tf32_without_a_gpu_is_refused(tmp_path):
    with pytest.raises(UserError, match="precision tf32: only CUDA devices have it; --precision fp32"):
        train.main(["--gpus", "cpu", "--precision", "tf32", "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


@every(
    "native, devices, said", [(True, [CPU], None), (False, [CPU, GPU], "much slower than fp32"), (False, [GPU], None)]
)
def test_a_processor_without_bf16(native, devices, said, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native)
    remark = precision.remark("bf16", devices)
    assert said in remark if said else remark is None
    assert precision.remark("fp32", devices) is None


@pytest.mark.run
@pytest.mark.usefixtures("one_thread", "quick")
def test_a_run_in_bf16_goes_on_bit_for_bit_and_says_so_where_it_does_not(data, tmp_path, capsys):
    whole = run(data, tmp_path / "whole", "--precision", "bf16")
    out = run(data, tmp_path / "run", "--precision", "bf16", "--steps", "4")
    assert (
        "precision bf16" in capsys.readouterr().out
        and json.loads((out / "run.json").read_text())["precision"] == "bf16"
    )
    resume(data, out)  # what nobody says stays
    assert_same_end(out, whole)
    assert "no longer bit for bit" not in capsys.readouterr().out
    resume(data, out, "--epochs", "4", "--precision", "fp32")
    assert "something else computes: precision: bf16 -> fp32" in capsys.readouterr().out
