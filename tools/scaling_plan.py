"""What many pairs of towers would have to send in a training step, and from which step time on they pay: arithmetic, no
measurement.

    python tools/scaling_plan.py [--recipe paper] [--batch 128] [--pairs 1,2,4,8,64,128] [--step MS]

Of each scheme the largest number of bytes that one device sends in one direction, in float32:

  towers   one pair: the halves that cross between its towers (the analytic ledger, `recipes.shapes.crossings`)
  pairs    P pairs, each with 1/P of the minibatch: those halves, of 1/P of the images; and a ring that adds the
           gradients, which sends 2 (P - 1) / P of a tower's parameters
  owt      the devices of P pairs (Krizhevsky 2014): convolutions by images, their gradients by a ring; fully connected
           layers by units, so that each device sends its images' last maps to all others, and its units of every
           hidden layer; gradients return the same way, but of the last layer's sums, from which every device computes
           the loss

Of a recipe of one tower a "pair" is one device, and nothing crosses. A count has its row where training would take it:
a pair needs an image of the minibatch; with owt every device does, and a unit of every fully connected layer.

A link is its nominal rate, used whole in both directions, without latency. `pays from` is the time that a step of one
pair must take for P pairs to be faster at all, if nothing that is sent hides behind the computation and P pairs compute
in 1/P of its time T: (t_P - t_1) P / (P - 1), t the time on the link. The last lines have, of each link, the last count
that pays: T / P + t_P is below that of every smaller one. T is `--step`, else the limit of `benchmarks/roofline.py`
with a tower a device; the longer a step takes, the more counts pay."""

import argparse

from alexnet_mp.profiling import link_rates, roofline
from alexnet_mp.recipes.named import PRESETS
from alexnet_mp.recipes.recipe import Recipe
from alexnet_mp.recipes.shapes import BYTES_FP32, crossings, fewest_units, parameter_counts, sizes

CLASSES = 1000
COUNTS = (1, 2, 4, 8, 64, 128)

LINKS = {
    "PCIe 2.0 x16 (2012)": link_rates.PCIE_2_X16,
    "PCIe 5.0 x16": link_rates.PCIE_5_X16,
    "NVLink 4 (900 GB/s both ways)": link_rates.NVLINK_4,
    "100 Gbit/s": link_rates.NETWORK_100,
    "400 Gbit/s": link_rates.NETWORK_400,
}


def towers(recipe: Recipe, batch: float) -> float:
    """Bytes that cross in the busier direction of a step of so many images."""
    # The ledger is in proportion to the images.
    ledger = crossings(recipe, 1)
    return batch * max(sum(size for _, way, _, size in ledger if way == direction) for direction in ("a->b", "b->a"))


def ring(parameters: int, devices: int) -> float:
    """Bytes that each of the devices sends for the sum of a gradient that all of them get."""
    return 2 * (devices - 1) / devices * parameters * BYTES_FP32


def pairs(recipe: Recipe, batch: int, count: int) -> float:
    return towers(recipe, batch / count) + ring(max(parameter_counts(recipe)), count)


def owt(recipe: Recipe, batch: int, count: int) -> float:
    devices, layers = recipe.towers * count, sizes(recipe, CLASSES)
    convolutions = sum(recipe.towers * size.parameters for size in layers if size.layer.kind != "fc")
    # What the fully connected layers read, of one image: the last maps, then units; gradients return.
    inputs, predecessor = 0, None
    for size in layers:
        if size.layer.kind == "fc":
            channels, height, width = predecessor.output
            inputs += recipe.towers * channels * height * width
        predecessor = size
    # A device has 1/n of all that is read, by images or by units, and sends it to the n - 1 others; 1/n of the sums.
    own_bytes = batch / devices * (2 * inputs + predecessor.output[0]) * BYTES_FP32
    return ring(convolutions, devices) + (devices - 1) * own_bytes


