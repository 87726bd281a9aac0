"""Who computes which images: every image once, in order, whoever there is."""

import itertools

from alexnet_mp.parallel.pieces import WHOLE, Pieces

COUNTS = (1, 2, 3, 5, 7, 8, 16, 24, 127, 128)


def cases():
    for count, pairs, microbatch in itertools.product(COUNTS, (1, 2, 3, 4, 5, 8), (None, 1, 2, 3, 5, 8, 128, 200)):
        yield count, pairs, microbatch, [Pieces(pair, pairs, microbatch) for pair in range(pairs)]


def test_every_piece_is_one_pairs_in_order():
    for count, pairs, microbatch, all_pairs in cases():
        number = all_pairs[0].number(count)
        assert [piece for each in all_pairs for piece in each.own(count)] == list(range(number)), (count, pairs)
        for each in all_pairs:
            assert all(each.owner(piece, count) == each.pair for piece in each.own(count))
        assert all_pairs[0].owner(0, count) == 0  # it writes, and says what crossed
        sizes = [len(each.own(count)) for each in all_pairs]
        assert max(sizes) - min(sizes) <= 1


def test_every_image_is_in_one_piece_in_order():
    for count, _, _, (any_pair, *_) in cases():
        rows = [any_pair.rows(piece, count) for piece in range(any_pair.number(count))]
        assert [row for each in rows for row in range(count)[each]] == list(range(count))
        assert all(each.start < each.stop for each in rows)


def test_a_piece_of_a_microbatch_knows_no_pairs():
    for count, pairs, microbatch, all_pairs in cases():
        if microbatch:
            one = Pieces(0, 1, microbatch)
            assert all_pairs[-1].number(count) == one.number(count) == -(-count // microbatch), (count, pairs)
            for piece in range(one.number(count)):
                start = piece * microbatch
                assert all_pairs[-1].rows(piece, count) == slice(start, min(start + microbatch, count))


def test_what_is_read_is_what_is_computed_and_never_nothing():
    for count, _, _, all_pairs in cases():
        for each in all_pairs:
            input_rows = range(count)[each.read(count)]
            own_rows = [row for piece in each.own(count) for row in range(count)[each.rows(piece, count)]]
            assert list(input_rows) == own_rows or (not own_rows and list(input_rows) == [0])
            assert list(range(count)[each.own_rows(count)]) == own_rows
        rows = all_pairs[-1].rows_of_all(count)
        assert [row for each in rows for row in range(count)[each]] == list(range(count)) and len(rows) == len(
            all_pairs
        )


def test_without_a_microbatch_the_images_are_cut_evenly():
    for count, pairs, microbatch, all_pairs in cases():
        if not microbatch and count >= pairs:
            sizes = [len(range(count)[each.read(count)]) for each in all_pairs]
            assert max(sizes) - min(sizes) <= 1 and sum(sizes) == count
    assert WHOLE.read(9) == slice(0, 9)
