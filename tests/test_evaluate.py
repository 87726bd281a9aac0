"""Top-1 and top-5 errors, ties, NaN, partial batches, and the average over views."""
import numpy as np
import pytest
import torch
from torch import nn

from alexnet_mp.evaluate import both_protocols, credits, evaluate
from alexnet_mp.recipe import mini, paper


@pytest.mark.parametrize("scores, label, top1, top5", [
    ([9, 8, 7, 6, 5, 4, 3], 0, 1, 1),
    ([9, 8, 7, 6, 5, 4, 3], 4, 0, 1),
    ([9, 8, 7, 6, 5, 4, 3], 5, 0, 0),
    ([1, 1, 1, 1, 1, 1, 1], 3, 1 / 7, 5 / 7),  # random tie-breaking is right once in seven, five in seven
    ([9, 8, 7, 6, 5, 5, 3], 5, 0, 1 / 2),
    ([9, 9, 7, 6, 5, 5, 3], 0, 1 / 2, 1),
    ([float("nan")] * 7, 3, 0, 0),  # a network that blew up is never right
    ([float("nan"), 8, 7, 6, 5, 4, 3], 1, 0, 1),
    ([1, 2, 3], 0, 0, 1),  # fewer than six classes: top-5 can't fail
])
def test_credits_of_one_image(scores, label, top1, top5):
    result = credits(torch.tensor([scores], dtype=torch.float32), torch.tensor([label]))
    assert result.tolist() == pytest.approx([top1, top5])


def test_credits_agree_with_topk_without_ties():
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.rand(500, 20, generator=generator), torch.randint(20, (500,), generator=generator)
    for k, found in zip((1, 5), credits(scores, labels).tolist()):
        assert found == (scores.topk(k).indices == labels[:, None]).any(1).sum().item()


class Scripted(nn.Module):
    """A network whose answer is written into the images: logit c of an image is its pixel c."""

    def forward(self, images, _=None):
        return images[:, :, 0, 0]


class ScriptedPipeline:
    """Yields views whose pixels are the given logits: views -> (images, 3 classes)."""

    def __init__(self, logits, labels):
        self.logits, self.labels = logits, labels

    def views(self, split, batch_size, which):
        for start in range(0, len(self.labels), batch_size):
            part = slice(start, start + batch_size)
            yield [[self.logits[view][part][:, :, None, None]] * 2 for view in which], self.labels[part]


def test_probabilities_are_averaged_and_every_image_counts_once():
    """Two views that disagree: softmax first, then the mean. Averaging logits would decide image 0 the other way."""
    logits = {"centre": torch.tensor([[2.0, 0, 1], [0, 5, 0], [0, 0, 5]]), "mirror": torch.tensor([[-9.0, 0, -9], [0, 5, 0], [0, 0, 5]])}
    labels = torch.tensor([0, 1, 0])
    counted = []
    network = Scripted().train()
    errors = evaluate(network, ScriptedPipeline(logits, labels), "val", {"one": ["centre"], "two": ["centre", "mirror"]}, 2, counted.append)
    p = [np.exp(logits[view][0].numpy()) / np.exp(logits[view][0].numpy()).sum() for view in ("centre", "mirror")]
    assert p[0].argmax() == 0 and np.mean(p, 0).argmax() == 1
    assert errors["one"].top1_error == pytest.approx(100 / 3) and errors["two"].top1_error == pytest.approx(200 / 3)
    assert errors["one"].top5_error == 0 and errors["one"].images == 3
    losses = [-np.log(np.mean(p, 0)[0]), *(-np.log(torch.stack([logits[v][i].softmax(0) for v in logits]).mean(0)[labels[i]].item())
                                          for i in (1, 2))]
    assert errors["two"].loss == pytest.approx(np.mean(losses))
    assert counted == [2, 1] and network.training  # left in the mode it was in


def test_a_loss_beyond_float32_is_finite():
    """exp(-300) is 0 in float32; the loss is 300 all the same, and over two views -log of the mean."""
    logits = {"one": torch.tensor([[300.0, 0, 0]]), "two": torch.tensor([[200.0, 0, 0]])}
    errors = evaluate(Scripted(), ScriptedPipeline(logits, torch.tensor([1])), "val", {"one": ["one"], "both": ["one", "two"]}, 1,
                      lambda n: None)
    assert errors["one"].loss == pytest.approx(300) and errors["both"].loss == pytest.approx(200 + np.log(2))


def test_the_papers_protocols():
    protocols = both_protocols(paper())
    assert protocols["centre view"] == [(16, 16, False)]
    corners = [(0, 0), (0, 32), (16, 16), (32, 0), (32, 32)]
    assert protocols["ten views"] == [(*place, flip) for flip in (False, True) for place in corners]
    assert len(set(both_protocols(mini())["ten views"])) == 10