def traffic(recipe: Recipe, batch: int, count: int) -> dict[str, float]:
    """{scheme: bytes}, of those that so many pairs can take."""
    if count == 1:
        return {"towers": towers(recipe, batch)}
    schemes = {"pairs": pairs(recipe, batch, count)}
    if recipe.towers * count <= min(batch, fewest_units(recipe, CLASSES)):
        schemes["owt"] = owt(recipe, batch, count)
    return schemes


def table(recipe: Recipe, batch: int, counts: list[int]) -> list[str]:
    """Lines of Markdown: bytes; then, of each link, the time and the step time from which it pays."""
    pair_bytes = towers(recipe, batch)
    lines = ["| pairs | scheme | MB a step | " + " | ".join(LINKS) + " |", "|---|---|---:|" + "---:|" * len(LINKS)]
    for count in counts:
        for scheme, size in traffic(recipe, batch, count).items():
            cells = []
            for rate in LINKS.values():
                seconds, pair_seconds = size / rate, pair_bytes / rate
                text = f"{1e3 * seconds:,.2f} ms"
                if count > 1:
                    break_even = (seconds - pair_seconds) * count / (count - 1)
                    text += f"; pays from {1e3 * break_even:,.2f} ms" if break_even > 0 else "; always pays"
                cells.append(text)
            lines.append(f"| {count} | {scheme} | {size / 1e6:,.1f} | {' | '.join(cells)} |")
    return lines


def last_counts(recipe: Recipe, batch: int, counts: list[int], milliseconds: float) -> list[str]:
    """Lines of Markdown: of each link and scheme the last count that pays, if one pair computes so long.

    It is the fastest: from two pairs on both schemes send a - b / P bytes, so that more pairs are faster all the way,
    or slower all the way.
    """
    lines = []
    for link, rate in LINKS.items():
        texts = []
        for scheme in ("pairs", "owt"):
            steps = {1: milliseconds + 1e3 * towers(recipe, batch) / rate}
            for count in counts:
                if (size := traffic(recipe, batch, count).get(scheme)) is not None:
                    steps[count] = milliseconds / count + 1e3 * size / rate
            last = min(steps, key=steps.get)
            texts.append(
                f"{scheme} {last} ({steps[1] / steps[last]:.3g} times as fast)" if last > 1 else f"{scheme} none"
            )
        lines.append(f"- {link}: {', '.join(texts)}")
    return lines


def count_list(text: str) -> list[int]:
    """The type of `--pairs`."""
    counts = [int(word) if word.strip().isdecimal() else 0 for word in text.split(",")]
    if min(counts) < 1:
        raise argparse.ArgumentTypeError(f"{text}: write numbers that are at least 1, as in 1,2,4")
    return sorted(set(counts))


def main() -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", choices=tuple(PRESETS), default="paper")
    parser.add_argument("--batch", type=int, metavar="IMAGES", help="of the whole minibatch (default: the recipe's)")
    parser.add_argument("--pairs", type=count_list, metavar="P[,P]", help="default: those above up to the batch")
    parser.add_argument(
        "--step", type=float, metavar="MS", help="that one pair computes (default: the roofline's limit)"
    )
    options = parser.parse_args()
    recipe = PRESETS[options.recipe]()
    batch = recipe.batch_size if options.batch is None else options.batch
    if batch < 1 or (options.step is not None and options.step <= 0):
        parser.error("--batch is at least 1, --step more than 0")
    counts = options.pairs or [count for count in COUNTS if count <= batch]
    if max(counts) > batch:
        parser.error(f"--pairs {max(counts)}: a minibatch of {batch} images has one for {batch} pairs at most")
    milliseconds, source = options.step, "--step"
    if milliseconds is None:
        milliseconds, source = (
            roofline.step(recipe, batch, "fp32")["step"] / recipe.towers,
            "the roofline's limit, with TF32",
        )
    print(*table(recipe, batch, counts), "", sep="\n")
    print(f"The last count that pays, if one pair computes for {milliseconds:.3g} ms a step ({source}):\n")
    print(*last_counts(recipe, batch, counts, milliseconds), sep="\n")


if __name__ == "__main__":
    main()
