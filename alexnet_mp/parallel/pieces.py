"""Which images of a minibatch a pair of towers computes, and in which pieces.

With a microbatch of M, piece i is the images from iM to (i + 1)M of the minibatch, or to its end: that doesn't know how
many pairs there are. Whole pieces go to the pairs in order. Without one, the images are cut evenly, a piece a pair. A
minibatch that is short may leave a pair without any."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Pieces:
    """Of pair number `pair` of `pairs`. microbatch: images a piece; None: a piece a pair."""

    pair: int = 0
    pairs: int = 1
    microbatch: int | None = None

    def number(self, count: int) -> int:
        """Of pieces in a minibatch of `count` images."""
        return -(-count // self.microbatch) if self.microbatch else min(self.pairs, count)

    def owner(self, piece: int, count: int) -> int:
        """The pair that computes a piece. The first is always the first pair's."""
        return piece * self.pairs // self.number(count)

    def own(self, count: int) -> range:
        """The pieces of this pair."""
        start, stop = (-(-pair * self.number(count) // self.pairs) for pair in (self.pair, self.pair + 1))
        return range(start, stop)

    def rows(self, piece: int, count: int) -> slice:
        """The images of a piece, as places in the minibatch."""
        if self.microbatch:
            return slice(piece * self.microbatch, min((piece + 1) * self.microbatch, count))
        return slice(*(place * count // self.number(count) for place in (piece, piece + 1)))

    def own_rows(self, count: int) -> slice:
        """The images of this pair's pieces, as places in the minibatch."""
        pieces = self.own(count)
        return slice(self.rows(pieces[0], count).start, self.rows(pieces[-1], count).stop) if pieces else slice(0, 0)

    def rows_of_all(self, count: int) -> list[slice]:
        """Those of each pair."""
        return [replace(self, pair=pair).own_rows(count) for pair in range(self.pairs)]

    def read(self, count: int) -> slice:
        """The images that this pair's processes read: those of its pieces; one, for nothing, where it has none."""
        return self.own_rows(count) if self.own(count) else slice(0, 1)


WHOLE = Pieces()  # one pair, that computes all at once
