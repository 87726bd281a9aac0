"""The fixed tree: the same bits whoever has the terms, and few of them at once. Owners are threads here."""

import queue
import threading

import torch
from inner_cases import every

from alexnet_mp.parallel.pieces import Pieces
from alexnet_mp.parallel.tree_sum import TreeSum


class Mail:
    """Between threads, in the order in which it was sent; what is sent is copied, as by a network."""

    def __init__(self, here, boxes):
        self.here, self.boxes = here, boxes

    def send(self, term, to):
        self.boxes[self.here, to].put([tensor.clone() for tensor in term])

    def receive(self, like, origin):
        term = self.boxes[origin, self.here].get(timeout=20)
        assert [(each.shape, each.dtype) for each in term] == [(each.shape, each.dtype) for each in like]
        return term


def terms(count):
    """Of values whose sum depends on the order of the additions."""
    draws = torch.Generator().manual_seed(count)
    return [
        [torch.randn(5, generator=draws) * 10.0**power, torch.randn(2, 3, generator=draws)] for power in range(count)
    ]


def by_definition(parts):
    """Terms 2i and 2i + 1, then the sums of pairs, and so on."""
    while len(parts) > 1:
        pairs = [parts[first : first + 2] for first in range(0, len(parts), 2)]
        parts = [[sum(tensors[1:], tensors[0]) for tensors in zip(*pair)] for pair in pairs]
    return parts[0]


def summed(count, pairs, microbatch=1):
    """[what each of the pairs gets], [the most sums that each kept at once]"""
    boxes = {(origin, to): queue.Queue() for origin in range(pairs) for to in range(pairs)}
    totals, maxima = [None] * pairs, [0] * pairs

    def compute(pair):
        pieces = Pieces(pair, pairs, microbatch)
        all_terms = terms(count)
        tree = TreeSum(count, lambda piece: pieces.owner(piece, count), pair, all_terms[0], Mail(pair, boxes))
        for piece in pieces.own(count):
            tree.add(piece, [tensor.clone() for tensor in all_terms[piece]])
            maxima[pair] = max(maxima[pair], len(tree.nodes))
        totals[pair] = tree.total()
        assert not tree.nodes

    threads = [threading.Thread(target=compute, args=(pair,)) for pair in range(pairs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert all(box.empty() for box in boxes.values())
    return totals, maxima


@every("count", [*range(1, 20), 31, 32, 33])
def test_the_bits_of_the_definition_whoever_has_the_terms(count):
    expected = by_definition(terms(count))
    for pairs in range(1, 9):
        totals, _ = summed(count, pairs)
        assert totals[1:] == [None] * (pairs - 1), pairs
        for tensor, right in zip(totals[0], expected, strict=True):
            assert torch.equal(tensor, right), pairs


def test_another_order_is_another_sum():
    """Else the test above could not tell."""
    one_by_one = [sum(each[1:], each[0]) for each in zip(*terms(7))]
    assert not torch.equal(one_by_one[0], by_definition(terms(7))[0])


def test_few_sums_are_kept():
    """One for each bit of the number of terms, and of terms that don't begin at a power of two twice as many."""
    for count in (32, 33, 63, 100):
        for pairs in (1, 2, 3, 4):
            totals, maxima = summed(count, pairs)
            assert totals[0] is not None and min(maxima) >= 1
            assert max(maxima) <= (1 if pairs == 1 else 2) * count.bit_length()
