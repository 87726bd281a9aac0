"""The directories of a TIFF, a page each: what the first one shows, and whether others are pictures of their own.

They are read before Pillow sees the file, from content that is not trusted."""

from collections.abc import Callable
from itertools import islice

NEW_SUBFILE_TYPE, PHOTOMETRIC, DNG_VERSION = 254, 262, 50706
SMALLER, MASK = 1, 4  # NewSubfileType: of another page of the file
FROM_A_SENSOR = 32803, 34892  # PhotometricInterpretation: a colour filter array, linear raw
BYTES = {3: 2, 16: 8}  # of a number, by the kind of its field; of the other kinds 4
MOST_FIELDS = 1 << 16
MOST_PAGES = 1 << 10  # that are looked at: a pyramid of a picture has a dozen


def is_raw(read: Callable[[int, int], bytes]) -> bool:
    """Whether the first picture of a TIFF is a preview, or what a sensor saw: DNG, NEF, ARW and their like.

    read(start, count): bytes of the file, fewer behind its end."""
    page = next(_pages(read), {})
    smaller = page.get(NEW_SUBFILE_TYPE, 0) & SMALLER
    return bool(smaller) or page.get(PHOTOMETRIC) in FROM_A_SENSOR or DNG_VERSION in page


def has_more(read: Callable[[int, int], bytes]) -> bool:
    """Whether a TIFF has pictures besides the first; smaller versions and masks of it are none."""
    pages = islice(_pages(read), 1, MOST_PAGES)
    return any(not page.get(NEW_SUBFILE_TYPE, 0) & (SMALLER | MASK) for page in pages)


def _pages(read):
    """Yields {tag: number}, the first number of each field as far as it stands in the directory itself."""
    order = "little" if read(0, 2) == b"II" else "big"

    def number(place, count):
        return int.from_bytes(read(place, count), order)

    big = number(2, 2) == 43  # BigTIFF
    head, entry, place_size = (8, 20, 8) if big else (2, 12, 4)
    place, places = number(8 if big else 4, place_size), set()
    while 0 < place < 1 << 62 and place not in places:
        places.add(place)
        count = number(place, head)
        if not 0 < count <= MOST_FIELDS:
            return
        fields, page = read(place + head, count * entry), {}
        for start in range(0, len(fields) - entry + 1, entry):
            tag, kind = (int.from_bytes(fields[start + offset : start + offset + 2], order) for offset in (0, 2))
            value = start + entry - place_size
            page[tag] = int.from_bytes(fields[value : value + BYTES.get(kind, 4)], order)
        yield page
        place = number(place + head + count * entry, place_size)
