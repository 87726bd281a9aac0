"""Top-1 and top-5 in Triton, in its interpreter where there is no GPU: the definition in `accuracy.py`, to the bit."""

import os

import pytest
import torch
from inner_cases import every

from alexnet_mp.evaluation.accuracy import topk_credit, topk_credit_each

pytest.importorskip("triton", reason="triton is not installed")
GPU = torch.cuda.is_available()
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernel's module is imported
DEVICE = "cuda" if GPU else "cpu"

from alexnet_mp.kernels.topk_credit_triton import topk_credit as in_triton


def same(scores, labels):
    expected = torch.stack(topk_credit_each(scores, labels))
    credit = in_triton(scores.to(DEVICE), labels.to(DEVICE)).cpu()
    assert credit.dtype == torch.float64 and torch.equal(credit, expected), (credit, expected)
    return credit


@pytest.mark.run
@every("classes", [1, 2, 5, 6, 10, 1000])
@every("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_it_is_the_definition(classes, dtype):
    """Few different values, so that most labels tie; and values that are all different."""
    draws = torch.Generator().manual_seed(classes)
    labels = torch.randint(0, classes, (12,), generator=draws)
    for scores in (torch.randint(0, 4, (12, classes), generator=draws), torch.randn(12, classes, generator=draws)):
        credit = same(scores.to(dtype), labels)
        assert ((0 <= credit) & (credit <= 1)).all() and (credit[0] <= credit[1]).all()


def test_fractions_of_ties():
    scores = torch.tensor([[1.0, 1, 1, 0, 0, 0, 0, 0], [2.0, 1, 1, 1, 1, 1, 1, 0], [0.0] * 8])
    assert same(scores, torch.tensor([0, 1, 7])).tolist() == [[1 / 3, 0, 1 / 8], [1, 4 / 6, 5 / 8]]


@every("own", [0.5, float("nan"), float("inf"), -float("inf")])
@every("other", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(own, other):
    scores = torch.randn(6, 11, generator=torch.Generator().manual_seed(3))
    labels = torch.tensor([0, 10, 4, 5, 6, 7])
    scores[torch.arange(6), labels] = own
    for row in range(6):
        scores[row, [place for place in range(11) if place != labels[row]][:row]] = other
    same(scores, labels)


def test_rows_apart_columns_apart_and_no_rows():
    scores, labels = torch.randn(9, 24, generator=torch.Generator().manual_seed(1)), torch.arange(9)
    same(scores[:, :10], labels)
    same(scores[:, ::2], labels)
    same(scores[::2, :10], labels[::2])
    same(scores[:0], labels[:0])


def test_what_is_no_label_is_never_right():
    """PyTorch's gather would end the process's use of the device there; memory of others is not read."""
    scores = torch.zeros(3, 4)
    assert in_triton(scores.to(DEVICE), torch.tensor([-1, 4, 2]).to(DEVICE)).tolist() == [[0, 0, 0.25], [0, 0, 1]]


def test_who_counts(monkeypatch):
    """Where Triton computes, it does; everywhere else, and by default, the definition."""
    scores, labels = torch.randn(5, 7, generator=torch.Generator().manual_seed(2)), torch.arange(5)
    expected = topk_credit(scores, labels)
    for kernels in ("auto", "reference"):
        assert torch.equal(topk_credit(scores, labels, kernels), expected)
    with monkeypatch.context() as patch:
        patch.setattr("alexnet_mp.evaluation.accuracy.resolve", lambda kernels, *what: kernels)
        patch.setattr("alexnet_mp.evaluation.accuracy.topk_credit_each", None)
        credit = topk_credit(scores.to(DEVICE), labels.to(DEVICE), "triton")
    torch.testing.assert_close(credit.cpu(), expected, rtol=1e-15, atol=0)
