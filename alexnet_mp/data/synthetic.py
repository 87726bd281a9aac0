"""The embedded data set: pictures drawn from (seed, split, index), for a first run without any download.

A picture shows a grey grating under a few coloured discs, on a background of random brightness, with noise. Its class
is the pair (grating, colour): 4 gratings x 4 colours = 16 classes.

* The grating is horizontal or vertical and coarse or fine (periods of about 1/7 and 1/18 of the picture's side);
  orientation, period, phase and contrast vary within a class. It has no colour.
* The discs are red, green, blue or yellow; number, place, size and exact hue vary. Every hue has the same brightness on
  average, so that a network that sees no colour cannot tell the hues apart.

So neither orientation-selective nor colour-selective kernels suffice alone: an ideal observer of one of the two errs on
3 of 4 pictures. Horizontal flips leave every class as it is."""

import hashlib

import numpy as np

from ..system.errors import UserError

# name, degrees of the wave, periods a side
GRATINGS = (
    ("horizontal-coarse", 90.0, 7.0),
    ("horizontal-fine", 90.0, 18.0),
    ("vertical-coarse", 0.0, 7.0),
    ("vertical-fine", 0.0, 18.0),
)
COLOURS = (("red", 0.0), ("green", 120.0), ("blue", 240.0), ("yellow", 60.0))  # name, hue in degrees
COUNTS = {"train": 4096, "val": 1024, "test": 1024}
SEED = 2012
LUMA = np.array([0.299, 0.587, 0.114])  # brightness of R, G, B (ITU-R BT.601)


class Builtin:
    """The embedded data: `classes` (16 names), `splits` {"train", "val", "test"}, `fingerprint`. size: pixels a
    side."""

    source, statistics, ids, class_names, passed_over = "builtin", None, None, None, ()

    def __init__(self, size: int):
        if size < 32:
            raise UserError(f"recipe field stored_size is {size}: the builtin gratings need at least 32 pixels")
        self.classes = [f"{grating[0]}-{colour[0]}" for grating in GRATINGS for colour in COLOURS]
        self.splits = {
            name: BuiltinSplit(name, number, count, size, len(self.classes))
            for number, (name, count) in enumerate(COUNTS.items())
        }
        # The first pictures stand for all: a change in the drawing, or in numpy's generator, changes them too.
        pictures = b"".join(split.read(0).tobytes() for split in self.splits.values())
        self.fingerprint = hashlib.sha256(repr((self.classes, COUNTS, SEED, size)).encode() + pictures).hexdigest()
        self.description = (
            f"builtin: {', '.join(f'{count:,} {split}' for split, count in COUNTS.items())} pictures of "
            f"{len(self.classes)} classes, drawn at {size}x{size}"
        )


class BuiltinSplit:
    storage = "files"

    def __init__(self, name: str, number: int, count: int, size: int, classes: int):
        self.number, self.size = number, size
        self.labels = np.arange(count) % classes
        self.names = [f"builtin/{name}/{index}" for index in range(count)]

    def __len__(self):
        return len(self.labels)

    def read(self, index: int | np.integer) -> np.ndarray:
        """Picture `index` as (size, size, 3) uint8."""
        grating, colour = divmod(int(self.labels[index]), len(COLOURS))
        random = np.random.Generator(np.random.Philox(key=SEED, counter=[0, 0, self.number, index]))
        return draw(random, grating, colour, self.size)


def draw(random: np.random.Generator, grating: int, colour: int, size: int) -> np.ndarray:
    """One picture of class (grating, colour): (size, size, 3) uint8."""
    y, x = np.mgrid[:size, :size] / size
    _, degrees, periods = GRATINGS[grating]
    angle = np.deg2rad(degrees + random.uniform(-12, 12))
    wave = 2 * np.pi * periods * random.uniform(0.85, 1.15)
    stripes = np.sin(wave * (x * np.cos(angle) + y * np.sin(angle)) + random.uniform(0, 2 * np.pi))
    light = random.uniform(80, 175) + random.uniform(12, 40) * stripes
    picture = np.repeat(light[:, :, None], 3, axis=2)

    hue = COLOURS[colour][1] + random.uniform(-20, 20)
    tint = _tint(hue) * random.uniform(25, 60)
    for _ in range(random.integers(3, 7)):
        centre_y, centre_x, radius = random.uniform(0.1, 0.9, 2).tolist() + [random.uniform(0.08, 0.18)]
        disc = (x - centre_x) ** 2 + (y - centre_y) ** 2 < radius**2
        picture[disc] += tint
    picture += random.normal(0, 16, picture.shape)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _tint(hue):
    """The colour of a hue with its brightness taken out: a vector of length 1 with LUMA . tint = 0."""
    rgb = np.array([0.5 + 0.5 * np.cos(np.deg2rad(hue - primary)) for primary in (0, 120, 240)])
    rgb -= LUMA @ rgb
    return rgb / np.linalg.norm(rgb)
